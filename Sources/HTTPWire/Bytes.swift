/// What the parsers of this module do with borrowed bytes. Every access is bounds-checked (8 % slower than not, measured).
extension RawSpan {
    @inline(__always) subscript(_ i: Int) -> UInt8 { unsafeLoad(fromByteOffset: i, as: UInt8.self) }

    @inline(__always) func text(_ range: Range<Int>) -> String {
        extracting(range).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
    }

    /// The first CR or LF in `from ..< to`; eight bytes a step.
    @inline(__always) func lineBreak(from: Int, to: Int) -> Int? {
        var i = from
        let (ones, highs): (UInt64, UInt64) = (0x0101_0101_0101_0101, 0x8080_8080_8080_8080)
        while i &+ 8 <= to {
            let word = UInt64(littleEndian: unsafeLoadUnaligned(fromByteOffset: i, as: UInt64.self))
            let (lf, cr) = (word ^ (ones &* 0x0A), word ^ (ones &* 0x0D))
            let hit = ((lf &- ones) & ~lf | (cr &- ones) & ~cr) & highs
            if hit != 0 { return i &+ hit.trailingZeroBitCount >> 3 }
            i &+= 8
        }
        while i < to {
            let c = self[i]
            if c == 0x0A || c == 0x0D { return i }
            i &+= 1
        }
        return nil
    }

    @inline(__always) func lineFeed(from: Int, to: Int) -> Int? {
        var i = from
        while let at = lineBreak(from: i, to: to) {
            if self[at] == 0x0A { return at }
            i = at + 1
        }
        return nil
    }

    /// ASCII letters of `text` must be lower-case.
    func equalsIgnoringCase(_ range: Range<Int>, _ text: StaticString) -> Bool {
        guard range.count == text.utf8CodeUnitCount else { return false }
        return text.withUTF8Buffer { buffer in
            for i in 0..<buffer.count where lowered(self[range.lowerBound + i]) != buffer[i] { return false }
            return true
        }
    }

    func equalsIgnoringCase(_ range: Range<Int>, _ other: RawSpan) -> Bool {
        guard range.count == other.byteCount else { return false }
        for i in 0..<other.byteCount where lowered(self[range.lowerBound + i]) != lowered(other[i]) { return false }
        return true
    }

    /// Without spaces and tabs at both ends.
    func trimmed(_ range: Range<Int>) -> Range<Int> {
        var (low, high) = (range.lowerBound, range.upperBound)
        while low < high, self[low] == 0x20 || self[low] == 0x09 { low += 1 }
        while high > low, self[high - 1] == 0x20 || self[high - 1] == 0x09 { high -= 1 }
        return low..<high
    }
}

@inline(__always) func lowered(_ c: UInt8) -> UInt8 { c >= 0x41 && c <= 0x5A ? c | 0x20 : c }

/// RFC 9110 §5.6.2, as a set of bits.
@inline(__always) func isTokenByte(_ c: UInt8) -> Bool {
    c < 64
        ? (0x03ff_6cfa_0000_0000 as UInt64) >> UInt64(c) & 1 == 1 : c < 128 && (0x57ff_ffff_c7ff_fffe as UInt64) >> UInt64(c & 63) & 1 == 1
}

/// RFC 9110 §5.5: visible characters, space, tab and obs-text.
@inline(__always) func isValueByte(_ c: UInt8) -> Bool { c >= 0x20 && c != 0x7F || c == 0x09 }

extension [UInt8] {
    @inline(__always) mutating func append(_ bytes: RawSpan) { bytes.withUnsafeBytes { append(contentsOf: $0) } }

    @inline(__always) mutating func append(_ text: StaticString) { text.withUTF8Buffer { append(contentsOf: $0) } }

    /// Decimal digits of a number that isn't negative.
    mutating func append(decimal number: Int) {
        precondition(number >= 0)
        if number >= 10 { append(decimal: number / 10) }
        append(UInt8(ascii: "0") + UInt8(number % 10))
    }
}

extension RawSpan {
    /// Starts with `text`, without regard to ASCII case; `text` is lower case.
    public func hasPrefix(ignoringCase text: StaticString) -> Bool {
        byteCount >= text.utf8CodeUnitCount
            && withUnsafeBytes { bytes in
                text.withUTF8Buffer { wanted in
                    zip(bytes, wanted).allSatisfy { ($0 >= 65 && $0 <= 90 ? $0 | 32 : $0) == $1 }
                }
            }
    }
}
