import JSONWire
import Testing

func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }
/// `RawSpan` can't go through the macros of Testing, so these take arrays.
func validate(_ document: [UInt8]) throws(JSONError) { try JSONScan.validate(document.span.bytes) }
func find(_ document: [UInt8], _ path: StaticString...) -> Range<Int>? {
    var place: Range<Int>? = 0..<document.count
    for name in path { place = place.flatMap { JSONScan.find(document.span.bytes, in: $0, name) } }
    return place
}
func set(_ document: [UInt8], _ changes: [(key: String, value: [UInt8]?)]) -> [UInt8]? { JSONEdit.setting(document.span.bytes, changes) }
func parse(_ document: [UInt8]) throws(JSONError) -> JSONValue { try JSONValue(parsing: document.span.bytes) }
func string(_ document: [UInt8], _ value: Range<Int>) -> String? { JSONScan.string(document.span.bytes, value) }
func int(_ document: [UInt8], _ value: Range<Int>) -> Int64? { JSONScan.int(document.span.bytes, value) }
func bool(_ document: [UInt8], _ value: Range<Int>) -> Bool? { JSONScan.bool(document.span.bytes, value) }
func kind(_ document: [UInt8], _ value: Range<Int>) -> JSONScan.Kind { JSONScan.kind(document.span.bytes, value) }
func equals(_ document: [UInt8], _ value: Range<Int>, _ text: StaticString) -> Bool { JSONScan.equals(document.span.bytes, value, text) }
func isWhole(_ document: [UInt8]) -> Bool { JSONScan.members(document.span.bytes, nil) { _, _ in true } }
func text(_ bytes: [UInt8]?) -> String? { bytes.map { String(decoding: $0, as: UTF8.self) } }

/// Goal: exactly RFC 8259 is valid.
@Suite struct ValidationTests {
    static let good = [
        "{}", "[]", " [ ] ", "0", "-0", "1.5e+10", "1E5", "-0.1e-2", "\"\"", "\"a\\u00e9\\n\\/\\\"\"", "\"\\ud800\"", "true", "false",
        "null",
        "[1,2,[3,{\"a\":[]}],{}]", "{\"a\":1,\"a\":2}", "\r\n\t{\"a\" : \"b\" , \"c\":[ 1 , null ]}\n", "\"\u{e9}\u{20ac}\u{1f600}\u{7f}\"",
        String(repeating: "[", count: 128) + String(repeating: "]", count: 128),
    ]
    static let bad = [
        "", " ", "{", "}", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "{1:1}", "{,}",
        "{\"a\" 1}",
        "[}", "{]", "{\"a\":1]", "[1}", "01", "-", "+1", "1.", ".5", "1e", "1e+", "0x1", "1a", "- 1", "NaN", "Infinity", "True", "nul",
        "truex",
        "'a'", "\"", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\n\"", "\"\t\"", "\"\u{0}\"", "1 2", "{} {}", "[]]", "\u{feff}{}",
        "\u{a0}1",
        "[1,/*c*/2]", "// c\n1", String(repeating: "[", count: 129) + String(repeating: "]", count: 129),
        String(repeating: "[", count: 100_000),
        String(repeating: "{\"a\":", count: 100_000),
    ]

    @Test(arguments: good) func takes(_ document: String) {
        #expect(throws: Never.self) { try validate(bytes(document)) }
    }

    @Test(arguments: bad) func refuses(_ document: String) {
        #expect(throws: JSONError.self) { try validate(bytes(document)) }
        // Scanning it anyway must not trap.
        let input = bytes(document)
        _ = isWhole(input)
        _ = find(input, "a", "b")
        _ = set(input, [("a", [0x31])])
    }

    @Test(
        arguments: [
            [0x80], [0xC0, 0x80], [0xC1, 0xBF], [0xE0, 0x80, 0x80], [0xED, 0xA0, 0x80], [0xF0, 0x80, 0x80, 0x80], [0xF4, 0x90, 0x80, 0x80],
            [0xF5, 0x80, 0x80, 0x80],
            [0xC3], [0xE2, 0x82], [0xF0, 0x9F, 0x98], [0xFF],
        ] as [[UInt8]]) func refusesBytesThatAreNoText(_ raw: [UInt8])
    {
        #expect(throws: JSONError.self) { try validate(([0x22] + raw + [0x22])) }
    }

