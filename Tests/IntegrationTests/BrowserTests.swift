import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Web pages that run in a browser on this host: what they may start.
    @Suite struct Browsers {
        /// What browsers send for a page of another site: `fetch` with and without CORS, forms, navigations (Fetch Metadata, W3C).
        private static let foreign: [[(String, String)]] = [
            [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "cors")],
            [("Origin", "https://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
            [("Origin", "null"), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")],
            [("Origin", "http://localhost:3000"), ("Sec-Fetch-Site", "same-site")],
            [("Origin", "https://evil.example")],
            [("Sec-Fetch-Site", "cross-site")],
            [("Sec-Fetch-Site", "same-site")],
        ]

        /// No kind of page, content type or route starts a turn, and nothing is sent upstream.
        @Test func noPageSpends() throws {
            let stage = try Stage("a")
            let bodies = [
                ("/v1/responses", Stage.body()), ("/v1/chat/completions", Stage.chat(stream: false)),
                ("/backend-api/codex/responses", Stage.body()),
                ("/v1/embeddings", "{\"model\":\"text-embedding-3-small\",\"input\":\"x\"}"),
            ]
            for (path, body) in bodies {
                for headers in Self.foreign {
                    for type in ["text/plain", "application/json", "application/x-www-form-urlencoded"] {
                        let answer = try stage.daemon.post(path, body, headers: headers + [("Content-Type", type)])
                        #expect(answer.status == 403 && answer.errorCode == "origin_not_allowed", "\(path) \(headers) \(type)")
                        #expect(answer.header("access-control-allow-origin") == nil)
                    }
                }
            }
            #expect(stage.calls("a") == 0)
            #expect(try stage.daemon.records().isEmpty)
            #expect(try stage.daemon.get("/v1/usage", headers: [("Origin", "https://evil.example")]).status == 403)
        }

        /// What is no page, or our own, is served; an upstream's word on who may read its answer is not passed on.
        @Test func othersAreServed() throws {
            let stage = try Stage("a")
            stage.always("a", .events(Canned.stream, headers: ["Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "x"]))
            for headers in [
                [], [("Sec-Fetch-Site", "none")], [("Sec-Fetch-Site", "same-origin")],
                [("Host", stage.daemon.address), ("Origin", "http://" + stage.daemon.address)],
            ] {
                let answer = try stage.daemon.post("/v1/responses", Stage.body(), headers: headers)
                #expect(answer.status == 200, "\(headers)")
                #expect(answer.header("access-control-allow-origin") == nil && answer.header("cross-origin-resource-policy") == nil)
            }
            #expect(stage.calls("a") == 4)
        }

        /// A page on the list may call and read; its preflight is answered; no other gains by it.
        @Test func allowedOrigin() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_ALLOWED_ORIGINS": "https://chat.example, app://ui"])
            let page = [("Origin", "https://chat.example"), ("Sec-Fetch-Site", "cross-site")]
            let preflight = try stage.daemon.send(
                "OPTIONS", "/v1/responses",
                headers: page + [
                    ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "authorization,content-type"),
                    ("Access-Control-Request-Private-Network", "true"),
                ])
            #expect(preflight.status == 204)
            #expect(preflight.header("access-control-allow-origin") == "https://chat.example")
            #expect(preflight.header("access-control-allow-methods") == "POST")
            #expect(preflight.header("access-control-allow-headers") == "authorization,content-type")
            #expect(preflight.header("access-control-allow-private-network") == "true")
            let answer = try stage.daemon.post("/v1/responses", Stage.body(), headers: page)
            #expect(answer.status == 200 && answer.header("access-control-allow-origin") == "https://chat.example")
            #expect(answer.header("vary") == "Origin")
            #expect(stage.requests("a").first?.header("origin") == nil)
            let refused = try stage.daemon.post("/v1/responses", Stage.body(), headers: [("Origin", "https://chat.example.evil")])
            #expect(refused.status == 403)
            #expect(try stage.daemon.send("OPTIONS", "/v1/responses", headers: [("Origin", "https://evil.example")]).status == 403)
            let plain = try stage.daemon.send("OPTIONS", "/v1/responses")
            #expect(plain.status == 204 && plain.header("allow") == "POST, OPTIONS" && plain.header("access-control-allow-origin") == nil)
        }

        /// Fields that decide whom a request is charged to, and a caller's own credentials, end here.
        @Test(arguments: ["/v1/responses", "/v1/chat/completions", "/backend-api/codex/responses"]) func identityEnds(_ path: String) throws
        {
            let stage = try Stage("a")
            let own = [
                ("OpenAI-Organization", "org-own"), ("OpenAI-Project", "proj-own"), ("chatgpt-account-id", "acc-own"), ("Cookie", "s=own"),
                ("api-key", "own"), ("x-api-key", "own"), ("X-Goog-Api-Key", "own"), ("Referer", "https://own.example/"),
                ("Authorization", "Basic own"), ("Proxy-Authorization", "Basic own"), ("x-openai-account-routing-override", "own"),
            ]
            let body = path.contains("chat") ? Stage.chat(stream: true) : Stage.body()
            let answer = try stage.daemon.post(path, body, headers: own + [("OpenAI-Beta", "kept"), ("X-Request-Id", "kept-id")])
            #expect(answer.status == 200)
            let request = try #require(stage.requests("a").first)
            for (name, value) in own { #expect(request.headers.allSatisfy { $0.value != value }, "\(name)") }
            #expect(request.header("authorization") == "Bearer sk-up-a" && request.headerCount("authorization") == 1)
            #expect(request.header("openai-beta") == "kept")
            #expect(request.header("x-request-id") == "kept-id" && answer.header("x-request-id") == "kept-id")
        }

        /// An account may leave the choice of organization and project to its clients.
        @Test func organizationPasses() throws {
            let stage = try Stage("a", "b", environment: ["CODEX_LB_ACCOUNTS_PASSING_ORGANIZATION": "b"])
            for i in 0..<2 {
                _ = try stage.daemon.post(
                    "/v1/responses", Stage.body(),
                    headers: [("OpenAI-Organization", "org-own"), ("OpenAI-Project", "p"), ("Cookie", "c\(i)")])
            }
            #expect(stage.requests("a").first?.header("openai-organization") == nil)
            let request = try #require(stage.requests("b").first)
            #expect(request.header("openai-organization") == "org-own" && request.header("openai-project") == "p")
            #expect(request.header("cookie") == nil)
        }
    }
}
