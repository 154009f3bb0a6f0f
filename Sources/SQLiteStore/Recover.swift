internal import Schema
public import Store
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// What could be saved of a damaged database, and what could not.
public struct RecoveryReport: Sendable, Equatable {
    public struct Table: Sendable, Equatable {
        public var name: String
        /// Rows in the new database that come from the damaged one.
        public var saved: Int
        /// Rows that are known to have been there and could not be read.
        public var lost: Int
        /// Pages of this table that could not be read as a whole; how many rows they held is not known.
        public var unreadablePages: Int
    }
    public var tables: [Table]
    public var isHeaderDamaged: Bool
    /// The list of tables could not be read, or not all of it: rows were told apart by their shape.
    public var isSchemaDamaged: Bool
    /// Pages that hold something, to which nothing leads that could be read, and that are no whole page of rows: damaged ones of an
    /// unknown table, and parts of long rows that are lost.
    public var strayPages: Int
    /// Frames of the log (`-wal`) that could not be read: the newest changes.
    public var unreadableFrames: Int
    /// The usage records that were saved, next to their checksums. Those that were altered are saved as they are, without one.
    public var checksums: ChecksumCount
    /// What the operator must know or do, a line each.
    public var remarks: [String]

    /// Whether no loss is known, no place was found where there could be one, and no record was altered.
    public var isComplete: Bool {
        strayPages == 0 && unreadableFrames == 0 && checksums.altered.isEmpty
            && tables.allSatisfy { $0.lost == 0 && $0.unreadablePages == 0 }
    }
}

/// Saves what a damaged database still holds.
///
/// The file and its log are read page by page (`PageFile`), never through SQLite: first each table from its root, so that what is live
/// wins; then the pages that this did not reach, whose rows are told apart by their shape. Where a page does not hold together every
/// place in it is tried for a row. SQLite has no checksums in the file itself, so a number or a text that was changed to another one of the
/// same kind is recognised in usage records only, by the checksum that each has. Of two copies of a record the one that fits its checksum
/// is saved; where none does, the record is saved as it is and told, without the checksum: nothing vouches for it any more.
public enum Recover {
    /// Reads `database` and makes the new database `output` (0600), of the present revision, checked and synced before it has its name.
    /// `database` and what lies beside it are never changed. Refuses when a server uses the database or `output` exists.
    public static func run(
        database path: String, output: String, progress: (String) -> Void, now: WallTime
    ) throws(StoreError) -> RecoveryReport {
        guard access(path, F_OK) == 0 else { throw StoreError(.missing, "there is no file \(path) to recover") }
        guard access(output, F_OK) != 0 else { throw StoreError(.constraint, "\(output) exists already; give another name") }
        // A lock file that is not there is not made: nobody writes this database.
        let lock =
            access(path + ".lock", F_OK) == 0 ? try WriterLock.acquire(database: path, waitMilliseconds: Limits.leavingMilliseconds) : nil
        defer { withExtendedLifetime(lock) {} }
        let file = try PageFile(path)
        let revisions = try revisions(of: file, path)
        return try Backup.withPartial(output, of: Backup.base(output)) { partial, fd throws(StoreError) in
            let report = try fill(partial, from: file, path, revisions, progress, now)
            progress("checking \(output)")
            let problems = try DatabaseCheck.run(path: partial).problems
            guard problems.isEmpty else { throw StoreError(.corrupt, "what was saved of \(path) does not hold together: \(problems[0])") }
            try Backup.publish(partial, fd, as: output)
            return report
        }
    }

