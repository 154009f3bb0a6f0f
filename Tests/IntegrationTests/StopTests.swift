import DaemonHarness
import FakeUpstream
import Foundation
import Platform
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// The end of a server, as its clients and its successor see it.
    @Suite struct Stops {
        /// While an open stream holds up the stop, a new client is refused at once: nobody is taken into a backlog that nobody serves.
        @Test(arguments: Database.both) func refusesAtOnce(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let gate = Gate()
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let open = try stage.daemon.connect()
            try open.post("/v1/responses", Stage.body())
            #expect(try open.head().status == 200)
            stage.daemon.child?.signal(SIGTERM)
            #expect(eventually(2) { (try? stage.daemon.connect()) == nil }, "a new client is still taken in")
            #expect(stage.daemon.child?.poll() == nil)
            gate.open()
            #expect(stage.daemon.child?.wait(10) == .code(0))
            let left = try FileManager.default.contentsOfDirectory(atPath: stage.daemon.data + "/run").filter { $0.hasSuffix(".sock") }
            #expect(left == [], "sockets are left behind")
        }

        /// Whoever got a connection before the stop gets an answer: clients that connect, wait a little and ask, through five stops.
        @Test func nobodyIsReset() throws {
            let answered = Counter()
            var resets: [Int] = []
            for _ in 0..<5 {
                let stage = try Stage("a", workers: 2)
                let (before, reset) = (answered.value, Counter())
                let group = DispatchGroup()
                for _ in 0..<8 {
                    group.enter()
                    Thread.detachNewThread {
                        defer { group.leave() }
                        while let connection = try? stage.daemon.connect() {
                            let answer = try? {
                                try connection.send("GET", "/health/live", body: nil)
                                return try connection.answer(5)
                            }()
                            if answer?.isWhole == true { answered.add() } else { reset.add() }
                        }
                    }
                }
                #expect(eventually(5) { answered.value > before + 50 })
                #expect(stage.daemon.stop() == .code(0))
                group.wait()
                resets.append(reset.value)
            }
            // Between the last look into the backlog and the close lie some microseconds that no system call closes. Where a worker is put aside
            // just then, all that come meanwhile are in them: one stop of five may meet that, and what is wrong in the stop itself meets each.
            let sum = resets.reduce(0, +)
            #expect(resets.count { $0 > 0 } <= 1 || sum <= 2, "\(resets) of \(answered.value + sum) were taken in and got no answer")
        }

        /// The sockets in `run` may be cleaned away while a server runs: it makes them again, and a new worker finds the writer.
        @Test func socketsComeBack() throws {
            let stage = try Stage("a")
            try FileManager.default.removeItem(atPath: stage.daemon.data + "/run")
            #expect(eventually(5) { stage.daemon.status() != nil }, "the control socket does not come back")
            let old = try #require(stage.daemon.killRole("worker"))
            #expect(eventually(5) { stage.daemon.pid("worker").map { $0 != old } ?? false })
            #expect(try eventually(5) { try stage.turn("after", stream: false).status == 200 }, "the new worker finds no writer")
            _ = try stage.daemon.record("after")
            #expect(try stage.daemon.run("accounts", "pause", "a").isGood)
        }

        /// A worker of another build, whose supervisor has died, finds the writer of this one: it gets no word that it might misread.
        @Test func workerOfAnotherProtocol() throws {
            let daemon = try Daemon()
            try daemon.start()
            for (version, isTaken) in [(UInt8(9), false), (1, true)] {
                let writer = try Sockets.connectUnix(daemon.data + "/run/writer.sock", milliseconds: 2000)
                defer { close(writer) }
                // Frame{hello: Hello{protocol: version}} in protobuf's wire format, and behind it a frame that no worker of ours sends, twice.
                let frame: [UInt8] = [0, 0, 0, 4, 0x12, 2, 0x08, version] + (isTaken ? [] : [0, 0, 0, 2, 0x42, 0x7F])
                try #require(write(writer, frame, frame.count) == frame.count)
                try #require(Descriptor.wait(writer, for: Int32(POLLIN), milliseconds: 5000))
                var answer = [UInt8](repeating: 0, count: 512)
                #expect((read(writer, &answer, answer.count) > 0) == isTaken)
            }
            #expect(daemon.waitLog("a worker speaks another protocol"))
            #expect(!daemon.log.contains("unreadable frame"), "what a stranger says is read")
            #expect(try daemon.get("/health/live").status == 200)
        }

        /// An order of a later command, field 200 of a frame (protobuf's wire format), is answered at once: with what is wrong.
        @Test func laterOrder() throws {
            let stage = try Stage("a")
            let control = try Sockets.connectUnix(stage.daemon.data + "/run/control.sock", milliseconds: 2000)
            defer { close(control) }
            let frame: [UInt8] = [0, 0, 0, 5, 0x08, 9, 0xC2, 0x0C, 0]
            try #require(write(control, frame, frame.count) == frame.count)
            try #require(Descriptor.wait(control, for: Int32(POLLIN), milliseconds: 5000))
            var answer = [UInt8](repeating: 0, count: 512)
            let count = read(control, &answer, answer.count)
            try #require(count > 6)
            #expect(answer[4...5].elementsEqual([0x08, 9]))
            #expect(String(decoding: answer[..<count], as: UTF8.self).contains("is it older than the command?"))
        }

        /// kill -9 of the supervisor with a stream open: the next start serves within a second on the same address, the stream goes on to
        /// its end, and its record is in the store once, without a further start.
        @Test(arguments: Database.both) func supervisorKilledMidStream(_ database: Database) throws {
            let stage = Stage(try FakeUpstream(), try Daemon(on: database))
            try stage.daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
            // A port that nobody else is given while nobody listens on it.
            try stage.daemon.start(listen: "127.0.0.1:\(Ports.free())")
            let gate = Gate()
            stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let open = try stage.daemon.connect()
            try open.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "open")])
            #expect(try open.head().status == 200)
            _ = try open.event()
            let address = stage.daemon.address
            stage.daemon.child?.signal(SIGKILL)
            #expect(stage.daemon.child?.wait(5) == .signal(SIGKILL))
            let start = Date()
            try stage.daemon.launch(listen: address)
            #expect(eventually(10) { (try? stage.turn("new", stream: false, seconds: 5))?.status == 200 })
            let seconds = Date().timeIntervalSince(start)
            #expect(seconds < bound(1.5, debug: 5), "\(seconds) s until the first new answer")
            gate.open()
            while let event = try open.event() { if event.type == "response.completed" { break } }
            #expect(try stage.daemon.record("open", seconds: 10)["status"] as? Int == 200)
            #expect(try stage.daemon.record("new")["status"] as? Int == 200)
            #expect(try stage.daemon.records().count == 2)
        }

        /// Records that an orphan left as a file while a server runs are stored by it, and the file goes.
        @Test(arguments: Database.both) func spoolIsStoredWhileServing(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            let gate = Gate()
            stage.script("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let open = try stage.daemon.connect()
            try open.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "orphan")])
            #expect(try open.head().status == 200)
            let orphan = try #require(stage.daemon.pid("worker"))
            stage.daemon.child?.signal(SIGKILL)
            #expect(stage.daemon.child?.wait(5) == .signal(SIGKILL))
            let spooled = { try FileManager.default.contentsOfDirectory(atPath: stage.daemon.data).filter { $0.hasSuffix(".spool") } }
            if database == .sqlite {
                // No writer: the orphan's record becomes a file, which waits for the server.
                gate.open()
                #expect(try eventually(15) { try !spooled().isEmpty && !Daemon.isAlive(orphan) })
                // It comes while the next server runs, as from an orphan that drains for long.
                let file = try #require(try spooled().first)
                let path = stage.daemon.data + "/" + file
                try FileManager.default.moveItem(atPath: path, toPath: path + ".later")
                try stage.daemon.start()
                try FileManager.default.moveItem(atPath: path + ".later", toPath: path)
            } else {
                try stage.daemon.start()
                gate.open()
            }
            #expect(try stage.daemon.record("orphan", seconds: 10)["status"] as? Int == 200)
            #expect(try eventually(5) { try spooled().isEmpty })
            #expect(try stage.daemon.records().count == 1)
        }
    }
}