    @Test func saysWhere() {
        #expect(throws: JSONError(offset: 5, reason: "value expected")) { try validate(bytes("{\"a\":}")) }
    }

    /// Every prefix of a document is refused, and no scan of it traps.
    @Test func prefixesAreRefused() {
        let input = bytes("{\"a\":[1,{\"b\":\"c\\u00e9\\\\\"}],\"d\":-1.5e3,\"e\":true}")
        for cut in 0..<input.count {
            let part = Array(input[..<cut])
            #expect(throws: JSONError.self) { try validate(part) }
            #expect(!isWhole(part))
            #expect(set(part, [("a", nil)]) == nil)
        }
    }
}

/// Goal: members are found without a tree.
@Suite struct ScanTests {
    let document = bytes(
        " {\"type\" : \"response.completed\", \"response\":{\"id\":\"r\\u0031\",\"usage\":{\"input_tokens\":12, \"n\":-9223372036854775808},\"x\":[1,\"]\",{\"}\":\"\\\"\"}],\"ok\":true},\"z\":null,\"\\u006bey\":1.5} "
    )

    @Test func finds() throws {
        let type = try #require(find(document, "type"))
        #expect(equals(document, type, "response.completed"))
        #expect(!equals(document, type, "response.complete"))
        #expect(kind(document, type) == .string)
        let id = try #require(find(document, "response", "id"))
        #expect(string(document, id) == "r1")
        #expect(equals(document, id, "r1"))
        #expect(int(document, try #require(find(document, "response", "usage", "input_tokens"))) == 12)
        #expect(int(document, try #require(find(document, "response", "usage", "n"))) == .min)
        #expect(bool(document, try #require(find(document, "response", "ok"))) == true)
        #expect(find(document, "response", "nothing") == nil)
        #expect(find(document, "type", "nothing") == nil)
        let escaped = try #require(find(document, "key"))
        #expect(int(document, escaped) == nil)
        #expect(kind(document, escaped) == .number)
        var elements: [JSONScan.Kind] = []
        let list = try #require(find(document, "response", "x"))
        let whole = JSONScan.elements(document.span.bytes, list) {
            elements.append(kind(document, $0))
            return true
        }
        #expect(whole && elements == [.number, .string, .object])
    }

    @Test func unescapes() {
        for (raw, wanted) in [
            ("\"a\\n\\t\\r\\b\\f\\/\\\\\\\"\"", "a\n\t\r\u{8}\u{c}/\\\""), ("\"\\ud83d\\ude00\"", "\u{1f600}"), ("\"\\ud83d\"", "\u{fffd}"),
            ("\"\\ud83dx\"", "\u{fffd}x"), ("\"\\ude00\"", "\u{fffd}"), ("\"\\u0000\"", "\0"), ("\"\u{e9}\"", "\u{e9}"),
        ] { #expect(string(bytes(raw), 0..<raw.utf8.count) == wanted) }
        #expect(string(bytes("12"), 0..<2) == nil)
        #expect(int(bytes("9223372036854775808"), 0..<19) == nil)
        #expect(int(bytes("-"), 0..<1) == nil)
    }
}

/// Goal: an edit changes what it names and no other byte.
@Suite struct EditTests {
    func edit(_ document: String, _ changes: [(key: String, value: String?)]) -> String? {
        text(set(bytes(document), changes.map { ($0.key, $0.value.map(bytes)) }))
    }