    private static func fill(
        _ partial: String, from file: PageFile, _ path: String, _ revisions: Int, _ progress: (String) -> Void, _ now: WallTime
    ) throws(StoreError) -> RecoveryReport {
        let made = try Connection(partial, .readWrite)
        // Nobody opens the file before it has its name: it is synced once, at the end.
        try made.execute("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")
        // All revisions, whatever the header tells: what a later one adds may be missing in a row, and a number that is damage costs nothing.
        _ = try SQLiteStore.migrator(made, Schema.revisions).apply(appVersion: "db recover", now: now)
        let salvage = try Salvage(file, made, revisions: revisions)
        let report = try made.transaction { () throws(StoreError) in
            try salvage.run(progress)
            return try salvage.finish(now)
        }
        guard report.tables.contains(where: { $0.saved > 0 }) else {
            throw StoreError(.missing, "\(path) holds no row of codex-lb that could be read; nothing was made")
        }
        return report
    }

    /// How many revisions the damaged database has, as far as its header tells; all of them otherwise.
    private static func revisions(of file: PageFile, _ path: String) throws(StoreError) -> Int {
        guard let head = file.page(1), PageFile.isHeader(head), PageFile.number(head, 68) == Int(Schema.applicationID) else {
            return Schema.revisions.count
        }
        let number = PageFile.number(head, 60)
        // Revisions have four digits; a greater number is damage.
        guard number <= Schema.head.number || number > 9999 else {
            throw StoreError(
                .newer, "database \(path) has revision \(number), this codex-lb knows \(Schema.head.id); use the newer codex-lb")
        }
        return number == 0 || number > 9999 ? Schema.revisions.count : number
    }
}

/// What rows of a table look like. It knows two kinds of table: `id INTEGER PRIMARY KEY` first, and WITHOUT ROWID with the key first.
private struct Shape {
    struct Column {
        var name: String
        var type: String
        var mayBeMissing: Bool
        var mayBeNull: Bool
    }
    let table: String
    let columns: [Column]
    /// The rows have numbers: the first column is the row's number, and the record has NULL in its place.
    let hasRowID: Bool

    init(_ table: String, _ columns: [Column], hasRowID: Bool) { (self.table, self.columns, self.hasRowID) = (table, columns, hasRowID) }

    init(_ table: String, _ connection: Connection) throws(StoreError) {
        self.table = table
        hasRowID = try connection.int("SELECT wr FROM pragma_table_list WHERE name = ? AND schema = 'main'", [.text(table)]) == 0
        let isNumbered = hasRowID
        columns = try connection.rows("SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info(?)", [.text(table)]) {
            let isNullable = $0.int(2) == 0 && !(isNumbered && $0.int(4) > 0)
            return Column(name: $0.text(0), type: $0.text(1), mayBeMissing: isNullable || !$0.isNull(3), mayBeNull: isNullable)
        }
    }

    /// The row that a cell is, when it is one of this table. `isKnownTable`: the cell comes from the table's own tree; otherwise only what
    /// can't be something else is taken.
    func row(_ cell: Cell, isKnownTable: Bool) -> [SQLValue]? {
        var values = cell.values
        guard (cell.rowID != nil) == (hasRowID || table == "sqlite_sequence"), !values.isEmpty, values.count <= columns.count else {
            return nil
        }
        guard columns[values.count...].allSatisfy(\.mayBeMissing) else { return nil }
        if hasRowID {
            guard case .null = values[0], let id = cell.rowID, id > 0 else { return nil }
            values[0] = .int(id)
        }
        for (value, column) in zip(values, columns) {
            switch (value, column.type) {
            case (.null, _): guard column.mayBeNull else { return nil }
            case (.int, "INTEGER"), (.text, "TEXT"), (.blob, "BLOB"), (_, "ANY"): break
            default: return nil
            }
        }
        return isPlausible(values, isKnownTable: isKnownTable) ? values : nil
    }

