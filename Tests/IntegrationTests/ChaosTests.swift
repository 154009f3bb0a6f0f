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

        /// What happens to one turn, all of it decided before the first turn starts.
        private struct Plan {
            enum Client: CaseIterable { case leavesAtOnce, leavesAfterHead, leavesInBody, closesItsHalf, reads }
            var id: String
            var path: String
            var isStream: Bool
            var client: Client
            /// Bytes of the body that a client reads that leaves in it.
            var bytes: Int
            /// Places in `behaviours`, one for each request that the upstream may get for this turn.
            var answers: [Int]

            init(_ id: String, _ random: inout Seeded) {
                self.id = id
                path = ["/v1/responses", "/backend-api/codex/responses", "/v1/chat/completions"].randomElement(using: &random)!
                isStream = Bool.random(using: &random)
                let kind = Int.random(in: 0..<10, using: &random)
                client = kind < Client.allCases.count ? Client.allCases[kind] : .reads
                bytes = Int.random(in: 0..<2000, using: &random)
                answers = (0..<9).map { _ in Int.random(in: 0..<Chaos.behaviours.count, using: &random) }
            }
        }

        /// Answers by the turn's id and by how many requests it has come with, whatever account is asked and whatever runs beside it.
        private final class Script: @unchecked Sendable {  // `lock` guards the counts
            private let lock = NSLock()
            private let answers: [String: [Int]]
            private var calls: [String: Int] = [:]

            init(_ plans: [Plan]) { answers = Dictionary(uniqueKeysWithValues: plans.map { ($0.id, $0.answers) }) }

            var behaviour: Behaviour {
                .chosen { [self] request in
                    let id = request.header("x-request-id") ?? ""
                    lock.lock()
                    defer { lock.unlock() }
                    let call = calls[id, default: 0]
                    calls[id] = call + 1
                    return answers[id].map { Chaos.behaviours[$0[call % $0.count]] } ?? .ok
                }
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

        /// Whatever upstreams and clients do: no process dies, nothing stays open, every turn has exactly one record, and what clients saw,
        /// what the upstream saw and what the store holds are the same turns.
        @Test(arguments: zip(seeds, [Database.sqlite, .postgresql] + seeds.map { _ in .sqlite }))
        func anything(_ seed: UInt64, _ database: Database) throws {
            let stage = try Stage(
                "a", "b", "c", "d", workers: 2, on: database,
                environment: ["CODEX_LB_UPSTREAM_FIRST_BYTE_TIMEOUT_SECONDS": "2", "CODEX_LB_FAILOVER_HOLD_BACK_SECONDS": "0.05"])
            var random = Seeded(state: seed)
            let plans = (0..<300).map { Plan("chaos-\($0)", &random) }
            let script = Script(plans)
            for account in ["a", "b", "c", "d"] { stage.always(account, script.behaviour) }
            let group = DispatchGroup()
            let answered = Names()
            for client in 0..<3 {
                group.enter()
                Thread.detachNewThread {
                    defer { group.leave() }
                    for plan in plans.enumerated() where plan.offset % 3 == client { Self.turn(stage, plan.element, answered) }
                }
            }
            group.wait()
            let again = "CODEX_LB_TEST_SEEDS=\(seed)"
            #expect(answered.all.count > plans.count / 4, "\(again): only \(answered.all.count) whole answers")
            var records: [[String: Any]] = []
            let isSettled = try eventually(10, every: 0.1) {
                records = try stage.daemon.records()
                return try records.count >= plans.count && stage.metric("codex_lb_turns_open") == 0
            }
            let open = try stage.metric("codex_lb_turns_open") ?? -1
            #expect(isSettled, "\(again): \(records.count) records of \(plans.count) turns, \(open) open")
            expectSameTurns(answered.all, stage.upstream, records, plans.map(\.id), again)
            for account in ["a", "b", "c", "d"] {
                #expect(try stage.metric("codex_lb_account_in_flight{account=\"\(account)\"}") == 0, "\(again): a lease stays open")
            }
            #expect(!stage.daemon.log.contains("child ended"), "\(again): \(stage.daemon.log.suffix(3000))")
            #expect(stage.daemon.stop() == .code(0), "\(again)")
        }

        /// The three sets: turns that clients saw whole, requests that the upstream saw, records of the store.
        private func expectSameTurns(
            _ answered: Set<String>, _ upstream: FakeUpstream, _ records: [[String: Any]], _ asked: [String], _ again: String
        ) {
            let ids = records.compactMap { $0["request_id"] as? String }
            let counts = Dictionary(ids.map { ($0, 1) }, uniquingKeysWith: +)
            #expect(counts.filter { $0.value != 1 }.isEmpty, "\(again): recorded twice")
            #expect(Set(asked).subtracting(counts.keys).isEmpty, "\(again): turns without a record")
            #expect(answered.subtracting(counts.keys).isEmpty, "\(again): whole answers without a record")
            let calls = Dictionary(
                upstream.requests.filter { $0.method == "POST" }.map { ($0.header("x-request-id") ?? "", 1) }, uniquingKeysWith: +)
            #expect(Set(calls.keys).subtracting(counts.keys).isEmpty, "\(again): spent without a record")
            for record in records {
                let id = record["request_id"] as? String ?? ""
                let attempts = record["attempts"] as? Int ?? -1
                #expect(calls[id, default: 0] <= attempts, "\(again): \(id): \(calls[id, default: 0]) upstream requests, \(record)")
                // A turn that no account was free for has no attempt.
                #expect(attempts == 0 || calls[id] != nil, "\(again): \(id) never came to the upstream, \(record)")
            }
        }

        final class Names: @unchecked Sendable {  // `lock` guards the names
            private let lock = NSLock()
            private var names: Set<String> = []
            func add(_ name: String) {
                lock.lock()
                names.insert(name)
                lock.unlock()
            }
            var all: Set<String> {
                lock.lock()
                defer { lock.unlock() }
                return names
            }
        }

        /// One turn of a client that reads all, leaves at some point, closes its half or reads late.
        private static func turn(_ stage: Stage, _ plan: Plan, _ answered: Names) {
            let body = plan.path.hasSuffix("completions") ? Stage.chat(stream: plan.isStream) : Stage.body(stream: plan.isStream)
            guard let connection = try? stage.daemon.connect() else { return }  // counted: its record is missed
            // What goes wrong here is the point of the test; what must hold is looked at when all is over.
            try? connection.post(plan.path, body, headers: [("X-Request-Id", plan.id)])
            switch plan.client {
            case .leavesAtOnce:
                // The request must be a turn before the client goes, or there is nothing to count: at the upstream, or answered without it.
                stage.upstream.wait(seconds: 5) {
                    stage.upstream.requests.contains { $0.header("x-request-id") == plan.id } || !connection.isSilent(0)
                }
                connection.reset()
            case .leavesAfterHead:
                _ = try? connection.head()  // see above
                connection.close()
            case .leavesInBody:
                _ = try? connection.head()  // see above
                var read = 0
                while read < plan.bytes, let piece = try? connection.piece() { read += piece.count }  // see above
                connection.reset()
            case .closesItsHalf, .reads:
                if plan.client == .closesItsHalf { connection.shutdownWrite() }
                let answer = try? connection.answer(20)  // see above
                guard let answer, answer.isWhole, (200..<600).contains(answer.status) else { return }
                answered.add(plan.id)
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
            try daemon.launch(passing: [listener.descriptor])
            try daemon.waitReady()
            #expect(daemon.address == "127.0.0.1:\(listener.port)")
            #expect(daemon.log.contains("from=systemd"))
            #expect(try daemon.post("/v1/responses", Stage.body()).types.last == "response.completed")
            // The socket outlives the server: what comes meanwhile waits for the next one.
            #expect(daemon.stop() == .code(0))
            let waiting = try HTTPConnection(daemon.address)
            try waiting.post("/v1/responses", Stage.body())
            try daemon.launch(passing: [listener.descriptor])
            #expect(try waiting.answer().types.last == "response.completed")
        }
    }
}
