import Bytes
import Vocabulary

/// A document's objects and arrays in their order, found by the one pass that checks it (RFC 8259 to the letter, valid UTF-8 without a
/// byte order mark). Whoever reads a level steps over what lies below it by a look into this list, so that no shape of a document costs
/// more than its bytes.
struct JSONIndex: Sendable {
    struct Container: Sendable {
        var start: UInt32
        /// Behind its bracket. While the container is open: the number of the one around it.
        var end: UInt32
        /// The number of the first container that begins behind it.
        var next: UInt32
    }
    private(set) var containers: [Container] = []
    var memoryBytes: Int { containers.capacity * MemoryLayout<Container>.stride }
    /// The document without the spaces around it.
    private(set) var root: Range<Int> = 0..<0

    /// Loops, so that no document can exhaust the stack.
    init(_ bytes: RawSpan, depthMax: Int = Limits.jsonDepthMax) throws(JSONError) {
        let count = bytes.byteCount
        guard count < Int(UInt32.max) else { throw JSONError(offset: 0, reason: "longer than 4 GiB") }
        var (depth, open, isObject) = (0, UInt32.max, false)
        var i = bytes.skippingSpace(0)
        let start = i

        func fault(_ offset: Int, _ reason: String) -> JSONError { JSONError(offset: offset, reason: reason) }

        while true {
            // A value starts here.
            guard i < count else { throw fault(i, "value expected") }
            let c = bytes[i]
            if c == Ascii.openBrace || c == Ascii.openBracket {
                guard depth < depthMax else { throw fault(i, "nested deeper than \(depthMax) levels") }
                guard containers.count < Limits.jsonContainersMax else {
                    throw fault(i, "more than \(Limits.jsonContainersMax) objects and arrays")
                }
                isObject = c == Ascii.openBrace
                containers.append(Container(start: UInt32(i), end: open, next: 0))
                open = UInt32(containers.count - 1)
                depth += 1
                i = bytes.skippingSpace(i + 1)
                guard i < count else { throw fault(i, "unexpected end") }
                if bytes[i] != (isObject ? Ascii.closeBrace : Ascii.closeBracket) {
                    if isObject { i = try Self.key(bytes, i) }
                    continue
                }
            } else if c == Ascii.quote {
                i = try Self.string(bytes, i)
            } else if c == UInt8(ascii: "-") || isDigit(c) {
                i = try Self.number(bytes, i)
            } else {
                i = try Self.literal(bytes, i)
            }
            if depth == 0 { root = start..<i }
            // A value ended here, or its container is empty.
            while true {
                i = bytes.skippingSpace(i)
                if depth == 0 {
                    guard i == count else { throw fault(i, "bytes behind the value") }
                    break
                }
                guard i < count else { throw fault(i, "unexpected end") }
                if bytes[i] == Ascii.comma {
                    i = bytes.skippingSpace(i + 1)
                    if isObject { i = try Self.key(bytes, i) }
                    break
                }
                guard bytes[i] == (isObject ? Ascii.closeBrace : Ascii.closeBracket) else {
                    throw fault(i, isObject ? "comma or } expected" : "comma or ] expected")
                }
                i += 1
                depth -= 1
                let around = containers[Int(open)].end
                containers[Int(open)].end = UInt32(i)
                containers[Int(open)].next = UInt32(containers.count)
                if around != .max { isObject = bytes[Int(containers[Int(around)].start)] == Ascii.openBrace }
                open = around
                if depth == 0 { root = start..<i }
            }
            if depth == 0 { return }
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
        let word: StaticString = bytes[start] == UInt8(ascii: "t") ? "true" : bytes[start] == UInt8(ascii: "f") ? "false" : "null"
        let end = start + word.utf8CodeUnitCount
        if end <= bytes.byteCount, bytes.equals(start..<end, word) { return end }
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
        while true {
            i = bytes.plainEnd(from: i)
            guard i < count else { break }
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