    /// What the types alone do not say. A row that the store could not read back is none.
    private func isPlausible(_ values: [SQLValue], isKnownTable: Bool) -> Bool {
        switch (table, values[0], values.count > 1 ? values[1] : .null) {
        case ("usage_records", .blob(let id), _):
            guard case .text(let transport) = values[3] else { return false }
            return RecordID(bytes: id) != nil && UsageRecord.Transport(rawValue: transport) != nil
        case ("accounts", _, _):
            guard case .text(let kind) = values[3], case .text(let state) = values[4] else { return false }
            return Account.Kind(rawValue: kind) != nil && Account.State(rawValue: state) != nil
        case ("client_keys", _, _):
            guard case .blob(let digest) = values[2] else { return false }
            return digest.count == 32
        // Entries of the indices over names look alike: a text and a number.
        case ("state", .text("key_fingerprint"), .text(let text)): return text.utf8.count == 16
        case ("state", .text("pepper"), .blob(let sealed)): return sealed.count > 16
        case ("state", .text("pepper"), .text(let text)): return text.utf8.count > 16
        case ("state", .text("snapshot_version"), .int(let version)): return version > 0
        case ("state", .text("snapshot_version"), .text(let text)): return Int64(text) ?? 0 > 0
        case ("state", _, _): return isKnownTable
        case ("settings", .text(let key), _):
            return isKnownTable
                || !key.isEmpty && !["key_fingerprint", "pepper", "snapshot_version", "copied_version"].contains(key)
                    && key.utf8.allSatisfy { byte in
                        (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
                            || byte == UInt8(ascii: "_") || byte == UInt8(ascii: ".")
                    }
        case ("audit", _, .int(let at)):
            guard case .text(let action) = values[3], case .text(let detail) = values[5] else { return false }
            return isKnownTable || at > 0 && action.contains(".") && detail.hasPrefix("{") && detail.hasSuffix("}")
        case ("revision_history", .text(let id), _): return Schema.revisions.contains { $0.id == id }
        case ("sqlite_sequence", .text(let name), .int(let last)): return Salvage.numbered.contains(name) && last >= 0
        default: return isKnownTable
        }
    }

    /// Of two states of one row the greater is the newer.
    func age(_ values: [SQLValue]) -> Int64 {
        let column = ["accounts": 8, "client_keys": 6, "state": 1][table]
        guard let column, column < values.count else { return 0 }
        switch values[column] {
        case .int(let n): return n
        case .text(let text): return Int64(text) ?? 0
        default: return 0
        }
    }
}

/// One run: what has been reached, what has been saved.
private final class Salvage {
    /// Tables whose rows are numbered 1, 2, 3 … without gaps: nothing is ever deleted from them.
    static let numbered = ["accounts", "client_keys"]

    private let file: PageFile
    private let output: Connection
    /// That the damaged database had.
    private let revisions: Int
    private let shapes: [Shape]
    /// By table and number of columns: an old row may lack the last ones.
    private var inserts: [[Int]: Statement] = [:]
    private var reached: [Bool]
    /// Pages that a table's damage has been booked for.
    private var booked: Set<Int> = []
    private var tables: [RecoveryReport.Table]
    private var isSchemaDamaged = false
    /// See `RecoveryReport.strayPages`; an overflow page leaves when its row is found.
    private var strays: Set<Int> = []
    /// The numbers that SQLite would not give again.
    private var sequences: [String: Int64] = [:]
    /// Rows of unreached pages; of two with one key the newer must be saved first.
    private var rivals: [(shape: Int, values: [SQLValue])] = []
    private var checksums = ChecksumCount()
    /// Usage records that do not fit their checksum, and their ids: an intact copy may still be found.
    private var altered: [(shape: Int, values: [SQLValue])] = []
    private var alteredIDs: Set<[UInt8]> = []

    init(_ file: PageFile, _ output: Connection, revisions: Int) throws(StoreError) {
        (self.file, self.output, self.revisions) = (file, output, revisions)
        let names = try output.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name", []) {
            $0.text(0)
        }
        var shapes: [Shape] = []
        for name in names { shapes.append(try Shape(name, output)) }
        shapes.append(
            Shape(
                "sqlite_sequence",
                ["TEXT", "INTEGER"].map { Shape.Column(name: "", type: $0, mayBeMissing: false, mayBeNull: false) }, hasRowID: false))
        self.shapes = shapes
        tables = shapes.map { RecoveryReport.Table(name: $0.table, saved: 0, lost: 0, unreadablePages: 0) }
        reached = Array(repeating: false, count: file.count + 1)
    }

