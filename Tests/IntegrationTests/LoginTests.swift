import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// docs/accounts.md: a ChatGPT login lives as long as its refresh token, and nobody notices when its access token ends.
    @Suite struct Logins {
        private static func stage(_ database: Database = .sqlite, workers: Int = 2) throws -> (Stage, FakeIssuer) {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_AUTH_BASE_URL": "http://\(upstream.host)"], on: database)
            try daemon.start(workers: workers)
            return (Stage(upstream, daemon), FakeIssuer(on: upstream))
        }

        private static func bring(_ stage: Stage, _ login: String) throws {
            let file = stage.daemon.directory + "/auth.json"
            try Data(login.utf8).write(to: URL(fileURLWithPath: file))
            let result = try stage.daemon.run("accounts", "import", file, "--base-url", stage.upstream.chatGPTBaseURL)
            #expect(result.isGood, "\(result.errors)")
        }

        private static func state(_ stage: Stage) throws -> [String: String] {
            let result = try stage.daemon.run("accounts", "list", "--json")
            let rows = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]] ?? []
            return Dictionary(uniqueKeysWithValues: rows.map { ($0["name"] as? String ?? "", $0["state"] as? String ?? "") })
        }

        /// Turns at once, each in a thread of its own: their statuses.
        private static func turns(_ count: Int, _ daemons: [Daemon]) -> [Int] {
            let (lock, group) = (NSLock(), DispatchGroup())
            nonisolated(unsafe) var statuses: [Int] = []  // written under `lock`
            for i in 0..<count {
                group.enter()
                Thread.detachNewThread {
                    // One that fails is missing from the statuses.
                    let status = (try? daemons[i % daemons.count].post("/v1/responses", Stage.body(stream: i % 2 == 0), seconds: 30))?
                        .status
                    lock.lock()
                    statuses.append(status ?? 0)
                    lock.unlock()
                    group.leave()
                }
            }
            _ = group.wait(timeout: .now() + 60)
            lock.lock()
            defer { lock.unlock() }
            return statuses
        }

        /// Forty turns over two workers meet the end of an access token at once: one refresh, and every turn is answered by the same account. The
        /// new tokens are in the store: a start afterwards serves with them.
        @Test(arguments: [Database.sqlite, .postgresql]) func renewedAtA401(_ database: Database) throws {
            let (stage, issuer) = try Self.stage(database)
            try Self.bring(stage, issuer.login("me", isGood: false))
            // Both workers have heard of it.
            #expect(steadily { (try? stage.metric("codex_lb_account_available{account=\"me\"}")) == 1 })
            #expect(Self.turns(40, [stage.daemon]) == Array(repeating: 200, count: 40))
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
            #expect(try Self.state(stage) == ["me": "active"])
            stage.daemon.stop()
            try stage.daemon.start(workers: 1)
            #expect(try stage.turn(stream: false).status == 200)
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
        }

        /// An operator who pauses and resumes an account in the middle of its refresh loses nothing: the old token works no more.
        @Test(arguments: [Database.sqlite, .postgresql]) func changedMeanwhile(_ database: Database) throws {
            let (stage, issuer) = try Self.stage(database, workers: 1)
            let gate = Gate()
            issuer.hold(gate)
            try Self.bring(stage, issuer.login("me", ageSeconds: 100, lifeSeconds: 90, isGood: false))
            #expect(eventually(10) { issuer.refreshes == 1 })
            for order in ["pause", "resume"] { #expect(try stage.daemon.run("accounts", order, "me").isGood) }
            // The worker has heard of both before the tokens come.
            #expect(
                try eventually(5) {
                    try Self.state(stage) == ["me": "active"] && stage.metric("codex_lb_account_available{account=\"me\"}") == 1
                })
            gate.open()
            #expect(try eventually(10) { try stage.turn(stream: false).status == 200 })
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
        }

        /// A hundred turns over two instances of two workers each, on one database, meet the end of a token: it is refreshed by one of them.
        @Test func oneOfTwoInstances() throws {
            let (stage, issuer) = try Self.stage(.postgresql, workers: 2)
            let other = try Daemon([
                "CODEX_LB_DATABASE_URL": stage.daemon.environment["CODEX_LB_DATABASE_URL"] ?? "",
                "CODEX_LB_AUTH_BASE_URL": "http://\(stage.upstream.host)",
            ])
            try FileManager.default.createDirectory(
                atPath: other.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try FileManager.default.copyItem(atPath: stage.daemon.data + "/encryption.key", toPath: other.data + "/encryption.key")
            try other.start(workers: 2)
            try Self.bring(stage, issuer.login("me", isGood: false))
            // All four workers have heard of it.
            for daemon in [stage.daemon, other] {
                let one = Stage(stage.upstream, daemon)
                #expect(steadily { (try? one.metric("codex_lb_account_available{account=\"me\"}")) == 1 })
            }
            #expect(Self.turns(100, [stage.daemon, other]) == Array(repeating: 200, count: 100))
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
        }

        /// The worker that refreshes dies in the middle of it. Where the issuer had made new tokens they are lost with it: the old one is tried once
        /// more, and then the account needs a new login, which is said. Where it had not, nobody notices.
        @Test(arguments: [true, false]) func killedInTheMiddle(_ wasUsed: Bool) throws {
            let (stage, issuer) = try Self.stage(workers: 2)
            let gate = Gate()
            if wasUsed { issuer.hold(gate) } else { issuer.always(.silence(gate)) }
            func asked() -> Int { stage.upstream.requests.count { $0.path == "/oauth/token" } }
            try Self.bring(stage, issuer.login("me", ageSeconds: 100, lifeSeconds: 90))
            #expect(eventually(10) { asked() == 1 })
            let connection = try #require(stage.upstream.requests.first { $0.path == "/oauth/token" }).connection
            stage.daemon.killRole("worker", 0)
            #expect(stage.upstream.waitClosed(connection: connection), "another worker has asked")
            gate.open()
            issuer.always(nil)
            // Its claim ends 30 s after it was taken.
            #expect(eventually(60, every: 0.2) { asked() >= 2 })
            if wasUsed {
                #expect(try eventually(10) { try Self.state(stage) == ["me": "reauth_required"] })
                #expect(issuer.refreshes == 1 && issuer.reuses == 1)
                #expect(stage.daemon.waitLog("account needs a new login") && stage.daemon.waitLog("codex-lb accounts login"))
                let list = try stage.daemon.run("accounts", "list").output
                #expect(list.contains("reauth_required (issuer: refresh_token_reused)"), "\(list)")
                // A new login to the same account mends it.
                try Self.bring(stage, issuer.login("me"))
            } else {
                #expect(eventually(10) { issuer.refreshes == 1 } && issuer.reuses == 0)
            }
            #expect(try eventually(10) { try stage.turn(stream: false).status == 200 })
            #expect(try Self.state(stage) == ["me": "active"])
        }

        /// A token that ends in the middle of a stream ends no stream; the next turn meets a 401, and is served with the next token.
        @Test func endsWithinAStream() throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            let (gate, login) = (Gate(), issuer.login("me"))
            let tokens = try JSONSerialization.jsonObject(with: Data(login.utf8)) as? [String: [String: String]]
            let access = try #require(tokens?["tokens"]?["access_token"])
            stage.upstream.always(
                path: "/backend-api/codex/responses", bearer: access,
                .stall([Canned.created(), Canned.delta("Hel")], gate, [Canned.delta("lo"), Canned.completed()]))
            try Self.bring(stage, login)
            let connection = try stage.daemon.connect()
            defer { connection.close() }
            #expect(eventually(5) { (try? stage.metric("codex_lb_account_available{account=\"me\"}")) == 1 })
            try connection.send("POST", "/v1/responses", body: Array(Stage.body().utf8))
            #expect(try connection.head().status == 200)
            issuer.expire()
            stage.upstream.always(path: "/backend-api/codex/responses", bearer: access, .error(401, code: "token_expired"))
            #expect(try stage.turn(stream: false).status == 200)
            gate.open()
            var types: [String] = []
            while let event = try connection.event() { types.append(event.type) }
            #expect(types.last == "response.completed" && !types.contains("response.failed"), "\(types)")
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
        }

        /// `accounts login --browser`: the browser comes back, or the address that it was sent to is pasted; one of another login is refused.
        @Test(arguments: [false, true]) func browser(_ isPasted: Bool) throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            issuer.enableBrowser(name: "me@example.com")
            let (out, errors, typed) = (stage.daemon.directory + "/out", stage.daemon.directory + "/err", stage.daemon.directory + "/typed")
            mkfifo(typed, 0o600)
            let keyboard = open(typed, O_RDWR)
            defer { close(keyboard) }
            let port = try Ports.free()
            let command = try Child(
                Daemon.binary,
                ["accounts", "login", "--browser", "--port", String(port), "--base-url", stage.upstream.chatGPTBaseURL],
                environment: stage.daemon.environment, input: typed, output: out, errors: errors)
            func said() -> String { String(decoding: FileManager.default.contents(atPath: errors) ?? Data(), as: UTF8.self) }
            #expect(eventually(10) { said().contains("Waiting for the browser") }, "\(said())")
            let url = try #require(said().split(separator: "\n").first { $0.contains("/oauth/authorize?") })
            let members = Dictionary(
                uniqueKeysWithValues: url.split(separator: "?")[1].split(separator: "&").map {
                    let pair = $0.split(separator: "=", omittingEmptySubsequences: false)
                    return (String(pair[0]), String(pair[1]))
                })
            #expect(url.contains("http://\(stage.upstream.host)/oauth/authorize?response_type=code&client_id=app_"))
            #expect(
                members["redirect_uri"] == "http%3A%2F%2Flocalhost%3A\(port)%2Fauth%2Fcallback"
                    && members["code_challenge_method"] == "S256")
            #expect(members["scope"] == "openid%20profile%20email%20offline_access" && members["code_challenge"]?.count == 43)
            let state = try #require(members["state"])
            let (wrong, right) = ("/auth/callback?code=b%2F1&state=\(state)x", "/auth/callback?code=b%2F1&state=\(state)")
            if isPasted {
                for line in ["hello", "http://localhost:\(port)\(wrong)", "http://localhost:\(port)\(right)"] {
                    let bytes = Array((line + "\n").utf8)
                    #expect(write(keyboard, bytes, bytes.count) == bytes.count)
                }
            } else {
                func browse(_ target: String) throws -> Int {
                    let connection = try HTTPConnection("127.0.0.1:\(port)")
                    defer { connection.close() }
                    try connection.send("GET", target, body: nil)
                    return try connection.answer(5).status
                }
                let statuses = try ["/favicon.ico", wrong, right].map(browse)
                #expect(statuses == [404, 400, 200])
            }
            #expect(command.wait(10) == .code(0), "\(said())")
            #expect(
                String(decoding: FileManager.default.contents(atPath: out) ?? Data(), as: UTF8.self) == "account me@example.com logged in\n"
            )
            if isPasted { #expect(said().contains("not the address") && said().contains("another login"), "\(said())") }
            #expect(issuer.verifier?.count == 43 && issuer.verifier != members["code_challenge"])
            #expect(try eventually(5) { try stage.turn(stream: false).status == 200 })
        }

        /// Several files at once: each on its own. The same person in two workspaces is two accounts.
        @Test func importsMany() throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            let folder = stage.daemon.directory + "/logins"
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            func put(_ name: String, _ text: String) throws { try Data(text.utf8).write(to: URL(fileURLWithPath: folder + "/" + name)) }
            try put("a.json", issuer.login("a@example.com"))
            try put("b.json", issuer.login("b@example.com"))
            try put("broken.json", "{\"tokens\":{}}")
            try put("notes.txt", "no login")
            let base = ["--base-url", stage.upstream.chatGPTBaseURL]
            let result = try stage.daemon.run(["accounts", "import", folder] + base)
            #expect(!result.isGood && result.errors.contains("broken.json") && result.errors.contains("1 of 3 files"), "\(result.errors)")
            #expect(result.output == "account a@example.com imported\naccount b@example.com imported\n")
            let again = try stage.daemon.run(["accounts", "import", folder + "/a.json", folder + "/b.json"] + base)
            #expect(again.isGood && again.output == "account a@example.com renewed\naccount b@example.com renewed\n", "\(again.errors)")
            let other = issuer.login("a@example.com", workspace: "w-2")
            let refused = try stage.daemon.run(["accounts", "import", "-"] + base, input: other)
            #expect(!refused.isGood && refused.errors.contains("--name"), "\(refused.errors)")
            #expect(try stage.daemon.run(["accounts", "import", "-", "--name", "second"] + base, input: other).isGood)
            #expect(try Self.state(stage) == ["a@example.com": "active", "b@example.com": "active", "second": "active"])
            #expect(try stage.daemon.run("accounts", "import", folder, "--name", "x").exit == .code(2))
        }

        /// An account's credentials go into a file for its owner alone, which brings them in elsewhere; what is there is not written over.
        @Test(arguments: [Database.sqlite, .postgresql]) func exports(_ database: Database) throws {
            let (stage, issuer) = try Self.stage(database, workers: 1)
            let login = issuer.login("me@example.com")
            try Self.bring(stage, login)
            try stage.daemon.addAccount("key", baseURL: stage.upstream.baseURL, key: "sk-exported")
            let file = stage.daemon.directory + "/out.json"
            let result = try stage.daemon.run("accounts", "export", "me@example.com", "--to", file)
            #expect(result.isGood && result.errors.contains("belong to two"), "\(result.errors)")
            #expect(try FileManager.default.attributesOfItem(atPath: file)[.posixPermissions] as? Int == 0o600)
            func tokens(_ data: Data) throws -> [String: String]? {
                (try JSONSerialization.jsonObject(with: data) as? [String: Any])?["tokens"] as? [String: String]
            }
            let written = try #require(FileManager.default.contents(atPath: file))
            #expect(try tokens(written) == tokens(Data(login.utf8)))
            let there = try stage.daemon.run("accounts", "export", "key", "--to", file)
            #expect(!there.isGood && there.errors.contains("already") && FileManager.default.contents(atPath: file) == written)
            let other = try Daemon()
            #expect(
                try other.run("accounts", "import", file, "--base-url", stage.upstream.chatGPTBaseURL).output
                    == "account me@example.com imported\n")
            #expect(try stage.daemon.run("accounts", "export", "key", "--to", file + ".key").isGood)
            let key = try JSONSerialization.jsonObject(with: Data(contentsOf: URL(fileURLWithPath: file + ".key"))) as? [String: Any]
            #expect(key?["OPENAI_API_KEY"] as? String == "sk-exported" && key?["auth_mode"] as? String == "apikey")
            let missing = try stage.daemon.run("accounts", "export", "nobody", "--to", file + ".2")
            #expect(!missing.isGood && missing.errors.contains("there is no account \"nobody\""))
        }

        /// `accounts test` says what works, and ends with 1 where something does not.
        @Test func tests() throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            try Self.bring(stage, issuer.login("me"))
            stage.upstream.always(
                path: "/backend-api/wham/usage",
                .status(
                    200, "{\"plan_type\":\"plus\",\"rate_limit\":{\"primary_window\":{\"used_percent\":42,\"reset_after_seconds\":600}}}"))
            let good = try stage.daemon.run("accounts", "test", "me")
            #expect(
                good.isGood && good.output.contains("login     good") && good.output.contains("plan plus; 5 hours 42.0% used"),
                "\(good.output)")
            stage.upstream.always(path: "/backend-api/wham/usage", .error(401, code: "token_expired"))
            let refused = try stage.daemon.run("accounts", "test", "me")
            #expect(!refused.isGood && refused.output.contains("refused (token_expired") && refused.output.contains("accounts login"))
            try stage.daemon.addAccount("key", baseURL: stage.upstream.baseURL, key: "sk-1")
            let key = try stage.daemon.run("accounts", "test", "key")
            #expect(key.isGood && key.output.contains("models    1: gpt-5.4"), "\(key.output)")
            try stage.daemon.addAccount("down", baseURL: "http://127.0.0.1:1/v1", key: "sk-1")
            let down = try stage.daemon.run("accounts", "test", "down")
            #expect(!down.isGood && down.output.contains("does not answer"), "\(down.output)")
            #expect(try !stage.daemon.run("accounts", "test", "nobody").isGood)
        }

        /// A token past half of its life is renewed before anybody meets its end, once.
        @Test func aheadOfItsEnd() throws {
            let (stage, issuer) = try Self.stage()
            try Self.bring(stage, issuer.login("me", ageSeconds: 100, lifeSeconds: 90))
            #expect(eventually(10) { issuer.refreshes == 1 })
            #expect(try eventually(5) { try stage.turn(stream: false).status == 200 })
            // A fresh one is left alone.
            try Self.bring(stage, issuer.login("you", ageSeconds: 100, lifeSeconds: 3_600))
            for _ in 0..<3 { #expect(try eventually(5) { try stage.turn(stream: false).status == 200 }) }
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
        }

        /// The issuer says that the login is over: so does the account, and the client gets the upstream's word.
        @Test(arguments: [Database.sqlite, .postgresql]) func refused(_ database: Database) throws {
            let (stage, issuer) = try Self.stage(database)
            issuer.always(.status(400, "{\"error\":\"invalid_grant\",\"error_description\":\"over\"}"))
            try Self.bring(stage, issuer.login("me", isGood: false))
            #expect(try eventually(5) { try stage.turn(stream: false).status == 401 })
            #expect(try eventually(5) { try Self.state(stage) == ["me": "reauth_required"] })
            #expect(stage.daemon.waitLog("login can't be renewed"))
        }

        /// `accounts login`: the code is told, the browser takes its time, and the account serves.
        @Test func deviceCode() throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            issuer.enableDevices(stage.upstream, name: "me@example.com", pending: 2)
            let result = try stage.daemon.run("accounts", "login", "--base-url", stage.upstream.chatGPTBaseURL, seconds: 30)
            #expect(result.isGood && result.output == "account me@example.com logged in\n", "\(result.output)\(result.errors)")
            #expect(result.errors.contains("/codex/device in a browser and enter the code ABCD-EFGH"))
            #expect(try eventually(5) { try stage.turn(stream: false).status == 200 })
            #expect(stage.upstream.requests.last { $0.method == "POST" }?.header("chatgpt-account-id") == "w-me@example.com")
            let missing = try stage.daemon.run("accounts", "login", "--issuer", "http://127.0.0.1:1", seconds: 30)
            #expect(!missing.isGood && missing.errors.contains("http://127.0.0.1:1"), "\(missing.errors)")
        }

        /// An issuer that is away costs the turn its account, not the account its login; another account serves meanwhile.
        @Test func issuerIsAway() throws {
            let (stage, issuer) = try Self.stage(workers: 1)
            try Self.bring(stage, issuer.login("me", isGood: false))
            try stage.daemon.addAccount("b", baseURL: stage.upstream.baseURL, key: Stage.key("b"))
            #expect(eventually(5) { (try? stage.metric("codex_lb_account_available{account=\"b\"}")) == 1 })
            issuer.always(.close)
            for _ in 0..<4 { #expect(try stage.turn(stream: false).status == 200) }
            #expect(stage.calls("b") == 4 && issuer.refreshes == 0)
            #expect(try Self.state(stage) == ["me": "active", "b": "active"])
            #expect(stage.daemon.waitLog("login was not renewed; it is tried again"))
        }
    }
}
