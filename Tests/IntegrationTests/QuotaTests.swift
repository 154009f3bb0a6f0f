import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// docs/accounts.md: what upstreams say of a login's quotas decides who gets turns, and outlives the processes.
    @Suite struct Quotas {
        /// ChatGPT logins `a` and `b` with the tokens `t-a` and `t-b`, whose upstream is asked for their usage twice a second.
        private static func stage(
            _ names: String..., on database: Database = .sqlite, poll: String = "0.5", workers: Int = 2, environment: [String: String] = [:]
        ) throws -> Stage {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_USAGE_POLL_SECONDS": poll].merging(environment) { $1 }, on: database)
            for name in names {
                usage(upstream, name, figures())
                try daemon.importAccount(name, baseURL: upstream.chatGPTBaseURL, token: "t-\(name)", accountID: "w-\(name)")
            }
            try daemon.start(workers: workers)
            return Stage(upstream, daemon)
        }

        private static func usage(_ upstream: FakeUpstream, _ name: String, _ answer: Behaviour) {
            upstream.always(path: "/backend-api/wham/usage", bearer: "t-\(name)", answer)
        }

        private static func figures(
            primary: Double = 10, secondary: Double = 20, resets: Int = 3_600, more: String = ""
        ) -> Behaviour {
            .status(
                200,
                """
                {"plan_type":"pro","rate_limit":{"primary_window":{"used_percent":\(primary),"limit_window_seconds":18000,"reset_after_seconds":\(resets)},
                "secondary_window":{"used_percent":\(secondary),"limit_window_seconds":604800,"reset_after_seconds":500000}}\(more)}
                """)
        }

        private static func account(_ stage: Stage, _ name: String) throws -> [String: Any] {
            let result = try stage.daemon.run("accounts", "list", "--json")
            let rows = try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]] ?? []
            return rows.first { $0["name"] as? String == name } ?? [:]
        }

        private static func used(_ account: [String: Any], _ window: String) -> Double? {
            ((account["windows"] as? [String: Any])?[window] as? [String: Any])?["used_percent"] as? Double
        }

        private static func cooldown(_ account: [String: Any]) -> String? { (account["cooldown"] as? [String: Any])?["kind"] as? String }

        private static func turn(_ stage: Stage, model: String = "gpt-5.4") throws -> Answer {
            try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: model))
        }

        private static func turns(_ stage: Stage, _ count: Int) throws -> [String: Int] {
            stage.upstream.forgetRequests()
            for _ in 0..<count { #expect(try turn(stage).status == 200) }
            return Dictionary(
                grouping: stage.upstream.requests.filter { $0.method == "POST" }.map { String($0.bearer.dropFirst(2)) }, by: { $0 }
            )
            .mapValues(\.count)
        }

        /// The figures come by themselves, and the list shows them, with the server and without it.
        @Test(arguments: [Database.sqlite, .postgresql]) func polled(_ database: Database) throws {
            let stage = try Self.stage("a", on: database)
            let credits = ",\"credits\":{\"has_credits\":true,\"unlimited\":false,\"balance\":\"12.50\"}"
            Self.usage(stage.upstream, "a", Self.figures(primary: 42.5, secondary: 7, more: credits))
            #expect(try eventually(10) { try Self.used(Self.account(stage, "a"), "primary") == 42.5 })
            let asked = try #require(stage.upstream.requests.first { $0.path == "/backend-api/wham/usage" })
            #expect(asked.method == "GET" && asked.header("chatgpt-account-id") == "w-a")
            func check() throws {
                let account = try Self.account(stage, "a")
                #expect(
                    account["plan"] as? String == "pro" && Self.used(account, "secondary") == 7 && Self.used(account, "primary") == 42.5)
                #expect((account["credits"] as? [String: Any])?["balance"] as? Double == 12.5)
            }
            #expect(try eventually(5) { try Self.account(stage, "a")["credits"] is [String: Any] })
            try check()
            let table = try stage.daemon.run("accounts", "list").output
            #expect(table.contains("pro") && table.contains(" 42.5% ") && table.contains(" 7% 5d18h "), "\(table)")
            #expect(try stage.metric("codex_lb_account_quota_used_ratio{account=\"a\",window=\"primary\"}") == 0.425)
            stage.daemon.stop()
            try check()
        }

        /// A window that is used up keeps a login out before any turn meets the limit; room in the next figures, or credits, let it in again.
        @Test func exhausted() throws {
            let stage = try Self.stage("a", "b")
            Self.usage(stage.upstream, "a", Self.figures(secondary: 100))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, "a")) == "quota" })
            #expect(try Self.turns(stage, 6) == ["b": 6])
            Self.usage(stage.upstream, "a", Self.figures(secondary: 99))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, "a")) == nil })
            Self.usage(stage.upstream, "a", Self.figures(primary: 100, more: ",\"credits\":{\"has_credits\":true,\"unlimited\":true}"))
            #expect(try eventually(10) { try Self.used(Self.account(stage, "a"), "primary") == 100 })
            #expect(try Self.cooldown(Self.account(stage, "a")) == nil)
            Self.usage(stage.upstream, "b", Self.figures(primary: 100))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, "b")) == "quota" })
            #expect(try Self.turns(stage, 4) == ["a": 4])
        }

        /// A limit that a turn met ends early when figures that were asked for later show room: credits were bought, or the window was reset.
        @Test func endsEarly() throws {
            let stage = try Self.stage("a", "b", poll: "2")
            stage.upstream.script(
                "t-a", .error(429, code: "usage_limit_reached", type: "usage_limit_reached", more: "\"resets_in_seconds\":90000"))
            stage.upstream.script(
                "t-b", .error(429, code: "usage_limit_reached", type: "usage_limit_reached", more: "\"resets_in_seconds\":90000"))
            let refused = try Self.turn(stage)
            #expect(refused.status == 429)
            #expect(try eventually(10) { try Self.turn(stage).status == 200 })
            #expect(stage.daemon.waitLog("account has quota again"))
        }

        /// All windows are used up: the pool says so itself, with the time of the first account to be free, in the words that Codex reads.
        @Test func poolExhausted() throws {
            let stage = try Self.stage("a", "b")
            Self.usage(stage.upstream, "a", Self.figures(primary: 100, resets: 7_200))
            Self.usage(stage.upstream, "b", Self.figures(primary: 100, resets: 3_000))
            #expect(
                try eventually(10) { try ["a", "b"].allSatisfy { try Self.cooldown(Self.account(stage, $0)) == "quota" } })
            stage.upstream.forgetRequests()
            let answer = try Self.turn(stage)
            let error = try #require(answer.json["error"] as? [String: Any])
            #expect(
                answer.status == 429 && error["code"] as? String == "usage_limit_reached"
                    && error["type"] as? String == "usage_limit_reached")
            let seconds = try #require(error["resets_in_seconds"] as? Int)
            #expect((2_900...3_001).contains(seconds) && answer.header("retry-after") == String(seconds))
            let at = try #require(error["resets_at"] as? Double)
            #expect(abs(at - Date().timeIntervalSince1970 - Double(seconds)) < 5)
            #expect(stage.upstream.requests.allSatisfy { $0.method == "GET" }, "nobody was asked in vain")
        }

        /// What a stream tells of quotas in an event counts at once, and reaches a Codex client as it came.
        @Test func events() throws {
            let stage = try Self.stage("a", poll: "0", workers: 1)
            let told =
                "{\"type\":\"codex.rate_limits\",\"plan_type\":\"team\",\"rate_limits\":{\"primary\":{\"used_percent\":61,\"window_minutes\":300,\"resets_at\":\(Int(Date().timeIntervalSince1970) + 900)}}}"
            stage.upstream.always("t-a", .events([told] + Canned.stream))
            let codex = try stage.turn(path: "/backend-api/codex/responses")
            #expect(codex.types.first == "codex.rate_limits" && codex.types.last == "response.completed")
            #expect(try eventually(5) { try Self.used(Self.account(stage, "a"), "primary") == 61 })
            #expect(try Self.account(stage, "a")["plan"] as? String == "team")
            #expect(try !stage.turn().types.contains("codex.rate_limits"), "SDKs do not know it")
            #expect(stage.upstream.requests.allSatisfy { $0.method == "POST" }, "nothing is asked when polling is off")
        }

        /// A model with a quota of its own is routed by that: the account's windows don't hold it up, and its own do.
        @Test func quotaOfAModel() throws {
            let stage = try Self.stage("a")
            func spark(_ percent: Int) -> String {
                ",\"additional_rate_limits\":[{\"limit_name\":\"codex_other\",\"metered_feature\":\"codex_bengalfox\",\"rate_limit\":{\"primary_window\":{\"used_percent\":\(percent),\"reset_after_seconds\":900}}}]"
            }
            Self.usage(stage.upstream, "a", Self.figures(primary: 100, more: spark(10)))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, "a")) == "quota" })
            #expect(try Self.turn(stage).status == 429)
            #expect(try Self.turn(stage, model: "gpt-5.3-codex-spark").status == 200)
            // Its name comes from the store.
            #expect(try eventually(10) { try stage.daemon.run("accounts", "list").output.contains("gpt-5.3-codex-spark 10% 1") })
            Self.usage(stage.upstream, "a", Self.figures(primary: 1, more: spark(100)))
            #expect(try eventually(10) { try Self.turn(stage).status == 200 })
            let answer = try Self.turn(stage, model: "gpt-5.3-codex-spark")
            #expect(answer.status == 429 && answer.errorCode == "usage_limit_reached", "\(answer.text)")
        }

        /// An operator ends a model's limit that its upstream tells of no more.
        @Test func resumedForAModel() throws {
            let stage = try Self.stage("a")
            let more =
                ",\"additional_rate_limits\":[{\"limit_name\":\"gpt-5.4\",\"rate_limit\":{\"primary_window\":{\"used_percent\":100,\"reset_after_seconds\":31536000}}}]"
            Self.usage(stage.upstream, "a", Self.figures(more: more))
            #expect(try eventually(10) { try Self.turn(stage).status == 429 })
            stage.upstream.forgetRequests()
            Self.usage(stage.upstream, "a", .error(404, code: "not_found"))
            #expect(eventually(10) { stage.upstream.requests.contains { $0.path == "/backend-api/wham/usage" } })
            #expect(try Self.turn(stage).status == 429)
            #expect(try stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try eventually(5) { try Self.turn(stage).status == 200 })
        }

        /// What the writer was told and had not stored when it ended is told to the next one.
        @Test func writerEndsMeanwhile() throws {
            let stage = try Self.stage("a", poll: "0")
            let writer = try #require(stage.daemon.pid("writer"))
            kill(writer, SIGSTOP)
            stage.upstream.script("t-a", .error(429, code: "usage_limit_reached", more: "\"resets_in_seconds\":3600"))
            #expect(try Self.turn(stage).status == 429)
            // The supervisor sees that it stands still; until then all that is to be told has been.
            #expect(eventually(20) { stage.daemon.pid("writer").map { $0 != writer } ?? false })
            #expect(stage.daemon.waitStored(of: "a"))
        }

        /// A conversation stays with its login though the other one has more room (the Python system's contract S7).
        @Test func conversationsBeatUsage() throws {
            let stage = try Self.stage("a", "b")
            func asked(_ headers: [(String, String)]) throws -> String {
                stage.upstream.forgetRequests()
                #expect(
                    try stage.daemon.post("/backend-api/codex/responses", Stage.body(), headers: headers).status == 200)
                return String(stage.upstream.requests.first { $0.method == "POST" }?.bearer.dropFirst(2) ?? "")
            }
            let headers = [("session-id", "s-1"), ("thread-id", "t-1")]
            let owner = try asked(headers)
            let other = owner == "a" ? "b" : "a"
            Self.usage(stage.upstream, owner, Self.figures(primary: 97, secondary: 97))
            Self.usage(stage.upstream, other, Self.figures(primary: 5, secondary: 5))
            #expect(try eventually(10) { try Self.used(Self.account(stage, owner), "primary") == 97 })
            for _ in 0..<3 { #expect(try asked(headers) == owner) }
            for _ in 0..<3 { #expect(try asked([]) == other) }
            // Its quota is gone: the conversation moves, and stays there.
            Self.usage(stage.upstream, owner, Self.figures(primary: 100))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, owner)) == "quota" })
            #expect(try asked(headers) == other)
            Self.usage(stage.upstream, owner, Self.figures(primary: 1, secondary: 1))
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, owner)) == nil })
            #expect(try asked(headers) == other)
        }

        /// The demo's upstream: the small login serves three turns, the large one goes on, and the client sees nothing of it.
        @Test func demo() throws {
            let daemon = try Daemon()
            let out = daemon.directory + "/demo.out"
            let upstream = try Child(
                Daemon.binary, ["demo-upstream", "--interval-ms", "0"], environment: daemon.environment, output: out, errors: out)
            defer {
                upstream.signal(SIGTERM)
                _ = upstream.wait(5)
            }
            func said() -> String { String(decoding: FileManager.default.contents(atPath: out) ?? Data(), as: UTF8.self) }
            #expect(eventually(10) { said().contains("/v1\n") })
            let base = said().components(separatedBy: "http://").last?.components(separatedBy: "/v1").first ?? ""
            for name in ["small", "large"] {
                try daemon.importAccount(name, baseURL: "http://\(base)/backend-api", token: "demo-\(name)-0", accountID: "demo-\(name)")
            }
            try daemon.start(workers: 2)
            for _ in 0..<60 { #expect(try daemon.post("/v1/responses", Stage.body(stream: false)).status == 200) }
            let list = try daemon.run("accounts", "list").output
            #expect(list.contains("no quota 1h0m") || list.contains("no quota 59m"), "\(list)")
            #expect(try eventually(10) { try daemon.records().count == 60 })
            #expect(try daemon.records().count { $0["account"] as? String == "small" } == 3)
        }

        /// A stop, and a kill of everything, forget neither limits nor figures nor what was the matter.
        @Test(arguments: [Database.sqlite, .postgresql]) func restart(_ database: Database) throws {
            let stage = try Self.stage("a", "b", on: database, poll: "0")
            let limit = Behaviour.error(429, code: "usage_limit_reached", more: "\"resets_in_seconds\":3600")
            stage.upstream.script("t-a", limit)
            while stage.upstream.calls("t-a") == 0 { #expect(try Self.turn(stage).status == 200) }
            stage.daemon.stop()
            func check() throws {
                let account = try Self.account(stage, "a")
                #expect(Self.cooldown(account) == "quota", "\(account)")
                #expect((account["last_error"] as? [String: Any])?["what"] as? String == "429 usage_limit_reached", "\(account)")
                let seconds = (account["cooldown"] as? [String: Any])?["seconds"] as? Int ?? 0
                #expect((3_500...3_600).contains(seconds))
            }
            try check()
            try stage.daemon.start(workers: 2)
            #expect(try Self.turns(stage, 4) == ["b": 4])
            try check()
            // Everything dies at once: what was learned by then is stored.
            stage.upstream.script("t-b", .error(429, code: "rate_limit_exceeded", more: "\"resets_in_seconds\":1800"))
            #expect(try Self.turn(stage).status == 429)
            #expect(try eventually(10) { try Self.cooldown(Self.account(stage, "b")) == "limit" })
            #expect(stage.daemon.waitStored(of: "b"))
            let pids = stage.daemon.childPIDs() + [stage.daemon.supervisorPID]
            for pid in pids { kill(pid, SIGKILL) }
            #expect(eventually(10) { pids.allSatisfy { !Daemon.isAlive($0) } })
            try stage.daemon.start(workers: 2)
            let answer = try Self.turn(stage)
            #expect(
                answer.status == 429 && answer.errorCode == "usage_limit_reached"
                    && stage.upstream.requests.filter { $0.method == "POST" }.count == 5)
            // The operator knows better.
            #expect(try stage.daemon.run("accounts", "pause", "a").isGood && stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try eventually(5) { try Self.turn(stage).status == 200 })
            stage.daemon.stop()
            #expect(try Self.cooldown(Self.account(stage, "a")) == nil && Self.cooldown(Self.account(stage, "b")) == "limit")
        }

        /// An upstream that says that the account is closed takes it out, with the reason; the operator may bring it back.
        @Test(arguments: [Database.sqlite, .postgresql]) func closed(_ database: Database) throws {
            let stage = try Self.stage("a", "b", on: database)
            Self.usage(stage.upstream, "a", .status(402, "{\"detail\":{\"code\":\"deactivated_workspace\"}}"))
            #expect(try eventually(10) { try Self.account(stage, "a")["state"] as? String == "deactivated" })
            #expect(try Self.account(stage, "a")["state_reason"] as? String == "status 402 deactivated_workspace")
            #expect(try stage.daemon.run("accounts", "list").output.contains("deactivated (status 402 deactivated_workspace)"))
            #expect(try eventually(5) { try Self.turns(stage, 3) == ["b": 3] })
            Self.usage(stage.upstream, "a", Self.figures())
            #expect(try stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try Self.account(stage, "a")["state"] as? String == "active")
            #expect(try Self.account(stage, "a")["state_reason"] is NSNull)
            // A turn's refusal says it too.
            stage.upstream.always("t-b", .error(403, code: "account_suspended"))
            #expect(
                try eventually(10) {
                    _ = try Self.turn(stage)
                    return try Self.account(stage, "b")["state"] as? String == "deactivated"
                })
        }

        /// An upstream without such figures, or one that fails, is asked less and less, and costs nobody a turn.
        @Test func failing() throws {
            let stage = try Self.stage("a", poll: "0.2", workers: 1)
            Self.usage(stage.upstream, "a", .status(404, "<html>"))
            func asked() -> Int { stage.upstream.requests.count { $0.path == "/backend-api/wham/usage" } }
            #expect(stage.daemon.waitLog("account's usage was not told"))
            let (before, began) = (asked(), Date())
            #expect(eventually(20) { asked() >= before + 3 })
            // After 0.2, 0.4 and 0.8 s at the least.
            #expect(Date().timeIntervalSince(began) > 1)
            #expect(try Self.turn(stage).status == 200)
            Self.usage(stage.upstream, "a", Self.figures())
            #expect(stage.daemon.waitLog("account's usage is told again", seconds: 20))
            #expect(stage.daemon.log.components(separatedBy: "account's usage was not told").count == 2, "one line, not one a time")
        }

        /// Two instances on one database: each login is asked about by one of them, and both know what came of it.
        @Test func twoInstances() throws {
            let stage = try Self.stage("a", "b", on: .postgresql, poll: "2", workers: 1)
            let other = try Daemon([
                "CODEX_LB_DATABASE_URL": stage.daemon.environment["CODEX_LB_DATABASE_URL"] ?? "", "CODEX_LB_USAGE_POLL_SECONDS": "2",
            ])
            try FileManager.default.createDirectory(
                atPath: other.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try FileManager.default.copyItem(atPath: stage.daemon.data + "/encryption.key", toPath: other.data + "/encryption.key")
            try other.start(workers: 1)
            Self.usage(stage.upstream, "a", Self.figures(primary: 100))
            let second = Stage(stage.upstream, other)
            #expect(
                try eventually(20) {
                    try Self.cooldown(Self.account(second, "a")) == "quota" && Self.cooldown(Self.account(stage, "a")) == "quota"
                })
            for one in [stage, second] { #expect(try Self.turns(one, 3) == ["b": 3]) }
            // From here on for two intervals: two questions for each account, and some more where an interval's border lies.
            stage.upstream.forgetRequests()
            let began = Date()
            func asked(_ name: String) -> Int { stage.upstream.requests.count { $0.method == "GET" && $0.bearer == "t-\(name)" } }
            #expect(eventually(20) { asked("a") >= 2 && asked("b") >= 2 })
            // What comes between the count and the look at the clock is no fault.
            let counts = ["a", "b"].map(asked)
            let seconds = Date().timeIntervalSince(began)
            for count in counts { #expect(Double(count) <= seconds / 1.8 + 2, "\(count) in \(seconds) s") }
        }
    }
}

extension Daemon {
    /// Waits until the store has the health of an account: what a restart would know.
    fileprivate func waitStored(of name: String) -> Bool {
        eventually(10) {
            // Without the server's socket the list comes from the store alone.
            guard let result = try? run(["accounts", "list", "--json"], environment: ["CODEX_LB_RUNTIME_DIR": "/nonexistent"]),
                result.isGood,
                let rows = try? JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]]
            else { return false }
            return rows.contains { $0["name"] as? String == name && $0["cooldown"] is [String: Any] }
        }
    }
}
