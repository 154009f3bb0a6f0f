import Bytes
public import Vocabulary

/// The server's half of an HTTP/1.1 connection: which bytes are which request, in what order they are answered, and how the connection
/// ends. Knows no socket and no clock; whoever owns the socket tells what comes and does what is said.
///
/// ```
///           ┌──────────────────── keep-alive ───────────────────┐
///           ▼                                                    │
///         idle ─▶ head ─▶ answering ◀─▶ body          answering ─┘
///           │       │          │          │
///           └───────┴──────────┴──────────┴─▶ lingering ─▶ closed      (anything ─▶ closed)
/// ```
/// One request is answered at a time; what a client pipelines waits in `input`.
public struct ServerMachine: Sendable {
    public enum Phase: String, Sendable {
        /// Between requests. Can transition to: `head`, `lingering`, `closed`.
        case idle
        /// Some bytes of a head are there. Can transition to: `answering`, `lingering`, `closed`.
        case head
        /// A body is read. Can transition to: `answering`, `lingering`, `closed`.
        case body
        /// A request is with whoever answers it. Can transition to: `body`, `idle`, `lingering`, `closed`.
        case answering
        /// The last answer is out; what the client still sends is dropped, so that no reset destroys the answer. Can transition to: `closed`.
        case lingering
        /// Final.
        case closed

        var next: [Phase] {
            switch self {
            case .idle: [.head, .lingering, .closed]
            case .head, .body: [.answering, .lingering, .closed]
            case .answering: [.body, .idle, .lingering, .closed]
            case .lingering: [.closed]
            case .closed: []
            }
        }
    }

    /// Milliseconds: between requests, for a whole head, for `Limits.bodyProgressBytes` of a body.
    public struct Times: Sendable {
        public var idle, head, bodyProgress: Int
        public init(idle: Int, head: Int, bodyProgress: Int) { (self.idle, self.head, self.bodyProgress) = (idle, head, bodyProgress) }
    }

    public enum Event: Sendable {
        /// A head. `takeBody` says that its body is wanted; else it is answered as it is.
        case request(RequestHead)
        /// Part of the body, a range of the given bytes.
        case data(Range<Int>)
        /// The body is whole: the request is to be answered.
        case whole
    }

    /// What has come due.
    public enum Due: Sendable, Equatable {
        case close
        /// The request is not read any further; this is its answer, and the last one.
        case refuse(WireError)
    }

    public private(set) var phase = Phase.idle
    /// What waits for the answers before it.
    public private(set) var input: [UInt8] = []
    /// The client sends nothing more; it may wait for answers all the same.
    public private(set) var isHalfClosed = false
    /// Of the request being answered: the connection goes on behind it.
    public private(set) var keepsAlive = true
    public private(set) var isHTTP10 = false
    public private(set) var isHead = false
    private let times: Times
    private var scanned = 0
    private var decoder = BodyDecoder(.none)
    /// Of the bytes at hand, those behind the present request.
    private var behind = 0
    /// It has sent a request.
    private var hasAsked = false
    /// Nothing more is answered.
    private var isCut = false
    private var deadline: Instant
    private var lingerBy = Instant.never
    private var bodyBytes = 0
    private var bodyMark = 0
    private var probeAt = Instant.never
    private var probesLeft = 0

    public init(_ times: Times, now: Instant) {
        self.times = times
        deadline = now.adding(milliseconds: times.idle)
    }

    /// The one door for a change of phase.
    private mutating func move(_ to: Phase) {
        precondition(phase.next.contains(to), "illegal transition: phase=\(phase) to=\(to)")
        phase = to
    }

    // MARK: Reading

    /// Whether bytes that come now can be read at once. `isUnread`: the client has not taken the answers it has, and gets no more before it
    /// does.
    public func readsNow(isUnread: Bool) -> Bool {
        switch phase {
        case .idle, .head: !isUnread && input.isEmpty
        case .body: input.isEmpty
        case .answering, .lingering, .closed: false
        }
    }

    /// Bytes that can't be read at once.
    public mutating func keep(_ bytes: RawSpan, _ now: Instant) {
        switch phase {
        case .closed: break
        // A client in the middle of a large body gets to read its refusal.
        case .lingering: deadline = min(lingerBy, now.adding(milliseconds: Limits.lingerMilliseconds))
        case .idle, .head, .body, .answering: input.append(bytes)
        }
    }

