internal import CSQLite
internal import Store

/// A value of SQLite's own types.
enum SQLValue {
    case null
    case int(Int64)
    case text(String)
    case blob([UInt8])

    init(_ value: Int64?) { self = value.map { .int($0) } ?? .null }
    init(_ value: String?) { self = value.map { .text($0) } ?? .null }
}

/// One prepared statement; belongs to its connection, which finalises it.
final class Statement {
    fileprivate let handle: OpaquePointer
    private unowned let connection: Connection

    fileprivate init(_ handle: OpaquePointer, _ connection: Connection) { (self.handle, self.connection) = (handle, connection) }

    /// Runs it with `values` for its parameters and gives each row to `row`.
    func run(_ values: [SQLValue] = [], _ row: (Statement) throws(StoreError) -> Void = { _ in }) throws(StoreError) {
        defer {
            sqlite3_reset(handle)
            sqlite3_clear_bindings(handle)
        }
        for (i, value) in values.enumerated() {
            let at = Int32(i + 1)
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
        while true {
            switch sqlite3_step(handle) {
            case SQLITE_ROW: try row(self)
            case SQLITE_DONE: return
            case let code: throw connection.error(code)
            }
        }
    }

    func int(_ column: Int32) -> Int64 { sqlite3_column_int64(handle, column) }
    func isNull(_ column: Int32) -> Bool { sqlite3_column_type(handle, column) == SQLITE_NULL }
    func intOrNil(_ column: Int32) -> Int64? { isNull(column) ? nil : int(column) }
    func text(_ column: Int32) -> String {
        guard let bytes = sqlite3_column_text(handle, column) else { return "" }
        let count = Int(sqlite3_column_bytes(handle, column))
        return String(decoding: UnsafeBufferPointer(start: bytes, count: count), as: UTF8.self)
    }
    func textOrNil(_ column: Int32) -> String? { isNull(column) ? nil : text(column) }
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
    private var handle: OpaquePointer?
    private var statements: [String: Statement] = [:]

    init(_ path: String, _ mode: Mode) throws(StoreError) {
        self.path = path
        var flags = SQLITE_OPEN_URI | SQLITE_OPEN_FULLMUTEX | SQLITE_OPEN_EXRESCODE
        flags |= mode == .readWrite ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE : SQLITE_OPEN_READONLY
        let code = sqlite3_open_v2(Self.uri(path, mode), &handle, flags, nil)
        guard code == SQLITE_OK else {
            let error = error(code, "opening")
            close()
            throw error
        }
        sqlite3_busy_timeout(handle, 1000)
    }

    deinit { close() }

    func close() {
        for statement in statements.values { sqlite3_finalize(statement.handle) }
        statements = [:]
        sqlite3_close_v2(handle)
        handle = nil
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
        let kind: StoreError.Kind =
            switch code & 0xFF {
            case SQLITE_BUSY, SQLITE_LOCKED: .busy
            case SQLITE_FULL: .full
            case SQLITE_READONLY: .readOnly
            case SQLITE_CORRUPT: .corrupt
            case SQLITE_NOTADB: .foreign
            case SQLITE_IOERR, SQLITE_CANTOPEN, SQLITE_PERM: .io
            case SQLITE_CONSTRAINT: .constraint
            default: .other
            }
        let text = handle.flatMap { sqlite3_errmsg($0) }.map { String(cString: $0) } ?? String(cString: sqlite3_errstr(code))
        return StoreError(kind, "database \(path): \(what.isEmpty ? "" : what + ": ")\(text) (SQLite \(code))")
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

    func rows<T>(_ sql: String, _ values: [SQLValue] = [], _ row: (Statement) throws(StoreError) -> T) throws(StoreError) -> [T] {
        var out: [T] = []
        try statement(sql).run(values) { statement throws(StoreError) in out.append(try row(statement)) }
        return out
    }

    func int(_ sql: String, _ values: [SQLValue] = []) throws(StoreError) -> Int64? {
        try rows(sql, values) { $0.int(0) }.first
    }

    /// Statements that are run once: pragmas and the schema. Their rows are dropped.
    func execute(_ sql: String) throws(StoreError) {
        let code = sqlite3_exec(handle, sql, nil, nil, nil)
        guard code == SQLITE_OK else { throw error(code) }
    }

    /// Makes this database a copy of `source` as it is at this moment.
    func copy(from source: Connection) throws(StoreError) {
        guard let backup = sqlite3_backup_init(handle, "main", source.handle, "main") else {
            throw error(sqlite3_errcode(handle), "copying")
        }
        let step = sqlite3_backup_step(backup, -1)
        let finish = sqlite3_backup_finish(backup)
        guard step == SQLITE_DONE else { throw error(step, "copying \(source.path)") }
        guard finish == SQLITE_OK else { throw error(finish, "copying \(source.path)") }
    }

    /// What SQLite's own check finds, at most `limit` lines; empty when all is well. A page that the system can't read is an error of
    /// the disk and is thrown: it says nothing about the database.
    func problems(isThorough: Bool, limit: Int) throws(StoreError) -> [String] {
        let found = try rows("PRAGMA \(isThorough ? "integrity" : "quick")_check(\(limit))") { $0.text(0) }
        for line in found {
            for part in line.split(separator: "error code=").dropFirst() {
                guard let code = Int32(part.prefix { $0.isNumber }), code & 0xFF == SQLITE_IOERR else { continue }
                throw error(code, "checking")
            }
        }
        return found == ["ok"] ? [] : found
    }

    var changes: Int { Int(sqlite3_changes64(handle)) }
    var lastRowID: Int64 { sqlite3_last_insert_rowid(handle) }

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
