internal import CSQLite
internal import Schema
internal import Store
internal import Vocabulary

extension Statement: SQLRow {}

/// Connections are handed between threads, one user at a time.
extension Connection: SQLConnection, @unchecked Sendable {
    var dialect: Dialect { .sqlite }
    var place: String { "database \(path)" }

    func rows<T>(_ sql: String, _ values: [SQLValue], _ row: (any SQLRow) throws(StoreError) -> T) throws(StoreError) -> [T] {
        var out: [T] = []
        try statement(sql).run(values) { statement throws(StoreError) in out.append(try row(statement)) }
        return out
    }

    func change(_ sql: String, _ values: [SQLValue]) throws(StoreError) -> Int {
        try run(sql, values)
        return changes
    }

    func transaction<T>(readsOnly: Bool, _ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        try transaction(immediate: !readsOnly, body)
    }

    func append(_ records: [UsageRecord]) throws(StoreError) -> Int {
        try transaction { () throws(StoreError) in
            let statement = try statement(Self.insert)
            var inserted = 0
            for record in records {
                try statement.run(record.columnValues)
                inserted += changes
            }
            return inserted
        }
    }

    private static let insert = """
        INSERT INTO usage_records (\(UsageRecord.columnNames.joined(separator: ", ")))
        VALUES (\(UsageRecord.columnNames.map { _ in "?" }.joined(separator: ", "))) ON CONFLICT (id) DO NOTHING
        """

    func hasTable(_ name: String) throws(StoreError) -> Bool {
        try int("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", [.text(name)]) == 1
    }
}
