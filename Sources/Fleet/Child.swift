public import Vocabulary

/// A place for a child of one kind; who has it is told by `ChildID`.
public struct ChildSlot: Hashable, Sendable, CustomStringConvertible {
    public enum Role: String, Sendable { case writer, worker }
    public var role: Role
    public var number: Int
    public init(_ role: Role, _ number: Int = 0) { (self.role, self.number) = (role, number) }
    public var description: String { role == .worker ? "worker.\(number)" : role.rawValue }
}

/// Names a child, through all the processes that it has one after the other; never used again.
public struct ChildID: Hashable, Sendable {
    public let serial: Int
    public init(serial: Int) { self.serial = serial }
}

public enum ChildState: Sendable, Equatable {
    /// To be started at that time. Can transition to: `starting`, gone.
    case waiting(until: Instant)
    /// Runs, has not said READY. Can transition to: `ready`, `draining`, `waiting`, gone.
    case starting(pid: Int32, by: Instant)
    /// Serves. Can transition to: `draining`, `waiting`.
    case ready(pid: Int32)
    /// Finishes; killed after `by`. Can transition to: gone, `waiting` (it left records behind).
    case draining(pid: Int32, by: Instant)

    public var pid: Int32? {
        switch self {
        case .starting(let pid, _), .ready(let pid), .draining(let pid, _): pid
        case .waiting: nil
        }
    }
    public var name: String {
        switch self {
        case .waiting: "waiting"
        case .starting: "starting"
        case .ready: "ready"
        case .draining: "draining"
        }
    }
}

/// A child of the fleet. A worker is there for as long as its generation wants it, and then until its records are home.
public struct Child: Sendable {
    public let id: ChildID
    public let slot: ChildSlot
    /// Of its settings; 0 for the writer, which outlives them.
    public let generation: UInt64
    public internal(set) var state: ChildState
    public internal(set) var since: Instant
    public internal(set) var restarts = 0
    /// Of its process, and after that of the records that it left; nil: there is neither.
    public internal(set) var row: Int?
    /// It is to serve; else it finishes, and what is left in its journal is brought home.
    public internal(set) var isWanted = true
    /// Its last starts, the newest `Limits.startsMax` of them.
    public internal(set) var starts: [Instant] = []
    /// How often it was put off since it began to start too often.
    public internal(set) var backOffs = 0
    /// Exits in a row without `healthyMilliseconds` between them.
    public internal(set) var failures = 0
    /// Its last process left records in the journal, which a successor must bring home.
    public internal(set) var hasRecords = false
    var heartbeat = 0
    var heartbeatAt = Instant.never
    var abortedAt: Instant?

    init(id: ChildID, slot: ChildSlot, generation: UInt64, state: ChildState, since: Instant) {
        (self.id, self.slot, self.generation, self.state, self.since) = (id, slot, generation, state, since)
    }

    /// As another program has left it.
    public init(
        id: ChildID, slot: ChildSlot, generation: UInt64, state: ChildState, since: Instant, restarts: Int, row: Int?, isWanted: Bool,
        starts: [Instant], backOffs: Int, failures: Int, hasRecords: Bool
    ) {
        self.init(id: id, slot: slot, generation: generation, state: state, since: since)
        (self.restarts, self.row, self.isWanted, self.starts) = (restarts, row, isWanted, starts)
        (self.backOffs, self.failures, self.hasRecords) = (backOffs, failures, hasRecords)
    }

    public var isReady: Bool { if case .ready = state { true } else { false } }
}
