internal import Schema
internal import Vocabulary

/// Moves everything from one store to another, whatever databases they are. It can be cut at any point and run again: what is there
/// already is left, what changed meanwhile is brought up to date.
public struct StoreCopy {
    private let source: StoreSession
    private let target: StoreSession
    private let progress: (String) -> Void

    public struct Count: Sendable, Equatable {
        public var table: String
        public var source: Int64
        public var target: Int64
    }

    public struct Outcome: Sendable, Equatable {
        public var counts: [Count] = []
        /// Rows of the source that can't be read; they are not in the target.
        public var leftOut: [RowAudit.Fault] = []
        /// Of the records that this run looked at. Altered ones are in the target as they are, with the checksum that tells of it.
        public var checksums = ChecksumCount()
        public init() {}
        public var isWhole: Bool { leftOut.isEmpty && checksums.altered.isEmpty }
    }

    private var hasAudit: Bool { source.hasAudit && target.hasAudit }
    private var tables: [String] { ["accounts", "client_keys", "settings"] + (hasAudit ? ["audit"] : []) + ["usage_records"] }

    public init(from source: StoreSession, to target: StoreSession, progress: @escaping (String) -> Void = { _ in }) {
        (self.source, self.target, self.progress) = (source, target, progress)
    }

    /// Copies and compares. A row that can't be read is left out and told. Throws when the target belongs to another store, or when the
    /// tables differ at the end by more than that.
    public func run() throws(StoreError) -> Outcome {
        try refuseEmpty()
        try refuseOther()
        var outcome = Outcome()
        try copyConfiguration(&outcome)
        try copyUsage(after: newestInTarget(), &outcome)
        outcome.counts = try counts()
        if !isEven(outcome) {
            // Records of slow turns come late with old ids, behind what an earlier run had copied; and unreadable ones are known only to
            // whoever looks at them.
            progress("counts differ: looking at every record again")
            outcome = Outcome()
            try copyConfiguration(&outcome)
            try copyUsage(after: nil, &outcome)
            outcome.counts = try counts()
        }
        if let off = outcome.counts.first(where: { !isEven($0, outcome) }) {
            throw StoreError(
                .conflict,
                "\(off.table) has \(off.source) rows in \(source.place) and \(off.target) in \(target.place); a server still writes, or the target was used: stop the server and run this again"
            )
        }
        return outcome
    }

    private func isEven(_ outcome: Outcome) -> Bool { outcome.counts.allSatisfy { isEven($0, outcome) } }
    private func isEven(_ count: Count, _ outcome: Outcome) -> Bool {
        count.source == count.target + Int64(outcome.leftOut.count { $0.table == count.table })
    }

    /// A source without anything in it is most often not the one that was meant: a name that leads elsewhere.
    private func refuseEmpty() throws(StoreError) {
        let things = try source.connection.rows(
            "SELECT (SELECT count(*) FROM accounts) + (SELECT count(*) FROM client_keys) + (SELECT count(*) FROM usage_records)", []
        ) { $0.int(0) }
        guard things.first ?? 0 == 0 else { return }
        throw StoreError(
            .missing, "\(source.place) holds no account, no key and no record: there is nothing to copy. Is it the database that was meant?"
        )
    }

    private func counts() throws(StoreError) -> [Count] {
        var out: [Count] = []
        for table in tables {
            let sql = "SELECT count(*) FROM \(table)"
            let there = try source.connection.rows(sql, []) { $0.int(0) }.first ?? 0
            // What the source has deleted since as too old may be in the target from a run before.
            let oldest = table == "usage_records" ? try oldestInSource() : nil
            let here =
                try target.connection.rows(
                    sql + (oldest == nil ? "" : " WHERE id >= $1"), oldest.map { [.blob($0.bytes)] } ?? []
                ) { $0.int(0) }.first ?? 0
            out.append(Count(table: table, source: there, target: here))
        }
        return out
    }

    private func oldestInSource() throws(StoreError) -> RecordID? {
        let readable = source.connection.dialect == .sqlite ? "WHERE typeof(id) = 'blob' AND length(id) = 16" : ""
        return try source.connection.rows("SELECT id FROM usage_records \(readable) ORDER BY id LIMIT 1", []) {
            RecordID(bytes: $0.blob(0))
        }
        .first ?? nil
    }

