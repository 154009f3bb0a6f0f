import Bytes
import Exchange
import HTTPWire
import Inflate
import Loop
import TLS
import Vocabulary

/// Who uses an upstream connection for one request.
protocol UpstreamUser: AnyObject {
    func upstreamResponded(_ head: ResponseHead)
    /// Part of the body; lives only during the call.
    func upstreamSent(_ bytes: RawSpan)
    /// The events of this turn of the loop have all been given: time to pass on what was gathered.
    func upstreamPaused()
    /// The whole body has come. The connection is the pool's again.
    func upstreamCompleted()
    /// The last byte of the request has been given to the kernel: from here on the upstream is waited for.
    func upstreamTookRequest()
    /// The connection is lost or talks nonsense.
    func upstreamFailed(_ why: String, _ progress: UpstreamProgress)
}

/// One HTTP/1.1 connection to an origin, plain or TLS, used by one request at a time.
final class UpstreamConnection: ByteStreamDelegate {
    let home: OriginConnections
    private let stream: ByteStream
    private var tls: TLSClient?
    /// Until the request has its answer or its failure.
    private var user: (any UpstreamUser)?
    private let pool: UpstreamPool

    private enum Phase {
        /// Nobody uses it.
        case idle
        /// A request is out, its answer's head is awaited.
        case head
        case body(BodyDecoder)
        case closed
    }
    private var phase = Phase.idle
    private var method = Method.post
    private var headBytes: [UInt8] = []
    private var scanned = 0
    private var keepsAlive = true
    private var answered = false
    /// The request's bytes that neither the kernel nor TLS has: its parts, and how much of the first one has gone.
    private var unsent: [[UInt8]] = []
    private var unsentOffset = 0
    /// All of the request has been given to the kernel.
    private(set) var isRequestOut = true
    /// Bytes of this request, as they travel, that were given to the socket.
    private var requestBytes = 0
    /// When the upstream last took some of the request.
    private(set) var tookAt: Instant
    /// The upstream takes nothing more; what it had answered is still read. RFC 9112 §9.5: an early answer is worth having.
    private var writeProblem: String?
    /// The answer is whole; whether more comes behind it in the same bytes is still to be seen.
    private var isReturning = false
    private var isTakingRecords = false
    /// It has been in the pool, so its upstream may have closed it unnoticed.
    private(set) var isReused = false
    private(set) var idleSince: Instant
    private var isPaused = false
    /// It has unpacked enough for this turn of the loop; the rest follows in the next one.
    private var isResting = false
    /// What comes has to wait.
    private var isHeldUp: Bool { isPaused || isResting }
    /// Plaintext that came while paused (TLS only: the network side stops at once, records already read do not).
    private var waiting: [UInt8] = []
    /// The upstream's end came while paused, behind what waits.
    private var hasEnded = false
    /// Takes off the answer's content coding: none was asked for, but not every upstream listens.
    private var inflate: Inflate?
    /// It holds more than its user could take.
    private var isInflating = false
    private var packedBytes = 0
    /// The body's last packed byte has come, with so many bytes behind it; what it holds has not all been given.
    private var bytesBehindEnd: Int?
    /// The body has a coding that nobody reads here: why it fails; empty for an error answer, whose status is worth having all the same.
    private var unreadable: String?

    init(_ home: OriginConnections, _ stream: ByteStream, _ tls: TLSClient?, _ pool: UpstreamPool) {
        (self.home, self.stream, self.tls, self.pool) = (home, stream, tls, pool)
        idleSince = stream.loop.turnTime
        tookAt = idleSince
        stream.delegate = self
    }

    var isClosed: Bool { if case .closed = phase { true } else { false } }
    var session: TLSSession? { tls?.session() }

