import Bytes

/// Appends JSON to an output buffer.
public enum JSONWriter {
    /// With quotes and escapes.
    public static func string(_ text: String, into out: inout [UInt8]) {
        out.append(Ascii.quote)
        for c in text.utf8 { escaped(c, &out) }
        out.append(Ascii.quote)
    }

    /// With quotes and escapes; bytes that aren't UTF-8 become U+FFFD.
    public static func string(_ raw: RawSpan, into out: inout [UInt8]) {
        for i in 0..<raw.byteCount where raw[i] >= 0x80 { return string(raw.text(0..<raw.byteCount), into: &out) }
        out.append(Ascii.quote)
        for i in 0..<raw.byteCount { escaped(raw[i], &out) }
        out.append(Ascii.quote)
    }

    public static func int(_ number: some BinaryInteger, into out: inout [UInt8]) { out.append(contentsOf: String(number).utf8) }

    public static func bool(_ flag: Bool, into out: inout [UInt8]) { raw(flag ? "true" : "false", into: &out) }

    /// Bytes that are JSON already: brackets, commas, keys with their quotes.
    public static func raw(_ text: StaticString, into out: inout [UInt8]) { text.withUTF8Buffer { out.append(contentsOf: $0) } }

    @inline(__always) private static func escaped(_ c: UInt8, _ out: inout [UInt8]) {
        switch c {
        case Ascii.quote: raw("\\\"", into: &out)
        case Ascii.backslash: raw("\\\\", into: &out)
        case 0x0A: raw("\\n", into: &out)
        case 0x0D: raw("\\r", into: &out)
        case 0x09: raw("\\t", into: &out)
        case 0..<0x20:
            raw("\\u00", into: &out)
            out.append(c < 0x10 ? 0x30 : 0x31)
            let low = c & 15
            out.append(low < 10 ? 0x30 + low : 0x61 + low - 10)
        default: out.append(c)
        }
    }
}