    /// A target that is new, or that an earlier run of ours has begun, has no facts but ours.
    private func refuseOther() throws(StoreError) {
        let (ours, theirs) = (
            try source.connection.rows(Queries.keyFingerprint).first, try target.connection.rows(Queries.keyFingerprint).first
        )
        guard ours == theirs else {
            throw StoreError(
                .wrongKey,
                "\(target.place) is sealed with key \(theirs ?? "none"), \(source.place) with \(ours ?? "none"); both need the same encryption.key"
            )
        }
        let peppers = (try source.connection.rows(Queries.pepper).first ?? [], try target.connection.rows(Queries.pepper).first ?? [])
        guard Vault.storedPepper(peppers.0) != Vault.storedPepper(peppers.1) else { return try refuseChanged() }
        for table in tables {
            guard try target.connection.rows("SELECT count(*) FROM \(table)", [], { $0.int(0) }).first == 0 else {
                throw StoreError(.constraint, "\(target.place) holds data of its own (\(table)); copy into an empty database")
            }
        }
    }

    /// Accounts, keys and settings of the target are replaced: what was changed there since the last copy would be lost. Each change raises
    /// the version.
    private func refuseChanged() throws(StoreError) {
        let copied = try target.connection.rows("SELECT value FROM state WHERE key = 'copied_version'", []) { Int64($0.text(0)) ?? 0 }.first
        let known = try target.connection.rows(Queries.version).first ?? 0
        let ours = try source.connection.rows(Queries.version).first ?? 0
        guard known > copied ?? ours else { return }
        throw StoreError(
            .constraint,
            "accounts, keys or settings of \(target.place) were changed there since the last copy, which another one would undo; copy into an empty database, or the other way round"
        )
    }

    /// Accounts, keys, settings and the store's own facts: few rows, replaced in one transaction with what operators changed.
    private func copyConfiguration(_ outcome: inout Outcome) throws(StoreError) {
        var contents: [(shape: RowShape, rows: [[SQLValue]])] = []
        let hasFacts = source.hasFacts && target.hasFacts
        for shape in [RowShape.accounts(revision: Int(source.revision) ?? 0), .clientKeys, .settings] + (hasFacts ? [.accountFacts] : []) {
            var rows: [[SQLValue]] = []
            try RowReader(source.connection, shape).eachRow(inPortions: false) { values in
                if let fault = shape.fault(values) {
                    outcome.leftOut.append(RowAudit.Fault(table: shape.table, id: shape.key(values), what: fault))
                } else {
                    rows.append(values.compactMap(\.parameter))
                }
            }
            contents.append((shape, rows))
        }
        let pepper = Vault.storedPepper(try source.connection.rows(Queries.pepper).first ?? [])
        let version = try source.connection.rows(Queries.version).first ?? 1
        var unreadable: [RowAudit.Fault] = []
        try target.connection.transaction { () throws(StoreError) in
            try target.connection.change("UPDATE state SET value = $1 WHERE key = 'pepper'", [.text(pepper)])
            // Above both: workers of the target must see the change.
            let known = try target.connection.rows(Queries.version).first ?? 1
            let new = SQLValue.text(String(max(known + 1, version)))
            try target.connection.change("UPDATE state SET value = $1 WHERE key = 'snapshot_version'", [new])
            try target.connection.change(
                "INSERT INTO state (key, value) VALUES ('copied_version', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value", [new]
            )
            for (shape, rows) in contents {
                let table = shape.table
                try target.connection.change("DELETE FROM \(table)", [])
                let places = shape.columns.indices.map { "$\($0 + 1)" }.joined(separator: ", ")
                for row in rows {
                    try target.connection.change("INSERT INTO \(table) (\(shape.columnList)) VALUES (\(places))", row)
                }
                guard target.connection.dialect == .postgresql, shape.columns[0].name == "id" else { continue }
                _ = try target.connection.rows(
                    "SELECT setval(pg_get_serial_sequence('\(table)', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM \(table)), false)", []
                ) { $0.int(0) }
            }
            if hasAudit { unreadable = try replaceAudit() }
        }
        outcome.leftOut += unreadable
        progress("\(contents[0].rows.count) accounts, \(contents[1].rows.count) keys copied")
    }

