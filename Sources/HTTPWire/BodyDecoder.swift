import Bytes

/// Finds a body's data in the bytes of a connection. Takes any split of them and gives the same data.
///
/// A chunked body (RFC 9112 §7.1) goes through these states; `trailer…` lines are checked and dropped:
///
///     size ─▶ extension ─▶ sizeLF ─▶ data ─▶ dataCR ─▶ dataLF ─▶ size …
///                            └─(0)─▶ lineStart ─▶ name ─▶ value ─▶ valueLF ─▶ lineStart … ─▶ lastLF ─▶ done
public struct BodyDecoder: Sendable {
    public enum Piece: Equatable, Sendable {
        /// A range into the given bytes; never empty.
        case data(Range<Int>)
        case end
    }

    private enum State: Sendable {
        case done, bytes, untilClose
        case size, extensionName, extensionValue, extensionQuoted, extensionEscaped, extensionQuotedEnd, sizeLF, data, dataCR, dataLF
        case lineStart, name, value, valueLF, lastLF
    }

    /// All chunk extensions of one body.
    static let extensionBytesMax = 256
    static let trailerBytesMax = 8 * 1024

    private var state: State
    /// Bytes of the body, or of this chunk, still to come.
    private var remaining = 0
    private var sizeDigits = 0
    private var extensionBytes = 0
    private var trailerBytes = 0
    /// Bytes of the extension's or trailer's name or value so far.
    private var wordBytes = 0
    public private(set) var isComplete = false

    /// A decoder for one body. It reports faults with 400; a response's reader answers 502 to them.
    public init(_ framing: BodyFraming) {
        switch framing {
        case .none: state = .done
        case .length(let count):
            state = .bytes
            remaining = count
        case .chunked: state = .size
        case .untilClose: state = .untilClose
        }
    }

    /// The body is whatever comes until the connection closes: then, and only then, it is whole.
    public var endsAtClose: Bool { state == .untilClose }

    /// The next piece from `offset` on, which is moved behind it. Nil: all given bytes are used up. After `.end` it must not be called.
    public mutating func next(_ bytes: RawSpan, _ offset: inout Int) throws(WireError) -> Piece? {
        switch state {
        case .done: return finish()
        case .untilClose: return take(bytes, &offset, bytes.byteCount - offset)
        case .bytes:
            if remaining == 0 { return finish() }
            return take(bytes, &offset, remaining)
        default: break
        }
        while offset < bytes.byteCount {
            if state == .dataCR {
                takeChunkEnd(bytes, &offset)
                if offset == bytes.byteCount { return nil }
            }
            if state == .size, sizeDigits == 0 { takeShortSize(bytes, &offset) }
            if state == .data {
                let piece = take(bytes, &offset, remaining)
                if remaining == 0 { state = .dataCR }
                return piece
            }
            let c = bytes[offset]
            offset += 1
            if try step(c) { return finish() }
        }
        return nil
    }

    /// The usual line before a chunk, whole: up to six digits and CRLF. Whatever else it is, `step` takes it byte by byte.
    private mutating func takeShortSize(_ bytes: RawSpan, _ offset: inout Int) {
        var (i, size) = (offset, 0)
        while i < bytes.byteCount, i - offset < 6, let digit = hexDigit(bytes[i]) { (i, size) = (i + 1, size << 4 | Int(digit)) }
        guard size > 0, i + 1 < bytes.byteCount, bytes[i] == Ascii.cr, bytes[i + 1] == Ascii.lf else { return }
        (remaining, state, offset) = (size, .data, i + 2)
    }

    /// The CRLF behind a chunk, whole.
    private mutating func takeChunkEnd(_ bytes: RawSpan, _ offset: inout Int) {
        guard offset + 1 < bytes.byteCount, bytes[offset] == Ascii.cr, bytes[offset + 1] == Ascii.lf else { return }
        (state, sizeDigits, remaining, offset) = (.size, 0, 0, offset + 2)
    }

    private mutating func finish() -> Piece {
        (state, isComplete) = (.done, true)
        return .end
    }

