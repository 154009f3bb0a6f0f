internal import Schema
public import Store
public import Vocabulary

/// A row of the ledger.
public struct AppliedRevision: Sendable, Equatable {
    public var id: String
    public var name: String
    public var checksum: String
    public var appliedAt: WallTime
    public var durationMilliseconds: Int64
    public var appVersion: String
}

extension SQLiteStore {
    /// The revision this build knows as the newest.
    public static var head: String { Schema.head.id }

    /// The revisions applied to a database, oldest first; empty when there is no database yet.
    public static func history(path: String) throws(StoreError) -> [AppliedRevision] {
        guard case .ours = try Inspection.of(path) else { return [] }
        let connection = try Connection(path, .readOnly)
        return try connection.rows("SELECT id, name, checksum, applied_at_ms, duration_ms, app_version FROM revision_history ORDER BY id") {
            AppliedRevision(
                id: $0.text(0), name: $0.text(1), checksum: $0.text(2), appliedAt: WallTime(milliseconds: $0.int(3)),
                durationMilliseconds: $0.int(4), appVersion: $0.text(5))
        }
    }
}

/// Looks for damage and for a schema that is not the one the revisions make.
public enum DatabaseCheck {
    /// What is wrong, a line each; empty when all is well. Reads only.
    public static func run(path: String) throws(StoreError) -> [String] {
        guard case .ours = try Inspection.of(path) else {
            throw StoreError(.missing, "there is no database at \(path) yet; codex-lb serve makes one")
        }
        let connection = try Connection(path, .readOnly)
        var problems = try connection.rows("PRAGMA integrity_check(20)") { $0.text(0) }.filter { $0 != "ok" }
        problems += try connection.rows("PRAGMA foreign_key_check") { "row of \($0.text(0)) points to a missing row of \($0.text(2))" }
        let known = try connection.checkHistory(Schema.revisions)
        if known < Schema.revisions.count { problems.append("revision \(Schema.head.id) is not applied; run: codex-lb db upgrade") }
        if known == Schema.revisions.count { problems += drift(expected: try expected(), found: try objects(connection)) }
        return problems
    }

    /// The schema as the revisions make it, in a database of its own in memory.
    private static func expected() throws(StoreError) -> [String: String] {
        let connection = try Connection(":memory:", .readWrite)
        for revision in Schema.revisions { for statement in revision.statements[.sqlite] ?? [] { try connection.execute(statement) } }
        return try objects(connection)
    }

    private static func objects(_ connection: Connection) throws(StoreError) -> [String: String] {
        let rows = try connection.rows(
            "SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
        ) {
            ($0.text(0), $0.text(1).split(whereSeparator: { $0.isWhitespace }).joined(separator: " "))
        }
        return Dictionary(rows, uniquingKeysWith: { a, _ in a })
    }

    static func drift(expected: [String: String], found: [String: String]) -> [String] {
        var out: [String] = []
        for (name, sql) in expected.sorted(by: { $0.key < $1.key }) {
            if let present = found[name] {
                if present != sql { out.append("\(name) is not as the revisions make it: \(present)") }
            } else {
                out.append("\(name) is missing")
            }
        }
        for name in found.keys.sorted() where expected[name] == nil { out.append("\(name) was added by hand") }
        return out
    }
}