    /// No more is read for now.
    public var isFull: Bool { input.count > Limits.pipelinedBytesMax }

    /// Takes what was kept, to be read.
    public mutating func takeInput() -> [UInt8] {
        let whole = input
        input = []
        return whole
    }

    /// What of the bytes at hand could not be read yet.
    public mutating func putBack(_ rest: RawSpan) {
        behind = 0
        guard rest.byteCount > 0, phase != .lingering, phase != .closed else { return }
        if input.isEmpty { input.append(rest) } else { input.insert(contentsOf: rest.withUnsafeBytes { Array($0) }, at: 0) }
    }

    /// The next event in `bytes` from `offset` on; nil: nothing more for now, and what is left is to be put back. After an error `refused` is
    /// due: nobody knows where the next request would begin.
    public mutating func next(_ bytes: RawSpan, _ offset: inout Int, isUnread: Bool, _ now: Instant) throws(WireError) -> Event? {
        switch phase {
        case .idle, .head:
            guard offset < bytes.byteCount, !isUnread else { return nil }
            if phase == .idle {
                if Self.isBlank(bytes.extracting(droppingFirst: offset)) {  // no request has begun
                    if bytes.byteCount - offset == 2 { offset += 2 }
                    return nil
                }
                move(.head)
                scanned = 0
                deadline = now.adding(milliseconds: times.head)
            }
            guard let (head, consumed) = try RequestHead.parse(bytes.extracting(droppingFirst: offset), scanned: &scanned) else {
                return nil
            }
            offset += consumed
            scanned = 0
            behind = Self.meaning(bytes, offset)
            hasAsked = true
            (keepsAlive, isHTTP10, isHead) = (head.keepsAlive, head.minorVersion == 0, head.method == .head)
            move(.answering)
            deadline = .never
            return .request(head)
        case .body:
            switch try decoder.next(bytes, &offset) {
            case .data(let range):
                bodyBytes += range.count
                return .data(range)
            case .end:
                behind = Self.meaning(bytes, offset)
                move(.answering)
                deadline = .never
                return .whole
            case nil:
                return nil
            }
        case .answering, .lingering, .closed:
            return nil
        }
    }

    /// The body of the request that has just come is wanted.
    public mutating func takeBody(_ framing: BodyFraming, _ now: Instant) {
        move(.body)
        decoder = BodyDecoder(framing)
        (bodyBytes, bodyMark) = (0, 0)
        deadline = now.adding(milliseconds: times.bodyProgress)
    }

    /// Nothing, or (the beginning of) the empty line that may stand before a request (RFC 9112 §2.2).
    private static func isBlank(_ bytes: RawSpan) -> Bool {
        switch bytes.byteCount {
        case 0: true
        case 1: bytes[0] == Ascii.cr
        case 2: bytes[0] == Ascii.cr && bytes[1] == Ascii.lf
        default: false
        }
    }

    /// Bytes from `offset` on that are (the beginning of) another request.
    private static func meaning(_ bytes: RawSpan, _ offset: Int) -> Int {
        let rest = bytes.extracting(droppingFirst: offset)
        return isBlank(rest) ? 0 : rest.byteCount
    }

    private var hasInput: Bool { input.withUnsafeBytes { !Self.isBlank($0.bytes) } }

    // MARK: Answering

    /// The request at hand gets an answer that was not asked for, and it is the last one.
    public mutating func refused() {
        if phase != .answering { move(.answering) }
        (keepsAlive, isHTTP10, isHead) = (false, false, false)
        deadline = .never
    }

    /// The connection ends behind this answer.
    public mutating func closeBehind() { keepsAlive = false }

    /// An answer begins. `hasLength`: its end can be told without ending the connection. `isDraining`: it is the last one unless a request
    /// follows; `hasUnread`: the kernel has bytes that may be one.
    public mutating func answerBegins(hasLength: Bool, isDraining: Bool, hasUnread: @autoclosure () -> Bool) {
        if !hasLength, isHTTP10 { keepsAlive = false }
        if isDraining, !isFollowed(hasUnread()) { keepsAlive = false }
    }

    /// The answer has been given to the socket. True: another request may come; false: `linger` is due.
    public mutating func answerEnded(isDraining: Bool, hasUnread: @autoclosure () -> Bool, _ now: Instant) -> Bool {
        guard keepsAlive, !isDraining || isFollowed(hasUnread()) else { return false }
        move(.idle)
        deadline = now.adding(milliseconds: times.idle)
        return true
    }

