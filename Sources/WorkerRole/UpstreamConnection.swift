import HTTPWire
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
    /// The connection is lost or talks nonsense. `answered`: some byte of the answer had come.
    func upstreamFailed(_ why: String, answered: Bool)
}

/// One HTTP/1.1 connection to an origin, plain or TLS, used by one request at a time.
final class UpstreamConnection: ByteStreamDelegate {
    let origin: Origin
    private let stream: ByteStream
    private var tls: TLSClient?
    private weak var user: (any UpstreamUser)?
    private unowned let pool: UpstreamPool

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
    /// It has been in the pool, so its upstream may have closed it unnoticed.
    private(set) var isReused = false
    private(set) var idleSince: Instant
    private var isPaused = false
    /// Plaintext that came while paused (TLS only: the network side stops at once, records already read do not).
    private var waiting: [UInt8] = []

    init(_ origin: Origin, _ stream: ByteStream, _ tls: TLSClient?, _ pool: UpstreamPool) {
        (self.origin, self.stream, self.tls, self.pool) = (origin, stream, tls, pool)
        idleSince = stream.loop.now
        stream.delegate = self
    }

    var isClosed: Bool { if case .closed = phase { true } else { false } }
    var session: TLSSession? { tls?.session() }

    /// Sends a request and gives its answer to `user`.
    func send(_ parts: [[UInt8]], method: Method, for user: any UpstreamUser) {
        self.user = user
        self.method = method
        phase = .head
        (scanned, answered, isPaused) = (0, false, false)
        headBytes.removeAll(keepingCapacity: true)
        for part in parts { write(part) }
        if !isClosed { stream.startReading() }
    }

    private func write(_ bytes: [UInt8]) {
        guard let tls else { return stream.write(bytes) }
        do throws(TLSError) {
            try tls.write(bytes)
            stream.write(tls.takeOutgoing())
        } catch {
            fail(error.description)
        }
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
        if !waiting.isEmpty {
            let bytes = waiting
            waiting = []
            consume(bytes.span.bytes)
            user?.upstreamPaused()
        }
        if !isPaused, !isClosed { stream.startReading() }
    }

    // ByteStreamDelegate

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if let tls {
            tls.receive(bytes)
            let buffer = pool.plaintext
            while !isClosed {
                let count: Int
                do throws(TLSError) { count = try tls.read(into: buffer) } catch { return fail(error.description) }
                if count == 0 { break }
                received(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
            }
            let outgoing = tls.takeOutgoing()  // key updates
            if !outgoing.isEmpty, !isClosed { stream.write(outgoing) }
            if tls.isPeerClosed, !isClosed { streamEnded(stream) }
        } else {
            received(bytes)
        }
        user?.upstreamPaused()
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        if isPaused {
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
            guard let (head, consumed) = try ResponseHead.parse(bytes, scanned: &scanned) else {
                if !isCopy { bytes.withUnsafeBytes { headBytes += $0 } }
                return
            }
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
            phase = .body(decoder)
            user?.upstreamResponded(head)
            if case .body = phase { takeBody(decoder, bytes, consumed) }
        } catch {
            fail(error.reason)
        }
    }

    private func takeBody(_ start: BodyDecoder, _ bytes: RawSpan, _ from: Int) {
        var decoder = start
        var offset = from
        do throws(WireError) {
            while let piece = try decoder.next(bytes, &offset) {
                switch piece {
                case .data(let range):
                    user?.upstreamSent(bytes.extracting(range))
                    if isClosed { return }
                    if isPaused, offset < bytes.byteCount, !decoder.isComplete {
                        phase = .body(decoder)
                        bytes.extracting(droppingFirst: offset).withUnsafeBytes { waiting += $0 }
                        return
                    }
                case .end:
                    return complete(leftOver: bytes.byteCount - offset)
                }
            }
            phase = .body(decoder)
        } catch {
            fail(error.reason)
        }
    }

    private func complete(leftOver: Int) {
        let user = self.user
        self.user = nil
        phase = .idle
        // An answer that came before its request was taken whole leaves the rest of that request on the way.
        if keepsAlive, leftOver == 0, waiting.isEmpty, stream.queuedBytes == 0 {
            idleSince = stream.loop.now
            isPaused = false
            giveBack()
        } else {
            pool.keepSession(of: self)
            close()
        }
        user?.upstreamCompleted()
    }

    func streamEnded(_ stream: ByteStream) {
        if case .body(let decoder) = phase, decoder.endsAtClose, tls == nil || tls!.isPeerClosed {
            keepsAlive = false
            return complete(leftOver: 0)
        }
        fail("the upstream closed the connection")
    }

    func streamFailed(_ stream: ByteStream, _ error: LoopError) { fail(error.description) }

    func streamDrained(_ stream: ByteStream) {}

    private func fail(_ why: String) {
        guard !isClosed else { return }
        let user = self.user
        let had = answered
        close()
        user?.upstreamFailed(why, answered: had)
    }

    /// Gives the connection up; its user hears nothing more.
    func close() {
        guard !isClosed else { return }
        phase = .closed
        user = nil
        waiting = []
        stream.close()
        pool.closed(self)
    }
}
