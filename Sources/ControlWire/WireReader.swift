internal import Bytes

/// Protocol buffers' wire types that are used here, and those that are skipped.
enum WireKind: UInt64 {
    case varint = 0
    case fixed64 = 1
    case bytes = 2
    case fixed32 = 5
}

/// A place in a message.
struct WireReader {
    private var at = 0

    private func problem(_ bytes: RawSpan) -> MappingError { MappingError("\(bytes.byteCount) bytes that are no usage record") }

    /// The next field; nil at the end.
    mutating func tag(_ bytes: RawSpan) throws(MappingError) -> (number: UInt64, kind: WireKind)? {
        guard at < bytes.byteCount else { return nil }
        let tag = try varint(bytes)
        guard tag <= UInt64(UInt32.max), tag >> 3 != 0, let kind = WireKind(rawValue: tag & 7) else { throw problem(bytes) }
        return (tag >> 3, kind)
    }

    @inline(__always) mutating func varint(_ bytes: RawSpan) throws(MappingError) -> UInt64 {
        // Most have one byte.
        guard at < bytes.byteCount, bytes[at] < 0x80 else { return try longVarint(bytes) }
        defer { at += 1 }
        return UInt64(bytes[at])
    }

    private mutating func longVarint(_ bytes: RawSpan) throws(MappingError) -> UInt64 {
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
    mutating func text(_ bytes: RawSpan) throws(MappingError) -> Range<Int> {
        let place = try range(bytes)
        // Most are ASCII, and known to be UTF-8 sooner.
        let text = bytes.extracting(place)
        guard text.plainEnd(from: 0) == text.byteCount || text.withUnsafeBytes({ String(validating: $0, as: UTF8.self) }) != nil else {
            throw problem(bytes)
        }
        return place
    }

    mutating func range(_ bytes: RawSpan) throws(MappingError) -> Range<Int> {
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
        case .fixed32: try skipFixed32(bytes)
        }
    }

    mutating func skipFixed32(_ bytes: RawSpan) throws(MappingError) {
        guard bytes.byteCount - at >= 4 else { throw problem(bytes) }
        at += 4
    }
}
