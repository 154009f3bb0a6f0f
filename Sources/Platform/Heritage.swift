#if canImport(Glibc)
    internal import Glibc
#endif

/// Everything a child receives at birth; any other descriptor is closed on exec (a test compares `/proc/self/fd` with this).
///
/// It travels as descriptors from `Heritage.firstDescriptor` on and one environment variable that lists them.
public struct Heritage: Sendable, Equatable {
    /// In the environment of every process that a supervisor started, one-shot children too.
    public static let serverVariable = "CODEX_LB_OF_SERVER"

    public static let variable = "CODEX_LB_HERITAGE"
    static let firstDescriptor: Int32 = 3

    /// A stream socket to the supervisor; its end means that the supervisor is dead.
    public var control: Int32
    /// Bound, listening sockets, in the supervisor's order; empty for the writer.
    public var listeners: [Int32]
    public var scoreboard: Int32
    /// The worker's journal; -1 for others.
    public var journal: Int32
    public var slot: Int
    public var generation: UInt64
    public var dataDirectory: String
    public var runtimeDirectory: String

    public init(
        control: Int32, listeners: [Int32], scoreboard: Int32, journal: Int32, slot: Int, generation: UInt64, dataDirectory: String,
        runtimeDirectory: String
    ) {
        (self.control, self.listeners, self.scoreboard, self.journal) = (control, listeners, scoreboard, journal)
        (self.slot, self.generation) = (slot, generation)
        (self.dataDirectory, self.runtimeDirectory) = (dataDirectory, runtimeDirectory)
    }

    /// The descriptors in the order in which the child numbers them from `firstDescriptor`.
    var descriptors: [Int32] { [control, scoreboard] + (journal >= 0 ? [journal] : []) + listeners }

    /// `control,scoreboard,journal,listeners…;slot;generation` in the child's numbers. Paths go in two variables of their own.
    var encoded: String {
        let base = Self.firstDescriptor
        let journalNumber = journal >= 0 ? base + 2 : -1
        let listenBase = base + (journal >= 0 ? 3 : 2)
        let numbers = [base, base + 1, journalNumber] + listeners.indices.map { listenBase + Int32($0) }
        return numbers.map { String($0) }.joined(separator: ",") + ";\(slot);\(generation)"
    }

    /// What this process was given; nil when it was not started by the supervisor. Marks the descriptors close-on-exec again.
    public static func received(environment: [String: String] = Environment.current) -> Heritage? {
        guard let text = environment[variable], let data = environment["CODEX_LB_HERITAGE_DATA"],
            let runtime = environment["CODEX_LB_HERITAGE_RUNTIME"]
        else { return nil }
        let parts = text.split(separator: ";")
        guard parts.count == 3, let slot = Int(parts[1]), let generation = UInt64(parts[2]) else { return nil }
        let numbers = parts[0].split(separator: ",").compactMap { Int32($0) }
        guard numbers.count >= 3 else { return nil }
        for fd in numbers where fd >= 0 { Descriptor.setCloseOnExec(fd) }
        return Heritage(
            control: numbers[0], listeners: Array(numbers[3...]), scoreboard: numbers[1], journal: numbers[2], slot: slot,
            generation: generation, dataDirectory: data, runtimeDirectory: runtime)
    }
}

/// The process's environment as a dictionary.
public enum Environment {
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
