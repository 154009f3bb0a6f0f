/// Why a body could not be unpacked.
public enum InflateError: Error, Sendable, Equatable, CustomStringConvertible {
    /// The encoding's name.
    case unsupported(String)
    case malformed(String)
    /// More than `bytesMax` came out of a layer.
    case tooLarge

    public var description: String {
        switch self {
        case .unsupported(let name): "Content-Encoding \"\(name)\" is not supported"
        case .malformed(let name): "not valid \(name) data"
        case .tooLarge: "too large when unpacked"
        }
    }
}

/// Unpacks bodies as they come: gzip, deflate (zlib and raw), zstd, stacked in any order.
public final class Inflate {
    /// A header line holds thousands of names, and each could be a pass over the largest body.
    static let encodingsMax = 4

    /// From the first to be taken off to the last, each with the bytes that wait for it and what it has given.
    private var layers: [(coding: any Coding, input: [UInt8], offset: Int, given: Int)]
    private let bytesMax: Int
    /// Bytes that one call may still move through the layers: a little packed data can be work without end, and give nothing.
    private var effort = 0
    private static let effortMax = 1 << 20

    /// `encodings` as `Content-Encoding` lists them: the last one was applied last and is taken off first. No layer may give more than
    /// `bytesMax`.
    public init(_ encodings: [String], bytesMax: Int = .max) throws(InflateError) {
        guard encodings.count <= Self.encodingsMax else { throw .unsupported("more than \(Self.encodingsMax) encodings") }
        self.bytesMax = bytesMax
        layers = []
        for name in encodings.reversed() {
            let coding: any Coding
            switch name.lowercased() {
            case "identity": continue
            case "gzip", "x-gzip": coding = ZlibCoding(name, isGzip: true)
            case "deflate": coding = ZlibCoding(name, isGzip: false)
            case "zstd": coding = try ZstdCoding()
            default: throw .unsupported(name)
            }
            layers.append((coding, [], 0, 0))
        }
        if layers.isEmpty { layers.append((IdentityCoding(), [], 0, 0)) }
    }

    /// Takes the next packed bytes.
    public func feed(_ bytes: [UInt8]) {
        if layers[0].offset == layers[0].input.count {
            (layers[0].input, layers[0].offset) = (bytes, 0)
        } else {
            layers[0].input += bytes
        }
    }

    /// The last call gave nothing because it had worked long enough, not because there is nothing more: call again, after a rest.
    public private(set) var isTired = false

    /// Gives up to a buffer of unpacked bytes; 0 when more must be fed first, or it `isTired`.
    public func next(into buffer: UnsafeMutableRawBufferPointer) throws(InflateError) -> Int {
        (effort, isTired) = (Self.effortMax, false)
        return try pull(layers.count - 1, into: buffer)
    }

    /// Every layer is at an end of its data.
    public var isComplete: Bool { layers.allSatisfy { $0.coding.isComplete && $0.offset == $0.input.count } }

    private func pull(_ i: Int, into buffer: UnsafeMutableRawBufferPointer) throws(InflateError) -> Int {
        while true {
            let (taken, made) = try step(i, into: buffer)
            layers[i].offset += taken
            layers[i].given += made
            guard layers[i].given <= bytesMax else { throw .tooLarge }
            if made > 0 { return made }
            effort -= taken + 64
            if effort <= 0 {
                isTired = true
                return 0
            }
            if layers[i].offset < layers[i].input.count, taken > 0 { continue }
            guard i > 0 else { return 0 }
            let more = UnsafeMutableRawBufferPointer.allocate(byteCount: buffer.count, alignment: 16)
            defer { more.deallocate() }
            let count = try pull(i - 1, into: more)
            if count == 0 { return 0 }
            (layers[i].input, layers[i].offset) = (Array(layers[i].input[layers[i].offset...]) + more[..<count], 0)
        }
    }

    private func step(_ i: Int, into buffer: UnsafeMutableRawBufferPointer) throws(InflateError) -> (taken: Int, made: Int) {
        let (coding, offset) = (layers[i].coding, layers[i].offset)
        let result = layers[i].input.withUnsafeBytes { raw in
            Result { () throws(InflateError) in try coding.step(UnsafeRawBufferPointer(rebasing: raw[offset...]), buffer) }
        }
        return try result.get()
    }

    /// A whole body at once.
    public static func decode(_ body: [UInt8], encodings: [String], bytesMax: Int) throws(InflateError) -> [UInt8] {
        let inflate = try Inflate(encodings, bytesMax: bytesMax)
        inflate.feed(body)
        var out: [UInt8] = []
        let piece = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 16)
        defer { piece.deallocate() }
        while true {
            let count = try inflate.next(into: piece)
            if count == 0, !inflate.isTired { break }
            out += piece[..<count]
        }
        if let open = inflate.layers.first(where: { !$0.coding.isComplete || $0.offset < $0.input.count }) {
            throw .malformed(open.coding.name)
        }
        return out
    }
}
