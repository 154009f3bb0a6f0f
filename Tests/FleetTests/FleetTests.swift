import Testing
import Vocabulary

@testable import Fleet

private func at(_ milliseconds: Int) -> Instant { Instant(nanoseconds: 1_000_000_000).adding(milliseconds: milliseconds) }
private let writer = ChildID(serial: 0)
/// Of the first generation.
private func worker(_ n: Int) -> ChildID { ChildID(serial: 1 + n) }
private let times = Fleet.Times(drain: 1_000, reloadDrain: 60_000)

/// A fleet of two workers that serves: writer has pid 10, workers 20 and 21.
private func serving(workers: Int = 2) -> Fleet {
    var fleet = Fleet(workers: workers, now: at(0), times: times)
    _ = fleet.ticked(at(0))
    _ = fleet.spawned(writer, pid: 10, now: at(0))
    _ = fleet.ready(writer, now: at(1))
    for n in 0..<workers {
        _ = fleet.spawned(worker(n), pid: Int32(20 + n), now: at(2))
        _ = fleet.ready(worker(n), now: at(3))
    }
    return fleet
}

extension [Fleet.Action] {
    fileprivate var spawned: [ChildID] { compactMap { if case .spawn(let id) = $0 { id } else { nil } } }
    fileprivate var drained: [ChildID] { compactMap { if case .drain(let id, _, _) = $0 { id } else { nil } } }
}

@Suite struct FleetTests {
    @Test("The writer comes first, workers follow when it is ready, and READY is said once when all are")
    func start() {
        var fleet = Fleet(workers: 2, now: at(0), times: times)
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
        var fleet = Fleet(workers: 2, hasWriter: false, now: at(0), times: times)
        #expect(fleet.ticked(at(0)) == [.spawn(ChildID(serial: 0)), .spawn(ChildID(serial: 1))])
        for n in 0...1 { _ = fleet.spawned(ChildID(serial: n), pid: Int32(20 + n), now: at(1)) }
        #expect(fleet.ready(ChildID(serial: 0), now: at(2)) == [])
        #expect(fleet.ready(ChildID(serial: 1), now: at(3)) == [.announceReady])
        #expect(fleet.stop(at(10)).count == 3)
        #expect(fleet.exited(pid: 20, hasRecords: false, now: at(20)) == [])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(30)) == [.exit(code: 0)])
    }

    @Test("Five starts in ten seconds are immediate, further ones wait 0.5, 1, 2, 4, 5, 5 … s, and a minute of health forgives")
    func backoff() {
        var fleet = serving()
        var now = 100
        var pid: Int32 = 20
        var waits: [Int] = []
        for _ in 0..<10 {
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
        #expect(waits == [0, 0, 0, 0, 500, 1_000, 2_000, 4_000, 5_000, 5_000])
        now += Fleet.healthyMilliseconds
        #expect(fleet.exited(pid: pid, hasRecords: false, now: at(now)) == [.spawn(worker(0))])
    }

    @Test("Stop drains the workers first and the writer last, then exits 0")
    func stop() {
        var fleet = serving()
        #expect(
            fleet.stop(at(10)) == [
                .closeListeners, .drain(worker(0), milliseconds: 1_000, handsOver: false),
                .drain(worker(1), milliseconds: 1_000, handsOver: false),
            ])
        #expect(fleet.exited(pid: 20, hasRecords: false, now: at(20)) == [])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(30)) == [.drain(writer, milliseconds: 1_000, handsOver: false)])
        #expect(fleet.exited(pid: 10, hasRecords: false, now: at(40)) == [.exit(code: 0)])
        #expect(fleet.phase == .stopped)
    }

