public import Vocabulary

/// Decides when children are started, restarted, drained and killed, and when one generation of workers follows another. Does no I/O and
/// reads no clock. The matrix of its states and events is in docs/states.md.
///
/// ```
/// per child:       waiting ─▶ starting ─▶ ready ─▶ draining ─▶ gone
///                     ▲          │          │          │
///                     └── exit ──┴──────────┴──────────┘  (draining: only to bring records home)
/// as a whole:      starting ─▶ serving ─▶ stoppingWorkers ─▶ stoppingWriter ─▶ stopped
/// per generation:  candidate ─▶ serving ─▶ draining ─▶ gone
///                      └── any failure ───────▲
/// a reload:        none ─▶ checking ─▶ (waitingForRoom) ─▶ starting ─▶ none
/// an upgrade:      none ─▶ checking ─▶ settling ─▶ (another program goes on) replacing ─▶ none
/// ```
/// The writer comes first and goes last: a worker's records always find it. It belongs to no generation. On a shared database there is none.
public struct Fleet: Sendable {
    public enum Phase: String, Sendable {
        /// Not everyone has been ready yet. Can transition to: `serving`, `stoppingWorkers`, `stopped`.
        case starting
        /// Everyone has been ready once. Can transition to: `stoppingWorkers`.
        case serving
        /// Workers finish open turns. Can transition to: `stoppingWriter`.
        case stoppingWorkers
        /// The writer commits what it has. Can transition to: `stopped`.
        case stoppingWriter
        /// Nobody is left. Final.
        case stopped
    }

    public enum Reload: Sendable, Equatable {
        case none
        /// The settings are being read. Can transition to: `waitingForRoom`, `starting`, `none`.
        case checking
        /// As many generations drain as may. Can transition to: `starting`, `none`.
        case waitingForRoom(workers: Int)
        /// The workers of the candidate start. Can transition to: `none`.
        case starting
    }

    public enum Upgrade: Sendable, Equatable {
        case none
        /// The other program shows that it can go on from here. Can transition to: `settling`, `none`.
        case checking
        /// It can; what is under way comes to an end first. Can transition to: `none` (too late), `replacing` (in the other program).
        case settling(by: Instant)
        /// The other program is in charge: a reload has new workers started, then the writer is replaced. Can transition to: `none`.
        case replacing
    }

    public enum Action: Sendable, Equatable {
        case spawn(ChildID)
        /// `handsOver`: idle clients go to other workers; else they are told to go. To the writer: another one follows at once.
        case drain(ChildID, milliseconds: Int, handsOver: Bool)
        /// Nobody new: the supervisor lets its listeners go, before the workers let go theirs.
        case closeListeners
        case abort(Int32)
        case kill(Int32)
        /// Everyone is ready for the first time.
        case announceReady
        /// Read the settings, and say `settingsChecked`.
        case checkSettings
        /// The generation serves; the one before is about to drain.
        case reloaded(generation: UInt64)
        /// Everything is as it was.
        case reloadFailed(reason: String)
        /// All workers of a generation failed right after its reload: `settingsChecked` is wanted with the settings of that one before it.
        case restoreSettings(of: UInt64, failed: UInt64)
        /// Have the other program show what it can, and say `programChecked`.
        case checkProgram
        /// Let it take this process over; if that can't be now, it is asked for again with the next tick.
        case replaceProgram
        /// This program goes on; nothing has changed.
        case upgradeFailed(reason: String)
        /// Every process that serves is of this program.
        case upgraded
        /// So many generations drain that the oldest one has to end sooner.
        case tightened(generation: UInt64, milliseconds: Int)
        /// No process of the generation is left, and none will be.
        case retired(generation: UInt64)
        /// The supervisor's own end.
        case exit(code: Int32)
    }