    private mutating func take(_ bytes: RawSpan, _ offset: inout Int, _ most: Int) -> Piece? {
        let count = min(most, bytes.byteCount - offset)
        guard count > 0 else { return nil }
        if state != .untilClose { remaining -= count }
        defer { offset += count }
        return .data(offset..<offset + count)
    }

    /// One byte outside of data; true when it was the last of the body.
    private mutating func step(_ c: UInt8) throws(WireError) -> Bool {
        switch state {
        case .size:
            if let digit = hexDigit(c) {
                sizeDigits += 1
                guard sizeDigits <= 16, remaining <= Int.max >> 4 else { throw WireError(400, "chunk size too large") }
                remaining = remaining << 4 | Int(digit)
                return false
            }
            guard sizeDigits > 0 else { throw WireError(400, "invalid chunk size") }
            try behindSize(c)
        case .extensionName:
            try countExtension()
            if isTokenByte(c) {
                wordBytes += 1
            } else {
                guard wordBytes > 0 else { throw WireError(400, "invalid chunk extension") }
                if c == UInt8(ascii: "=") { (state, wordBytes) = (.extensionValue, 0) } else { try behindSize(c) }
            }
        case .extensionValue:
            try countExtension()
            if isTokenByte(c) {
                wordBytes += 1
            } else if wordBytes == 0, c == UInt8(ascii: "\"") {
                state = .extensionQuoted
            } else {
                guard wordBytes > 0 else { throw WireError(400, "invalid chunk extension") }
                try behindSize(c)
            }
        case .extensionQuoted:
            try countExtension()
            if c == UInt8(ascii: "\"") { state = .extensionQuotedEnd } else if c == UInt8(ascii: "\\") { state = .extensionEscaped }
            guard isValueByte(c) else { throw WireError(400, "invalid chunk extension") }
        case .extensionEscaped:
            try countExtension()
            guard isValueByte(c) else { throw WireError(400, "invalid chunk extension") }
            state = .extensionQuoted
        case .extensionQuotedEnd:
            try countExtension()
            try behindSize(c)
        case .sizeLF:
            guard c == 0x0A else { throw WireError(400, "CR without LF in chunk size") }
            state = remaining == 0 ? .lineStart : .data
            sizeDigits = 0
        case .dataCR:
            guard c == 0x0D else { throw WireError(400, "chunk longer than its size") }
            state = .dataLF
        case .dataLF:
            guard c == 0x0A else { throw WireError(400, "CR without LF behind chunk") }
            state = .size
        case .lineStart:
            try countTrailer()
            wordBytes = 1
            if c == 0x0D {
                state = .lastLF
            } else {
                guard isTokenByte(c) else { throw WireError(400, "invalid trailer name") }
                state = .name
            }
        case .name:
            try countTrailer()
            if c == UInt8(ascii: ":") { state = .value } else if !isTokenByte(c) { throw WireError(400, "invalid trailer name") }
        case .value:
            try countTrailer()
            if c == 0x0D { state = .valueLF } else if !isValueByte(c) { throw WireError(400, "control character in trailer") }
        case .valueLF:
            try countTrailer()
            guard c == 0x0A else { throw WireError(400, "CR without LF in trailer") }
            state = .lineStart
        case .lastLF:
            guard c == 0x0A else { throw WireError(400, "CR without LF behind last chunk") }
            return true
        case .done, .bytes, .untilClose, .data: preconditionFailure("no bytes are stepped through in \(state)")
        }
        return false
    }

    private mutating func behindSize(_ c: UInt8) throws(WireError) {
        switch c {
        case 0x0D: state = .sizeLF
        case UInt8(ascii: ";"):
            try countExtension()
            (state, wordBytes) = (.extensionName, 0)
        default: throw WireError(400, "invalid chunk size or extension")
        }
    }

    private mutating func countExtension() throws(WireError) {
        extensionBytes += 1
        guard extensionBytes <= Self.extensionBytesMax else {
            throw WireError(400, "chunk extensions larger than \(Self.extensionBytesMax) bytes")
        }
    }

    private mutating func countTrailer() throws(WireError) {
        trailerBytes += 1
        guard trailerBytes <= Self.trailerBytesMax else { throw WireError(431, "trailers larger than \(Self.trailerBytesMax) bytes") }
    }
}
