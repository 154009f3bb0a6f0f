import CPlatform
import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// What a service manager is told (sd_notify(3)).
    final class NotifySocket: @unchecked Sendable {  // used by one thread
        let path: String
        private let descriptor: Int32
        private var received = ""
        /// What it was given to keep, by name.
        private(set) var kept: [String: Int32] = [:]

        init(_ path: String) throws {
            self.path = path
            descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
            var a = sockaddr_un()
            a.sun_family = sa_family_t(AF_UNIX)
            withUnsafeMutableBytes(of: &a.sun_path) { $0.copyBytes(from: path.utf8) }
            let code = withUnsafePointer(to: &a) { p in
                p.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
            }
            guard code == 0 else { throw HarnessError("binding \(path)") }
        }
        deinit { for descriptor in [descriptor, barrier ?? -1] + kept.values { close(descriptor) } }

        /// Somebody waits until this is closed.
        var barrier: Int32?

        /// All messages, each with a line end behind it.
        var text: String {
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                var count = buffer.count
                let passed = codexlb_receive_descriptor(descriptor, &buffer, &count)
                guard passed >= 0 || passed == -EBADMSG else { return received }
                let message = String(decoding: buffer[..<count], as: UTF8.self)
                received += message + "\n"
                let name = message.split(separator: "\n").first { $0.hasPrefix("FDNAME=") }.map { String($0.dropFirst(7)) }
                if message.hasPrefix("FDSTORE=1"), let name { kept[name] = passed }
                if message.hasPrefix("BARRIER=1") { barrier = passed }
                if message.hasPrefix("FDSTOREREMOVE=1"), let name, let old = kept.removeValue(forKey: name) { close(old) }
            }
        }
        func forget() {
            _ = text
            received = ""
        }
    }

    /// Settings, workers and logs change under load; clients don't notice.
    @Suite struct Reloads {
        /// A server whose settings come from a file that a test may change: `CODEX_LB_…` lines in the `.env` of its working directory.
        private struct Configured {
            let stage: Stage
            let manager: NotifySocket?

            init(_ lines: String..., on database: Database = .sqlite, notifies: Bool = false) throws {
                let daemon = try Daemon(on: database)
                manager = notifies ? try NotifySocket(daemon.directory + "/notify") : nil
                daemon.environment["NOTIFY_SOCKET"] = manager?.path
                stage = Stage(try FakeUpstream(), daemon)
                daemon.workingDirectory = daemon.directory
                let url = daemon.environment.removeValue(forKey: "CODEX_LB_DATABASE_URL")
                daemon.environment["CODEX_LB_LOG_LEVEL"] = nil
                try write([url.map { "CODEX_LB_DATABASE_URL=\($0)" } ?? ""] + lines)
                try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
                try daemon.start(workers: nil, listen: nil)
                // Commands are run elsewhere: a broken file is not theirs.
                daemon.workingDirectory = nil
                daemon.environment["CODEX_LB_DATABASE_URL"] = url
            }

            private var file: String { stage.daemon.directory + "/.env" }
            func write(_ lines: [String]) throws { try Data(lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: file)) }
            func lines() throws -> [String] { try String(contentsOfFile: file, encoding: .utf8).components(separatedBy: "\n") }

            func ctl(_ arguments: String...) throws -> (result: CommandResult, json: [String: Any], seconds: Double) {
                try Reloads.ctl(stage.daemon, arguments)
            }
        }

        private static func ctl(_ daemon: Daemon, _ arguments: [String]) throws -> (
            result: CommandResult, json: [String: Any], seconds: Double
        ) {
            let start = Date()
            let result = try daemon.run(["ctl"] + arguments + ["--json"], seconds: 60)
            let json = try? JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any]
            return (result, json ?? [:], Date().timeIntervalSince(start))
        }

        private static func pids(_ daemon: Daemon, _ role: String) -> Set<Int> {
            let children = daemon.status()?["children"] as? [[String: Any]] ?? []
            return Set(children.filter { $0["role"] as? String == role }.compactMap { $0["pid"] as? Int })
        }

        // MARK: Nothing is lost

        /// `CODEX_LB_TEST_RELOADS=200` for a longer run.
        private static let rounds = longRun("CODEX_LB_TEST_RELOADS", 10)

        /// Reloads while clients connect anew for each request: 0 failed, and three sets agree.
        @Test(arguments: Database.both) func newConnections(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let load = SteadyLoad(stage, clients: 6, keepsAlive: false)
            for _ in 0..<Self.rounds {
                let before = load.count
                let reload = try Self.ctl(stage.daemon, ["reload"])
                #expect(reload.result.isGood, "\(reload.result)")
                #expect(eventually(10) { load.count > before + 10 })
            }
            try stage.expectThreeSets(load)
            #expect(stage.daemon.status()?["generation"] as? Int == Self.rounds + 1)
            tally(
                1, "reloads, a new connection per request (\(database))",
                "\(Self.rounds) reloads, \(load.count) good, \(load.failed.count) failed")
        }

        /// The same on keep-alive connections that carry POSTs: 0 failed, and none of the connections is closed by us.
        @Test(arguments: Database.both) func keptConnections(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let load = SteadyLoad(stage, clients: 12, keepsAlive: true, pause: 4_000)
            for _ in 0..<Self.rounds {
                let before = load.count
                #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood)
                #expect(eventually(10) { load.count > before + 30 })
            }
            try stage.expectThreeSets(load)
            #expect(load.connections == 12, "connections were closed")
            tally(
                2, "reloads, kept connections (\(database))",
                "\(Self.rounds) reloads, \(load.count) good, \(load.failed.count) failed, \(load.connections - 12) closed by us")
            // Nothing is left behind.
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == stage.daemon.fleetSize(workers: 2) })
        }

        /// Idle connections move to the new workers, and their next request is answered there.
        @Test func idleConnectionsMove() throws {
            let stage = try Stage("a", workers: 2)
            let connections = try (0..<40).map { _ in try stage.daemon.connect() }
            for (i, connection) in connections.enumerated() where i % 2 == 0 {
                try connection.post("/v1/responses", Stage.body(stream: false))
                #expect(try connection.answer().status == 200)
            }
            let old = Self.pids(stage.daemon, "worker")
            #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood)
            #expect(eventually(5) { Self.pids(stage.daemon, "worker").isDisjoint(with: old) }, "the old workers stay")
            #expect(old.allSatisfy { !Daemon.isAlive(Int32($0)) })
            for (i, connection) in connections.enumerated() {
                try connection.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "moved-\(i)")])
                #expect(try connection.answer().status == 200)
            }
        }

        /// Workers come and go under load: 4, 2, 8, 1.
        @Test(arguments: [false, true]) func scale(_ keepsAlive: Bool) throws {
            let stage = try Stage("a", workers: 4)
            let load = SteadyLoad(stage, clients: 6, keepsAlive: keepsAlive)
            let rounds = longRun("CODEX_LB_TEST_SCALES", 2)
            for _ in 0..<rounds {
                for count in [2, 8, 1, 4] {
                    let before = load.count
                    #expect(try Self.ctl(stage.daemon, ["scale", String(count)]).json["workers"] as? Int == count)
                    #expect(eventually(10) { load.count > before + 20 })
                    #expect(eventually(10) { stage.daemon.fleetPIDs().count == count + 1 })
                }
            }
            try stage.expectThreeSets(load)
            if keepsAlive { #expect(load.connections == 6, "connections were closed") }
            tally(
                3, "workers 4, 2, 8, 1 (\(keepsAlive ? "kept" : "new") connections)",
                "\(rounds * 4) changes, \(load.count) good, \(load.failed.count) failed")
        }

        /// Streams that are open across three reloads arrive byte for byte; their workers end after them.
        @Test(arguments: Database.both) func openStreams(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let gate = Gate()
            let (before, after) = ([Canned.created()] + (0..<50).map { Canned.delta("x\($0)") }, (0..<50).map { Canned.delta("y\($0)") })
            stage.always("a", .stall(before, gate, after + [Canned.completed()]))
            let (count, reloads) = (longRun("CODEX_LB_TEST_STREAMS", 8), longRun("CODEX_LB_TEST_STREAM_RELOADS", 3))
            let streams = try (0..<count).map { i in
                let connection = try stage.daemon.connect()
                try connection.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "stream-\(i)")])
                #expect(try connection.head().status == 200)
                return connection
            }
            for _ in 0..<reloads { #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood) }
            let children = try #require(stage.daemon.status()?["children"] as? [[String: Any]])
            #expect(children.contains { $0["state"] as? String == "draining" && $0["generation"] as? Int == 1 })
            gate.open()
            let expected = try stage.turn("reference").body
            for stream in streams { #expect(try stream.body() == expected) }
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == stage.daemon.fleetSize(workers: 2) })
            for i in 0..<count { #expect(try stage.daemon.record("stream-\(i)")["status"] as? Int == 200) }
            tally(4, "open streams (\(database))", "\(count) streams over \(reloads) reloads, all byte for byte")
        }

        /// A worker of an old generation is killed with a record that the writer has not taken: somebody brings it home.
        @Test func recordOfOldGeneration() throws {
            let stage = try Stage("a", workers: 1)
            let gate = Gate()
            stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let open = try stage.daemon.connect()
            try open.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "old")])
            #expect(try open.head().status == 200)
            let old = try #require(stage.daemon.pid("worker"))
            #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood)
            let writer = try #require(stage.daemon.pid("writer"))
            kill(writer, SIGSTOP)
            gate.open()
            while let event = try open.event() { if event.type == "response.completed" { break } }
            kill(old, SIGKILL)
            #expect(stage.daemon.waitLog("signal 9"))
            kill(writer, SIGCONT)
            #expect(try stage.daemon.record("old", seconds: 10)["status"] as? Int == 200)
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == 2 })
        }

        // MARK: What does not work changes nothing

        /// Settings that can't be used: exit code 1 with the setting's name within two seconds, and the service is unharmed.
        @Test(arguments: [
            "CODEX_LB_WORKERS=many", "CODEX_LB_LISTEN=nowhere", "CODEX_LB_RUNTIME_DIR=/tmp/elsewhere", "no settings CODEX_LB_X=",
            "CODEX_LB_DATABASE_URL=postgresql://localhost:1/x", "CODEX_LB_LISTEN=127.0.0.1:1", "CODEX_LB_ENCRYPTION_KEY_FILE=/tmp/other",
        ]) func brokenSettings(_ line: String) throws {
            let server = try Configured("CODEX_LB_LISTEN=127.0.0.1:0", "CODEX_LB_WORKERS=2")
            if line.hasSuffix(":1"), geteuid() == 0 { return }  // root may bind it
            let daemon = server.stage.daemon
            let load = SteadyLoad(server.stage, clients: 2, keepsAlive: true)
            let (pids, good) = (Self.pids(daemon, "worker"), try server.lines())
            try server.write(good + [line])
            let failed = try server.ctl("reload")
            #expect(failed.result.exit == .code(1), "\(failed.result)")
            let reason = failed.json["error"] as? String ?? ""
            let clues = [String(line.prefix { $0 != "=" }), ".env", "nowhere", "127.0.0.1:1", "Connection refused"]
            #expect(clues.contains { reason.contains($0) }, "\(reason)")
            #expect(failed.seconds < bound(2, debug: 5), "\(failed.seconds) s")
            #expect(Self.pids(daemon, "worker") == pids)
            #expect(daemon.status()?["reload_problem"] as? String == reason)
            try server.write(good)
            #expect(try server.ctl("reload").result.isGood)
            #expect(daemon.status()?["reload_problem"] is NSNull)
            try server.stage.expectThreeSets(load)
            tally(
                6, "broken settings (\(line.prefix { $0 != "=" }))",
                "\(load.count) good, \(load.failed.count) failed, told after \(Int(failed.seconds * 1000)) ms")
        }

        /// A database that can't be reached with the new settings: the same.
        @Test func unreachableDatabase() throws {
            let server = try Configured("CODEX_LB_LISTEN=127.0.0.1:0", "CODEX_LB_WORKERS=1", on: .postgresql)
            let load = SteadyLoad(server.stage, clients: 2, keepsAlive: true)
            let lines = try server.lines()
            let good = try #require(lines.first { $0.hasPrefix("CODEX_LB_DATABASE_URL=") })
            let name = try #require(server.stage.daemon.databaseName)
            // An address that nobody answers at (RFC 5737), and one that refuses.
            for place in ["192.0.2.1:5432", "127.0.0.1:1"] {
                try server.write(lines.filter { $0 != good } + ["CODEX_LB_DATABASE_URL=postgresql://x@\(place)/\(name)"])
                let failed = try server.ctl("reload")
                #expect(failed.result.exit == .code(1), "\(failed.result)")
                let reason = failed.json["error"] as? String ?? ""
                #expect(["refused", "no host answers"].contains { reason.contains($0) }, "\(reason)")
                #expect(failed.seconds < bound(2.3, debug: 5.3), "\(failed.seconds) s")
            }
            try server.stage.expectThreeSets(load)
            tally(6, "database unreachable at reload", "\(load.count) good, \(load.failed.count) failed")
        }

        /// A new worker that dies before everybody is ready: the old generation stays and the reason is told.
        @Test func candidateDies() throws {
            let stage = try Stage("a", workers: 2)
            let old = Set(stage.daemon.fleetPIDs())
            let load = SteadyLoad(stage, clients: 4, keepsAlive: true)
            // The writer stands still: new workers get no snapshot, so that none of them is ready.
            let writer = try #require(stage.daemon.pid("writer"))
            kill(writer, SIGSTOP)
            stage.daemon.child?.signal(SIGHUP)
            var fresh: Int32?
            #expect(
                eventually(10) {
                    fresh = stage.daemon.fleetPIDs().first { !old.contains($0) }
                    return fresh != nil
                })
            kill(try #require(fresh), SIGKILL)
            #expect(stage.daemon.waitLog("the reload failed"))
            kill(writer, SIGCONT)
            #expect(stage.daemon.status()?["generation"] as? Int == 1)
            let problem = stage.daemon.status()?["reload_problem"] as? String ?? ""
            #expect(problem.contains("signal 9"))
            #expect(eventually(10) { Set(stage.daemon.fleetPIDs()) == old }, "the candidate stays")
            #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood)
            try stage.expectThreeSets(load)
        }

        /// One worker that dies at each start: at most five starts in ten seconds at once, then a back-off; the other one serves.
        @Test func crashLoop() throws {
            let stage = try Stage("a", workers: 2)
            let first = try #require(stage.daemon.pid("worker", 0))
            var last = first
            for _ in 0..<5 {
                kill(last, SIGKILL)
                let dead = last
                #expect(eventually(10) { stage.daemon.pid("worker", 0).map { $0 != dead } ?? false || self.isWaiting(stage) })
                guard let next = stage.daemon.pid("worker", 0) else { break }
                last = next
            }
            #expect(eventually(5) { self.isWaiting(stage) || stage.daemon.pid("worker", 0) != last })
            for i in 0..<10 { #expect(try stage.turn("other-\(i)").status == 200) }
            #expect(eventually(10) { stage.daemon.pid("worker", 0) != nil })
        }

        private func isWaiting(_ stage: Stage) -> Bool {
            let children = stage.daemon.status()?["children"] as? [[String: Any]] ?? []
            return children.contains { $0["slot"] as? Int == 0 && $0["role"] as? String == "worker" && $0["state"] as? String == "waiting" }
        }

        // MARK: What changes

        /// A thousand SIGHUPs at once are at most two reloads.
        @Test func coalesced() throws {
            let stage = try Stage("a", workers: 1)
            for _ in 0..<1_000 { stage.daemon.child?.signal(SIGHUP) }
            #expect(
                eventually(15) { stage.daemon.log.contains("reloaded generation=2") || stage.daemon.log.contains("generation=2 listen") })
            #expect(try Self.ctl(stage.daemon, ["reload"]).result.isGood)
            let count = stage.daemon.log.components(separatedBy: " reloaded ").count - 1
            #expect(count <= 3, "\(count - 1) reloads besides the last")
        }

        /// Addresses, the number of workers and the log level follow the file; a connection at an address that goes is served to its end.
        @Test func settingsTakeEffect() throws {
            let server = try Configured("CODEX_LB_LISTEN=127.0.0.1:0", "CODEX_LB_WORKERS=1", "CODEX_LB_LOG_LEVEL=info")
            let daemon = server.stage.daemon
            let gate = Gate()
            server.stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let open = try daemon.connect()
            try open.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "open")])
            #expect(try open.head().status == 200)
            let socket = daemon.directory + "/new.sock"
            try server.write(["CODEX_LB_LISTEN=unix:\(socket)", "CODEX_LB_WORKERS=3", "CODEX_LB_LOG_LEVEL=debug"])
            let reloaded = try server.ctl("reload")
            #expect(reloaded.json["workers"] as? Int == 3 && reloaded.json["generation"] as? Int == 2, "\(reloaded)")
            #expect(daemon.status()?["listeners"] as? [String] == ["unix:\(socket)"])
            #expect(eventually(2) { (try? daemon.connect()) == nil }, "the old address is still there")
            let connection = try HTTPConnection(unix: socket)
            try connection.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "new")])
            #expect(try connection.answer().status == 200)
            #expect(daemon.waitLog("DEBUG"))
            gate.open()
            while let event = try open.event() { if event.type == "response.completed" { break } }
            #expect(try daemon.record("open")["status"] as? Int == 200)
            #expect(daemon.stop() == .code(0))
            #expect(access(socket, F_OK) != 0, "the socket's name is left behind")
        }

        /// What is wrong with an order is said, with exit code 1 (2 where the command line itself is wrong).
        @Test func orders() throws {
            let stage = try Stage("a", workers: 2)
            let nobody = try stage.daemon.run("ctl", "drain", "--worker", "9")
            #expect(nobody.exit == .code(1) && nobody.errors.contains("worker.9"), "\(nobody)")
            #expect(try stage.daemon.run("ctl", "scale", "65").exit == .code(2))
            #expect(try stage.daemon.run("ctl", "log-level", "loud").exit == .code(2))
            #expect(try stage.daemon.run("ctl", "log-level", "error", "--json").isGood)
            let old = try #require(stage.daemon.pid("worker", 1))
            #expect(try stage.daemon.run("ctl", "drain", "--worker", "1").isGood)
            #expect(eventually(10) { stage.daemon.pid("worker", 1).map { $0 != old } ?? false && !Daemon.isAlive(old) })
            #expect(try stage.daemon.run("ctl", "stop").isGood)
            #expect(stage.daemon.child?.wait(5) == .code(0))
            let none = try stage.daemon.run("ctl", "reload")
            #expect(none.exit == .code(1) && none.errors.contains("codex-lb serve"), "\(none)")
        }

        /// SIGWINCH takes all workers away and keeps the listeners: a client waits, and is served as soon as SIGTTIN brings one back.
        @Test func drainedAndBack() throws {
            let stage = try Stage("a", workers: 2)
            stage.daemon.child?.signal(SIGWINCH)
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == 1 })
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "waits")])
            #expect(connection.isSilent(0.3))
            stage.daemon.child?.signal(SIGTTIN)
            #expect(try connection.answer().status == 200)
            stage.daemon.child?.signal(SIGTTIN)
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == 3 })
            stage.daemon.child?.signal(SIGTTOU)
            #expect(eventually(10) { stage.daemon.fleetPIDs().count == 2 })
            stage.daemon.child?.signal(SIGQUIT)
            #expect(stage.daemon.child?.wait(5) != nil)
        }

        /// `help signals` prints the table of docs/signals.md.
        @Test func helpSignals() throws {
            let help = try Daemon().run("help", "signals")
            #expect(help.isGood && help.output.contains("SIGHUP"))
            let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../docs/signals.md")
            let rows = try String(contentsOf: page, encoding: .utf8).split(separator: "\n").filter { $0.hasPrefix("| SIG") }.map { row in
                row.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
            }
            let lines = help.output.split(separator: "\n").filter { $0.hasPrefix("SIG") }
            #expect(rows.count == lines.count && rows.count >= 7)
            for (row, line) in zip(rows, lines) { #expect(line.hasPrefix(row[0]) && line.hasSuffix(row[1]), "\(line)") }
        }

        /// A service manager hears of a reload when it begins, with the time, and when it is over, whatever came of it.
        @Test func notifies() throws {
            let stage = try Configured("CODEX_LB_LISTEN=127.0.0.1:0", "CODEX_LB_WORKERS=1", notifies: true)
            let told = try #require(stage.manager)
            #expect(eventually(10) { told.text.contains("READY=1") })
            told.forget()
            #expect(try stage.ctl("reload").result.isGood)
            #expect(eventually(5) { told.text.contains("READY=1") })
            let line = told.text.split(separator: "\n").first { $0.hasPrefix("MONOTONIC_USEC=") }
            let microseconds = try #require(line.flatMap { Int($0.dropFirst(15)) })
            let now = Int(ProcessInfo.processInfo.systemUptime * 1_000_000)
            #expect(told.text.hasPrefix("RELOADING=1\n") && abs(now - microseconds) < 60_000_000, "\(told.text), now \(now)")
            told.forget()
            try stage.write(["CODEX_LB_WORKERS=many"])
            #expect(!(try stage.ctl("reload").result.isGood))
            #expect(eventually(5) { told.text.contains("READY=1") && told.text.contains("many") })
        }

        /// SIGUSR1 after a rotation: every process writes to the new file, and nothing more to the old one.
        @Test func logFile() throws {
            let daemon = try Daemon()
            let (file, old) = (daemon.directory + "/codex-lb.log", daemon.directory + "/codex-lb.log.1")
            daemon.environment["CODEX_LB_LOG_FILE"] = file
            let stage = Stage(try FakeUpstream(), daemon)
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
            try daemon.launch()
            #expect(eventually(20) { procText(file).contains(" supervisor ready ") })
            let line = try #require(procText(file).split(separator: "\n").first { $0.contains("address=") })
            let address = String(line[line.range(of: "address=")!.upperBound...].prefix { $0 != " " })
            func turn(_ id: String) throws -> Int {
                let connection = try HTTPConnection(address)
                try connection.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", id)])
                return try connection.answer().status
            }
            #expect(try turn("before") == 200)
            #expect(eventually(5) { procText(file).contains("before") })
            try FileManager.default.moveItem(atPath: file, toPath: old)
            daemon.child?.signal(SIGUSR1)
            #expect(eventually(5) { procText(file).contains("log files are opened anew") })
            #expect(
                try eventually(5) {
                    _ = try turn("after")
                    return procText(file).contains("after")
                })
            let size = procText(old).count
            #expect(try turn("later") == 200)
            #expect(eventually(5) { procText(file).contains("later") })
            #expect(procText(old).count == size)
            #expect(daemon.stop() == .code(0))
            #expect(procText(file).contains("stopping"))
        }
    }
}
