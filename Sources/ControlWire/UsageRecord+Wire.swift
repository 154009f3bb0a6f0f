internal import Bytes
public import Vocabulary

/// Usage records in the bytes of `UsageRecordMessage` (protocol buffers, proto3): what journals, spools and `UsageBatch` hold. Written and
/// read here, for each turn does it once; the generated message would cost more than all else that a record needs.
extension UsageRecord {
    /// Appends the message, field by field in their order, as SwiftProtobuf writes it.
    public func append(to out: inout [UInt8]) {
        out.reserveCapacity(out.count + 320)
        out.fixed64(1, id.high)
        out.fixed64(2, id.low)
        out.int64(3, time.milliseconds)
        out.string(4, route)
        if transport == .websocket { out.varint(5, 1) }
        if let keyID { out.varint(6, UInt64(bitPattern: keyID)) }
        if let accountID { out.varint(7, UInt64(bitPattern: accountID)) }
        out.string(8, requestID)
        out.string(9, modelAsked)
        out.string(10, modelServed)
        out.int64(11, Int64(Int32(clamping: status)))
        out.string(12, errorCode)
        out.int64(13, inputTokens)
        out.int64(14, cachedInputTokens)
        out.int64(15, outputTokens)
        out.int64(16, reasoningTokens)
        if let costMicrodollars { out.varint(17, UInt64(bitPattern: costMicrodollars)) }
        if let firstByteMilliseconds { out.varint(18, UInt64(bitPattern: firstByteMilliseconds)) }
        out.int64(19, durationMilliseconds)
        out.int64(20, Int64(Int32(clamping: attempts)))
        out.int64(21, requestBytes)
        out.int64(22, responseBytes)
    }

    /// The message alone.
    public var journalBytes: [UInt8] {
        var out: [UInt8] = []
        append(to: &out)
        return out
    }

    public init(journalBytes: [UInt8]) throws(MappingError) { try self.init(journal: journalBytes.span.bytes) }

    /// Reads the message. Fields of other numbers are skipped; of one that comes twice the last counts.
    public init(journal bytes: RawSpan) throws(MappingError) {
        self.init(id: RecordID(high: 0, low: 0), time: WallTime(milliseconds: 0), route: "", requestID: "")
        var reader = WireReader()
        while let (number, kind) = try reader.tag(bytes) {
            switch (number, kind) {
            case (1, .fixed64): id.high = try reader.fixed64(bytes)
            case (2, .fixed64): id.low = try reader.fixed64(bytes)
            case (3, .varint): time.milliseconds = try reader.int64(bytes)
            case (4, .bytes): route = try reader.string(bytes)
            case (5, .varint): transport = try reader.varint(bytes) == 0 ? .http : .websocket
            case (6, .varint): keyID = try reader.int64(bytes)
            case (7, .varint): accountID = try reader.int64(bytes)
            case (8, .bytes): requestID = try reader.string(bytes)
            case (9, .bytes): modelAsked = try reader.string(bytes)
            case (10, .bytes): modelServed = try reader.string(bytes)
            case (11, .varint): status = Int(Int32(truncatingIfNeeded: try reader.int64(bytes)))
            case (12, .bytes): errorCode = try reader.string(bytes)
            case (13, .varint): inputTokens = try reader.int64(bytes)
            case (14, .varint): cachedInputTokens = try reader.int64(bytes)
            case (15, .varint): outputTokens = try reader.int64(bytes)
            case (16, .varint): reasoningTokens = try reader.int64(bytes)
            case (17, .varint): costMicrodollars = try reader.int64(bytes)
            case (18, .varint): firstByteMilliseconds = try reader.int64(bytes)
            case (19, .varint): durationMilliseconds = try reader.int64(bytes)
            case (20, .varint): attempts = Int(Int32(truncatingIfNeeded: try reader.int64(bytes)))
            case (21, .varint): requestBytes = try reader.int64(bytes)
            case (22, .varint): responseBytes = try reader.int64(bytes)
            default: try reader.skip(kind, bytes)
            }
        }
        guard id.high != 0 || id.low != 0 else { throw MappingError("usage record without an id") }
    }
}

extension FrameCodec {
    /// Appends the frame of a `UsageBatch` with what `append(record:to:)` has put together. `end` is the journal's position behind the last.
    public static func encodeBatch(end: UInt64, records: [UInt8], into out: inout [UInt8]) {
        let batch = (end == 0 ? 0 : 1 + [UInt8].varintBytes(end)) + records.count
        let body = 1 + [UInt8].varintBytes(UInt64(batch)) + batch
        out.reserveCapacity(out.count + headBytes + body)
        for shift in [24, 16, 8, 0] { out.append(UInt8(truncatingIfNeeded: body >> shift)) }
        out.tag(6, .bytes)
        out.varint(UInt64(batch))
        out.int64(1, Int64(bitPattern: end))
        out += records
    }

