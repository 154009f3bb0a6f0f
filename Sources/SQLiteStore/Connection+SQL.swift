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

    func append(_ records: [StoredRecord]) throws(StoreError) -> Int {
        let hasChecksums = try hasChecksums()
        return try transaction { () throws(StoreError) in
            let statement = try statement(hasChecksums ? Self.insert : Self.insertWithoutChecksum)
            var inserted = 0
            for record in records {
                try statement.run(hasChecksums ? record.columnValues : record.columnValuesWithoutChecksum)
                inserted += changes
            }
            return inserted
        }
    }

    private static let insert = insert(StoredRecord.columnNames)
    private static let insertWithoutChecksum = insert(UsageRecord.columnNames)
    private static func insert(_ names: [String]) -> String {
        """
        INSERT INTO usage_records (\(names.joined(separator: ", ")))
        VALUES (\(names.map { _ in "?" }.joined(separator: ", "))) ON CONFLICT (id) DO NOTHING
        """
    }

    /// Whether the schema is one with checksums; it does not change under a connection that writes.
    private func hasChecksums() throws(StoreError) -> Bool {
        if let storesChecksums { return storesChecksums }
        let has = try int("SELECT count(*) FROM pragma_table_info('usage_records') WHERE name = 'checksum'") == 1
        storesChecksums = has
        return has
    }

    func hasTable(_ name: String) throws(StoreError) -> Bool {
        try int("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?", [.text(name)]) == 1
    }
}