    /// Saves rows: first from the trees, which hold what is live, then from the pages that no tree has reached.
    func run(_ progress: (String) -> Void) throws(StoreError) {
        var told = Clock.now
        func tick(_ what: String, _ pages: @autoclosure () -> Int) {
            guard Clock.now.milliseconds(since: told) >= 1000 else { return }
            told = Clock.now
            progress("\(what): \(pages()) of \(file.count) pages")
        }
        var (roots, indices): ([String: Int], [Int]) = ([:], [])
        let damagedSchema = { (damage: Damage) in
            self.isSchemaDamaged = true
            if case .page(let number) = damage { self.booked.insert(number) }
        }
        try walk(1, isTable: true, damage: damagedSchema, tick: {}) { cell in
            guard cell.values.count == 5, case .text(let type) = cell.values[0], case .text(let name) = cell.values[1],
                case .int(let root) = cell.values[3]
            else { return false }
            if type == "table" { roots[name] = Int(clamping: root) }
            if type == "index" { indices.append(Int(clamping: root)) }
            return true
        }
        for (i, shape) in shapes.enumerated() {
            guard let root = roots[shape.table] else {
                if shape.table != "sqlite_sequence" { isSchemaDamaged = true }
                continue
            }
            let isTable = shape.hasRowID || shape.table == "sqlite_sequence"
            let book = { (damage: Damage) in
                switch damage {
                case .page(let number):
                    self.tables[i].unreadablePages += 1
                    self.booked.insert(number)
                case .cells(let count): self.tables[i].lost += count
                }
            }
            try walk(root, isTable: isTable, damage: book, tick: { tick("reading \(shape.table)", reached.count { $0 }) }) {
                cell throws(StoreError) in
                guard let values = shape.row(cell, isKnownTable: true) else { return false }
                _ = try save(i, values)
                return true
            }
        }
        // Indices are made anew. Their pages are only told apart from those that may hold rows.
        for root in indices {
            try walk(root, isTable: false, damage: { if case .page(let n) = $0 { booked.insert(n) } }, tick: {}) { cell in
                match(cell) == nil
            }
        }
        for number in file.freePages() where number < reached.count { reached[number] = true }
        // The page at 1 GiB, which locks use, is never written (FF 1.4).
        if case let number = 1 << 30 / file.pageBytes + 1, number < reached.count { reached[number] = true }
        for number in 1..<reached.count where !reached[number] {
            tick("looking for rows", number)
            guard let bytes = file.page(number) else {
                if !booked.contains(number) { strays.insert(number) }
                continue
            }
            try sweep(bytes, number)
        }
        for bytes in file.uncommitted { try sweep(bytes, nil) }
    }

    private enum Damage {
        /// A page that is not what its parent says. It is left to `sweep`.
        case page(Int)
        /// Rows of a page that could not be read.
        case cells(Int)
    }

    /// Goes through a tree. `take` says whether a cell belongs to it. A page none of whose cells does is not of this tree: a damaged
    /// pointer led there.
    private func walk(
        _ root: Int, isTable: Bool, damage: (Damage) -> Void, tick: () -> Void, take: (Cell) throws(StoreError) -> Bool
    ) throws(StoreError) {
        var waiting = [root]
        while let number = waiting.popLast() {
            tick()
            guard number > 0, number < reached.count, !reached[number], let bytes = file.page(number),
                let page = TreePage(bytes, number: number, usable: file.usableBytes), page.kind.isTable == isTable
            else {
                damage(.page(number))
                continue
            }
            var (taken, children) = (0, [Int]())
            for at in page.cells {
                guard let cell = file.cell(bytes, at: at, page.kind) else { continue }
                if page.kind != .tableInterior {
                    guard try take(cell) else { continue }
                    for overflow in cell.overflow { reached[overflow] = true }
                }
                taken += 1
                if let child = cell.child { children.append(child) }
            }
            // The leftmost is next: rows come in the order of their keys, which is the order that is written fastest.
            if let child = page.rightmost { children.append(child) }
            waiting += children.reversed()
            guard taken > 0 || page.count == 0 else {
                damage(.page(number))
                continue
            }
            reached[number] = true
            if taken < page.count {
                var found = 0
                for (shape, values) in scan(bytes) where try save(shape, values) { found += 1 }
                if taken + found < page.count { damage(.cells(page.count - taken - found)) }
            }
        }
    }