    /// Appends one record, as it stands in the journal, to those of a batch.
    public static func append(record: RawSpan, to records: inout [UInt8]) {
        records.tag(2, .bytes)
        records.varint(UInt64(record.byteCount))
        records.append(record)
    }
}

/// Protocol buffers' wire types that are used here, and those that are skipped.
private enum WireKind: UInt64 {
    case varint = 0
    case fixed64 = 1
    case bytes = 2
    case fixed32 = 5
}

extension [UInt8] {
    fileprivate static func varintBytes(_ value: UInt64) -> Int { Swift.max(1, (64 - value.leadingZeroBitCount + 6) / 7) }

    fileprivate mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        append(UInt8(truncatingIfNeeded: rest))
    }

    fileprivate mutating func tag(_ number: UInt64, _ kind: WireKind) { varint(number << 3 | kind.rawValue) }

    fileprivate mutating func varint(_ number: UInt64, _ value: UInt64) {
        tag(number, .varint)
        varint(value)
    }

    /// Zero is not written (proto3).
    fileprivate mutating func int64(_ number: UInt64, _ value: Int64) {
        if value != 0 { varint(number, UInt64(bitPattern: value)) }
    }

    fileprivate mutating func fixed64(_ number: UInt64, _ value: UInt64) {
        guard value != 0 else { return }
        tag(number, .fixed64)
        Swift.withUnsafeBytes(of: value.littleEndian) { append(contentsOf: $0) }
    }

    fileprivate mutating func string(_ number: UInt64, _ text: String) {
        guard !text.isEmpty else { return }
        tag(number, .bytes)
        varint(UInt64(text.utf8.count))
        append(contentsOf: text.utf8)
    }
}

/// A place in a message.
private struct WireReader {
    private var at = 0

    private func problem(_ bytes: RawSpan) -> MappingError { MappingError("\(bytes.byteCount) bytes that are no usage record") }

    /// The next field; nil at the end.
    mutating func tag(_ bytes: RawSpan) throws(MappingError) -> (number: UInt64, kind: WireKind)? {
        guard at < bytes.byteCount else { return nil }
        let tag = try varint(bytes)
        guard tag <= UInt64(UInt32.max), tag >> 3 != 0, let kind = WireKind(rawValue: tag & 7) else { throw problem(bytes) }
        return (tag >> 3, kind)
    }

    mutating func varint(_ bytes: RawSpan) throws(MappingError) -> UInt64 {
        var (value, shift) = (0 as UInt64, 0 as UInt64)
        while at < bytes.byteCount, shift < 70 {
            let byte = bytes[at]
            at += 1
            if shift < 64 { value |= UInt64(byte & 0x7F) << shift }
            if byte < 0x80 { return value }
            shift += 7
        }
        throw problem(bytes)
    }

    mutating func int64(_ bytes: RawSpan) throws(MappingError) -> Int64 { Int64(bitPattern: try varint(bytes)) }

    mutating func fixed64(_ bytes: RawSpan) throws(MappingError) -> UInt64 {
        guard bytes.byteCount - at >= 8 else { throw problem(bytes) }
        defer { at += 8 }
        return UInt64(littleEndian: bytes.unsafeLoadUnaligned(fromByteOffset: at, as: UInt64.self))
    }

    /// Text must be UTF-8, as in proto3.
    mutating func string(_ bytes: RawSpan) throws(MappingError) -> String {
        let place = try range(bytes)
        // Most are ASCII, and known to be UTF-8 sooner.
        let text = bytes.extracting(place)
        if text.plainEnd(from: 0) == text.byteCount { return text.text(0..<text.byteCount) }
        guard let checked = text.withUnsafeBytes({ String(validating: $0, as: UTF8.self) }) else { throw problem(bytes) }
        return checked
    }

    private mutating func range(_ bytes: RawSpan) throws(MappingError) -> Range<Int> {
        let count = try varint(bytes)
        guard count <= UInt64(bytes.byteCount - at) else { throw problem(bytes) }
        defer { at += Int(count) }
        return at..<at + Int(count)
    }

    mutating func skip(_ kind: WireKind, _ bytes: RawSpan) throws(MappingError) {
        switch kind {
        case .varint: _ = try varint(bytes)
        case .fixed64: _ = try fixed64(bytes)
        case .bytes: _ = try range(bytes)
        case .fixed32:
            guard bytes.byteCount - at >= 4 else { throw problem(bytes) }
            at += 4
        }
    }
}