    /// Sends a request and gives its answer to `user`. To be called right after `isFit()`.
    func send(_ parts: [[UInt8]], method: Method, for user: any UpstreamUser) {
        self.user = user
        self.method = method
        phase = .head
        (scanned, answered, isPaused, hasEnded, isResting) = (0, false, false, false, false)
        headBytes.removeAll(keepingCapacity: true)
        (unsent, unsentOffset, requestBytes, isRequestOut) = (parts, 0, 0, false)
        tookAt = stream.loop.turnTime
        pump()
        if !isClosed { stream.startReading() }
    }

    /// Looks at the socket just before it is used. False, and closed: the upstream has ended the connection, or sent bytes that nobody
    /// asked for and that would be taken for the answer. An idle connection has nothing to say but TLS's own records.
    func isFit() -> Bool {
        guard !isClosed else { return false }
        // Records that came with the handshake's last one are with OpenSSL already.
        if tls != nil { readRecords() }
        guard !isClosed else { return false }
        return withUnsafeTemporaryAllocation(byteCount: 8 * 1024, alignment: 16) { buffer in
            while true {
                switch stream.takeArrived(into: buffer) {
                case .nothing:
                    return true
                case .bytes(let count) where tls != nil:
                    takeRecords(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
                    if isClosed { return false }
                case .bytes, .end:
                    close()
                    return false
                }
            }
        }
    }

    /// Gives the socket the request piece by piece, the next when the one before is taken.
    private func pump() {
        while stream.queuedBytes == 0, !isClosed, let part = unsent.first {
            let end = min(part.count, unsentOffset + Limits.uploadPieceBytes)
            part.withUnsafeBytes { write(UnsafeRawBufferPointer(rebasing: $0[unsentOffset..<end])) }
            tookAt = stream.loop.turnTime
            if end == part.count {
                unsent.removeFirst()
                unsentOffset = 0
            } else {
                unsentOffset = end
            }
        }
        if unsent.isEmpty, !isRequestOut, stream.queuedBytes == 0, !isClosed {
            isRequestOut = true
            user?.upstreamTookRequest()
        }
    }

    private func write(_ bytes: UnsafeRawBufferPointer) {
        guard let tls else {
            requestBytes += bytes.count
            return stream.write(bytes)
        }
        do throws(TLSError) {
            try tls.write(bytes)
            let sealed = tls.takeOutgoing()
            requestBytes += sealed.count
            stream.write(sealed)
        } catch {
            fail(error.description)
        }
    }

    /// Whether the upstream is slow to take the request.
    func isUploadStalled(_ now: Instant, milliseconds: Int) -> Bool { !isRequestOut && now.milliseconds(since: tookAt) >= milliseconds }

    /// The upstream has answered and takes no more of the request: what is left of it is kept no longer.
    func giveUpRequest() {
        (unsent, isRequestOut) = ([], true)
        keepsAlive = false
        if writeProblem == nil { writeProblem = "the upstream took no more of the request" }
    }

    /// Gives it to the pool unused.
    func giveBack() {
        isReused = true
        pool.returned(self)
        stream.startReading()  // to notice when the upstream closes it
    }

    /// Backpressure: the client takes no more for now.
    func pause() {
        isPaused = true
        stream.stopReading()
    }

    func resume() {
        guard isPaused else { return }
        isPaused = false
        if !isResting { goOn() }
    }

    /// Others have had their turn: `goOn` follows in the next one.
    private func rest() {
        isResting = true
        stream.stopReading()
        stream.loop.later { [self] in
            isResting = false
            if !isHeldUp { goOn() }
        }
    }

    /// What was held up comes first, then the network.
    private func goOn() {
        unpack()
        if !isHeldUp, !isClosed, let behind = bytesBehindEnd { complete(leftOver: behind) }
        if !isHeldUp, !isClosed, !waiting.isEmpty {
            let bytes = waiting
            waiting = []
            consume(bytes.span.bytes)
            user?.upstreamPaused()
        }
        guard !isHeldUp, !isClosed else { return }
        if hasEnded { streamEnded(stream) } else { stream.startReading() }
    }

    // ByteStreamDelegate

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if tls != nil { takeRecords(bytes) } else { received(bytes) }
        user?.upstreamPaused()
    }

