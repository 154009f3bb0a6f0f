internal import Schema
internal import Vocabulary

/// What a check of a database found.
public struct CheckReport: Sendable, Equatable {
    /// A line each; empty when all is well.
    public var problems: [String]
    /// Nil when the rows were not read.
    public var audit: RowAudit?

    public init(_ problems: [String], audit: RowAudit?) { (self.problems, self.audit) = (problems, audit) }
}

/// What reading every row of a store finds, beside what the database says of itself.
public struct RowAudit: Sendable, Equatable {
    /// A row that can't be read back.
    public struct Fault: Sendable, Equatable, CustomStringConvertible {
        public var table: String
        /// The row's key.
        public var id: String
        public var what: String
        public init(table: String, id: String, what: String) { (self.table, self.id, self.what) = (table, id, what) }
        public var description: String { "\(table), row \(id) can't be read: \(what)" }
    }

    /// Rows read, of all tables.
    public var rows = 0
    public var faults: [Fault] = []
    public var checksums = ChecksumCount()

    public init() {}

    /// A line for each thing that is wrong, `linesMax` at most for rows that can't be read.
    public var problems: [String] {
        var out = faults.prefix(Self.linesMax).map(\.description)
        if faults.count > Self.linesMax { out.append("\(faults.count - Self.linesMax) more rows can't be read; --json lists them") }
        if let line = checksums.problem { out.append(line) }
        return out
    }
    static let linesMax = 20

    /// Reads every row of the tables that the first `revision` revisions make.
    ///
    /// An SQLite table is read in one pass, in the order in which its rows lie: with a damaged key a search from page to page would leave
    /// rows out. PostgreSQL's answers are held in memory as a whole and come in portions.
    package static func run(_ connection: any SQLConnection, revision: Int) throws(StoreError) -> RowAudit {
        var audit = RowAudit()
        for shape in RowShape.all(revision: revision) {
            let isUsage = shape.table == "usage_records"
            try RowReader(connection, shape).eachRow(inPortions: isUsage && connection.dialect == .postgresql) { values in
                audit.rows += 1
                if let fault = shape.fault(values) {
                    audit.faults.append(Fault(table: shape.table, id: shape.key(values), what: fault))
                } else if isUsage {
                    audit.checksums.count(values, id: shape.key)
                }
            }
        }
        return audit
    }

    /// The same as part of a check that has found `problems` before: where those leave a table without a column, or a page that can't be
    /// read, there is no audit but one more line.
    package static func run(
        _ connection: any SQLConnection, revision: Int, mark: String = "", beside problems: inout [String]
    ) throws(StoreError) -> RowAudit? {
        do throws(StoreError) {
            let audit = try run(connection, revision: revision)
            problems += audit.problems.map { mark + $0 }
            return audit
        } catch {
            guard !problems.isEmpty, error.kind == .corrupt || error.kind == .other else { throw error }
            problems.append("not all rows could be read, so what is in them was not checked: \(error.message)")
            return nil
        }
    }
}

/// Records next to the checksums that were stored with them.
public struct ChecksumCount: Sendable, Equatable {
    /// Records whose checksum was looked at.
    public var checked = 0
    /// Records that were stored by a codex-lb without checksums.
    public var without = 0
    /// Ids of those that are not what their checksum says: a value was altered after they were stored.
    public var altered: [String] = []

    public init(checked: Int = 0, without: Int = 0, altered: [String] = []) {
        (self.checked, self.without, self.altered) = (checked, without, altered)
    }

    /// `values` are those of `StoredRecord.columnNames`, or without the last one where the schema has no checksums.
    mutating func count(_ values: [StoredValue], id: ([StoredValue]) -> String) {
        guard values.count == StoredRecord.columnNames.count, let stored = values.last, stored != .null else {
            without += 1
            return
        }
        checked += 1
        if stored != .int(Int64(RecordChecksum(values.dropLast()).value)) { altered.append(id(values)) }
    }

    /// The line about altered records; nil when there are none.
    public var problem: String? {
        guard !altered.isEmpty else { return nil }
        let ids = altered.prefix(RowAudit.linesMax).joined(separator: ", ")
        let more = altered.count > RowAudit.linesMax ? " and \(altered.count - RowAudit.linesMax) more" : ""
        return "usage_records: \(altered.count) not as stored, a value was altered since (checksum): \(ids)\(more)"
    }

    /// What was looked at, in words.
    public var summary: String {
        "checksums of \(checked) usage records checked\(without > 0 ? ", \(without) without checksum" : "")"
    }
}

/// Reads a table's rows as they lie in the database, whatever is in them.
struct RowReader {
    private let connection: any SQLConnection
    private let shape: RowShape
    static let portion = 1_000

    init(_ connection: any SQLConnection, _ shape: RowShape) { (self.connection, self.shape) = (connection, shape) }

    /// In portions, each of a statement of its own, those whose key is a blob that follows `start`; otherwise all, in one statement.
    func eachRow(inPortions: Bool, after start: [UInt8] = [], _ body: ([StoredValue]) throws(StoreError) -> Void) throws(StoreError) {
        guard inPortions else {
            _ = try connection.rows("SELECT \(shape.columnList) FROM \(shape.table)", []) { row throws(StoreError) in try body(values(row))
            }
            return
        }
        var (at, isOver) = (start, false)
        while !isOver {
            // Ends also where damaged keys, out of their order, would lead back.
            isOver = true
            for values in try page(after: at) {
                if case .blob(let id) = values.first, at.lexicographicallyPrecedes(id) { (at, isOver) = (id, false) }
                try body(values)
            }
        }
    }

    /// Up to a portion of the rows whose key, a blob, follows `id`, in the order of keys.
    private func page(after id: [UInt8]) throws(StoreError) -> [[StoredValue]] {
        let key = shape.columns[0].name
        return try connection.rows(
            "SELECT \(shape.columnList) FROM \(shape.table) WHERE \(key) > $1 ORDER BY \(key) LIMIT $2",
            [.blob(id), .int(Int64(Self.portion))]
        ) { values($0) }
    }

    private func values(_ row: any SQLRow) -> [StoredValue] { shape.columns.indices.map { row.value(Int32($0)) } }
}
