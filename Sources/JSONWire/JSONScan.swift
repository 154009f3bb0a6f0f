import Bytes

/// Why bytes aren't a JSON document, and where.
public struct JSONError: Error, Equatable, Sendable {
    public var offset: Int
    public var reason: String
    public init(offset: Int, reason: String) { (self.offset, self.reason) = (offset, reason) }
}

/// Finds members in JSON bytes without making a tree of them. Only `validate` checks the document; the rest expects one that is valid and,
/// given another, finds nothing rather than trap.
public enum JSONScan {
    public enum Kind: Sendable { case object, array, string, number, bool, null }

    public static func kind(_ bytes: RawSpan, _ value: Range<Int>) -> Kind {
        guard !value.isEmpty else { return .null }
        switch bytes[value.lowerBound] {
        case Ascii.openBrace: return .object
        case Ascii.openBracket: return .array
        case Ascii.quote: return .string
        case UInt8(ascii: "t"), UInt8(ascii: "f"): return .bool
        case UInt8(ascii: "n"): return .null
        default: return .number
        }
    }

    /// Checks a whole document, as `JSONDocument` does it.
    public static func validate(_ bytes: RawSpan) throws(JSONError) { _ = try JSONIndex(bytes) }

    /// Visits the members of `object` (nil: of the document) in their order; keys as raw bytes without quotes, escapes unresolved.
    /// `visit` returns false to stop. False: it stopped, or the bytes aren't an object up to its end.
    @discardableResult
    public static func members(_ bytes: RawSpan, _ object: Range<Int>?, _ visit: (_ key: Range<Int>, _ value: Range<Int>) -> Bool) -> Bool {
        walk(bytes, object?.lowerBound ?? 0) { key, start in
            guard let end = valueEnd(bytes, start), visit(key, start..<end) else { return nil }
            return end
        } != nil
    }

    /// The same for whoever finds a value's end by reading it: `visit` gets its start and returns where it ends, or nil to stop. Returns the
    /// place behind the object that begins at `start`; nil: it stopped, or the bytes aren't an object up to its end.
    public static func walk(_ bytes: RawSpan, _ start: Int, _ visit: (_ key: Range<Int>, _ start: Int) -> Int?) -> Int? {
        var i = bytes.skippingSpace(start)
        guard i < bytes.byteCount, bytes[i] == Ascii.openBrace else { return nil }
        i = bytes.skippingSpace(i + 1)
        if i < bytes.byteCount, bytes[i] == Ascii.closeBrace { return i + 1 }
        while true {
            guard i < bytes.byteCount, bytes[i] == Ascii.quote, let keyEnd = stringEnd(bytes, i) else { return nil }
            let key = i + 1..<keyEnd - 1
            i = bytes.skippingSpace(keyEnd)
            guard i < bytes.byteCount, bytes[i] == Ascii.colon else { return nil }
            i = bytes.skippingSpace(i + 1)
            guard let end = visit(key, i) else { return nil }
            i = bytes.skippingSpace(end)
            guard i < bytes.byteCount else { return nil }
            if bytes[i] == Ascii.closeBrace { return i + 1 }
            guard bytes[i] == Ascii.comma else { return nil }
            i = bytes.skippingSpace(i + 1)
        }
    }

    @discardableResult
    public static func elements(_ bytes: RawSpan, _ array: Range<Int>, _ visit: (Range<Int>) -> Bool) -> Bool {
        var i = bytes.skippingSpace(array.lowerBound)
        guard i < bytes.byteCount, bytes[i] == Ascii.openBracket else { return false }
        i = bytes.skippingSpace(i + 1)
        if i < bytes.byteCount, bytes[i] == Ascii.closeBracket { return true }
        while true {
            guard let end = valueEnd(bytes, i) else { return false }
            guard visit(i..<end) else { return false }
            i = bytes.skippingSpace(end)
            guard i < bytes.byteCount else { return false }
            if bytes[i] == Ascii.closeBracket { return true }
            guard bytes[i] == Ascii.comma else { return false }
            i = bytes.skippingSpace(i + 1)
        }
    }

