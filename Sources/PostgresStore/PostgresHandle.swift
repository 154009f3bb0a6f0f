internal import CPostgres
internal import Schema
internal import Settings
internal import Store
internal import Vocabulary

/// The answer to one statement.
final class PostgresResult {
    private let raw: OpaquePointer
    init(_ raw: OpaquePointer) { self.raw = raw }
    deinit { PQclear(raw) }

    var status: ExecStatusType { PQresultStatus(raw) }
    /// The end of a segment of the pipeline.
    var isSync: Bool { status == PGRES_PIPELINE_SYNC }
    var rowCount: Int32 { PQntuples(raw) }
    /// Rows that the statement inserted, changed or deleted.
    var changes: Int { Int(String(cString: PQcmdTuples(raw))) ?? 0 }
    private func field(_ code: Character) -> String? {
        PQresultErrorField(raw, Int32(code.asciiValue ?? 0)).map { String(cString: $0) }
    }

    /// What the server refused and why; nil for a good answer.
    func error(_ place: String) -> StoreError? {
        switch status {
        case PGRES_COMMAND_OK, PGRES_TUPLES_OK, PGRES_PIPELINE_SYNC, PGRES_SINGLE_TUPLE: return nil
        case PGRES_PIPELINE_ABORTED: return StoreError(.other, "\(place): not carried out, because a statement before it failed")
        default:
            let state = field("C") ?? ""
            let message = field("M") ?? String(cString: PQresultErrorMessage(raw))
            let detail = field("D").map { " (\($0))" } ?? ""
            let text = (message + detail).split(whereSeparator: \.isNewline).joined(separator: " ")
            let advice = PostgresFailure.advice(state, text)
            return StoreError(PostgresFailure.kind(state), "\(place): \(text)\(state.isEmpty ? "" : " (SQLSTATE \(state))")\(advice)")
        }
    }

    func rows<T>(_ row: (any SQLRow) throws(StoreError) -> T) throws(StoreError) -> [T] {
        var out: [T] = []
        out.reserveCapacity(Int(rowCount))
        for i in 0..<rowCount { out.append(try row(PostgresRow(result: raw, row: i))) }
        return out
    }
}

/// Values come as text; `bytea` as `\x` and hexadecimal digits.
private struct PostgresRow: SQLRow {
    let result: OpaquePointer
    let row: Int32

    private func bytes(_ column: Int32) -> UnsafeBufferPointer<UInt8> {
        let count = Int(PQgetlength(result, row, column))
        guard let start = PQgetvalue(result, row, column) else { return UnsafeBufferPointer(start: nil, count: 0) }
        return start.withMemoryRebound(to: UInt8.self, capacity: count) { UnsafeBufferPointer(start: $0, count: count) }
    }
    func isNull(_ column: Int32) -> Bool { PQgetisnull(result, row, column) == 1 }
    func text(_ column: Int32) -> String { String(decoding: bytes(column), as: UTF8.self) }
    func int(_ column: Int32) -> Int64 { Int64(text(column)) ?? 0 }
    func value(_ column: Int32) -> StoredValue {
        guard !isNull(column) else { return .null }
        switch PQftype(result, column) {
        case PostgresParameter.byteaType: return .blob(blob(column))
        case PostgresParameter.int8Type: return .int(int(column))
        default: return String(validating: bytes(column), as: UTF8.self).map { .text($0) } ?? .brokenText(Array(bytes(column)))
        }
    }
    func blob(_ column: Int32) -> [UInt8] {
        let bytes = bytes(column)
        guard PQftype(result, column) == PostgresParameter.byteaType, bytes.count >= 2 else { return Array(bytes) }
        func digit(_ c: UInt8) -> UInt8 { c <= UInt8(ascii: "9") ? c - 48 : c - 87 }
        var out: [UInt8] = []
        out.reserveCapacity(bytes.count / 2 - 1)
        var i = 2
        while i + 1 < bytes.count {
            out.append(digit(bytes[i]) << 4 | digit(bytes[i + 1]))
            i += 2
        }
        return out
    }
}

/// A parameter in PostgreSQL's binary format.
struct PostgresParameter {
    static let byteaType: UInt32 = 17
    static let (int8Type, textType): (UInt32, UInt32) = (20, 25)
    static let (byteaArrayType, textArrayType, int8ArrayType): (UInt32, UInt32, UInt32) = (1001, 1009, 1016)

