import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Another program takes the server over under load, in the same process.
    @Suite struct Upgrades {
        /// A server whose program a test may replace, as an installation does: by a file of the same name.
        private struct Installed {
            let stage: Stage
            let program: String

            init(workers: Int = 2, on database: Database = .sqlite) throws {
                let daemon = try Daemon(on: database)
                program = daemon.directory + "/codex-lb"
                stage = Stage(try FakeUpstream(), daemon)
                try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
                try Self.copy(Daemon.binary, to: program)
                daemon.binary = program
                try daemon.start(workers: workers)
                daemon.binary = Daemon.binary
            }

            private static func copy(_ file: String, to path: String) throws {
                try FileManager.default.copyItem(atPath: file, toPath: path + ".new")
                guard rename(path + ".new", path) == 0 else { throw HarnessError("renaming to \(path)") }
            }

            func install() throws { try Self.copy(Daemon.binary, to: program) }

            /// A program of a few lines of shell.
            func install(script: String) throws {
                try Data("#!/bin/sh\n\(script)\n".utf8).write(to: URL(fileURLWithPath: program + ".new"))
                chmod(program + ".new", 0o755)
                guard rename(program + ".new", program) == 0 else { throw HarnessError("renaming to \(program)") }
            }

            func upgrade() throws -> (result: CommandResult, json: [String: Any]) {
                let result = try stage.daemon.run(["ctl", "upgrade", "--json"], seconds: 60)
                return (result, try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any] ?? [:])
            }

            /// The file that each process of the server runs.
            func identities() -> Set<String> {
                Set(
                    ([stage.daemon.supervisorPID] + stage.daemon.fleetPIDs()).map { pid in
                        var info = stat()
                        return stat("/proc/\(pid)/exe", &info) == 0 ? "\(info.st_dev):\(info.st_ino)" : "gone"
                    })
            }
            var installed: String {
                var info = stat()
                return stat(program, &info) == 0 ? "\(info.st_dev):\(info.st_ino)" : "none"
            }
        }

        /// `CODEX_LB_TEST_UPGRADES=20` for a longer run.
        private static let rounds = longRun("CODEX_LB_TEST_UPGRADES", 5)

        /// Programs that can't take over: what they do, and what is said of it.
        private static let broken = [
            ("kill -SEGV $$", "signal 11"), ("exit 3", "exit code 3"), ("exit 0", "said nothing"), ("echo no memory; exit 1", "no memory"),
            ("printf 'CODEX_LB_BUILD=9.9 succession=1 protocol=1 scoreboard=99 journal=2 schema=0003\\0'", "restart"),
        ]

        /// Upgrades under load, half of them to a program that can't be one: 0 failed requests, 0 closed connections, the same pid, and three
        /// sets agree.
        @Test(arguments: Database.both) func underLoad(_ database: Database) throws {
            let server = try Installed(on: database)
            let daemon = server.stage.daemon
            let load = SteadyLoad(server.stage, clients: 6, keepsAlive: true)
            let fresh = SteadyLoad(server.stage, clients: 3, keepsAlive: false, name: "fresh")
            var generation = 1
            for round in 0..<Self.rounds {
                let before = load.count
                if round % 2 == 0 {
                    let old = Set(daemon.fleetPIDs())
                    try server.install()
                    let done = try server.upgrade()
                    generation += 1
                    #expect(done.result.isGood, "round \(round): \(done.result)\n\(daemon.log.suffix(2000))")
                    #expect(done.json["generation"] as? Int == generation && done.json["version"] is String, "\(done.json)")
                    #expect(eventually(10) { old.isDisjoint(with: daemon.fleetPIDs()) }, "round \(round): old processes stay")
                    #expect(eventually(10) { server.identities() == [server.installed] }, "round \(round): another file runs")
                } else {
                    let (script, clue) = Self.broken[round / 2 % Self.broken.count]
                    // Those of the generation before have gone.
                    #expect(eventually(10) { daemon.fleetPIDs().count == daemon.fleetSize(workers: 2) })
                    let old = Set(daemon.fleetPIDs())
                    try server.install(script: script)
                    let failed = try server.upgrade()
                    #expect(failed.result.exit == .code(1), "round \(round): \(failed.result)")
                    #expect((failed.json["error"] as? String ?? "").contains(clue), "\(failed.json)")
                    #expect(Set(daemon.fleetPIDs()) == old)
                }
                #expect(daemon.child?.poll() == nil, "the server has ended")
                #expect(eventually(10) { load.count > before + 20 })
            }
            let status = daemon.status()
            #expect(status?["pid"] as? Int == Int(daemon.supervisorPID) && status?["generation"] as? Int == generation)
            #expect(eventually(10) { daemon.fleetPIDs().count == daemon.fleetSize(workers: 2) })
            let others = fresh.stop()
            #expect(fresh.failed.isEmpty, "\(fresh.failed.prefix(3))")
            try server.stage.expectThreeSets(load, and: others)
            #expect(load.connections == 6, "connections were closed")
            tally(
                5, "upgrades under load (\(database))",
                "\(Self.rounds), \(Self.rounds / 2) of them to a broken program, \(load.count + others.count) good, 0 failed, 0 connections closed"
            )
            #expect(daemon.stop() == .code(0))
        }

        /// Each program that can't take over is told by name of its fault within seconds, and nothing has changed.
        @Test func refused() throws {
            let server = try Installed(workers: 1)
            let old = Set(server.stage.daemon.fleetPIDs())
            for (script, clue) in Self.broken {
                try server.install(script: script)
                let failed = try server.upgrade()
                #expect(failed.result.exit == .code(1) && (failed.json["error"] as? String ?? "").contains(clue), "\(script): \(failed)")
                let problem = server.stage.daemon.status()?["reload_problem"] as? String ?? ""
                #expect(problem.contains(clue))
            }
            unlink(server.program)
            let missing = try server.upgrade().json["error"] as? String ?? ""
            #expect(missing.contains("no program"), "\(missing)")
            #expect(Set(server.stage.daemon.fleetPIDs()) == old)
            #expect(try server.stage.turn().status == 200)
        }

        /// The new program takes the process over, but its workers die at their start: those of the old program serve on, the upgrade fails
        /// with the reason, and a reload brings the new program's workers when they can be started.
        @Test func newWorkersDie() throws {
            let server = try Installed()
            let daemon = server.stage.daemon
            let load = SteadyLoad(server.stage, clients: 4, keepsAlive: true)
            let old = Set(daemon.fleetPIDs())
            try server.install()
            // The writer stands still: new workers get no snapshot, so that none of them is ready.
            let writer = try #require(daemon.pid("writer"))
            kill(writer, SIGSTOP)
            defer { kill(writer, SIGCONT) }
            daemon.child?.signal(SIGUSR2)
            var fresh: Int32?
            #expect(
                eventually(20) {
                    fresh = daemon.fleetPIDs().first {
                        !old.contains($0) && procText("/proc/\($0)/cmdline").split(separator: "\0").contains("worker")
                    }
                    return fresh != nil
                })
            kill(try #require(fresh), SIGKILL)
            #expect(eventually(10) { (daemon.status()?["reload_problem"] as? String ?? "").contains("signal 9") })
            kill(writer, SIGCONT)
            #expect(eventually(10) { Set(daemon.fleetPIDs()) == old }, "\(daemon.fleetPIDs()), before \(old)")
            #expect(daemon.status()?["generation"] as? Int == 1)
            let before = load.count
            #expect(eventually(10) { load.count > before + 20 })
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(eventually(10) { old.subtracting([writer]).isDisjoint(with: daemon.fleetPIDs()) })
            try server.stage.expectThreeSets(load)
            #expect(load.connections == 4, "connections were closed")
        }

        /// SIGUSR2 upgrades; an open stream goes on in the old worker, byte for byte; a stop, a reload and a dead worker are obeyed and
        /// replaced by the new program as by the old one.
        @Test func goesOn() throws {
            let server = try Installed()
            let daemon = server.stage.daemon
            let gate = Gate()
            server.stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.delta("y"), Canned.completed()]))
            let open = try daemon.connect()
            try open.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "open")])
            #expect(try open.head().status == 200)
            try server.install()
            daemon.child?.signal(SIGUSR2)
            #expect(daemon.waitLog(" upgraded ", seconds: 20), "\(daemon.log.suffix(2000))")
            let children = try #require(daemon.status()?["children"] as? [[String: Any]])
            #expect(children.contains { $0["state"] as? String == "draining" && $0["generation"] as? Int == 1 }, "\(children)")
            gate.open()
            var types: [String] = []
            while let event = try open.event() {
                types.append(event.type)
                if event.type == "response.completed" { break }
            }
            #expect(types.suffix(2) == ["response.output_text.delta", "response.completed"])
            #expect(try daemon.record("open")["status"] as? Int == 200)
            #expect(eventually(10) { daemon.fleetPIDs().count == 3 }, "the old worker stays")
            // Both locks and the control socket are where they were.
            #expect(try daemon.run("serve", "--listen", "127.0.0.1:0").errors.contains("Another codex-lb"))
            let killed = try #require(daemon.killRole("worker", 1))
            #expect(eventually(10) { daemon.pid("worker", 1).map { $0 != killed } ?? false })
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(try server.stage.turn("after").status == 200)
            #expect(daemon.stop() == .code(0))
            #expect(daemon.log.components(separatedBy: "stopping").count > 1)
        }
    }
}
