public import ControlWire
public import Schema

/// A value as it goes into a statement.
public enum SQLValue: Sendable, Equatable {
    case null
    case int(Int64)
    case text(String)
    case blob([UInt8])

    public init(_ value: Int64?) { self = value.map { .int($0) } ?? .null }
    public init(_ value: String?) { self = value.map { .text($0) } ?? .null }
}

/// A value as it lies in a database, whatever its column should hold.
public enum StoredValue: Sendable, Equatable {
    case null
    case int(Int64)
    case real(Double)
    case text(String)
    /// A text that is not UTF-8.
    case brokenText([UInt8])
    case blob([UInt8])
}

/// One row of a result; lives only during the call that it is given to. Columns count from 0.
public protocol SQLRow {
    func isNull(_ column: Int32) -> Bool
    func int(_ column: Int32) -> Int64
    func text(_ column: Int32) -> String
    func blob(_ column: Int32) -> [UInt8]
    /// As it is, not as what a caller takes it for.
    func value(_ column: Int32) -> StoredValue
}

extension SQLRow {
    public func intOrNil(_ column: Int32) -> Int64? { isNull(column) ? nil : int(column) }
    public func textOrNil(_ column: Int32) -> String? { isNull(column) ? nil : text(column) }
}

/// A question to the store as a value: whoever has a connection asks it, blocking or on the loop.
public struct Query<Row>: Sendable {
    public var sql: String
    public var values: [SQLValue]
    public var decode: @Sendable (any SQLRow) throws(StoreError) -> Row

    public init(_ sql: String, _ values: [SQLValue] = [], _ decode: @escaping @Sendable (any SQLRow) throws(StoreError) -> Row) {
        (self.sql, self.values, self.decode) = (sql, values, decode)
    }
}

/// One blocking connection to a database, one caller at a time. Statements are in the SQL that both dialects understand; parameters
/// are `$1`, `$2`, … and appear for the first time in this order.
public protocol SQLConnection: AnyObject, Sendable {
    var dialect: Dialect { get }
    /// How messages name it: `database /path/store.db`. Holds no password.
    var place: String { get }

    func rows<T>(_ sql: String, _ values: [SQLValue], _ row: (any SQLRow) throws(StoreError) -> T) throws(StoreError) -> [T]
    /// Runs one statement; returns the rows it changed.
    @discardableResult func change(_ sql: String, _ values: [SQLValue]) throws(StoreError) -> Int
    /// Statements without parameters and results, as the schema has them.
    func execute(_ sql: String) throws(StoreError)
    /// Everything of `body` or nothing. One that reads only sees one moment of the database.
    func transaction<T>(readsOnly: Bool, _ body: () throws(StoreError) -> T) throws(StoreError) -> T
    /// Stores records whose ids are new, in one durable statement or transaction; returns how many were. Where the schema is older than
    /// checksums they are left out.
    func append(_ records: [StoredRecord]) throws(StoreError) -> Int
    /// The same with those of `range`, and with checksums of their own.
    func append(_ records: JournalRows, _ range: Range<Int>) throws(StoreError) -> Int
    /// Whether there is a table of this name.
    func hasTable(_ name: String) throws(StoreError) -> Bool
    func close()
}

extension SQLConnection {
    public func append(_ records: JournalRows, _ range: Range<Int>) throws(StoreError) -> Int {
        try append(range.map { StoredRecord(sealing: records.record($0)) })
    }
    public func rows<T>(_ query: Query<T>) throws(StoreError) -> [T] { try rows(query.sql, query.values, query.decode) }
    public func transaction<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T { try transaction(readsOnly: false, body) }
}
