import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Client keys: who needs one, and what it allows.
    @Suite struct Keys {
        private static func remote(_ key: String?) -> [(String, String)] {
            [("X-Forwarded-For", "192.0.2.7")] + (key.map { [("Authorization", "Bearer \($0)")] } ?? [])
        }

        /// Without a key callers on this host need none and may send any; from the first key on everybody needs a good one, and the end of
        /// the last key opens nothing.
        @Test(arguments: Database.both) func whoNeedsOne(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: [("Authorization", "Bearer anything")]).status == 200)
            #expect(stage.daemon.waitLog("no key exists and only loopback listens"))
            let key = try stage.daemon.createKey("laptop")
            #expect(key.hasPrefix("sk-clb-"))
            #expect(try eventually(2) { try stage.daemon.post("/v1/responses", Stage.body()).status == 401 })
            #expect(stage.daemon.waitLog("a key exists"))
            for headers in [Self.remote(key), [("Authorization", "Bearer \(key)")], [("Authorization", "bearer  \(key)")]] {
                #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: headers).status == 200)
            }
            let wrong: [String?] = [nil, "", "sk-clb-wrong", key + "x", String(key.dropLast()), key.uppercased(), "sk-up-a", "anything"]
            for key in wrong {
                for headers in [Self.remote(key), key.map { [("Authorization", "Bearer \($0)")] } ?? []] {
                    let answer = try stage.daemon.post("/v1/responses", Stage.body(), headers: headers)
                    #expect(answer.status == 401, "\(key ?? "no key")")
                    #expect(answer.errorCode == "invalid_api_key")
                    #expect(answer.header("www-authenticate") != nil)
                }
            }
            let basic = try stage.daemon.post("/v1/responses", Stage.body(), headers: [("Authorization", "Basic \(key)")])
            #expect(basic.status == 401)
            #expect(try stage.daemon.get("/v1/models").status == 401)
            #expect(try stage.daemon.get("/health/live").status == 200)
            #expect(try stage.daemon.run("keys", "revoke", "laptop").isGood)
            #expect(try eventually(2) { try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 401 })
            #expect(try stage.daemon.post("/v1/responses", Stage.body()).status == 401)
        }

        /// Every field that tells of a proxy in front makes the caller remote, and so does a foreign name in Host.
        @Test(arguments: [
            ("Forwarded", "for=192.0.2.1"), ("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "192.0.2.1"), ("Via", "1.1 nginx"),
            ("CF-Connecting-IP", "192.0.2.1"), ("True-Client-IP", "192.0.2.1"), ("X-Forwarded-Host", "localhost"), ("Host", "evil.example"),
            ("Host", "[::1].evil.example"), ("Host", "127.0.0.1.evil.example"),
        ])
        func whatMakesRemote(_ name: String, _ value: String) throws {
            let stage = try Stage("a")
            let answer = try stage.daemon.post("/v1/responses", Stage.body(), headers: [(name, value)])
            #expect(answer.status == 401)
            #expect(stage.calls("a") == 0)
        }

        /// `always` demands a key before there is one; `never` demands none of anybody, but looks at one that is shown.
        @Test func rules() throws {
            let always = try Stage("a", environment: ["CODEX_LB_REQUIRE_KEYS": "always"])
            #expect(try always.daemon.post("/v1/responses", Stage.body()).status == 401)
            #expect(always.daemon.waitLog("CODEX_LB_REQUIRE_KEYS=always"))
            let never = try Stage("a", environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            let key = try never.daemon.createKey("laptop")
            for headers in [[], Self.remote(nil), Self.remote("anything"), [("Host", "llm.example")]] {
                #expect(try never.daemon.post("/v1/responses", Stage.body(), headers: headers).status == 200, "\(headers)")
            }
            #expect(try eventually(2) { try never.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 200 })
            #expect(try never.daemon.post("/v1/responses", Stage.body(), headers: Self.remote("sk-clb-wrong")).status == 401)
        }

        /// An address beyond loopback demands keys of callers on this host too, and says so.
        @Test func exposed() throws {
            let daemon = try Daemon()
            try daemon.launch(listen: "0.0.0.0:0")
            try daemon.waitReady()
            let port = daemon.address.split(separator: ":").last!
            let connection = try HTTPConnection("127.0.0.1:\(port)")
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.answer().status == 401)
            #expect(daemon.waitLog("an address beyond loopback listens"))
        }

        /// Metrics and the details of health are for direct callers on this host while none must show a key; with a token, for its holder
        /// alone. No e-mail address is in a label.
        @Test func whoObserves() throws {
            let stage = try Stage("a")
            try stage.daemon.addAccount("me@example.com", baseURL: stage.upstream.baseURL, key: "k")
            #expect(try eventually(2) { try stage.daemon.get("/metrics").text.contains("account-2") })
            #expect(try !stage.daemon.get("/metrics").text.contains("example.com"))
            #expect(try stage.daemon.get("/health/ready").json["checks"] != nil)
            for headers in [[("X-Forwarded-For", "192.0.2.1")], [("Host", "evil.example")]] {
                #expect(try stage.daemon.get("/metrics", headers: headers).status == 401)
                let ready = try stage.daemon.get("/health/ready", headers: headers)
                #expect(ready.status == 200 && ready.text == "{\"status\":\"ok\"}")
            }
            _ = try stage.daemon.createKey("laptop")
            #expect(try eventually(2) { try stage.daemon.get("/metrics").status == 401 })
            let token = "a-metrics-token-0123"
            let other = try Stage("a", environment: ["CODEX_LB_METRICS_TOKEN": token])
            #expect(try other.daemon.get("/metrics").status == 401)
            #expect(try other.daemon.get("/metrics", headers: [("Authorization", "Bearer wrong")]).status == 401)
            #expect(try other.daemon.get("/metrics", headers: [("Authorization", "Bearer \(token)"), ("Via", "1.1 x")]).status == 200)
            #expect(try other.daemon.get("/health/ready").json["checks"] == nil)
        }

        /// A peer from another address of this machine is remote.
        @Test(.enabled(if: ownAddress() != nil, "this machine has no address beyond loopback")) func otherAddress() throws {
            let stage = try Stage("a")
            // 0.0.0.0 also answers on this machine's own address, from which a caller is not loopback.
            let own = try #require(Self.ownAddress())
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: "sk-up-a")
            try daemon.launch(listen: "0.0.0.0:0")
            try daemon.waitReady()
            let port = daemon.address.split(separator: ":").last!
            let connection = try HTTPConnection("\(own):\(port)")
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.answer().status == 401)
        }

        private static func ownAddress() -> String? {
            Host.current().addresses.first { $0.contains(".") && !$0.hasPrefix("127.") }
        }

        /// A key for some models only: others are refused with 403 model_not_allowed, and are not in its list.
        @Test(arguments: Database.both) func models(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            stage.upstream.always(path: "/v1/models", .status(200, Canned.models("gpt-5.4", "gpt-5.5")))
            let key = try stage.daemon.createKey("narrow", "--models", "gpt-5.4,gpt-5.4-mini")
            #expect(
                try eventually(bound(1, debug: 3)) {
                    try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 200
                })
            let answer = try stage.daemon.post("/v1/responses", Stage.body(model: "gpt-5.5"), headers: Self.remote(key))
            #expect(answer.status == 403)
            #expect(answer.errorCode == "model_not_allowed")
            let list = try stage.daemon.get("/v1/models", headers: Self.remote(key))
            #expect((list.json["data"] as? [[String: Any]])?.compactMap { $0["id"] as? String } == ["gpt-5.4"])
            #expect(!stage.requests("a").contains { $0.json["model"] as? String == "gpt-5.5" })
        }

        /// A revoked key ends within a second, without restart.
        @Test(arguments: Database.allCases) func revoked(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            let key = try stage.daemon.createKey("laptop")
            #expect(
                try eventually(bound(1, debug: 3)) {
                    try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 200
                })
            #expect(try stage.daemon.run("keys", "revoke", "laptop").isGood)
            #expect(
                try eventually(bound(1, debug: 3)) {
                    try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 401
                })
        }

        /// An expired key is no key. Its time can't be in the past at birth, so the clock of the store's row is turned back.
        @Test func expired() throws {
            let stage = try Stage("a")
            let key = try stage.daemon.createKey("short", "--expires", "1m")
            #expect(
                try eventually(bound(1, debug: 3)) {
                    try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).status == 200
                })
            #expect(stage.daemon.stop() == .code(0))
            let sqlite = try Child(
                "/usr/bin/sqlite3", [stage.daemon.data + "/store.db", "UPDATE client_keys SET expires_at_ms = 1000"], environment: [:],
                errors: stage.daemon.directory + "/sqlite.err")
            try #require(
                sqlite.wait() == .code(0),
                "\(String(decoding: FileManager.default.contents(atPath: stage.daemon.directory + "/sqlite.err") ?? Data(), as: UTF8.self))"
            )
            try stage.daemon.start()
            let answer = try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key))
            #expect(answer.status == 401)
            #expect(answer.errorCode == "invalid_api_key")
            #expect(try stage.daemon.run("keys", "list", "--json").output.contains("\"expired\""))
        }

        /// The record names the key that was used.
        @Test(arguments: Database.both) func recorded(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            let key = try stage.daemon.createKey("laptop")
            let headers = Self.remote(key) + [("X-Request-Id", "keyed")]
            #expect(try eventually(bound(1, debug: 3)) { try stage.daemon.get("/v1/models", headers: headers).status == 200 })
            #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: headers).status == 200)
            #expect(try stage.daemon.record("keyed")["key"] as? String == "laptop")
        }

        /// Accounts and keys can be made and listed with and without a server; a second of the same name is refused.
        @Test(arguments: Database.allCases) func commandsWithoutServer(_ database: Database) throws {
            let daemon = try Daemon(on: database)
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1/v1", key: "sk-up-a")
            let again = try daemon.run("accounts", "add", "a", "--base-url", "http://127.0.0.1:1/v1", "--key-file", "-", input: "x\n")
            #expect(again.exit == .code(1))
            #expect(!again.errors.isEmpty)
            let key = try daemon.createKey("k")
            let list = try daemon.run("accounts", "list", "--json")
            #expect(list.isGood && list.output.contains("\"name\":\"a\""))
            #expect(!list.output.contains("sk-up-a"))
            #expect(try !daemon.run("keys", "list", "--json").output.contains(key))
            #expect(try daemon.run("accounts", "remove", "a").isGood)
            #expect(try !daemon.run("accounts", "list", "--json").output.contains("\"name\":\"a\""))
            #expect(try daemon.run("accounts", "pause", "nobody").exit == .code(1))
            #expect(try daemon.run("accounts", "add").exit == .code(2))
            #expect(try daemon.run("nonsense").exit == .code(2))
            #expect(try daemon.run("--version").isGood)
            #expect(try daemon.run("ctl", "status").exit == .code(1))
        }
    }
}
