internal import CZlib
internal import CZstd

/// One content coding being taken off.
protocol Coding: AnyObject {
    var name: String { get }
    /// What came so far is whole.
    var isComplete: Bool { get }
    /// Takes from `input` and gives into `output`. Nothing taken and nothing made: it needs more.
    func step(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) throws(InflateError) -> (taken: Int, made: Int)
}

final class IdentityCoding: Coding {
    let name = "identity"
    let isComplete = true
    func step(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) -> (taken: Int, made: Int) {
        let count = min(input.count, output.count)
        output.copyMemory(from: UnsafeRawBufferPointer(rebasing: input[..<count]))
        return (count, count)
    }
}

final class ZlibCoding: Coding {
    let name: String
    private let isGzip: Bool
    /// At a fixed address: zlib points back to it. Nil before the first byte.
    private var stream: UnsafeMutablePointer<z_stream>?
    private(set) var isComplete = false

    init(_ name: String, isGzip: Bool) { (self.name, self.isGzip) = (name, isGzip) }

    deinit {
        guard let stream else { return }
        inflateEnd(stream)
        stream.deallocate()
    }

    func step(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) throws(InflateError) -> (taken: Int, made: Int) {
        if stream == nil {
            guard let first = input.first else { return (0, 0) }
            try open(first)
        }
        guard let stream else { return (0, 0) }
        if isComplete {
            // Several gzip members in a row are one body (RFC 1952 §2.2).
            if input.isEmpty { return (0, 0) }
            guard isGzip, inflateReset(stream) == Z_OK else { throw .malformed(name) }
            isComplete = false
        }
        let (given, room) = (min(input.count, Int(UInt32.max)), min(output.count, Int(UInt32.max)))
        stream.pointee.next_in = UnsafeMutablePointer(mutating: input.baseAddress?.assumingMemoryBound(to: UInt8.self))
        stream.pointee.avail_in = UInt32(given)
        stream.pointee.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        stream.pointee.avail_out = UInt32(room)
        let code = inflate(stream, Z_NO_FLUSH)
        switch code {
        case Z_OK, Z_BUF_ERROR: break
        case Z_STREAM_END: isComplete = true
        default: throw .malformed(name)
        }
        return (given - Int(stream.pointee.avail_in), room - Int(stream.pointee.avail_out))
    }

    private func open(_ first: UInt8) throws(InflateError) {
        // RFC 9110 §8.4.1.2 means zlib's format by "deflate"; some send the raw stream. The first byte tells: low nibble 8 is zlib.
        let windowBits: Int32 = isGzip ? 15 + 16 : first & 0x0F == 8 ? 15 : -15
        let made = UnsafeMutablePointer<z_stream>.allocate(capacity: 1)
        made.initialize(to: z_stream())
        guard inflateInit2_(made, windowBits, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
            made.deallocate()
            throw .malformed(name)
        }
        stream = made
    }
}

final class ZstdCoding: Coding {
    /// A frame that needs a larger window (2^27 = 128 MiB) is refused.
    static let windowLogMax: Int32 = 27

    let name = "zstd"
    private let stream: OpaquePointer
    private(set) var isComplete = false

    init() throws(InflateError) {
        guard let made = ZSTD_createDStream() else { throw .malformed("zstd") }
        stream = made
        ZSTD_DCtx_setParameter(stream, ZSTD_d_windowLogMax, Self.windowLogMax)
    }

    deinit { ZSTD_freeDStream(stream) }

    func step(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) throws(InflateError) -> (taken: Int, made: Int) {
        if isComplete, input.isEmpty { return (0, 0) }
        var source = ZSTD_inBuffer(src: input.baseAddress, size: input.count, pos: 0)
        var target = ZSTD_outBuffer(dst: output.baseAddress, size: output.count, pos: 0)
        // 0 at the end of a frame whose bytes have all been given.
        let hint = ZSTD_decompressStream(stream, &target, &source)
        guard ZSTD_isError(hint) == 0 else { throw .malformed(name) }
        isComplete = hint == 0
        return (source.pos, target.pos)
    }
}
