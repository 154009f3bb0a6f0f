import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Adding, renewing and losing accounts, as an operator does and sees it.
    @Suite struct Accounts {
        /// An auth.json as Codex writes it; `accountID` nil leaves the member empty, as some versions do.
        private static func login(
            _ email: String, workspace: String, person: String, token: String, accountID: String? = nil
        ) -> String {
            let claims = Data(
                "{\"email\":\"\(email)\",\"https://api.openai.com/auth\":{\"chatgpt_account_id\":\"\(workspace)\",\"chatgpt_user_id\":\"\(person)\"}}"
                    .utf8)
            let middle = claims.base64EncodedString().replacingOccurrences(of: "=", with: "").replacingOccurrences(of: "+", with: "-")
                .replacingOccurrences(of: "/", with: "_")
            return
                "{\n \"tokens\": {\n  \"access_token\": \"\(token)\",\n  \"refresh_token\": \"r-\(token)\",\n  \"id_token\": \"eyJhbGciOiJub25lIn0.\(middle).\",\n  \"account_id\": \"\(accountID ?? "")\"\n }\n}\n"
        }

        private func bring(_ daemon: Daemon, _ base: String, _ text: String, _ options: String...) throws -> (isGood: Bool, text: String) {
            let file = daemon.directory + "/auth.json"
            try Data(text.utf8).write(to: URL(fileURLWithPath: file))
            let result = try daemon.run(["accounts", "import", file, "--base-url", base] + options)
            return (result.isGood, result.output + result.errors)
        }

        private func list(_ daemon: Daemon) throws -> [String: String] {
            let result = try daemon.run("accounts", "list", "--json")
            let rows = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]] ?? []
            return Dictionary(uniqueKeysWithValues: rows.map { ($0["name"] as? String ?? "", $0["state"] as? String ?? "") })
        }

        /// A login that is known gets its new tokens; another person's or another workspace's never takes its place unasked.
        @Test func renewed() throws {
            let stage = try Stage()
            let (daemon, base) = (stage.daemon, stage.upstream.chatGPTBaseURL)
            let one = { Self.login("me@example.com", workspace: "w1", person: "p1", token: $0) }
            #expect(try bring(daemon, base, one("t1")).text.contains("account me@example.com imported"))
            #expect(try bring(daemon, base, one("t2")).text.contains("account me@example.com renewed"))
            #expect(try eventually(5) { try stage.turn().status == 200 && stage.upstream.calls("t2") > 0 })
            #expect(
                stage.upstream.requests("t2").first?.header("chatgpt-account-id") == "w1", "from the id token where account_id is empty")

            let second = Self.login("me@example.com", workspace: "w2", person: "p1", token: "t3", accountID: "w2")
            let refused = try bring(daemon, base, second)
            #expect(!refused.isGood && refused.text.contains("--name") && refused.text.contains("--replace"), "\(refused.text)")
            #expect(try bring(daemon, base, second, "--name", "work").text.contains("account work imported"))
            #expect(try bring(daemon, base, second).text.contains("account work renewed"), "it is found by whose it is")

            let colleague = Self.login("you@example.com", workspace: "w2", person: "p2", token: "t4", accountID: "w2")
            #expect(try !bring(daemon, base, colleague, "--name", "work").isGood, "the same workspace, another person")
            let twice = try bring(daemon, base, one("t5"), "--name", "again")
            #expect(!twice.isGood && twice.text.contains("me@example.com"), "\(twice.text)")
            #expect(try bring(daemon, base, colleague, "--name", "work", "--replace").text.contains("account work renewed"))
            #expect(try list(daemon) == ["me@example.com": "active", "work": "active"])

            #expect(try daemon.run("accounts", "add", "k", "--base-url", stage.upstream.baseURL, "--key-file", "-", input: "k1\n").isGood)
            let again = try daemon.run("accounts", "add", "k", "--base-url", stage.upstream.baseURL, "--key-file", "-", input: "k2\n")
            #expect(!again.isGood && again.errors.contains("--replace"))
            #expect(
                try daemon.run("accounts", "add", "k", "--replace", "--base-url", stage.upstream.baseURL, "--key-file", "-", input: "k2\n")
                    .isGood)
            for name in ["me@example.com", "work"] { #expect(try daemon.run("accounts", "pause", name).isGood) }
            #expect(try eventually(5) { try stage.turn().status == 200 && stage.upstream.calls("k2") > 0 })
            #expect(stage.upstream.calls("k1") == 0)
        }

        /// What editors leave in a file is read; what only looks right is refused with its line.
        @Test func authFiles() throws {
            let stage = try Stage()
            let text = Self.login("me@example.com", workspace: "w1", person: "p1", token: "t1")
            for good in ["\u{FEFF}" + text, text.replacingOccurrences(of: "\n", with: "\r\n")] {
                #expect(try bring(stage.daemon, stage.upstream.chatGPTBaseURL, good).isGood)
            }
            let odd = try bring(
                stage.daemon, stage.upstream.chatGPTBaseURL, text.replacingOccurrences(of: "  \"id_token", with: "\u{A0} \"id_token"))
            #expect(!odd.isGood && odd.text.contains("line 5") && odd.text.contains("auth.json"), "\(odd.text)")
            let curly = try bring(
                stage.daemon, stage.upstream.chatGPTBaseURL, text.replacingOccurrences(of: "\"t1\"", with: "\u{201C}t1\u{201D}"))
            #expect(!curly.isGood && curly.text.contains("line 3"), "\(curly.text)")
            let spaced = try bring(stage.daemon, stage.upstream.chatGPTBaseURL, text.replacingOccurrences(of: "\"t1\"", with: "\"t 1\""))
            #expect(!spaced.isGood && spaced.text.contains("access_token"), "\(spaced.text)")
        }

        /// Addresses that can't work are refused when they are given.
        @Test func baseURLs() throws {
            let daemon = try Daemon(["CODEX_LB_LISTEN": "127.0.0.1:2999"])
            let bad = [
                "api.openai.com/v1", "ftp://x/v1", "https://", "https://api.openai.com", "https://api.openai.com/v1/chat/completions",
                "https://x/v1/responses/", "https://x/v1/models", "https://x:0/v1", "https://x:70000/v1", "https://x:/v1",
                "https://u:p@x/v1",
                "https://x/v1?", "https://x/v1?a b", "https://x/v1?a#b", "https://x/v1#a", "http://0.0.0.0:8000/v1", "http://[::]:8000/v1",
                "http://localhost:2999/v1",
                "http://127.0.0.1:2999/v1", "https://chatgpt.com/backend-api", "https://x y/v1", "https://::1/v1",
            ]
            for url in bad {
                let result = try daemon.run("accounts", "add", "a", "--base-url", url, "--key-file", "-", input: "k\n")
                #expect(result.exit == .code(2) && result.errors.contains("base URL \"\(url)\""), "\(url): \(result.errors)")
            }
            let good = [
                "https://api.openai.com/v1/", "http://127.0.0.1:2998", "http://[::1]:8000/v1", "https://host.example/openai/v1",
                "https://x/v1/?a=b/",
            ]
            for (i, url) in good.enumerated() {
                #expect(try daemon.run("accounts", "add", "a\(i)", "--base-url", url, "--key-file", "-", input: "k\n").isGood, "\(url)")
            }
            let text = Self.login("me@example.com", workspace: "w1", person: "p1", token: "t1")
            #expect(try !bring(daemon, "https://chatgpt.com", text).isGood)
        }

        /// A login that its upstream refuses for good is taken out of routing by every instance's word for it, is seen in the list and in
        /// health, and comes back with a new import.
        @Test(arguments: [Database.sqlite, .postgresql]) func deadLogin(_ database: Database) throws {
            let stage = try Stage("b", workers: 2, on: database)
            let base = stage.upstream.chatGPTBaseURL
            let text = { Self.login("me@example.com", workspace: "w1", person: "p1", token: $0) }
            stage.upstream.always("dead", .error(401, code: "account_deactivated", message: "Your account has been deactivated."))
            // No worker may have another account to go to when the dead one comes.
            #expect(try stage.daemon.run("accounts", "pause", "b").isGood)
            #expect(try steadily { try stage.turn(stream: false).status == 503 })
            #expect(try bring(stage.daemon, base, text("dead")).isGood)
            #expect(try eventually(10) { try stage.turn("dead", stream: false).errorCode == "account_deactivated" })
            #expect(try eventually(5) { try list(stage.daemon) == ["b": "paused", "me@example.com": "deactivated"] })
            #expect(try stage.daemon.run("accounts", "resume", "b").isGood)
            func accounts() throws -> (counts: [String: Any], check: String) {
                let json = try stage.daemon.get("/health/ready").json
                return (json["accounts"] as? [String: Any] ?? [:], (json["checks"] as? [String: Any])?["accounts"] as? String ?? "")
            }
            #expect(
                try eventually(5) {
                    let health = try accounts()
                    return health.counts["reauth_required"] as? Int == 1 && health.counts["active"] as? Int == 1
                        && health.check == "login needed"
                })
            // Each worker has heard of both by then, and none asks it any more.
            #expect(
                try steadily {
                    let before = stage.upstream.calls("dead")
                    return try stage.turn().types.last == "response.completed" && stage.upstream.calls("dead") == before
                }, "the dead login is still asked")

            #expect(try bring(stage.daemon, base, text("alive")).text.contains("renewed"))
            #expect(try eventually(5) { try accounts().counts["reauth_required"] as? Int == 0 })
            #expect(try list(stage.daemon)["me@example.com"] == "active")
            #expect(try stage.daemon.run("accounts", "pause", "b").isGood)
            #expect(try eventually(5) { try stage.turn().status == 200 && stage.upstream.calls("alive") > 0 })
        }

        /// Without HOME the password database tells where a user's files are, never `/`.
        @Test func homeless() throws {
            let daemon = try Daemon()
            daemon.runner = ["/usr/bin/env", "-u", "HOME", "-u", "CODEX_LB_DATA_DIR"]
            let result = try daemon.run("ctl", "status")
            #expect(result.errors.contains("/.codex-lb") && !result.errors.contains(" /.codex-lb"), "\(result.errors)")
        }
    }
}
