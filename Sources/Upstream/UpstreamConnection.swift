internal import Bytes
public import Exchange
public import HTTPWire
internal import Inflate
internal import Loop
internal import TLS
public import Transport
public import Vocabulary

/// Who uses an upstream connection for one request.
public protocol UpstreamUser: AnyObject {
    /// The last byte of the request has been given to the kernel: from here on the upstream is waited for.
    func upstreamTookRequest()
    func upstreamResponded(_ head: ResponseHead)
    /// Part of the body; lives only during the call.
    func upstreamReceived(_ bytes: RawSpan)
    /// What one read brought has all been given: time to pass on what was gathered.
    func upstreamPaused()
    /// The whole body has come. The connection is the pool's again.
    func upstreamCompleted()
    /// The connection is lost or talks nonsense.
    func upstreamFailed(_ why: String, _ progress: UpstreamProgress)
}

/// One HTTP/1.1 connection to an origin, plain or TLS, used by one request at a time: a transport, a `ClientMachine` that says what the bytes
/// are, and the request on its way out.
public final class UpstreamConnection: TransportDelegate {
    let home: OriginConnections
    private let transport: TransportStream
    private let pool: UpstreamPool
    /// Until the request has its answer or its failure.
    private var user: (any UpstreamUser)?
    private var machine = ClientMachine()

    // The request
    /// The bytes that neither the kernel nor TLS has: parts, and how much of the first one has gone.
    private var unsent: [[UInt8]] = []
    private var unsentOffset = 0
    /// All of the request has been given to the kernel.
    public private(set) var isRequestOut = true
    /// When the upstream last took some of it.
    private var tookAt: Instant
    /// The upstream takes nothing more; what it had answered is still read. RFC 9112 §9.5: an early answer is worth having.
    private var writeProblem: String?

    // Being kept
    /// It has been in the pool, so its upstream may have closed it unnoticed.
    public private(set) var isReused = false
    private(set) var idleSince: Instant
    /// The answer is whole; whether more comes behind it in the same read is still to be seen.
    private var isReturning = false

    // Being held up
    private var isPaused = false
    /// It has unpacked enough for this iteration of the loop; the rest follows in the next one.
    private var isResting = false
    /// What comes has to wait.
    private var isHeldUp: Bool { isPaused || isResting }

    // The answer's content coding
    private var unpacking: Unpacking?
    /// The body has a coding that nobody reads here: why it fails; empty for an error answer, whose status is worth having all the same.
    private var unreadable: String?

    /// None was asked for, but not every upstream listens.
    private struct Unpacking {
        let inflate: Inflate
        /// Some packed bytes have come.
        var hasBegun = false
        /// It holds more than was taken.
        var isHolding = false
        /// The body's last packed byte has come; what it holds has not all been given.
        var isAtEnd = false
    }

    init(_ home: OriginConnections, _ transport: TransportStream, _ pool: UpstreamPool) {
        (self.home, self.transport, self.pool) = (home, transport, pool)
        idleSince = transport.loop.iterationTime
        tookAt = idleSince
        transport.delegate = self
    }

    private var isClosed: Bool { machine.phase == .closed }
    var session: TLSSession? { transport.session }

    // MARK: The request

    /// Sends a request and gives its answer to `user`. To be called right after `isFit()`.
    public func send(_ parts: [[UInt8]], method: Method, for user: any UpstreamUser) {
        self.user = user
        machine.requestSent(method)
        (unsent, unsentOffset, isRequestOut) = (parts, 0, false)
        (isPaused, isResting) = (false, false)
        tookAt = transport.loop.iterationTime
        transport.countFromHere()
        pump()
        if !isClosed { transport.resume() }
    }

    /// Looks at the socket just before it is used. False, and closed: the upstream has ended the connection, or sent bytes that nobody
    /// asked for and that would be taken for the answer.
    public func isFit() -> Bool {
        guard !isClosed else { return false }
        if transport.isQuiet() { return true }
        close()
        return false
    }

