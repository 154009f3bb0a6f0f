import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Processes that stand still, and starts at the same moment.
    @Suite struct Hangs {
        /// A writer that is stopped is replaced; a command given meanwhile ends with a line, and works afterwards.
        @Test func writerHangs() throws {
            let stage = try Stage("a")
            let old = try #require(stage.daemon.pid("writer"))
            kill(old, SIGSTOP)
            let start = Date()
            let pause = try stage.daemon.run("accounts", "pause", "a", seconds: 25)
            #expect(pause.exit == .code(1) && pause.errors.contains("writer"), "\(pause)")
            #expect(Date().timeIntervalSince(start) < 20)
            #expect(eventually(20) { stage.daemon.pid("writer").map { $0 != old } ?? false }, "the hung writer was not replaced")
            #expect(try stage.daemon.run("accounts", "pause", "a").isGood)
            #expect(try stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try eventually(3) { try stage.turn("after", stream: false).status == 200 })
            _ = try stage.daemon.record("after")
        }

        /// A stopped supervisor answers nothing: the command line ends with a line that says so.
        @Test func supervisorHangs() throws {
            let stage = try Stage("a")
            kill(stage.daemon.supervisorPID, SIGSTOP)
            defer { kill(stage.daemon.supervisorPID, SIGCONT) }
            let pause = try stage.daemon.run("accounts", "pause", "a", seconds: 28)
            #expect(pause.exit == .code(1) && pause.errors.contains("has not answered"), "\(pause)")
            #expect(try stage.turn().types.last == "response.completed", "turns go on")
        }

        /// Of servers that start at the same moment on one directory exactly one serves; the others end with one line.
        @Test func startsTogether() throws {
            for round in 0..<8 {
                let stage = try FakeUpstream()
                let daemon = try Daemon()
                try daemon.addAccount("a", baseURL: stage.baseURL, key: "sk-up-a")
                var children: [Child] = []
                for number in 0..<4 {
                    children.append(
                        try Child(
                            Daemon.binary, ["serve", "--listen", "127.0.0.1:0", "--workers", "1"], environment: daemon.environment,
                            errors: daemon.directory + "/log\(number)"))
                }
                defer {
                    for child in children { child.signal(SIGTERM) }
                    for child in children { _ = child.wait(10) }
                }
                func text(_ number: Int) -> String {
                    String(decoding: FileManager.default.contents(atPath: daemon.directory + "/log\(number)") ?? Data(), as: UTF8.self)
                }
                #expect(
                    eventually(15) {
                        children.indices.allSatisfy { children[$0].poll() != nil || text($0).contains(" supervisor ready ") }
                    }, "round \(round): somebody neither serves nor ends")
                let serving = children.indices.filter { children[$0].poll() == nil }
                #expect(serving.count == 1, "round \(round): \(serving.count) serve")
                for number in children.indices where !serving.contains(number) {
                    #expect(children[number].poll() == .code(1))
                    #expect(text(number).contains("Another codex-lb"), "round \(round): \(text(number))")
                    #expect(!text(number).contains("listening"), "round \(round): the loser took an address: \(text(number))")
                }
                let status = try daemon.run("ctl", "status", "--json")
                #expect(status.isGood && status.output.contains("\"pid\":\(children[serving.first ?? 0].pid)"), "round \(round)")
            }
        }

        /// A worker at its limit of connections stops accepting, and accepts again even if the moment has no descriptor to spare.
        @Test func acceptsAgain() throws {
            let stage = try FakeUpstream()
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: stage.baseURL, key: "sk-up-a")
            // 64 connections are the least limit: 45 % of 142.
            daemon.runner = ["/usr/bin/prlimit", "--nofile=142:142"]
            try daemon.start()
            daemon.runner = []
            let worker = try #require(daemon.pid("worker"))
            var open: [HTTPConnection] = []
            for _ in 0..<64 { open.append(try daemon.connect()) }
            #expect(daemon.waitLog("accepting paused"))
            let waiting = try daemon.connect()
            try waiting.post("/v1/responses", Stage.body())
            #expect((try? waiting.waitBytes(1, seconds: 0.3)) != true, "it was accepted beyond the limit")  // it throws when nothing comes
            func limit(_ soft: Int) throws {
                let result = try Child.capture("/usr/bin/prlimit", ["--pid", String(worker), "--nofile=\(soft):142"])
                try #require(result.isGood, "\(result)")
            }
            try limit(10)
            open = []
            #expect(daemon.waitLog("cannot listen"))
            try limit(142)
            #expect(try waiting.answer(5).types.last == "response.completed")
        }
    }
}