    /// The value at a path of keys from the document's root; of a key that occurs twice, the first.
    public static func find(_ bytes: RawSpan, _ path: StaticString...) -> Range<Int>? { find(bytes, nil, path) }

    /// The same, from an object inside the document.
    public static func find(_ bytes: RawSpan, in object: Range<Int>, _ path: StaticString...) -> Range<Int>? { find(bytes, object, path) }

    /// The value of one key of the document's root, as `find` has it.
    public static func member(_ bytes: RawSpan, _ name: StaticString) -> Range<Int>? {
        var found: Range<Int>?
        members(bytes, nil) { key, value in
            guard keyEquals(bytes, key, name) else { return true }
            found = value
            return false
        }
        return found
    }

    private static func find(_ bytes: RawSpan, _ object: Range<Int>?, _ path: [StaticString]) -> Range<Int>? {
        var place = object
        for name in path {
            var found: Range<Int>?
            members(bytes, place) { key, value in
                guard keyEquals(bytes, key, name) else { return true }
                found = value
                return false
            }
            guard let found else { return nil }
            place = found
        }
        return place
    }

    /// Whether a key, as `members` gives it, is `name`, however it is escaped.
    public static func keyEquals(_ bytes: RawSpan, _ key: Range<Int>, _ name: StaticString) -> Bool {
        if bytes.equals(key, name) { return true }
        // An escape is longer than what it stands for.
        guard key.count > name.utf8CodeUnitCount, hasBackslash(bytes, key) else { return false }
        return unescaped(bytes, key) == name.withUTF8Buffer { String(decoding: $0, as: UTF8.self) }
    }

    /// The text of a string value; nil if it isn't a string. An escaped half of a surrogate pair becomes U+FFFD.
    public static func string(_ bytes: RawSpan, _ value: Range<Int>) -> String? {
        guard let inner = inner(bytes, value) else { return nil }
        return unescaped(bytes, inner)
    }

    /// The text of a key as `members` gives it.
    public static func key(_ bytes: RawSpan, _ key: Range<Int>) -> String { unescaped(bytes, key) }

    public static func equals(_ bytes: RawSpan, _ value: Range<Int>, _ text: StaticString) -> Bool {
        guard let inner = inner(bytes, value) else { return false }
        return keyEquals(bytes, inner, text)
    }

    public static func equals(_ bytes: RawSpan, _ value: Range<Int>, _ text: String) -> Bool {
        guard let inner = inner(bytes, value) else { return false }
        return keyEquals(bytes, inner, text)
    }

    /// Whether a key is `name`, however it is escaped.
    static func keyEquals(_ bytes: RawSpan, _ key: Range<Int>, _ name: String) -> Bool {
        if !hasBackslash(bytes, key) {
            return key.count == name.utf8.count && bytes.extracting(key).withUnsafeBytes { $0.elementsEqual(name.utf8) }
        }
        return unescaped(bytes, key).utf8.elementsEqual(name.utf8)
    }

    /// Whether all readers take a string, with or without its quotes, for the same text: it has no NUL and no half of a surrogate pair.
    static func isSound(_ bytes: RawSpan, _ range: Range<Int>) -> Bool {
        var i = range.lowerBound
        while i < range.upperBound {
            guard bytes[i] == Ascii.backslash else {
                i += 1
                continue
            }
            guard let first = unit(bytes, i, range.upperBound) else {
                i += 2
                continue
            }
            i += 6
            switch first {
            case 0, 0xDC00...0xDFFF: return false
            case 0xD800...0xDBFF:
                guard let second = unit(bytes, i, range.upperBound), (0xDC00...0xDFFF).contains(second) else { return false }
                i += 6
            default: break
            }
        }
        return true
    }

    /// The number of an escape `\u0041` at `i`; nil of anything else.
    private static func unit(_ bytes: RawSpan, _ i: Int, _ end: Int) -> UInt32? {
        guard i + 6 <= end, bytes[i] == Ascii.backslash, bytes[i + 1] == UInt8(ascii: "u") else { return nil }
        var number: UInt32 = 0
        for k in i + 2..<i + 6 {
            guard let digit = hexDigit(bytes[k]) else { return nil }
            number = number << 4 | digit
        }
        return number
    }