    /// Saves the rows of a page that no tree has reached; nil for the number of one that is only in the log.
    private func sweep(_ bytes: [UInt8], _ number: Int?) throws(StoreError) {
        var rows: [(Int, [SQLValue])] = []
        let page = TreePage(bytes, number: number ?? 0, usable: file.usableBytes)
        var isWhole = page != nil
        for at in page?.cells ?? [] {
            guard let page, let cell = file.cell(bytes, at: at, page.kind) else {
                isWhole = false
                continue
            }
            if let row = match(cell) { rows.append(row) }
        }
        if let page, page.cells.count < page.count { isWhole = false }
        if !isWhole {
            rows += scan(bytes)
            // Where there are bytes there may have been rows.
            if let number, !booked.contains(number), bytes.contains(where: { $0 != 0 }) { strays.insert(number) }
        }
        for (shape, values) in rows {
            // What never changes is saved at once; of what changes the newest state must win.
            if shapes[shape].table == "usage_records" { _ = try save(shape, values) } else { rivals.append((shape, values)) }
        }
    }

    /// Tries every place of a page for a row.
    private func scan(_ bytes: [UInt8]) -> [(Int, [SQLValue])] {
        var (out, at) = ([(Int, [SQLValue])](), 0)
        while at < file.usableBytes - 4 {
            for kind in [TreePage.Kind.indexLeaf, .tableLeaf] {
                guard let cell = file.cell(bytes, at: at, kind), let row = match(cell) else { continue }
                out.append(row)
                at = cell.end - 1
                break
            }
            at += 1
        }
        return out
    }

    /// The row that a cell of an unknown tree is; its overflow pages are then no strays.
    private func match(_ cell: Cell) -> (Int, [SQLValue])? {
        for (i, shape) in shapes.enumerated() {
            guard let values = shape.row(cell, isKnownTable: false) else { continue }
            for page in cell.overflow { reached[page] = true }
            return (i, values)
        }
        return nil
    }

    /// Whether the row is saved, or kept to be, by this call and was not before.
    private func save(_ shape: Int, _ values: [SQLValue]) throws(StoreError) -> Bool {
        let table = shapes[shape].table
        switch (table, values[0]) {
        case ("sqlite_sequence", .text(let name)):
            if case .int(let last) = values[1] { sequences[name] = max(last, sequences[name] ?? 0) }
            return false
        case ("revision_history", _):
            // The revisions have been applied here; when and by whom they were first is what the old ledger knows.
            try output.run(
                "UPDATE revision_history SET applied_at_ms = ?4, duration_ms = ?5, app_version = ?6 WHERE id = ?1 AND checksum = ?3",
                values)
        case ("usage_records", .blob(let id)) where StoredRecord.isIntact(values) == false:
            guard alteredIDs.insert(id).inserted else { return false }
            altered.append((shape, values))
            return true
        default:
            try insert(shape, values.count).run(values)
        }
        guard output.changes > 0 else { return false }
        tables[shape].saved += 1
        if table == "usage_records" {
            if StoredRecord.isIntact(values) == nil { checksums.without += 1 } else { checksums.checked += 1 }
        }
        return true
    }