    /// Up to `Limits.auditRowsMax` rows, which PostgreSQL's library holds all at once; many with each statement. Returns those that can't be read.
    private func replaceAudit() throws(StoreError) -> [RowAudit.Fault] {
        let shape = RowShape.audit
        try target.connection.change("DELETE FROM \(shape.table)", [])
        var (waiting, faults): ([[SQLValue]], [RowAudit.Fault]) = ([], [])
        func store() throws(StoreError) {
            guard !waiting.isEmpty else { return }
            let width = shape.columns.count
            let places = waiting.indices.map { row in "(" + (1...width).map { "$\(row * width + $0)" }.joined(separator: ", ") + ")" }
            try target.connection.change(
                "INSERT INTO \(shape.table) (\(shape.columnList)) VALUES \(places.joined(separator: ", "))", waiting.flatMap { $0 })
            waiting = []
        }
        try RowReader(source.connection, shape).eachRow(inPortions: false) { values throws(StoreError) in
            if let fault = shape.fault(values) {
                faults.append(RowAudit.Fault(table: shape.table, id: shape.key(values), what: fault))
            } else {
                waiting.append(values.compactMap(\.parameter))
            }
            if waiting.count >= 100 { try store() }
        }
        try store()
        return faults
    }

    private func newestInTarget() throws(StoreError) -> RecordID? {
        try target.connection.rows(Queries.usage(last: 1)).first?.record.id
    }

    /// `start` nil: every record, in SQLite in the order in which they lie, which also brings those whose key no search would find.
    private func copyUsage(after start: RecordID?, _ outcome: inout Outcome) throws(StoreError) {
        let total = try source.connection.rows("SELECT count(*) FROM usage_records", []) { $0.int(0) }.first ?? 0
        let shape = RowShape.usage(revision: Int(source.revision) ?? 0)
        var (seen, added, told) = (0, 0, Clock.now)
        var (waiting, found): ([StoredRecord], Outcome) = ([], outcome)
        func store() throws(StoreError) {
            if !waiting.isEmpty { added += try target.connection.append(waiting) }
            waiting = []
            guard Clock.now.milliseconds(since: told) >= 1000 else { return }
            told = Clock.now
            progress("\(seen) of \(total) usage records looked at, \(added) copied")
        }
        let isSearch = start != nil || source.connection.dialect == .postgresql
        try RowReader(source.connection, shape).eachRow(inPortions: isSearch, after: start?.bytes ?? []) { values throws(StoreError) in
            seen += 1
            if let fault = shape.fault(values) {
                found.leftOut.append(RowAudit.Fault(table: shape.table, id: shape.key(values), what: fault))
            } else {
                found.checksums.count(values, id: shape.key)
                waiting.append(try StoredRecord(values))
            }
            if waiting.count >= RowReader.portion { try store() }
        }
        try store()
        outcome = found
        progress("\(added) usage records copied\(start == nil ? "" : ", the others were there")")
    }
}

extension StoredValue {
    /// The same as it goes into a statement; nil for what no row of ours holds.
    fileprivate var parameter: SQLValue? {
        switch self {
        case .null: .null
        case .int(let n): .int(n)
        case .text(let text): .text(text)
        case .blob(let bytes): .blob(bytes)
        case .real, .brokenText: nil
        }
    }
}

extension StoredRecord {
    /// A row without a fault, with or without the column of the checksum.
    fileprivate init(_ values: [StoredValue]) throws(StoreError) {
        var checksum: UInt32?
        // A number that is wider is damage of the checksum itself; its lower half says what it still can.
        if values.count == Self.columnNames.count, case .int(let stored) = values[values.count - 1] {
            checksum = UInt32(truncatingIfNeeded: stored)
        }
        self.init(try UsageRecord(row: ValueRow(values: values)), checksum: checksum)
    }
}

/// A row that was read already.
private struct ValueRow: SQLRow {
    let values: [StoredValue]
    func value(_ column: Int32) -> StoredValue { values[Int(column)] }
    func isNull(_ column: Int32) -> Bool { value(column) == .null }
    func int(_ column: Int32) -> Int64 { if case .int(let n) = value(column) { n } else { 0 } }
    func text(_ column: Int32) -> String { if case .text(let text) = value(column) { text } else { "" } }
    func blob(_ column: Int32) -> [UInt8] { if case .blob(let bytes) = value(column) { bytes } else { [] } }
}
