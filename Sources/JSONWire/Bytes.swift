/// What the scanner does with borrowed bytes. Every access is bounds-checked.
extension RawSpan {
    @inline(__always) subscript(_ i: Int) -> UInt8 { unsafeLoad(fromByteOffset: i, as: UInt8.self) }

    func text(_ range: Range<Int>) -> String { extracting(range).withUnsafeBytes { String(decoding: $0, as: UTF8.self) } }

    func array(_ range: Range<Int>) -> [UInt8] { extracting(range).withUnsafeBytes { Array($0) } }

    func equals(_ range: Range<Int>, _ text: StaticString) -> Bool {
        guard range.count == text.utf8CodeUnitCount else { return false }
        return text.withUTF8Buffer { buffer in
            for i in 0..<buffer.count where self[range.lowerBound + i] != buffer[i] { return false }
            return true
        }
    }

    /// The first quote or backslash from `from` on; `byteCount` if there is none. Eight bytes a step.
    @inline(__always) func quoteOrBackslash(from: Int) -> Int {
        let (ones, highs): (UInt64, UInt64) = (0x0101_0101_0101_0101, 0x8080_8080_8080_8080)
        var i = from
        while i &+ 8 <= byteCount {
            let word = UInt64(littleEndian: unsafeLoadUnaligned(fromByteOffset: i, as: UInt64.self))
            let (quote, slash) = (word ^ (ones &* 0x22), word ^ (ones &* 0x5C))
            let hit = ((quote &- ones) & ~quote | (slash &- ones) & ~slash) & highs
            if hit != 0 { return i &+ hit.trailingZeroBitCount >> 3 }
            i &+= 8
        }
        while i < byteCount, self[i] != 0x22, self[i] != 0x5C { i &+= 1 }
        return i
    }

    /// The first byte from `from` on that ends a run of ordinary letters in a string: a quote, a backslash, a control or one beyond ASCII;
    /// `byteCount` if there is none. Eight bytes a step.
    @inline(__always) func plainEnd(from: Int) -> Int {
        let (ones, highs): (UInt64, UInt64) = (0x0101_0101_0101_0101, 0x8080_8080_8080_8080)
        var i = from
        while i &+ 8 <= byteCount {
            let word = UInt64(littleEndian: unsafeLoadUnaligned(fromByteOffset: i, as: UInt64.self))
            let (quote, slash) = (word ^ (ones &* 0x22), word ^ (ones &* 0x5C))
            let special = (quote &- ones) & ~quote | (slash &- ones) & ~slash | (word &- ones &* 0x20) & ~word | word
            if special & highs != 0 { return i &+ (special & highs).trailingZeroBitCount >> 3 }
            i &+= 8
        }
        while i < byteCount, self[i] != 0x22, self[i] != 0x5C, self[i] >= 0x20, self[i] < 0x80 { i &+= 1 }
        return i
    }

    @inline(__always) func skippingSpace(_ from: Int) -> Int {
        var i = from
        while i < byteCount, isSpace(self[i]) { i &+= 1 }
        return i
    }
}

@inline(__always) func isSpace(_ c: UInt8) -> Bool { c == 0x20 || c == 0x0A || c == 0x0D || c == 0x09 }
@inline(__always) func isDigit(_ c: UInt8) -> Bool { c >= 0x30 && c <= 0x39 }

@inline(__always) func hexDigit(_ c: UInt8) -> UInt32? {
    switch c {
    case 0x30...0x39: UInt32(c - 0x30)
    case 0x41...0x46: UInt32(c - 0x41 + 10)
    case 0x61...0x66: UInt32(c - 0x61 + 10)
    default: nil
    }
}

/// Letters of this module, which are many.
enum Ascii {
    static let quote = UInt8(ascii: "\"")
    static let backslash = UInt8(ascii: "\\")
    static let comma = UInt8(ascii: ",")
    static let colon = UInt8(ascii: ":")
    static let openBrace = UInt8(ascii: "{")
    static let closeBrace = UInt8(ascii: "}")
    static let openBracket = UInt8(ascii: "[")
    static let closeBracket = UInt8(ascii: "]")
}
