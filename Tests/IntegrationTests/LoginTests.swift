import DaemonHarness
import FakeUpstream
import Foundation
import Testing

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
            #expect(
                eventually(5) { (0..<8).allSatisfy { _ in (try? stage.metric("codex_lb_account_available{account=\"me\"}")) == 1 } })
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

        /// Two instances on one database: the token is refreshed by one of them.
        @Test func oneOfTwoInstances() throws {
            let (stage, issuer) = try Self.stage(.postgresql, workers: 1)
            let other = try Daemon([
                "CODEX_LB_DATABASE_URL": stage.daemon.environment["CODEX_LB_DATABASE_URL"] ?? "",
                "CODEX_LB_AUTH_BASE_URL": "http://\(stage.upstream.host)",
            ])
            try FileManager.default.createDirectory(
                atPath: other.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try FileManager.default.copyItem(atPath: stage.daemon.data + "/encryption.key", toPath: other.data + "/encryption.key")
            try other.start(workers: 1)
            try Self.bring(stage, issuer.login("me", isGood: false))
            for daemon in [stage.daemon, other] {
                #expect(eventually(5) { (try? Stage(stage.upstream, daemon).metric("codex_lb_account_available{account=\"me\"}")) == 1 })
            }
            #expect(Self.turns(20, [stage.daemon, other]) == Array(repeating: 200, count: 20))
            #expect(issuer.refreshes == 1 && issuer.reuses == 0)
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
            #expect(stage.daemon.log.contains("login can't be renewed"))
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
            #expect(stage.daemon.log.contains("login was not renewed; it is tried again"))
        }
    }
}