    var type: UInt32
    /// Nil is NULL.
    var bytes: [UInt8]?

    init(type: UInt32, bytes: [UInt8]?) { (self.type, self.bytes) = (type, bytes) }

    init(_ value: SQLValue) {
        switch value {
        case .null: self.init(type: 0, bytes: nil)
        case .int(let n): self.init(type: Self.int8Type, bytes: Self.bigEndian(n))
        case .text(let text): self.init(type: Self.textType, bytes: Self.storable(text))
        case .blob(let bytes): self.init(type: Self.byteaType, bytes: bytes)
        }
    }

    /// One array per column out of rows of values; the columns' types come from the first value that is not NULL, else bigint.
    static func columns(_ rows: [[SQLValue]]) -> [PostgresParameter] {
        guard let width = rows.first?.count else { return [] }
        return (0..<width).map { column in
            var (type, element) = (int8ArrayType, int8Type)
            find: for row in rows {
                switch row[column] {
                case .null: continue
                case .int: break find
                case .text: (type, element) = (textArrayType, textType)
                case .blob: (type, element) = (byteaArrayType, byteaType)
                }
                break
            }
            // array_send: dimensions, whether there are nulls, element type, length, lower bound, then length and bytes of each element.
            var out = bigEndian(Int32(1)) + bigEndian(Int32(1)) + bigEndian(Int32(bitPattern: element)) + bigEndian(Int32(rows.count))
            out += bigEndian(Int32(1))
            for row in rows {
                guard let bytes = PostgresParameter(row[column]).bytes else {
                    out += bigEndian(Int32(-1))
                    continue
                }
                out += bigEndian(Int32(bytes.count))
                out += bytes
            }
            return PostgresParameter(type: type, bytes: out)
        }
    }

    private static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] { withUnsafeBytes(of: value.bigEndian) { Array($0) } }

    /// PostgreSQL's text has no NUL: what a client or an upstream put there becomes U+FFFD.
    private static func storable(_ text: String) -> [UInt8] {
        let bytes = Array(text.utf8)
        guard bytes.contains(0) else { return bytes }
        return bytes.flatMap { $0 == 0 ? [0xEF, 0xBF, 0xBD] : [$0] }
    }
}

/// A statement with its parameters.
struct PostgresStatement {
    var sql: String
    var parameters: [PostgresParameter]
    init(_ sql: String, _ values: [SQLValue] = []) { (self.sql, parameters) = (sql, values.map { PostgresParameter($0) }) }
    /// One array per column of `rows`.
    init(_ sql: String, columns rows: [[SQLValue]]) { (self.sql, parameters) = (sql, PostgresParameter.columns(rows)) }
    init<T>(_ query: Query<T>) { self.init(query.sql, query.values) }

    /// Stores records whose ids are new; repeating it changes nothing. In the order of ids: a batch that is sent again while its first
    /// sending is still being carried out waits for it then, where two orders would deadlock. `withChecksums`: the schema has them.
    init(inserting records: [StoredRecord], withChecksums: Bool) {
        let names = withChecksums ? StoredRecord.columnNames : UsageRecord.columnNames
        let arrays = names.indices.map { "$\($0 + 1)" }.joined(separator: ", ")
        sql = """
            INSERT INTO usage_records (\(names.joined(separator: ", "))) SELECT * FROM unnest(\(arrays)) ON CONFLICT (id) DO NOTHING
            """
        parameters = PostgresParameter.columns(
            records.sorted { $0.record.id < $1.record.id }.map { withChecksums ? $0.columnValues : $0.columnValuesWithoutChecksum })
    }
}

/// libpq's connection to one host, never blocking: whoever drives it waits for `socket` and calls again.
///
/// Not thread-safe. Owner of the PGconn and its socket.
final class PostgresHandle {
    enum Wants { case readable, writable }

    let host: PostgresURL.Host
    private let target: PostgresTarget
    private var raw: OpaquePointer?

    /// Begins to connect. `address`: the host's numeric address, when it is a name that was looked up already.
    init(_ target: PostgresTarget, _ host: PostgresURL.Host, address: String?) throws(StoreError) {
        (self.target, self.host) = (target, host)
        let parameters = target.parameters(host, address: address)
        raw = Self.withStrings(parameters.map(\.name)) { names in
            Self.withStrings(parameters.map(\.value)) { values in PQconnectStartParams(names, values, 0) }
        }
        guard let raw else { throw StoreError(.other, "out of memory for a database connection") }
        guard PQstatus(raw) != CONNECTION_BAD else { throw connectFailed() }
        // So that the server's SQLSTATE stands in the text of a refused login.
        PQsetErrorVerbosity(raw, PQERRORS_VERBOSE)
    }

