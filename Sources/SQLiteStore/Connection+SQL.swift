internal import CSQLite
internal import ControlWire
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
        return try insert(records.count) { statement, index, start throws(StoreError) in
            try statement.bind(hasChecksums ? records[index].columnValues : records[index].columnValuesWithoutChecksum, after: start)
        }
    }

    func append(_ records: JournalRows, _ range: Range<Int>) throws(StoreError) -> Int {
        let hasChecksums = try hasChecksums()
        // What is bound is not copied: it stays where it is until the statement has run.
        let ids = UnsafeMutablePointer<UInt64>.allocate(capacity: 2 * range.count)
        defer { ids.deallocate() }
        return try records.bytes.span.bytes.withUnsafeBytes { bytes throws(StoreError) in
            guard let base = bytes.baseAddress else { return 0 }
            return try insert(range.count) { statement, index, start throws(StoreError) in
                try statement.bind(
                    records.rows[range.lowerBound + index], in: base, id: ids + 2 * index, withChecksum: hasChecksums, after: start)
            }
        }
    }

    /// Records of one INSERT. Several share the statement's start and the place in the tree: half the instructions (docs/decisions/0016).
    private static let insertSizes = [64, 16, 4, 1]

    /// `bind` gives the parameters behind the first `start` the values of record `index`.
    private func insert(
        _ count: Int, _ bind: (_ statement: Statement, _ index: Int, _ start: Int) throws(StoreError) -> Void
    ) throws(StoreError) -> Int {
        let columns = try hasChecksums() ? StoredRecord.columnNames : UsageRecord.columnNames
        return try transaction { () throws(StoreError) in
            var (done, inserted) = (0, 0)
            for size in Self.insertSizes where count - done >= size {
                let statement = try insertStatement(size, columns)
                while count - done >= size {
                    for index in 0..<size { try bind(statement, done + index, index * columns.count) }
                    inserted += try statement.change()
                    done += size
                }
            }
            return inserted
        }
    }

    private func insertStatement(_ size: Int, _ columns: [String]) throws(StoreError) -> Statement {
        if let known = inserts[size] { return known }
        let row = "(\(columns.map { _ in "?" }.joined(separator: ", ")))"
        let rows = repeatElement(row, count: size).joined(separator: ", ")
        let statement = try statement(
            "INSERT INTO usage_records (\(columns.joined(separator: ", "))) VALUES \(rows) ON CONFLICT (id) DO NOTHING")
        inserts[size] = statement
        return statement
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
