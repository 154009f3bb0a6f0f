internal import Bytes
public import Vocabulary

/// A usage record in the bytes of its message, read and not copied: what a database is given. Which bytes, `JournalRows` knows.
public struct JournalRow: Sendable {
    public enum Value: Sendable {
        case null
        case number(Int64)
        /// The place of its UTF-8.
        case text(Range<UInt32>)
        case transport(UsageRecord.Transport)
    }

    public private(set) var id = RecordID(high: 0, low: 0)
    /// The columns of `usage_records` behind the id, in their order; field 3 of the message is the first.
    public private(set) var values: [20 of Value] = [
        .number(0), .text(0..<0), .transport(.http), .null, .null, .text(0..<0), .text(0..<0), .text(0..<0), .number(0), .text(0..<0),
        .number(0), .number(0), .number(0), .number(0), .null, .null, .number(0), .number(0), .number(0), .number(0),
    ]
    /// The place of the message.
    public let place: Range<UInt32>

    /// Reads the message, which lies `start` bytes behind the beginning of what places count from. Fields of other numbers are skipped; of
    /// one that comes twice the last counts.
    init(journal bytes: RawSpan, at start: Int) throws(MappingError) {
        place = UInt32(start)..<UInt32(start + bytes.byteCount)
        var reader = WireReader()
        while let (number, kind) = try reader.tag(bytes) {
            let at = Int(number) - 3
            switch kind {
            case .varint:
                let value = try reader.int64(bytes)
                switch number {
                case 5: values[at] = .transport(value == 0 ? .http : .websocket)
                case 11, 20: values[at] = .number(Int64(Int32(truncatingIfNeeded: value)))
                case 3, 6, 7, 13...19, 21, 22: values[at] = .number(value)
                default: break
                }
            case .bytes:
                switch number {
                case 4, 8, 9, 10, 12:
                    let text = try reader.text(bytes)
                    values[at] = .text(UInt32(start + text.lowerBound)..<UInt32(start + text.upperBound))
                default: _ = try reader.range(bytes)
                }
            case .fixed64:
                let value = try reader.fixed64(bytes)
                if number == 1 { id.high = value } else if number == 2 { id.low = value }
            case .fixed32: try reader.skipFixed32(bytes)
            }
        }
        guard id.high != 0 || id.low != 0 else { throw MappingError("usage record without an id") }
    }

    func number(_ column: Int) -> Int64? { if case .number(let n) = values[column] { n } else { nil } }
    func count(_ column: Int) -> Int64 { number(column) ?? 0 }
    func text(_ column: Int, _ bytes: RawSpan) -> String {
        if case .text(let place) = values[column] { bytes.text(Int(place.lowerBound)..<Int(place.upperBound)) } else { "" }
    }
}
