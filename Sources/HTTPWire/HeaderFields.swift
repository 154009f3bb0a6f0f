import Bytes

/// Header fields as ranges into one copy of the head: two allocations however many fields there are.
public struct HeaderFields: Sendable {
    struct Field: Sendable {
        var known: KnownHeader
        var nameStart, nameEnd, valueStart, valueEnd: Int32
        var name: Range<Int> { Int(nameStart)..<Int(nameEnd) }
        var value: Range<Int> { Int(valueStart)..<Int(valueEnd) }

        init(_ known: KnownHeader, name: Range<Int>, value: Range<Int>) {
            self.known = known
            (nameStart, nameEnd) = (Int32(name.lowerBound), Int32(name.upperBound))
            (valueStart, valueEnd) = (Int32(value.lowerBound), Int32(value.upperBound))
        }
    }

    /// The head (for a request, with its first line) and what was appended after.
    private(set) var bytes: [UInt8]
    private(set) var fields: [Field]
    /// The known names that occur, a bit each: most questions are about fields that are not there.
    private var present: UInt64 = 0

    public init() { (bytes, fields) = ([], []) }
    init(bytes: [UInt8], fields: [Field]) {
        (self.bytes, self.fields) = (bytes, fields)
        for field in fields { present |= 1 << UInt64(field.known.rawValue) }
    }

    public func has(_ known: KnownHeader) -> Bool { present >> UInt64(known.rawValue) & 1 == 1 }

    public var count: Int { fields.count }

    /// Adds a field at the end. A name that isn't a token, or a value with CR, LF, NUL or another control, is not added.
    public mutating func append(_ name: String, _ value: String) {
        guard !name.isEmpty, name.utf8.allSatisfy(isTokenByte), value.utf8.allSatisfy(isValueByte) else { return }
        let start = bytes.count
        bytes.append(contentsOf: name.utf8)
        let middle = bytes.count
        bytes.append(contentsOf: value.utf8)
        let known = KnownHeader.named(bytes.span.bytes, start..<middle)
        let trimmed = bytes.span.bytes.trimmed(middle..<bytes.count)
        fields.append(Field(known, name: start..<middle, value: trimmed))
        present |= 1 << UInt64(known.rawValue)
    }

    /// The first such field's value without space around it.
    public func first(_ known: KnownHeader) -> String? {
        guard has(known) else { return nil }
        for field in fields where field.known == known { return bytes.span.bytes.text(field.value) }
        return nil
    }

    /// What `body` makes of the first such field's value; nil without one.
    public func with<T>(_ known: KnownHeader, _ body: (RawSpan) -> T) -> T? {
        guard has(known) else { return nil }
        let span = bytes.span.bytes
        for field in fields where field.known == known { return body(span.extracting(field.value)) }
        return nil
    }

    public func all(_ known: KnownHeader) -> [String] {
        guard has(known) else { return [] }
        return fields.filter { $0.known == known }.map { bytes.span.bytes.text($0.value) }
    }

    /// The content codings of the body, the first applied first, without those that change nothing; in lower case.
    public var contentEncodings: [String] {
        guard has(.contentEncoding) else { return [] }
        return all(.contentEncoding).flatMap { $0.split(separator: ",") }.map {
            String($0.drop { $0 == " " || $0 == "\t" }.prefix { $0 != " " && $0 != "\t" }).lowercased()
        }
        .filter { !["", "identity", "none", "utf-8", "utf8", "binary"].contains($0) }  // what some write who mean none
    }

    public mutating func remove(_ known: KnownHeader) {
        fields.removeAll { $0.known == known }
        present &= ~(1 << UInt64(known.rawValue))
    }

    /// By a name of any case, known or not.
    public func first(named name: String) -> String? {
        let wanted = Array(name.utf8)
        let span = bytes.span.bytes
        for field in fields where span.equalsIgnoringCase(field.name, wanted.span.bytes) { return span.text(field.value) }
        return nil
    }

    /// Whether the comma lists of all such fields name `token` (lower case), in any case. Parameters after a semicolon count to the token.
    public func hasToken(_ known: KnownHeader, _ token: StaticString) -> Bool {
        guard has(known) else { return false }
        let span = bytes.span.bytes
        for field in fields where field.known == known {
            if anyElement(span, field.value, { span.equalsIgnoringCase($0, token) }) { return true }
        }
        return false
    }

    public func forEach(_ body: (_ known: KnownHeader, _ name: RawSpan, _ value: RawSpan) -> Void) {
        let span = bytes.span.bytes
        for field in fields { body(field.known, span.extracting(field.name), span.extracting(field.value)) }
    }

    /// The fields that a proxy may pass on: neither hop-by-hop (RFC 9110 §7.6.1) nor nominated by this head's `Connection`.
    /// `Content-Length` and `Host` are among them; who forwards decides about those.
    public func forEachEndToEnd(_ body: (_ known: KnownHeader, _ name: RawSpan, _ value: RawSpan) -> Void) {
        let span = bytes.span.bytes
        let nominates = nominatesFields
        for field in fields where !field.known.isHopByHop {
            if nominates && isNominated(span.extracting(field.name)) { continue }
            body(field.known, span.extracting(field.name), span.extracting(field.value))
        }
    }

    /// The same question for one field of this head.
    public func isHopByHop(_ known: KnownHeader, _ name: RawSpan) -> Bool { known.isHopByHop || isNominated(name) }

    /// Whether `Connection` has more in it than `close` and `keep-alive`.
    private var nominatesFields: Bool {
        guard has(.connection) else { return false }
        let span = bytes.span.bytes
        for field in fields where field.known == .connection {
            let more = anyElement(span, field.value) {
                !$0.isEmpty && !span.equalsIgnoringCase($0, "close") && !span.equalsIgnoringCase($0, "keep-alive")
            }
            if more { return true }
        }
        return false
    }

    private func isNominated(_ name: RawSpan) -> Bool {
        guard has(.connection) else { return false }
        let span = bytes.span.bytes
        for field in fields where field.known == .connection {
            if anyElement(span, field.value, { span.equalsIgnoringCase($0, name) }) { return true }
        }
        return false
    }
}

/// Whether `test` holds for an element of a comma list.
private func anyElement(_ bytes: RawSpan, _ list: Range<Int>, _ test: (Range<Int>) -> Bool) -> Bool {
    var start = list.lowerBound
    for i in list where bytes[i] == UInt8(ascii: ",") {
        if test(bytes.trimmed(start..<i)) { return true }
        start = i + 1
    }
    return test(bytes.trimmed(start..<list.upperBound))
}
