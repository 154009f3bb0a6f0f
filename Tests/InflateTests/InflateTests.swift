import Inflate
import Testing

func hex(_ text: String) -> [UInt8] {
    let digits = Array(text.utf8).map { $0 < 0x3A ? $0 - 0x30 : $0 - 0x61 + 10 }
    return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
}

/// Goal: a body comes out as it went in, or not at all, and never larger than allowed.
@Suite struct InflateTests {
    // Made by Python's gzip and zlib and by zstd 1.5; the zeros are 200,000, the windows frames of one raw block by hand.
    static let gzip = hex("1f8b0800000000000203cb48cdc9c957c8402233f3d272124b52b9002321638b1a000000")
    static let zlib = hex("789ccb48cdc9c957c8402233f3d272124b52b9008431098a")
    static let raw = hex("cb48cdc9c957c8402233f3d272124b52b900")
    static let zstd = hex("28b52ffd0458a500007068656c6c6f20696e666c6174650a0100e14a11ad581102")
    static let gzipZeros = hex(
        "1f8b0800000000000203edc13101000000c2a0f54f6d067fa00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000080d7007b58e05c400d0300"
    )
    static let zstdZeros = hex("28b52ffd04684c000008000100fcff391002036a0800c4e97470")
    static let zstdWindow27 = hex("28b52ffd0088d1000068656c6c6f2068656c6c6f2068656c6c6f20696e666c6174650a")
    static let zstdWindow28 = hex("28b52ffd0090d1000068656c6c6f2068656c6c6f2068656c6c6f20696e666c6174650a")
    static let gzipThenZstd = hex("28b52ffd04582101001f8b0800000000000203cb48cdc9c957c8402233f3d272124b52b9002321638b1a000000287db514")
    static let plain = Array("hello hello hello inflate\n".utf8)

    struct Case: Sendable, CustomTestStringConvertible {
        var encodings: [String]
        var body: [UInt8]
        var testDescription: String { encodings.joined(separator: ", ") }
    }
    static let cases = [
        Case(encodings: [], body: plain), Case(encodings: ["identity"], body: plain), Case(encodings: ["gzip"], body: gzip),
        Case(encodings: ["x-gzip"], body: gzip), Case(encodings: ["GZip"], body: gzip), Case(encodings: ["deflate"], body: zlib),
        Case(encodings: ["deflate"], body: raw), Case(encodings: ["zstd"], body: zstd), Case(encodings: ["zstd"], body: zstdWindow27),
        Case(encodings: ["gzip", "zstd"], body: gzipThenZstd), Case(encodings: ["gzip", "identity", "zstd"], body: gzipThenZstd),
    ]

    @Test(arguments: cases) func decodes(_ c: Case) throws {
        #expect(try Inflate.decode(c.body, encodings: c.encodings, bytesMax: 1000) == Self.plain)
        // The limit is exact, for the result and for what lies between the layers.
        let most = max(Self.plain.count, c.encodings.count > 1 ? Self.gzip.count : 0)
        #expect(try Inflate.decode(c.body, encodings: c.encodings, bytesMax: most) == Self.plain)
        if c.encodings.contains(where: { $0 != "identity" }) {
            #expect(throws: InflateError.tooLarge) { try Inflate.decode(c.body, encodings: c.encodings, bytesMax: most - 1) }
        }
    }

