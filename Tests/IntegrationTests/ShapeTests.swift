import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Goal: answers as real upstreams send them, in whatever coding, with whatever beginning and end, are read, passed on and accounted for.
    /// docs/upstreams.md has the tables; each row is one here.
    @Suite struct Shapes {
        // MARK: Content codings

        /// Packs with other programs' implementations.
        static func packed(_ bytes: [UInt8], _ coding: String) throws -> [UInt8] {
            let file = NSTemporaryDirectory() + "clbpack." + UUID().uuidString
            defer { for name in [file, file + ".out"] { try? FileManager.default.removeItem(atPath: name) } }  // nothing to do about it
            try Data(bytes).write(to: URL(fileURLWithPath: file))
            let child: Child
            switch coding {
            case "zstd": child = try Child("/usr/bin/zstd", ["-q", "-f", file, "-o", file + ".out"], environment: [:])
            case "gzip", "deflate":
                let script =
                    "import sys,zlib\nc=zlib.compressobj(6,8,int(sys.argv[3]))\nd=open(sys.argv[1],'rb').read()\nopen(sys.argv[2],'wb').write(c.compress(d)+c.flush())"
                child = try Child(
                    "/usr/bin/python3", ["-c", script, file, file + ".out", coding == "gzip" ? "31" : "15"], environment: [:])
            default: return bytes.reversed()  // nobody here reads it
            }
            guard child.wait(30) == .code(0) else { throw HarnessError("packing with \(coding)") }
            return [UInt8](try Data(contentsOf: URL(fileURLWithPath: file + ".out")))
        }

        private static func answer(_ status: Int, _ type: String, _ coding: String, _ body: [UInt8], more: String = "") -> Behaviour {
            .raw(
                Array(
                    "HTTP/1.1 \(status) Scripted\r\nContent-Type: \(type)\r\nContent-Encoding: \(coding)\r\nContent-Length: \(body.count)\r\n\(more)\r\n"
                        .utf8) + body, thenEnd: false)
        }

        private static let events = Array(Canned.stream.map(Behaviour.event).joined().utf8)
        private static let chatEvents = Array(
            [Canned.chatChunk("Hello"), Canned.chatChunk("", finish: "\"stop\""), Canned.chatUsageChunk, "[DONE]"].map(Behaviour.event)
                .joined().utf8)

        /// Packed answers that nobody asked for, of every route.
        @Test(arguments: ["gzip", "deflate", "zstd"]) func packedAnswers(_ coding: String) throws {
            let stage = try Stage("a")
            stage.script(
                "a", Self.answer(200, "text/event-stream", coding, try Self.packed(Self.events, coding)),
                Self.answer(200, "application/json", coding, try Self.packed(Array(Canned.response().utf8), coding)),
                Self.answer(200, "text/event-stream", coding, try Self.packed(Self.chatEvents, coding)))
            let streamed = try stage.turn("streamed")
            #expect(streamed.types.last == "response.completed" && streamed.header("content-encoding") == nil)
            let whole = try stage.turn("whole", stream: false)
            #expect(whole.json["id"] as? String == "resp_fake" && whole.header("content-encoding") == nil)
            let chat = try stage.daemon.post(
                "/v1/chat/completions", Stage.chat(stream: true), headers: [("X-Request-Id", "chat"), ("Accept-Encoding", "gzip, br")])
            #expect(chat.text.contains("Hello") && chat.text.hasSuffix("data: [DONE]\n\n") && chat.header("content-encoding") == nil)
            for id in ["streamed", "whole", "chat"] {
                let record = try stage.daemon.record(id)
                #expect(record["input_tokens"] as? Int == 100 && record["error_code"] as? String ?? "" == "", "\(id)")
            }
            #expect(stage.requests("a").allSatisfy { $0.header("accept-encoding") == "identity" }, "and it was asked not to")
            stage.upstream.always(
                path: "/v1/models", Self.answer(200, "application/json", coding, try Self.packed(Array(Canned.models("m-1").utf8), coding)))
            #expect(try stage.daemon.get("/v1/models").text.contains("m-1"))
        }

        /// The waiting time of a packed refusal is honoured.
        @Test(arguments: ["gzip", "deflate", "zstd"]) func packedRefusal(_ coding: String) throws {
            let stage = try Stage("a")
            let body = Canned.error(code: "usage_limit_reached", type: "usage_limit_reached", more: "\"resets_in_seconds\":4000")
            stage.always("a", Self.answer(429, "application/json", coding, try Self.packed(Array(body.utf8), coding)))
            let answer = try stage.turn("limited", stream: false)
            #expect(answer.status == 429 && answer.errorCode == "usage_limit_reached" && answer.header("content-encoding") == nil)
            #expect(eventually(5) { stage.daemon.log.contains("seconds=4000") || stage.daemon.log.contains("seconds=3999") })
        }

        /// A coding that isn't read here: a success fails clearly, an error status still counts.
        @Test func unreadableCoding() throws {
            let stage = try Stage("a", "b")
            let bytes = try Self.packed(Array(Canned.response().utf8), "br")
            for name in ["a", "b"] { stage.script(name, Self.answer(429, "application/json", "br", bytes)) }
            #expect(try stage.turn("limited", stream: false).status == 429)
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1, "it went on to the next account")
            for name in ["a", "b"] {
                #expect(try stage.daemon.run("accounts", "pause", name).isGood)
                #expect(try stage.daemon.run("accounts", "resume", name).isGood)
                stage.always(name, Self.answer(200, "application/json", "br", bytes))
            }
            #expect(try eventually(5) { try stage.isAvailable("a") })
            let answer = try stage.turn("unreadable", stream: false)
            #expect(answer.status == 502 && (answer.error["message"] as? String)?.contains("\"br\"") == true, "\(answer.text)")
            #expect(try stage.daemon.record("unreadable")["attempts"] as? Int == 1, "the work is done: it is not asked for again")
        }

        /// Packed data that is broken or ends early is no whole answer.
        @Test(arguments: ["gzip", "deflate", "zstd"]) func brokenPackedAnswer(_ coding: String) throws {
            let stage = try Stage("a")
            let packed = try Self.packed(Self.events, coding)
            for (id, body) in [
                ("cut", Array(packed.prefix(packed.count / 2))),
                ("broken", Array(packed.prefix(40)) + Array(packed.dropFirst(40).reversed())),
            ] {
                stage.script("a", Self.answer(200, "text/event-stream", coding, body))
                let answer = try stage.turn(id)
                #expect(answer.types.last == "response.failed" || answer.status == 502, "\(id): \(answer.text)")
                #expect(try stage.daemon.record(id)["error_code"] as? String ?? "" != "")
            }
            #expect(stage.daemon.log.contains("illegal") == false)
        }

        /// Eighty kilobytes that hold eighty megabytes pass at the pace of their reader.
        @Test(arguments: ["gzip", "zstd"]) func packedMuch(_ coding: String) throws {
            let stage = try Stage("a")
            let worker = try #require(stage.daemon.pid("worker"))
            func peak() -> Int { statusKilobytes(worker, "VmHWM") }
            #expect(try stage.turn("warm").types.last == "response.completed")
            let before = peak()
            let delta = Behaviour.event(Canned.delta(String(repeating: "y", count: 1 << 16)))
            let body = Behaviour.event(Canned.created()) + String(repeating: delta, count: 1280) + Behaviour.event(Canned.completed())
            stage.script("a", Self.answer(200, "text/event-stream", coding, try Self.packed(Array(body.utf8), coding)))
            let client = try HTTPConnection(stage.daemon.address, receiveBuffer: 65536)
            try client.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "much")])
            #expect(try client.head().status == 200)
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 > 0 }, "it waits for its reader")
            #expect(try client.body(60).count == body.utf8.count)
            #expect(before > 0 && peak() - before < 32 * 1024, "KiB")
            #expect(try stage.daemon.record("much")["input_tokens"] as? Int == 100)
        }

        /// Packed data that gives megabytes of nothing, in several layers, for answers that no client slows down: others are served meanwhile.
        @Test(arguments: ["assembled", "left"]) func packedNothing(_ how: String) throws {
            let stage = try Stage("b")
            try stage.daemon.importAccount("login", baseURL: stage.upstream.chatGPTBaseURL, token: "access-token", accountID: "acc")
            #expect(try stage.daemon.run("accounts", "pause", "b").isGood)
            #expect(try eventually(5) { try stage.isAvailable("login") })
            let worker = try #require(stage.daemon.pid("worker"))
            let comments = [UInt8](String(repeating: ": " + String(repeating: "x", count: 60) + "\n\n", count: 1 << 20).utf8)
            let twice = try Self.packed(try Self.packed(comments, "gzip"), "gzip")
            stage.upstream.always("access-token", Self.answer(200, "text/event-stream", "gzip, gzip", twice))
            let client = try stage.daemon.connect()
            try client.post("/v1/responses", Stage.body(stream: how == "left"), headers: [("X-Request-Id", "bomb")])
            #expect(stage.upstream.wait { stage.upstream.calls("access-token") >= 1 })
            if how == "left" { client.close() }
            var worst = 0.0
            for _ in 0..<100 {
                let begin = Date()
                #expect(try stage.daemon.get("/health/live").status == 200)
                worst = max(worst, Date().timeIntervalSince(begin))
            }
            #expect(worst < bound(0.3, debug: 2), "\(worst) s")
            _ = try stage.daemon.record("bomb", seconds: 20)
            #expect(stage.daemon.pid("worker") == worker)
        }

        // MARK: Failures in the middle

        /// What is told of an account after the answer has begun counts all the same, though nothing is failed over.
        @Test(arguments: ["usage_limit_reached", "token_expired"]) func lateFailurePenalises(_ code: String) throws {
            let stage = try Stage("a", "b")
            #expect(try stage.daemon.run("accounts", "pause", "b").isGood)
            #expect(try eventually(5) { try !stage.isAvailable("b") })
            stage.script("a", .events([Canned.created(), Canned.itemAdded, Canned.delta("x"), Canned.failed(code)]))
            #expect(try stage.turn("late").failedCode == code)
            #expect(stage.calls("a") == 1, "what was worked on is not asked for again")
            #expect(try stage.daemon.run("accounts", "resume", "b").isGood)
            #expect(try eventually(5) { try stage.isAvailable("b") })
            for i in 0..<4 { #expect(try stage.turn("after-\(i)").types.last == "response.completed") }
            #expect(stage.calls("a") == 1 && stage.calls("b") == 4)
        }

        /// Work that was done is not bought again, also where the client has seen nothing of it yet.
        @Test func assembledWorkIsNotRepeated() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            for (name, token) in [("l1", "t1"), ("l2", "t2")] {
                try daemon.importAccount(name, baseURL: upstream.chatGPTBaseURL, token: token, accountID: name)
                upstream.always(token, .events([Canned.created(), Canned.delta("x"), Canned.failed("rate_limit_exceeded")]))
            }
            let stage = Stage(upstream, try daemon.start())
            let answer = try stage.turn("once", stream: false)
            #expect(answer.status == 429 && upstream.calls("t1") + upstream.calls("t2") == 1, "\(answer.text)")
            #expect(try daemon.record("once")["attempts"] as? Int == 1)
        }

        /// A refusal that was for the old key does not hit the new one.
        @Test func lateRefusalOfAnOldKey() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.script(
                "a",
                Behaviour(steps: [
                    .gate(gate),
                    .bytes(Behaviour.whole(429, Canned.error(code: "usage_limit_reached", more: "\"resets_in_seconds\":36000"), [:])),
                ]))
            let client = try stage.daemon.connect()
            try client.post("/v1/responses", Stage.body(stream: false))
            #expect(stage.upstream.wait(requests: 1))
            #expect(
                try stage.daemon.run(
                    "accounts", "add", "a", "--replace", "--base-url", stage.upstream.baseURL, "--key-file", "-", input: "new\n"
                ).isGood)
            #expect(try eventually(5) { try stage.turn(stream: false).status == 200 && stage.upstream.calls("new") > 0 })
            gate.open()
            #expect(try client.answer().status == 429)
            #expect(try stage.turn(stream: false).status == 200)
        }

        /// One reader of failures, whatever form and place: the client and the record get their code.
        @Test(
            arguments: [
                (
                    "/v1/responses",
                    "event: error\ndata: {\"type\":\"invalid_request_error\",\"code\":\"context_length_exceeded\",\"message\":\"m\"}\n\n",
                    "context_length_exceeded"
                ),
                (
                    "/v1/responses", "data: {\"type\":\"server_error\",\"error\":{\"code\":\"invalid_prompt\",\"message\":\"m\"}}\n\n",
                    "invalid_prompt"
                ),
                ("/v1/responses", "data: [{\"error\":{\"code\":\"invalid_prompt\",\"message\":\"m\"}}]\n\n", "invalid_prompt"),
                ("/v1/responses", "{\"error\":{\"code\":\"invalid_prompt\",\"message\":\"m\"}}", "invalid_prompt"),
                (
                    "/v1/responses",
                    "data: {\"type\":\"error\",\"error\":{\"code\":400,\"type\":\"context_length_exceeded\",\"message\":\"m\"}}\n\n",
                    "context_length_exceeded"
                ),
                (
                    "/backend-api/codex/responses", "data: {\"type\":\"error\",\"code\":\"context_length_exceeded\",\"message\":\"m\"}\n\n",
                    "context_length_exceeded"
                ),
                (
                    "/v1/chat/completions",
                    "data: {\"object\":\"error\",\"message\":\"m\",\"code\":\"invalid_prompt\"}\n\ndata: [DONE]\n\n", "invalid_prompt"
                ),
                (
                    "/v1/chat/completions", "event: error\ndata: {\"message\":\"m\",\"code\":\"invalid_prompt\"}\n\ndata: [DONE]\n\n",
                    "invalid_prompt"
                ),
                ("/v1/chat/completions", "data: {\"detail\":\"broken\"}\n\ndata: [DONE]\n\n", "upstream_error"),
                ("/v1/chat/completions", "data: Internal Server Error\n\ndata: [DONE]\n\n", "upstream_error"),
                ("/v1/chat/completions", "data: [{\"error\":{\"code\":\"invalid_prompt\",\"message\":\"m\"}}]\n\n", "invalid_prompt"),
            ])
        func failureForms(_ path: String, _ body: String, _ code: String) throws {
            let stage = try Stage("a")
            stage.always("a", .raw(Behaviour.streamHead([:]) + Behaviour.chunk(body) + Behaviour.chunkEnd, thenEnd: false))
            let answer = try stage.daemon.post(
                path, path.hasSuffix("completions") ? Stage.chat(stream: true) : Stage.body(), headers: [("X-Request-Id", "form")])
            #expect(answer.text.contains(code), "\(answer.text)")
            if path.hasSuffix("responses"), answer.status == 200 { #expect(answer.failedCode == code, "\(answer.text)") }
            #expect(try stage.daemon.record("form")["error_code"] as? String == code)
            #expect(stage.calls("a") == 1)
        }

        /// What looks like a failure and is none.
        @Test func noFailure() throws {
            let stage = try Stage("a")
            func chunk(_ text: String, _ reason: String) -> String {
                "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"error\":false,\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\(text)\"},\"finish_reason\":\(reason)}]}\n\n"
            }
            stage.script(
                "a",
                .raw(
                    Behaviour.streamHead([:]) + Behaviour.chunk(chunk("Hel", "null") + chunk("lo", "\"stop\"") + "data: [DONE]\n\n")
                        + Behaviour.chunkEnd, thenEnd: false),
                .status(200, Canned.response().replacingOccurrences(of: "\"error\":null", with: "\"error\":{}")))
            let chat = try stage.daemon.post("/v1/chat/completions", Stage.chat(stream: true), headers: [("X-Request-Id", "chat")])
            #expect(chat.text.contains("lo") && chat.text.hasSuffix("[DONE]\n\n"))
            #expect(try stage.turn("whole", stream: false).status == 200)
            #expect(try stage.daemon.record("chat")["error_code"] as? String == "usage_estimated")
            #expect(try stage.daemon.record("whole")["error_code"] as? String ?? "" == "")
        }

        /// A JSON answer where a stream was asked for, at once or after the head has gone out, is told as that stream.
        @Test(arguments: ["/v1/responses", "/v1/chat/completions"], [false, true]) func jsonForAStream(_ path: String, _ isLate: Bool)
            throws
        {
            let stage = try Stage("a", "b")
            let isChat = path.hasSuffix("completions")
            let (good, body) = (isChat ? Canned.chat : Canned.response(), isChat ? Stage.chat(stream: true) : Stage.body())
            func answer(_ json: String, _ type: String = "application/json") -> Behaviour {
                let head = Array("HTTP/1.1 200 OK\r\nContent-Type: \(type)\r\nContent-Length: \(json.utf8.count)\r\n\r\n".utf8)
                let gate = Gate()
                if !isLate { gate.open() }
                DispatchQueue.global().asyncAfter(deadline: .now() + 1.2) { gate.open() }  // longer than what is held back
                return Behaviour(steps: [.bytes(head), .gate(gate), .bytes(Array(json.utf8))])
            }
            for type in ["application/json", "text/html"] {
                for name in ["a", "b"] { stage.always(name, answer(good, type)) }
                let told = try stage.daemon.post(path, body, headers: [("X-Request-Id", "good-\(type.suffix(4))")])
                #expect(told.header("content-type")?.hasPrefix("text/event-stream") == true && told.text.contains("Hello"), "\(told.text)")
                #expect(isChat ? told.text.hasSuffix("data: [DONE]\n\n") : told.types == ["response.created", "response.completed"])
                let record = try stage.daemon.record("good-\(type.suffix(4))")
                #expect(record["input_tokens"] as? Int == 100 && record["error_code"] as? String ?? "" == "")
            }
            for name in ["a", "b"] { stage.always(name, answer(Canned.error(code: "rate_limit_exceeded"))) }
            let before = stage.calls("a") + stage.calls("b")
            let failed = try stage.daemon.post(path, body, headers: [("X-Request-Id", "limited")])
            #expect(failed.text.contains("rate_limit_exceeded"), "\(failed.text)")
            #expect(stage.calls("a") + stage.calls("b") == before + (isLate ? 1 : 2), "before anything was told another account is tried")
        }

        // MARK: Beginnings and ends

        struct Row: Sendable, CustomTestStringConvertible {
            var name: String
            var path = "/v1/chat/completions"
            var type = "Content-Type: text/event-stream\r\n"
            var body: String
            /// Of the record; nil: none.
            var tokens: Int? = 100
            var code = ""
            /// What the client gets, beside what it must not.
            var has: [String] = []
            var hasNot: [String] = []
            var testDescription: String { name }
        }

        private static let text = "data: " + Canned.chatChunk("Hello") + "\n\n"
        private static let finish = "data: " + Canned.chatChunk("", finish: "\"stop\"") + "\n\n"
        private static let usage = "data: " + Canned.chatUsageChunk + "\n\n"
        private static let created = Behaviour.event(Canned.created())
        private static let delta = Behaviour.event(Canned.delta("Hello"))
        private static let completed = Behaviour.event(Canned.completed())
        private static let oneDone = ["Hello", "data: [DONE]\n\n"]

        static let rows = [
            Row(name: "chat: all of it", body: text + finish + usage + "data: [DONE]\n\n", has: oneDone),
            Row(name: "chat: [DONE] without its empty line", body: text + finish + usage + "data: [DONE]", has: oneDone),
            Row(name: "chat: [DONE] with one line end", body: text + finish + usage + "data: [DONE]\n", has: oneDone),
            Row(name: "chat: [DONE] with space around", body: text + finish + usage + "data:  [DONE] \n\n", has: ["Hello", "[DONE]"]),
            Row(name: "chat: [DONE] without space", body: text + finish + usage + "data:[DONE]\n\n", has: ["Hello", "[DONE]"]),
            Row(name: "chat: no [DONE]", body: text + finish + usage, has: oneDone),
            Row(name: "chat: no usage, no [DONE]", body: text + finish, tokens: nil, code: "usage_estimated", has: oneDone),
            Row(
                name: "chat: usage beside the reason",
                body: text + "data: " + Canned.chatChunk("", finish: "\"stop\"", usage: Canned.chatUsage) + "\n\n", has: oneDone),
            Row(
                name: "chat: usage over several lines",
                body: text + finish + "data: {\"choices\":[],\ndata: \"usage\":\(Canned.chatUsage)}\n\ndata: [DONE]\n\n", has: oneDone),
            Row(
                name: "chat: usage with a fraction of zero",
                body: text + finish + usage.replacingOccurrences(of: "_tokens\":100", with: "_tokens\":100.0") + "data: [DONE]\n\n",
                has: oneDone),
            Row(name: "chat: no type", type: "", body: text + finish + usage + "data: [DONE]\n\n", has: oneDone),
            Row(
                name: "chat: plain type", type: "Content-Type: text/plain\r\n", body: text + finish + usage + "data: [DONE]\n\n",
                has: oneDone),
            Row(
                name: "chat: JSON's type", type: "Content-Type: application/json\r\n",
                body: "\n" + text + finish + usage + "data: [DONE]\n\n", has: oneDone),
            Row(name: "chat: byte order mark", type: "", body: "\u{FEFF}" + text + finish + usage + "data: [DONE]\n\n", has: oneDone),
            Row(
                name: "chat: cut with empty reasons",
                body: text.replacingOccurrences(of: "\"finish_reason\":null", with: "\"finish_reason\":\"\""), tokens: 0,
                code: "upstream_stream_truncated", has: ["upstream_stream_truncated"]),
            Row(
                name: "chat: one of two choices ended",
                body: text + text.replacingOccurrences(of: "\"index\":0", with: "\"index\":1") + finish,
                tokens: 0, code: "upstream_stream_truncated", has: ["upstream_stream_truncated"]),
            Row(
                name: "chat: cut with usage in each chunk", body: "data: " + Canned.chatChunk("Hello", usage: Canned.chatUsage) + "\n\n",
                code: "upstream_stream_truncated", has: ["Hello", "upstream_stream_truncated"]),
            Row(name: "chat: cut", body: text, tokens: 0, code: "upstream_stream_truncated", has: ["Hello", "upstream_stream_truncated"]),
            Row(
                name: "chat: cut in an event", body: text + "data: {\"choices\":[{\"ind", tokens: 0, code: "upstream_stream_truncated",
                has: ["Hello", "upstream_stream_truncated"]),
            Row(
                name: "chat: error behind text, then the end",
                body: text + "data: {\"error\":{\"message\":\"m\",\"code\":\"server_error\"}}\n\n",
                tokens: 0, code: "server_error", has: ["Hello", "server_error"], hasNot: ["truncated"]),
            Row(
                name: "chat: error behind text, then [DONE]",
                body: text + "data: {\"error\":{\"message\":\"m\",\"code\":\"server_error\"}}\n\ndata: [DONE]\n\n", tokens: 0,
                code: "server_error", has: ["Hello", "server_error", "[DONE]"], hasNot: ["truncated"]),
            Row(
                name: "responses: all of it", path: "/v1/responses", body: created + delta + completed,
                has: ["Hello", "response.completed"]),
            Row(
                name: "responses: no empty line at the end", path: "/v1/responses",
                body: created + delta + completed.trimmingCharacters(in: .newlines), has: ["Hello", "response.completed"]),
            Row(
                name: "responses: [DONE] behind it", path: "/v1/responses", body: created + delta + completed + "data: [DONE]\n\n",
                has: ["[DONE]"]),
            Row(
                name: "responses: no type", path: "/v1/responses", type: "", body: created + delta + completed, has: ["Hello"],
                hasNot: ["response.failed"]),
            Row(
                name: "responses: type in the event line alone", path: "/v1/responses",
                body: created + delta + completed.replacingOccurrences(of: "{\"type\":\"response.completed\",", with: "{"), has: ["Hello"],
                hasNot: ["response.failed"]),
            Row(
                name: "responses: cut in its last event", path: "/v1/responses", body: created + delta + String(completed.dropLast(20)),
                tokens: 0,
                code: "upstream_stream_truncated", has: ["Hello", "response.failed"]),
            Row(
                name: "responses: error and then failed", path: "/v1/responses",
                body: created + delta + Behaviour.event(Canned.errorEvent("server_error")) + Behaviour.event(Canned.failed("server_error")),
                tokens: 0, code: "server_error", has: ["response.failed"]),
            Row(
                name: "codex: error and then failed", path: "/backend-api/codex/responses",
                body: created + delta + Behaviour.event(Canned.errorEvent("server_error")) + Behaviour.event(Canned.failed("server_error")),
                tokens: 0, code: "server_error"),
        ]

        /// Each in a body that is chunked and one that ends with its connection.
        @Test(arguments: [true, false]) func ends(_ isChunked: Bool) throws {
            let stage = try Stage("a")
            for (i, row) in Self.rows.enumerated() {
                let head = "HTTP/1.1 200 OK\r\n\(row.type)"
                let bytes =
                    isChunked
                    ? Array((head + "Transfer-Encoding: chunked\r\n\r\n").utf8) + Behaviour.chunk(row.body) + Behaviour.chunkEnd
                    : Array((head + "Connection: close\r\n\r\n" + row.body).utf8)
                stage.script("a", .raw(bytes, thenEnd: !isChunked))
                let body = row.path.hasSuffix("completions") ? Stage.chat(stream: true) : Stage.body()
                let answer = try stage.daemon.post(row.path, body, headers: [("X-Request-Id", "row-\(i)")])
                #expect(answer.status == 200 && answer.isWhole, "\(row.name)")
                #expect(answer.header("content-type")?.hasPrefix("text/event-stream") == true, "\(row.name)")
                for text in row.has { #expect(answer.text.contains(text), "\(row.name): \(answer.text)") }
                for text in row.hasNot { #expect(!answer.text.contains(text), "\(row.name): \(answer.text)") }
                #expect(answer.text.components(separatedBy: "[DONE]").count <= 2, "\(row.name): told once")
                let ends = ["response.completed", "response.failed", "error"].map { "event: \($0)\n" }.reduce(0) {
                    $0 + answer.text.components(separatedBy: $1).count - 1
                }
                #expect(row.path.hasSuffix("completions") || ends == 1, "\(row.name): \(answer.text)")
                let record = try stage.daemon.record("row-\(i)")
                #expect(record["error_code"] as? String ?? "" == row.code, "\(row.name)")
                if let tokens = row.tokens { #expect(record["input_tokens"] as? Int == tokens, "\(row.name)") }
            }
        }

        /// What comes before `response.created` is no answer yet: it is held with it, and another account may still be tried.
        @Test(arguments: [
            "event: ping\n\n", "id: 7\n\n", "retry: 3000\n\n", ": hello\n\n", "event: ping\ndata: {\"type\":\"ping\"}\n\n",
            "event: keepalive\ndata: {}\n\n", "data: {\"type\":\"keepalive\",\"sequence_number\":0}\n\n",
        ]) func beforeTheBeginning(_ frame: String) throws {
            let stage = try Stage("a")
            stage.script(
                "a",
                .raw(
                    Behaviour.streamHead([:]) + Behaviour.chunk(frame + Self.created + Self.delta + Self.completed) + Behaviour.chunkEnd,
                    thenEnd: false))
            let answer = try stage.turn("first")
            #expect(answer.types.count { $0 == "response.created" } == 1, "\(answer.text)")
            #expect(answer.json(of: "response.created")?["id"] as? String == "resp_fake")
            if !frame.contains("data:"), !frame.hasPrefix(":") { #expect(!answer.text.contains(frame), "it is no event") }
            let two = try Stage("a", "b")
            for name in ["a", "b"] {
                two.script(
                    name,
                    .raw(
                        Behaviour.streamHead([:]) + Behaviour.chunk(frame + Behaviour.event(Canned.failed("rate_limit_exceeded")))
                            + Behaviour.chunkEnd, thenEnd: false))
            }
            _ = try two.turn("both")
            #expect(two.calls("a") == 1 && two.calls("b") == 1)
        }

        /// A stream that is silent after its head, or after `response.created`, is told as open within the hold-back time, and kept alive.
        @Test(
            arguments: ["key", "login"].flatMap { kind in
                ["/v1/responses", "/v1/chat/completions", "/backend-api/codex/responses"].map { "\(kind) \($0)" }
            }, [false, true])
        func silence(_ way: String, _ isCreated: Bool) throws {
            let (kind, path) = (String(way.split(separator: " ")[0]), String(way.split(separator: " ")[1]))
            let stage = try Stage(environment: ["CODEX_LB_SSE_KEEPALIVE_INTERVAL_SECONDS": "1"])
            let bearer = kind == "key" ? Stage.key("a") : "access-token"
            if kind == "key" {
                try stage.daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: bearer)
            } else {
                try stage.daemon.importAccount("a", baseURL: stage.upstream.chatGPTBaseURL, token: bearer, accountID: "acc")
            }
            #expect(try eventually(5) { try stage.isAvailable("a") })
            let isChat = path.hasSuffix("completions") && kind == "key"
            let (gate, start) = (Gate(), isChat ? [] : isCreated ? [Canned.created()] : [])
            let rest =
                isChat
                ? [Canned.chatChunk("Hello"), Canned.chatChunk("", finish: "\"stop\""), "[DONE]"]
                : (isCreated ? [] : [Canned.created()]) + [Canned.delta("Hello"), Canned.completed()]
            stage.upstream.always(bearer, .stall(start, gate, rest))
            let client = try stage.daemon.connect()
            try client.post(path, path.hasSuffix("completions") ? Stage.chat(stream: true) : Stage.body())
            let head = try client.head(3)
            #expect(head.status == 200 && head.header("content-type")?.hasPrefix("text/event-stream") == true)
            var comment = try client.block(4)
            if comment?.contains("response.created") == true { comment = try client.block(4) }
            #expect(comment?.hasPrefix(":") == true, "\(comment ?? "nothing")")
            gate.open()
            let text = String(decoding: try client.body(), as: UTF8.self)
            #expect(text.contains("Hello") && !text.contains("response.failed") && !text.contains("\"error\":{"), "\(text)")
            #expect(text.components(separatedBy: "event: response.created").count <= 2)
        }

        /// A page of HTML with 200 is nobody's answer.
        @Test func page() throws {
            let stage = try Stage("a")
            stage.always("a", .status(200, "<html><title>Sign in</title></html>", headers: ["Content-Type": "text/html; charset=utf-8"]))
            for stream in [true, false] {
                let answer = try stage.turn("page-\(stream)", stream: stream)
                #expect(answer.status == 502 && answer.errorCode == "upstream_unavailable", "\(answer.text)")
            }
        }

        /// A space before a field's colon is mended (RFC 9112 §5.1), and the request id is the one that the client is told.
        @Test func heads() throws {
            let stage = try Stage("a")
            stage.always(
                "a",
                .raw(
                    Array(
                        "HTTP/1.1 200 OK\r\nContent-Type : application/json\r\nX-Spaced \t: yes\r\nContent-Length :\(Canned.response().utf8.count)\r\n\r\n\(Canned.response())"
                            .utf8), thenEnd: false))
            let answer = try stage.turn("heads", stream: false)
            #expect(answer.status == 200 && answer.header("x-spaced") == "yes")
            let long = String(repeating: "i", count: 200)
            let other = try stage.turn(long, stream: false)
            let told = try #require(other.header("x-request-id"))
            #expect(told != long && stage.requests("a").last?.header("x-request-id") == told)
        }
    }
}

extension Answer {
    /// The `response` of the first event of a type.
    fileprivate func json(of type: String) -> [String: Any]? { events.first { $0.type == type }?.json["response"] as? [String: Any] }
}
