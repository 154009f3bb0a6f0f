extension JSONScan {
    /// Checks a whole document: RFC 8259 to the letter, valid UTF-8 without a byte order mark, no deeper than `depthMax`. Loops, so that no
    /// document can exhaust the stack.
    public static func validate(_ bytes: RawSpan, depthMax: Int = 512) throws(JSONError) {
        let count = bytes.byteCount
        // One bit a level: 1 is an object.
        var kinds = [UInt64](repeating: 0, count: depthMax / 64 + 1)
        var depth = 0
        var i = bytes.skippingSpace(0)

        func fault(_ offset: Int, _ reason: String) -> JSONError { JSONError(offset: offset, reason: reason) }

        while true {
            // A value starts here.
            guard i < count else { throw fault(i, "value expected") }
            let c = bytes[i]
            if c == Ascii.openBrace || c == Ascii.openBracket {
                guard depth < depthMax else { throw fault(i, "nested deeper than \(depthMax)") }
                let isObject = c == Ascii.openBrace
                let bit = UInt64(1) << UInt64(depth & 63)
                if isObject { kinds[depth >> 6] |= bit } else { kinds[depth >> 6] &= ~bit }
                depth += 1
                i = bytes.skippingSpace(i + 1)
                guard i < count else { throw fault(i, "unexpected end") }
                if bytes[i] == (isObject ? Ascii.closeBrace : Ascii.closeBracket) {
                    i += 1
                    depth -= 1
                } else {
                    if isObject { i = try key(bytes, i) }
                    continue
                }
            } else if c == Ascii.quote {
                i = try string(bytes, i)
            } else if c == UInt8(ascii: "-") || isDigit(c) {
                i = try number(bytes, i)
            } else {
                i = try literal(bytes, i)
            }
            // A value ended here.
            while true {
                i = bytes.skippingSpace(i)
                if depth == 0 {
                    guard i == count else { throw fault(i, "bytes behind the value") }
                    return
                }
                guard i < count else { throw fault(i, "unexpected end") }
                let isObject = kinds[(depth - 1) >> 6] >> UInt64((depth - 1) & 63) & 1 == 1
                if bytes[i] == Ascii.comma {
                    i = bytes.skippingSpace(i + 1)
                    if isObject { i = try key(bytes, i) }
                    break
                }
                guard bytes[i] == (isObject ? Ascii.closeBrace : Ascii.closeBracket) else {
                    throw fault(i, isObject ? "comma or } expected" : "comma or ] expected")
                }
                i += 1
                depth -= 1
            }
        }
    }

    /// Behind the colon and its spaces.
    private static func key(_ bytes: RawSpan, _ start: Int) throws(JSONError) -> Int {
        guard start < bytes.byteCount, bytes[start] == Ascii.quote else { throw JSONError(offset: start, reason: "key expected") }
        let i = bytes.skippingSpace(try string(bytes, start))
        guard i < bytes.byteCount, bytes[i] == Ascii.colon else { throw JSONError(offset: i, reason: "colon expected") }
        return bytes.skippingSpace(i + 1)
    }

    private static func literal(_ bytes: RawSpan, _ start: Int) throws(JSONError) -> Int {
        for word in ["true", "false", "null"] as [StaticString] {
            let end = start + word.utf8CodeUnitCount
            if end <= bytes.byteCount, bytes.equals(start..<end, word) { return end }
        }
        throw JSONError(offset: start, reason: "value expected")
    }

    private static func number(_ bytes: RawSpan, _ start: Int) throws(JSONError) -> Int {
        let count = bytes.byteCount
        var i = start
        func digits() throws(JSONError) {
            guard i < count, isDigit(bytes[i]) else { throw JSONError(offset: i, reason: "digit expected") }
            while i < count, isDigit(bytes[i]) { i += 1 }
        }
        if bytes[i] == UInt8(ascii: "-") { i += 1 }
        if i < count, bytes[i] == UInt8(ascii: "0") {
            i += 1
            if i < count, isDigit(bytes[i]) { throw JSONError(offset: i, reason: "number starts with 0") }
        } else {
            try digits()
        }
        if i < count, bytes[i] == UInt8(ascii: ".") {
            i += 1
            try digits()
        }
        if i < count, bytes[i] | 0x20 == UInt8(ascii: "e") {
            i += 1
            if i < count, bytes[i] == UInt8(ascii: "+") || bytes[i] == UInt8(ascii: "-") { i += 1 }
            try digits()
        }
        return i
    }

    /// Behind the closing quote.
    private static func string(_ bytes: RawSpan, _ start: Int) throws(JSONError) -> Int {
        let count = bytes.byteCount
        var i = start + 1
        while i < count {
            let c = bytes[i]
            if c == Ascii.quote { return i + 1 }
            if c < 0x20 { throw JSONError(offset: i, reason: "control character in string") }
            if c == Ascii.backslash {
                guard i + 1 < count else { break }
                switch bytes[i + 1] {
                case Ascii.quote, Ascii.backslash, UInt8(ascii: "/"), UInt8(ascii: "b"), UInt8(ascii: "f"), UInt8(ascii: "n"),
                    UInt8(ascii: "r"),
                    UInt8(ascii: "t"):
                    i += 2
                case UInt8(ascii: "u"):
                    for k in i + 2..<i + 6 {
                        guard k < count, hexDigit(bytes[k]) != nil else { throw JSONError(offset: k, reason: "hexadecimal digit expected") }
                    }
                    i += 6
                default: throw JSONError(offset: i, reason: "invalid escape")
                }
            } else if c < 0x80 {
                i += 1
            } else {
                i = try scalar(bytes, i)
            }
        }
        throw JSONError(offset: count, reason: "string not closed")
    }

    /// Behind one scalar of two to four bytes (Unicode 16, table 3-7).
    private static func scalar(_ bytes: RawSpan, _ i: Int) throws(JSONError) -> Int {
        func byte(_ at: Int) -> UInt8 { at < bytes.byteCount ? bytes[at] : 0 }
        func follows(_ at: Int) -> Bool { byte(at) & 0xC0 == 0x80 }
        let (c, second) = (bytes[i], byte(i + 1))
        switch c {
        case 0xC2...0xDF where follows(i + 1): return i + 2
        case 0xE0 where (0xA0...0xBF).contains(second) && follows(i + 2): return i + 3
        case 0xED where (0x80...0x9F).contains(second) && follows(i + 2): return i + 3
        case 0xE1...0xEC where follows(i + 1) && follows(i + 2), 0xEE...0xEF where follows(i + 1) && follows(i + 2): return i + 3
        case 0xF0 where (0x90...0xBF).contains(second) && follows(i + 2) && follows(i + 3): return i + 4
        case 0xF1...0xF3 where follows(i + 1) && follows(i + 2) && follows(i + 3): return i + 4
        case 0xF4 where (0x80...0x8F).contains(second) && follows(i + 2) && follows(i + 3): return i + 4
        default: throw JSONError(offset: i, reason: "invalid UTF-8")
        }
    }
}
