import Bytes
import Vocabulary

/// The members of an object in their order, unknown ones and repeated ones included.
public struct JSONMembers: Sendable, Equatable {
    public struct Member: Sendable, Equatable {
        public var key: String
        public var value: JSONValue
        public init(key: String, value: JSONValue) { (self.key, self.value) = (key, value) }
    }

    public var members: [Member]
    public init(_ members: [Member] = []) { self.members = members }

    public var isEmpty: Bool { members.isEmpty }
    public var keys: [String] { members.map(\.key) }

    /// The first value of `key`. Setting replaces it, or appends it; nil removes every one.
    public subscript(_ key: String) -> JSONValue? {
        get { members.first { $0.key == key }?.value }
        set {
            guard let newValue else { return members.removeAll { $0.key == key } }
            if let index = members.firstIndex(where: { $0.key == key }) {
                members[index].value = newValue
            } else {
                members.append(Member(key: key, value: newValue))
            }
        }
    }
}

/// A document as a tree, for requests that must be rewritten in depth and for answers that are assembled. Not for the hot path.
public indirect enum JSONValue: Sendable, Equatable {
    case null
    case bool(Bool)
    /// The number's text as it was written.
    case number(String)
    case string(String)
    case array([JSONValue])
    case object(JSONMembers)

    /// The whole of `bytes` as one document, by the rules of `JSONDocument`, in time linear in its bytes.
    public init(parsing bytes: RawSpan) throws(JSONError) {
        let index = try JSONIndex(bytes)
        var left = Limits.jsonTreeValuesMax
        self = try JSONValue.tree(bytes, index, JSONIndex.Place(range: index.root, container: 0), &left)
    }

    /// A value of a document as a tree of its own.
    public init(_ document: JSONDocument, _ value: JSONDocument.Value) throws(JSONError) {
        var left = Limits.jsonTreeValuesMax
        self = try document.withIndex { (bytes, index) throws(JSONError) in
            try JSONValue.tree(bytes, index, JSONIndex.Place(range: value.range, container: value.container), &left)
        }
    }

    /// Of a checked document: its depth, and so this recursion, is bounded by `Limits.jsonDepthMax`, and its size by `left`.
    private static func tree(
        _ bytes: RawSpan, _ index: JSONIndex, _ place: JSONIndex.Place, _ left: inout Int
    ) throws(JSONError) -> JSONValue {
        left -= 1
        guard left >= 0 else { throw JSONError(offset: place.range.lowerBound, reason: "more than \(Limits.jsonTreeValuesMax) values") }
        switch JSONScan.kind(bytes, place.range) {
        case .null: return .null
        case .bool: return .bool(JSONScan.bool(bytes, place.range) ?? false)
        case .number: return .number(bytes.text(place.range))
        case .string: return .string(JSONScan.string(bytes, place.range) ?? "")
        case .array:
            var elements: [JSONValue] = []
            var cursor = JSONIndex.Cursor(bytes, place.range, place.container, isObject: false)
            while let element = cursor.nextElement(bytes, index) { elements.append(try tree(bytes, index, element, &left)) }
            return .array(elements)
        case .object:
            var members: [JSONMembers.Member] = []
            var cursor = JSONIndex.Cursor(bytes, place.range, place.container, isObject: true)
            while let (key, value) = cursor.nextMember(bytes, index) {
                members.append(JSONMembers.Member(key: JSONScan.key(bytes, key), value: try tree(bytes, index, value, &left)))
            }
            return .object(JSONMembers(members))
        }
    }

    /// Without white space.
    public func serialized() -> [UInt8] {
        var out: [UInt8] = []
        write(into: &out)
        return out
    }

    public func write(into out: inout [UInt8]) {
        switch self {
        case .null: JSONWriter.raw("null", into: &out)
        case .bool(let flag): JSONWriter.bool(flag, into: &out)
        case .number(let text): out.append(contentsOf: text.utf8)
        case .string(let text): JSONWriter.string(text, into: &out)
        case .array(let elements):
            out.append(Ascii.openBracket)
            for (i, element) in elements.enumerated() {
                if i > 0 { out.append(Ascii.comma) }
                element.write(into: &out)
            }
            out.append(Ascii.closeBracket)
        case .object(let object):
            out.append(Ascii.openBrace)
            for (i, member) in object.members.enumerated() {
                if i > 0 { out.append(Ascii.comma) }
                JSONWriter.string(member.key, into: &out)
                out.append(Ascii.colon)
                member.value.write(into: &out)
            }
            out.append(Ascii.closeBrace)
        }
    }

    /// A member of an object; nil of anything else. Setting a member of what is no object makes it one.
    public subscript(_ key: String) -> JSONValue? {
        get { objectValue?[key] }
        set {
            var members = objectValue ?? JSONMembers()
            members[key] = newValue
            self = .object(members)
        }
    }

    public subscript(_ index: Int) -> JSONValue? {
        guard case .array(let elements) = self, elements.indices.contains(index) else { return nil }
        return elements[index]
    }

    /// Removes every member of that key.
    public mutating func remove(_ key: String) {
        if objectValue != nil { self[key] = nil }
    }

    /// The first key that occurs twice in one object, at any level; nil when there is none.
    public var ambiguity: JSONAmbiguity? {
        switch self {
        case .null, .bool, .number, .string: return nil
        case .array(let elements):
            for element in elements { if let found = element.ambiguity { return found } }
            return nil
        case .object(let object):
            let members = object.members
            if let key = JSONDocument.repeated(members.count, { members[$0].key }) {
                return JSONAmbiguity(key: key, reason: "occurs twice")
            }
            for member in members { if let found = member.value.ambiguity { return found } }
            return nil
        }
    }

    public var stringValue: String? { if case .string(let text) = self { text } else { nil } }
    public var arrayValue: [JSONValue]? { if case .array(let elements) = self { elements } else { nil } }
    public var objectValue: JSONMembers? { if case .object(let members) = self { members } else { nil } }
    /// A whole number in the range of Int64, however it is written.
    public var intValue: Int64? {
        guard case .number(let text) = self else { return nil }
        if let number = Int64(text) { return number }
        let bytes = Array(text.utf8)
        return JSONScan.int(bytes.span.bytes, 0..<bytes.count)
    }
    /// As `JSONScan.count`; nil of what is no number.
    public func count(in bounds: ClosedRange<Int64>) -> Int64? {
        guard case .number(let text) = self else { return nil }
        let bytes = Array(text.utf8)
        return JSONScan.count(bytes.span.bytes, 0..<bytes.count, in: bounds)?.number
    }
    public var boolValue: Bool? { if case .bool(let flag) = self { flag } else { nil } }
    public var isNull: Bool { self == .null }
}

extension JSONValue: ExpressibleByStringLiteral, ExpressibleByIntegerLiteral, ExpressibleByBooleanLiteral, ExpressibleByNilLiteral,
    ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
    public init(stringLiteral value: String) { self = .string(value) }
    public init(integerLiteral value: Int64) { self = .number(String(value)) }
    public init(booleanLiteral value: Bool) { self = .bool(value) }
    public init(nilLiteral: ()) { self = .null }
    public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
    public init(dictionaryLiteral elements: (String, JSONValue)...) {
        self = .object(JSONMembers(elements.map { JSONMembers.Member(key: $0.0, value: $0.1) }))
    }
    public static func int(_ number: Int64) -> JSONValue { .number(String(number)) }
}
