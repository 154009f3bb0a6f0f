/// SipHash-2-4 (Aumasson and Bernstein, 2012): 64 bits that nobody can steer who does not know the key.
public struct SipHash: Sendable {
    private let (k0, k1): (UInt64, UInt64)

    public init(key: (UInt64, UInt64)) { (k0, k1) = key }

    /// The hash of `bytes` behind one word, which keeps kinds of texts apart.
    public func hash(_ word: UInt64, _ bytes: RawSpan) -> UInt64 {
        var v = (k0 ^ 0x736F_6D65_7073_6575, k1 ^ 0x646F_7261_6E64_6F6D, k0 ^ 0x6C79_6765_6E65_7261, k1 ^ 0x7465_6462_7974_6573)
        Self.take(word, &v)
        var i = 0
        while i + 8 <= bytes.byteCount {
            Self.take(UInt64(littleEndian: bytes.unsafeLoadUnaligned(fromByteOffset: i, as: UInt64.self)), &v)
            i += 8
        }
        var last = UInt64(truncatingIfNeeded: bytes.byteCount + 8) << 56
        for (place, at) in (i..<bytes.byteCount).enumerated() { last |= UInt64(bytes[at]) << (8 * UInt64(place)) }
        Self.take(last, &v)
        v.2 ^= 0xFF
        for _ in 0..<4 { Self.round(&v) }
        return v.0 ^ v.1 ^ v.2 ^ v.3
    }

    public func hash(_ word: UInt64, _ text: String) -> UInt64 {
        var text = text
        return text.withUTF8 { hash(word, $0.span.bytes) }
    }

    private typealias State = (UInt64, UInt64, UInt64, UInt64)

    private static func take(_ word: UInt64, _ v: inout State) {
        v.3 ^= word
        round(&v)
        round(&v)
        v.0 ^= word
    }

    private static func round(_ v: inout State) {
        func left(_ x: UInt64, _ n: UInt64) -> UInt64 { x << n | x >> (64 - n) }
        v.0 &+= v.1
        v.1 = left(v.1, 13) ^ v.0
        v.0 = left(v.0, 32)
        v.2 &+= v.3
        v.3 = left(v.3, 16) ^ v.2
        v.0 &+= v.3
        v.3 = left(v.3, 21) ^ v.0
        v.2 &+= v.1
        v.1 = left(v.1, 17) ^ v.2
        v.2 = left(v.2, 32)
    }
}