    private func takeRecords(_ bytes: UnsafeRawBufferPointer) {
        tls?.receive(bytes)
        readRecords()
    }

    private func readRecords() {
        guard let tls else { return }
        isTakingRecords = true
        defer { isTakingRecords = false }
        let buffer = pool.plaintext
        while !isClosed {
            let count: Int
            do throws(TLSError) { count = try tls.read(into: buffer) } catch { return fail(error.description) }
            if count == 0 { break }
            received(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
        guard !isClosed else { return }
        let outgoing = tls.takeOutgoing()  // key updates
        if !outgoing.isEmpty { stream.write(outgoing) }
        if tls.isPeerClosed { return streamEnded(stream) }
        if isReturning {
            isReturning = false
            giveBack()
        }
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        if isHeldUp {
            waiting += bytes
        } else {
            consume(bytes.bytes)
        }
    }

    private func consume(_ bytes: RawSpan) {
        answered = true
        switch phase {
        case .idle:
            close()  // bytes nobody asked for
        case .closed:
            break
        case .head:
            if headBytes.isEmpty {
                takeHead(bytes)
            } else {
                bytes.withUnsafeBytes { headBytes += $0 }
                let whole = headBytes
                takeHead(whole.span.bytes, isCopy: true)
            }
        case .body(let decoder):
            takeBody(decoder, bytes, 0)
        }
    }

    private func takeHead(_ bytes: RawSpan, isCopy: Bool = false) {
        do throws(WireError) {
            guard let (parsed, consumed) = try ResponseHead.parse(bytes, scanned: &scanned) else {
                if !isCopy { bytes.withUnsafeBytes { headBytes += $0 } }
                return
            }
            var head = parsed
            guard head.status != 101 else { return fail("the upstream switched protocols unasked") }
            if (100..<200).contains(head.status) {  // interim: not the answer yet
                scanned = 0
                headBytes.removeAll(keepingCapacity: true)
                if consumed < bytes.byteCount { takeHead(bytes.extracting(droppingFirst: consumed)) }
                return
            }
            headBytes = []
            keepsAlive = head.keepsAlive
            let decoder = BodyDecoder(head.framing(toMethod: method))
            takeCoding(of: &head)
            phase = .body(decoder)
            user?.upstreamResponded(head)
            if case .body = phase { takeBody(decoder, bytes, consumed) }
        } catch {
            fail(error.reason)
        }
    }

    /// The user gets the body without its coding, and a head that says so.
    private func takeCoding(of head: inout ResponseHead) {
        (inflate, isInflating, packedBytes, bytesBehindEnd, unreadable) = (nil, false, 0, nil, nil)
        let encodings = head.fields.contentEncodings
        if encodings.isEmpty { return }
        do throws(InflateError) { inflate = try Inflate(encodings, bytesMax: Limits.unpackedAnswerBytesMax) } catch {
            unreadable = head.status < 300 ? "the answer's \(error), and none was asked for" : ""
        }
        head.removeContentCoding()
    }

    private func give(_ bytes: RawSpan) {
        if let unreadable {
            if !unreadable.isEmpty { fail(unreadable) }
            return
        }
        guard let inflate else {
            user?.upstreamSent(bytes)
            return
        }
        packedBytes += bytes.byteCount
        inflate.feed(bytes.withUnsafeBytes { Array($0) })
        unpack()
    }

    /// Gives what the packed bytes hold, for as long as it is taken.
    private func unpack() {
        guard let inflate else { return }
        isInflating = true
        var given = 0
        do throws(InflateError) {
            while !isHeldUp, !isClosed {
                let count = try inflate.next(into: pool.unpacked)
                if count == 0, !inflate.isTired {
                    isInflating = false
                    return
                }
                given += count
                if given >= Limits.unpackedPassBytes || inflate.isTired { rest() }
                if count == 0 { continue }
                user?.upstreamSent(UnsafeRawBufferPointer(rebasing: pool.unpacked[..<count]).bytes)
                user?.upstreamPaused()
            }
        } catch {
            fail("the answer is \(error)")
        }
    }

    /// What one read brings of the body is given at once, also where chunks part it.
    private func takeBody(_ start: BodyDecoder, _ bytes: RawSpan, _ from: Int) {
        var decoder = start
        var offset = from
        var piece = from..<from
        var isParted = false
        var isAtEnd = false
        do throws(WireError) {
            while !isAtEnd, let next = try decoder.next(bytes, &offset) {
                switch next {
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
        phase = .body(decoder)
        giveParted(bytes, piece, isParted)
        guard isAtEnd, !isClosed else { return }
        if isInflating { bytesBehindEnd = bytes.byteCount - offset } else { complete(leftOver: bytes.byteCount - offset) }
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

    private func complete(leftOver: Int) {
        if let inflate, packedBytes > 0, !inflate.isComplete { return fail("the answer ends in the middle of its packed data") }
        (inflate, bytesBehindEnd) = (nil, nil)
        let user = self.user
        self.user = nil
        phase = .idle
        // An answer that came before its request was taken whole leaves the rest of that request on the way.
        if keepsAlive, !hasEnded, leftOver == 0, waiting.isEmpty, isRequestOut, writeProblem == nil {
            idleSince = stream.loop.turnTime
            isPaused = false
            // A later record of the same read may hold bytes that nobody asked for: nobody gets the connection before that is known.
            if isTakingRecords { isReturning = true } else { giveBack() }
        } else {
            pool.keepSession(of: self)
            close()
        }
        user?.upstreamCompleted()
    }

    func streamEnded(_ stream: ByteStream) {
        if isHeldUp {
            hasEnded = true  // what waits comes first
            return
        }
        if case .body(let decoder) = phase, decoder.endsAtClose, tls == nil || tls!.isPeerClosed {
            keepsAlive = false
            return complete(leftOver: 0)
        }
        fail(writeProblem ?? "the upstream closed the connection", atEnd: writeProblem == nil)
    }

    func streamFailed(_ stream: ByteStream, _ error: LoopError) {
        fail(writeProblem ?? error.description, atEnd: writeProblem == nil && error.isResetAfterEnd)
    }

    func streamWriteFailed(_ stream: ByteStream, _ error: LoopError) {
        switch phase {
        case .head, .body:
            // It may have answered before it stopped to take the request: reading meets that answer, or the end.
            writeProblem = error.description
            unsent = []
            if !isHeldUp { stream.startReading() }
        case .idle, .closed:
            fail(error.description)
        }
    }

    func streamDrained(_ stream: ByteStream) { pump() }

    /// `atEnd`: the upstream's orderly end came, not a failure alone.
    private func fail(_ why: String, atEnd: Bool = false) {
        guard !isClosed else { return }
        let user = self.user
        let progress = answered ? UpstreamProgress.answered : isUnread(atEnd: atEnd) ? .unread : .sent
        close()
        user?.upstreamFailed(why, progress)
    }

    /// Whether it is certain that the upstream read nothing of the request: either no byte was given to the kernel, or it had sent its end,
    /// and its acknowledgements cover no byte of ours. An upstream that reads and then closes acknowledges with its FIN what it read
    /// (RFC 9293 §3.10.7.4); a reset proves nothing, for it acknowledges nothing.
    private func isUnread(atEnd: Bool) -> Bool {
        guard isReused else { return false }
        let given = requestBytes - stream.queuedBytes
        return given == 0 || atEnd && stream.unacknowledgedBytes >= given
    }

    /// Gives the connection up; its user hears nothing more.
    func close() {
        guard !isClosed else { return }
        phase = .closed
        user = nil
        (waiting, unsent, inflate) = ([], [], nil)
        stream.close()
        pool.closed(self)
    }
}
