internal import CSQLite
internal import ControlWire
internal import Store
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// One prepared statement; belongs to its connection, which finalises it.
final class Statement {
    fileprivate let handle: OpaquePointer
    private unowned let connection: Connection

    fileprivate init(_ handle: OpaquePointer, _ connection: Connection) { (self.handle, self.connection) = (handle, connection) }

    /// Runs it with `values` for its parameters and gives each row to `row`.
    func run(_ values: [SQLValue] = [], _ row: (Statement) throws(StoreError) -> Void = { _ in }) throws(StoreError) {
        connection.statementBegan = Clock.now
        defer {
            sqlite3_reset(handle)
            sqlite3_clear_bindings(handle)
        }
        try bind(values)
        while true {
            switch sqlite3_step(handle) {
            case SQLITE_ROW: try row(self)
            case SQLITE_DONE: return
            case let code: throw connection.error(code)
            }
        }
    }

    /// Gives `values` to the parameters behind the first `start`.
    func bind(_ values: [SQLValue], after start: Int = 0) throws(StoreError) {
        for (i, value) in values.enumerated() {
            let at = Int32(start + i + 1)
            let code =
                switch value {
                case .null: sqlite3_bind_null(handle, at)
                case .int(let n): sqlite3_bind_int64(handle, at, n)
                case .text(var text):
                    text.withUTF8 { bytes in
                        bytes.withMemoryRebound(to: CChar.self) {
                            sqlite3_bind_text64(handle, at, $0.baseAddress, UInt64($0.count), Connection.copied, UInt8(SQLITE_UTF8))
                        }
                    }
                case .blob(let bytes):
                    bytes.isEmpty
                        ? sqlite3_bind_zeroblob(handle, at, 0)
                        : sqlite3_bind_blob64(handle, at, bytes, UInt64(bytes.count), Connection.copied)
                }
            guard code == SQLITE_OK else { throw connection.error(code, "binding") }
        }
    }

    /// The same with a row and its checksum (nil: the schema has none), without copies: `bytes`, where its texts are, and the 16 bytes at
    /// `id` must stay until it has run.
    func bind(_ row: JournalRow, in bytes: UnsafeRawPointer, id: UnsafeMutablePointer<UInt64>, withChecksum: Bool, after start: Int)
        throws(StoreError)
    {
        (id[0], id[1]) = (row.id.high.bigEndian, row.id.low.bigEndian)
        var at = Int32(start + 1)
        var code = sqlite3_bind_blob64(handle, at, id, 16, nil)
        var sum = RecordChecksum()
        sum.add(blob: UnsafeRawBufferPointer(start: id, count: 16))
        func bind(_ text: UnsafeRawBufferPointer) -> Int32 {
            sum.add(text: text)
            return sqlite3_bind_text64(
                handle, at, text.baseAddress!.assumingMemoryBound(to: CChar.self), UInt64(text.count), nil, UInt8(SQLITE_UTF8))
        }
        let values = row.values.span
        for i in values.indices {
            at += 1
            switch values[i] {
            case .null:
                sum.addNull()
                code |= sqlite3_bind_null(handle, at)
            case .number(let n):
                sum.add(n)
                code |= sqlite3_bind_int64(handle, at, n)
            case .text(let place): code |= bind(UnsafeRawBufferPointer(start: bytes + Int(place.lowerBound), count: place.count))
            case .transport(let known):
                let name: StaticString = known == .http ? "http" : "websocket"
                code |= bind(UnsafeRawBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
            }
        }
        if withChecksum { code |= sqlite3_bind_int64(handle, at + 1, Int64(sum.value)) }
        guard code == SQLITE_OK else { throw connection.error(code, "binding") }
    }

    /// Runs it with what was bound, once; returns the rows it changed.
    func change() throws(StoreError) -> Int {
        defer { sqlite3_reset(handle) }
        let code = sqlite3_step(handle)
        guard code == SQLITE_DONE else { throw connection.error(code) }
        return connection.changes
    }

    func int(_ column: Int32) -> Int64 { sqlite3_column_int64(handle, column) }
    func isNull(_ column: Int32) -> Bool { sqlite3_column_type(handle, column) == SQLITE_NULL }
    func text(_ column: Int32) -> String {
        guard let bytes = sqlite3_column_text(handle, column) else { return "" }
        let count = Int(sqlite3_column_bytes(handle, column))
        return String(decoding: UnsafeBufferPointer(start: bytes, count: count), as: UTF8.self)
    }
    func value(_ column: Int32) -> StoredValue {
        switch sqlite3_column_type(handle, column) {
        case SQLITE_INTEGER: return .int(int(column))
        case SQLITE_FLOAT: return .real(sqlite3_column_double(handle, column))
        case SQLITE_TEXT:
            let start = sqlite3_column_text(handle, column)
            let bytes = UnsafeBufferPointer(start: start, count: Int(sqlite3_column_bytes(handle, column)))
            return String(validating: bytes, as: UTF8.self).map { .text($0) } ?? .brokenText(Array(bytes))
        case SQLITE_BLOB: return .blob(blob(column))
        default: return .null
        }
    }
    func blob(_ column: Int32) -> [UInt8] {
        guard let bytes = sqlite3_column_blob(handle, column) else { return [] }
        return Array(UnsafeRawBufferPointer(start: bytes, count: Int(sqlite3_column_bytes(handle, column))))
    }
}

/// One connection to one database file. One caller at a time.
final class Connection {
    enum Mode {
        case readWrite
        case readOnly
        /// Looks at the main file alone: no lock, no log, no file made beside it.
        case immutable
    }

