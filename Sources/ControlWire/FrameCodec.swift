internal import Bytes
internal import SwiftProtobuf
public import Vocabulary

/// The version of the language between processes; carried in `Hello`.
public let protocolVersion: UInt32 = 1

extension Hello {
    /// The first word of a child: who it is, and what it speaks.
    public init(role: String, slot: Int = 0, generation: UInt64, pid: Int32) {
        self.init()
        (self.protocol, self.role, self.slot, self.generation, self.pid) = (protocolVersion, role, UInt32(slot), generation, Int64(pid))
    }
}

/// Why a connection between processes can't go on.
public enum FrameError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The peer announced more than `Limits.frameBytesMax`: it is no codex-lb, or it is broken.
    case tooLarge(bytes: Int)
    /// The bytes are no Frame.
    case undecodable(bytes: Int)
    /// A well-formed frame that must not come here, now.
    case unexpected(String)

    public var description: String {
        switch self {
        case .tooLarge(let n):
            "a frame of \(n) bytes (at most \(Limits.frameBytesMax)); the peer does not speak codex-lb's protocol \(protocolVersion)"
        case .undecodable(let n):
            "a frame of \(n) bytes that can't be decoded; the peer does not speak codex-lb's protocol \(protocolVersion)"
        case .unexpected(let what): "unexpected \(what)"
        }
    }
}

/// Frames as bytes: a 4-byte big-endian length, then one serialised `Frame`.
public enum FrameCodec {
    static let headBytes = 4

    /// Appends the frame to `out`.
    public static func encode(_ frame: Frame, into out: inout [UInt8]) {
        let body = serialized(frame)
        let n = UInt32(body.count)
        out.reserveCapacity(out.count + headBytes + body.count)
        out += [
            UInt8(truncatingIfNeeded: n >> 24), UInt8(truncatingIfNeeded: n >> 16), UInt8(truncatingIfNeeded: n >> 8),
            UInt8(truncatingIfNeeded: n),
        ]
        out += body
    }

    public static func bytes(of batch: UsageBatch) -> [UInt8] { serialized(batch) }
    public static func bytes(of snapshot: SnapshotMessage) -> [UInt8] { serialized(snapshot) }
    public static func bytes(of succession: Succession) -> [UInt8] { serialized(succession) }

    private static func serialized(_ message: some Message) -> [UInt8] {
        guard let bytes: [UInt8] = try? message.serializedBytes() else {  // cannot fail
            preconditionFailure("a proto3 message without required fields always serialises")
        }
        return bytes
    }

    /// The frame alone.
    public static func encode(_ frame: Frame) -> [UInt8] {
        var out: [UInt8] = []
        encode(frame, into: &out)
        return out
    }
}

extension Succession {
    public init(_ bytes: [UInt8]) throws(FrameError) {
        do { try self.init(serializedBytes: bytes) } catch { throw .undecodable(bytes: bytes.count) }
    }
}

extension Frame {
    /// A frame around one body: `Frame(.hello(…))`.
    public init(_ body: OneOf_Body, correlation: UInt64 = 0) {
        self.init()
        self.body = body
        self.correlation = correlation
    }

    public init(body: RawSpan) throws(FrameError) {
        do { try self.init(serializedBytes: body.array(0..<body.byteCount)) } catch { throw .undecodable(bytes: body.byteCount) }
    }
}

/// Cuts a stream of bytes, in pieces of any size, into frames.
public struct FrameReader {
    private let frameBytesMax: Int
    private var pending: [UInt8] = []

    public init(frameBytesMax: Int = Limits.frameBytesMax) { self.frameBytesMax = frameBytesMax }

    /// Bytes of a frame that is not complete.
    public var pendingBytes: Int { pending.count }
    /// The same for another program, which goes on with them.
    public var unfinished: [UInt8] {
        get { pending }
        set { pending = newValue }
    }

    /// Takes bytes and hands out every frame they complete, in order. After an error the connection has to be closed.
    public mutating func feed(_ bytes: RawSpan, _ frame: (Frame) throws(FrameError) -> Void) throws(FrameError) {
        try feed(bodiesOf: bytes) { body throws(FrameError) in try frame(Frame(body: body)) }
    }

    /// The same with the bytes of each frame.
    public mutating func feed(bodiesOf bytes: RawSpan, _ body: (RawSpan) throws(FrameError) -> Void) throws(FrameError) {
        guard !pending.isEmpty else {
            let end = try cut(bytes, body)
            return pending.append(bytes.extracting(end..<bytes.byteCount))
        }
        pending.append(bytes)
        var held: [UInt8] = []
        swap(&held, &pending)
        let end = try cut(held.span.bytes, body)
        held.removeFirst(end)
        swap(&held, &pending)
    }

    /// Returns where the first frame begins that is not whole.
    private func cut(_ bytes: RawSpan, _ body: (RawSpan) throws(FrameError) -> Void) throws(FrameError) -> Int {
        var at = 0
        while bytes.byteCount - at >= FrameCodec.headBytes {
            let length = Int(UInt32(bigEndian: bytes.unsafeLoadUnaligned(fromByteOffset: at, as: UInt32.self)))
            guard length <= frameBytesMax else { throw .tooLarge(bytes: length) }
            let start = at + FrameCodec.headBytes
            guard bytes.byteCount - start >= length else { break }
            at = start + length
            try body(bytes.extracting(start..<at))
        }
        return at
    }
}
