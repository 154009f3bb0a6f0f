/// A database's way of writing SQL.
public enum Dialect: String, Sendable, CaseIterable { case sqlite, postgresql }

/// One step of the schema. Once released it never changes: its checksum stands in every database's `revision_history`.
public struct Revision: Sendable {
    /// Four digits, ascending without gaps: `0001`.
    public let id: String
    public let name: String
    public let statements: [Dialect: [String]]

    init(id: String, name: String, statements: [Dialect: [String]]) {
        (self.id, self.name, self.statements) = (id, name, statements)
    }

    public var number: Int { Int(id) ?? 0 }

    /// FNV-1a of the statements, their white space normalised: finds an edited revision; it is no defence against a forger.
    public func checksum(_ dialect: Dialect) -> String {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for statement in statements[dialect] ?? [] {
            for byte in Array(Self.normalised(statement).utf8) + Array(";".utf8) { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01B3 }
        }
        let hex = String(hash, radix: 16)
        return String(repeating: "0", count: 16 - hex.utf8.count) + hex
    }

    static func normalised(_ statement: String) -> String {
        statement.split(whereSeparator: { $0.isWhitespace }).joined(separator: " ")
    }
}

/// All revisions, oldest first.
public enum Schema {
    /// SQLite's `application_id` of our databases: "CLB1".
    public static let applicationID: Int32 = 0x434C_4231

    public static let revisions: [Revision] = [
        revision0001, revision0002, revision0003, revision0004, revision0005, revision0006, revision0007,
    ]
    public static var head: Revision { revisions[revisions.count - 1] }

    /// All tables that the revisions make on both databases, and that hold what must not be lost.
    public static let tables = [
        "account_facts", "accounts", "audit", "client_keys", "leases", "revision_history", "settings", "state", "usage_records",
    ]

    /// The number of the oldest revision that this build can serve with. A release N runs on the schemas of N and of the release before:
    /// what a revision adds is used only where it is there, and what it takes away was not used by the release before it.
    public static let oldestUsable = 1

    /// The revision that gives usage records their checksum.
    public static let checksumRevision = 3
    /// The revision that keeps what was learned of accounts.
    public static let factsRevision = 5
    /// The one in which instances tell each other whose conversations are whose.
    public static let pinsRevision = 6
    /// The one that keeps what operators have changed.
    public static let auditRevision = 7

    /// The revision that gives accounts their options.
    public static let optionsRevision = 4

    /// A revision's number as it is written: `0007`.
    public static func name(_ number: Int) -> String {
        let text = String(number)
        return String(repeating: "0", count: max(0, 4 - text.utf8.count)) + text
    }
}