    private func insert(_ shape: Int, _ count: Int) throws(StoreError) -> Statement {
        if let known = inserts[[shape, count]] { return known }
        let names = shapes[shape].columns.prefix(count).map(\.name).joined(separator: ", ")
        let places = Array(repeating: "?", count: count).joined(separator: ", ")
        let made = try output.statement("INSERT OR IGNORE INTO \(shapes[shape].table) (\(names)) VALUES (\(places))")
        inserts[[shape, count]] = made
        return made
    }

    /// Saves what is left, puts right what rows say about each other, and reports.
    func finish(_ now: WallTime) throws(StoreError) -> RecoveryReport {
        for (shape, values) in rivals.sorted(by: { shapes[$0.shape].age($0.values) > shapes[$1.shape].age($1.values) }) {
            _ = try save(shape, values)
        }
        for (shape, values) in altered {
            let row = Array(values.dropLast())
            try insert(shape, row.count).run(row)
            guard output.changes > 0, case .blob(let id) = values[0] else { continue }
            tables[shape].saved += 1
            checksums.checked += 1
            checksums.altered.append(RecordID(bytes: id)?.description ?? "?")
        }
        var remarks: [String] = []
        for (table, column) in zip(Self.numbered, ["account_id", "key_id"]) {
            guard let i = tables.firstIndex(where: { $0.name == table }) else { continue }
            // A number that old records name must not be given again, or they would be another's.
            var last = try output.int("SELECT max(id) FROM \(table)") ?? 0
            if let known = sequences[table] {
                last = max(last, known)
            } else {
                last = max(last, try output.int("SELECT max(\(column)) FROM usage_records") ?? 0)
            }
            try output.run("DELETE FROM sqlite_sequence WHERE name = ?", [.text(table)])
            try output.run("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", [.text(table), .int(last)])
            tables[i].lost = Int(last) - tables[i].saved
        }
        if let i = tables.firstIndex(where: { $0.name == "state" }) { tables[i].lost = try finishState(now, &remarks) }
        if let i = tables.firstIndex(where: { $0.name == "revision_history" }) {
            tables[i].lost = max(0, revisions - tables[i].saved)
        }
        return RecoveryReport(
            tables: tables.filter { $0.name != "sqlite_sequence" }, isHeaderDamaged: file.isHeaderDamaged, isSchemaDamaged: isSchemaDamaged,
            strayPages: strays.count { !reached[$0] }, unreadableFrames: file.unreadableFrames, checksums: checksums,
            remarks: remarks)
    }

    /// The store's own facts hang together: the pepper is sealed with the key whose fingerprint stands beside it. How many are lost.
    private func finishState(_ now: WallTime, _ remarks: inout [String]) throws(StoreError) -> Int {
        let there = Set(try output.rows("SELECT key FROM state", []) { $0.text(0) })
        let lost = 3 - there.intersection(["pepper", "key_fingerprint", "snapshot_version"]).count
        guard let pepper = try output.rows("SELECT value FROM state WHERE key = 'pepper'", [], { $0.blob(0) }).first else {
            // The store makes all three anew when it opens a database without them.
            try output.execute("DELETE FROM state WHERE key IN ('pepper', 'key_fingerprint', 'snapshot_version')")
            remarks.append("the secret that client keys are checked with is lost: revoke every client key and make new ones")
            return 3
        }
        if !there.contains("key_fingerprint") {
            // The seal names its key (`SealingKey`): a byte for the version, then eight that are the fingerprint.
            let hex = Vault.sealedPepper(pepper)[1..<9].map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
            try output.run("INSERT INTO state (key, value) VALUES ('key_fingerprint', ?)", [.text(hex)])
        }
        // Greater than any version there has been: each change adds one.
        if !there.contains("snapshot_version") {
            try output.run("INSERT INTO state (key, value) VALUES ('snapshot_version', ?)", [.int(now.milliseconds)])
        }
        return lost
    }
}
