public import ControlWire
import Fleet
import Platform
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Succession {
    static let variable = "CODEX_LB_SUCCESSION"

    /// What another program of this process has left, or what one that asks whether we could go on would leave. The variable is gone then:
    /// no child has it.
    public static func received() throws -> Succession? {
        guard let text = Environment.take(variable) else { return nil }
        guard let descriptor = Int32(text), descriptor > 2 else { throw SystemError(EBADF, "\(variable)=\(text)") }
        defer { Descriptor.close(descriptor) }
        return try Succession(try MemoryFile.read(descriptor))
    }

    /// Whether a fleet can be made of it: what another program asks before it gives way.
    public var isUsable: Bool { fleet(now: Clock.now, times: Fleet.Times(drain: 0)) != nil && childLinks.count == childPending.count }

    /// Descriptors that must stay open.
    var descriptors: [Int32] {
        (sockets.map(\.descriptorNumber) + locks + [scoreboard, handoverTaking, handoverGiving, control] + journals.map(\.descriptorNumber)
            + visitors.map(\.descriptorNumber) + childLinks).filter { $0 >= 0 }
    }

    mutating func setFleet(_ fleet: Fleet) {
        self.fleet.generation = fleet.generation
        self.fleet.lastGeneration = fleet.lastGeneration
        self.fleet.workers = UInt32(fleet.workers)
        self.fleet.children = fleet.children.map { FleetChild($0) }
    }

    /// Nil: it is no state of a fleet that serves.
    func fleet(now: Instant, times: Fleet.Times) -> Fleet? {
        var children: [Child] = []
        for child in fleet.children {
            guard let known = Child(child) else { return nil }
            children.append(known)
        }
        return Fleet(
            adopting: children, generation: fleet.generation, lastGeneration: fleet.lastGeneration, workers: Int(fleet.workers), now: now,
            times: times)
    }
}

extension FleetChild {
    init(_ child: Child) {
        self.init()
        serial = UInt32(child.id.serial)
        writer = child.slot.role == .writer
        number = UInt32(child.slot.number)
        generation = child.generation
        state = child.state.name
        pid = child.state.pid ?? 0
        switch child.state {
        case .waiting(let at), .starting(_, let at), .draining(_, let at): atNs = at.nanoseconds
        case .ready: break
        }
        sinceNs = child.since.nanoseconds
        restarts = UInt32(child.restarts)
        if let row = child.row { self.row = UInt32(row) }
        wanted = child.isWanted
        startsNs = child.starts.map(\.nanoseconds)
        backOffs = UInt32(child.backOffs)
        failures = UInt32(child.failures)
        leavesRecords = child.hasRecords
    }
}

extension Child {
    /// Nil: it is in no state that this program knows.
    init?(_ left: FleetChild) {
        let at = Instant(nanoseconds: left.atNs)
        let state: ChildState
        switch left.state {
        case "waiting": state = .waiting(until: at)
        case "starting": state = .starting(pid: left.pid, by: at)
        case "ready": state = .ready(pid: left.pid)
        case "draining": state = .draining(pid: left.pid, by: at)
        default: return nil
        }
        guard (left.pid > 0) == (state.pid != nil) else { return nil }
        self.init(
            id: ChildID(serial: Int(left.serial)), slot: ChildSlot(left.writer ? .writer : .worker, Int(left.number)),
            generation: left.generation, state: state, since: Instant(nanoseconds: left.sinceNs), restarts: Int(left.restarts),
            row: left.hasRow ? Int(left.row) : nil, isWanted: left.wanted,
            starts: left.startsNs.map { Instant(nanoseconds: $0) }, backOffs: Int(left.backOffs), failures: Int(left.failures),
            hasRecords: left.leavesRecords)
    }
}