    /// Gives the socket the request piece by piece, the next when the one before is taken.
    private func pump() {
        while transport.queuedBytes == 0, !isClosed, let part = unsent.first {
            let end = min(part.count, unsentOffset + Limits.uploadPieceBytes)
            do throws(TransportFailure) { try transport.write(part.span.bytes.extracting(unsentOffset..<end)) } catch {
                return fail(error.description)
            }
            tookAt = transport.loop.iterationTime
            if end == part.count {
                unsent.removeFirst()
                unsentOffset = 0
            } else {
                unsentOffset = end
            }
        }
        if unsent.isEmpty, !isRequestOut, transport.queuedBytes == 0, !isClosed {
            isRequestOut = true
            user?.upstreamTookRequest()
        }
    }

    /// Whether the upstream is slow to take the request.
    public func isUploadStalled(_ now: Instant, milliseconds: Int) -> Bool {
        !isRequestOut && now.milliseconds(since: tookAt) >= milliseconds
    }

    /// The upstream has answered and takes no more of the request: what is left of it is kept no longer.
    public func giveUpRequest() {
        (unsent, isRequestOut) = ([], true)
        machine.closeBehind()
        if writeProblem == nil { writeProblem = "the upstream took no more of the request" }
    }

    public func transportDrained() { pump() }

    public func transportWriteFailed(_ why: String) {
        guard machine.phase != .idle else { return fail(why) }
        // It may have answered before it stopped to take the request: reading meets that answer, or the end.
        writeProblem = why
        unsent = []
        if !isHeldUp { transport.resume() }
    }

    // MARK: The answer

    /// What one read brings of the body is given at once, also where chunks part it.
    public func transportReceived(_ bytes: RawSpan) {
        var offset = 0
        var piece = 0..<0
        var isParted = false
        var isAtEnd = false
        do throws(WireError) {
            while !isAtEnd, !isClosed, let event = try machine.next(bytes, &offset) {
                switch event {
                case .head(var head):
                    takeCoding(of: &head)
                    user?.upstreamResponded(head)
                case .data(let range) where piece.isEmpty: piece = range
                case .data(let range):
                    if !isParted { pool.parted.append(bytes.extracting(piece)) }
                    isParted = true
                    pool.parted.append(bytes.extracting(range))
                case .end: isAtEnd = true
                }
            }
        } catch {
            giveParted(bytes, piece, isParted)
            return fail(error.reason)
        }
        giveParted(bytes, piece, isParted)
        guard isAtEnd, !isClosed else { return }
        if offset < bytes.byteCount { machine.closeBehind() }  // bytes that nobody asked for
        if unpacking?.isHolding == true { unpacking?.isAtEnd = true } else { complete() }
    }

    public func transportPaused() {
        if isReturning {
            isReturning = false
            keep()
        } else {
            user?.upstreamPaused()
        }
    }

    private func giveParted(_ bytes: RawSpan, _ piece: Range<Int>, _ isParted: Bool) {
        guard isParted else {
            if !piece.isEmpty { give(bytes.extracting(piece)) }
            return
        }
        // Taken out while it is given: what is given may lead to more.
        var whole: [UInt8] = []
        swap(&whole, &pool.parted)
        give(whole.span.bytes)
        whole.removeAll(keepingCapacity: whole.capacity <= Limits.scratchBytesMax)
        swap(&whole, &pool.parted)
    }

    private func give(_ bytes: RawSpan) {
        if let unreadable {
            if !unreadable.isEmpty { fail(unreadable) }
        } else if let unpacking {
            self.unpacking!.hasBegun = true
            unpacking.inflate.feed(bytes.withUnsafeBytes { Array($0) })
            unpack()
        } else {
            user?.upstreamReceived(bytes)
        }
    }

    /// The user gets the body without its coding, and a head that says so.
    private func takeCoding(of head: inout ResponseHead) {
        (unpacking, unreadable) = (nil, nil)
        let encodings = head.fields.contentEncodings
        if encodings.isEmpty { return }
        do throws(InflateError) { unpacking = Unpacking(inflate: try Inflate(encodings, bytesMax: Limits.unpackedAnswerBytesMax)) } catch {
            unreadable = head.status < 300 ? "the answer's \(error), and none was asked for" : ""
        }
        head.removeContentCoding()
    }

