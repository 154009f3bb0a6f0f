import Foundation
import Testing
import Vocabulary

@testable import Fleet

/// A world for a fleet: processes that start slowly, hang, die and leave records, and an operator who sends signals at any moment.
/// Everything comes from one seed, which a failure prints.
private struct World {
    private struct Process {
        var id: ChildID
        var role: ChildSlot.Role
        var row: Int?
        /// When it says READY; nil: it hangs before.
        var readyAt: Int?
        var isReady = false
        /// When it ends by itself; set by the order to drain, for some never.
        var endsAt: Int?
        var isDraining = false
        var isHung = false
        var isKilled = false
        var beats = 0
    }

    let seed: UInt64
    private var state: UInt64
    private(set) var now = 0
    private(set) var fleet: Fleet
    private var processes: [Int32: Process] = [:]
    /// Rows whose journal is not empty, and whose they are.
    private var records: [Int: ChildID] = [:]
    private var nextPID: Int32 = 100
    private var isChecking = false
    private var begunAt: [Int] = []
    private(set) var exit: Int32?
    private(set) var problems: [String] = []
    /// Nothing goes wrong any more.
    var isCalm = false
    private var reloads = (ended: 0, begun: 0)
    private(set) var promoted = 0
    /// The other program is asked whether it can take over; it may do so at the next step.
    private var (isAsking, mayReplace) = (false, false)
    private(set) var upgrades = 0

    static let stepMilliseconds = 50

    init(seed: UInt64) {
        (self.seed, state) = (seed, seed &* 0x9E37_79B9_7F4A_7C15 | 1)
        fleet = Fleet(
            workers: 1 + Int(seed % 4), hasWriter: seed % 3 != 0, now: Instant(nanoseconds: 0),
            times: Fleet.Times(drain: 3_000, reloadDrain: 20_000, ready: 5_000))
    }

    private var instant: Instant { Instant(nanoseconds: UInt64(now) * 1_000_000) }

    /// xorshift64*
    private mutating func random(_ below: Int) -> Int {
        state ^= state >> 12
        state ^= state << 25
        state ^= state >> 27
        return Int((state &* 0x2545_F491_4F6C_DD1D) >> 33) % below
    }
    private mutating func chance(_ one: Int) -> Bool { !isCalm && random(one) == 0 }

    private mutating func complain(_ text: String) { problems.append("seed \(seed), \(now) ms: \(text)") }

    /// Workers that take new clients.
    private var serving: Int { processes.values.count { $0.role == .worker && $0.isReady && !$0.isDraining } }

    /// `isOurs`: the fleet's own decision, which must never leave nobody.
    private mutating func perform(_ actions: [Fleet.Action], isOurs: Bool = true) {
        let before = serving
        for action in actions { perform(action) }
        if isOurs, before > 0, serving == 0, fleet.phase == .serving, fleet.workers > 0 { complain("nobody serves after \(actions)") }
        if fleet.drainingGenerations.count > Limits.drainingGenerationsMax { complain("\(fleet.drainingGenerations) drain") }
        let rows = fleet.children.compactMap(\.row)
        if Set(rows).count != rows.count { complain("a row has two owners: \(rows)") }
        for (row, owner) in records where fleet[owner]?.row != row && fleet.phase != .stopped && fleet.phase != .stoppingWriter {
            if fleet.phase != .stoppingWorkers { complain("nobody brings the records of row \(row) home") }
        }
    }

