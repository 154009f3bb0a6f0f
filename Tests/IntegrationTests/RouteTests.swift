import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// What each route sends upstream and gives back.
    @Suite struct Routes {
        /// The codex route with a ChatGPT login: its identity upstream, the stream back byte by byte (S1).
        @Test func codexPassThrough() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "access-token", accountID: "acc_live")
            let events = ["{\"type\":\"codex.rate_limits\",\"plan_type\":\"plus\"}"] + Canned.stream
            stage.upstream.always("access-token", .events(events, headers: ["x-codex-primary-used-percent": "12"]))
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let answer = try stage.daemon.post(
                "/backend-api/codex/responses", "{\"model\":\"gpt-5.1\",\"instructions\":\"hi\",\"input\":[],\"stream\":false}",
                headers: [
                    ("x-request-id", "req_x"), ("User-Agent", "codex_cli_rs/0.150.0"), ("originator", "codex_cli_rs"),
                    ("session_id", "s-1"),
                    ("x-codex-turn-metadata", "{\"a\":1}"), ("x-codex-beta-features", "x"), ("Authorization", "Bearer own"),
                    ("chatgpt-account-id", "mine"),
                ])
            #expect(answer.status == 200)
            #expect(answer.header("content-type")?.hasPrefix("text/event-stream") == true)
            #expect(answer.header("x-request-id") == "req_x")
            #expect(answer.header("x-codex-primary-used-percent") == "12")
            #expect(answer.text == events.map { Behaviour.event($0) }.joined())
            let request = try #require(stage.upstream.requests("access-token").first { $0.method == "POST" })
            #expect(request.path == "/backend-api/codex/responses")
            #expect(request.header("chatgpt-account-id") == "acc_live")
            #expect(request.headerCount("chatgpt-account-id") == 1 && request.headerCount("authorization") == 1)
            #expect(request.header("accept") == "text/event-stream")
            for (name, value) in [
                ("originator", "codex_cli_rs"), ("session_id", "s-1"), ("x-codex-turn-metadata", "{\"a\":1}"),
                ("x-codex-beta-features", "x"),
                ("x-request-id", "req_x"), ("user-agent", "codex_cli_rs/0.150.0"),
            ] { #expect(request.header(name) == value, "\(name)") }
            #expect(request.json["stream"] as? Bool == true)
            #expect(request.json["store"] as? Bool == false)
            let record = try stage.daemon.record("req_x")
            #expect(record["status"] as? Int == 200)
            #expect(record["input_tokens"] as? Int == 100 && record["output_tokens"] as? Int == 20)
        }

        /// A body for an API-key account goes on as it came, byte by byte, whatever is in it.
        @Test func bodyIsUntouched() throws {
            let stage = try Stage("a")
            let body =
                "{ \"stream\" : true,\"model\":\"gpt-5.4\", \"input\":[{\"type\":\"odd_item\",\"x\":1.0e5}],\n\"tools\":[{\"type\":\"function\",\"name\":\"f\",\"parameters\":{\"b\":1,\"a\":2}}],\"unknown\":{\"ü\":\"\\u00fc\"}}"
            _ = try stage.daemon.post("/v1/responses", body)
            let request = try #require(stage.requests("a").first)
            #expect(request.text == body)
            #expect(request.path == "/v1/responses")
        }

        /// /v1/responses gives what an SDK understands: vendor events are left out, everything else is passed on in order.
        @Test func vendorEventsAreDropped() throws {
            let stage = try Stage("a")
            stage.always("a", .events(["{\"type\":\"codex.rate_limits\"}"] + Canned.stream + ["{\"type\":\"codex.other\"}"]))
            let answer = try stage.turn()
            #expect(answer.text == Canned.stream.map { Behaviour.event($0) }.joined())
            #expect(answer.header("cache-control")?.contains("no-cache") == true)
        }

        /// A stream that begins with text gets the `response.created` that SDKs insist on.
        @Test func createdIsPutFirst() throws {
            let stage = try Stage("a")
            stage.always("a", .events([Canned.delta("early"), Canned.completed()]))
            let answer = try stage.turn()
            #expect(answer.types == ["response.created", "response.output_text.delta", "response.completed"])
        }

        /// A stream that consists of a failure gets it too.
        @Test func createdBeforeFailure() throws {
            let stage = try Stage("a")
            stage.always("a", .events([Canned.failed("server_error")]))
            #expect(try stage.turn().types == ["response.created", "response.failed"])
        }

        /// The terminal event's empty output is filled from the items that came before it (ChatGPT logins leave it out).
        @Test func outputIsRebuilt() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            stage.upstream.always(
                "t", .events([Canned.created(), Canned.itemAdded, Canned.delta("Hello"), Canned.itemDone, Canned.completed(output: "")]))
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let stream = try stage.turn()
            let last = try #require(stream.events.last?.json["response"] as? [String: Any])
            #expect((last["output"] as? [[String: Any]])?.first?["id"] as? String == "msg_1")
            let whole = try stage.turn("req-2", stream: false)
            #expect(whole.status == 200)
            #expect(whole.json["status"] as? String == "completed")
            #expect((whole.json["output"] as? [[String: Any]])?.count == 1)
            #expect(try stage.daemon.record("req-2")["input_tokens"] as? Int == 100)
        }

        /// A failed answer that had to be assembled is an HTTP error with the failure's code.
        @Test(arguments: [("rate_limit_exceeded", 429), ("server_error", 502), ("invalid_request_error", 400)])
        func assembledFailure(_ code: String, _ status: Int) throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            stage.upstream.always("t", .events([Canned.created(), Canned.failed(code)]))
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let answer = try stage.turn(stream: false)
            #expect(answer.status == status)
            #expect(answer.errorCode == code)
        }

        /// A chat stream's usage is accounted although the client did not ask for it, and the client sees no chunk more than it asked for.
        @Test func chatUsageIsTakenOut() throws {
            let stage = try Stage("a")
            let answer = try stage.daemon.post("/v1/chat/completions", Stage.chat(stream: true), headers: [("X-Request-Id", "chat-1")])
            #expect(
                answer.text
                    == [Canned.chatChunk("Hel"), Canned.chatChunk("lo"), Canned.chatChunk("", finish: "\"stop\""), "[DONE]"].map {
                        "data: \($0)\n\n"
                    }.joined())
            let options = stage.requests("a").first?.json["stream_options"] as? [String: Any]
            #expect(options?["include_usage"] as? Bool == true)
            let record = try stage.daemon.record("chat-1")
            #expect(record["input_tokens"] as? Int == 100 && record["cached_input_tokens"] as? Int == 40)
            #expect(record["output_tokens"] as? Int == 20 && record["reasoning_tokens"] as? Int == 5)
            #expect(record["cost_microdollars"] as? Int == 460)
        }

        /// A client that asks for the usage chunk sees it, and its body goes upstream as it is.
        @Test func chatUsageIsGiven() throws {
            let stage = try Stage("a")
            let body = Stage.chat(stream: true, more: ",\"stream_options\":{\"include_usage\":true}")
            let answer = try stage.daemon.post("/v1/chat/completions", body)
            #expect(answer.text.contains(Canned.chatUsageChunk))
            #expect(stage.requests("a").first?.text == body)
        }

        /// A chat answer without stream is passed on as it is and accounted.
        @Test func chatWhole() throws {
            let stage = try Stage("a")
            let answer = try stage.daemon.post("/v1/chat/completions", Stage.chat(stream: false), headers: [("X-Request-Id", "chat-1")])
            #expect(answer.text == Canned.chat)
            #expect(try stage.daemon.record("chat-1")["output_tokens"] as? Int == 20)
        }

        /// A chat request served by a ChatGPT login is translated both ways.
        @Test func chatByChatGPT() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let stream = try stage.daemon.post(
                "/v1/chat/completions", Stage.chat(stream: true, more: ",\"stream_options\":{\"include_usage\":true}"),
                headers: [("X-Request-Id", "chat-1")])
            #expect(stream.status == 200)
            #expect(stream.events.last?.data == "[DONE]")
            let chunks = stream.events.dropLast().map(\.json)
            #expect(chunks.allSatisfy { $0["object"] as? String == "chat.completion.chunk" })
            let text = chunks.compactMap { (($0["choices"] as? [[String: Any]])?.first?["delta"] as? [String: Any])?["content"] as? String }
                .joined()
            #expect(text == "Hello")
            #expect((chunks.last?["usage"] as? [String: Any])?["total_tokens"] as? Int == 120)
            let sent = try #require(stage.upstream.requests("t").first { $0.method == "POST" })
            #expect(sent.json["stream"] as? Bool == true && sent.json["store"] as? Bool == false)
            #expect(sent.json["messages"] == nil && sent.json["tools"] == nil)
            let whole = try stage.daemon.post("/v1/chat/completions", Stage.chat(stream: false))
            #expect(whole.json["object"] as? String == "chat.completion")
            let message = (whole.json["choices"] as? [[String: Any]])?.first?["message"] as? [String: Any]
            #expect(message?["content"] as? String == "Hello")
            #expect(try stage.daemon.record("chat-1")["output_tokens"] as? Int == 20)
        }

        /// A chat stream that breaks tells so and then says [DONE] (S6).
        @Test func chatTruncated() throws {
            let stage = try Stage("a")
            stage.always("a", .cut(after: [Canned.chatChunk("Hel")]))
            let stream = try stage.daemon.post("/v1/chat/completions", Stage.chat(stream: true), headers: [("X-Request-Id", "chat-1")])
            #expect(stream.isWhole)
            #expect(stream.events.last?.data == "[DONE]")
            let error = stream.events.dropLast().last?.json["error"] as? [String: Any]
            #expect(error?["code"] as? String == "upstream_stream_truncated")
            #expect(try stage.daemon.record("chat-1")["error_code"] as? String == "upstream_stream_truncated")
        }

        /// Embeddings go through and are accounted.
        @Test func embeddings() throws {
            let stage = try Stage("a")
            let answer = try stage.daemon.post(
                "/v1/embeddings", "{\"model\":\"text-embedding-3-small\",\"input\":\"x\"}", headers: [("X-Request-Id", "emb-1")])
            #expect(answer.text == Canned.embeddings)
            let record = try stage.daemon.record("emb-1")
            #expect(record["input_tokens"] as? Int == 7 && record["output_tokens"] as? Int == 0)
            #expect(record["route"] as? String == "/v1/embeddings")
        }

        /// Embeddings are never sent to a ChatGPT login.
        @Test func embeddingsNeedAnAPIKey() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let answer = try stage.daemon.post("/v1/embeddings", "{\"model\":\"text-embedding-3-small\",\"input\":\"x\"}")
            #expect(answer.status == 503 && answer.errorCode == "no_accounts")
            #expect(stage.upstream.calls("t") == 0)
        }

        /// The models of all accounts are one list, each once; an account that fails does not spoil it.
        @Test func modelsUnion() throws {
            let stage = try Stage("a", "b", "c")
            stage.upstream.always(path: "/v1/models", bearer: "sk-up-a", .status(200, Canned.models("gpt-5.4", "gpt-5.5")))
            stage.upstream.always(path: "/v1/models", bearer: "sk-up-b", .status(200, Canned.models("gpt-5.5", "local-model")))
            stage.upstream.always(path: "/v1/models", bearer: "sk-up-c", .status(500, "{}"))
            let answer = try stage.daemon.get("/v1/models")
            #expect(answer.status == 200)
            #expect(answer.json["object"] as? String == "list")
            let ids = (answer.json["data"] as? [[String: Any]])?.compactMap { $0["id"] as? String }
            #expect(ids == ["gpt-5.4", "gpt-5.5", "local-model"])
            let before = stage.upstream.requests.count
            _ = try stage.daemon.get("/v1/models")
            #expect(stage.upstream.requests.count == before, "the list is kept for a while")
        }

        /// The codex form of the list has `models`, from a ChatGPT login's own list too.
        @Test func codexModels() throws {
            let stage = try Stage("a")
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            stage.upstream.always(
                path: "/backend-api/codex/models", .status(200, "{\"models\":[{\"slug\":\"gpt-5.4-codex\",\"display_name\":\"x\"}]}"))
            #expect(try eventually(bound(1, debug: 3)) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            let answer = try stage.daemon.get("/backend-api/codex/models?client_version=0.150.0")
            let slugs = (answer.json["models"] as? [[String: Any]])?.compactMap { $0["slug"] as? String }
            #expect(slugs == ["gpt-5.4-codex"], "what Codex can't read would cost it the whole list")
            let ids = (answer.json["data"] as? [[String: Any]])?.compactMap { $0["id"] as? String }
            #expect(Set(ids ?? []) == ["gpt-5.4", "gpt-5.4-codex"])
            let asked = stage.upstream.requests("t").first { $0.path.contains("/models") }
            #expect(asked?.header("chatgpt-account-id") == "acc")
            #expect(asked?.path == "/backend-api/codex/models?client_version=0.163.0", "not our version")
        }

        /// Lists in the shapes that upstreams have, and what is none: it takes nothing away and is no empty list.
        @Test func modelListShapes() throws {
            let lists: [(body: String, ids: [String])] = [
                ("{\"data\":[{\"id\":\"m1\"}]}", ["m1"]), ("[{\"id\":\"m2\"},{\"id\":\"m3\"}]", ["m2", "m3"]), ("[\"m4\"]", ["m4"]),
                ("{\"models\":[{\"name\":\"m5\"},{\"display_name\":\"nameless\"},{\"slug\":\"m6\"}]}", ["m5", "m6"]),
                ("{\"data\":[],\"object\":\"list\"}", []), ("<html>Sign in</html>", []), ("{\"error\":\"no\"}", []), ("", []),
                ("{\"data\":[{\"id\":\"m7\"}]", []),
            ]
            let names = lists.indices.map { "a\($0)" }
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            for (name, list) in zip(names, lists) {
                try daemon.addAccount(name, baseURL: upstream.baseURL, key: Stage.key(name))
                upstream.always(path: "/v1/models", bearer: Stage.key(name), .status(200, list.body))
            }
            try daemon.start()
            let answer = try daemon.get("/v1/models")
            let ids = (answer.json["data"] as? [[String: Any]])?.compactMap { $0["id"] as? String }
            #expect(ids == lists.flatMap(\.ids))
            for name in names.prefix(5) { #expect(try daemon.run("accounts", "pause", name).isGood) }
            #expect(try eventually(5) { try daemon.get("/v1/models").status == 502 }, "nothing is known, and that is said")
        }

        /// One upstream that never answers delays the first list by a second, and no other.
        @Test func muteUpstreamListsNothing() throws {
            let stage = try Stage("a", "b")
            let gate = Gate()
            stage.upstream.always(path: "/v1/models", bearer: "sk-up-b", .silence(gate))
            for most in [3.0, 3.0, 3.0] {
                let start = Date()
                let answer = try stage.daemon.get("/v1/models")
                #expect((answer.json["data"] as? [Any])?.count == 1)
                #expect(Date().timeIntervalSince(start) < most)
            }
            gate.open()
        }

        // MARK: Who offers what

        private static func offering(_ model: String) -> Behaviour {
            .chosen { request in
                request.json["model"] as? String == model
                    ? .ok
                    : .error(404, code: "model_not_found", message: "The model `x` does not exist or you do not have access to it.")
            }
        }

        /// Two accounts with different models: every turn goes to the one that has its model, after one refusal at most, and after none
        /// once the lists are known.
        @Test(arguments: [false, true]) func modelsGoWhereTheyAre(_ isListed: Bool) throws {
            let stage = try Stage("a", "b")
            for name in ["a", "b"] {
                stage.always(name, Self.offering("model-\(name)"))
                stage.upstream.always(path: "/v1/models", bearer: Stage.key(name), .status(200, Canned.models("model-\(name)")))
            }
            if isListed { #expect((try stage.daemon.get("/v1/models").json["data"] as? [Any])?.count == 2) }
            for _ in 0..<10 {
                for name in ["a", "b"] {
                    #expect(try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: "model-\(name)")).status == 200)
                }
            }
            for name in ["a", "b"] {
                let strays = stage.requests(name).count { $0.json["model"] as? String != "model-\(name)" }
                #expect(isListed ? strays == 0 : strays <= 1)
                #expect(try stage.isAvailable(name), "it is no fault of the account's")
            }
        }

        /// A model that nobody has: the client gets near names from the upstreams' lists beside the upstream's own word, and not every account is
        /// asked every time. The first answer waits for the lists.
        @Test func nobodyHasTheModel() throws {
            let stage = try Stage("a", "b")
            for name in ["a", "b"] {
                stage.always(name, Self.offering("other"))
                stage.upstream.always(path: "/v1/models", bearer: Stage.key(name), .status(200, Canned.models("other", "gpt-5.4-\(name)")))
            }
            for i in 0..<5 {
                let answer = try stage.daemon.post("/v1/responses", Stage.body(stream: i % 2 == 1, model: "gtp-5.4-a"))
                #expect(answer.status == 404 && answer.errorCode == "model_not_found" && answer.error["param"] as? String == "model")
                let message = answer.error["message"] as? String ?? ""
                #expect(message.contains("\"gtp-5.4-a\"") && message.contains("Did you mean gpt-5.4-a, gpt-5.4-b?"), "\(message)")
                #expect(message.contains("does not exist or you do not have access"), "\(message)")
                #expect(stage.calls("a") + stage.calls("b") == 2 + i)
            }
        }

        /// In a pool of more accounts than a turn asks the first answers say so; none is an upstream's own. Near names are those that the key may use.
        @Test func fewOfManyHaveTheModel() throws {
            let names = ["a", "b", "c", "d", "e"]
            let stage = try Stage("a", "b", "c", "d", "e")
            for name in names {
                stage.always(name, Self.offering("other"))
                stage.upstream.always(path: "/v1/models", bearer: Stage.key(name), .status(200, Canned.models("gpt-5.4", "gpt-5.5")))
            }
            #expect(try stage.daemon.run("settings", "set", "models.alias.gpt-5.x", "gpt-5.5").isGood)
            let key = try stage.daemon.createKey("k", "--models", "gpt-5.4,gpt-5.3")
            #expect(eventually(5) { (try? stage.daemon.get("/v1/models", headers: [("Authorization", "Bearer \(key)")]).status) == 200 })
            for i in 0..<4 {
                let answer = try stage.daemon.post(
                    "/v1/responses", Stage.body(stream: false, model: "gpt-5.3"), headers: [("Authorization", "Bearer \(key)")])
                #expect(answer.status == 404 && answer.errorCode == "model_not_found", "\(answer.text)")
                let message = answer.error["message"] as? String ?? ""
                #expect(
                    message.hasPrefix(i == 0 ? "None of the accounts that were asked" : "No account offers") || i == 1, "\(i): \(message)")
                #expect(message.contains("Did you mean gpt-5.4?") && message.contains("do not have access"), "\(message)")
            }
        }

        /// Where operators' lists leave a model out nobody is asked for lists; an account that comes while others' lists are waited for is used.
        @Test func listsThatDecide() throws {
            let stage = try Stage("a")
            let gate = Gate()
            defer { gate.open() }
            stage.upstream.always(path: "/v1/models", .silence(gate))
            #expect(try stage.daemon.run("accounts", "set", "a", "--models", "gpt-5.4").isGood)
            #expect(eventually(5) { (try? stage.daemon.post("/v1/responses", Stage.body(stream: false, model: "gpt-9")).status) == 404 })
            // One that waits for lists takes a second each time.
            let isQuick = try (0..<5).contains { _ in
                let start = Date()
                let answer = try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: "gpt-5.5"))
                #expect(answer.text.contains("Did you mean gpt-5.4?"))
                return Date().timeIntervalSince(start) < 0.9
            }
            #expect(isQuick, "a list was waited for")

            try stage.daemon.addAccount("b", baseURL: stage.upstream.baseURL, key: Stage.key("b"))
            stage.always("b", Self.offering("other"))
            #expect(eventually(5) { (try? stage.daemon.post("/v1/responses", Stage.body(stream: false, model: "other")).status) == 200 })
            // The wait is a second: of some tries at least one account comes within it.
            let served = try (0..<8).contains { n in
                let client = try stage.daemon.connect()
                try client.post("/v1/responses", Stage.body(stream: false, model: "gpt-new\(n)"))
                #expect(stage.upstream.wait { stage.requests("b").contains { $0.json["model"] as? String == "gpt-new\(n)" } })
                #expect(try stage.daemon.run("accounts", "set", "a", "--models", "gpt-new\(n)").isGood)
                return try client.answer().status == 200
            }
            #expect(served)
        }

        /// An upstream whose list does not come keeps no client waiting for near names longer than a second, also when another one has left meanwhile.
        @Test func noListForNearNames() throws {
            let stage = try Stage("a")
            let gate = Gate()
            defer { gate.open() }
            stage.always("a", Self.offering("other"))
            stage.upstream.always(path: "/v1/models", .silence(gate))
            let impatient = try HTTPConnection(stage.daemon.address)
            try impatient.send("POST", "/v1/responses", body: Array(Stage.body(stream: true, model: "nowhere").utf8))
            #expect(stage.upstream.wait(requests: 2), "the turn, and then the list")
            impatient.close()
            let start = Date()
            let answer = try stage.daemon.post("/v1/responses", Stage.body(stream: true, model: "nowhere"))
            #expect(answer.status == 404 && answer.errorCode == "model_not_found")
            #expect((0.5...4).contains(Date().timeIntervalSince(start)))
            #expect(
                try eventually(5) { try stage.daemon.records().compactMap { $0["status"] as? Int }.sorted() == [404, 404] },
                "each has its record")
        }

        /// A login that may not use a model is refused in its upstream's form, and its client reads that in its own.
        @Test func modelThatALoginLacks() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            try daemon.importAccount("login", baseURL: upstream.chatGPTBaseURL, token: "t", accountID: "acc")
            upstream.always(
                "t", .status(400, "{\"detail\":\"The 'gpt-9' model is not supported when using Codex with a ChatGPT account.\"}"))
            upstream.always(
                path: "/backend-api/codex/models", .status(200, "{\"models\":[{\"slug\":\"gpt-5\"},{\"slug\":\"gpt-5.4-codex\"}]}"))
            try daemon.start()
            for route in ["/v1/responses", "/v1/chat/completions", "/backend-api/codex/responses"] {
                let chat = "{\"model\":\"gpt-9\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}"
                let body = route.hasSuffix("completions") ? chat : Stage.body(stream: true, model: "gpt-9")
                let answer = try daemon.post(route, body)
                #expect(answer.status == 404 && answer.errorCode == "model_not_found", "\(route): \(answer.text)")
                #expect(answer.text.contains("Did you mean gpt-5?") && answer.text.contains("not supported when using Codex"))
            }
        }

        /// A list is asked for anew with the etag of the one that is known, and stands when the upstream says that it has not changed.
        @Test func unchangedList() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_MODEL_LIST_SECONDS": "0.001"])
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            upstream.always(
                path: "/v1/models",
                .chosen { request in
                    switch request.header("if-none-match") {
                    case nil: .status(200, Canned.models("m1"), headers: ["ETag": "W/\"1\""])
                    case "W/\"1\"": .status(304, "")
                    default: .status(500, "")
                    }
                })
            // What is no entity tag never comes back.
            let tags = ["", "x, \"y\"", "\"\"\"", "W/", "\"" + String(repeating: "x", count: 300) + "\""]
            for (i, tag) in tags.enumerated() {
                try daemon.addAccount("bad\(i)", baseURL: upstream.baseURL, key: Stage.key("bad\(i)"))
                upstream.always(
                    path: "/v1/models", bearer: Stage.key("bad\(i)"),
                    .chosen { request in
                        request.header("if-none-match") == nil
                            ? .status(200, Canned.models("m1"), headers: ["ETag": tag]) : .status(304, "")
                    })
            }
            try daemon.start(workers: 1)
            #expect(
                try eventually(5) {
                    let ids = (try daemon.get("/v1/models").json["data"] as? [[String: Any]])?.compactMap { $0["id"] as? String }
                    return ids == ["m1"] && upstream.requests.count { $0.header("if-none-match") == "W/\"1\"" } >= 2
                })
            #expect(upstream.requests(Stage.key("a")).count { $0.header("if-none-match") == nil } == 1)
            for i in tags.indices {
                let asked = upstream.requests(Stage.key("bad\(i)"))
                #expect(asked.count >= 1 && asked.allSatisfy { $0.header("if-none-match") == nil }, "\(tags[i])")
            }
        }

        /// No such path: 404. The wrong method: 405 with Allow.
        @Test func unknownPaths() throws {
            let stage = try Stage("a")
            let missing = try stage.daemon.get("/v1/nothing")
            #expect(missing.status == 404 && missing.errorCode == "not_found")
            let wrong = try stage.daemon.get("/v1/responses")
            #expect(wrong.status == 405 && wrong.header("allow") == "POST")
        }

        /// A body that can't be a turn is refused here, with what is wrong in the message, and not sent.
        @Test(arguments: [
            ("", "empty"), ("{", "JSON"), ("[]", "object"), ("{\"input\":\"x\"}", "model"), ("{\"model\":5}", "model"),
            ("{\"model\":\"\"}", "model"), ("{\"model\":\"m\",\"stream\":\"yes\"}", "stream"), ("{\"model\":\"m\"}x", "JSON"),
        ]) func badBodies(_ body: String, _ word: String) throws {
            let stage = try Stage("a")
            let answer = try stage.daemon.post("/v1/responses", body)
            #expect(answer.status == 400)
            #expect(answer.errorCode == "invalid_request_error")
            #expect((answer.error["message"] as? String)?.contains(word) == true)
            #expect(stage.calls("a") == 0)
        }
    }

    /// Which fields pass, either way.
    @Suite struct Headers {
        /// Hop-by-hop fields, those that `Connection` names and those that tell of the client never reach the upstream; others do, once.
        @Test func towardsUpstream() throws {
            let stage = try Stage("a")
            let key = try stage.daemon.createKey("remote")
            #expect(
                try eventually(bound(1, debug: 3)) {
                    try stage.daemon.get("/v1/models", headers: [("Forwarded", "for=192.0.2.1"), ("Authorization", "Bearer \(key)")]).status
                        == 200
                })
            stage.upstream.forgetRequests()
            let answer = try stage.daemon.post(
                "/v1/responses", Stage.body(),
                headers: [
                    ("Connection", "keep-alive, X-Nominated"), ("X-Nominated", "1"), ("Keep-Alive", "timeout=5"), ("TE", "trailers"),
                    ("Trailer", "X-T"),
                    ("Proxy-Authorization", "Basic eDp5"), ("Proxy-Connection", "keep-alive"), ("Upgrade", "h2c"),
                    ("Forwarded", "for=192.0.2.1"),
                    ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Host", "h"), ("X-Forwarded-Whatever", "h"), ("X-Real-IP", "192.0.2.1"),
                    ("True-Client-IP", "192.0.2.1"), ("CF-Connecting-IP", "192.0.2.1"), ("CF-Ray", "1"), ("Authorization", "Bearer \(key)"),
                    ("chatgpt-account-id", "mine"), ("X-Codex-Installation-Id", "i"), ("X-Codex-LB-Required-Capability", "c"),
                    ("Cookie", "a=b"),
                    ("X-Stainless-Lang", "python"), ("X-OpenAI-Client-User-Agent", "x"), ("Accept-Encoding", "gzip"), ("X-Custom", "stays"),
                    ("OpenAI-Beta", "stays too"),
                ])
            #expect(answer.status == 200)
            let request = try #require(stage.requests("a").first)
            for name in [
                "connection", "x-nominated", "keep-alive", "te", "trailer", "proxy-authorization", "proxy-connection", "upgrade",
                "forwarded", "x-forwarded-for",
                "x-forwarded-host", "x-forwarded-whatever", "x-real-ip", "true-client-ip", "cf-connecting-ip", "cf-ray",
                "chatgpt-account-id",
                "x-codex-installation-id", "x-codex-lb-required-capability", "cookie", "x-stainless-lang", "x-openai-client-user-agent",
                "transfer-encoding",
            ] { #expect(request.header(name) == nil, "\(name) reached the upstream") }
            #expect(request.header("authorization") == "Bearer sk-up-a" && request.headerCount("authorization") == 1)
            #expect(request.header("host") == stage.upstream.host && request.headerCount("host") == 1)
            #expect(request.headerCount("content-length") == 1)
            #expect(request.header("accept-encoding") == "identity" && request.headerCount("accept-encoding") == 1)
            #expect(request.header("x-custom") == "stays")
            #expect(request.header("openai-beta") == "stays too")
            #expect(request.header("x-request-id")?.isEmpty == false)
            #expect(!request.headers.contains { $0.value.contains(key) }, "the client's key reached the upstream")
        }

        /// The same towards the client; framing fields are the proxy's own.
        @Test func towardsClient() throws {
            let stage = try Stage("a")
            stage.always(
                "a",
                .status(
                    200, Canned.response(),
                    headers: [
                        "Connection": "x-secret-hop", "X-Secret-Hop": "1", "Keep-Alive": "timeout=5", "Set-Cookie": "session=1",
                        "Upgrade": "h2c",
                        "OpenAI-Processing-Ms": "5", "X-RateLimit-Remaining-Requests": "9", "Strict-Transport-Security": "max-age=1",
                        "Alt-Svc": "h3",
                    ]))
            let answer = try stage.turn(stream: false)
            for name in ["x-secret-hop", "keep-alive", "set-cookie", "upgrade", "strict-transport-security", "alt-svc"] {
                #expect(answer.header(name) == nil, "\(name) reached the client")
            }
            #expect(answer.header("openai-processing-ms") == "5")
            #expect(answer.header("x-ratelimit-remaining-requests") == "9")
            #expect(answer.header("x-request-id") == "req-1")
            #expect(answer.headers.count { $0.name == "content-length" } == 1)
        }

        /// A request id is kept when it is usable and made when it isn't.
        @Test func requestID() throws {
            let stage = try Stage("a")
            #expect(try stage.turn("mine-1").header("x-request-id") == "mine-1")
            let made = try stage.daemon.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", String(repeating: "x", count: 500))])
            let id = try #require(made.header("x-request-id"))
            #expect(id.hasPrefix("req_") && id.utf8.count <= 128)
        }
    }
}
