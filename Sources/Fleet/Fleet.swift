public import Vocabulary

/// A place for a child of one kind.
public struct ChildSlot: Hashable, Sendable, CustomStringConvertible {
    public enum Role: String, Sendable { case writer, worker }
    public var role: Role
    public var number: Int
    public init(_ role: Role, _ number: Int = 0) { (self.role, self.number) = (role, number) }
    public var description: String { role == .worker ? "worker.\(number)" : role.rawValue }
}

/// Decides when children are started, restarted, drained and killed. Does no I/O and reads no clock.
///
/// ```
/// per child:  waiting ─▶ starting ─▶ ready ─▶ draining ─▶ ended
///                ▲          │          │          │
///                └── exit ──┴──────────┘          └─▶ ended
/// as a whole: starting ─▶ serving ─▶ stoppingWorkers ─▶ stoppingWriter ─▶ stopped
/// ```
/// The writer comes first and goes last: a worker's records always find it. On a shared database there is none.
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

    public enum ChildState: Sendable, Equatable {
        /// To be started at that time. Can transition to: `starting`, `ended`.
        case waiting(until: Instant)
        /// Runs, has not said READY. Can transition to: `ready`, `draining`, `waiting`.
        case starting(pid: Int32, by: Instant)
        /// Serves. Can transition to: `draining`, `waiting`.
        case ready(pid: Int32)
        /// Finishes; killed after `by`. Can transition to: `ended`, `waiting` (it left records behind).
        case draining(pid: Int32, by: Instant)
        /// Not there and not wanted. Final.
        case ended

        public var pid: Int32? {
            switch self {
            case .starting(let pid, _), .ready(let pid), .draining(let pid, _): pid
            case .waiting, .ended: nil
            }
        }
        public var name: String {
            switch self {
            case .waiting: "waiting"
            case .starting: "starting"
            case .ready: "ready"
            case .draining: "draining"
            case .ended: "ended"
            }
        }
    }

    public struct Child: Sendable {
        public var slot: ChildSlot
        public var state: ChildState
        public var since: Instant
        public var restarts = 0
        /// Exits in a row without `healthyMilliseconds` between them.
        var failures = 0
        /// Its last process left records in the journal, which a successor must bring home.
        var hasRecords = false
        var heartbeat = 0
        var heartbeatAt = Instant.never
        var abortedAt: Instant?
    }

    public enum Action: Sendable, Equatable {
        case spawn(ChildSlot)
        case drain(ChildSlot, milliseconds: Int)
        /// Nobody new: the supervisor lets its listeners go, before the workers let go theirs.
        case closeListeners
        case abort(Int32)
        case kill(Int32)
        /// Everyone is ready for the first time.
        case announceReady
        /// The supervisor's own end.
        case exit(code: Int32)
    }

    /// A child that lived so long counts as healthy: its next restart is immediate.
    public static let healthyMilliseconds = 60_000
    public static let restartMillisecondsMax = 5_000
    /// A child that was told to abort gets this long to write its core.
    static let abortMilliseconds = 2_000
    /// A draining child ends itself at its deadline; it is killed this much later.
    static let drainGraceMilliseconds = 5_000

    public private(set) var phase = Phase.starting
    public private(set) var children: [Child]
    private let drainMilliseconds: Int
    private let readyMilliseconds: Int
    private var exitCode: Int32 = 0
    private var tickedAt: Instant

    /// `hasWriter`: false when the workers write the database themselves.
    public init(
        workers: Int, hasWriter: Bool = true, now: Instant, drainMilliseconds: Int, readyMilliseconds: Int = Limits.readyMilliseconds
    ) {
        self.drainMilliseconds = drainMilliseconds
        self.readyMilliseconds = readyMilliseconds
        tickedAt = now
        let first = hasWriter ? [ChildSlot(.writer)] : []
        children = (first + (0..<workers).map { ChildSlot(.worker, $0) }).map {
            Child(slot: $0, state: .waiting(until: $0.role == .writer || !hasWriter ? now : .never), since: now)
        }
    }

    private func index(_ slot: ChildSlot) -> Int { children.firstIndex { $0.slot == slot }! }
    private var workersLeft: Bool { children.contains { $0.slot.role == .worker && $0.state != .ended } }

    /// Time has passed: starts what is due, ends what is overdue.
    public mutating func ticked(_ now: Instant) -> [Action] {
        var actions: [Action] = []
        if now.milliseconds(since: tickedAt) >= Limits.supervisorPauseMilliseconds {
            for i in children.indices where children[i].heartbeatAt != .never { children[i].heartbeatAt = now }
        }
        tickedAt = now
        for i in children.indices {
            switch children[i].state {
            case .waiting(let until) where until <= now:
                actions.append(.spawn(children[i].slot))
            case .starting(let pid, let by) where by <= now:
                children[i].state = .starting(pid: pid, by: .never)
                actions.append(.kill(pid))
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
        return actions
    }

    public mutating func spawned(_ slot: ChildSlot, pid: Int32, now: Instant) -> [Action] {
        let i = index(slot)
        guard case .waiting = children[i].state else { preconditionFailure("illegal transition: state=\(children[i].state) event=spawned") }
        children[i].state = .starting(pid: pid, by: now.adding(milliseconds: readyMilliseconds))
        children[i].since = now
        children[i].hasRecords = false
        children[i].heartbeatAt = .never
        children[i].abortedAt = nil
        // Started only to bring its predecessor's records home: it drains from the beginning.
        if phase == .stoppingWorkers, slot.role == .worker { return drain(i, now) }
        return []
    }

    /// The process could not even be started. What is due is left to the next tick: the actions that this one was part of go on.
    public mutating func spawnFailed(_ slot: ChildSlot, now: Instant) -> [Action] {
        let i = index(slot)
        return gone(i, hasRecords: children[i].hasRecords, now).filter { if case .spawn = $0 { false } else { true } }
    }

    public mutating func ready(_ slot: ChildSlot, now: Instant) -> [Action] {
        let i = index(slot)
        guard case .starting(let pid, _) = children[i].state else { return [] }  // told to drain meanwhile
        children[i].state = .ready(pid: pid)
        children[i].heartbeatAt = now
        if slot.role == .writer {
            for j in children.indices where children[j].slot.role == .worker && children[j].state == .waiting(until: .never) {
                children[j].state = .waiting(until: now)
            }
        }
        guard phase == .starting, children.allSatisfy({ if case .ready = $0.state { true } else { false } }) else { return ticked(now) }
        phase = .serving
        return [.announceReady]
    }

    /// The child says that it can't work and why; another try would end the same way. While starting that ends the start.
    public mutating func refused(_ slot: ChildSlot, now: Instant) -> [Action] {
        guard phase == .starting else { return [] }
        exitCode = 1
        return stop(now)
    }

    /// A child has exited. `hasRecords`: its journal is not empty.
    public mutating func exited(pid: Int32, hasRecords: Bool, now: Instant) -> [Action] {
        guard let i = children.firstIndex(where: { $0.state.pid == pid }) else { return [] }
        return gone(i, hasRecords: hasRecords, now)
    }

    private mutating func gone(_ i: Int, hasRecords: Bool, _ now: Instant) -> [Action] {
        let wasHealthy = now.milliseconds(since: children[i].since) >= Self.healthyMilliseconds
        children[i].failures = wasHealthy ? 1 : children[i].failures + 1
        let isWanted: Bool
        switch phase {
        case .starting, .serving: isWanted = true
        // A worker that died with records in its journal is started again to hand them over; the writer is wanted as long as one is there.
        case .stoppingWorkers: isWanted = children[i].slot.role == .writer || hasRecords && children[i].failures < 5
        case .stoppingWriter, .stopped: isWanted = false
        }
        children[i].since = now
        children[i].hasRecords = hasRecords
        if isWanted {
            children[i].restarts += 1
            children[i].state = .waiting(until: now.adding(milliseconds: Self.restartMilliseconds(failures: children[i].failures)))
            return ticked(now)
        }
        children[i].state = .ended
        return advanceStop(now)
    }

    /// 0, 100, 200, 400 … 5000 ms.
    static func restartMilliseconds(failures: Int) -> Int {
        failures <= 1 ? 0 : min(restartMillisecondsMax, 100 << min(10, failures - 2))
    }

    /// The operator asks for the end: open turns are finished first.
    public mutating func stop(_ now: Instant) -> [Action] {
        guard phase == .starting || phase == .serving else { return [] }
        phase = .stoppingWorkers
        var actions: [Action] = [.closeListeners]
        for i in children.indices where children[i].slot.role == .worker {
            if children[i].state.pid != nil {
                actions += drain(i, now)
            } else {
                children[i].state = children[i].hasRecords ? .waiting(until: now) : .ended
            }
        }
        return actions + advanceStop(now)
    }

    /// A second signal: at once.
    public mutating func stopNow() -> [Action] {
        phase = .stopped
        return children.compactMap { $0.state.pid.map { Action.kill($0) } } + [.exit(code: 1)]
    }

    private mutating func drain(_ i: Int, _ now: Instant) -> [Action] {
        guard let pid = children[i].state.pid else { return [] }
        children[i].state = .draining(pid: pid, by: now.adding(milliseconds: drainMilliseconds + Self.drainGraceMilliseconds))
        return [.drain(children[i].slot, milliseconds: drainMilliseconds)]
    }

    private mutating func advanceStop(_ now: Instant) -> [Action] {
        if phase == .stoppingWorkers, !workersLeft {
            phase = .stoppingWriter
            if let i = children.firstIndex(where: { $0.slot.role == .writer }) {
                if children[i].state.pid != nil { return drain(i, now) }
                children[i].state = .ended
            }
        }
        if phase == .stoppingWriter, children.allSatisfy({ $0.state == .ended }) {
            phase = .stopped
            return [.exit(code: exitCode)]
        }
        return []
    }

    /// A ready child whose loop has not turned for too long hangs: it is ended with a core.
    public mutating func heartbeatSeen(_ slot: ChildSlot, count: Int, now: Instant) -> [Action] {
        let i = index(slot)
        guard case .ready(let pid) = children[i].state else { return [] }
        if count != children[i].heartbeat || children[i].heartbeatAt == .never {
            children[i].heartbeat = count
            children[i].heartbeatAt = now
        } else if children[i].abortedAt == nil, now.milliseconds(since: children[i].heartbeatAt) >= Limits.heartbeatMilliseconds {
            children[i].abortedAt = now
            return [.abort(pid)]
        }
        return []
    }
}
