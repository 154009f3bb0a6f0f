internal import Schema
public import Store
internal import Vocabulary

/// Looks for damage and for a schema that is not the one the revisions make.
public enum DatabaseCheck {
    /// Reads only. A quick check leaves out whether indexes agree with their tables, and what is in the rows.
    public static func run(path: String, isQuick: Bool = false) throws(StoreError) -> CheckReport {
        // Before SQLite opens it, and found without it: to SQLite the log ends where it can't read on.
        let log = try LogDamage.find(path).map { Self.damageMark + $0.line(path) }
        let connection = try SQLiteStore.reader(path)
        defer { connection.close() }
        var problems =
            try (log.map { [$0] } ?? [])
            + connection.problems(isThorough: !isQuick, limit: 20).map { Self.damageMark + $0 }
        problems += try connection.rows("PRAGMA foreign_key_check", []) { "row of \($0.text(0)) points to a missing row of \($0.text(2))" }
        let known = try Migrator(connection).applied()
        if known < Schema.revisions.count { problems.append("revision \(Schema.head.id) is not applied; run: codex-lb db upgrade") }
        problems += SchemaDrift.lines(expected: try expected(known), found: try objects(connection))
        let audit = isQuick ? nil : try RowAudit.run(connection, revision: known, mark: damageMark, beside: &problems)
        return CheckReport(problems, audit: audit)
    }

    private static let damageMark = "damaged: "

    /// Whether a line tells of pages, rows or indexes that are broken; others are about the schema.
    public static func isDamage(_ line: String) -> Bool { line.hasPrefix(damageMark) }

    /// The schema as the first `count` revisions make it, in a database of its own in memory.
    private static func expected(_ count: Int) throws(StoreError) -> [String: String] {
        let connection = try Connection(":memory:", .readWrite)
        for revision in Schema.revisions.prefix(count) {
            for statement in revision.statements[.sqlite] ?? [] { try connection.execute(statement) }
        }
        return try objects(connection)
    }

    private static func objects(_ connection: Connection) throws(StoreError) -> [String: String] {
        let rows = try connection.rows(
            "SELECT type || ' ' || name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'", []
        ) {
            ($0.text(0), $0.text(1).split(whereSeparator: { $0.isWhitespace }).joined(separator: " "))
        }
        return Dictionary(rows, uniquingKeysWith: { a, _ in a })
    }
}
