import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Connections to upstreams: what is sent once, whose answer is whose, and what our own want does to accounts.
    @Suite struct Upstreams {
        // MARK: Sent once

        /// An upstream that has taken the request on a kept connection and then ends or resets it, at once or later, is not asked again:
        /// 502, one call, one attempt.
        @Test(arguments: ["end", "close", "reset"], [false, true]) func takenIsNotSentAgain(_ how: String, _ isLate: Bool) throws {
            let step: Behaviour.Step = how == "end" ? .end : how == "close" ? .close : .reset
            let stage = try Stage("a")
            for i in 0..<4 {
                let gate = Gate()
                if !isLate { gate.open() }
                stage.script("a", .ok, Behaviour(steps: [.gate(gate), step]))
                #expect(try stage.turn("warm-\(i)").types.last == "response.completed")
                let connection = try stage.daemon.connect()
                try connection.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "lost-\(i)")])
                #expect(stage.upstream.wait(requests: 2 * i + 2))
                if isLate {
                    #expect(connection.isSilent(0.3))
                    gate.open()
                }
                let answer = try connection.answer()
                #expect(answer.status == 502 && answer.errorCode == "upstream_unavailable")
                #expect(stage.requests("a").count { $0.header("x-request-id") == "lost-\(i)" } == 1)
                #expect(try stage.daemon.record("lost-\(i)")["attempts"] as? Int == 1)
            }
        }

        /// The same in the same moment, often: a reset overtakes the acknowledgement of what was read, and proves nothing.
        @Test func takenAndResetAtOnce() throws {
            let stage = try Stage("a")
            for turn in 0..<50 {
                stage.script("a", .ok, .reset)
                #expect(try stage.turn("kept-\(turn)").types.last == "response.completed")
                let answer = try stage.turn("reset-\(turn)", stream: false)
                #expect(answer.status == 502 && stage.calls("a") == 2 * (turn + 1), "\(answer.text)")
            }
            let requests = stage.requests("a")
            #expect(stride(from: 0, to: requests.count - 1, by: 2).allSatisfy { requests[$0].connection == requests[$0 + 1].connection })
        }

        /// An upstream that ends a kept connection right after its answer, unannounced, gets no turn twice, whenever its end arrives. Where a
        /// request and the close cross so that nobody can tell whether it was read (a reset alone), the client is told so; that is rare.
        @Test func endedConnectionsCostNothing() throws {
            let stage = try Stage("a")
            stage.always("a", Behaviour { _ in [.bytes(Behaviour.whole(200, Canned.response(), [:])), .close] })
            let client = try stage.daemon.connect()
            let ids = (0..<300).map { "end-\($0)" }
            var answered: [String] = []
            for id in ids {
                try client.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", id)])
                let answer = try client.answer()
                if answer.status == 200 { answered.append(id) } else { #expect(answer.text.contains("ECONNRESET"), "\(answer.text)") }
            }
            let seen = stage.requests("a").compactMap { $0.header("x-request-id") }
            #expect(seen == answered && seen.count > ids.count * 3 / 4)
            let records = try eventually(5) { try stage.daemon.records().count == ids.count }
            #expect(records)
        }

        /// A kept connection whose end came while the worker did not look is seen before it is used.
        @Test func lookedAtBeforeUse() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.script("a", Behaviour { _ in [.bytes(Behaviour.whole(200, Canned.response(), [:])), .gate(gate), .close] }, .ok)
            #expect(try stage.turn("first", stream: false).status == 200)
            let client = try stage.daemon.connect()
            let worker = try #require(stage.daemon.pid("worker"))
            kill(worker, SIGSTOP)
            defer { kill(worker, SIGCONT) }
            gate.open()
            try client.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "second")])
            #expect(try eventually(5) { try Self.sockets().contains { $0.peer == stage.upstream.port && $0.state == "08" } }, "CLOSE_WAIT")
            kill(worker, SIGCONT)
            #expect(try client.answer().types.last == "response.completed")
            #expect(stage.calls("a") == 2)
        }

        // MARK: Whose answer

        private static let poison = Behaviour.whole(200, "{\"id\":\"poison\",\"output\":[]}", [:])

        /// An answer that carries the id of its own request.
        private static func own(_ request: RecordedRequest) -> [UInt8] {
            Behaviour.whole(
                200,
                "{\"id\":\"\(request.header("x-request-id") ?? "")\",\"output\":[],\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}", [:]
            )
        }

        /// Bytes behind an answer, in the same piece or a later one, are nobody's answer.
        @Test(arguments: [true, false]) func bytesBehindAnAnswer(_ inOnePiece: Bool) throws {
            let stage = try Stage("a")
            stage.always(
                "a",
                Behaviour { request in
                    inOnePiece ? [.bytes(Self.own(request) + Self.poison)] : [.bytes(Self.own(request)), .bytes(Self.poison)]
                })
            let client = try stage.daemon.connect()
            for i in 0..<20 {
                try client.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "own-\(i)")])
                let answer = try client.answer()
                #expect(answer.status == 200 && answer.json["id"] as? String == "own-\(i)")
                // What comes after the next request was sent can't be told from its answer: it is waited for.
                #expect(try eventually(5) { try !Self.sockets().contains { $0.peer == stage.upstream.port && $0.state == "01" } })
            }
            #expect(Set(stage.requests("a").map(\.connection)).count == 20, "a connection with unasked bytes is not kept")
        }

        /// The same when the next request waits already: the answer fills the read exactly, so that what is behind it comes with the next read
        /// of the same call, after the connection could have been used again.
        @Test func bytesBehindAFullRead() throws {
            let stage = try Stage("a")
            stage.always(
                "a",
                Behaviour { request in
                    let id = request.header("x-request-id") ?? ""
                    func answer(_ pad: Int) -> [UInt8] {
                        Behaviour.whole(200, "{\"id\":\"\(id)\",\"output\":[],\"pad\":\"\(String(repeating: "x", count: pad))\"}", [:])
                    }
                    let pad = 64 * 1024 - answer(60_000).count + 60_000
                    return [.bytes(answer(pad) + Self.poison)]
                })
            for i in 0..<10 {
                let client = try stage.daemon.connect()
                defer { client.close() }
                for part in 0..<2 {
                    try client.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "own-\(i)-\(part)")])
                }
                for part in 0..<2 {
                    let answer = try client.answer()
                    #expect(answer.status == 200 && answer.json["id"] as? String == "own-\(i)-\(part)")
                }
            }
        }

        // MARK: Nothing is free

        /// A client that leaves after the text: its upstream's word on the usage is waited for, and recorded.
        @Test func clientLeavesBeforeUsage() throws {
            let stage = try Stage("a")
            let gate = Gate()
            let usage = "{\"prompt_tokens\":11,\"completion_tokens\":7,\"total_tokens\":18}"
            stage.always(
                "a", .stall([Canned.chatChunk("all of it")], gate, [Canned.chatChunk("", finish: "\"stop\"", usage: usage), "[DONE]"]))
            let client = try stage.daemon.connect()
            try client.post("/v1/chat/completions", Stage.chat(stream: true), headers: [("X-Request-Id", "left")])
            #expect(try client.head().status == 200)
            #expect(try client.block()?.contains("all of it") == true)
            client.reset()
            #expect(try eventually(5) { try stage.metric("codex_lb_clients_gone_total") == 1 })
            gate.open()
            let record = try stage.daemon.record("left")
            #expect(record["status"] as? Int == 499 && record["error_code"] as? String == "client_disconnected")
            #expect(record["input_tokens"] as? Int == 11 && record["output_tokens"] as? Int == 7)
        }

        /// An upstream that does not tell in time is estimated, and the record says so.
        @Test func usageIsEstimated() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.always("a", .stall([Canned.created()] + (0..<5).map { Canned.delta("word \($0)") }, gate, [Canned.completed()]))
            let client = try stage.daemon.connect()
            try client.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "left")])
            for _ in 0..<6 { _ = try client.event() }
            client.reset()
            let record = try stage.daemon.record("left", seconds: 10)
            #expect(record["error_code"] as? String == "client_disconnected_usage_estimated")
            #expect(record["output_tokens"] as? Int == 5 && record["input_tokens"] as? Int ?? 0 > 5)
            #expect(stage.upstream.waitClosed(connection: 1))
            gate.open()
        }

        // MARK: Uploads

        /// The time to the first byte begins when the request is out, however slowly an upstream takes it.
        @Test func firstByteClockStartsAfterTheUpload() throws {
            let stage = try Stage(environment: ["CODEX_LB_UPSTREAM_FIRST_BYTE_TIMEOUT_SECONDS": "1"])
            let upstream = try PassedListener()
            try stage.daemon.addAccount("slow", baseURL: "http://127.0.0.1:\(upstream.port)/v1", key: "k")
            #expect(try eventually(2) { try stage.metric("codex_lb_account_available{account=\"slow\"}") == 1 })
            let client = try stage.daemon.connect()
            let body = "{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 24 << 20))\"}"
            try client.post("/v1/responses", body, headers: [("X-Request-Id", "slow")])
            let connection = try upstream.accept()
            #expect(client.isSilent(1.6), "the upstream has not taken the request yet")
            #expect(try connection.waitBytes(body.utf8.count, seconds: 20))
            try connection.send(Behaviour.whole(200, Canned.response(), [:]))
            #expect(try client.answer().status == 200)
        }

        /// An upstream that has begun to answer need not take the rest of the request: the answer goes on, whatever of it the client has
        /// seen; what waits for that upstream stays counted until it is taken.
        @Test(arguments: [true, false]) func uploadStalledBehindAnAnswer(_ isVisible: Bool) throws {
            let stage = try Stage(environment: ["CODEX_LB_WRITE_STALLED_TIMEOUT_SECONDS": "1"])
            let upstream = try PassedListener()
            try stage.daemon.addAccount("early", baseURL: "http://127.0.0.1:\(upstream.port)/v1", key: "k")
            #expect(try eventually(2) { try stage.metric("codex_lb_account_available{account=\"early\"}") == 1 })
            let worker = try #require(stage.daemon.pid("worker"))
            let client = try stage.daemon.connect()
            let megabytes = 24
            let body = "{\"model\":\"gpt-5.4\",\"stream\":\(isVisible),\"input\":\"\(String(repeating: "x", count: megabytes << 20))\"}"
            try client.post("/v1/responses", body, headers: [("X-Request-Id", "early")])
            let connection = try upstream.accept()
            #expect(try connection.waitBytes(1000))
            let answer = Behaviour.whole(200, Canned.response(), [:])
            if isVisible {
                try connection.send(
                    Behaviour.streamHead([:]) + [Canned.created(), Canned.delta("x")].flatMap { Behaviour.chunk(Behaviour.event($0)) })
                #expect(try client.event()?.type == "response.created")
                #expect(try client.event()?.type == "response.output_text.delta")
                #expect(try stage.metric("codex_lb_buffered_bytes") ?? 0 > Double((megabytes - 8) << 20), "what the upstream has not taken")
            } else {
                try connection.send(Array(answer.prefix(answer.count - Canned.response().utf8.count)))
            }
            #expect(client.isSilent(1.8), "longer than an upload may stand still")
            if isVisible {
                try connection.send(Behaviour.chunk(Behaviour.event(Canned.completed())) + Behaviour.chunkEnd)
                #expect(try client.event()?.type == "response.completed")
            } else {
                try connection.send(Array(Canned.response().utf8))
                #expect(try client.answer().status == 200)
            }
            let record = try stage.daemon.record("early")
            #expect(record["status"] as? Int == 200 && record["attempts"] as? Int == 1 && record["input_tokens"] as? Int == 100)
            #expect(stage.daemon.pid("worker") == worker)
            #expect(try stage.isAvailable("early"))
            #expect(try eventually(5) { try stage.metric("codex_lb_buffered_bytes") == 0 })
        }

        /// An upstream that refuses a body it has not read, and closes, is heard.
        @Test func earlyRefusalIsHeard() throws {
            let stage = try Stage()
            let upstream = try PassedListener()
            try stage.daemon.addAccount("small", baseURL: "http://127.0.0.1:\(upstream.port)/v1", key: "k")
            #expect(try eventually(2) { try stage.metric("codex_lb_account_available{account=\"small\"}") == 1 })
            let client = try stage.daemon.connect()
            let body = "{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: 24 << 20))\"}"
            try client.post("/v1/responses", body)
            let connection = try upstream.accept()
            #expect(try connection.waitBytes(100))
            try connection.send(Behaviour.whole(413, Canned.error(code: "too_big"), ["Connection": "close"]))
            connection.close()
            let answer = try client.answer()
            #expect(answer.status == 413 && answer.errorCode == "too_big")
        }

        // MARK: Our own want

        /// At a small descriptor limit clients wait their turn, and connections kept for one upstream make room for another's; no account is
        /// blamed for what we lack.
        @Test func fewDescriptors() throws {
            let names = ["a", "b", "c"]
            let upstreams = try names.map { _ in try FakeUpstream() }
            let daemon = try Daemon()
            daemon.runner = ["/bin/sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\""]
            for (name, upstream) in zip(names, upstreams) {
                try daemon.addAccount(name, baseURL: upstream.baseURL, key: Stage.key(name))
                if name != "a" { #expect(try daemon.run("accounts", "pause", name).isGood) }
            }
            try daemon.start()
            for (i, (name, upstream)) in zip(names, upstreams).enumerated() {
                if i > 0 {
                    #expect(try daemon.run("accounts", "resume", name).isGood)
                    #expect(try daemon.run("accounts", "pause", names[i - 1]).isGood)
                    #expect(
                        try eventually(5) {
                            _ = try daemon.post("/v1/responses", Stage.body())
                            return upstream.calls(Stage.key(name)) > 0
                        })
                }
                let gate = Gate()
                let warm = upstream.calls(Stage.key(name))
                upstream.always(Stage.key(name), .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
                let clients = try (0..<160).map { n in
                    let client = try daemon.connect()
                    try client.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "few-\(name)-\(n)")])
                    return client
                }
                #expect(upstream.wait(requests: warm + 100))
                gate.open()
                let good = clients.count { client in
                    defer { client.close() }
                    return (try? client.answer())?.types.last == "response.completed"
                }
                #expect(good == clients.count, "\(name)")
            }
            #expect(daemon.log.contains("accepting paused"))
            #expect(!daemon.log.contains("cools down"))
        }

        /// A name whose first address swallows every packet costs a quarter of a second, not the whole deadline.
        @Test(.enabled(if: getuid() == 0, "a hosts file of its own needs root")) func deadFirstAddress() throws {
            let upstream = try FakeUpstream(address: "127.0.0.2")
            let blackHole = try BlackHole(port: upstream.port)
            let daemon = try Daemon()
            let hosts = daemon.directory + "/hosts"
            try "127.0.0.1 localhost\n127.0.0.1 two.test\n127.0.0.2 two.test\n".write(toFile: hosts, atomically: true, encoding: .utf8)
            daemon.runner = ["/usr/bin/unshare", "-m", "/bin/sh", "-c", "mount --bind \(hosts) /etc/hosts && exec \"$0\" \"$@\""]
            try daemon.addAccount("a", baseURL: "http://two.test:\(upstream.port)/v1", key: "sk-up-a")
            try daemon.start()
            let start = Date()
            let answer = try daemon.post("/v1/responses", Stage.body())
            #expect(answer.types.last == "response.completed", "\(answer.text)")
            #expect(Date().timeIntervalSince(start) < 4, "half of the deadline for all addresses")
            withExtendedLifetime(blackHole) {}
        }

        /// Sockets of both sides are watched: the kernel's list shows a keep-alive timer (proc(5), /proc/net/tcp: `tr` is 2).
        @Test func vanishedPeersAreNoticed() throws {
            let stage = try Stage("a")
            let gate = Gate()
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let client = try stage.daemon.connect()
            try client.post("/v1/responses", Stage.body())
            _ = try client.head()
            let own = stage.daemon.address.split(separator: ":").last.flatMap { UInt16($0) }!
            var seen = ""
            // While something is on its way another timer is shown.
            let isWatched = try eventually(5) {
                let established = try Self.sockets().filter { $0.state == "01" }
                let (downstream, upstream) = (established.filter { $0.own == own }, established.filter { $0.peer == stage.upstream.port })
                seen = "\(downstream), \(upstream)"
                return downstream.count == 1 && upstream.count == 1 && (downstream + upstream).allSatisfy { $0.timer.hasPrefix("02:") }
            }
            #expect(isWatched, "\(seen)")
            gate.open()
        }

        /// IPv4 sockets of this machine, from /proc/net/tcp.
        private static func sockets() throws -> [(own: UInt16?, peer: UInt16?, state: Substring, timer: Substring)] {
            String(decoding: try #require(try FileHandle(forReadingAtPath: "/proc/net/tcp")?.readToEnd()), as: UTF8.self).split(
                separator: "\n"
            )
            .dropFirst().map { line in
                let fields = line.split(separator: " ")
                return (UInt16(fields[1].suffix(4), radix: 16), UInt16(fields[2].suffix(4), radix: 16), fields[3], fields[5])
            }
        }

        /// An address on loopback whose accept queue is full: the kernel drops what would connect, as a dead host does.
        private final class BlackHole {
            private var descriptors: [Int32] = []

            init(port: UInt16) throws {
                func address(_ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Int32 {
                    var a = sockaddr_in()
                    a.sin_family = sa_family_t(AF_INET)
                    a.sin_port = port.bigEndian
                    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr)
                    return withUnsafePointer(to: &a) { p in
                        p.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
                    }
                }
                let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
                descriptors.append(listener)
                guard address({ bind(listener, $0, $1) }) == 0, listen(listener, 0) == 0 else { throw HarnessError("black hole") }
                for _ in 0..<4 {
                    let filler = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
                    descriptors.append(filler)
                    _ = address { connect(filler, $0, $1) }
                }
            }

            deinit { for fd in descriptors { Glibc.close(fd) } }
        }
    }
}
