import HTTPWire
import Testing
import Vocabulary

@Suite struct ProxyHeaderTests {
    private static func v2(_ command: UInt8, _ family: UInt8, _ payload: [UInt8]) -> [UInt8] {
        [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, command, family]
            + [UInt8(payload.count >> 8), UInt8(payload.count & 0xFF)] + payload
    }
    private static let v4: [UInt8] = [192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x01, 0xBB]
    private static let v6: [UInt8] =
        [0x20, 0x01, 0x0D, 0xB8] + Array(repeating: 0, count: 11) + [1] + Array(repeating: 0, count: 15)
        + [2, 0x00, 0x50, 0x01, 0xBB]
    private static let tlv: [UInt8] = [0x04, 0, 3, 1, 2, 3]
    private static func client(_ text: String, _ port: UInt16) -> ProxyHeader { .client(IPAddress(text)!, port: port) }

    static let good: [(bytes: [UInt8], header: ProxyHeader)] = [
        (Array("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".utf8), client("192.0.2.7", 56324)),
        (Array("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".utf8), client("255.255.255.255", 65535)),
        (Array("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".utf8), client("0.0.0.0", 0)),
        (Array("PROXY TCP6 2001:db8::1 2001:db8::2 80 443\r\n".utf8), client("2001:db8::1", 80)),
        (Array("PROXY TCP6 ::ffff:192.0.2.7 ::1 80 443\r\n".utf8), client("192.0.2.7", 80)),
        (Array("PROXY UNKNOWN\r\n".utf8), .unknown),
        (Array(("PROXY UNKNOWN " + String(repeating: "f", count: 91) + "\r\n").utf8), .unknown),
        (v2(0x21, 0x11, v4), client("192.0.2.7", 56324)), (v2(0x21, 0x11, v4 + tlv), client("192.0.2.7", 56324)),
        (v2(0x21, 0x21, v6), client("2001:db8::1", 80)), (v2(0x21, 0x21, v6 + tlv + tlv), client("2001:db8::1", 80)),
        (v2(0x21, 0x11, v4 + Array(repeating: 0xAA, count: 8192 - 28)), client("192.0.2.7", 56324)),
        (v2(0x21, 0x31, Array(repeating: 0x2F, count: 216)), .unknown), (v2(0x21, 0x00, []), .unknown), (v2(0x21, 0x00, tlv), .unknown),
        (v2(0x20, 0x00, []), .local), (v2(0x20, 0x11, v4), .local), (v2(0x20, 0xFF, tlv), .local),
    ]
    static let bad: [[UInt8]] =
        [
            "GET / HTTP/1.1\r\n", "proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n", "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n", "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\rX",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n", "PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n", "PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n", "PROXY TCP6 192.0.2.7 ::1 1 2\r\n",
            "PROXY TCP6 ::1::2 ::1 1 2\r\n", "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 -1 2\r\n", "PROXY TCP4 192.0.2.7 198.51.100.1 1 \r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY UNKNOWNX\r\n", "PROXY \r\n", "PROXY UNKNOWN " + String(repeating: "f", count: 92) + "\r\n",
            "PROXY TCP4 " + String(repeating: "1", count: 200), "\u{0}", "\r\n\r\nX",
        ].map { Array($0.utf8) } + [
            v2(0x11, 0x11, v4), v2(0x22, 0x11, v4), v2(0x21, 0x12, v4), v2(0x21, 0x10, v4), v2(0x21, 0x41, v4), v2(0x21, 0x01, v4),
            v2(0x21, 0x11, Array(v4.dropLast())), v2(0x21, 0x21, Array(v6.dropLast())), v2(0x21, 0x21, v4), v2(0x21, 0x31, v4),
            v2(0x21, 0x11, v4 + Array(repeating: 0, count: 8193 - 28)), v2(0x20, 0x00, Array(repeating: 0, count: 65535)),
        ]

    /// Gives the pieces in order; what is consumed of all of them together.
    private func read(_ pieces: [ArraySlice<UInt8>]) -> ProxyHeaderReader.Outcome {
        var reader = ProxyHeaderReader()
        var before = 0
        for piece in pieces {
            let outcome = Array(piece).withUnsafeBytes { reader.take($0.bytes) }
            switch outcome {
            case .more: before += piece.count
            case .header(let header, let consumed): return .header(header, consumed: before + consumed)
            case .wrong: return outcome
            }
        }
        return .more
    }

    @Test("Headers of both versions, cut at every byte and in single bytes, with a request right behind them", arguments: good.indices)
    func everyCut(_ i: Int) {
        let (bytes, header) = Self.good[i]
        let all = bytes + Array("GET / HTTP/1.1\r\n\r\n".utf8)
        let expected = ProxyHeaderReader.Outcome.header(header, consumed: bytes.count)
        for cut in 0...min(all.count, 600) { #expect(read([all[..<cut], all[cut...]]) == expected, "cut at \(cut)") }
        #expect(read(all.indices.map { all[$0...$0] }) == expected)
        for count in 0..<min(bytes.count, 600) { #expect(read([bytes[..<count]]) == .more, "\(count) bytes are no header") }
    }

    @Test("What is no header is wrong, in one piece and byte by byte", arguments: bad.indices)
    func wrong(_ i: Int) {
        let bytes = Self.bad[i]
        func isWrong(_ outcome: ProxyHeaderReader.Outcome) -> Bool { if case .wrong = outcome { true } else { false } }
        #expect(isWrong(read([bytes[...]])), "\(String(decoding: bytes.prefix(80), as: UTF8.self))")
        #expect(isWrong(read(bytes.indices.map { bytes[$0...$0] })))
    }

    @Test("The first byte that can't belong to a header ends it: nobody waits for more")
    func earliest() {
        for (text, count) in [("PROXX", 5), ("\r\n\r\n\u{1}", 5), ("H", 1)] {
            let bytes = Array(text.utf8)
            #expect(read([bytes[..<(count - 1)]]) == .more)
            #expect(read([bytes[...]]) == .wrong("it does not begin with a PROXY header"))
        }
    }

    @Test("Hostile bytes: each byte of good headers changed to each value, and noise; nothing traps, and consumed bytes are there")
    func hostile() {
        for (bytes, _) in Self.good where bytes.count < 300 {
            for i in bytes.indices {
                for value in [0, 0x0A, 0x0D, 0x20, 0x31, 0x3A, 0x7F, 0x80, 0xFF] as [UInt8] {
                    var changed = bytes
                    changed[i] = value
                    if case .header(_, let consumed) = read([changed[...]]) { #expect((8...changed.count).contains(consumed)) }
                }
            }
        }
        var random = SystemRandomNumberGenerator()
        for _ in 0..<20_000 {
            let prefix = [[], Array("PROXY ".utf8), Array(Self.v2(0x21, 0x11, []).prefix(13))].randomElement(using: &random)!
            let bytes = prefix + (0..<Int.random(in: 0...60, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
            if case .header(_, let consumed) = read([bytes[...]]) { #expect((8...bytes.count).contains(consumed), "\(bytes)") }
        }
    }
}
