extension [UInt8] {
    @inlinable @inline(__always) public mutating func append(_ bytes: RawSpan) { bytes.withUnsafeBytes { append(contentsOf: $0) } }

    @inlinable @inline(__always) public mutating func append(_ text: StaticString) { text.withUTF8Buffer { append(contentsOf: $0) } }

    /// Decimal digits of a number that isn't negative.
    @inlinable public mutating func append(decimal number: Int) {
        precondition(number >= 0)
        if number >= 10 { append(decimal: number / 10) }
        append(UInt8(ascii: "0") + UInt8(number % 10))
    }

    /// Hexadecimal digits, without leading zeros, of a number that isn't negative.
    @inlinable public mutating func append(hex number: Int) {
        precondition(number >= 0)
        if number >= 16 { append(hex: number / 16) }
        let digit = UInt8(number % 16)
        append(digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10)
    }
}