    @Test("A worker that dies while stopping with records in its journal is started again, only to hand them over")
    func journalLeft() {
        var fleet = serving()
        _ = fleet.stop(at(10))
        let row = fleet[worker(0)]?.row
        #expect(fleet.exited(pid: 20, hasRecords: true, now: at(20)) == [.spawn(worker(0))])
        #expect(fleet[worker(0)]?.row == row, "the records lie in the journal of that row")
        #expect(fleet.spawned(worker(0), pid: 30, now: at(21)) == [.drain(worker(0), milliseconds: 1_000, handsOver: false)])
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(25)) == [])
        #expect(fleet.exited(pid: 30, hasRecords: false, now: at(30)) == [.drain(writer, milliseconds: 1_000, handsOver: false)])
    }

    @Test("A worker that ended by itself and left records is not tried again at a stop: they go to a file")
    func journalLeftOrderly() {
        var fleet = serving(workers: 1)
        _ = fleet.stop(at(10))
        #expect(
            fleet.exited(pid: 20, hasRecords: true, isOrderly: true, now: at(20)) == [.drain(writer, milliseconds: 1_000, handsOver: false)]
        )
    }

    @Test("The writer is restarted while workers still drain")
    func writerWhileStopping() {
        var fleet = serving()
        _ = fleet.stop(at(10))
        #expect(fleet.exited(pid: 10, hasRecords: false, now: at(20)) == [.spawn(writer)])
        _ = fleet.spawned(writer, pid: 11, now: at(21))
        _ = fleet.exited(pid: 20, hasRecords: false, now: at(22))
        #expect(fleet.exited(pid: 21, hasRecords: false, now: at(23)) == [.drain(writer, milliseconds: 1_000, handsOver: false)])
    }

    @Test("Who does not get ready, drain or beat in time is killed")
    func overdue() {
        var fleet = Fleet(workers: 1, now: at(0), times: Fleet.Times(drain: 1_000, ready: 500))
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

    @Test("A worker that hangs in a long drain is ended long before its deadline")
    func hungDrain() {
        var fleet = serving(workers: 1)
        _ = fleet.replace(worker: 0, now: at(10))
        let fresh = ChildID(serial: 2)
        _ = fleet.spawned(fresh, pid: 30, now: at(11))
        #expect(fleet.ready(fresh, now: at(12)) == [.drain(worker(0), milliseconds: 60_000, handsOver: true)])
        #expect(fleet.heartbeatSeen(worker(0), count: 5, now: at(20)) == [])
        #expect(fleet.heartbeatSeen(worker(0), count: 5, now: at(10_020)) == [.abort(20)])
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
        var fleet = Fleet(workers: 1, now: at(0), times: times)
        _ = fleet.ticked(at(0))
        _ = fleet.spawned(writer, pid: 10, now: at(0))
        #expect(
            fleet.refused(writer, reason: "x", now: at(1)) == [.closeListeners, .drain(writer, milliseconds: 1_000, handsOver: false)])
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
            _ = fleet.spawned(worker(0), pid: 99, now: at(7))  // gone
        }
    }
}

@Suite struct GenerationTests {
    /// Two workers of generation 2 that start, with pids 30 and 31.
    private func reloading(_ fleet: inout Fleet, at now: Int) -> [ChildID] {
        #expect(fleet.reload(now: at(now)) == [.checkSettings])
        let ids = fleet.settingsChecked(workers: 2, times: times, now: at(now)).spawned
        #expect(ids.count == 2)
        for (n, id) in ids.enumerated() { _ = fleet.spawned(id, pid: Int32(30 + n), now: at(now)) }
        return ids
    }

