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

    public init(journalBytes: [UInt8]) throws(MappingError) {
        let bytes = journalBytes.span.bytes
        self.init(try JournalRow(journal: bytes, at: 0), in: bytes)
    }

    /// `bytes` are those in which the row has its texts.
    init(_ row: JournalRow, in bytes: RawSpan) {
        self.init(id: row.id, time: WallTime(milliseconds: row.number(0) ?? 0), route: row.text(1, bytes), requestID: row.text(5, bytes))
        if case .transport(let known) = row.values[2] { transport = known }
        (keyID, accountID) = (row.number(3), row.number(4))
        (modelAsked, modelServed, status, errorCode) = (row.text(6, bytes), row.text(7, bytes), Int(row.count(8)), row.text(9, bytes))
        (inputTokens, cachedInputTokens, outputTokens, reasoningTokens) = (row.count(10), row.count(11), row.count(12), row.count(13))
        (costMicrodollars, firstByteMilliseconds, durationMilliseconds) = (row.number(14), row.number(15), row.count(16))
        (attempts, requestBytes, responseBytes) = (Int(row.count(17)), row.count(18), row.count(19))
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

    /// The frame of a `UsageAck`.
    public static func encodeAck(end: UInt64) -> [UInt8] {
        var ack: [UInt8] = []
        ack.int64(1, Int64(bitPattern: end))
        var out: [UInt8] = [0, 0, 0, UInt8(2 + ack.count)]
        out.tag(7, .bytes)
        out.varint(UInt64(ack.count))
        return out + ack
    }

    /// Appends one record, as it stands in the journal, to those of a batch.
    public static func append(record: RawSpan, to records: inout [UInt8]) {
        records.tag(2, .bytes)
        records.varint(UInt64(record.byteCount))
        records.append(record)
    }
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