    private mutating func perform(_ action: Fleet.Action) {
        switch action {
        case .spawn(let id):
            // An action before it in the same list may have failed, and this one with it.
            guard let child = fleet[id], case .waiting = child.state else { return }
            if chance(20) { return perform(fleet.spawnFailed(id, reason: "no memory", now: instant)) }
            if child.slot.role == .writer, processes.values.contains(where: { $0.role == .writer }) { complain("two writers") }
            if let row = child.row {
                if processes.values.contains(where: { $0.row == row }) { complain("two processes on row \(row)") }
                if let owner = records[row], owner != id { complain("row \(row) has somebody else's records") }
            } else if child.slot.role == .worker {
                complain("a worker without a row")
            }
            let pid = nextPID
            nextPID += 1
            var process = Process(id: id, role: child.slot.role, row: child.row)
            process.readyAt = chance(15) ? nil : now + (chance(10) ? random(8_000) : random(400))
            processes[pid] = process
            perform(fleet.spawned(id, pid: pid, now: instant))
        case .drain(let id, let milliseconds, _):
            guard let pid = fleet[id]?.state.pid, processes[pid] != nil else { return complain("drain of nobody") }
            processes[pid]!.isDraining = true
            let end = now + (chance(8) ? milliseconds + 60_000 : random(milliseconds))
            processes[pid]!.endsAt = min(processes[pid]!.endsAt ?? .max, end)
        case .abort(let pid), .kill(let pid): processes[pid]?.isKilled = true
        case .checkSettings:
            if isChecking { complain("settings are read twice at a time") }
            isChecking = true
            reloads.begun += 1
        case .reloaded:
            promoted += 1
            reloads.ended += 1
            let candidates = fleet.children.filter { $0.generation == fleet.generation && $0.isWanted }
            if !candidates.allSatisfy(\.isReady) || candidates.isEmpty { complain("an incomplete generation is in charge") }
        case .reloadFailed:
            reloads.ended += 1
            isChecking = false
        case .exit(let code):
            exit = code
            if fleet.phase == .stopped, !fleet.children.isEmpty, code == 0 { complain("children are left") }
        case .restoreSettings(let good, let failed):
            if good == failed || isChecking { complain("generation \(good) is to replace \(failed)") }
            isChecking = true
            reloads.begun += 1
        case .checkProgram:
            if isAsking { complain("two upgrades at a time") }
            isAsking = true
        case .replaceProgram:
            if fleet.reload != .none { complain("replaced in the middle of a reload") }
            mayReplace = random(3) == 0
        case .upgradeFailed: (isAsking, mayReplace) = (false, false)
        case .upgraded: upgrades += 1
        case .closeListeners, .announceReady, .tightened, .retired: break
        }
    }

    /// Another program goes on with what this one knows.
    private mutating func replace() {
        mayReplace = false
        guard case .settling = fleet.upgrade, fleet.phase == .serving else { return }
        let times = Fleet.Times(drain: 3_000, reloadDrain: 20_000, ready: 5_000)
        let next = Fleet(
            adopting: fleet.children, generation: fleet.generation, lastGeneration: fleet.lastGeneration, workers: fleet.workers,
            now: instant, times: times)
        guard let next else { return complain("it can't be adopted") }
        fleet = next
        perform(fleet.adopted(now: instant))
    }

    private mutating func died(_ pid: Int32, isOrderly: Bool) {
        guard let process = processes.removeValue(forKey: pid) else { return }
        if let row = process.row {
            // A worker that ends as it should has brought everything home, unless the store is away.
            if isOrderly ? !chance(10) : false { records[row] = nil }
            if !isOrderly, process.isReady, chance(2) { records[row] = process.id }
        }
        let has = process.row.map { records[$0] != nil } ?? false
        perform(fleet.exited(pid: pid, hasRecords: has, isOrderly: isOrderly, reason: "signal", now: instant), isOurs: false)
    }

