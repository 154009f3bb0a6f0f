#if canImport(Glibc)
    public import Glibc
#endif

/// What the readers of this program do with borrowed bytes. Every access is bounds-checked (8 % slower than not, measured).
extension RawSpan {
    @inlinable @inline(__always) public subscript(_ i: Int) -> UInt8 { unsafeLoad(fromByteOffset: i, as: UInt8.self) }

    /// The bytes as text; what is no UTF-8 becomes U+FFFD.
    @inlinable public func text(_ range: Range<Int>) -> String {
        extracting(range).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
    }

    @inlinable public func array(_ range: Range<Int>) -> [UInt8] { extracting(range).withUnsafeBytes { Array($0) } }

    // MARK: Comparing

    @inlinable @inline(__always) public func equals(_ range: Range<Int>, _ text: StaticString) -> Bool {
        let count = text.utf8CodeUnitCount
        guard range.count == count else { return false }
        precondition(range.lowerBound >= 0 && range.upperBound <= byteCount)
        return withUnsafeBytes { bytes in
            count == 0 || memcmp(bytes.baseAddress! + range.lowerBound, text.utf8Start, count) == 0
        }
    }

    @inlinable public func equals(_ text: StaticString) -> Bool { equals(0..<byteCount, text) }

    @inlinable public func hasPrefix(_ text: StaticString, at start: Int = 0) -> Bool {
        let end = start + text.utf8CodeUnitCount
        return end <= byteCount && equals(start..<end, text)
    }

    /// ASCII letters of `text` must be lower-case.
    @inlinable public func equalsIgnoringCase(_ range: Range<Int>, _ text: StaticString) -> Bool {
        guard range.count == text.utf8CodeUnitCount else { return false }
        return extracting(range).withUnsafeBytes { bytes in
            text.withUTF8Buffer { wanted in
                for i in 0..<wanted.count where lowered(bytes[i]) != wanted[i] { return false }
                return true
            }
        }
    }

    @inlinable public func equalsIgnoringCase(_ range: Range<Int>, _ other: RawSpan) -> Bool {
        guard range.count == other.byteCount else { return false }
        for i in 0..<other.byteCount where lowered(self[range.lowerBound + i]) != lowered(other[i]) { return false }
        return true
    }

    @inlinable public func equalsIgnoringCase(_ text: StaticString) -> Bool { equalsIgnoringCase(0..<byteCount, text) }

    /// Starts with `text`, without regard to ASCII case; `text` is lower case.
    @inlinable public func hasPrefix(ignoringCase text: StaticString) -> Bool {
        byteCount >= text.utf8CodeUnitCount && equalsIgnoringCase(0..<text.utf8CodeUnitCount, text)
    }

    /// Ends with `text`, without regard to ASCII case; `text` is lower case.
    @inlinable public func hasSuffix(ignoringCase text: StaticString) -> Bool {
        byteCount >= text.utf8CodeUnitCount && equalsIgnoringCase(byteCount - text.utf8CodeUnitCount..<byteCount, text)
    }

    // MARK: Searching

    /// The first `byte` in `from ..< to`.
    @inlinable @inline(__always) public func first(_ byte: UInt8, from: Int, to: Int) -> Int? {
        precondition(from >= 0 && from <= to && to <= byteCount)
        return withUnsafeBytes { bytes in
            guard to > from, let start = bytes.baseAddress, let found = memchr(start + from, Int32(byte), to &- from) else { return nil }
            return UnsafeRawPointer(found) - start
        }
    }

    /// The first CR or LF in `from ..< to`; eight bytes a step.
    @inlinable @inline(__always) public func lineBreak(from: Int, to: Int) -> Int? {
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

    /// The first quote or backslash from `from` on; `byteCount` if there is none. Eight bytes a step.
    @inlinable @inline(__always) public func quoteOrBackslash(from: Int) -> Int {
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

    /// The first bracket, brace or quote from `from` on, or a letter that looks like one; `byteCount` if there is none. Eight bytes a step.
    @inlinable @inline(__always) public func bracketOrQuote(from: Int) -> Int {
        let (ones, highs): (UInt64, UInt64) = (0x0101_0101_0101_0101, 0x8080_8080_8080_8080)
        var i = from
        while i &+ 8 <= byteCount {
            let word = UInt64(littleEndian: unsafeLoadUnaligned(fromByteOffset: i, as: UInt64.self))
            // Brackets and braces differ from 0x7F in bits of 0x26 alone; so do Y, y, _ and DEL, which are rare between strings.
            let (quote, bracket) = (word ^ (ones &* 0x22), (word | (ones &* 0x26)) ^ (ones &* 0x7F))
            let hit = ((quote &- ones) & ~quote | (bracket &- ones) & ~bracket) & highs
            if hit != 0 { return i &+ hit.trailingZeroBitCount >> 3 }
            i &+= 8
        }
        while i < byteCount, self[i] != 0x22, self[i] | 0x26 != 0x7F { i &+= 1 }
        return i
    }

    /// The first byte from `from` on that ends a run of ordinary letters in a string: a quote, a backslash, a control or one beyond ASCII;
    /// `byteCount` if there is none. Eight bytes a step.
    @inlinable @inline(__always) public func plainEnd(from: Int) -> Int {
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

    /// Behind the white space of JSON that starts at `from`.
    @inlinable @inline(__always) public func skippingSpace(_ from: Int) -> Int {
        var i = from
        while i < byteCount, isSpace(self[i]) { i &+= 1 }
        return i
    }

    /// Without spaces and tabs at both ends.
    @inlinable public func trimmed(_ range: Range<Int>) -> Range<Int> {
        var (low, high) = (range.lowerBound, range.upperBound)
        while low < high, self[low] == 0x20 || self[low] == 0x09 { low += 1 }
        while high > low, self[high - 1] == 0x20 || self[high - 1] == 0x09 { high -= 1 }
        return low..<high
    }
}
