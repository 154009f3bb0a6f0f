import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// docs/routing.md: a conversation stays with its account, over all workers, until that can't serve it.
    @Suite struct Conversations {
        private static func response(_ id: String) -> Behaviour {
            let text = Canned.response().replacingOccurrences(of: "resp_fake", with: id)
            return .status(200, text, headers: ["x-codex-turn-state": "state-\(id)"])
        }

        private func turn(_ stage: Stage, _ more: String = "", headers: [(String, String)] = []) throws -> Answer {
            try stage.daemon.post("/v1/responses", Stage.body(stream: false, more: more), headers: headers)
        }

        /// The account that has had `calls` more than before.
        private func chosen(_ stage: Stage, _ accounts: [String], _ act: () throws -> Void) throws -> [String] {
            let before = accounts.map { stage.calls($0) }
            try act()
            return zip(accounts, before).filter { stage.calls($0) > $1 }.map(\.0)
        }

        /// Sessions by header, prompts by cache key: twelve conversations of four turns over two workers and three accounts, each with one account,
        /// and all accounts used.
        @Test(arguments: ["session", "cache"]) func stays(_ kind: String) throws {
            let names = ["a", "b", "c"]
            let stage = try Stage("a", "b", "c", workers: 2)
            var used: Set<String> = []
            for conversation in 0..<12 {
                var accounts: Set<String> = []
                for _ in 0..<4 {
                    accounts.formUnion(
                        try chosen(stage, names) {
                            let answer =
                                kind == "session"
                                ? try turn(stage, headers: [("session-id", "s\(conversation)")])
                                : try turn(stage, ",\"prompt_cache_key\":\"c\(conversation)\"")
                            #expect(answer.status == 200)
                        })
                }
                #expect(accounts.count == 1, "conversation \(conversation): \(accounts)")
                used.formUnion(accounts)
            }
            #expect(used == Set(names))
        }

        /// With it off, turns of one session go round.
        @Test func off() throws {
            let stage = try Stage("a", "b", environment: ["CODEX_LB_STICKINESS": "false"])
            for _ in 0..<4 { #expect(try turn(stage, headers: [("session-id", "s")]).status == 200) }
            #expect(stage.calls("a") == 2 && stage.calls("b") == 2)
        }

        /// Whoever goes on from a response gets to the account that made it, also from another worker, and nowhere else when that is gone.
        @Test func previousResponse() throws {
            let stage = try Stage("a", "b", workers: 2)
            stage.always("a", Self.response("resp_of_a"))
            stage.always("b", Self.response("resp_of_b"))
            for _ in 0..<2 { #expect(try turn(stage).status == 200) }
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            for _ in 0..<6 {
                #expect(try chosen(stage, ["a", "b"]) { _ = try turn(stage, ",\"previous_response_id\":\"resp_of_b\"") } == ["b"])
            }
            // A failure of its account is the answer: nobody else has the response.
            stage.script("b", .error(503, code: "overloaded"))
            let failed = try turn(stage, ",\"previous_response_id\":\"resp_of_b\"")
            #expect(failed.status == 503 && stage.calls("a") == 1)
            try stage.daemon.run("accounts", "pause", "b")
            #expect(eventually(2) { (try? stage.isAvailable("b")) == false })
            let orphan = try turn(stage, ",\"previous_response_id\":\"resp_of_b\"")
            #expect(orphan.status == 502 && orphan.errorCode == "previous_response_owner_unavailable")
            #expect(stage.calls("a") == 1)
            #expect(try turn(stage, ",\"previous_response_id\":\"resp_of_a\"").status == 200)
        }

        /// Its account can't serve: a turn that says the whole conversation goes on elsewhere, without the response that nobody else has; one that
        /// says what is new alone is told how long to wait, and that it is over when the account is gone.
        @Test func wholeConversation() throws {
            let stage = try Stage("a", "b", workers: 2)
            stage.always("a", Self.response("resp_of_a"))
            stage.always("b", Self.response("resp_of_b"))
            for _ in 0..<2 { #expect(try turn(stage).status == 200) }
            let input = #"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"r"}]"#
            let body = #"{"model":"gpt-5.4","previous_response_id":"resp_of_b","input":\#(input)}"#
            func good(_ body: String) throws { #expect(try stage.daemon.post("/v1/responses", body).status == 200) }
            #expect(try chosen(stage, ["a", "b"]) { try good(body) } == ["b"])
            #expect(String(decoding: stage.upstream.requests(Stage.key("b")).last?.body ?? [], as: UTF8.self) == body)
            // It fails: the turn moves.
            stage.script("b", .error(503, code: "overloaded"))
            #expect(try chosen(stage, ["a", "b"]) { try good(body) } == ["a", "b"])
            #expect(
                String(decoding: stage.upstream.requests(Stage.key("a")).last?.body ?? [], as: UTF8.self)
                    == #"{"model":"gpt-5.4","input":\#(input)}"#)
            // Out of quota.
            stage.script("b", .error(429, code: "usage_limit_reached", headers: ["Retry-After": "600"]))
            #expect(try chosen(stage, ["a", "b"]) { try good(body) } == ["a", "b"])
            let waits = try turn(stage, ",\"previous_response_id\":\"resp_of_b\"")
            #expect(waits.status == 502 && waits.errorCode == "previous_response_owner_unavailable")
            #expect((590...600).contains(Int(waits.header("Retry-After") ?? "") ?? 0), "\(waits.headers)")
            #expect(try chosen(stage, ["a", "b"]) { try good(body) } == ["a"])
            // Nobody has any.
            stage.script("a", .error(429, code: "usage_limit_reached", headers: ["Retry-After": "300"]))
            _ = try turn(stage)
            let exhausted = try turn(stage, ",\"previous_response_id\":\"resp_of_b\"")
            #expect(exhausted.status == 429 && exhausted.errorCode == "usage_limit_reached")
            #expect((590...600).contains(Int(exhausted.header("Retry-After") ?? "") ?? 0), "\(exhausted.headers)")
            // Removed: what is new alone is of no use to anybody else.
            for name in ["a", "b"] { #expect(try stage.daemon.run("accounts", name == "a" ? "resume" : "remove", name).isGood) }
            try stage.daemon.addAccount("c", baseURL: stage.upstream.baseURL, key: Stage.key("c"))
            #expect(
                eventually(5) {
                    let gone = try? turn(stage, ",\"previous_response_id\":\"resp_of_b\"")
                    return gone?.errorCode == "previous_response_owner_unavailable" && gone?.text.contains("no longer here") == true
                })
            let calls = stage.calls("b")
            try good(body)
            #expect(stage.calls("b") == calls)
        }

        /// A file is made by some login; what is said of it, and turns that name it, go there and nowhere else.
        @Test func files() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            for name in ["a", "b"] {
                try daemon.importAccount(name, baseURL: upstream.chatGPTBaseURL, token: "t-\(name)", accountID: "acc-\(name)")
                upstream.always(
                    path: "/backend-api/files", bearer: "t-\(name)",
                    .status(200, "{\"file_id\":\"file-of-\(name)\",\"upload_url\":\"https://storage/\(name)\"}"))
                upstream.always(
                    path: "/backend-api/files/file-of-\(name)/uploaded", bearer: "t-\(name)", .status(200, "{\"status\":\"success\"}"))
            }
            try daemon.start(workers: 2)
            let create = "{\"file_name\":\"notes.pdf\",\"file_size\":12345}"
            var made: Set<String> = []
            for _ in 0..<4 {
                let answer = try daemon.post(
                    "/backend-api/files", create, headers: [("x-codex-note", "1"), ("x-other", "2"), ("accept", "*/*")])
                #expect(answer.status == 200 && answer.json["upload_url"] != nil, "\(answer.text)")
                made.insert(try #require(answer.json["file_id"] as? String))
            }
            #expect(made == ["file-of-a", "file-of-b"])
            let asked = try #require(upstream.requests.first { $0.path == "/backend-api/files" })
            #expect(asked.json["use_case"] as? String == "codex" && asked.json["file_size"] as? Int == 12345)
            #expect(asked.header("x-codex-note") == "1" && asked.header("x-other") == nil && asked.header("accept") == "application/json")
            #expect(asked.header("chatgpt-account-id")?.hasPrefix("acc-") == true)

            for _ in 0..<4 {
                for name in ["a", "b"] {
                    let done = try daemon.post("/backend-api/files/file-of-\(name)/uploaded", "{}")
                    #expect(done.status == 200 && done.json["status"] as? String == "success", "\(done.text)")
                    let (mine, other) = (upstream.calls("t-\(name)"), upstream.calls("t-\(name == "a" ? "b" : "a")"))
                    let input = "[{\"role\":\"user\",\"content\":[{\"type\":\"input_file\",\"file_id\":\"file-of-\(name)\"}]}]"
                    let turn = try daemon.post(
                        "/backend-api/codex/responses", "{\"model\":\"gpt-5.4\",\"input\":\(input)}", headers: [("session-id", "of-both")])
                    #expect(turn.status == 200)
                    #expect(upstream.calls("t-\(name)") == mine + 1 && upstream.calls("t-\(name == "a" ? "b" : "a")") == other)
                }
            }
            try daemon.run("accounts", "pause", "b")
            #expect(
                try eventually(3) { try daemon.post("/backend-api/files/file-of-b/uploaded", "{}").errorCode == "file_owner_unavailable" })
            #expect(try daemon.post("/backend-api/files/file-of-a/uploaded", "").status == 200)
            // A login that came back under another id has its files still.
            #expect(try daemon.run("accounts", "remove", "b").isGood)
            try daemon.importAccount("b", baseURL: upstream.chatGPTBaseURL, token: "t-b", accountID: "acc-b")
            upstream.always(path: "/backend-api/files/file-of-b/uploaded", bearer: "t-a", .error(404, code: "not_found"))
            #expect(
                try eventually(5) { try daemon.post("/backend-api/files/file-of-b/uploaded", "{}").json["status"] as? String == "success" })
            // No model worked on it: nothing was used.
            let records = try daemon.records().filter { ($0["route"] as? String)?.hasPrefix("/backend-api/files") == true }
            #expect(records.count >= 13 && records.allSatisfy { $0["input_tokens"] as? Int == 0 && $0["output_tokens"] as? Int == 0 })
        }

        /// A login that may upload no more for now, or whose uploads fail, serves turns as before; a file that nobody remembers is looked for at each
        /// login.
        @Test func filesAreNoTurns() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            for name in ["a", "b"] {
                try daemon.importAccount(name, baseURL: upstream.chatGPTBaseURL, token: "t-\(name)", accountID: "acc-\(name)")
            }
            try daemon.start(workers: 1)
            let create = "{\"file_name\":\"notes.pdf\",\"file_size\":12345}"
            for refusal in [
                Behaviour.error(429, code: "rate_limit_exceeded", more: "\"resets_in_seconds\":7200"), .error(503, code: "overloaded"),
            ] {
                upstream.always(path: "/backend-api/files", refusal)
                for _ in 0..<3 { #expect(try (400..<600).contains(daemon.post("/backend-api/files", create).status)) }
            }
            let listed = try daemon.run("accounts", "list", "--json").jsonList
            #expect(
                listed.count == 2 && listed.allSatisfy { $0["health"] as? String == "healthy" && $0["cooldown"] is NSNull }, "\(listed)")
            for _ in 0..<4 { #expect(try daemon.post("/backend-api/codex/responses", Stage.body()).status == 200) }
            #expect(upstream.requests("t-a").contains { $0.path.hasSuffix("/responses") })
            #expect(upstream.requests("t-b").contains { $0.path.hasSuffix("/responses") })

            upstream.always(path: "/backend-api/files/file-x/uploaded", bearer: "t-a", .error(404, code: "not_found"))
            upstream.always(path: "/backend-api/files/file-x/uploaded", bearer: "t-b", .status(200, "{\"status\":\"success\"}"))
            for _ in 0..<4 { #expect(try daemon.post("/backend-api/files/file-x/uploaded", "{}").status == 200) }
            upstream.always(path: "/backend-api/files/file-x/uploaded", bearer: "t-b", .error(404, code: "not_found"))
            #expect(try daemon.post("/backend-api/files/file-x/uploaded", "{}").status == 404)
        }

        /// What is no request about a file is refused here, and never sent.
        @Test func badFiles() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            try daemon.importAccount("a", baseURL: upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            try daemon.start(workers: 1)
            for (body, param) in [
                ("{\"file_name\":\"x\",\"file_size\":0}", "file_size"), ("{\"file_name\":\"x\",\"file_size\":536870913}", "file_size"),
                ("{\"file_name\":\"x\",\"file_size\":\"1\"}", "file_size"), ("{\"file_size\":1}", "file_name"), ("[]", nil), ("", nil),
                ("{\"file_name\":\"x\",\"file_size\":1,\"file_size\":2}", "file_size"),
            ] {
                let answer = try daemon.post("/backend-api/files", body)
                #expect(answer.status == 400 && answer.error["param"] as? String == param, "\(body): \(answer.text)")
            }
            for path in [
                "/backend-api/files/a%2Fb/uploaded", "/backend-api/files/../uploaded", "/backend-api/files/x/y/uploaded",
                "/backend-api/files/{id}/uploaded",
            ] {
                #expect(try (400...404).contains(daemon.post(path, "{}").status), "\(path)")
            }
            #expect(try daemon.get("/backend-api/files").status == 405)
            let long = "{\"file_name\":\"\(String(repeating: "x", count: 70_000))\",\"file_size\":1}"
            #expect(try daemon.post("/backend-api/files", long).status == 413)
            #expect(upstream.calls("t") == 0)
            // An upstream's own refusal is its client's.
            upstream.always(path: "/backend-api/files", .error(413, code: "file_too_large"))
            let large = try daemon.post("/backend-api/files", "{\"file_name\":\"x\",\"file_size\":536870912}")
            #expect(large.status == 413 && large.errorCode == "file_too_large")
        }

        /// A response that nobody remembers is asked for everywhere before the client hears that it is not found.
        @Test func unknownResponse() throws {
            let stage = try Stage("a", "b")
            let missing = Behaviour.error(400, code: "previous_response_not_found")
            stage.script("a", missing)
            stage.script("b", Self.response("resp_2"))
            #expect(try turn(stage, ",\"previous_response_id\":\"resp_1\"").status == 200)
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            stage.script("a", missing)
            stage.script("b", missing)
            let lost = try turn(stage, ",\"previous_response_id\":\"resp_0\"")
            #expect(lost.status == 400 && lost.errorCode == "previous_response_not_found")
            #expect(stage.calls("a") == 2 && stage.calls("b") == 2)
        }

        /// The state that an answer's head gave leads back to its account; a limit there lets the turn go on elsewhere.
        @Test func turnState() throws {
            let stage = try Stage("a", "b")
            stage.always("a", Self.response("resp_a"))
            for _ in 0..<2 { _ = try turn(stage) }
            for _ in 0..<3 {
                #expect(try chosen(stage, ["a", "b"]) { _ = try turn(stage, headers: [("x-codex-turn-state", "state-resp_a")]) } == ["a"])
            }
            stage.always("a", .error(429, code: "usage_limit_reached", more: "\"resets_in_seconds\":600"))
            #expect(try turn(stage, headers: [("x-codex-turn-state", "state-resp_a")]).status == 200)
            #expect(try chosen(stage, ["a", "b"]) { _ = try turn(stage, headers: [("x-codex-turn-state", "state-resp_a")]) } == ["b"])
        }

        /// A conversation that had to leave its account stays where it went: its cache is there now.
        @Test func movesOnce() throws {
            let stage = try Stage("a", "b", workers: 2)
            let headers = [("session-id", "s")]
            let first = try chosen(stage, ["a", "b"]) { _ = try turn(stage, headers: headers) }
            let (owner, other) = first == ["a"] ? ("a", "b") : ("b", "a")
            stage.script(owner, .error(429, code: "rate_limit_exceeded", more: "\"resets_in_seconds\":5"))
            #expect(try turn(stage, headers: headers).status == 200)
            #expect(eventually(15) { (try? stage.isAvailable(owner)) == true })
            for _ in 0..<4 { #expect(try chosen(stage, ["a", "b"]) { _ = try turn(stage, headers: headers) } == [other]) }
        }

        /// What one instance has learned another one on the same database knows within a second, also what was learned before that came, and
        /// what was learned while their transactions crossed; an account that a conversation has moved to as well.
        @Test func toldToInstances() throws {
            let stage = try Stage("a", "b", workers: 2, on: .postgresql)
            stage.always("b", .chosen { request in Self.response("resp_b_\(request.json["n"] ?? "")") })
            func ask(_ stage: Stage, n: Int) throws { #expect(try turn(stage, ",\"n\":\(n)").status == 200) }
            func asksOwner(_ stage: Stage, n: Int) throws -> Bool {
                try chosen(stage, ["a", "b"]) { _ = try turn(stage, ",\"previous_response_id\":\"resp_b_\(n)\"") } == ["b"]
            }
            for n in 0..<8 { try ask(stage, n: n) }
            let known = try (0..<8).filter { try asksOwner(stage, n: $0) }
            #expect(known.count >= 3)

            let second = try Daemon(["CODEX_LB_DATABASE_URL": stage.daemon.environment["CODEX_LB_DATABASE_URL"] ?? ""])
            try FileManager.default.createDirectory(
                atPath: second.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try FileManager.default.copyItem(atPath: stage.daemon.data + "/encryption.key", toPath: second.data + "/encryption.key")
            try second.start(workers: 2)
            let other = Stage(stage.upstream, second)
            // The first hears of the second within five seconds (it says that it serves so often), and tells all it knows.
            #expect(
                try eventually(10, every: 0.1) { try known.allSatisfy { n in try (0..<4).allSatisfy { _ in try asksOwner(other, n: n) } } })

            // From now on within a second, each way: a session is with the same account at the other. Each is asked for once there, for who is asked
            // for one that it does not know makes it its own.
            let database = BareDatabase(of: stage.daemon)
            func told() throws -> Int { Int(try database.sql("SELECT count(*) FROM pins")) ?? 0 }
            for (from, to) in [(stage, other), (other, stage)] {
                let before = try told()
                func owner(_ stage: Stage, _ session: Int) throws -> [String] {
                    try chosen(stage, ["a", "b"]) {
                        _ = try turn(stage, headers: [("session-id", "s-\(session)-\(from.daemon.directory)")])
                    }
                }
                var sessions: [[String]: [Int]] = [:]
                var count = 0
                while sessions[["a"], default: []].count < 20 || sessions[["b"], default: []].count < 20, count < 200 {
                    sessions[try owner(from, count), default: []].append(count)
                    count += 1
                }
                let since = Date()
                #expect(try eventually(5) { try told() >= before + count })
                // Two of the one account, then two of the other: who takes its accounts in turn is wrong at every second one.
                let pairs = zip(sessions[["a"]] ?? [], sessions[["b"]] ?? []).enumerated()
                let order = pairs.flatMap { $0 % 2 == 0 ? [(["b"], $1.1), (["a"], $1.0)] : [(["a"], $1.0), (["b"], $1.1)] }
                var right = 0
                for (account, session) in order where right < 10 {
                    right = try owner(to, session) == account ? right + 1 : 0
                    if right == 0 { usleep(100_000) }
                }
                #expect(right == 10, "the other does not know what it was told")
                #expect(Date().timeIntervalSince(since) < bound(2, debug: 5))
            }
        }

        /// What is remembered outlives a stop, and all but the last moments a sudden end; a file that can't be read is told and costs no turn.
        @Test(arguments: Database.both) func outlivesTheInstance(_ database: Database) throws {
            let stage = try Stage("a", "b", workers: 2, on: database)
            stage.always("b", Self.response("resp_of_b"))
            for _ in 0..<2 { #expect(try turn(stage).status == 200) }
            for round in 0..<3 {
                if round == 2 { try Data("no pins".utf8).write(to: URL(fileURLWithPath: stage.daemon.data + "/pins")) }
                #expect(stage.daemon.stop() == .code(0))
                if round == 1 { try Data("no pins".utf8).write(to: URL(fileURLWithPath: stage.daemon.data + "/pins")) }
                try stage.daemon.launch()
                try stage.daemon.waitReady()
                let before = stage.calls("a")
                for _ in 0..<4 { #expect(try turn(stage, ",\"previous_response_id\":\"resp_of_b\"").status == 200) }
                if round == 1 {
                    #expect(stage.daemon.waitLog("conversations of the last run are not known"))
                } else {
                    #expect(stage.calls("a") == before, "round \(round)")
                }
            }
        }

        /// What is remembered outlives the workers that learned it.
        @Test func outlivesWorkers() throws {
            let stage = try Stage("a", "b", workers: 2)
            stage.always("b", Self.response("resp_of_b"))
            for _ in 0..<2 { #expect(try turn(stage).status == 200) }
            for slot in 0..<2 { kill(try #require(stage.daemon.pid("worker", slot)), SIGKILL) }
            #expect(eventually(10) { (try? turn(stage, ",\"previous_response_id\":\"resp_of_b\"").status) == 200 })
            let calls = stage.calls("a")
            for _ in 0..<4 { #expect(try turn(stage, ",\"previous_response_id\":\"resp_of_b\"").status == 200) }
            #expect(stage.calls("a") == calls)
        }
    }
}