    fileprivate static var copied: sqlite3_destructor_type { unsafeBitCast(-1, to: sqlite3_destructor_type.self) }  // SQLITE_TRANSIENT

    let path: String
    private let mode: Mode
    private var handle: OpaquePointer?
    private var statements: [String: Statement] = [:]
    /// Inserts of so many records, also among `statements`.
    var inserts: [Int: Statement] = [:]
    /// Nil until the first record is stored.
    var storesChecksums: Bool?

    init(_ path: String, _ mode: Mode) throws(StoreError) {
        (self.path, self.mode) = (path, mode)
        var flags = SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE
        flags |= mode == .readWrite ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY
        let code = sqlite3_open_v2(Self.uri(path, mode), &handle, flags, nil)
        guard code == SQLITE_OK else {
            let error = error(code, "opening")
            close()
            throw error
        }
        // SQLite opens for reading what it may not write, and tells only the first transaction.
        guard mode != .readWrite || sqlite3_db_readonly(handle, "main") != 1 else {
            let error = error(SQLITE_READONLY, "opening")
            close()
            throw error
        }
        sqlite3_busy_timeout(handle, 1000)
    }

    deinit { close() }

    func close() {
        for statement in statements.values { sqlite3_finalize(statement.handle) }
        (statements, inserts) = ([:], [:])
        sqlite3_close_v2(handle)
        handle = nil
    }

    // MARK: The log

    /// What the last commit or checkpoint of this connection left in the log (`-wal`); nil before the first one.
    private(set) var log: LogState?

    /// Moves the log into the database each time a commit leaves it with `pages` pages or more. PASSIVE: nobody waits, and what a reader
    /// still needs stays. SQLite's own `wal_autocheckpoint` does the same without telling what it achieved.
    func checkpointLog(pages: Int) throws(StoreError) {
        logPagesMax = pages
        logPageBytes = 24 + Int(try int("PRAGMA page_size") ?? 4096)  // fileformat2.html 4.1: a head before each page
        sqlite3_wal_hook(
            handle,
            { me, _, _, pages in
                Unmanaged<Connection>.fromOpaque(me!).takeUnretainedValue().committed(logPages: Int(pages))
                return SQLITE_OK  // the commit is done, whatever becomes of the checkpoint
            }, Unmanaged.passUnretained(self).toOpaque())
    }

    private var logPagesMax = Int.max
    private var logPageBytes = 0

    private func committed(logPages: Int) {
        log = LogState(bytes: logPages * logPageBytes, heldSince: logPages < logPagesMax ? nil : log?.heldSince)
        if logPages >= logPagesMax { checkpoint() }
    }

    /// Moves what can be moved; what stays is held by a reader that began before it was written.
    func checkpoint() {
        var (all, moved): (Int32, Int32) = (0, 0)
        let code = sqlite3_wal_checkpoint_v2(handle, nil, SQLITE_CHECKPOINT_PASSIVE, &all, &moved)
        // A checkpoint that fails moves later what it has not moved now; BUSY is another connection's checkpoint.
        guard code == SQLITE_OK, all >= 0 else { return }
        log = LogState(bytes: Int(all) * logPageBytes, heldSince: moved < all ? log?.heldSince ?? Clock.now : nil)
    }

    /// Ends whatever runs longer than this with an error; nil: it takes as long as it does. A long read keeps the log from being reset.
    func limitStatements(milliseconds: Int?) {
        statementMilliseconds = milliseconds
        guard milliseconds != nil else { return sqlite3_progress_handler(handle, 0, nil, nil) }
        sqlite3_progress_handler(
            handle, 10_000,  // instructions of SQLite's machine: well under a millisecond
            { me in Unmanaged<Connection>.fromOpaque(me!).takeUnretainedValue().isOverdue ? 1 : 0 },
            Unmanaged.passUnretained(self).toOpaque())
    }

