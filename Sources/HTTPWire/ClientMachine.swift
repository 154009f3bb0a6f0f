internal import Bytes

/// The client's half of an HTTP/1.1 connection: which bytes are the answer to the request that is out, and whether the connection may take
/// another one. Knows no socket.
///
/// ```
/// idle ─▶ head ─▶ body ─▶ idle       (anything ─▶ closed)
/// ```
public struct ClientMachine: Sendable {
    public enum Phase: String, Sendable {
        /// Nobody uses it. Can transition to: `head`, `closed`.
        case idle
        /// A request is out, its answer's head is awaited. Can transition to: `body`, `closed`.
        case head
        /// Can transition to: `idle`, `closed`.
        case body
        /// Final.
        case closed

        var next: [Phase] {
            switch self {
            case .idle: [.head, .closed]
            case .head: [.body, .closed]
            case .body: [.idle, .closed]
            case .closed: []
            }
        }
    }

    public enum Event: Sendable {
        case head(ResponseHead)
        /// Part of the body, a range of the given bytes.
        case data(Range<Int>)
        /// The body is whole.
        case end
    }

    public private(set) var phase = Phase.idle
    /// Some byte of the answer has come.
    public private(set) var hasAnswered = false
    /// The upstream will take another request behind this one.
    public private(set) var keepsAlive = true
    private var method = Method.post
    private var decoder = BodyDecoder(.none)
    /// Of a head that is not whole.
    private var headBytes: [UInt8] = []
    private var scanned = 0

    public init() {}

    private mutating func move(_ to: Phase) {
        precondition(phase.next.contains(to), "illegal transition: phase=\(phase) to=\(to)")
        phase = to
    }

    /// A request goes out.
    public mutating func requestSent(_ method: Method) {
        move(.head)
        self.method = method
        (hasAnswered, scanned) = (false, 0)
        headBytes.removeAll(keepingCapacity: true)
    }

    /// No further request.
    public mutating func closeBehind() { keepsAlive = false }

    /// The next event in `bytes` from `offset` on; nil: all that is there has been used. Bytes of an idle connection are an error: nobody
    /// asked for them.
    public mutating func next(_ bytes: RawSpan, _ offset: inout Int) throws(WireError) -> Event? {
        switch phase {
        case .idle:
            guard offset < bytes.byteCount else { return nil }
            throw WireError(502, "the upstream sent bytes that nobody asked for")
        case .head:
            guard offset < bytes.byteCount else { return nil }
            hasAnswered = true
            guard let head = try takeHead(bytes, &offset) else { return nil }
            keepsAlive = head.keepsAlive
            decoder = BodyDecoder(head.framing(toMethod: method))
            move(.body)
            return .head(head)
        case .body:
            switch try decoder.next(bytes, &offset) {
            case .data(let range): return .data(range)
            case .end:
                move(.idle)
                return .end
            case nil: return nil
            }
        case .closed:
            return nil
        }
    }

    /// Interim heads (1xx) are no answer yet and are left out.
    private mutating func takeHead(_ bytes: RawSpan, _ offset: inout Int) throws(WireError) -> ResponseHead? {
        while offset < bytes.byteCount {
            let found: (head: ResponseHead, consumed: Int)?
            if headBytes.isEmpty {
                found = try ResponseHead.parse(bytes.extracting(droppingFirst: offset), scanned: &scanned)
                if let found { offset += found.consumed }
            } else {
                let before = headBytes.count
                headBytes.append(bytes.extracting(droppingFirst: offset))
                let whole = headBytes
                found = try ResponseHead.parse(whole.span.bytes, scanned: &scanned)
                if let found {
                    offset += found.consumed - before
                    headBytes.removeAll(keepingCapacity: true)
                }
            }
            guard let head = found?.head else {
                if headBytes.isEmpty { headBytes.append(bytes.extracting(droppingFirst: offset)) }
                offset = bytes.byteCount
                return nil
            }
            if head.status == 101 { throw WireError(502, "the upstream switched protocols unasked") }
            if head.status >= 200 { return head }
        }
        return nil
    }

    /// The upstream's end has come. True: that is what ends the body, which is whole.
    public mutating func peerEnded() -> Bool {
        keepsAlive = false
        guard phase == .body, decoder.endsAtClose else { return false }
        move(.idle)
        return true
    }

    /// False: it was closed before.
    public mutating func close() -> Bool {
        guard phase != .closed else { return false }
        move(.closed)
        return true
    }
}
