import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// docs/routing.md and docs/upstreams.md: what operators set counts at once, in every worker.
    @Suite struct Routing {
        private func explain(_ daemon: Daemon, _ options: String...) throws -> [String: Any] {
            let result = try daemon.run(["accounts", "explain", "--json"] + options)
            #expect(result.isGood, "\(result)")
            return result.json
        }

        private func verdicts(_ told: [String: Any]) -> [String: String] {
            let rows = told["accounts"] as? [[String: Any]] ?? []
            return Dictionary(uniqueKeysWithValues: rows.map { ($0["account"] as? String ?? "", $0["verdict"] as? String ?? "") })
        }

        private func turn(_ stage: Stage, model: String = "gpt-5.4", _ headers: [(String, String)] = []) throws -> Answer {
            try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: model), headers: headers)
        }

        /// A setting is checked by name and value, kept, listed, live in both workers, and gone when it is unset.
        @Test(arguments: Database.both) func settings(_ kind: Database) throws {
            let stage = try Stage("a", "b", workers: 2, on: kind)
            let daemon = stage.daemon
            for (arguments, word) in [
                (["routing.stratgy", "x"], "did you mean routing.strategy"),
                (["routing.strategy", "roundrobin"], "did you mean round_robin"),
                (["models.alias.", "x"], "models.alias.NAME"), (["models.alias.x", "x"], "stand for itself"),
                (["routing.single_account", "nobody"], "no account \"nobody\""),
            ] {
                let result = try daemon.run(["settings", "set"] + arguments)
                #expect(!result.isGood && result.errors.contains(word), "\(arguments): \(result.errors)")
            }
            #expect(try daemon.run("settings", "get", "routing.strategy").output == "capacity_weighted\n")
            #expect(try daemon.run("settings", "set", "routing.single_account", "b").isGood)
            #expect(try daemon.run("settings", "set", "routing.strategy", "single_account").isGood)
            #expect(eventually(5) { (try? explain(daemon)["strategy"] as? String) == "single_account" })
            #expect(
                eventually(5) {
                    let before = stage.calls("b")
                    for _ in 0..<8 where (try? turn(stage).status) != 200 { return false }
                    return stage.calls("b") == before + 8
                }, "every worker has heard of it")
            try daemon.run("accounts", "pause", "b")
            #expect(eventually(5) { (try? turn(stage).errorCode) == "single_account_unavailable" })
            let listed = try daemon.run("settings", "list", "--json").jsonList
            #expect(listed.first { $0["name"] as? String == "routing.strategy" }?["value"] as? String == "single_account")
            #expect(try daemon.run("settings", "unset", "routing.strategy").output == "routing.strategy is unset\n")
            #expect(try daemon.run("settings", "unset", "routing.strategy").output == "routing.strategy was not set\n")
            #expect(eventually(5) { (try? turn(stage).status) == 200 })
        }

        /// An alias goes upstream as what it stands for, and counts as that for keys; the record has both names.
        @Test(arguments: Database.both) func aliases(_ kind: Database) throws {
            let stage = try Stage("a", on: kind)
            #expect(try stage.daemon.run("settings", "set", "models.alias.fast", "gpt-5.4-mini").isGood)
            #expect(
                eventually(5) {
                    _ = try? turn(stage, model: "fast")
                    return stage.requests("a").last?.json["model"] as? String == "gpt-5.4-mini"
                })
            let chat = try stage.daemon.post(
                "/v1/chat/completions", Stage.chat(stream: true).replacingOccurrences(of: "gpt-5.4", with: "fast"),
                headers: [("X-Request-Id", "chat-1")])
            #expect(chat.status == 200 && stage.requests("a").last?.json["model"] as? String == "gpt-5.4-mini")
            #expect(try stage.daemon.record("chat-1")["model_asked"] as? String == "fast")
            let key = try stage.daemon.createKey("k", "--models", "gpt-5.4-mini")
            #expect(
                eventually(5) { (try? turn(stage, model: "fast", [("Authorization", "Bearer \(key)")]).status) == 200 })
            #expect(try turn(stage, model: "gpt-5.4", [("Authorization", "Bearer \(key)")]).status == 403)
        }

        /// Options are kept and live; they end no cooldown. What can't be is refused with what can.
        @Test(arguments: Database.both) func options(_ kind: Database) throws {
            let stage = try Stage("a", "b", on: kind)
            let daemon = stage.daemon
            stage.script("a", .error(429, code: "rate_limit_exceeded", more: "\"resets_in_seconds\":600"))
            stage.script("b", .ok)
            _ = try turn(stage)
            _ = try turn(stage)
            #expect(eventually(5) { (try? stage.isAvailable("a")) == false })
            #expect(try daemon.run("accounts", "set", "a", "--weight", "7", "--policy", "burn_first", "--streams-max", "3").isGood)
            #expect(
                eventually(5) {
                    let told = try? explain(daemon)
                    let row = (told?["accounts"] as? [[String: Any]])?.first { $0["account"] as? String == "a" }
                    return row?["weight"] as? Int == 7 && row?["policy"] as? String == "burn_first" && row?["streams_max"] as? Int == 3
                        && row?["verdict"] as? String == "limited"
                }, "it is still out of quota")
            #expect(
                try daemon.run("accounts", "set", "a", "--streams-max", "0", "--overflow").output.contains("no cap, any model, overflow"))
            for (arguments, word) in [
                (["b", "--policy", "sometimes"], "burn_first"), (["b", "--weight", "1001"], "1 to 1000"), (["b"], "nothing to change"),
                (["nobody", "--weight", "5"], "no account"), (["b", "--models", "a b"], "ab"),
            ] {
                let result = try daemon.run(["accounts", "set"] + arguments)
                #expect(
                    !result.isGood && result.errors.contains(word) || word == "ab" && result.output.contains(word),
                    "\(arguments): \(result)")
            }
            // No account may be asked for it: told at once, with what it may have meant.
            for name in ["a", "b"] { #expect(try daemon.run("accounts", "set", name, "--models", "gpt-5.4-mini,o9").isGood) }
            #expect(eventually(5) { (try? turn(stage, model: "gpt-5.4-mimi").status) == 404 })
            let calls = stage.calls("b")
            let missing = try turn(stage, model: "gpt-5.4-mimi")
            #expect(missing.errorCode == "model_not_found" && missing.text.contains("Did you mean gpt-5.4-mini?"), "\(missing.text)")
            #expect(stage.calls("b") == calls)
            #expect(verdicts(try explain(daemon, "--model", "gpt-5.4-mimi")) == ["a": "excluded", "b": "excluded"])
            #expect(try daemon.run("accounts", "set", "b", "--models", "any").isGood)
            #expect(eventually(5) { (try? turn(stage, model: "gpt-5.4-mimi").status) == 200 })
        }

        /// Azure: a key in a field of its own and a query that goes with each request; neither is shown or lies open in the store.
        @Test(arguments: Database.both) func headers(_ kind: Database) throws {
            let stage = try Stage(on: kind)
            let daemon = stage.daemon
            stage.upstream.always("", .ok)
            let base = stage.upstream.baseURL + "/?api-version=preview"
            let secret = "azure-secret-0123456789"
            let added = try daemon.run(
                "accounts", "add", "azure", "--base-url", base, "--header", "api-key=@-", "--header", "x-region=eu", input: secret + "\n")
            #expect(added.isGood, "\(added)")
            // What a client calls the same stays here.
            #expect(eventually(5) { (try? turn(stage, [("X-Region", "us"), ("Api-Key", "mine")]).status) == 200 })
            let request = try #require(stage.upstream.requests("").last { $0.method == "POST" })
            #expect(request.headerCount("x-region") == 1 && request.headerCount("api-key") == 1)
            #expect(request.header("api-key") == secret && request.header("x-region") == "eu" && request.header("authorization") == nil)
            #expect(request.path == "/v1/responses?api-version=preview", "\(request.path)")
            #expect(try !daemon.run("accounts", "list", "--json").output.contains(secret))
            if kind == .sqlite {
                let files = try FileManager.default.contentsOfDirectory(atPath: daemon.data).filter { $0.hasPrefix("store.db") }
                for file in files {
                    let bytes = FileManager.default.contents(atPath: daemon.data + "/" + file) ?? Data()
                    #expect(bytes.range(of: Data(secret.utf8)) == nil, "\(file)")
                }
            }
            for (field, word) in [
                ("Host=x", "codex-lb's own"), ("Authorization=x", "codex-lb's own"), ("content-length=4", "codex-lb's own"),
                ("Transfer-Encoding=x", "codex-lb's own"), ("a b=x", "no name of a field"), ("x-a= ", "visible ASCII"),
            ] {
                let result = try daemon.run("accounts", "set", "azure", "--header", field)
                #expect(!result.isGood && result.errors.contains(word), "\(field): \(result.errors)")
            }
            #expect(try !daemon.run("accounts", "set", "azure", "--no-headers").isGood, "it would have no key")
            #expect(try daemon.run("accounts", "set", "azure", "--header", "api-key=other").isGood)
            #expect(
                eventually(5) {
                    _ = try? turn(stage)
                    let last = stage.upstream.requests("").last { $0.method == "POST" }
                    return last?.header("api-key") == "other" && last?.header("x-region") == nil
                })
        }

        /// Over two workers and many clients an account has never more turns than its cap; those that wait are served.
        @Test(arguments: Database.both) func caps(_ kind: Database) throws {
            let stage = Stage(try FakeUpstream(), try Daemon(on: kind))
            try stage.daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
            #expect(try stage.daemon.run("accounts", "set", "a", "--streams-max", "2").isGood)
            try stage.daemon.start(workers: 2)
            let gate = Gate()
            stage.always("a", .silence(gate))
            let clients = try (0..<8).map { _ in try stage.daemon.connect() }
            for client in clients { try client.post("/v1/responses", Stage.body(stream: false)) }
            #expect(stage.upstream.wait(requests: 2, Stage.key("a")))
            #expect(eventually(5) { verdicts((try? explain(stage.daemon)) ?? [:]) == ["a": "full"] })
            for served in 1...8 {
                #expect(stage.upstream.wait { stage.calls("a") >= min(8, served + 1) }, "\(served)")
                #expect(stage.calls("a") <= served + 1, "\(stage.calls("a")) at a time where 2 may be")
                gate.release()
            }
            for client in clients { #expect(try client.answer().status == 200) }
            #expect(stage.calls("a") == 8)
            #expect(try stage.metric("codex_lb_account_in_flight{account=\"a\"}") == 0)
        }

        /// Who waits too long is told to come back; a conversation waits for its own account while another one is free.
        @Test func capEnds() throws {
            let stage = try Stage("a", "b")
            stage.always("a", .status(200, Canned.response().replacingOccurrences(of: "resp_fake", with: "resp_a")))
            stage.always("b", .status(200, Canned.response().replacingOccurrences(of: "resp_fake", with: "resp_b")))
            for _ in 0..<2 { #expect(try turn(stage).status == 200) }
            for name in ["a", "b"] { #expect(try stage.daemon.run("accounts", "set", name, "--streams-max", "1").isGood) }
            #expect(
                eventually(5) {
                    (try? explain(stage.daemon)["accounts"] as? [[String: Any]])?.allSatisfy { $0["streams_max"] as? Int == 1 } == true
                })
            let gate = Gate()
            stage.script("a", .silence(gate))
            let first = try stage.daemon.connect()
            try first.post("/v1/responses", Stage.body(stream: false, more: ",\"previous_response_id\":\"resp_a\""))
            #expect(stage.upstream.wait { stage.calls("a") == 2 })
            let second = try stage.daemon.connect()
            try second.post("/v1/responses", Stage.body(stream: false, more: ",\"previous_response_id\":\"resp_a\""))
            let third = try stage.daemon.connect()
            try third.post("/v1/responses", Stage.body(stream: false, more: ",\"previous_response_id\":\"resp_a\""))
            // Others have room meanwhile.
            #expect(try turn(stage).status == 200 && stage.calls("b") == 2)
            let late = try second.answer(20)
            #expect(late.status == 429 && late.errorCode == "account_stream_cap" && late.header("retry-after") == "5", "\(late.text)")
            _ = try third.answer(20)
            gate.open()
            #expect(try first.answer().status == 200)
            #expect(try turn(stage).status == 200)
        }

        /// A worker that is killed with turns open gives back what it had.
        @Test func killedWithShare() throws {
            let stage = try Stage("a", workers: 2)
            #expect(try stage.daemon.run("accounts", "set", "a", "--streams-max", "1").isGood)
            #expect(eventually(5) { ((try? explain(stage.daemon)["accounts"] as? [[String: Any]])?.first)?["streams_max"] as? Int == 1 })
            let gate = Gate()
            stage.script("a", .silence(gate))
            let client = try stage.daemon.connect()
            try client.post("/v1/responses", Stage.body(stream: false))
            #expect(stage.upstream.wait(requests: 1, Stage.key("a")))
            let others = try stage.daemon.connect()
            for slot in 0..<2 { kill(try #require(stage.daemon.pid("worker", slot)), SIGKILL) }
            _ = others
            #expect(eventually(10) { (try? turn(stage).status) == 200 })
            gate.open()
        }

        /// What is explained is what a turn gets, with and without a conversation.
        @Test func explained() throws {
            let stage = try Stage("a", "b", "c")
            let none = try explain(stage.daemon)
            #expect(none["chosen"] as? String != nil)
            for _ in 0..<12 {
                let chosen = try #require(explain(stage.daemon)["chosen"] as? String)
                let before = stage.calls(chosen)
                #expect(try turn(stage).status == 200)
                #expect(stage.calls(chosen) == before + 1)
            }
            #expect(try turn(stage, [("session-id", "s1")]).status == 200)
            let owner = try #require(["a", "b", "c"].first { stage.requests($0).last?.header("session-id") == "s1" })
            for _ in 0..<4 {
                let told = try explain(stage.daemon, "--session", "s1")
                #expect(told["chosen"] as? String == owner)
                _ = try turn(stage)
            }
            let strange = try stage.daemon.run("accounts", "explain", "--key", "nobody")
            #expect(!strange.isGood && strange.errors.contains("no valid key"))
            let text = try stage.daemon.run("accounts", "explain", "--model", "gpt-5.4").output
            #expect(text.contains("capacity_weighted") && text.contains("VERDICT"), "\(text)")
            #expect(stage.daemon.stop() == .code(0))
            #expect(try stage.daemon.run("accounts", "explain").errors.contains("no server runs"))
        }
    }
}