    @Test func edits() {
        #expect(edit("{\"a\":1, \"b\" : [ 2 ] ,\"c\":3}\n", [("b", "true")]) == "{\"a\":1, \"b\" : true ,\"c\":3}\n")
        #expect(edit("{\"a\":1, \"b\":2}", [("a", nil)]) == "{ \"b\":2}")
        #expect(edit("{\"a\":1, \"b\":2}", [("b", nil)]) == "{\"a\":1}")
        #expect(edit("{ \"a\":1 }", [("a", nil)]) == "{}")
        #expect(edit(" { } ", [("a", "1"), ("b\"", "2")]) == " {\"a\":1,\"b\\\"\":2} ")
        #expect(edit("{}", [("a", nil)]) == "{}")
        #expect(edit("{\"a\":1.50e1\n}", [("store", "false")]) == "{\"a\":1.50e1\n,\"store\":false}")
        #expect(edit("{\"store\":1,\"x\":0,\"st\\u006fre\":2,\"store\":3}", [("store", "false")]) == "{\"store\":false,\"x\":0}")
        #expect(edit("{\"store\":1,\"x\":0,\"store\":3}", [("store", nil)]) == "{\"x\":0}")
        #expect(edit("{\"a\":{\"b\":1},\"b\":2}", [("b", nil)]) == "{\"a\":{\"b\":1}}")
        #expect(edit("{\"a\":1}", [("a", "2"), ("a", "3")]) == "{\"a\":3}")
        #expect(edit("{}", [("a", "2"), ("a", "3")]) == "{\"a\":3}")
        #expect(edit("[1]", [("a", "2")]) == nil)
        #expect(edit("{\"a\":1} x", [("a", "2")]) == nil)
        #expect(edit("{\"a\":1", [("a", "2")]) == nil)
    }

    @Test func theResultIsValidAndSaysSo() throws {
        for document in ["{}", "{\"a\":1}", "{\"b\":1,\"a\":{\"x\":[]}}", " {\"a\":\"a\",\"a\":2,\"c\":null} "] {
            for change in ["7", nil] as [String?] {
                let result = try #require(set(bytes(document), [("a", change.map(bytes))]))
                let value = try parse(result)
                #expect(value["a"] == change.map { .number($0) })
                var expected = try parse(bytes(document))
                expected.remove("a")
                var rest = value
                rest.remove("a")
                #expect(rest == expected)
            }
        }
    }
}

/// Goal: a tree gives back what it was made of.
@Suite struct ValueTests {
    @Test(arguments: ValidationTests.good.filter { !$0.contains("ud800") }) func roundTrips(_ document: String) throws {
        let value = try parse(bytes(document))
        let again = try parse(value.serialized())
        #expect(again == value)
        #expect(again.serialized() == value.serialized())
    }

    @Test func keepsOrderNumbersAndUnknownMembers() throws {
        let document = "{\"z\":1.0,\"a\":-0,\"n\":1e400,\"m\":[true,false,null,\"\\u0001\u{e9}\"],\"a\":12345678901234567890}"
        #expect(text(try parse(bytes(document)).serialized()) == document)
    }

    @Test func reads() throws {
        var value: JSONValue = ["a": 1, "b": ["x", true, nil], "c": ["d": "e"]]
        #expect(value["a"]?.intValue == 1)
        #expect(value["b"]?.arrayValue?.count == 3)
        #expect(value["b"]?[1]?.boolValue == true)
        #expect(value["c"]?["d"]?.stringValue == "e")
        value["c"]?["d"] = "f"
        value["a"] = nil
        value["g"] = .int(3)
        #expect(text(value.serialized()) == "{\"b\":[\"x\",true,null],\"c\":{\"d\":\"f\"},\"g\":3}")
    }

    @Test func writes() {
        var out: [UInt8] = []
        JSONWriter.string("a\"\\\n\u{1}\u{1f}\u{e9}", into: &out)
        #expect(text(out) == "\"a\\\"\\\\\\n\\u0001\\u001f\u{e9}\"")
        var raw: [UInt8] = []
        let source = bytes("a\"\\\n\u{1}\u{1f}\u{e9}")
        JSONWriter.string(source.span.bytes, into: &raw)
        #expect(raw == out)
        let broken: [UInt8] = [0x61, 0xFF]
        raw = []
        JSONWriter.string(broken.span.bytes, into: &raw)
        #expect(text(raw) == "\"a\u{fffd}\"")
    }
}
