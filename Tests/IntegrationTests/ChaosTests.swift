import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Upstreams and clients that do anything, by a seed that a failure prints.
    @Suite struct Chaos {
        /// `CODEX_LB_TEST_SEEDS=1,2,3` runs others.
        static let seeds: [UInt64] =
            ProcessInfo.processInfo.environment["CODEX_LB_TEST_SEEDS"].map { $0.split(separator: ",").compactMap { UInt64($0) } } ?? [
                1, 20_261_123,
            ]

        /// SplitMix64, so that a seed gives the same turns everywhere.
        struct Seeded: RandomNumberGenerator {
            var state: UInt64
            mutating func next() -> UInt64 {
                state &+= 0x9E37_79B9_7F4A_7C15
                var z = state
                z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
                z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
                return z ^ (z >> 31)
            }
        }

        private static let behaviours: [Behaviour] = [
            .ok, .ok, .ok, .ok, .error(429, code: "rate_limit_exceeded", message: "try again in 50ms"), .error(500, code: "server_error"),
            .error(400, code: "invalid_value"), .error(401, code: "invalid_api_key"), .status(502, "x"), .status(503, ""), .close, .reset,
            .emptyStream,
            .cut(after: []), .cut(after: [Canned.created()]), .cut(after: [Canned.created(), Canned.delta("x")], reset: true),
            .events([Canned.failed("rate_limit_exceeded", message: "try again in 50ms")]), .events([Canned.failed("server_error")]),
            .events([Canned.created(), Canned.errorEvent("x")]),
            .events([Canned.delta("a"), Canned.completed()]), .events(["nonsense", "{", "{\"type\":5}", Canned.completed()]),
            .flood(events: 300),
            .raw(Array("HTTP/1.1 200 OK\r\n\r\n".utf8)),
            .raw(Array("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata".utf8)),
            .raw(Array("garbage".utf8)), .raw(Array("HTTP/1.1 204 No Content\r\n\r\n".utf8), thenEnd: false), .status(200, ""),
            .status(200, "[1,2"),
            .raw(Array("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".utf8)),
            .status(418, String(repeating: "t", count: 400_000)),
        ]

        /// Whatever upstreams and clients do: no process dies, nothing stays open, and every turn has exactly one record.
        @Test(arguments: zip(seeds, [Database.sqlite, .postgresql] + seeds.map { _ in .sqlite }))
        func anything(_ seed: UInt64, _ database: Database) throws {
            let stage = try Stage(
                "a", "b", "c", "d", workers: 2, on: database,
                environment: ["CODEX_LB_UPSTREAM_FIRST_BYTE_TIMEOUT_SECONDS": "2", "CODEX_LB_FAILOVER_HOLD_BACK_SECONDS": "0.05"])
            let turns = 300
            let group = DispatchGroup()
            let answered = Counter()
            for client in 0..<3 {
                group.enter()
                Thread.detachNewThread {
                    defer { group.leave() }
                    var random = Seeded(state: seed &+ UInt64(client))
                    for number in 0..<(turns / 3) {
                        for account in ["a", "b", "c", "d"] {
                            stage.upstream.always(Stage.key(account), Self.behaviours.randomElement(using: &random)!)
                        }
                        Self.turn(stage, "chaos-\(client)-\(number)", &random, answered)
                    }
                }
            }
            group.wait()
            #expect(answered.value > turns / 4, "seed \(seed): only \(answered.value) whole answers")
            var ids: [String] = []
            let isSettled = try eventually(10, every: 0.1) {
                ids = try stage.daemon.records().compactMap { $0["request_id"] as? String }
                return try ids.count >= turns && stage.metric("codex_lb_turns_open") == 0
            }
            let open = try stage.metric("codex_lb_turns_open") ?? -1
            #expect(isSettled, "seed \(seed): \(ids.count) records of \(turns) turns, \(open) open")
            #expect(ids.count == turns && Set(ids).count == turns, "seed \(seed): \(ids.count) records, \(Set(ids).count) ids")
            for account in ["a", "b", "c", "d"] {
                #expect(try stage.metric("codex_lb_account_in_flight{account=\"\(account)\"}") == 0, "seed \(seed): a lease stays open")
            }
            #expect(!stage.daemon.log.contains("child ended"), "seed \(seed): \(stage.daemon.log.suffix(3000))")
            #expect(stage.daemon.stop() == .code(0), "seed \(seed)")
        }

        final class Counter: @unchecked Sendable {  // `lock` guards the value
            private let lock = NSLock()
            private var count = 0
            func add() {
                lock.lock()
                count += 1
                lock.unlock()
            }
            var value: Int {
                lock.lock()
                defer { lock.unlock() }
                return count
            }
        }

        /// One turn of a client that reads all, leaves at some point, closes its half or reads late.
        private static func turn(_ stage: Stage, _ id: String, _ random: inout Seeded, _ answered: Counter) {
            let path = ["/v1/responses", "/backend-api/codex/responses", "/v1/chat/completions"].randomElement(using: &random)!
            let isStream = Bool.random(using: &random)
            let body = path.hasSuffix("completions") ? Stage.chat(stream: isStream) : Stage.body(stream: isStream)
            guard let connection = try? stage.daemon.connect() else { return }
            let kind = Int.random(in: 0..<10, using: &random)
            let bytes = Int.random(in: 0..<2000, using: &random)
            // What goes wrong here is the point of the test; what must hold is looked at when all is over.
            try? connection.post(path, body, headers: [("X-Request-Id", id)])
            switch kind {
            case 0:
                // The request must be a turn before the client goes, or there is nothing to count.
                stage.upstream.wait(seconds: 0.5) { stage.upstream.requests.contains { $0.header("x-request-id") == id } }
                connection.reset()
            case 1:
                _ = try? connection.head()
                connection.close()
            case 2:
                _ = try? connection.head()
                var read = 0
                while read < bytes, let piece = try? connection.piece() { read += piece.count }
                connection.reset()
            default:
                if kind == 3 { connection.shutdownWrite() }
                if let answer = try? connection.answer(20), answer.isWhole, (200..<600).contains(answer.status) { answered.add() }
            }
        }
    }

    /// Other doors than an address.
    @Suite struct Listeners {
        /// A Unix socket serves as an address does, and its callers are local.
        @Test func unixSocket() throws {
            let stage = try Stage("a")
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: "sk-up-a")
            let path = daemon.directory + "/http.sock"
            try daemon.start(["--listen", "unix:\(path)"])
            let connection = try HTTPConnection(unix: path)
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.answer().types.last == "response.completed")
            // The address beside it serves too.
            #expect(try daemon.post("/v1/responses", Stage.body()).types.last == "response.completed")
        }

        /// Sockets that systemd passes are served, and no address is bound.
        @Test func socketActivation() throws {
            let stage = try Stage("a")
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: "sk-up-a")
            let listener = try PassedListener()
            try daemon.launch(passing: listener.descriptor)
            try daemon.waitReady()
            #expect(daemon.address == "127.0.0.1:\(listener.port)")
            #expect(daemon.log.contains("from=systemd"))
            #expect(try daemon.post("/v1/responses", Stage.body()).types.last == "response.completed")
            // The socket outlives the server: what comes meanwhile waits for the next one.
            #expect(daemon.stop() == .code(0))
            let waiting = try HTTPConnection(daemon.address)
            try waiting.post("/v1/responses", Stage.body())
            try daemon.launch(passing: listener.descriptor)
            #expect(try waiting.answer().types.last == "response.completed")
        }
    }
}