    private var statementMilliseconds: Int?
    fileprivate var statementBegan = Instant.never
    private var isOverdue: Bool {
        guard let limit = statementMilliseconds, statementBegan != .never else { return false }
        return Clock.now.milliseconds(since: statementBegan) > limit
    }

    /// SQLite's URI form, so that no character of a path means anything.
    private static func uri(_ path: String, _ mode: Mode) -> String {
        if path == ":memory:" { return path }
        var out = "file:"
        for byte in path.utf8 {
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"),
                UInt8(ascii: "/"), UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "_"):
                out.unicodeScalars.append(Unicode.Scalar(byte))
            default:
                out += "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16)
            }
        }
        return mode == .immutable ? out + "?immutable=1" : out
    }

    func error(_ code: Int32, _ what: String = "") -> StoreError {
        let words =
            sqlite3_extended_errcode(handle) == code ? handle.flatMap { sqlite3_errmsg($0) }.map { String(cString: $0) } : nil
        let text = "\(what.isEmpty ? "" : what + ": ")\(words ?? String(cString: sqlite3_errstr(code))) (SQLite \(code))"
        var system = handle.map { sqlite3_system_errno($0) } ?? 0
        // The errno of a failed making is that of SQLite's second try, for reading: "no such file".
        if code & 0xFF == SQLITE_CANTOPEN, mode == .readWrite, faccessat(AT_FDCWD, Inspection.directory(path), W_OK, AT_EACCESS) != 0 {
            system = errno
        }
        let isReadOnlyFileSystem = system == EROFS || Self.isReadOnlyFileSystem(path)
        return Self.error(code, text, path: path, mode: mode, system: system, isReadOnlyFileSystem: isReadOnlyFileSystem)
    }

    /// SQLITE_READONLY_ROLLBACK, a macro that Swift does not see: only a writer may take back what a journal holds.
    private static let hotJournal = SQLITE_READONLY | 3 << 8

    /// What `code` means and what can be done about it. `system` is the errno of the call that failed, 0 when there was none.
    static func error(
        _ code: Int32, _ text: String, path: String, mode: Mode, system: Int32, isReadOnlyFileSystem: Bool
    ) -> StoreError {
        let database = "database \(path)"
        let reason = system == 0 ? text : "\(text), \(String(cString: strerror(system)))"
        let hasNoSpace = code & 0xFF == SQLITE_IOERR && (system == ENOSPC || system == EDQUOT)
        switch hasNoSpace ? SQLITE_FULL : code & 0xFF {
        case SQLITE_BUSY, SQLITE_LOCKED:
            return StoreError(.busy, "\(database) is locked by another program: \(text); find it with: fuser -v \(path)")
        case SQLITE_FULL:
            return StoreError(.full, "\(database): no space left: \(text); free some on the file system of \(Inspection.directory(path))")
        case SQLITE_CORRUPT, SQLITE_NOTADB:
            return StoreError(.corrupt, damaged(database, text))
        case SQLITE_CONSTRAINT:
            return StoreError(.constraint, "\(database): \(text)")
        case SQLITE_READONLY where mode != .readWrite && code != Self.hotJournal:
            return StoreError(.readOnly, "\(database) is open for reading only: \(text)")
        case SQLITE_READONLY where mode != .readWrite:
            return StoreError(
                .readOnly, "\(database) was left in the middle of a transaction: \(text); start codex-lb once, it takes it back")
        case SQLITE_READONLY, SQLITE_PERM, SQLITE_CANTOPEN, SQLITE_IOERR:
            if isReadOnlyFileSystem {
                let way = "mount it writable or choose another --data-dir"
                return StoreError(.readOnly, "\(database) lies on a read-only file system: \(reason); \(way)")
            }
            if code & 0xFF == SQLITE_READONLY || code & 0xFF == SQLITE_PERM || system == EACCES || system == EPERM {
                let way = "look at owner and mode with: ls -la \(Inspection.directory(path))"
                return StoreError(.readOnly, "\(database): user \(geteuid()) may not write the file or its directory: \(reason); \(way)")
            }
            return StoreError(.io, "\(database): \(reason)")
        default:
            return StoreError(.other, "\(database): \(reason)")
        }
    }

    /// The line about a damaged database.
    static func damaged(_ database: String, _ reason: String) -> String {
        "\(database) is damaged: \(reason); codex-lb db check shows how, codex-lb db restore puts a backup in its place, codex-lb db recover saves what can still be read"
    }

    private static func isReadOnlyFileSystem(_ path: String) -> Bool {
        var info = statvfs()
        return statvfs(Inspection.directory(path), &info) == 0 && info.f_flag & UInt(ST_RDONLY) != 0
    }

    /// Prepared at the first use, kept to the end.
    func statement(_ sql: String) throws(StoreError) -> Statement {
        if let known = statements[sql] { return known }
        var raw: OpaquePointer?
        let code = sqlite3_prepare_v3(handle, sql, -1, UInt32(SQLITE_PREPARE_PERSISTENT), &raw, nil)
        guard code == SQLITE_OK, let raw else { throw error(code, "preparing") }
        let statement = Statement(raw, self)
        statements[sql] = statement
        return statement
    }

    func run(_ sql: String, _ values: [SQLValue] = []) throws(StoreError) { try statement(sql).run(values) }

    func int(_ sql: String, _ values: [SQLValue] = []) throws(StoreError) -> Int64? {
        try rows(sql, values) { $0.int(0) }.first
    }

    /// Statements that are run once: pragmas and the schema. Their rows are dropped.
    func execute(_ sql: String) throws(StoreError) {
        let code = sqlite3_exec(handle, sql, nil, nil, nil)
        guard code == SQLITE_OK else { throw error(code) }
    }

    /// Makes this database a copy of `source` as it is at this moment, in portions of `pages` pages; after each `portion` is told how
    /// many bytes of how many are copied.
    ///
    /// One read transaction on the source spans them all. Without it SQLite would let go between two portions and begin anew after each
    /// commit of another connection (sqlite.org/backup.html); with it others commit meanwhile and neither side waits.
    func copy(
        from source: Connection, pages: Int32 = 1024, portion: (_ bytes: Int, _ of: Int) throws(StoreError) -> Void = { _, _ in }
    ) throws(StoreError) {
        let pageBytes = Int(try source.int("PRAGMA page_size") ?? 4096)
        // The read makes the transaction begin.
        try source.execute("BEGIN; SELECT count(*) FROM sqlite_master")
        defer { sqlite3_exec(source.handle, "ROLLBACK", nil, nil, nil) }
        guard let backup = sqlite3_backup_init(handle, "main", source.handle, "main") else {
            throw error(sqlite3_extended_errcode(handle), "copying")
        }
        defer { sqlite3_backup_finish(backup) }
        while true {
            let code = sqlite3_backup_step(backup, pages)
            guard code == SQLITE_OK || code == SQLITE_DONE else { throw error(code, "copying \(source.path)") }
            let total = Int(sqlite3_backup_pagecount(backup))
            try portion((total - Int(sqlite3_backup_remaining(backup))) * pageBytes, total * pageBytes)
            if code == SQLITE_DONE { return }
        }
    }

    /// What SQLite's own check finds, at most `limit` lines; empty when all is well. A page that the system can't read is an error of
    /// the disk and is thrown: it says nothing about the database.
    func problems(isThorough: Bool, limit: Int) throws(StoreError) -> [String] {
        var found: [String] = []
        do throws(StoreError) {
            _ = try rows("PRAGMA \(isThorough ? "integrity" : "quick")_check(\(limit))", []) { found.append($0.text(0)) }
        } catch {
            // Where it gives up it has often said before what it gave up at.
            guard error.kind == .corrupt, !found.isEmpty else { throw error }
            found.append(error.message)
        }
        for line in found {
            for part in line.split(separator: "error code=").dropFirst() {
                guard let code = Int32(part.prefix { $0.isNumber }), code & 0xFF == SQLITE_IOERR else { continue }
                throw error(code, "checking")
            }
        }
        return found == ["ok"] ? [] : found
    }

    var changes: Int { Int(sqlite3_changes64(handle)) }

    /// Everything of `body` or nothing. Writers begin IMMEDIATE: a deferred one that turns writer gets BUSY without any waiting.
    func transaction<T>(immediate: Bool = true, _ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        try run(immediate ? "BEGIN IMMEDIATE" : "BEGIN")
        do throws(StoreError) {
            let result = try body()
            try run("COMMIT")
            return result
        } catch {
            // Some errors have rolled back already (SQLITE_FULL, SQLITE_IOERR); the first error is the one that counts.
            if sqlite3_get_autocommit(handle) == 0 { sqlite3_exec(handle, "ROLLBACK", nil, nil, nil) }
            throw error
        }
    }
}
