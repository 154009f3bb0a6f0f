import Testing
import Vocabulary

@testable import Fleet

private func at(_ milliseconds: Int) -> Instant { Instant(nanoseconds: 1_000_000_000).adding(milliseconds: milliseconds) }
private let writer = ChildSlot(.writer)
private func worker(_ n: Int) -> ChildSlot { ChildSlot(.worker, n) }

/// A fleet of two workers that serves: writer has pid 10, workers 20 and 21.
private func serving() -> Fleet {
    var fleet = Fleet(workers: 2, now: at(0), drainMilliseconds: 1_000)
    _ = fleet.ticked(at(0))
    _ = fleet.spawned(writer, pid: 10, now: at(0))
    _ = fleet.ready(writer, now: at(1))
    for n in 0...1 {
        _ = fleet.spawned(worker(n), pid: Int32(20 + n), now: at(2))
        _ = fleet.ready(worker(n), now: at(3))
    }
    return fleet
}

@Suite struct FleetTests {
    @Test("The writer comes first, workers follow when it is ready, and READY is said once when all are")
    func start() {
        var fleet = Fleet(workers: 2, now: at(0), drainMilliseconds: 1_000)
        #expect(fleet.ticked(at(0)) == [.spawn(writer)])
        #expect(fleet.spawned(writer, pid: 10, now: at(0)) == [])
        #expect(fleet.ticked(at(5)) == [])
        #expect(fleet.ready(writer, now: at(5)) == [.spawn(worker(0)), .spawn(worker(1))])
        _ = fleet.spawned(worker(0), pid: 20, now: at(6))
        _ = fleet.spawned(worker(1), pid: 21, now: at(6))
        #expect(fleet.ready(worker(1), now: at(7)) == [])
        #expect(fleet.ready(worker(0), now: at(8)) == [.announceReady])
        #expect(fleet.phase == .serving)
        _ = fleet.exited(pid: 20, hasRecords: false, now: at(9))
        _ = fleet.spawned(worker(0), pid: 22, now: at(9))
        #expect(fleet.ready(worker(0), now: at(10)) == [])
    }

    @Test("On a shared database there is no writer: workers start at once, and the end is theirs")
    func withoutWriter() {
        var fleet = Fleet(workers: 2, hasWriter: false, now: at(0), drainMilliseconds: 1_000)
        #expect(fleet.ticked(at(0)) == [.spawn(worker(0)), .spawn(worker(1))])
        for n in 0...1 { _ = fleet.spawned(worker(n), pid: Int32(20 + n), now: at(1)) }
        #expect(fleet.ready(worker(0), now: at(2)) == [])
        #expect(fleet.ready(worker(1), now: at(3)) == [.announceReady])
        #expect(fleet.stop(at(10)).count == 3)
        #expect(fleet.exited(pid: 20, hasRecords: false, now: at(20)) == [])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(30)) == [.exit(code: 0)])
    }

    @Test("Restarts wait 0, 100, 200 … 5000 ms, and a minute of health forgives")
    func backoff() {
        var fleet = serving()
        var now = 100
        var pid: Int32 = 20
        var waits: [Int] = []
        for _ in 0..<9 {
            var actions = fleet.exited(pid: pid, hasRecords: true, now: at(now))
            let died = now
            while actions.isEmpty {
                now += 50
                actions = fleet.ticked(at(now))
            }
            waits.append(now - died)
            #expect(actions == [.spawn(worker(0))])
            pid += 10
            _ = fleet.spawned(worker(0), pid: pid, now: at(now))
            _ = fleet.ready(worker(0), now: at(now))
        }
        #expect(waits == [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000])
        now += Fleet.healthyMilliseconds
        #expect(fleet.exited(pid: pid, hasRecords: false, now: at(now)) == [.spawn(worker(0))])
    }

    @Test("Stop drains the workers first and the writer last, then exits 0")
    func stop() {
        var fleet = serving()
        #expect(fleet.stop(at(10)) == [.closeListeners, .drain(worker(0), milliseconds: 1_000), .drain(worker(1), milliseconds: 1_000)])
        #expect(fleet.exited(pid: 20, hasRecords: false, now: at(20)) == [])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(30)) == [.drain(writer, milliseconds: 1_000)])
        #expect(fleet.exited(pid: 10, hasRecords: false, now: at(40)) == [.exit(code: 0)])
        #expect(fleet.phase == .stopped)
    }