    /// Of a worker that drains: behind the present request there is more. A client that pipelines gets all of its answers, until the worker's
    /// deadline; what has not been read yet counts too.
    private func isFollowed(_ hasUnread: @autoclosure () -> Bool) -> Bool {
        guard !isCut else { return false }
        return behind > 0 || hasInput || !isHalfClosed && hasUnread()
    }

    // MARK: The end

    /// What the socket's owner does to end.
    public enum Ending: Sendable { case none, linger, close }

    /// The client has sent its end. `queuedBytes`: of answers it has not taken.
    public mutating func peerEnded(queuedBytes: Int, isUnread: Bool, _ now: Instant) -> Ending {
        isHalfClosed = true
        (probeAt, probesLeft) = (now.adding(milliseconds: Limits.clientProbeMilliseconds), Limits.clientProbesMax)
        switch phase {
        case .answering, .closed: return .none  // it may close its sending side and wait for the answer
        case .lingering: return queuedBytes == 0 ? .close : .none
        case .idle where !input.isEmpty, .head where isUnread: return .none  // whole requests wait here until it has read
        case .idle, .head, .body: return .linger
        }
    }

    /// Of a client that has sent its end nothing follows what is here: a request that is not whole by now never will be.
    public func isAtEnd(isUnread: Bool) -> Bool {
        guard isHalfClosed, input.isEmpty || !isUnread else { return false }
        switch phase {
        case .idle, .head, .body: return true
        case .answering, .lingering, .closed: return false
        }
    }

    /// Nothing more will be answered: the connection ends once the client has taken what was written. Returns whether it has.
    public mutating func linger(queuedBytes: Int, _ now: Instant) -> Bool {
        move(.lingering)
        deadline = now.adding(milliseconds: Limits.lingerMilliseconds)
        lingerBy = now.adding(milliseconds: Limits.lingerMillisecondsMax)
        input = []
        return isHalfClosed && queuedBytes == 0
    }

    /// False: it was closed before.
    public mutating func close() -> Bool {
        guard phase != .closed else { return false }
        move(.closed)
        input = []
        return true
    }

    /// The worker drains: an idle connection ends, a busy one after its answer. One whose request is already here, or whose first is yet
    /// to come, is not idle until `idleToo` says so.
    public func drained(idleToo: Bool, queuedBytes: Int, hasUnread: @autoclosure () -> Bool) -> Ending {
        guard phase == .idle, !hasInput else { return .none }  // an answer that nothing follows ends it
        if queuedBytes > 0 { return .linger }
        return idleToo || hasAsked && !hasUnread() ? .close : .none
    }

    /// The drain deadline has passed: what is being answered is the last.
    public mutating func cut() { (isCut, keepsAlive, input) = (true, false, []) }

    // MARK: Time

    /// To be asked again and again.
    public mutating func due(queuedBytes: Int, _ now: Instant) -> Due? {
        switch phase {
        case .idle, .lingering:
            if queuedBytes > 0 {
                // The end of an answer is still on its way.
                deadline = max(deadline, now.adding(milliseconds: Limits.lingerMilliseconds))
                return nil
            }
            return now >= deadline ? .close : nil
        case .head:
            guard now >= deadline else { return nil }
            return .refuse(WireError(408, "The request head was not complete after \(times.head / 1000) seconds"))
        case .body:
            guard now >= deadline else { return nil }
            guard bodyBytes - bodyMark >= Limits.bodyProgressBytes else {
                return .refuse(
                    WireError(
                        408,
                        "The request body brought less than \(Limits.bodyProgressBytes) bytes in \(times.bodyProgress / 1000) seconds"))
            }
            bodyMark = bodyBytes
            deadline = now.adding(milliseconds: times.bodyProgress)
            return nil
        case .answering, .closed:
            return nil
        }
    }

    /// Whether to write an interim response now. A client that has sent its end waits for its answer or is gone; only writing tells. Before an
    /// answer has begun there is one thing that may be written: an interim response, which every HTTP/1.1 client skips (RFC 9110 §15.2). To
    /// the first one a client that is gone answers with a reset, which the second one meets; some clients bear no more than a few.
    public mutating func probes(_ now: Instant) -> Bool {
        guard phase == .answering, now >= probeAt, probesLeft > 0, !isHTTP10 else { return false }
        probesLeft -= 1
        probeAt = now.adding(milliseconds: Limits.clientProbeMilliseconds)
        return true
    }
}