    /// Durations in milliseconds.
    public struct Times: Sendable {
        /// From the order to stop until open turns are cut.
        public var drain: Int
        /// The same for workers that a reload, or fewer workers, put out of service.
        public var reloadDrain: Int
        public var ready: Int
        public init(drain: Int, reloadDrain: Int = Limits.reloadDrainMilliseconds, ready: Int = Limits.readyMilliseconds) {
            (self.drain, self.reloadDrain, self.ready) = (drain, reloadDrain, ready)
        }
    }

    /// A child that lived so long counts as healthy: its next restart is immediate.
    public static let healthyMilliseconds = 60_000
    /// A child that was told to abort gets this long to write its core.
    static let abortMilliseconds = 1_500
    /// A draining child ends itself at its deadline; it is killed this much later.
    static let drainGraceMilliseconds = 5_000
    /// A stop tries so often to bring one process's records home; then they go to a file.
    static let homecomingsMax = 5

    public internal(set) var phase = Phase.starting
    public internal(set) var children: [Child] = []
    /// The generation in charge.
    public internal(set) var generation: UInt64 = 1
    public internal(set) var reload = Reload.none
    /// The workers of the generation in charge that are to be; 0: all were told to go.
    public internal(set) var workers: Int
    public internal(set) var upgrade = Upgrade.none
    public internal(set) var lastGeneration: UInt64 = 1
    /// The last one whose workers did not fail right after its reload, other than the one in charge; nil: nobody knows one.
    public internal(set) var lastGood: UInt64?
    /// Until when the one in charge may fail as a whole, and its reload is undone.
    var trialBy = Instant(nanoseconds: 0)
    /// The reload under way brings the last good settings back.
    public internal(set) var isReturning = false
    /// When another reload is to begin.
    var reloadDue = Instant.never
    var reloadBegunAt: Instant?
    var rows = RowPool()
    var times: Times
    /// Those of the candidate, once it is in charge.
    var nextTimes: Times?
    private var exitCode: Int32 = 0
    private var nextSerial = 0
    private var tickedAt: Instant

    /// `hasWriter`: false when the workers write the database themselves.
    public init(workers: Int, hasWriter: Bool = true, now: Instant, times: Times) {
        (self.workers, self.times, tickedAt) = (workers, times, now)
        if hasWriter { add(ChildSlot(.writer), 0, startAt: now, now) }
        for number in 0..<workers { add(ChildSlot(.worker, number), 1, startAt: hasWriter ? .never : now, now) }
    }

    /// What another program in this process left. Nil: this is no state of a fleet that serves.
    public init?(adopting children: [Child], generation: UInt64, lastGeneration: UInt64, workers: Int, now: Instant, times: Times) {
        guard generation > 0, generation <= lastGeneration, (0...Limits.workersMax).contains(workers),
            Set(children.map(\.id)).count == children.count,
            children.allSatisfy({ ($0.slot.role == .writer) == ($0.generation == 0) && $0.generation <= lastGeneration })
        else { return nil }
        (self.children, self.generation, self.lastGeneration, self.workers) = (children, generation, lastGeneration, workers)
        (self.times, tickedAt, phase, upgrade) = (times, now, .serving, .replacing)
        nextSerial = (children.map(\.id.serial).max() ?? -1) + 1
        for child in children {
            guard let row = child.row else { continue }
            guard rows.claim(row) else { return nil }
        }
        for i in children.indices where children[i].state.pid != nil { self.children[i].heartbeatAt = now }
    }

    public subscript(id: ChildID) -> Child? { children.first { $0.id == id } }
    /// Rows below this one are or may be in use.
    public var rowsEnd: Int { rows.end }
    /// Whose processes have not all ended, the oldest first; without the one in charge and the candidate.
    public var drainingGenerations: [UInt64] {
        Set(children.lazy.map(\.generation).filter { $0 != 0 && $0 != generation && $0 != candidate }).sorted()
    }
    var candidate: UInt64? { reload == .starting ? lastGeneration : nil }

    mutating func add(_ slot: ChildSlot, _ generation: UInt64, startAt: Instant, _ now: Instant) {
        children.append(
            Child(id: ChildID(serial: nextSerial), slot: slot, generation: generation, state: .waiting(until: startAt), since: now))
        nextSerial += 1
    }

