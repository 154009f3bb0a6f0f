import Bytes

extension RawSpan {
    @inline(__always) func lineFeed(from: Int, to: Int) -> Int? { first(Ascii.lf, from: from, to: to) }
}

/// RFC 9110 §5.6.2, as a set of bits.
@inline(__always) func isTokenByte(_ c: UInt8) -> Bool {
    c < 64
        ? (0x03ff_6cfa_0000_0000 as UInt64) >> UInt64(c) & 1 == 1 : c < 128 && (0x57ff_ffff_c7ff_fffe as UInt64) >> UInt64(c & 63) & 1 == 1
}

/// RFC 9110 §5.5: visible characters, space, tab and obs-text.
@inline(__always) func isValueByte(_ c: UInt8) -> Bool { c >= 0x20 && c != 0x7F || c == 0x09 }
