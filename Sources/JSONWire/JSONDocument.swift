import Bytes
import Vocabulary

/// Why an object doesn't say the same to every reader, and under which key.
public struct JSONAmbiguity: Error, Equatable, Sendable {
    public var key: String
    public var reason: String
    public init(key: String, reason: String) { (self.key, self.reason) = (key, reason) }
}

/// Bytes from outside, checked and indexed once. What is decided on them and what is sent on come from this one reading.
public struct JSONDocument: Sendable {
    /// A value's place. Lives as long as its document.
    public struct Value: Sendable, Equatable {
        public let range: Range<Int>
        /// Its own number in the index if it is an object or an array, else that of the next one behind it.
        let container: Int
    }

    public let bytes: [UInt8]
    private let index: JSONIndex

    /// Linear in the bytes for every shape. Errors: what isn't JSON, or is beyond `Limits.jsonDepthMax` or `Limits.jsonContainersMax`.
    public init(_ bytes: [UInt8]) throws(JSONError) {
        index = try JSONIndex(bytes.span.bytes)
        self.bytes = bytes
    }

    /// What the document takes of memory: its bytes and its index.
    public var memoryBytes: Int { bytes.count + index.memoryBytes }

    public var root: Value { Value(range: index.root, container: 0) }

    public func kind(_ value: Value) -> JSONScan.Kind { JSONScan.kind(bytes.span.bytes, value.range) }
    public func string(_ value: Value) -> String? { JSONScan.string(bytes.span.bytes, value.range) }
    public func int(_ value: Value) -> Int64? { JSONScan.int(bytes.span.bytes, value.range) }
    public func bool(_ value: Value) -> Bool? { JSONScan.bool(bytes.span.bytes, value.range) }
    public func equals(_ value: Value, _ text: StaticString) -> Bool { JSONScan.equals(bytes.span.bytes, value.range, text) }
    public func raw(_ value: Value) -> ArraySlice<UInt8> { bytes[value.range] }
    /// A string that every reader takes for the same text: no NUL, no half of a surrogate pair.
    public func isSound(_ value: Value) -> Bool { JSONScan.isSound(bytes.span.bytes, value.range) }

    func withIndex<T>(_ body: (RawSpan, JSONIndex) throws(JSONError) -> T) throws(JSONError) -> T { try body(bytes.span.bytes, index) }

    /// The elements of an array in their order; none of anything else.
    public func elements(_ value: Value) -> Elements { Elements(self, value) }

    public struct Elements: Sequence, IteratorProtocol {
        private let document: JSONDocument
        private var cursor: JSONIndex.Cursor

        init(_ document: JSONDocument, _ value: Value) {
            self.document = document
            cursor = JSONIndex.Cursor(document.bytes.span.bytes, value.range, value.container, isObject: false)
        }

        public mutating func next() -> Value? {
            let document = document  // the cursor changes while the bytes are borrowed
            guard let place = cursor.nextElement(document.bytes.span.bytes, document.index) else { return nil }
            return Value(range: place.range, container: place.container)
        }
    }

    /// The members of an object that means the same to a reader who takes the first of two equal keys, to one who takes the last and to one
    /// who cuts a key at NUL; nil of anything else.
    public func fields(_ value: Value) throws(JSONAmbiguity) -> Fields? {
        let span = bytes.span.bytes
        guard JSONScan.kind(span, value.range) == .object else { return nil }
        var cursor = JSONIndex.Cursor(span, value.range, value.container, isObject: true)
        var entries: [(key: String, value: Value)] = []
        while let (key, place) = cursor.nextMember(span, index) {
            let name = JSONScan.key(span, key)
            guard JSONScan.isSound(span, key) else { throw JSONAmbiguity(key: name, reason: "has a NUL or half of a surrogate pair") }
            guard entries.count < Limits.jsonMembersMax else {
                throw JSONAmbiguity(key: name, reason: "is behind \(Limits.jsonMembersMax) others, which is the limit")
            }
            entries.append((name, Value(range: place.range, container: place.container)))
        }
        if let twice = Self.repeated(entries.count, { entries[$0].key }) { throw JSONAmbiguity(key: twice, reason: "occurs twice") }
        return Fields(entries: entries)
    }

    public struct Fields: Sendable {
        public let entries: [(key: String, value: Value)]
        public subscript(_ key: String) -> Value? { entries.first { $0.key == key }?.value }
    }

    /// The first key that was there before. Few keys are compared with each other, many through a set: linear either way.
    static func repeated(_ count: Int, _ key: (Int) -> String) -> String? {
        if count <= 16 {
            for i in 0..<count { for k in 0..<i where key(k) == key(i) { return key(i) } }
            return nil
        }
        var seen: Set<String> = []
        for i in 0..<count where !seen.insert(key(i)).inserted { return key(i) }
        return nil
    }
}

extension JSONIndex {
    struct Place {
        var range: Range<Int>
        var container: Int
    }

    /// A walk over one level of a document that was checked.
    struct Cursor {
        private var at: Int
        private var container: Int

        /// `place` is an object or an array with the number `container`; the walk over any other value ends at once.
        init(_ bytes: RawSpan, _ place: Range<Int>, _ container: Int, isObject: Bool) {
            guard !place.isEmpty, bytes[place.lowerBound] == (isObject ? Ascii.openBrace : Ascii.openBracket) else {
                (at, self.container) = (bytes.byteCount, container)
                return
            }
            at = bytes.skippingSpace(place.lowerBound + 1)
            self.container = container + 1
        }

        mutating func nextElement(_ bytes: RawSpan, _ index: JSONIndex) -> Place? {
            guard at < bytes.byteCount, bytes[at] != Ascii.closeBracket else { return nil }
            let place = value(bytes, index)
            step(bytes)
            return place
        }

        mutating func nextMember(_ bytes: RawSpan, _ index: JSONIndex) -> (key: Range<Int>, value: Place)? {
            guard at < bytes.byteCount, bytes[at] == Ascii.quote, let keyEnd = JSONScan.stringEnd(bytes, at) else { return nil }
            let key = at + 1..<keyEnd - 1
            at = bytes.skippingSpace(bytes.skippingSpace(keyEnd) + 1)
            let place = value(bytes, index)
            step(bytes)
            return (key, place)
        }

        private mutating func value(_ bytes: RawSpan, _ index: JSONIndex) -> Place {
            let (start, number) = (at, container)
            if start < bytes.byteCount, bytes[start] == Ascii.openBrace || bytes[start] == Ascii.openBracket {
                at = Int(index.containers[container].end)
                container = Int(index.containers[container].next)
            } else {
                at = JSONScan.valueEnd(bytes, start) ?? bytes.byteCount
            }
            return Place(range: start..<at, container: number)
        }

        private mutating func step(_ bytes: RawSpan) {
            at = bytes.skippingSpace(at)
            if at < bytes.byteCount, bytes[at] == Ascii.comma { at = bytes.skippingSpace(at + 1) }
        }
    }
}
