import Testing

@testable import HTTPWire

/// Goal: a body's bytes are the same however the network cut them, and its end is never in doubt.
@Suite struct BodyTests {
    @Test(arguments: [
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b;c=\"d;\\\"\";e\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX: 1\r\nY:\r\n\r\nGET /",
        "0\r\n\r\n",
        "1\r\n\n\r\n2\r\n\r\n\r\n0;x\r\n\r\n",
    ]) func chunkedIsTheSameHoweverItIsCut(text: String) {
        let input = bytes(text)
        let whole = body(input, .chunked, cuts: [])
        #expect(whole.complete)
        #expect(whole.consumed == (text.hasSuffix("GET /") ? input.count - 5 : input.count))
        #expect(body(input, .chunked, cuts: Array(0..<input.count)) == whole)
        for cut in 0..<input.count { #expect(body(input, .chunked, cuts: [cut]) == whole) }
        for cut in 0..<input.count {
            let short = body(Array(input[..<cut]), .chunked, cuts: [])
            #expect(short.fault == nil)
            if cut < whole.consumed { #expect(!short.complete) }
        }
    }

    @Test func decodes() {
        #expect(body(bytes("5\r\nhello\r\nA;q\r\n0123456789\r\n0\r\nX: 1\r\n\r\n"), .chunked, cuts: []).data == bytes("hello0123456789"))
    }

    @Test(arguments: [
        "\r\n", "x\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "-5\r\n", "+5\r\nhello",
        "5\nhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhello\r\r\n", "5\rXhello", "0\r\n\n", "0\r\n\rX",
        "8000000000000000\r\n", "FFFFFFFFFFFFFFFF\r\n", "00000000000000001\r\nx\r\n0\r\n\r\n", "5;\r\nhello\r\n0\r\n\r\n", "5;a=\r\nhello",
        "5;a=b\nhello", "5;a=\"\u{1}\"\r\nhello", "5;a b\r\nhello", "5;\(String(repeating: "a", count: 256))\r\nhello",
        "5;\(String(repeating: "a", count: 200))\r\nhello\r\n5;\(String(repeating: "a", count: 100))\r\nhello",
        "0\r\nX : 1\r\n\r\n", "0\r\n X: 1\r\n\r\n", "0\r\nX: \u{0}\r\n\r\n", "0\r\nX: 1\n\r\n", "0\r\n: 1\r\n\r\n",
        "0\r\nX: \(String(repeating: "a", count: 8192))\r\n\r\n",
    ]) func refusesDoubtfulChunks(text: String) {
        let input = bytes(text)
        let whole = body(input, .chunked, cuts: [])
        #expect(whole.fault != nil)
        let single = body(input, .chunked, cuts: Array(0..<input.count))
        #expect(single.fault == whole.fault)
        #expect(single.data == whole.data)
    }

    @Test func lengthAndClose() {
        let input = bytes("hello rest")
        let five = body(input, .length(5), cuts: [2])
        #expect(five == Body(data: bytes("hello"), complete: true, consumed: 5))
        #expect(body(input, .none, cuts: []) == Body(data: [], complete: true, consumed: 0))
        #expect(body([], .length(0), cuts: []).complete)
        let short = body(input, .length(11), cuts: [3])
        #expect(!short.complete && short.data == input)
        let close = body(input, .untilClose, cuts: [3])
        #expect(!close.complete && close.data == input)
        #expect(BodyDecoder(.untilClose).endsAtClose)
        #expect(!BodyDecoder(.chunked).endsAtClose)
    }
}
