import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// HTTP/1.1 towards clients, as bytes.
    @Suite struct Wire {
        private static let json = "{\"model\":\"gpt-5.4\",\"input\":\"hi\",\"stream\":true}"

        private static func request(_ path: String = "/v1/responses", _ body: String = json, id: String = "req-1") -> String {
            HTTPConnection.head("POST", path, bodyCount: body.utf8.count, headers: [("X-Request-Id", id)]) + body
        }

        /// A request may come in any pieces.
        @Test func byteByByte() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            for byte in Self.request().utf8 { try connection.send([byte]) }
            #expect(try connection.answer().types.last == "response.completed")
        }

        /// A client that pipelines and never reads costs no more than its own limits, and nobody else notices.
        @Test func pipelinesAndNeverReads() throws {
            let stage = try Stage("a")
            let worker = try #require(stage.daemon.pid("worker"))
            func resident() -> Int { statusKilobytes(worker, "VmRSS") }
            _ = try stage.daemon.get("/metrics")
            let before = resident()
            #expect(before > 0)
            let connection = try HTTPConnection(stage.daemon.address, receiveBuffer: 4096)
            let requests = Array(String(repeating: "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", count: 2000).utf8)
            var sent = 0
            while sent < 10 << 20, (try? connection.send(requests, seconds: 1)) != nil { sent += requests.count }
            #expect(sent < 10 << 20, "it is read no further once its answers wait")
            #expect(try stage.turn().types.last == "response.completed")
            #expect(resident() - before < 16 * 1024, "KiB")
            connection.close()
        }

        /// Bodies beyond the instance's memory limit get 503 and when to come again; what fits is served.
        @Test func memoryLimit() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_MEMORY_LIMIT": "16M"])
            let large = "{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 20 << 20))\"}"
            for chunked in [false, true] {
                let connection = try stage.daemon.connect()
                let head = HTTPConnection.head(
                    "POST", "/v1/responses", bodyCount: chunked ? nil : large.utf8.count,
                    headers: chunked ? [("Transfer-Encoding", "chunked")] : [])
                try connection.send(head)
                let bytes = Array(large.utf8)
                try connection.send(chunked ? Array((String(bytes.count, radix: 16) + "\r\n").utf8) + bytes : bytes)
                let answer = try connection.answer()
                #expect(answer.status == 503 && answer.errorCode == "server_overloaded")
                #expect(answer.header("retry-after") != nil)
            }
            // Several that fit one by one do not fit together; the room comes back when they are gone.
            let part = Array(String(repeating: " ", count: 5 << 20).utf8)
            let held = try (0..<2).map { _ in
                let connection = try stage.daemon.connect()
                try connection.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: 8 << 20))
                try connection.send(part)
                return connection
            }
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 >= Double(2 * part.count) })
            let fits = "{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 4 << 20))\"}"
            #expect(try stage.daemon.post("/v1/responses", fits).status == 503)
            for connection in held { connection.close() }
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") == 0 })
            #expect(try stage.daemon.post("/v1/responses", fits).status == 200)
            #expect(stage.calls("a") == 1)
        }

        /// An answer larger than the memory limit passes; what is kept of it to read its usage is given up, and the record says so.
        @Test func answerBeyondTheMemoryLimit() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_MEMORY_LIMIT": "16M"])
            let worker = try #require(stage.daemon.pid("worker"))
            func peak() -> Int { statusKilobytes(worker, "VmHWM") }
            #expect(try stage.turn("warm", stream: false).status == 200)
            let before = peak()
            // The usage of an answer that is too large to keep is found at its end; without one there it is an estimate.
            let ends = [
                "\",\"output\":[],\"usage\":{\"input_tokens\":7,\"output_tokens\":3},\"metadata\":{\"usage\":\"no\"}}", "\",\"output\":[]}",
            ]
            for (id, end) in zip(["large", "silent"], ends) {
                let start = "{\"pad\":\""
                let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 1 << 20)
                let size = start.utf8.count + 48 * piece.count + end.utf8.count
                stage.always(
                    "a",
                    Behaviour(steps: [
                        .bytes(Array("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: \(size)\r\n\r\n\(start)".utf8)),
                        .times(48, piece), .bytes(Array(end.utf8)),
                    ]))
                let answer = try stage.turn(id, stream: false, seconds: 60)
                #expect(answer.status == 200 && answer.body.count == size)
                #expect(before > 0 && peak() - before < 40 * 1024, "KiB")
                let record = try stage.daemon.record(id)
                if id == "large" {
                    #expect(record["input_tokens"] as? Int == 7 && record["output_tokens"] as? Int == 3)
                } else {
                    #expect(record["error_code"] as? String == "usage_estimated" && record["output_tokens"] as? Int == size / 4)
                }
            }
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") == 0 })
        }

        /// What an answer can't do without, and has no room, ends it with 503 or its event: a long event, and the items of a login's answer.
        @Test func answerHasNoRoom() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_MEMORY_LIMIT": "16M"])
            stage.always("a", .hugeEvent(bytes: 12 << 20))
            #expect(try stage.turn("fits").types.last == "response.completed")
            let holder = try stage.daemon.connect()
            try holder.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: 8 << 20))
            try holder.send([UInt8](repeating: UInt8(ascii: " "), count: 7 << 20))
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 >= Double(7 << 20) })
            #expect(try stage.turn("large").failedCode == "server_overloaded")
            let broken = try stage.daemon.record("large")
            #expect(broken["error_code"] as? String == "server_overloaded_usage_estimated" && broken["input_tokens"] as? Int ?? 0 > 0)

            #expect(try stage.daemon.run("accounts", "pause", "a").isGood)
            try stage.daemon.importAccount("login", baseURL: stage.upstream.chatGPTBaseURL, token: "access-token", accountID: "acc")
            #expect(try eventually(5) { try stage.isAvailable("login") })
            let item = {
                "{\"type\":\"response.output_item.done\",\"item\":{\"type\":\"message\",\"text\":\"\(String(repeating: "x", count: $0))\"}}"
            }
            let items = { [Canned.created()] + Array(repeating: item(1 << 20), count: $0) + [Canned.completed(output: "")] }
            stage.upstream.always("access-token", .events(items(4)))
            let fits = try stage.turn("four", stream: false)
            #expect(fits.status == 200 && (fits.json["output"] as? [Any])?.count == 4)
            stage.upstream.always("access-token", .events(items(20)))
            let refused = try stage.turn("twenty", stream: false)
            #expect(refused.status == 503 && refused.errorCode == "server_overloaded")
            let streamed = try stage.turn("twenty-streamed")
            #expect(streamed.failedCode == "server_overloaded" && streamed.types.count { $0 == "response.output_item.done" } == 20)
            for id in ["twenty", "twenty-streamed"] {
                let record = try stage.daemon.record(id)
                #expect(record["error_code"] as? String == "server_overloaded" && record["output_tokens"] as? Int == 20)
            }
            holder.close()
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") == 0 })
        }

        /// Every answer has a date, in the one form that is sent (RFC 9110 §5.6.7), as Foundation reads it.
        @Test func dates() throws {
            let stage = try Stage("a")
            let format = DateFormatter()
            format.locale = Locale(identifier: "en_US_POSIX")
            format.timeZone = TimeZone(identifier: "GMT")
            format.dateFormat = "EEE, dd MMM yyyy HH:mm:ss 'GMT'"
            for answer in [
                try stage.turn(), try stage.daemon.get("/health/live"), try stage.daemon.get("/nowhere"),
                try stage.daemon.send("OPTIONS", "/v1/models"),
            ] {
                let date = answer.header("date").flatMap { format.date(from: $0) }
                #expect(date.map { abs($0.timeIntervalSinceNow) < 5 } == true, "\(answer.header("date") ?? "none")")
                #expect(answer.headers.count { $0.name == "date" } == 1)
            }
        }

        /// A connection serves one request after the other.
        @Test func keepAlive() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            for i in 0..<5 {
                try connection.send(Self.request(id: "req-\(i)"))
                let answer = try connection.answer()
                #expect(answer.types.last == "response.completed" && answer.header("x-request-id") == "req-\(i)")
            }
            #expect(Set(stage.requests("a").map(\.connection)).count == 1, "the upstream's connection is kept too")
        }

        /// Pipelined requests are answered in order, however long the first takes.
        @Test func pipelined() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.script("a", .stall([Canned.created()], gate, [Canned.completed()]))
            let connection = try stage.daemon.connect()
            try connection.send(
                Self.request(id: "req-1") + Self.request(id: "req-2")
                    + "GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: req-3\r\n\r\n" + Self.request(id: "req-4"))
            #expect(stage.upstream.wait(requests: 1))
            #expect(try connection.head().header("x-request-id") == "req-1")
            #expect(stage.calls("a") == 1, "the second request waits for the first answer")
            gate.open()
            _ = try connection.body()
            for i in 2...4 {
                let answer = try connection.answer()
                #expect(answer.status == 200 && answer.header("x-request-id") == "req-\(i)")
            }
        }

        /// Far more pipelined requests than are kept at once are all answered, in order.
        @Test func manyPipelined() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let count = 1500
            let all = Array(
                (0..<count).map {
                    "GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Pad: \(String(repeating: "x", count: 100))\r\nX-Request-Id: p-\($0)\r\n\r\n"
                }.joined().utf8)
            // The server stops reading while it can't write: both directions must move.
            var sent = 0
            for i in 0..<count {
                if sent < all.count {
                    let piece = Array(all[sent..<min(all.count, sent + 1000)])
                    try connection.send(piece)
                    sent += piece.count
                }
                let answer = try connection.answer()
                guard answer.header("x-request-id") == "p-\(i)" else {
                    Issue.record("answer \(i) is \(answer.header("x-request-id") ?? "none")")
                    return
                }
            }
            let turns = (0..<300).map { Self.request(id: "t-\($0)") }.joined()
            try connection.send(turns)
            for i in 0..<300 { #expect(try connection.answer().header("x-request-id") == "t-\(i)") }
            #expect(stage.calls("a") == 300)
        }

        /// The same of a client that sends them all, reads late, and meanwhile has sent its end or is drained.
        @Test(arguments: ["end", "stop"]) func manyPipelinedReadLate(_ how: String) throws {
            let stage = try Stage("a")
            let connection = try HTTPConnection(stage.daemon.address, receiveBuffer: 4096)
            let count = 800
            let get = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: p-"
            // The requests fit what the server keeps; their answers, about 8 MB, fit no queue.
            try connection.send((0..<count).map { get + "\($0)\r\n\r\n" }.joined())
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 > 0 }, "answers wait for the client")
            if how == "end" {
                connection.shutdownWrite()
                for _ in 0..<20 { _ = try stage.daemon.get("/health/live") }  // the end is in the loop's next look at it
            } else {
                try #require(stage.daemon.child).signal(SIGTERM)
                #expect(eventually(5) { (try? HTTPConnection(stage.daemon.address)) == nil })
            }
            var answered = 0
            while answered < count, let answer = try? connection.answer(), answer.header("x-request-id") == "p-\(answered)" {
                answered += 1
            }
            #expect(answered == count)
            #expect(connection.waitEnd())
        }

        /// A drain that comes to its deadline cuts what is open and begins nothing more of what waits behind it.
        @Test func deadlineEndsPipelines() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "1"])
            let gate = Gate()
            stage.always("a", .silence(gate))
            let connection = try stage.daemon.connect()
            try connection.send((0..<4).map { Self.request(id: "q-\($0)") }.joined())
            #expect(stage.upstream.wait(requests: 1))
            try #require(stage.daemon.child).signal(SIGTERM)
            let answer = try connection.answer(10)
            #expect(answer.header("x-request-id") == "q-0" && answer.text.contains("proxy_unavailable"))
            #expect(connection.waitEnd(5))
            #expect(try #require(stage.daemon.child).wait(15) == .code(0))
            #expect(stage.calls("a") == 1)
            #expect(try stage.daemon.records().compactMap { $0["request_id"] as? String } == ["q-0"])
            gate.open()
        }

        /// An empty line behind a request is none: it holds up no stop, and nobody is told that a request was late.
        @Test(arguments: ["\r\n", "\r", ""]) func blankBehindARequest(_ blank: String) throws {
            let stage = try Stage("a", environment: ["CODEX_LB_HEAD_TIMEOUT_SECONDS": "1"])
            let connection = try stage.daemon.connect()
            let gate = Gate()
            for behind in [false, true] {
                stage.script("a", .stall([Canned.created()], gate, [Canned.completed()]))
                try connection.send(Self.request(id: "blank") + (behind ? "" : blank))
                #expect(try connection.head().status == 200)
                if behind { try connection.send(blank) }
                gate.open()
                _ = try connection.body()
                #expect(connection.isSilent(1.6), "no 408")
                if blank == "\r" { try connection.send("\n") }
            }
            let last = Gate()
            stage.script("a", .stall([Canned.created()], last, [Canned.completed()]))
            try connection.send(Self.request(id: "last") + blank)
            #expect(try connection.head().status == 200)
            try #require(stage.daemon.child).signal(SIGTERM)
            #expect(eventually(5) { (try? HTTPConnection(stage.daemon.address)) == nil })
            last.open()
            let start = Date()
            #expect(try String(decoding: connection.body(), as: UTF8.self).contains("response.completed"))
            #expect(try #require(stage.daemon.child).wait(15) == .code(0))
            #expect(Date().timeIntervalSince(start) < 5)
        }

        /// What a client has pipelined and a worker that drains has not read yet is answered too.
        @Test func unreadIsAnsweredInADrain() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.script("a", .stall([Canned.created()], gate, [Canned.completed()]))
            let connection = try stage.daemon.connect()
            let pad = String(repeating: "x", count: 1000)
            let gets = (0..<120).map { "GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Pad: \(pad)\r\nX-Request-Id: g-\($0)\r\n\r\n" }
            try connection.send(Self.request(id: "first"))
            #expect(try connection.head().status == 200)
            // So many that no more is read, up to the end of one of them; the others stay in the kernel.
            let read = gets[..<80].joined()
            try connection.send(read)
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 >= Double(read.utf8.count) })
            try connection.send(gets[80...].joined())
            try #require(stage.daemon.child).signal(SIGTERM)
            #expect(eventually(5) { (try? HTTPConnection(stage.daemon.address)) == nil })
            gate.open()
            _ = try connection.body()
            for i in 0..<120 { #expect(try connection.answer().header("x-request-id") == "g-\(i)") }
            #expect(connection.waitEnd())
        }

        /// A body that unpacks to more than there is room for is refused before it takes it.
        @Test func packedBodiesAndTheMemoryLimit() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_MEMORY_LIMIT": "16M"])
            let worker = try #require(stage.daemon.pid("worker"))
            func peak() -> Int { statusKilobytes(worker, "VmHWM") }
            let packed = try Shapes.packed(
                Array("{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 100 << 20))\"}".utf8), "gzip")
            let before = peak()
            let clients = try (0..<4).map { _ in
                let client = try stage.daemon.connect()
                try client.send("POST", "/v1/responses", body: packed, headers: [("Content-Encoding", "gzip")])
                return client
            }
            for client in clients {
                let answer = try client.answer(30)
                #expect(answer.status == 503 && answer.errorCode == "server_overloaded")
            }
            #expect(before > 0 && peak() - before < 40 * 1024, "KiB")
            let fits = try Shapes.packed(
                Array("{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 3 << 20))\"}".utf8), "gzip")
            let client = try stage.daemon.connect()
            try client.send("POST", "/v1/responses", body: fits, headers: [("Content-Encoding", "gzip")])
            #expect(try client.answer().status == 200)
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") == 0 })
        }

        /// What others only ask for does not break an answer that is on its way, nor cost it its usage.
        @Test func requestsGiveWayToAnswers() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_MEMORY_LIMIT": "16M"])
            let holders = try (0..<4).map { _ in
                let holder = try stage.daemon.connect()
                try holder.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: 4 << 20))
                try? holder.send([UInt8](repeating: UInt8(ascii: " "), count: 3_900_000), seconds: 2)  // one of them is refused
                return holder
            }
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") ?? 0 > Double(10 << 20) })
            let text = String(repeating: "y", count: 2 << 20)
            stage.always(
                "a",
                .events([Canned.created(), Canned.delta("x"), Canned.completed(output: "{\"type\":\"message\",\"text\":\"\(text)\"}")]))
            #expect(try stage.turn("streamed").types.last == "response.completed")
            stage.always("a", .status(200, Canned.response(output: "{\"type\":\"message\",\"text\":\"\(text)\"}")))
            #expect(try stage.turn("whole", stream: false).status == 200)
            for id in ["streamed", "whole"] {
                let record = try stage.daemon.record(id)
                #expect(record["input_tokens"] as? Int == 100 && record["error_code"] as? String ?? "" == "")
            }
            withExtendedLifetime(holders) {}
        }

        /// A body where none is expected is read away and not taken for a request.
        @Test func bodyOfGet() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let get = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
            try connection.send(get + "Content-Length: 5\r\n\r\nGET /" + get + "\r\n")
            #expect(try connection.answer().json["status"] as? String == "ok")
            #expect(try connection.answer().json["status"] as? String == "ok")
        }

        /// An upstream that answers before it has read the body: the client gets that answer.
        @Test func earlyAnswer() throws {
            let daemon = try Daemon()
            let listener = try PassedListener()
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:\(listener.port)/v1", key: "sk-up-a")
            try daemon.start()
            let client = try daemon.connect()
            let body = Array("{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 20_000_000))\"}".utf8)
            try client.send("POST", "/v1/responses", body: body)
            let upstream = try listener.accept()
            #expect(try upstream.waitBytes(1000))
            try upstream.send(Behaviour.whole(413, Canned.error(code: "too_big"), ["Connection": "close"]))
            upstream.shutdownWrite()
            let answer = try client.answer(10)
            #expect(answer.status == 413)
            #expect(answer.errorCode == "too_big")
        }

        /// `Expect: 100-continue` gets its interim answer before the body is sent.
        @Test func expectContinue() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send(
                HTTPConnection.head("POST", "/v1/responses", bodyCount: Self.json.utf8.count, headers: [("Expect", "100-continue")]))
            #expect(try connection.head().status == 100)
            try connection.send(Self.json)
            #expect(try connection.answer().types.last == "response.completed")
        }

        /// A body that would be refused is not asked for.
        @Test func expectContinueTooLarge() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send(
                HTTPConnection.head("POST", "/v1/chat/completions", bodyCount: 40 << 20, headers: [("Expect", "100-continue")]))
            #expect(try connection.head().status == 413)
        }

        /// A chunked body with extensions and trailers is the same body.
        @Test func chunkedBody() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let (first, second) = (Self.json.prefix(10), Self.json.dropFirst(10))
            try connection.send(
                "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\na;x=\"y\"\r\n\(first)\r\n"
                    + String(second.utf8.count, radix: 16) + "\r\n\(second)\r\n0\r\nX-T: 1\r\n\r\n")
            #expect(try connection.answer().types.last == "response.completed")
            let request = try #require(stage.requests("a").first)
            #expect(request.text == Self.json)
            #expect(request.header("content-length") == String(Self.json.utf8.count))
            #expect(request.header("x-t") == nil)
        }

        /// HTTP/1.0 gets an answer without chunks whose end is the connection's.
        @Test func http10() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send("POST /v1/responses HTTP/1.0\r\nContent-Length: \(Self.json.utf8.count)\r\n\r\n\(Self.json)")
            let answer = try connection.answer()
            #expect(answer.header("transfer-encoding") == nil)
            #expect(answer.types.last == "response.completed")
        }

        /// A body of no bytes is complete with its head, in both directions.
        @Test func emptyBodies() throws {
            let stage = try Stage("a")
            stage.always("a", .status(404, ""))
            let connection = try stage.daemon.connect()
            try connection.send("POST", "/v1/responses", body: [])
            #expect(try connection.answer(3).status == 400)
            try connection.send(Self.request())
            let answer = try connection.answer(3)
            #expect(answer.status == 404 && answer.body.isEmpty)
        }

        /// `Connection: close` is kept.
        @Test func connectionClose() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send("GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            #expect(try connection.answer().header("connection") == "close")
            #expect(connection.waitEnd(3))
        }

        /// HEAD has a head only.
        @Test func head() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send("HEAD /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            #expect(try connection.head().status == 200)
            #expect(try connection.answer().json["status"] as? String == "ok")
        }

        /// A half-closed client still gets its whole answer.
        @Test func halfClosed() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let connection = try stage.daemon.connect()
            try connection.send(Self.request())
            connection.shutdownWrite()
            #expect(try connection.head().status == 200)
            #expect(try connection.event()?.type == "response.created")
            gate.open()
            #expect(try connection.event()?.type == "response.output_text.delta")
            #expect(try connection.event()?.type == "response.completed")
            #expect(try connection.event() == nil)
            #expect(connection.waitEnd(3))
        }

        /// A head that is not complete in time: 408, however steadily its bytes drip.
        @Test func headTimeout() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_HEAD_TIMEOUT_SECONDS": "0.3"])
            let connection = try stage.daemon.connect()
            try connection.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            let start = Date()
            while Date().timeIntervalSince(start) < 5, connection.isSilent(0.05) { try connection.send("x") }
            let answer = try connection.answer()
            #expect(answer.status == 408)
            #expect(Date().timeIntervalSince(start) < 2)
            #expect(connection.waitEnd(5))
        }

        /// A body that makes no progress: 408.
        @Test func bodyTimeout() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_BODY_PROGRESS_TIMEOUT_SECONDS": "0.3"])
            let connection = try stage.daemon.connect()
            try connection.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: 1000) + "{")
            #expect(try connection.answer().status == 408)
            #expect(stage.calls("a") == 0)
        }

        /// A slow body that makes progress is waited for.
        @Test func slowBody() throws {
            // Its eleven pieces take twice as long as one may.
            let stage = try Stage("a", environment: ["CODEX_LB_BODY_PROGRESS_TIMEOUT_SECONDS": "1"])
            let connection = try stage.daemon.connect()
            let body = "{\"model\":\"gpt-5.4\",\"stream\":true,\"input\":\"" + String(repeating: "x", count: 200_000) + "\"}"
            try connection.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: body.utf8.count))
            let bytes = Array(body.utf8)
            for start in stride(from: 0, to: bytes.count, by: 20_000) {
                try connection.send(Array(bytes[start..<min(bytes.count, start + 20_000)]))
                if start + 20_000 < bytes.count { #expect(connection.isSilent(0.2)) }
            }
            #expect(try connection.answer().types.last == "response.completed")
        }

        /// An idle connection is closed after its time.
        @Test func idleTimeout() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_IDLE_TIMEOUT_SECONDS": "0.3"])
            let connection = try stage.daemon.connect()
            try connection.send(Self.request())
            _ = try connection.answer()
            #expect(connection.waitEnd(3))
        }

        /// Each limit has its status.
        @Test func limits() throws {
            let stage = try Stage("a")
            func status(_ bytes: String) throws -> Int {
                let connection = try stage.daemon.connect()
                try? connection.send(bytes)  // the answer may come and the connection end before all is sent
                return try connection.answer().status
            }
            #expect(try status("GET /\(String(repeating: "x", count: 9000)) HTTP/1.1\r\nHost: localhost\r\n\r\n") == 414)
            #expect(
                try status("GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: \(String(repeating: "x", count: 40_000))\r\n\r\n") == 431)
            let many = (0..<120).map { "X-\($0): 1\r\n" }.joined()
            #expect(try status("GET /health/live HTTP/1.1\r\nHost: localhost\r\n\(many)\r\n") == 431)
            #expect(try status(HTTPConnection.head("POST", "/v1/chat/completions", bodyCount: 33 << 20)) == 413)
            #expect(try status(HTTPConnection.head("POST", "/v1/responses", bodyCount: 129 << 20)) == 413)
            #expect(try status("GET /health/live HTTP/2.0\r\nHost: localhost\r\n\r\n") == 505)
            #expect(try status("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nExpect: tea\r\nContent-Length: 1\r\n\r\n") == 417)
        }

        /// A chunked body beyond the limit is refused as soon as it is too large, with a JSON error.
        @Test func chunkedTooLarge() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            try connection.send("POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            let piece = Behaviour.chunk([UInt8](repeating: 0x20, count: 1 << 20))
            for _ in 0..<40 {
                do { try connection.send(piece) } catch { break }
            }
            let answer = try connection.answer()
            #expect(answer.status == 413)
            #expect(answer.errorCode == "payload_too_large")
            #expect(stage.calls("a") == 0)
        }

        /// What two parsers could read differently is refused with 400, the connection ends, and nothing of it reaches an upstream.
        @Test func smuggling() throws {
            let stage = try Stage("a")
            let body = Self.json
            let n = body.utf8.count
            let chunked = String(n, radix: 16) + "\r\n" + body + "\r\n0\r\n\r\n"
            let line = "POST /v1/responses HTTP/1.1\r\n"
            let host = "Host: localhost\r\n"
            let refused: [(String, String)] = [
                ("length and chunked", line + host + "Content-Length: \(n)\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked),
                ("chunked and length", line + host + "Transfer-Encoding: chunked\r\nContent-Length: \(n)\r\n\r\n" + chunked),
                ("unknown coding", line + host + "Transfer-Encoding: xchunked\r\n\r\n" + chunked),
                ("chunked not last", line + host + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunked),
                ("chunked twice", line + host + "Transfer-Encoding: chunked, chunked\r\n\r\n" + chunked),
                ("two codings", line + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked),
                ("coding with a control", line + host + "Transfer-Encoding:\u{0B}chunked\r\n\r\n" + chunked),
                ("two lengths", line + host + "Content-Length: \(n)\r\nContent-Length: \(n + 1)\r\n\r\n" + body),
                ("list of lengths", line + host + "Content-Length: \(n), \(n + 1)\r\n\r\n" + body),
                ("signed length", line + host + "Content-Length: +\(n)\r\n\r\n" + body),
                ("negative length", line + host + "Content-Length: -1\r\n\r\n" + body),
                ("hexadecimal length", line + host + "Content-Length: 0x2e\r\n\r\n" + body),
                ("empty length", line + host + "Content-Length: \r\n\r\n" + body),
                ("huge length", line + host + "Content-Length: 99999999999999999999\r\n\r\n" + body),
                ("space before colon", line + host + "Content-Length : \(n)\r\n\r\n" + body),
                ("folded field", line + host + "X-A: 1\r\n  2\r\nContent-Length: \(n)\r\n\r\n" + body),
                ("field without colon", line + host + "nonsense\r\nContent-Length: \(n)\r\n\r\n" + body),
                ("bare LF", "POST /v1/responses HTTP/1.1\n" + "Host: localhost\nContent-Length: \(n)\n\n" + body),
                ("bare CR in value", line + host + "X-A: a\rb\r\nContent-Length: \(n)\r\n\r\n" + body),
                ("NUL in value", line + host + "X-A: a\0b\r\nContent-Length: \(n)\r\n\r\n" + body),
                ("no Host", line + "Content-Length: \(n)\r\n\r\n" + body),
                ("two Hosts", line + host + "Host: other\r\nContent-Length: \(n)\r\n\r\n" + body),
                ("space in target", "POST /v1/ responses HTTP/1.1\r\n" + host + "Content-Length: \(n)\r\n\r\n" + body),
                ("two spaces", "POST  /v1/responses HTTP/1.1\r\n" + host + "Content-Length: \(n)\r\n\r\n" + body),
                ("chunk size with 0x", line + host + "Transfer-Encoding: chunked\r\n\r\n0x" + chunked),
                ("chunk size with sign", line + host + "Transfer-Encoding: chunked\r\n\r\n+" + chunked),
                ("chunk size with space", line + host + "Transfer-Encoding: chunked\r\n\r\n " + chunked),
                (
                    "chunk ended by LF",
                    line + host + "Transfer-Encoding: chunked\r\n\r\n" + chunked.replacingOccurrences(of: "\r\n", with: "\n")
                ),
                ("chunk longer than its size", line + host + "Transfer-Encoding: chunked\r\n\r\n5\r\n" + body + "\r\n0\r\n\r\n"),
                ("chunk size too large", line + host + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"),
                (
                    "endless chunk extension",
                    line + host + "Transfer-Encoding: chunked\r\n\r\n1;a=" + String(repeating: "x", count: 5000) + "\r\n"
                ),
                ("chunked in HTTP/1.0", "POST /v1/responses HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n" + chunked),
            ]
            for (name, bytes) in refused {
                let connection = try stage.daemon.connect()
                try? connection.send(bytes + Self.request("/v1/responses", id: "smuggled"))  // the connection may already have ended
                let answer = try connection.answer(5)
                #expect(answer.status == 400, "\(name): \(answer.status)")
                #expect(answer.header("connection") == "close", "\(name)")
                #expect(answer.errorCode == "invalid_request_error", "\(name): \(answer.text)")
                #expect(connection.buffer.isEmpty && connection.waitEnd(5), "\(name): the connection goes on")
            }
            #expect(stage.calls("a") == 0)
        }

        /// Request bodies may be packed; the upstream gets them unpacked.
        @Test(arguments: [
            ("gzip", "H4sIAAAAAAACA6tWys1PSc1RslJKLyjRNdUzUdJRyswrKC0BimRkAjnFJUWpiblKViVFpam1AOZqaX8uAAAA"),
            ("deflate", "eJyrVsrNT0nNUbJSSi8o0TXVM1HSUcrMKygtAYpkZAI5xSVFqYm5SlYlRaWptQBOZg7A"),
            ("zstd", "KLUv/QRocQEAeyJtb2RlbCI6ImdwdC01LjQiLCJpbnB1dCI6ImhpIiwic3RyZWFtIjp0cnVlfXOqohk="),
        ]) func packedBody(_ coding: String, _ base64: String) throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let packed = Array(Data(base64Encoded: base64)!)
            try connection.send("POST", "/v1/responses", body: packed, headers: [("Content-Encoding", coding)])
            #expect(try connection.answer().types.last == "response.completed")
            let request = try #require(stage.requests("a").first)
            #expect(request.text == Self.json)
            #expect(request.header("content-encoding") == nil)
        }

        /// A large zstd body, as Codex CLI sends them, is the same for the upstream.
        @Test func largeZstd() throws {
            let stage = try Stage("a")
            let plain = Array(
                "{\"model\":\"gpt-5.4\",\"stream\":true,\"input\":\"\((0..<200_000).map { String($0) }.joined(separator: " "))\"}".utf8)
            let file = stage.daemon.directory + "/body"
            try Data(plain).write(to: URL(fileURLWithPath: file))
            let zstd = try Child("/usr/bin/zstd", ["-q", file, "-o", file + ".zst"], environment: [:])
            try #require(zstd.wait() == .code(0))
            let packed = Array(try Data(contentsOf: URL(fileURLWithPath: file + ".zst")))
            let connection = try stage.daemon.connect()
            try connection.send("POST", "/backend-api/codex/responses", body: packed, headers: [("Content-Encoding", "zstd")])
            #expect(try connection.answer().types.last == "response.completed")
            #expect(stage.requests("a").first?.body == plain)
        }

        /// A small body that unpacks to 140 MiB is refused with 413; one that is damaged or of an unknown coding with 400.
        @Test func packedNonsense() throws {
            let stage = try Stage("a")
            func post(_ coding: String, _ bytes: [UInt8]) throws -> Answer {
                let connection = try stage.daemon.connect()
                try connection.send("POST", "/v1/responses", body: bytes, headers: [("Content-Encoding", coding)])
                return try connection.answer()
            }
            let bomb = Array(
                Data(
                    base64Encoded:
                        "KLUv/QRoBQIANAMotS/9BGicAABYeyJtb2RlbCI6IiABAPL/OfACAgAQIEQAAAABAP3/zAsQUwAAIEuPEukCAI5VIPse9VX3CQtLm24=")!)
            #expect(try post("zstd, zstd", bomb).status == 413)
            #expect(try post("gzip", Array("no gzip at all".utf8)).status == 400)
            #expect(try post("br", Array("x".utf8)).status == 400)
            #expect(stage.calls("a") == 0)
        }

        /// Bodies of 1 MB and 30 MB arrive whole, with a length and in chunks.
        @Test(arguments: [1_000_000, 30_000_000]) func largeBody(_ size: Int) throws {
            let stage = try Stage("a")
            let body = "{\"model\":\"gpt-5.4\",\"stream\":true,\"input\":\"" + String(repeating: "0123456789", count: size / 10) + "\"}"
            let bytes = Array(body.utf8)
            let connection = try stage.daemon.connect()
            try connection.send("POST", "/v1/responses", body: bytes)
            #expect(try connection.answer(60).types.last == "response.completed")
            #expect(stage.requests("a").first?.body == bytes)
            stage.upstream.forgetRequests()
            try connection.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in stride(from: 0, to: bytes.count, by: 100_000) {
                try connection.send(Behaviour.chunk(Array(bytes[start..<min(bytes.count, start + 100_000)])))
            }
            try connection.send(Behaviour.chunkEnd)
            #expect(try connection.answer(60).types.last == "response.completed")
            #expect(stage.requests("a").first?.body == bytes)
        }

        /// An answer of 20 MB without stream arrives whole.
        @Test func largeAnswer() throws {
            let stage = try Stage("a")
            let text = String(repeating: "0123456789", count: 2_000_000)
            let body = Canned.response(output: Canned.item.replacingOccurrences(of: "Hello", with: text))
            stage.always("a", .status(200, body))
            let answer = try stage.turn(stream: false, seconds: 60)
            #expect(answer.body == Array(body.utf8))
            #expect(try stage.daemon.record("req-1")["input_tokens"] as? Int == 100)
        }

        /// An upstream that talks no HTTP, or whose answer has two meanings, is a 502; none of its bytes reach the client.
        @Test func upstreamNonsense() throws {
            let stage = try Stage("a")
            let cases = [
                "SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "HTTP/1.1 99 Odd\r\n\r\n",
                "HTTP/1.1 200 OK\r\nX-Big: " + String(repeating: "x", count: 100_000) + "\r\n\r\n",
            ]
            for bytes in cases {
                stage.script("a", .raw(Array(bytes.utf8)))
                let answer = try stage.turn(stream: false)
                #expect(answer.status == 502, "\(bytes.prefix(60))")
                #expect(answer.errorCode == "upstream_unavailable", "\(bytes.prefix(60))")
            }
        }

        /// An upstream's answer may come in any pieces and with any of the line ends of server-sent events.
        @Test(arguments: ["\n", "\r\n", "\r"]) func eventLineEnds(_ end: String) throws {
            let stage = try Stage("a")
            let text = Canned.stream.map { Behaviour.event($0).replacingOccurrences(of: "\n", with: end) }.joined()
            stage.always(
                "a",
                Behaviour(
                    steps: [.bytes(Behaviour.streamHead([:]))] + Array(text.utf8).map { .bytes(Behaviour.chunk([$0])) } + [
                        .bytes(Behaviour.chunkEnd)
                    ]))
            let answer = try stage.turn()
            let normal = answer.text.replacingOccurrences(of: "\r\n", with: "\n").replacingOccurrences(of: "\r", with: "\n")
            #expect(
                ServerEvent.parse(normal).map(\.type) == ["response.created"]
                    + Canned.stream.dropFirst().map {
                        Behaviour.event($0).components(separatedBy: "\n")[0].replacingOccurrences(of: "event: ", with: "")
                    })
            #expect(try stage.daemon.record("req-1")["input_tokens"] as? Int == 100)
        }

        /// A body whose end is the connection's is passed on whole.
        @Test func upstreamUntilClose() throws {
            let stage = try Stage("a")
            stage.always("a", .raw(Array("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n\(Canned.response())".utf8)))
            let answer = try stage.turn(stream: false)
            #expect(answer.text == Canned.response())
            #expect(answer.isWhole)
        }

        /// An interim answer of the upstream is not the answer.
        @Test func upstreamInterim() throws {
            let stage = try Stage("a")
            stage.always(
                "a",
                .raw(
                    Array("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".utf8) + Behaviour.whole(200, Canned.response(), [:]), thenEnd: false
                ))
            #expect(try stage.turn(stream: false).text == Canned.response())
        }
    }
}
