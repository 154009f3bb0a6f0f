internal import Schema
internal import Vocabulary

/// Moves everything from one store to another, whatever databases they are. It can be cut at any point and run again: what is there
/// already is left, what changed meanwhile is brought up to date.
public struct StoreCopy {
    private let source: StoreSession
    private let target: StoreSession
    private let progress: (String) -> Void

    /// Usage records read and written at a time.
    static let pageRecords = 1_000

    public struct Count: Sendable, Equatable {
        public var table: String
        public var source: Int64
        public var target: Int64
    }

    private static let accountColumns = [
        "id", "slot", "name", "kind", "state", "base_url", "credentials", "created_at_ms", "changed_at_ms", "removed_at_ms",
    ]
    private static let keyColumns = ["id", "name", "digest", "prefix", "models", "expires_at_ms", "revoked_at_ms", "created_at_ms"]
    private static let tables = ["accounts", "client_keys", "settings", "usage_records"]

    public init(from source: StoreSession, to target: StoreSession, progress: @escaping (String) -> Void = { _ in }) {
        (self.source, self.target, self.progress) = (source, target, progress)
    }

    /// Copies and compares. Throws when the target belongs to another store, or when a table's counts differ at the end.
    public func run() throws(StoreError) -> [Count] {
        try refuseEmpty()
        try refuseOther()
        try copyConfiguration()
        try copyUsage(after: newestInTarget())
        var counts = try self.counts()
        if counts.contains(where: { $0.source != $0.target }) {
            // Records of slow turns come late with old ids, behind what an earlier run had copied.
            progress("counts differ: looking at every record again")
            try copyConfiguration()
            try copyUsage(after: nil)
            counts = try self.counts()
        }
        if let off = counts.first(where: { $0.source != $0.target }) {
            throw StoreError(
                .conflict,
                "\(off.table) has \(off.source) rows in \(source.place) and \(off.target) in \(target.place); a server still writes, or the target was used: stop the server and run this again"
            )
        }
        return counts
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
        for table in Self.tables {
            let sql = "SELECT count(*) FROM \(table)"
            out.append(
                Count(
                    table: table, source: try source.connection.rows(sql, []) { $0.int(0) }.first ?? 0,
                    target: try target.connection.rows(sql, []) { $0.int(0) }.first ?? 0))
        }
        return out
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
        for table in Self.tables {
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

    /// Accounts, keys, settings and the store's own facts: few rows, replaced in one transaction.
    private func copyConfiguration() throws(StoreError) {
        func read(_ table: String, _ columns: [String]) throws(StoreError) -> [[SQLValue]] {
            try source.connection.rows("SELECT \(columns.joined(separator: ", ")) FROM \(table)", []) { row in
                columns.enumerated().map { i, name in
                    let column = Int32(i)
                    if row.isNull(column) { return .null }
                    if name == "id" || name == "slot" || name.hasSuffix("_ms") { return .int(row.int(column)) }
                    return name == "credentials" || name == "digest" ? .blob(row.blob(column)) : .text(row.text(column))
                }
            }
        }
        let contents = [
            ("accounts", Self.accountColumns, try read("accounts", Self.accountColumns)),
            ("client_keys", Self.keyColumns, try read("client_keys", Self.keyColumns)),
            ("settings", ["key", "value"], try read("settings", ["key", "value"])),
        ]
        let pepper = Vault.storedPepper(try source.connection.rows(Queries.pepper).first ?? [])
        let version = try source.connection.rows(Queries.version).first ?? 1
        try target.connection.transaction { () throws(StoreError) in
            try target.connection.change("UPDATE state SET value = $1 WHERE key = 'pepper'", [.text(pepper)])
            // Above both: workers of the target must see the change.
            let known = try target.connection.rows(Queries.version).first ?? 1
            let new = SQLValue.text(String(max(known + 1, version)))
            try target.connection.change("UPDATE state SET value = $1 WHERE key = 'snapshot_version'", [new])
            try target.connection.change(
                "INSERT INTO state (key, value) VALUES ('copied_version', $1) ON CONFLICT (key) DO UPDATE SET value = excluded.value", [new]
            )
            for (table, columns, rows) in contents {
                try target.connection.change("DELETE FROM \(table)", [])
                let sql =
                    "INSERT INTO \(table) (\(columns.joined(separator: ", "))) VALUES (\(columns.indices.map { "$\($0 + 1)" }.joined(separator: ", ")))"
                for row in rows { try target.connection.change(sql, row) }
                guard target.connection.dialect == .postgresql, columns.first == "id" else { continue }
                _ = try target.connection.rows(
                    "SELECT setval(pg_get_serial_sequence('\(table)', 'id'), (SELECT coalesce(max(id), 0) + 1 FROM \(table)), false)", []
                ) { $0.int(0) }
            }
        }
        progress("\(contents[0].2.count) accounts, \(contents[1].2.count) keys copied")
    }

    private func newestInTarget() throws(StoreError) -> RecordID? {
        try target.connection.rows(Queries.usage(last: 1)).first?.record.id
    }

    private func copyUsage(after start: RecordID?) throws(StoreError) {
        let total = try source.connection.rows("SELECT count(*) FROM usage_records", []) { $0.int(0) }.first ?? 0
        var (at, seen, added) = (start, 0, 0)
        var told = Clock.now
        while true {
            let page = try source.connection.rows(Queries.usage(after: at, count: Self.pageRecords))
            guard let last = page.last else { break }
            added += try target.append(page)
            seen += page.count
            at = last.id
            guard Clock.now.milliseconds(since: told) >= 1000 else { continue }
            told = Clock.now
            progress("\(seen) of \(total) usage records looked at, \(added) copied")
        }
        progress("\(added) usage records copied\(start == nil ? "" : ", the others were there")")
    }
}
