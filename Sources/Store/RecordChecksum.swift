internal import CPlatform
public import Vocabulary

/// The checksum that is stored beside a usage record: CRC-32C over the row's other values, in the order of `UsageRecord.columnNames`.
///
/// Each value goes in as one byte for its kind (0 NULL, 1 number, 2 text, 3 bytes), eight bytes little-endian (the number, or the count of
/// bytes that follow) and the bytes, so that no value can pass into its neighbour. A NUL in a text counts as U+FFFD, which is what
/// PostgreSQL stores for it: one record has one checksum in both databases. It finds damage; it is no defence against a forger.
public struct RecordChecksum: Sendable {
    public private(set) var value: UInt32 = 0

    public init() {}

    public init(_ values: some Collection<SQLValue>) {
        for value in values {
            switch value {
            case .null: addNull()
            case .int(let n): add(n)
            case .text(let text): add(text)
            case .blob(let bytes): add(bytes)
            }
        }
    }

    public mutating func addNull() { value = codexlb_crc32c_number(value, 0, 0) }
    public mutating func add(_ n: Int64) { value = codexlb_crc32c_number(value, 1, UInt64(bitPattern: n)) }
    public mutating func add(_ text: String) {
        var text = text
        value = text.withUTF8 { codexlb_crc32c_text(value, 2, $0.baseAddress, $0.count) }
    }
    public mutating func add(text: UnsafeRawBufferPointer) { value = codexlb_crc32c_text(value, 2, text.baseAddress, text.count) }
    public mutating func add(blob: UnsafeRawBufferPointer) { value = codexlb_crc32c_bytes(value, 3, blob.baseAddress, blob.count) }
    public mutating func add(_ bytes: [UInt8]) { value = codexlb_crc32c_bytes(value, 3, bytes, bytes.count) }
}

/// A usage record as it is in a database.
public struct StoredRecord: Sendable, Equatable {
    public let record: UsageRecord
    /// One value per name of `columnNames`; the last one, the checksum, is NULL when it was stored without one.
    public let columnValues: [SQLValue]

    public init(_ record: UsageRecord, checksum: UInt32?) {
        self.record = record
        columnValues = record.columnValues + [SQLValue(checksum.map { Int64($0) })]
    }

    /// A record that is stored for the first time.
    public init(sealing record: UsageRecord) {
        self.record = record
        var values = record.columnValues
        values.append(.int(Int64(RecordChecksum(values).value)))
        columnValues = values
    }

    /// For a schema that is older than checksums.
    public var columnValuesWithoutChecksum: [SQLValue] { columnValues.dropLast() }

    public static let columnNames = UsageRecord.columnNames + ["checksum"]

    /// Whether a row, with the values of `columnNames`, is what its checksum says; nil when it has none.
    package static func isIntact(_ row: [SQLValue]) -> Bool? {
        guard row.count == columnNames.count, case .int(let stored) = row[row.count - 1] else { return nil }
        return stored == Int64(RecordChecksum(row.dropLast()).value)
    }
}