    @Test("A worker that dies while stopping with records in its journal is started again, only to hand them over")
    func journalLeft() {
        var fleet = serving()
        _ = fleet.stop(at(10))
        #expect(fleet.exited(pid: 20, hasRecords: true, now: at(20)) == [.spawn(worker(0))])
        #expect(fleet.spawned(worker(0), pid: 30, now: at(21)) == [.drain(worker(0), milliseconds: 1_000)])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(25)) == [])
        #expect(fleet.exited(pid: 30, hasRecords: false, now: at(30)) == [.drain(writer, milliseconds: 1_000)])
    }

    @Test("The writer is restarted while workers still drain")
    func writerWhileStopping() {
        var fleet = serving()
        _ = fleet.stop(at(10))
        #expect(fleet.exited(pid: 10, hasRecords: false, now: at(20)) == [.spawn(writer)])
        _ = fleet.spawned(writer, pid: 11, now: at(21))
        _ = fleet.exited(pid: 20, hasRecords: false, now: at(22))
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(23)) == [.drain(writer, milliseconds: 1_000)])
    }

    @Test("Who does not get ready, drain or beat in time is killed")
    func overdue() {
        var fleet = Fleet(workers: 1, now: at(0), drainMilliseconds: 1_000, readyMilliseconds: 500)
        _ = fleet.ticked(at(0))
        _ = fleet.spawned(writer, pid: 10, now: at(0))
        #expect(fleet.ticked(at(499)) == [])
        #expect(fleet.ticked(at(500)) == [.kill(10)])
        #expect(fleet.ticked(at(600)) == [])

        fleet = serving()
        _ = fleet.stop(at(0))
        #expect(fleet.ticked(at(6_000)) == [.kill(20), .kill(21)])

        fleet = serving()
        #expect(fleet.heartbeatSeen(worker(0), count: 5, now: at(0)) == [])
        #expect(fleet.heartbeatSeen(worker(0), count: 5, now: at(9_999)) == [])
        #expect(fleet.heartbeatSeen(worker(0), count: 5, now: at(10_000)) == [.abort(20)])
        #expect(fleet.ticked(at(12_000)) == [.kill(20)])
    }

    @Test("A writer that stands still is ended like a worker, and a supervisor that stood still itself blames nobody")
    func hungWriter() {
        var fleet = serving()
        for second in 0..<10 {
            _ = fleet.ticked(at(second * 1_000))
            #expect(fleet.heartbeatSeen(writer, count: 7, now: at(second * 1_000)) == [])
        }
        #expect(fleet.heartbeatSeen(writer, count: 7, now: at(10_000)) == [.abort(10)])
        #expect(fleet.ticked(at(11_000)) == [])
        #expect(fleet.ticked(at(12_000)) == [.kill(10)])

        fleet = serving()
        _ = fleet.ticked(at(100))
        _ = fleet.heartbeatSeen(writer, count: 7, now: at(100))
        _ = fleet.ticked(at(60_000))
        #expect(fleet.heartbeatSeen(writer, count: 7, now: at(60_000)) == [])
    }

    @Test("A refusal while starting ends the start with exit code 1; a second signal ends everything at once")
    func ends() {
        var fleet = Fleet(workers: 1, now: at(0), drainMilliseconds: 1_000)
        _ = fleet.ticked(at(0))
        _ = fleet.spawned(writer, pid: 10, now: at(0))
        #expect(fleet.refused(writer, now: at(1)) == [.closeListeners, .drain(writer, milliseconds: 1_000)])
        #expect(fleet.exited(pid: 10, hasRecords: false, now: at(2)) == [.exit(code: 1)])

        fleet = serving()
        #expect(fleet.stopNow() == [.kill(10), .kill(20), .kill(21), .exit(code: 1)])
    }

    @Test("A start of what runs already, or of what is over, traps with both names")
    func illegalTransitions() async {
        await #expect(processExitsWith: .failure) {
            var fleet = serving()
            _ = fleet.spawned(writer, pid: 99, now: at(5))  // ready
        }
        await #expect(processExitsWith: .failure) {
            var fleet = serving()
            _ = fleet.stop(at(5))
            _ = fleet.spawned(worker(0), pid: 99, now: at(6))  // draining
        }
        await #expect(processExitsWith: .failure) {
            var fleet = serving()
            _ = fleet.stop(at(5))
            _ = fleet.exited(pid: 20, hasRecords: false, now: at(6))
            _ = fleet.spawned(worker(0), pid: 99, now: at(7))  // ended
        }
    }
}
