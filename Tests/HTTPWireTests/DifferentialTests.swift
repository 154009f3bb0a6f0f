import NIOCore
import NIOEmbedded
import NIOHTTP1
import Testing

@testable import HTTPWire

/// Goal: whatever this parser takes, llhttp (which Node.js and SwiftNIO trust) reads in the same way. We may refuse more.
@Suite struct DifferentialTests {
    struct Reading: Equatable {
        var method = ""
        var target = ""
        var fields: [String] = []
        var body: [UInt8] = []
        var complete = false
    }

    /// The first request, as llhttp reads it; nil when it refuses.
    static func llhttp(_ input: [UInt8]) -> Reading? {
        let channel = EmbeddedChannel()
        defer { _ = try? channel.finish(acceptAlreadyClosed: true) }  // The test is over for this channel.
        var reading = Reading()
        do {
            let decoder = ByteToMessageHandler(HTTPRequestDecoder(leftOverBytesStrategy: .dropBytes))
            try channel.pipeline.syncOperations.addHandler(decoder)
            try channel.writeInbound(channel.allocator.buffer(bytes: input))
        } catch { reading.method = "" }
        var parts: [HTTPServerRequestPart] = []
        while let part = try? channel.readInbound(as: HTTPServerRequestPart.self) { parts.append(part) }  // Nothing there: the end.
        for part in parts {
            switch part {
            case .head(let head):
                if reading.complete { return reading }
                reading.method = head.method.rawValue
                reading.target = head.uri
                // NIO leaves white space at a value's end, which isn't part of it (RFC 9112 §5).
                reading.fields = head.headers.map { field in
                    let value = field.value.utf8.reversed().drop { $0 == 0x20 || $0 == 0x09 }.reversed()
                    return "\(field.name): \(String(decoding: Array(value), as: UTF8.self))"
                }
            case .body(let buffer): if !reading.complete { reading.body += Array(buffer.readableBytesView) }
            case .end:
                reading.complete = true
                return reading
            }
        }
        return reading.method.isEmpty ? nil : reading
    }

    /// As we read it; nil when we refuse it or it isn't whole.
    static func ours(_ input: [UInt8]) -> Reading? {
        guard case .parsed(let head) = request(input, prefixes: [input.count]) else { return nil }
        let rest = Array(input[head.consumed...])
        let decoded = body(rest, head.framing, cuts: [])
        guard decoded.complete else { return nil }
        return Reading(method: head.method, target: head.target, fields: head.fields, body: decoded.data, complete: true)
    }

    static func compare(_ input: [UInt8], _ note: String) -> Bool {
        guard let we = ours(input) else { return false }
        // llhttp has a closed list of methods.
        if case .other = Method(we.method) { return false }
        // Escaped, so that a failure shows the bytes.
        let shown = String(decoding: input, as: UTF8.self).debugDescription
        guard let they = llhttp(input) else {
            Issue.record("we take what llhttp refuses (\(note)): \(shown)")
            return true
        }
        #expect(we.method == they.method, "\(note): \(shown)")
        let absolute = they.target.hasPrefix("h") || they.target.hasPrefix("H")
        #expect(
            absolute ? they.target.hasSuffix(we.target) || we.target.hasPrefix("/?") || we.target == "/" : we.target == they.target,
            "\(note): \(shown)")
        #expect(we.fields == they.fields, "\(note): \(shown)")
        #expect(we.body == they.body, "\(note): \(shown)")
        #expect(they.complete, "\(note): \(shown)")
        return true
    }

    static let corpus: [[UInt8]] =
        (HeadTests.accepted + HeadTests.refused.map(\.1).filter { $0.utf8.count < 1000 } + [
            "POST /v1/responses HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c=\"d\";e\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n",
            "PUT /a%20b?c HTTP/1.1\r\nHost: a:1\r\nConnection: keep-alive, x-y\r\nX-Y: 1\r\nUser-Agent: codex/1 (x; y)\r\nContent-Length: 0\r\n\r\n",
        ]).map(bytes)

    @Test func agreesOnTheCorpus() {
        var compared = 0
        for (i, input) in Self.corpus.enumerated() where Self.compare(input, "corpus \(i)") { compared += 1 }
        #expect(compared >= 10)
    }

    @Test(arguments: 0..<8) func agreesOnMutations(round: Int) {
        let seed = UInt64(round) &* 7919 &+ 1
        var random = Seeded(state: seed)
        let alphabet: [UInt8] = bytes("\r\n\t :;,=\"0159aAfFxX/\\?#*HTP.") + [0, 1, 0x7F, 0x80, 0xFF]
        let splices = [
            "\r\n", "\r\n\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n", ";x=y", "Host: a\r\n", " ",
        ].map(bytes)
        var compared = 0
        for n in 0..<3000 {
            var input = Self.corpus.randomElement(using: &random)!
            for _ in 0...Int.random(in: 0...2, using: &random) where !input.isEmpty {
                let at = Int.random(in: 0..<input.count, using: &random)
                switch Int.random(in: 0..<5, using: &random) {
                case 0: input[at] = alphabet.randomElement(using: &random)!
                case 1: input.remove(at: at)
                case 2: input.insert(alphabet.randomElement(using: &random)!, at: at)
                case 3: input.insert(contentsOf: splices.randomElement(using: &random)!, at: at)
                default: input[at] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                }
            }
            if Self.compare(input, "seed \(seed), input \(n)") { compared += 1 }
        }
        #expect(compared > 100, "too few inputs were taken to say anything")
    }
}
