import DaemonHarness
import FakeUpstream
import Foundation
import Testing
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Processes die, stop and run out of things under load; what is lost is counted. The numbers are those of issue 11; the environment makes
    /// long runs of them (etc/dev/soak.sh).
    @Suite struct Losses {
        private static let rate = longRun("CODEX_LB_TEST_RATE", 100)

        private static func workers(_ daemon: Daemon) -> [Int32] {
            daemon.fleetPIDs().filter { procText("/proc/\($0)/cmdline").split(separator: "\0").contains("worker") }
        }
        private static func writer(_ daemon: Daemon) -> Int32? {
            daemon.fleetPIDs().first { procText("/proc/\($0)/cmdline").split(separator: "\0").contains("writer") }
        }

        /// An upstream that takes up to a tenth of a second for its answers, so that there is always something in flight.
        private final class Pulse: @unchecked Sendable {  // `isOver` is a counter with a lock of its own
            private let gate = Gate()
            private let isOver = Counter()

            init(_ stage: Stage) {
                stage.always("a", .silence(gate))
                Thread.detachNewThread { [gate, isOver] in
                    while isOver.value == 0 {
                        usleep(100_000)
                        gate.release(gate.waitingCount)
                    }
                    gate.open()
                }
            }
            func stop() { isOver.add() }
        }

        /// Failures that lie at none of these deaths. A death takes effect a moment after its signal is sent, and is noted a moment after that.
        private static func apart(_ failures: [OpenLoad.Failure], from kills: [Date]) -> [OpenLoad.Failure] {
            failures.filter { failure in
                !kills.contains {
                    failure.from.addingTimeInterval(-0.5) <= $0 && failure.to.addingTimeInterval(0.5) >= $0
                        && failure.to.timeIntervalSince($0) < 2
                }
            }
        }

        /// 7. kill -9 of a worker, again and again: only requests that were in flight on it fail, and nobody is refused.
        @Test(arguments: Database.both) func workersKilled(_ database: Database) throws {
            let stage = try Stage("a", workers: 4, on: database)
            let pulse = Pulse(stage)
            defer { pulse.stop() }
            let load = OpenLoad(stage, rate: Self.rate)
            var random = Chaos.Seeded(state: 7)
            var kills: [Date] = []
            for _ in 0..<longRun("CODEX_LB_TEST_WORKER_KILLS", 6) {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 30 && Self.workers(stage.daemon).count == 4 })
                guard let pid = Self.workers(stage.daemon).randomElement(using: &random) else { break }
                kill(pid, SIGKILL)
                kills.append(Date())
                #expect(eventually(20) { !Self.workers(stage.daemon).contains(pid) })
            }
            let before = load.count
            #expect(eventually(20) { load.count >= before + 30 })
            try stage.expectThreeSets(load)
            let failures = load.failures
            #expect(!failures.contains { $0.isRefused }, "\(failures.filter(\.isRefused))")
            let others = Self.apart(failures, from: kills)
            #expect(others.isEmpty, "failed without a death: \(others.prefix(3))")
            tally(
                7, "kill -9 of a worker (\(database))",
                "\(kills.count) kills, \(load.count) good, \(failures.count) in flight on the dead, \(others.count) others failed, 0 refused"
            )
        }

        /// 8. kill -9 of the supervisor, again and again; its sockets are with the service manager, which starts it again. What was open ends well,
        /// who comes meanwhile waits, and no record is lost.
        @Test(arguments: Database.both) func supervisorsKilled(_ database: Database) throws {
            let path = FileManager.default.temporaryDirectory.path + "/clbn.\(UUID().uuidString)"
            defer { unlink(path) }
            let manager = try NotifySocket(path)
            let stage = try Stage(
                "a", workers: 1, on: database, environment: ["NOTIFY_SOCKET": manager.path, "CODEX_LB_LISTEN": "127.0.0.1:0"])
            #expect(eventually(5) { manager.text.contains("READY=1") })
            let names = manager.kept.keys.sorted()
            try #require(names.count == 1)
            let pulse = Pulse(stage)
            defer { pulse.stop() }
            let load = OpenLoad(stage, rate: Self.rate)
            let kills = longRun("CODEX_LB_TEST_SUPERVISOR_KILLS", 3)
            for _ in 0..<kills {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 30 })
                stage.daemon.child?.signal(SIGKILL)
                #expect(stage.daemon.child?.wait(5) == .signal(SIGKILL))
                _ = manager.text
                let held = names.compactMap { manager.kept[$0] }
                #expect(held.count == names.count)
                try stage.daemon.launch(passing: held, names: names.joined(separator: ":"))
                try stage.daemon.waitReady()
            }
            let before = load.count
            #expect(eventually(20) { load.count >= before + 30 })
            try stage.expectThreeSets(load)
            #expect(load.failures.isEmpty, "\(load.failures.prefix(3))")
            tally(
                8, "kill -9 of the supervisor (\(database))",
                "\(kills) kills, \(load.count) good, \(load.failures.count) failed, 0 records lost or doubled")
        }

        /// 9. A worker that dies at each start for a while: five starts in ten seconds at once, then 0.5, 1, 2, 4, 5, 5 … s; the others are
        /// unharmed, and it serves again afterwards.
        @Test(arguments: Database.both) func diesAtEachStart(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let daemon = stage.daemon
            struct Start {
                var pid: Int32
                var at: Date
            }
            let format = Date.ISO8601FormatStyle(includingFractionalSeconds: true)
            func starts() -> [Start] {
                daemon.log.split(separator: "\n").compactMap { line in
                    guard line.contains("child started child=worker.0 "), let pid = line.range(of: "pid=") else { return nil }
                    guard let at = try? Date(String(line.prefix { $0 != " " }), strategy: format) else { return nil }  // another line
                    return Int32(line[pid.upperBound...].prefix { $0.isNumber }).map { Start(pid: $0, at: at) }
                }
            }
            // A dead one takes its own requests along; from then on nobody else may fail.
            var killed: Set<Int32> = [try #require(starts().last?.pid)]
            for pid in killed { kill(pid, SIGKILL) }
            var kills = [Date()]
            let load = OpenLoad(stage, rate: 50)
            let start = Date()
            let seconds = Double(longRun("CODEX_LB_TEST_CRASH_SECONDS", 5))
            while true {
                let known = starts()
                if let pid = known.last?.pid, killed.insert(pid).inserted {
                    kill(pid, SIGKILL)
                    kills.append(Date())
                }
                let passed = Date().timeIntervalSince(start)
                // Seven starts have six gaps between them.
                if passed >= seconds, known.count >= 7 || passed >= seconds + 20 { break }
                usleep(1_000)
            }
            let times = starts().map(\.at)
            let gaps = zip(times.dropFirst(), times).map { $0.timeIntervalSince($1) }
            #expect(gaps.count >= 6, "\(gaps)")
            // The first gap is what this test took until its first kill.
            #expect(gaps.prefix(4).dropFirst().allSatisfy { $0 < 2 }, "\(gaps)")
            let steps = [0.5, 1, 2, 4] + Array(repeating: 5.0, count: gaps.count)
            for (gap, step) in zip(gaps.dropFirst(4), steps) { #expect(gap >= step - 0.01 && gap < step + 3, "\(gaps)") }
            #expect(
                eventually(10) { (daemon.status()?["children"] as? [[String: Any]] ?? []).allSatisfy { $0["state"] as? String == "ready" } }
            )
            try stage.expectThreeSets(load)
            // It may have taken clients in before it was killed.
            let failures = load.failures
            #expect(!failures.contains { $0.isRefused }, "\(failures.filter(\.isRefused).prefix(3))")
            let others = Self.apart(failures, from: kills)
            #expect(others.isEmpty, "failed without a death: \(others.prefix(3))")
            tally(
                9, "a worker that dies at each start (\(database))",
                "\(times.count) starts, \(load.count) good on the other, \(failures.count) in flight on the dead, 0 refused")
        }

        /// 10. A worker and the writer stand still: both are replaced soon after the heartbeats that they miss, and only what the worker had in hand fails.
        @Test(arguments: Database.both) func standStill(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let worker = try #require(Self.workers(stage.daemon).first)
            let writer = Self.writer(stage.daemon)
            #expect((writer == nil) == (database != .sqlite))
            let pulse = Pulse(stage)
            defer { pulse.stop() }
            let load = OpenLoad(stage, rate: 40)
            #expect(eventually(10) { load.count > 20 })
            kill(worker, SIGSTOP)
            if let writer { kill(writer, SIGSTOP) }
            let since = Date()
            func seconds(_ pid: Int32, _ pids: () -> [Int32]) -> Double {
                eventually(30) { !pids().contains(pid) && !pids().isEmpty }
                return Date().timeIntervalSince(since)
            }
            let first = seconds(worker) { Self.workers(stage.daemon) }
            let second = writer.map { seconds($0) { Self.writer(stage.daemon).map { [$0] } ?? [] } } ?? first
            // Ten seconds, the time to die by itself, and a look's; the rest is the machine's.
            let limit = Double(Limits.heartbeatMilliseconds) / 1000 + 6
            #expect(first < limit && second < limit, "worker after \(first) s, writer after \(second) s")
            let before = load.count
            #expect(eventually(20) { load.count > before + 20 })
            try stage.expectThreeSets(load)
            let failures = load.failures
            let others = failures.filter { abs($0.to.timeIntervalSince(since) - first) > 1 }
            #expect(others.isEmpty && !failures.contains { $0.isRefused }, "\(others.prefix(3))")
            tally(
                10, database == .sqlite ? "SIGSTOP of a worker and of the writer" : "SIGSTOP of a worker (\(database))",
                String(
                    format: "replaced after %.1f and %.1f s, %d good, %d in the hands of the stopped", first, second, load.count,
                    failures.count))
        }

        /// 11. kill -9 of the writer, again and again: no request fails, no record is lost or doubled.
        @Test func writersKilled() throws {
            let stage = try Stage("a", workers: 2)
            let load = OpenLoad(stage, rate: Self.rate)
            let kills = longRun("CODEX_LB_TEST_WRITER_KILLS", 6)
            for _ in 0..<kills {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 30 && Self.writer(stage.daemon) != nil })
                guard let pid = Self.writer(stage.daemon) else { break }
                kill(pid, SIGKILL)
                #expect(eventually(20) { Self.writer(stage.daemon) != pid })
            }
            #expect(eventually(20) { stage.daemon.pid("writer") != nil })
            try stage.expectThreeSets(load)
            #expect(load.failures.isEmpty, "\(load.failures.prefix(3))")
            tally(
                11, "kill -9 of the writer", "\(kills) kills, \(load.count) good, \(load.failures.count) failed, 0 records lost or doubled")
        }

        /// 12. kill -9 of a worker right after the last byte of an answer: every whole answer has its record.
        @Test(arguments: Database.both) func killedAfterTheLastByte(_ database: Database) throws {
            let stage = try Stage("a", workers: 1, on: database)
            let rounds = longRun("CODEX_LB_TEST_LAST_BYTE_KILLS", 8)
            var answered: [String] = []
            for round in 0..<rounds {
                // A fresh generation has no starts that would put it off.
                if round % 4 == 3 { #expect(try stage.daemon.run("ctl", "reload").isGood) }
                #expect(eventually(20) { Self.workers(stage.daemon).count == 1 })
                let pid = try #require(Self.workers(stage.daemon).first)
                let connection = try stage.daemon.connect()
                try connection.post("/v1/responses", Stage.body(stream: round % 2 == 0), headers: [("X-Request-Id", "last-\(round)")])
                let answer = try connection.answer()
                kill(pid, SIGKILL)
                #expect(answer.isWhole && answer.status == 200)
                answered.append("last-\(round)")
                #expect(eventually(20) { !Self.workers(stage.daemon).contains(pid) })
            }
            #expect(eventually(20) { stage.daemon.pid("worker") != nil })
            try stage.expectOneRecord(of: answered)
            #expect(stage.calls("a") == rounds)
            tally(12, "kill -9 of a worker after the last byte (\(database))", "\(rounds) answers, 0 without a record")
        }

        /// 13. More clients than a process may have descriptors: they wait in the backlog, and none is reset.
        @Test(arguments: Database.both) func fewDescriptors(_ database: Database) throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(on: database)
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            daemon.runner = ["/usr/bin/prlimit", "--nofile=256:256"]
            try daemon.start(workers: 2)
            daemon.runner = []
            let stage = Stage(upstream, daemon)
            let rounds = longRun("CODEX_LB_TEST_EMFILE_ROUNDS", 1)
            let clients = 400
            for round in 0..<rounds {
                let connections = try (0..<clients).map { number in
                    let connection = try daemon.connect()
                    try connection.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "few-\(round)-\(number)")])
                    return connection
                }
                if round == 0 { #expect(daemon.waitLog("accepting paused")) }
                var statuses: [Int: Int] = [:]
                for connection in connections {
                    // Whoever is answered goes, and makes room for one that waits.
                    let answer = try connection.answer(30)
                    connection.close()
                    statuses[answer.status, default: 0] += 1
                }
                #expect(statuses == [200: clients], "\(statuses)")
            }
            #expect(stage.calls("a") == clients * rounds)
            #expect(!daemon.log.contains("child ended"))
            tally(13, "EMFILE at 256 descriptors (\(database))", "\(clients * rounds) clients, 0 reset, 0 failed")
        }

        /// 14. Mixed load with reloads: memory, descriptors and threads of those that stay are flat.
        @Test(arguments: Database.both) func flat(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let steady = SteadyLoad(stage, clients: 3, keepsAlive: true, name: "kept", pause: 5_000)
            let fresh = OpenLoad(stage, rate: 50)
            let (seconds, spacing) = (longRun("CODEX_LB_TEST_FLAT_SECONDS", 8), longRun("CODEX_LB_TEST_FLAT_RELOAD_SECONDS", 1))
            struct Sample {
                var seconds: Double
                var kilobytes: Int
                var descriptors: Int
                var threads: Int
            }
            func sample(_ pid: Int32) -> Sample {
                let descriptors = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd").count) ?? 0  // it has gone
                return Sample(
                    seconds: Date().timeIntervalSince(start), kilobytes: statusKilobytes(pid, "VmRSS"), descriptors: descriptors,
                    threads: statusKilobytes(pid, "Threads"))
            }
            let start = Date()
            let writer = Self.writer(stage.daemon).map { [$0] } ?? []
            #expect(writer.isEmpty == (database != .sqlite))
            let staying = [stage.daemon.supervisorPID] + writer
            var samples: [Int32: [Sample]] = [:]
            var reloads = 0
            while Date().timeIntervalSince(start) < Double(seconds) {
                #expect(try stage.daemon.run("ctl", "reload").isGood)
                reloads += 1
                // At rest: two workers and nobody that drains.
                #expect(eventually(20) { stage.daemon.fleetPIDs().count == 2 + writer.count })
                for pid in staying { samples[pid, default: []].append(sample(pid)) }
                let next = start.addingTimeInterval(Double(reloads * spacing))
                if next.timeIntervalSinceNow > 0 { usleep(UInt32(next.timeIntervalSinceNow * 1_000_000)) }
            }
            let others = steady.stop()
            #expect(steady.failed.isEmpty && steady.connections == 3, "\(steady.failed.prefix(3))")
            let good = fresh.stop()
            #expect(fresh.failures.isEmpty, "\(fresh.failures.prefix(3))")
            let total = Double(good.count + others.count)
            #expect(try eventually(10) { try stage.metric("codex_lb_usage_records_acknowledged_total") == total })
            // The newest, which `requests` lists of a long run.
            try stage.expectOneRecord(of: good.suffix(200) + others.suffix(1_000))
            var words: [String] = []
            for (pid, name) in zip(staying, ["supervisor", "writer"]) {
                // The first ones warm up.
                let kept = Array((samples[pid] ?? []).dropFirst(min(3, reloads / 2)))
                let (first, last) = (try #require(kept.first), try #require(kept.last))
                let growth = last.kilobytes - first.kilobytes
                #expect(growth < 4 << 10, "\(name) grew by \(growth) KiB in \(reloads) reloads")
                // A connection of the command line may be open in one of them.
                #expect(abs(last.descriptors - first.descriptors) <= 2, "\(name): \(kept.map(\.descriptors))")
                #expect(last.threads == first.threads, "\(name): \(kept.map(\.threads))")
                words.append(
                    "\(name) \(first.kilobytes) to \(last.kilobytes) KiB, \(last.descriptors) descriptors, \(last.threads) threads")
            }
            tally(
                14, "mixed load with reloads (\(database))",
                "\(reloads) reloads in \(seconds) s, \(good.count + others.count) good, 0 failed; " + words.joined(separator: "; "))
        }

        /// All workers fail right after a reload: the settings before it come back by themselves, and the status says so.
        @Test func returnsToGoodSettings() throws {
            let daemon = try Daemon()
            daemon.workingDirectory = daemon.directory
            let upstream = try FakeUpstream()
            let stage = Stage(upstream, daemon)
            func write(_ level: String) throws {
                try Data("CODEX_LB_WORKERS=2\nCODEX_LB_STREAM_IDLE_TIMEOUT_SECONDS=\(level)\n".utf8).write(
                    to: URL(fileURLWithPath: daemon.directory + "/.env"))
            }
            try write("33")
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            try daemon.start(workers: nil)
            daemon.workingDirectory = nil
            try write("44")
            #expect(try daemon.run("ctl", "reload").isGood)
            func idle() -> Set<String> {
                Set(
                    Self.workers(daemon).map { pid in
                        procText("/proc/\(pid)/environ").split(separator: "\0").first { $0.hasPrefix("CODEX_LB_STREAM_IDLE") }.map(
                            String.init) ?? ""
                    })
            }
            #expect(eventually(10) { idle() == ["CODEX_LB_STREAM_IDLE_TIMEOUT_SECONDS=44"] })
            for _ in 0..<Limits.trialExits {
                let pids = Self.workers(daemon)
                for pid in pids { kill(pid, SIGKILL) }
                #expect(eventually(10) { Set(pids).isDisjoint(with: Self.workers(daemon)) && Self.workers(daemon).count >= 2 })
            }
            #expect(daemon.waitLog("failed right after its reload"))
            #expect(eventually(10) { daemon.status()?["generation"] as? Int == 3 })
            #expect(eventually(10) { idle() == ["CODEX_LB_STREAM_IDLE_TIMEOUT_SECONDS=33"] })
            let problem = daemon.status()?["reload_problem"] as? String ?? ""
            #expect(problem.contains("generation 2") && problem.contains("generation 1"), "\(problem)")
            #expect(try stage.turn().status == 200)
            // The next reload takes what the files say.
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(daemon.status()?["reload_problem"] is NSNull)
        }
    }
}