    @Test("The new generation is complete before the old one drains, and rows are taken beside it and given back")
    func reload() {
        var fleet = serving()
        let ids = reloading(&fleet, at: 100)
        #expect(fleet.ready(ids[1], now: at(110)) == [])
        #expect(fleet.generation == 1)
        #expect(Set(fleet.children.compactMap(\.row)) == [0, 1, 2, 3])
        #expect(
            fleet.ready(ids[0], now: at(120)) == [
                .reloaded(generation: 2), .drain(worker(0), milliseconds: 60_000, handsOver: true),
                .drain(worker(1), milliseconds: 60_000, handsOver: true),
            ])
        #expect(fleet.generation == 2 && fleet.drainingGenerations == [1] && fleet.reload == .none)
        #expect(fleet.exited(pid: 20, hasRecords: false, isOrderly: true, now: at(130)) == [])
        #expect(fleet.exited(pid: 21, hasRecords: false, isOrderly: true, now: at(140)) == [.retired(generation: 1)])
        #expect(Set(fleet.children.compactMap(\.row)) == [2, 3] && fleet.rowsEnd == 4)
    }

    @Test("Whatever goes wrong with the new generation, the old one is not touched and the reason is told", arguments: 0..<5)
    func failures(_ kind: Int) {
        var fleet = serving()
        let ids = reloading(&fleet, at: 100)
        #expect(fleet.ready(ids[1], now: at(110)) == [])
        var actions: [Fleet.Action]
        switch kind {
        case 0: actions = fleet.exited(pid: 30, hasRecords: false, reason: "signal 9", now: at(200))
        case 1: actions = fleet.refused(ids[0], reason: "the schema is too new", now: at(200))
        case 2: actions = fleet.ticked(at(100 + Limits.readyMilliseconds))
        case 3: actions = fleet.exited(pid: 31, hasRecords: true, reason: "signal 11", now: at(200))  // it had served already
        default: actions = fleet.stop(at(200))
        }
        let reasons = actions.compactMap { if case .reloadFailed(let reason) = $0 { reason } else { nil } }
        #expect(reasons.count == 1 && !reasons[0].isEmpty, "\(actions)")
        #expect(fleet.generation == 1 && fleet.reload == .none)
        if kind < 4 {
            #expect(!actions.drained.contains(worker(0)) && !actions.drained.contains(worker(1)))
            let old = fleet.children.filter { $0.generation == 1 && !$0.isReady }
            #expect(old.isEmpty)
        }
        if kind == 0 { #expect(actions.drained == [ids[1]]) }
        if kind == 2 { #expect(actions.contains(.kill(30)) && reasons[0].contains("30 s")) }
        if kind == 3 { #expect(actions.spawned == [ids[1]], "somebody must bring its records home") }
    }

    @Test("A child that can't even be spawned fails the reload")
    func spawnFails() {
        var fleet = serving()
        _ = fleet.reload(now: at(100))
        let ids = fleet.settingsChecked(workers: 2, times: times, now: at(100)).spawned
        #expect(
            fleet.spawnFailed(ids[0], reason: "EAGAIN", now: at(101)).first
                == .reloadFailed(reason: "worker.0 of the new generation ended: EAGAIN"))
        #expect(fleet.children.count == 3 && fleet.rowsEnd == 2)
    }

    @Test("Settings that can't be used are told, and nothing is started")
    func refusedSettings() {
        var fleet = serving()
        _ = fleet.reload(now: at(100))
        #expect(
            fleet.settingsRefused(reason: "CODEX_LB_WORKERS: \"many\"", now: at(110)) == [
                .reloadFailed(reason: "CODEX_LB_WORKERS: \"many\"")
            ])
        #expect(fleet.children.count == 3 && fleet.reload == .none)
    }

    @Test("A thousand signals in a second are two reloads; one that somebody waits for follows at once")
    func coalescing() {
        var fleet = serving()
        var begun = 0
        func count(_ actions: [Fleet.Action]) { begun += actions.count { $0 == .checkSettings } }
        for i in 0..<1_000 {
            count(fleet.reload(now: at(100 + i)))
            if i % 50 == 0 {
                count(fleet.ticked(at(100 + i)))
                count(fleet.settingsRefused(reason: "x", now: at(100 + i)))
            }
        }
        for i in 0..<100 {
            count(fleet.ticked(at(1_100 + 50 * i)))
            count(fleet.settingsRefused(reason: "x", now: at(1_100 + 50 * i)))
        }
        #expect(begun == 2)
        #expect(fleet.reload(isUrgent: true, now: at(10_000)) == [.checkSettings])
        #expect(fleet.reload(isUrgent: true, now: at(10_010)) == [])
        #expect(fleet.settingsRefused(reason: "x", now: at(10_020)) == [.reloadFailed(reason: "x")])
        #expect(fleet.ticked(at(10_050)) == [.checkSettings])
    }

    @Test("With eight generations draining, the oldest one's deadline is tightened and the reload waits for its end")
    func tooManyDraining() {
        var fleet = serving(workers: 1)
        var pid: Int32 = 30
        for round in 0..<Limits.drainingGenerationsMax {
            _ = fleet.reload(isUrgent: true, now: at(100 + round))
            let ids = fleet.settingsChecked(workers: 1, times: times, now: at(100 + round)).spawned
            _ = fleet.spawned(ids[0], pid: pid, now: at(100 + round))
            #expect(fleet.ready(ids[0], now: at(100 + round)).first == .reloaded(generation: UInt64(round + 2)))
            pid += 1
        }
        #expect(fleet.drainingGenerations == Array(1...8))
        _ = fleet.reload(isUrgent: true, now: at(200))
        #expect(
            fleet.settingsChecked(workers: 1, times: times, now: at(200)) == [
                .tightened(generation: 1, milliseconds: 1_000), .drain(worker(0), milliseconds: 1_000, handsOver: true),
            ])
        #expect(fleet.reload == .waitingForRoom(workers: 1))
        let actions = fleet.exited(pid: 20, hasRecords: false, isOrderly: true, now: at(900))
        #expect(actions.first == .retired(generation: 1) && actions.spawned.count == 1)
        #expect(fleet.reload == .starting)
    }

    @Test("A deadline is tightened, never put off")
    func deadline() {
        var fleet = serving()
        _ = fleet.stop(at(0))
        guard case .draining(_, let by)? = fleet[worker(0)]?.state else { return #expect(Bool(false)) }
        var later = serving()
        let ids = reloading(&later, at: 100)
        for id in ids { _ = later.ready(id, now: at(110)) }
        _ = later.stop(at(200))
        guard case .draining(_, let tightened)? = later[worker(0)]?.state else { return #expect(Bool(false)) }
        #expect(tightened == by.adding(milliseconds: 200))
    }

    @Test("More workers are started at once; fewer leave only when another one is ready; numbers stay dense")
    func scale() throws {
        var fleet = serving()
        let more = try fleet.scale(to: 4, now: at(10)).get().spawned
        #expect(more.compactMap { fleet[$0]?.slot.number } == [2, 3])
        for (n, id) in more.enumerated() {
            _ = fleet.spawned(id, pid: Int32(30 + n), now: at(11))
            _ = fleet.ready(id, now: at(12))
        }
        // The one that stays is just being started again: the others must not go before it is there.
        #expect(fleet.exited(pid: 20, hasRecords: false, now: at(20)) == [.spawn(worker(0))])
        _ = fleet.spawned(worker(0), pid: 40, now: at(21))
        let none = try fleet.scale(to: 1, now: at(30)).get()
        #expect(none == [])
        #expect(fleet.ready(worker(0), now: at(40)).drained == [worker(1)] + more)
        #expect(fleet.workers == 1)
        // While they drain their numbers are free.
        let again = try fleet.scale(to: 2, now: at(50)).get().spawned
        #expect(again.compactMap { fleet[$0]?.slot.number } == [1])
        for bad in [0, 65, -1] {
            if case .success = fleet.scale(to: bad, now: at(60)) { #expect(Bool(false), "\(bad)") }
        }
        #expect(fleet.workers == 2)
    }

    @Test("All workers can be taken out of service; a reload or a number brings them back")
    func drainAll() throws {
        var fleet = serving()
        let leaving = try fleet.drainAll(now: at(10)).get().drained
        #expect(leaving == [worker(0), worker(1)])
        _ = fleet.exited(pid: 20, hasRecords: false, isOrderly: true, now: at(20))
        #expect(fleet.exited(pid: 21, hasRecords: false, isOrderly: true, now: at(20)) == [])
        #expect(fleet.workers == 0 && fleet.phase == .serving)
        #expect(fleet.ticked(at(60_000)) == [])
        let back = try fleet.scale(to: 1, now: at(60_010)).get().spawned
        #expect(back.count == 1)
    }

    @Test("Orders in the middle of a reload are refused with a reason")
    func busy() {
        var fleet = serving()
        _ = reloading(&fleet, at: 100)
        for result in [fleet.scale(to: 4, now: at(110)), fleet.replace(worker: 0, now: at(110)), fleet.drainAll(now: at(110))] {
            guard case .failure(let why) = result else {
                #expect(Bool(false), "it was obeyed")
                continue
            }
            #expect(why.description.contains("reload"))
        }
    }

    @Test("With all workers taken out of service a reload that fails leaves none of its own")
    func drainedThenFailed() throws {
        var fleet = serving()
        _ = try fleet.drainAll(now: at(10_000)).get()
        for pid in [20, 21] as [Int32] { _ = fleet.exited(pid: pid, hasRecords: false, isOrderly: true, now: at(11_000)) }
        let ids = reloading(&fleet, at: 20_000)
        _ = fleet.ready(ids[0], now: at(20_100))
        let failed = fleet.exited(pid: 31, hasRecords: false, reason: "signal 9", now: at(20_200))
        #expect(failed.contains(.drain(ids[0], milliseconds: 60_000, handsOver: false)), "\(failed)")
    }

    // MARK: Upgrade

    @Test("Another program takes over when nothing is under way; its workers come first, then its writer")
    func upgrade() throws {
        var fleet = serving()
        #expect(fleet.upgrade(now: at(1_000)) == .success([.checkProgram]))
        #expect(fleet.reload(isUrgent: true, now: at(1_010)) == [], "a reload waits for the other program")
        guard case .failure = fleet.scale(to: 3, now: at(1_020)) else { return #expect(Bool(false)) }
        #expect(fleet.programChecked(now: at(1_100)) == [.replaceProgram])
        #expect(fleet.ticked(at(1_150)) == [.replaceProgram], "again, if it could not be")

        fleet = try #require(
            Fleet(adopting: fleet.children, generation: 1, lastGeneration: 1, workers: 2, now: at(1_200), times: times))
        #expect(fleet.adopted(now: at(1_200)) == [.checkSettings])
        let spawns = fleet.settingsChecked(workers: 1, times: times, now: at(1_210))
        guard case .spawn(let fresh)? = spawns.first else { return #expect(Bool(false), "\(spawns)") }
        _ = fleet.spawned(fresh, pid: 40, now: at(1_220))
        let promoted = fleet.ready(fresh, now: at(1_300))
        #expect(promoted.contains(.reloaded(generation: 2)) && promoted.contains(.drain(writer, milliseconds: 1_000, handsOver: true)))
        #expect(fleet.exited(pid: 10, hasRecords: false, isOrderly: true, now: at(1_310)) == [.spawn(writer)])
        _ = fleet.spawned(writer, pid: 11, now: at(1_310))
        #expect(fleet.ready(writer, now: at(1_400)) == [.upgraded])
        #expect(fleet.upgrade == .none)
    }

    @Test("A program that can't take over, or processes that do not come to rest, leave everything as it is")
    func upgradeFails() throws {
        var fleet = serving()
        _ = try fleet.upgrade(now: at(1_000)).get()
        #expect(fleet.programRefused(reason: "bad") == [.upgradeFailed(reason: "bad")])
        _ = try fleet.upgrade(now: at(2_000)).get()
        _ = fleet.programChecked(now: at(2_000))
        let late = fleet.ticked(at(2_000 + Limits.upgradeRestMilliseconds))
        #expect(late.count == 1 && fleet.upgrade == .none, "\(late)")
        _ = try fleet.upgrade(now: at(60_000)).get()
        #expect(fleet.stop(at(60_001)).contains(.upgradeFailed(reason: "the server is stopping")))
    }

    // MARK: Return

    /// All workers of the generation in charge end; the actions of the last end.
    private func fail(_ fleet: inout Fleet, at now: Int) -> [Fleet.Action] {
        var last: [Fleet.Action] = []
        for child in fleet.children where child.generation == fleet.generation {
            guard let pid = child.state.pid else { continue }
            last = fleet.exited(pid: pid, hasRecords: false, now: at(now))
            guard case .waiting = fleet[child.id]?.state else { continue }
            _ = fleet.spawned(child.id, pid: pid + 100, now: at(now))
        }
        return last
    }

    @Test("All workers that fail again and again right after a reload have it undone, once; later, or some of them, do not")
    func undone() {
        func reloaded() -> Fleet {
            var fleet = serving()
            let spawned = reloading(&fleet, at: 20_000)
            for id in spawned { _ = fleet.ready(id, now: at(20_100)) }
            return fleet
        }
        var fleet = reloaded()
        #expect(!fail(&fleet, at: 21_000).contains(.restoreSettings(of: 1, failed: 2)), "once may be anything")
        #expect(fail(&fleet, at: 22_000).contains(.restoreSettings(of: 1, failed: 2)))
        #expect(fleet.isReturning && fleet.reload == .checking)
        for id in fleet.settingsChecked(workers: 2, times: times, now: at(22_010)).spawned {
            _ = fleet.spawned(id, pid: Int32(500 + id.serial), now: at(22_010))
            _ = fleet.ready(id, now: at(22_100))
        }
        #expect(fleet.generation == 3 && !fleet.isReturning)
        _ = fail(&fleet, at: 22_200)
        #expect(fleet.reload == .none && !fail(&fleet, at: 22_300).contains { if case .restoreSettings = $0 { true } else { false } })

        fleet = reloaded()
        _ = fail(&fleet, at: 20_100 + Limits.trialMilliseconds)
        _ = fail(&fleet, at: 20_200 + Limits.trialMilliseconds)
        #expect(fleet.reload == .none, "it had served for long enough")
    }
}