    mutating func step() {
        now += Self.stepMilliseconds
        if mayReplace { replace() }
        perform(fleet.ticked(instant))
        if isAsking, isCalm || random(4) == 0 {
            isAsking = false
            perform(chance(3) ? fleet.programRefused(reason: "bad") : fleet.programChecked(now: instant))
        }
        for pid in processes.keys.sorted() {
            guard let process = processes[pid] else { continue }
            if chance(4_000) { processes[pid]!.isHung = true }
            if process.isKilled || chance(1_500) {
                died(pid, isOrderly: false)
                continue
            }
            if process.isHung {
                perform(fleet.heartbeatSeen(process.id, count: process.beats, now: instant))
                continue
            }
            processes[pid]!.beats += 1
            perform(fleet.heartbeatSeen(process.id, count: process.beats, now: instant))
            if !process.isReady, let at = process.readyAt, at <= now {
                processes[pid]!.isReady = true
                if !process.isDraining, chance(30) {
                    perform(fleet.refused(process.id, reason: "no", now: instant))
                    if fleet.phase == .starting { continue }
                } else {
                    perform(fleet.ready(process.id, now: instant))
                }
            }
            // Its predecessor's records.
            if let row = process.row, process.isReady, records[row] != nil, isCalm || random(20) == 0 { records[row] = nil }
            if let at = processes[pid]?.endsAt, at <= now, exit == nil { died(pid, isOrderly: true) }
        }
        if isChecking, isCalm || random(4) == 0 {
            isChecking = false
            if chance(4) {
                perform(fleet.settingsRefused(reason: "bad", now: instant))
            } else {
                let times = Fleet.Times(drain: 3_000, reloadDrain: 20_000, ready: 5_000)
                perform(fleet.settingsChecked(workers: 1 + random(4), times: times, now: instant))
            }
        }
        guard !isCalm else { return }
        if random(30) == 0 { perform(fleet.reload(isUrgent: random(2) == 0, now: instant)) }
        if random(200) == 0, case .success(let actions) = fleet.scale(to: 1 + random(6), now: instant) { perform(actions) }
        if random(60) == 0, case .success(let actions) = fleet.upgrade(now: instant) { perform(actions) }
        if random(200) == 0, case .success(let actions) = fleet.replace(worker: random(4), now: instant) { perform(actions) }
        if random(2_000) == 0, case .success(let actions) = fleet.drainAll(now: instant) { perform(actions, isOurs: false) }
    }

    mutating func stop() { perform(fleet.stop(instant), isOurs: false) }

    /// What must be so when nothing has gone wrong for a while.
    mutating func settled() {
        let wanted = fleet.children.filter { $0.slot.role == .worker }
        if fleet.phase != .serving { complain("phase \(fleet.phase)") }
        if fleet.reload != .none { complain("reload \(fleet.reload)") }
        if fleet.upgrade != .none { complain("upgrade \(fleet.upgrade)") }
        if reloads.begun != reloads.ended { complain("\(reloads.begun) reloads began, \(reloads.ended) ended") }
        if wanted.count != fleet.workers || !wanted.allSatisfy(\.isReady) {
            complain("\(wanted.map { "\($0.slot) of \($0.generation) \($0.state.name)" }), \(fleet.workers) are to be")
        }
        if Set(wanted.map(\.slot.number)) != Set(0..<fleet.workers) { complain("numbers \(wanted.map(\.slot.number))") }
        if !records.isEmpty { complain("records are left: \(records)") }
        if fleet.rowsEnd > Limits.rowsMax { complain("rows") }
    }

    mutating func stopped() {
        if exit == nil { complain("it does not end: \(fleet.phase) \(fleet.children)") }
        if !processes.isEmpty { complain("processes are left: \(processes.keys.sorted())") }
        if !records.isEmpty { complain("records are left: \(records)") }
    }
}

@Suite struct FleetSimulation {
    /// `CODEX_LB_TEST_FLEET_SEEDS=60` for a longer run.
    private static let seeds = ProcessInfo.processInfo.environment["CODEX_LB_TEST_FLEET_SEEDS"].flatMap { Int($0) } ?? 6

    @Test(
        "Whatever dies, hangs or is asked at any moment: somebody serves, rows have one owner, one writer writes, all records come home",
        arguments: 1...seeds)
    func storm(_ seed: Int) {
        var world = World(seed: UInt64(seed))
        for _ in 0..<4_000 where world.exit == nil { world.step() }
        #expect(world.problems == [])
        guard world.exit == nil, world.fleet.phase != .stoppingWorkers, world.fleet.phase != .stoppingWriter else { return }  // a refused start
        world.isCalm = true
        for _ in 0..<3_000 { world.step() }
        world.settled()
        world.stop()
        for _ in 0..<2_000 where world.exit == nil { world.step() }
        world.stopped()
        #expect(world.problems == [])
    }

    @Test("The simulation does change generations and programs, or it would show nothing")
    func isAlive() {
        var (promoted, upgrades) = (0, 0)
        for seed in 41...44 {
            var world = World(seed: UInt64(seed))
            for _ in 0..<3_000 where world.exit == nil { world.step() }
            promoted += world.promoted
            upgrades += world.upgrades
        }
        #expect(promoted > 20 && upgrades > 5, "\(promoted) and \(upgrades)")
    }
}
