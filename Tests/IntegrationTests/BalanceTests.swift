import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// How connections spread over workers, and what happens at the limit of descriptors.
    @Suite struct Balance {
        private static func number(_ name: String, _ standard: Int) -> Int {
            ProcessInfo.processInfo.environment[name].flatMap { Int($0) } ?? standard
        }
        /// `CODEX_LB_TEST_STREAMS=2000 CODEX_LB_TEST_STREAM_WORKERS=8` for the long form.
        private static let streams = number("CODEX_LB_TEST_STREAMS", 200)
        private static let workers = number("CODEX_LB_TEST_STREAM_WORKERS", 4)

        private static func connections(_ daemon: Daemon) -> [Int] {
            let children = daemon.status()?["children"] as? [[String: Any]] ?? []
            return children.filter { $0["role"] as? String == "worker" }.compactMap { $0["connections"] as? Int }
        }

        /// Open streams are shared out: no worker has more than an eighth, and a few, above the mean.
        @Test func streamsSpread() throws {
            var limit = rlimit()
            getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
            let stage = try Stage("a", workers: Self.workers)
            let gate = Gate()
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            var open: [HTTPConnection] = []
            for _ in 0..<Self.streams {
                let connection = try stage.daemon.connect()
                try connection.post("/v1/responses", Stage.body())
                open.append(connection)
            }
            for connection in open { #expect(try connection.head(30).status == 200) }
            let counts = Self.connections(stage.daemon)
            let mean = Self.streams / Self.workers
            print("\(Self.streams) streams over \(Self.workers) workers: \(counts.sorted())")
            #expect(counts.count == Self.workers && counts.reduce(0, +) == Self.streams)
            #expect(counts.max()! <= mean + max(8, mean / 8) + 5 && counts.min()! > 0, "\(counts)")
            gate.open()
            for connection in open {
                while let event = try connection.event(30) { if event.type == "response.completed" { break } }
            }
        }

        /// Short connections are nobody's load: all of them are answered, and none waits for a worker that has paused.
        @Test func shortConnections() throws {
            let stage = try Stage("a", workers: 2)
            let held = try (0..<60).map { _ in try stage.daemon.connect() }
            let start = Date()
            for _ in 0..<300 { #expect(try stage.daemon.get("/health/live", seconds: 5).status == 200) }
            #expect(Date().timeIntervalSince(start) < 20)
            #expect(held.count == 60)
        }

        /// A worker that stands still does not count: the other one takes all there is and makes nobody wait.
        @Test func aWorkerThatStandsStill() throws {
            let stage = try Stage("a", workers: 2)
            let still = try #require(stage.daemon.pid("worker", 1))
            kill(still, SIGSTOP)
            defer { kill(still, SIGCONT) }
            // What it has taken before it stopped would wait for it; nobody has connected yet.
            var open: [HTTPConnection] = []
            let start = Date()
            for _ in 0..<120 {
                let connection = try stage.daemon.connect()
                try connection.send("GET", "/health/live", body: nil)
                #expect(try connection.answer(8).status == 200)
                open.append(connection)
            }
            #expect(Date().timeIntervalSince(start) < 6, "the other worker paused for one that takes nothing")
            #expect(open.count == 120)
        }

        /// At the limit of descriptors clients wait in the backlog until others leave, and nobody is refused or reset.
        @Test func descriptorLimit() throws {
            let stage = try Stage("a", environment: [:])
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
            daemon.runner = ["/usr/bin/prlimit", "--nofile=256:256"]
            try daemon.start()
            daemon.runner = []
            // 45 % of the limit; as many are kept for upstreams.
            let room = 256 * 45 / 100
            var inside: [HTTPConnection] = []
            for _ in 0..<room {
                let connection = try daemon.connect()
                try connection.send("GET", "/health/live", body: nil)
                #expect(try connection.answer(8).status == 200)
                inside.append(connection)
            }
            #expect(daemon.waitLog("connection limit reached, accepting paused"))
            let waiting = try (0..<100).map { _ in
                let connection = try daemon.connect()
                try connection.send("GET", "/health/live", body: nil)
                return connection
            }
            #expect(waiting.allSatisfy { $0.isSilent(0.002) })
            for connection in inside { connection.close() }
            for connection in waiting { #expect(try connection.answer(10).status == 200) }
        }

        /// The soft limit of descriptors is raised to the hard one, in the supervisor too, whose sockets and journals many generations share.
        @Test func softLimitIsRaised() throws {
            let daemon = try Daemon()
            daemon.runner = ["/usr/bin/prlimit", "--nofile=128:1024"]
            try daemon.start()
            daemon.runner = []
            for pid in [daemon.supervisorPID] + daemon.fleetPIDs() {
                let line = procText("/proc/\(pid)/limits").split(separator: "\n").first { $0.hasPrefix("Max open files") } ?? ""
                #expect(line.split(separator: " ").dropFirst(3).prefix(2) == ["1024", "1024"], "\(line)")
            }
        }
    }
}
