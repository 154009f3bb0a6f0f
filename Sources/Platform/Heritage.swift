#if canImport(Glibc)
    internal import Glibc
#endif

/// Everything a child receives at birth; any other descriptor is closed on exec (a test compares `/proc/self/fd` with this).
///
/// It travels as descriptors from `Heritage.firstDescriptor` on and one environment variable that lists them.
public struct Heritage: Sendable {
    /// In the environment of every process that a supervisor started, one-shot children too.
    public static let serverVariable = "CODEX_LB_OF_SERVER"

    public static let variable = "CODEX_LB_HERITAGE"
    static let firstDescriptor: Int32 = 3

    /// A stream socket to the supervisor; its end means that the supervisor is dead.
    public var control: Int32
    /// Bound, listening sockets, in the supervisor's order; empty for the writer.
    public var listeners: [Int32]
    /// Which of them, by their place, begin each connection with a PROXY header.
    public var proxied: Set<Int> = []
    public var scoreboard: Int32
    /// The worker's journal; -1 for others.
    public var journal: Int32
    /// Where idle client connections come in from workers that leave, and where a worker that leaves puts them; -1 for others.
    public var handover: (taking: Int32, giving: Int32)
    /// The worker's number in its generation.
    public var slot: Int
    /// Its row of the scoreboard.
    public var row: Int
    public var generation: UInt64
    public var dataDirectory: String
    public var runtimeDirectory: String

    public init(
        control: Int32, listeners: [Int32], scoreboard: Int32, journal: Int32, handover: (taking: Int32, giving: Int32), slot: Int,
        row: Int,
        generation: UInt64, dataDirectory: String, runtimeDirectory: String
    ) {
        (self.control, self.listeners, self.scoreboard, self.journal) = (control, listeners, scoreboard, journal)
        (self.handover, self.slot, self.row, self.generation) = (handover, slot, row, generation)
        (self.dataDirectory, self.runtimeDirectory) = (dataDirectory, runtimeDirectory)
    }

    /// In a fixed order; -1 where there is none.
    private var all: [Int32] { [control, scoreboard, journal, handover.taking, handover.giving] + listeners }

    /// The descriptors in the order in which the child numbers them from `firstDescriptor`.
    var descriptors: [Int32] { all.filter { $0 >= 0 } }

    /// `control,scoreboard,journal,taking,giving,listeners…;slot;row;generation;proxied…` in the child's numbers. Paths go in two variables of
    /// their own.
    var encoded: String {
        var next = Self.firstDescriptor
        let numbers = all.map { descriptor in
            guard descriptor >= 0 else { return "-1" }
            next += 1
            return String(next - 1)
        }
        return numbers.joined(separator: ",") + ";\(slot);\(row);\(generation);"
            + proxied.sorted().map { String($0) }.joined(separator: ",")
    }

    /// What this process was given; nil when it was not started by the supervisor. Marks the descriptors close-on-exec again.
    public static func received(environment: [String: String] = Environment.current) -> Heritage? {
        guard let text = environment[variable], let data = environment["CODEX_LB_HERITAGE_DATA"],
            let runtime = environment["CODEX_LB_HERITAGE_RUNTIME"]
        else { return nil }
        let parts = text.split(separator: ";", omittingEmptySubsequences: false)
        guard parts.count == 5, let slot = Int(parts[1]), let row = Int(parts[2]), let generation = UInt64(parts[3]) else { return nil }
        let numbers = parts[0].split(separator: ",").compactMap { Int32($0) }
        guard numbers.count >= 5 else { return nil }
        for fd in numbers where fd >= 0 { Descriptor.setCloseOnExec(fd) }
        var heritage = Heritage(
            control: numbers[0], listeners: Array(numbers[5...]), scoreboard: numbers[1], journal: numbers[2],
            handover: (numbers[3], numbers[4]), slot: slot, row: row, generation: generation, dataDirectory: data,
            runtimeDirectory: runtime)
        heritage.proxied = Set(parts[4].split(separator: ",").compactMap { Int($0) })
        return heritage
    }
}

/// The process's environment as a dictionary.
public enum Environment {
    /// A variable's value, which is gone from the environment then.
    public static func take(_ name: String) -> String? {
        guard let value = getenv(name).map({ String(cString: $0) }) else { return nil }
        unsetenv(name)
        return value
    }

    public static var current: [String: String] {
        var out: [String: String] = [:]
        var next = environ
        while let entry = next.pointee {
            let text = String(cString: entry)
            if let equals = text.firstIndex(of: "=") { out[String(text[..<equals])] = String(text[text.index(after: equals)...]) }
            next += 1
        }
        return out
    }
}