    func index(_ id: ChildID) -> Int? { children.firstIndex { $0.id == id } }
    func isServing(_ child: Child) -> Bool { child.slot.role == .worker && child.generation == generation }

    // MARK: Time

    /// Time has passed: starts what is due, ends what is overdue.
    public mutating func ticked(_ now: Instant) -> [Action] {
        if now.milliseconds(since: tickedAt) >= Limits.supervisorPauseMilliseconds {
            for i in children.indices where children[i].heartbeatAt != .never { children[i].heartbeatAt = now }
        }
        tickedAt = now
        var actions = overdue(now)
        if case .settling(let by) = upgrade, phase == .serving {
            if by <= now {
                actions += endUpgrade("the processes did not come to rest within \(milliseconds(Limits.upgradeRestMilliseconds))")
            } else if reload == .none {
                actions.append(.replaceProgram)
            }
        }
        if reload == .none, mayReload, reloadDue <= now, phase == .serving { actions += begin(now) }
        actions += shed(now)
        for i in children.indices {
            guard case .waiting(let until) = children[i].state, until <= now else { continue }
            if children[i].slot.role == .worker, children[i].row == nil {
                guard let row = rows.take() else { continue }
                children[i].row = row
            }
            actions.append(.spawn(children[i].id))
        }
        return actions
    }

    mutating func overdue(_ now: Instant) -> [Action] {
        var actions: [Action] = []
        var late: Child?
        for i in children.indices {
            switch children[i].state {
            case .starting(let pid, let by) where by <= now:
                children[i].state = .starting(pid: pid, by: .never)
                actions.append(.kill(pid))
                if children[i].generation == candidate { late = children[i] }
            case .draining(let pid, let by) where by <= now:
                children[i].state = .draining(pid: pid, by: .never)
                actions.append(.kill(pid))
            default: break
            }
            if let aborted = children[i].abortedAt, let pid = children[i].state.pid,
                now >= aborted.adding(milliseconds: Self.abortMilliseconds)
            {
                children[i].abortedAt = nil
                actions.append(.kill(pid))
            }
        }
        if let late {
            actions += discard("\(late.slot) was not ready after \(milliseconds(times.ready))", now)
        }
        return actions
    }

    func milliseconds(_ count: Int) -> String { count % 1000 == 0 ? "\(count / 1000) s" : "\(count) ms" }

    // MARK: Children

    public mutating func spawned(_ id: ChildID, pid: Int32, now: Instant) -> [Action] {
        guard let i = index(id) else { preconditionFailure("illegal transition: state=gone event=spawned") }
        guard case .waiting = children[i].state else { preconditionFailure("illegal transition: state=\(children[i].state) event=spawned") }
        children[i].state = .starting(pid: pid, by: now.adding(milliseconds: times.ready))
        children[i].since = now
        children[i].starts = children[i].starts.suffix(Limits.startsMax - 1) + [now]
        children[i].hasRecords = false
        children[i].heartbeatAt = .never
        children[i].abortedAt = nil
        // Started only to bring its predecessor's records home: it drains from the beginning.
        if !children[i].isWanted { return drain(i, times.drain, handsOver: false, now) }
        return []
    }

    /// The process could not even be started. What is due is left to the next tick: the actions that this one was part of go on.
    public mutating func spawnFailed(_ id: ChildID, reason: String, now: Instant) -> [Action] {
        guard let i = index(id) else { return [] }
        children[i].starts = children[i].starts.suffix(Limits.startsMax - 1) + [now]
        return gone(i, hasRecords: children[i].hasRecords, isOrderly: false, reason: reason, now).filter {
            if case .spawn = $0 { false } else { true }
        }
    }