    /// A whole number in the range of Int64, however it is written: `11`, `11.0`, `1.1e1`. Nil of anything else.
    public static func int(_ bytes: RawSpan, _ value: Range<Int>) -> Int64? {
        guard !value.isEmpty else { return nil }
        var i = value.lowerBound
        let negative = bytes[i] == UInt8(ascii: "-")
        if negative { i += 1 }
        guard i < value.upperBound else { return nil }
        var number: Int64 = 0
        while i < value.upperBound, isDigit(bytes[i]) {
            guard append(bytes[i], to: &number, negative) else { return nil }
            i += 1
        }
        if i == value.upperBound { return number }
        return scaled(bytes, i..<value.upperBound, number, negative)
    }

    private static func append(_ digit: UInt8, to number: inout Int64, _ negative: Bool) -> Bool {
        let digit = Int64(digit - 0x30)
        let (tens, over) = number.multipliedReportingOverflow(by: 10)
        let (sum, overToo) = negative ? tens.subtractingReportingOverflow(digit) : tens.addingReportingOverflow(digit)
        number = sum
        return !over && !overToo
    }

    /// `number` with a fraction and an exponent behind it; nil when that is not whole or out of range. Bounded by what Int64 holds, however
    /// long the text.
    private static func scaled(_ bytes: RawSpan, _ rest: Range<Int>, _ number: Int64, _ negative: Bool) -> Int64? {
        var (i, number) = (rest.lowerBound, number)
        var fraction = i..<i
        if bytes[i] == UInt8(ascii: ".") {
            let start = i + 1
            i = start
            while i < rest.upperBound, isDigit(bytes[i]) { i += 1 }
            guard i > start else { return nil }
            var end = i
            while end > start, bytes[end - 1] == 0x30 { end -= 1 }
            fraction = start..<end
        }
        var exponent = 0
        if i < rest.upperBound {
            guard bytes[i] | 0x20 == UInt8(ascii: "e") else { return nil }
            i += 1
            let isDown = i < rest.upperBound && bytes[i] == UInt8(ascii: "-")
            if i < rest.upperBound, isDown || bytes[i] == UInt8(ascii: "+") { i += 1 }
            guard i < rest.upperBound else { return nil }
            while i < rest.upperBound {
                guard isDigit(bytes[i]) else { return nil }
                exponent = min(exponent * 10 + Int(bytes[i] - 0x30), 1_000_000)  // beyond any number that fits
                i += 1
            }
            if isDown { exponent = -exponent }
        }
        if number == 0, fraction.isEmpty { return 0 }
        if exponent < 0 {
            guard fraction.isEmpty else { return nil }
            for _ in exponent..<0 {
                guard number % 10 == 0 else { return nil }
                number /= 10
            }
            return number
        }
        guard fraction.count <= exponent else { return nil }
        for k in fraction where !append(bytes[k], to: &number, negative) { return nil }
        for _ in fraction.count..<exponent where !append(0x30, to: &number, negative) { return nil }
        return number
    }

    /// A number from outside as one that can be counted with: whole and in `bounds`. `isExact` is false where it had to be changed for that.
    /// Nil: no number.
    public static func count(_ bytes: RawSpan, _ value: Range<Int>, in bounds: ClosedRange<Int64>) -> (number: Int64, isExact: Bool)? {
        if let whole = int(bytes, value) {
            let number = min(max(whole, bounds.lowerBound), bounds.upperBound)
            return (number, number == whole)
        }
        guard kind(bytes, value) == .number, value.count <= 64 * 1024, let double = Double(bytes.text(value)), !double.isNaN else {
            return nil
        }
        if double >= Double(bounds.upperBound) { return (bounds.upperBound, false) }
        if double <= Double(bounds.lowerBound) { return (bounds.lowerBound, false) }
        let whole = double.rounded(.towardZero)
        return (min(max(Int64(whole), bounds.lowerBound), bounds.upperBound), whole == double)
    }

