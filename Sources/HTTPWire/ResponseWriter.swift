internal import Bytes

/// An answer as HTTP/1.1 bytes: its head, then its body, in chunks where nobody knows its length.
public struct ResponseWriter: Sendable {
    private var head: [UInt8] = []
    /// Body bytes that go out with the next `take`.
    public var pending: [UInt8] = []
    private var isChunked = false
    /// An answer to HEAD.
    private var isBodiless = false
    /// Some of it has been taken.
    public private(set) var hasBegun = false
    private var takenBytes = 0

    public init() {}

    /// Starts an answer. `length` nil: as long as it takes. `date`: that field with its line end.
    public mutating func begin(
        status: Int, length: Int?, toHTTP10: Bool, isHead: Bool, keepsAlive: Bool, date: [UInt8], _ fields: (inout [UInt8]) -> Void
    ) {
        precondition(head.isEmpty, "an answer is there already")
        let hasNoBody = status == 204 || status == 304  // RFC 9112 §6.3: what looked like a body would be read as the next answer
        isChunked = length == nil && !toHTTP10 && !hasNoBody
        isBodiless = isHead
        HeadWriter.status(status, into: &head)
        head += date
        fields(&head)
        if let length, !hasNoBody { HeadWriter.field("Content-Length", length, into: &head) }
        if isChunked { HeadWriter.field("Transfer-Encoding", "chunked", into: &head) }
        if !keepsAlive {
            HeadWriter.field("Connection", "close", into: &head)
        } else if toHTTP10 {
            HeadWriter.field("Connection", "keep-alive", into: &head)  // else it would wait for our end
        }
        HeadWriter.end(into: &head)
    }

    public mutating func append(_ bytes: RawSpan) { if !isBodiless { pending.append(bytes) } }

    public var isEmpty: Bool { head.isEmpty && pending.isEmpty }
    /// Body bytes of the present answer, those not yet taken included.
    public var bodyBytes: Int { takenBytes + pending.count }

    /// Moves what has been gathered to `out`, the body as one chunk.
    public mutating func take(isLast: Bool, into out: inout [UInt8]) {
        hasBegun = true
        if !head.isEmpty {
            out += head
            head = []
        }
        if !pending.isEmpty, !isBodiless {
            if isChunked { HeadWriter.chunkStart(count: pending.count, into: &out) }
            out += pending
            if isChunked { out += [13, 10] }
        }
        takenBytes += pending.count
        pending.removeAll(keepingCapacity: true)
        if isLast, isChunked, !isBodiless { out += HeadWriter.lastChunk }
    }

    /// The answer is over; the next one may begin.
    public mutating func end() { (hasBegun, takenBytes, pending) = (false, 0, []) }
}