    public mutating func ready(_ id: ChildID, now: Instant) -> [Action] {
        guard let i = index(id), case .starting(let pid, _) = children[i].state else { return [] }  // told to drain meanwhile
        children[i].state = .ready(pid: pid)
        children[i].heartbeatAt = now
        if children[i].slot.role == .writer {
            for j in children.indices where children[j].state == .waiting(until: .never) {
                children[j].state = .waiting(until: now)
            }
        }
        if phase == .starting, children.allSatisfy(\.isReady) {
            phase = .serving
            return [.announceReady] + ticked(now)
        }
        if children[i].slot.role == .writer, upgrade == .replacing, reload == .none {
            upgrade = .none
            return [.upgraded] + ticked(now)
        }
        if let candidate, children.allSatisfy({ $0.generation != candidate || $0.isReady }) { return promote(now) }
        return ticked(now)
    }

    /// The child says that it can't work and why; another try would end the same way. While starting that ends the start, and of a
    /// candidate the reload.
    public mutating func refused(_ id: ChildID, reason: String, now: Instant) -> [Action] {
        if phase == .starting {
            exitCode = 1
            return stop(now)
        }
        guard let i = index(id), children[i].generation == candidate else { return [] }
        return discard(reason, now)
    }

    /// A child has exited. `hasRecords`: its journal is not empty. `isOrderly`: by itself, as it was told.
    public mutating func exited(pid: Int32, hasRecords: Bool, isOrderly: Bool = false, reason: String = "", now: Instant) -> [Action] {
        guard let i = children.firstIndex(where: { $0.state.pid == pid }) else { return [] }
        return gone(i, hasRecords: hasRecords, isOrderly: isOrderly, reason: reason, now)
    }

    mutating func gone(_ i: Int, hasRecords: Bool, isOrderly: Bool, reason: String, _ now: Instant) -> [Action] {
        let child = children[i]
        let isHealthy = now.milliseconds(since: child.since) >= Self.healthyMilliseconds
        children[i].failures = isHealthy ? 1 : child.failures + 1
        if isHealthy { (children[i].starts, children[i].backOffs) = ([], 0) }
        children[i].since = now
        children[i].hasRecords = hasRecords
        if !hasRecords, let row = child.row {
            rows.giveBack(row)
            children[i].row = nil
        }
        let isCandidate = child.generation == candidate && child.isWanted && child.slot.role == .worker
        let isWanted: Bool
        switch phase {
        case .starting, .serving: isWanted = child.isWanted && !isCandidate || hasRecords
        // A worker that died with records in its journal is started again to hand them over; the writer is wanted as long as one is there.
        // One that ended by itself has tried for as long as there is sense in it.
        case .stoppingWorkers:
            isWanted = child.slot.role == .writer || hasRecords && !isOrderly && children[i].failures < Self.homecomingsMax
        case .stoppingWriter, .stopped: isWanted = false
        }
        var actions: [Action] = []
        if isWanted {
            if !isOrderly || child.slot.role == .worker { children[i].restarts += 1 }  // an upgrade replaces the writer
            children[i].state = .waiting(until: now.adding(milliseconds: backOff(i, now)))
        } else {
            children.remove(at: i)
        }
        if isCandidate { actions += discard("\(child.slot) of the new generation ended: \(reason)", now) }
        actions += undo(now)
        actions += retire(child.generation, now)
        return actions + (phase == .starting || phase == .serving || isWanted ? ticked(now) : advanceStop(now))
    }

    /// The last reload is undone when all its workers fail at once, again and again.
    mutating func undo(_ now: Instant) -> [Action] {
        guard phase == .serving, reload == .none, upgrade == .none, now < trialBy, let lastGood else { return [] }
        let wanted = children.filter { isServing($0) && $0.isWanted }
        guard !wanted.isEmpty, wanted.allSatisfy({ $0.restarts >= Limits.trialExits }) else { return [] }
        (reload, reloadBegunAt, isReturning) = (.checking, now, true)
        return [.restoreSettings(of: lastGood, failed: generation)]
    }