    deinit { close() }

    func close() {
        PQfinish(raw)
        raw = nil
    }

    private static func withStrings<R>(_ strings: [String], _ body: (UnsafePointer<UnsafePointer<CChar>?>) -> R) -> R {
        let copies = strings.map { text in
            let bytes = text.utf8CString
            let copy = UnsafeMutablePointer<CChar>.allocate(capacity: bytes.count)
            _ = UnsafeMutableBufferPointer(start: copy, count: bytes.count).initialize(from: bytes)
            return copy
        }
        defer { for copy in copies { copy.deallocate() } }
        return (copies.map { UnsafePointer($0) } + [nil]).withUnsafeBufferPointer { body($0.baseAddress!) }
    }

    /// May change with each step of connecting.
    var socket: Int32 { PQsocket(raw) }
    var place: String { target.place(host) }

    /// What to wait for before the next call; nil when connected. Before the first call the socket is waited for to be writable.
    func connectStep() throws(StoreError) -> Wants? {
        switch PQconnectPoll(raw) {
        case PGRES_POLLING_READING: return .readable
        case PGRES_POLLING_WRITING: return .writable
        case PGRES_POLLING_OK:
            PQsetErrorVerbosity(raw, PQERRORS_DEFAULT)
            guard PQsetnonblocking(raw, 1) == 0 else { throw broken() }
            return nil
        default: throw connectFailed()
        }
    }

    private func connectFailed() -> StoreError {
        PostgresFailure.connecting(String(cString: PQerrorMessage(raw)), target, host)
    }

    func connectTimedOut() -> StoreError {
        PostgresFailure.connecting("no answer within \(target.connectMilliseconds / 1000) s", target, host)
    }

    /// The connection is lost.
    func broken(_ what: String? = nil) -> StoreError {
        let reason =
            what ?? String(cString: PQerrorMessage(raw)).split(whereSeparator: \.isNewline).first.map(String.init) ?? "connection lost"
        return StoreError(.unreachable, "\(place): \(reason)")
    }

    func enterPipeline() throws(StoreError) { guard PQenterPipelineMode(raw) == 1 else { throw broken() } }
    /// Ends a segment of the pipeline: what was sent since the last one is one implicit transaction.
    func sync() throws(StoreError) { guard PQpipelineSync(raw) == 1 else { throw broken() } }

    func send(_ statement: PostgresStatement) throws(StoreError) {
        let parameters = statement.parameters
        let types = parameters.map(\.type)
        let lengths = parameters.map { Int32($0.bytes?.count ?? 0) }
        let formats = [Int32](repeating: 1, count: parameters.count)
        var arena: [UInt8] = []
        var offsets: [Int?] = []
        for parameter in parameters {
            offsets.append(parameter.bytes == nil ? nil : arena.count)
            arena += parameter.bytes ?? []
        }
        arena.append(0)  // an empty value has an address too: none would be NULL
        let sent = arena.withUnsafeBytes { bytes in
            let base = bytes.baseAddress!.assumingMemoryBound(to: CChar.self)
            let values = offsets.map { $0.map { base + $0 } }
            return PQsendQueryParams(raw, statement.sql, Int32(parameters.count), types, values, lengths, formats, 0)
        }
        guard sent == 1 else { throw broken() }
    }

    /// True when everything has been handed to the kernel.
    func flush() throws(StoreError) -> Bool {
        switch PQflush(raw) {
        case 0: return true
        case 1: return false
        default: throw broken()
        }
    }

    var usesTLS: Bool { PQsslInUse(raw) == 1 }

    /// Takes in what has arrived.
    func receive() throws(StoreError) { guard PQconsumeInput(raw) == 1 else { throw broken() } }

    /// Whether `next()` would have to wait.
    var isBusy: Bool { PQisBusy(raw) == 1 }
    /// The next result; nil at the end of a statement's results.
    func next() -> PostgresResult? { PQgetResult(raw).map { PostgresResult($0) } }
    /// The server closed the connection and said so.
    var isBad: Bool { PQstatus(raw) == CONNECTION_BAD }
}