    @Test(arguments: cases.filter { !$0.encodings.isEmpty && $0.encodings != ["identity"] }) func aBodyCutShortIsMalformed(_ c: Case) {
        for cut in 0..<c.body.count {
            #expect(throws: InflateError.self, "cut at \(cut)") {
                try Inflate.decode(Array(c.body[..<cut]), encodings: c.encodings, bytesMax: 1000)
            }
        }
    }

    @Test(arguments: cases.filter { !$0.encodings.isEmpty && $0.encodings != ["identity"] }) func noBrokenByteTraps(_ c: Case) {
        for at in 0..<c.body.count {
            for bit in 0..<8 {
                var body = c.body
                body[at] ^= 1 << UInt8(bit)
                do throws(InflateError) {
                    #expect(try Inflate.decode(body, encodings: c.encodings, bytesMax: 1000).count <= 1000)
                } catch { #expect(error != .unsupported("")) }
            }
        }
    }

    @Test func membersAndFramesInARowAreOneBody() throws {
        #expect(try Inflate.decode(Self.gzip + Self.gzip, encodings: ["gzip"], bytesMax: 1000) == Self.plain + Self.plain)
        #expect(try Inflate.decode(Self.zstd + Self.zstd, encodings: ["zstd"], bytesMax: 1000) == Self.plain + Self.plain)
        #expect(throws: InflateError.malformed("gzip")) { try Inflate.decode(Self.gzip + [1], encodings: ["gzip"], bytesMax: 1000) }
        #expect(throws: InflateError.malformed("deflate")) { try Inflate.decode(Self.zlib + [1], encodings: ["deflate"], bytesMax: 1000) }
        #expect(throws: InflateError.malformed("zstd")) { try Inflate.decode(Self.zstd + [1], encodings: ["zstd"], bytesMax: 1000) }
    }

    @Test func bombsAreDefused() throws {
        #expect(try Inflate.decode(Self.gzipZeros, encodings: ["gzip"], bytesMax: 200_000).count == 200_000)
        #expect(try Inflate.decode(Self.zstdZeros, encodings: ["zstd"], bytesMax: 200_000).count == 200_000)
        #expect(throws: InflateError.tooLarge) { try Inflate.decode(Self.gzipZeros, encodings: ["gzip"], bytesMax: 199_999) }
        #expect(throws: InflateError.tooLarge) { try Inflate.decode(Self.zstdZeros, encodings: ["zstd"], bytesMax: 199_999) }
        // A window of 256 MiB would be that much memory for 40 bytes of body.
        #expect(throws: InflateError.malformed("zstd")) { try Inflate.decode(Self.zstdWindow28, encodings: ["zstd"], bytesMax: 1000) }
        // A long list would be work without end.
        let many = [String](repeating: "identity", count: 1000)
        #expect(throws: InflateError.unsupported("more than 4 encodings")) {
            try Inflate.decode(Self.plain, encodings: many, bytesMax: 1000)
        }
    }

    @Test func namesWhatItCannot() {
        #expect(throws: InflateError.unsupported("br")) { try Inflate.decode(Self.plain, encodings: ["br"], bytesMax: 1000) }
        #expect(throws: InflateError.malformed("gzip")) { try Inflate.decode(Self.plain, encodings: ["gzip"], bytesMax: 1000) }
    }
}

extension InflateTests {
    /// The same bytes in any pieces and through any room give the same.
    @Test(arguments: cases + [Case(encodings: ["gzip"], body: gzipZeros), Case(encodings: ["zstd"], body: zstdZeros)])
    func inPieces(_ c: Case) throws {
        let whole = try Inflate.decode(c.body, encodings: c.encodings, bytesMax: 1 << 20)
        for (piece, room) in [(1, 1), (1, 1000), (3, 7), (c.body.count, 1), (c.body.count, 4096)] where whole.count < 1000 || room > 1 {
            let inflate = try Inflate(c.encodings)
            var out: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: room)
            for start in stride(from: 0, to: c.body.count, by: piece) {
                if start > 0, !c.encodings.allSatisfy({ $0 == "identity" }) { #expect(!inflate.isComplete) }
                inflate.feed(Array(c.body[start..<min(start + piece, c.body.count)]))
                while true {
                    let count = try buffer.withUnsafeMutableBytes { try inflate.next(into: $0) }
                    if count == 0 { break }
                    out += buffer[..<count]
                }
            }
            #expect(out == whole && inflate.isComplete, "pieces of \(piece), room \(room)")
        }
    }
}