    public static func bool(_ bytes: RawSpan, _ value: Range<Int>) -> Bool? {
        if bytes.equals(value, "true") { return true }
        if bytes.equals(value, "false") { return false }
        return nil
    }

    // MARK: Steps

    private static func inner(_ bytes: RawSpan, _ value: Range<Int>) -> Range<Int>? {
        guard value.count >= 2, bytes[value.lowerBound] == Ascii.quote, bytes[value.upperBound - 1] == Ascii.quote else { return nil }
        return value.lowerBound + 1..<value.upperBound - 1
    }

    public static func hasBackslash(_ bytes: RawSpan, _ range: Range<Int>) -> Bool {
        bytes.first(Ascii.backslash, from: range.lowerBound, to: range.upperBound) != nil
    }

    /// Behind the closing quote of the string that starts at `start`.
    static func stringEnd(_ bytes: RawSpan, _ start: Int) -> Int? {
        var i = start + 1
        while true {
            i = bytes.quoteOrBackslash(from: i)
            guard i < bytes.byteCount else { return nil }
            if bytes[i] == Ascii.quote { return i + 1 }
            i += 2
            if i > bytes.byteCount { return nil }
        }
    }

    /// Behind the value that starts at `start`, which must not be a space. Inside it only brackets and strings are looked at.
    public static func valueEnd(_ bytes: RawSpan, _ start: Int) -> Int? {
        guard start < bytes.byteCount else { return nil }
        switch bytes[start] {
        case Ascii.quote: return stringEnd(bytes, start)
        case Ascii.openBrace, Ascii.openBracket:
            var depth = 0
            var i = start
            while true {
                i = bytes.bracketOrQuote(from: i)
                guard i < bytes.byteCount else { return nil }
                switch bytes[i] {
                case Ascii.quote:
                    guard let end = stringEnd(bytes, i) else { return nil }
                    i = end
                    continue
                case Ascii.openBrace, Ascii.openBracket: depth += 1
                case Ascii.closeBrace, Ascii.closeBracket:
                    depth -= 1
                    if depth == 0 { return i + 1 }
                default: break
                }
                i += 1
            }
        default:
            var i = start
            while i < bytes.byteCount {
                let c = bytes[i]
                if isSpace(c) || c == Ascii.comma || c == Ascii.closeBrace || c == Ascii.closeBracket { break }
                if c == Ascii.quote || c == Ascii.colon || c == Ascii.openBrace || c == Ascii.openBracket { return nil }
                i += 1
            }
            return i > start ? i : nil
        }
    }

    /// The text between quotes.
    static func unescaped(_ bytes: RawSpan, _ range: Range<Int>) -> String {
        guard hasBackslash(bytes, range) else { return bytes.text(range) }
        var out: [UInt8] = []
        out.reserveCapacity(range.count)
        var i = range.lowerBound
        let end = range.upperBound
        while i < end {
            let c = bytes[i]
            guard c == Ascii.backslash, i + 1 < end else {
                out.append(c)
                i += 1
                continue
            }
            let escape = bytes[i + 1]
            if escape == UInt8(ascii: "u"), let first = unit(bytes, i, end) {
                i += 6
                var scalar = Unicode.Scalar(first)
                if scalar == nil, first < 0xDC00, let second = unit(bytes, i, end), (0xDC00...0xDFFF).contains(second) {
                    scalar = Unicode.Scalar(0x10000 + (first - 0xD800) << 10 + (second - 0xDC00))
                    i += 6
                }
                out.append(contentsOf: String(Character(scalar ?? "\u{FFFD}")).utf8)
                continue
            }
            i += 2
            switch escape {
            case UInt8(ascii: "n"): out.append(0x0A)
            case UInt8(ascii: "t"): out.append(0x09)
            case UInt8(ascii: "r"): out.append(0x0D)
            case UInt8(ascii: "b"): out.append(0x08)
            case UInt8(ascii: "f"): out.append(0x0C)
            case UInt8(ascii: "u"): break  // a broken escape, in bytes that nobody has checked
            default: out.append(escape)
            }
        }
        return String(decoding: out, as: UTF8.self)
    }
}
