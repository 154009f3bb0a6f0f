internal import Bytes
public import Vocabulary

/// Usage records as they came, one after the other, ready to go into a database.
public struct JournalRows: Sendable {
    public private(set) var bytes: [UInt8] = []
    public private(set) var rows: [JournalRow] = []

    public init() {}

    /// Takes a record as it stands in a journal.
    public mutating func append(journal record: RawSpan) throws(MappingError) {
        let row = try JournalRow(journal: record, at: bytes.count)
        bytes.append(record)
        rows.append(row)
    }

    /// Takes the records of a `UsageBatch`; returns its `end`, or nil for bytes that are none. A record that can't be read must not hold up
    /// the rest for ever: `unreadable` is told of it, in hexadecimal digits.
    public mutating func append(batch: RawSpan, unreadable: (_ hex: String, MappingError) -> Void) -> UInt64? {
        var (reader, end) = (WireReader(), 0 as UInt64)
        if rows.isEmpty {
            bytes.reserveCapacity(batch.byteCount)
            rows.reserveCapacity(batch.byteCount / 128)  // about what a record has
        }
        do throws(MappingError) {
            while let (number, kind) = try reader.tag(batch) {
                switch (number, kind) {
                case (1, .varint): end = try reader.varint(batch)
                case (2, .bytes): append(batch.extracting(try reader.range(batch)), unreadable: unreadable)
                default: try reader.skip(kind, batch)
                }
            }
            return end
        } catch { return nil }
    }

    /// The same for the entries of a journal.
    public mutating func append(entries: some Sequence<[UInt8]>, unreadable: (_ hex: String, MappingError) -> Void) {
        for entry in entries { append(entry.span.bytes, unreadable: unreadable) }
    }

    private mutating func append(_ record: RawSpan, unreadable: (_ hex: String, MappingError) -> Void) {
        do throws(MappingError) { try append(journal: record) } catch {
            unreadable(record.array(0..<record.byteCount).map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(), error)
        }
    }

    public var records: [UsageRecord] { rows.indices.map { record($0) } }

    public func record(_ index: Int) -> UsageRecord { UsageRecord(rows[index], in: bytes.span.bytes) }

    /// The record as it came.
    public func journalBytes(_ index: Int) -> [UInt8] {
        let place = rows[index].place
        return Array(bytes[Int(place.lowerBound)..<Int(place.upperBound)])
    }
}

extension FrameCodec {
    /// Where the `UsageBatch` of a frame's body is; nil: it is a frame of another kind, or one with more in it.
    public static func usageBatch(in body: RawSpan) -> Range<Int>? {
        var reader = WireReader()
        do throws(MappingError) {
            guard let (number, kind) = try reader.tag(body), number == 6, kind == .bytes else { return nil }
            let batch = try reader.range(body)
            return batch.upperBound == body.byteCount ? batch : nil
        } catch { return nil }
    }
}
