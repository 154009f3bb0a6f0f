internal import CZlib
internal import CZstd

/// Why a body could not be unpacked.
public enum InflateError: Error, Sendable, Equatable {
    /// The encoding's name.
    case unsupported(String)
    case malformed(String)
    /// More than `bytesMax` came out of a layer.
    case tooLarge
}

/// Unpacks request bodies: gzip, deflate (zlib and raw), zstd, stacked in any order. Every layer's output is bounded.
public enum Inflate {
    /// A zstd frame that needs a larger window (2^27 = 128 MiB) is refused.
    static let zstdWindowLogMax: Int32 = 27
    /// A header line holds thousands of names, and each could be a pass over the largest body.
    static let encodingsMax = 4

    /// `encodings` as `Content-Encoding` lists them: the last one was applied last and is taken off first.
    public static func decode(_ body: [UInt8], encodings: [String], bytesMax: Int) throws(InflateError) -> [UInt8] {
        guard encodings.count <= encodingsMax else { throw .unsupported("more than \(encodingsMax) encodings") }
        var body = body
        for encoding in encodings.reversed() {
            switch encoding.lowercased() {
            case "identity": break
            case "gzip", "x-gzip": body = try zlib(body, encoding, windowBits: 15 + 16, bytesMax)
            // RFC 9110 §8.4.1.2 means zlib's format; some send the raw stream. The first byte tells: low nibble 8 is zlib.
            case "deflate":
                body = try zlib(body, encoding, windowBits: (body.first ?? 0) & 0x0F == 8 ? 15 : -15, bytesMax)
            case "zstd": body = try zstd(body, bytesMax)
            default: throw .unsupported(encoding)
            }
        }
        return body
    }

    private static func zlib(_ body: [UInt8], _ name: String, windowBits: Int32, _ bytesMax: Int) throws(InflateError) -> [UInt8] {
        var z = z_stream()
        guard inflateInit2_(&z, windowBits, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else { throw .malformed(name) }
        defer { inflateEnd(&z) }
        var out: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 64 * 1024)
        var failure: InflateError?
        body.withUnsafeBytes { raw in
            z.next_in = UnsafeMutablePointer(mutating: raw.baseAddress?.assumingMemoryBound(to: UInt8.self))
            z.avail_in = UInt32(raw.count)
            while true {
                let (code, made) = chunk.withUnsafeMutableBytes { buffer -> (Int32, Int) in
                    z.next_out = buffer.baseAddress!.assumingMemoryBound(to: UInt8.self)
                    z.avail_out = UInt32(buffer.count)
                    let code = inflate(&z, Z_NO_FLUSH)
                    return (code, buffer.count - Int(z.avail_out))
                }
                if out.count + made > bytesMax {
                    failure = .tooLarge
                    return
                }
                out += chunk[..<made]
                switch code {
                case Z_OK where made > 0 || z.avail_in > 0: continue
                case Z_STREAM_END:
                    if z.avail_in == 0 { return }
                    // Several gzip members in a row are one body (RFC 1952 §2.2).
                    if windowBits > 15, inflateReset(&z) == Z_OK { continue }
                    failure = .malformed(name)
                    return
                default:
                    failure = .malformed(name)  // broken, or cut short
                    return
                }
            }
        }
        if let failure { throw failure }
        return out
    }

    private static func zstd(_ body: [UInt8], _ bytesMax: Int) throws(InflateError) -> [UInt8] {
        guard let stream = ZSTD_createDStream() else { throw .malformed("zstd") }
        defer { ZSTD_freeDStream(stream) }
        ZSTD_DCtx_setParameter(stream, ZSTD_d_windowLogMax, zstdWindowLogMax)
        var out: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: ZSTD_DStreamOutSize())
        var failure: InflateError?
        body.withUnsafeBytes { raw in
            var input = ZSTD_inBuffer(src: raw.baseAddress, size: raw.count, pos: 0)
            var hint = 1
            while input.pos < input.size {
                let made = chunk.withUnsafeMutableBytes { buffer -> Int in
                    var output = ZSTD_outBuffer(dst: buffer.baseAddress, size: buffer.count, pos: 0)
                    hint = ZSTD_decompressStream(stream, &output, &input)
                    return output.pos
                }
                guard ZSTD_isError(hint) == 0 else {
                    failure = .malformed("zstd")
                    return
                }
                if out.count + made > bytesMax {
                    failure = .tooLarge
                    return
                }
                out += chunk[..<made]
            }
            // What is decoded but not yet handed out; 0 means that the last frame is complete.
            while hint != 0 {
                let (code, made) = chunk.withUnsafeMutableBytes { buffer -> (Int, Int) in
                    var output = ZSTD_outBuffer(dst: buffer.baseAddress, size: buffer.count, pos: 0)
                    let code = ZSTD_decompressStream(stream, &output, &input)
                    return (code, output.pos)
                }
                if ZSTD_isError(code) != 0 || made == 0 && code != 0 {
                    failure = .malformed("zstd")
                    return
                }
                if out.count + made > bytesMax {
                    failure = .tooLarge
                    return
                }
                out += chunk[..<made]
                hint = code
            }
        }
        if let failure { throw failure }
        return out
    }
}