    /// 0 for the first starts, then 0.5, 1, 2, 4, 5, 5 … s until it is healthy.
    mutating func backOff(_ i: Int, _ now: Instant) -> Int {
        let starts = children[i].starts
        if children[i].backOffs == 0 {
            guard starts.count == Limits.startsMax, now.milliseconds(since: starts[0]) < Limits.startsMilliseconds else { return 0 }
        }
        children[i].backOffs += 1
        return min(Limits.backOffMillisecondsMax, Limits.backOffMilliseconds << min(10, children[i].backOffs - 1))
    }

    /// The last process of a generation that drains has gone: there is room for another.
    mutating func retire(_ number: UInt64, _ now: Instant) -> [Action] {
        guard number != 0, number != generation, number != candidate, !children.contains(where: { $0.generation == number }) else {
            return []
        }
        var actions: [Action] = [.retired(generation: number)]
        if case .waitingForRoom(let workers) = reload { actions += startCandidate(workers, now) }
        return actions
    }

    /// A child whose loop has not turned for too long hangs: it is ended with a core.
    public mutating func heartbeatSeen(_ id: ChildID, count: Int, now: Instant) -> [Action] {
        guard let i = index(id) else { return [] }
        let pid: Int32
        switch children[i].state {
        case .ready(let its), .draining(let its, _): pid = its
        case .waiting, .starting: return []
        }
        if count != children[i].heartbeat || children[i].heartbeatAt == .never {
            children[i].heartbeat = count
            children[i].heartbeatAt = now
        } else if children[i].abortedAt == nil, now.milliseconds(since: children[i].heartbeatAt) >= Limits.heartbeatMilliseconds {
            children[i].abortedAt = now
            return [.abort(pid)]
        }
        return []
    }

    // MARK: The end

    /// The operator asks for the end: open turns are finished first.
    public mutating func stop(_ now: Instant) -> [Action] {
        guard phase == .starting || phase == .serving else { return [] }
        phase = .stoppingWorkers
        var actions: [Action] = reload == .none ? [] : endReload(.reloadFailed(reason: "the server is stopping"), now)
        if mayReload { upgrade = .none } else { actions += endUpgrade("the server is stopping") }
        reloadDue = .never
        actions.append(.closeListeners)
        for i in children.indices where children[i].slot.role == .worker {
            children[i].isWanted = false
            actions += drain(i, times.drain, handsOver: false, now)
            if children[i].hasRecords, children[i].state.pid == nil { children[i].state = .waiting(until: now) }
        }
        for number in Set(children.map(\.generation)) where number != 0 { drop(number) }
        return actions + advanceStop(now)
    }

    /// A second signal: at once.
    public mutating func stopNow() -> [Action] {
        phase = .stopped
        return children.compactMap { $0.state.pid.map { Action.kill($0) } } + [.exit(code: 1)]
    }

    /// Told again, it ends sooner, never later.
    mutating func drain(_ i: Int, _ milliseconds: Int, handsOver: Bool, _ now: Instant) -> [Action] {
        guard let pid = children[i].state.pid else { return [] }
        var by = now.adding(milliseconds: milliseconds + Self.drainGraceMilliseconds)
        if case .draining(_, let before) = children[i].state { by = min(by, before) } else { children[i].heartbeatAt = now }
        children[i].state = .draining(pid: pid, by: by)
        return [.drain(children[i].id, milliseconds: milliseconds, handsOver: handsOver)]
    }

    mutating func advanceStop(_ now: Instant) -> [Action] {
        if phase == .stoppingWorkers, !children.contains(where: { $0.slot.role == .worker }) {
            phase = .stoppingWriter
            if let i = children.firstIndex(where: { $0.slot.role == .writer }) {
                if children[i].state.pid != nil { return drain(i, times.drain, handsOver: false, now) }
                children.remove(at: i)
            }
        }
        if phase == .stoppingWriter, children.isEmpty {
            phase = .stopped
            return [.exit(code: exitCode)]
        }
        return []
    }
}

/// Why an order to the fleet can't be carried out; nothing has changed.
public struct FleetRefusal: Error, Sendable, Equatable, CustomStringConvertible {
    public var description: String
    init(_ text: String) { description = text }
}