    /// Gives what the packed bytes hold, for as long as it is taken.
    private func unpack() {
        guard let inflate = unpacking?.inflate else { return }
        unpacking?.isHolding = true
        var given = 0
        do throws(InflateError) {
            while !isHeldUp, !isClosed {
                let count = try inflate.next(into: pool.unpacked)
                if count == 0, !inflate.isTired {
                    unpacking?.isHolding = false
                    return
                }
                given += count
                if given >= Limits.unpackedPassBytes || inflate.isTired { rest() }
                if count == 0 { continue }
                user?.upstreamReceived(UnsafeRawBufferPointer(rebasing: pool.unpacked[..<count]).bytes)
                user?.upstreamPaused()
            }
        } catch {
            fail("the answer is \(error)")
        }
    }

    /// The answer is whole: the connection is kept, if it may take another request.
    private func complete() {
        if let unpacking, unpacking.hasBegun, !unpacking.inflate.isComplete {
            return fail("the answer ends in the middle of its packed data")
        }
        unpacking = nil
        let user = self.user
        self.user = nil
        // An answer that came before its request was taken whole leaves the rest of that request on the way.
        if machine.keepsAlive, isRequestOut, writeProblem == nil {
            idleSince = transport.loop.iterationTime
            isPaused = false
            // What else that read brought may be bytes that nobody asked for: nobody gets the connection before that is known.
            if transport.hasUnseen { isReturning = true } else { keep() }
        } else {
            pool.keepSession(of: self)
            close()
        }
        user?.upstreamCompleted()
    }

    /// Gives it to the pool unused.
    public func giveBack() { keep() }

    private func keep() {
        isReused = true
        pool.returned(self)
        transport.resume()  // to notice when the upstream closes it
    }

    // MARK: Being held up

    /// Backpressure: the client takes no more for now.
    public func pause() {
        isPaused = true
        transport.pause()
    }

    public func resume() {
        guard isPaused else { return }
        isPaused = false
        if !isResting { goOn() }
    }

    /// Others have had their turn: `goOn` follows in the next one.
    private func rest() {
        isResting = true
        transport.pause()
        transport.loop.later { [self] in
            isResting = false
            if !isHeldUp { goOn() }
        }
    }

    /// What was held up comes first, then the network.
    private func goOn() {
        unpack()
        if !isHeldUp, !isClosed, unpacking?.isAtEnd == true { complete() }
        if !isHeldUp, !isClosed { transport.resume() }
    }

    // MARK: The end

    public func transportEnded(isWhole: Bool) {
        guard isWhole, machine.peerEnded() else {
            return fail(writeProblem ?? "the upstream closed the connection", atEnd: writeProblem == nil)
        }
        complete()
    }

    public func transportFailed(_ why: TransportFailure) {
        fail(writeProblem ?? why.description, atEnd: writeProblem == nil && why.isResetAfterEnd)
    }

    public func transportSecured() {}  // that was before it was made

    /// `atEnd`: the upstream's orderly end came, not a failure alone.
    private func fail(_ why: String, atEnd: Bool = false) {
        guard !isClosed else { return }
        let user = self.user
        let progress = machine.hasAnswered ? UpstreamProgress.answered : isUnread(atEnd: atEnd) ? .unread : .sent
        close()
        user?.upstreamFailed(why, progress)
    }

    /// Whether it is certain that the upstream read nothing of the request: either no byte was given to the kernel, or it had sent its end,
    /// and its acknowledgements cover no byte of ours. An upstream that reads and then closes acknowledges with its FIN what it read
    /// (RFC 9293 §3.10.7.4); a reset proves nothing, for it acknowledges nothing.
    private func isUnread(atEnd: Bool) -> Bool {
        guard isReused else { return false }
        let given = transport.sentBytes - transport.queuedBytes
        return given == 0 || atEnd && transport.unacknowledgedBytes >= given
    }

    /// Gives the connection up; its user hears nothing more.
    public func close() {
        guard machine.close() else { return }
        (user, unsent, unpacking) = (nil, [], nil)
        transport.close()
        pool.closed(self)
    }
}
