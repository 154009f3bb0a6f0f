import Admission
import Bytes
import Diagnostics
import Exchange
import HTTPWire
import Logging
import Loop
import Platform
import Settings
import Vocabulary

/// What is answered by more than one call: it hears of the client's state.
protocol Answering: AnyObject {
    /// The client has gone; nothing can be sent any more.
    func clientGone()
    /// What was written has been taken; more may be written.
    func clientDrained()
    /// Called every `Worker.sweepMilliseconds`.
    func sweep(_ now: Instant)
    /// The drain deadline has passed: end now.
    func cut()
}

/// One downstream connection: a socket between a `ServerMachine`, which says what comes and when it ends, and a `ResponseWriter`.
final class ClientConnection: ByteStreamDelegate {
    let worker: Worker
    let stream: ByteStream
    /// It is of this host, and no proxy that we know of.
    let isLocalPeer: Bool
    /// Who connected; nil over a Unix-domain socket.
    let peer: IPAddress?
    /// Whom a PROXY header named.
    private(set) var proxiedClient: IPAddress?
    /// While one is due, and until when.
    private var proxyHeader: (reader: ProxyHeaderReader, by: Instant)?
    private var machine: ServerMachine
    private var writer = ResponseWriter()
    /// Whose body is being read.
    private var request: ClientRequest?
    private var answering: (any Answering)?
    /// Of the request at hand, if there is an access log.
    private var access: AccessEntry?
    /// The web page that may read the answer.
    private var pageOrigin: String?
    /// Requests are being taken from bytes at hand.
    private var isAdvancing = false
    private(set) var lastWrite: Instant
    private var stalledSince: Instant
    /// Everything written on this connection, and how much of it the client had taken when it was last seen to take some.
    private var writtenBytes = 0
    private var takenMark = 0

    init(_ worker: Worker, _ stream: ByteStream, peer: IPAddress?, isProxied: Bool, client: IPAddress?) {
        (self.worker, self.stream, self.peer, proxiedClient) = (worker, stream, peer, client)
        isLocalPeer = (stream.peer?.isLoopback ?? false) && !worker.settings.trustedProxies.contains(peer)
        let (now, times) = (worker.loop.iterationTime, worker.settings.times)
        if isProxied { proxyHeader = (ProxyHeaderReader(), now.adding(milliseconds: times.head)) }
        machine = ServerMachine(.init(idle: times.idle, head: times.head, bodyProgress: times.bodyProgress), now: now)
        (lastWrite, stalledSince) = (now, now)
        stream.delegate = self
        stream.startReading()
    }

    private var now: Instant { worker.loop.iterationTime }
    var isHalfClosed: Bool { machine.isHalfClosed }
    private var isClosed: Bool { machine.phase == .closed }
    /// Between requests.
    var isIdle: Bool { machine.phase == .idle }
    /// The client has not taken the answers it has: it gets no more before it does.
    private var isUnread: Bool { stream.queuedBytes > Limits.downstreamHighBytes }
    /// Bytes that wait here or in the kernel's queue for this client, or of it.
    var bufferedBytes: Int { machine.input.count + writer.pending.count + stream.queuedBytes }

    // MARK: Reading

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        guard proxyHeader == nil else { return takeProxyHeader(bytes) }
        received(bytes)
    }

    var awaitsProxyHeader: Bool { proxyHeader != nil }

    /// The header of a trusted proxy stands before everything else. Without a good one nothing is answered: who sends it is no client.
    private func takeProxyHeader(_ bytes: UnsafeRawBufferPointer) {
        switch proxyHeader!.reader.take(bytes.bytes) {
        case .more: return
        case .wrong(let why): return endWithoutProxyHeader(why)
        case .header(let header, let consumed):
            proxyHeader = nil
            if case .client(let address, _) = header { proxiedClient = address }
            if consumed < bytes.count { received(UnsafeRawBufferPointer(rebasing: bytes[consumed...])) }
        }
    }

    private func endWithoutProxyHeader(_ why: String) {
        worker.log.notice("connection ended: \(why)", metadata: ["peer": "\(peer?.description ?? "unix")"])
        worker.scoreboard.add(.admissionRefused, worker: worker.slot)
        close()
    }

    private func received(_ bytes: UnsafeRawBufferPointer) {
        if machine.readsNow(isUnread: isUnread) { return advance(bytes.bytes) }
        machine.keep(bytes.bytes, now)
        switch machine.phase {
        case .idle, .head, .body: advanceInput()
        case .answering, .lingering, .closed: break
        }
        if machine.isFull { stream.stopReading() }
    }

    private func advanceInput() {
        guard !isAdvancing, !machine.input.isEmpty, !isUnread else { return }
        let whole = machine.takeInput()
        advance(whole.span.bytes)
        if machine.isAtEnd(isUnread: isUnread) { linger() }
    }

    /// Takes requests from `bytes` for as long as they can be answered at once.
    private func advance(_ bytes: RawSpan) {
        isAdvancing = true
        var offset = 0
        do throws(WireError) {
            while let event = try machine.next(bytes, &offset, isUnread: isUnread, now) {
                switch event {
                case .request(let head): received(head)
                case .data(let range): take(bytes.extracting(range))
                case .whole: complete()
                }
            }
        } catch {
            refuse(error)
        }
        isAdvancing = false
        machine.putBack(bytes.extracting(droppingFirst: offset))
    }

    private func received(_ head: RequestHead) {
        if let log = worker.accessLog {
            access = AccessEntry(log, start: now)
            let trusted = worker.settings.trustedProxies
            access?.took(head, client: Forwarding.client(peer: proxiedClient ?? peer, head.fields, trusting: trusted))
        }
        let (reception, pageOrigin) = worker.receive(head, isLocalPeer: isLocalPeer)
        self.pageOrigin = pageOrigin
        switch reception {
        case .refused(let error, let id, let fields):
            access?.line.requestID = id
            // A body that nobody will read ends the connection behind the answer.
            if head.framing != .none { machine.closeBehind() }
            respond(error, requestID: id, fields)
        case .options(let id):
            if head.framing != .none { machine.closeBehind() }
            access?.line.requestID = id
            options(head, requestID: id)
        case .taken(let request):
            self.request = request
            if let access {
                request.access = access
                (access.line.requestID, access.line.key) = (request.id, request.key?.name ?? "")
            }
            if head.expectsContinue, head.framing != .none, !machine.isHTTP10 { stream.write(Self.interim) }
            switch head.framing {
            case .none, .length(0): complete()
            default: machine.takeBody(head.framing, now)
            }
        }
    }

    private static let interim = Array("HTTP/1.1 100 Continue\r\n\r\n".utf8)

    private func take(_ piece: RawSpan) {
        do throws(ProxyError) { try request?.append(piece) } catch {
            worker.scoreboard.add(.admissionRefused, worker: worker.slot)
            refuse(error)
        }
    }

    private func complete() {
        guard let request else { return }
        self.request = nil
        access?.line.bytesIn = request.receivedBytes
        guard request.route.isTurn else { return worker.answer(request, on: self) }
        request.read(on: worker.bodyWork, aliases: worker.accounts.stored.aliases) { [self] reading in
            guard machine.phase == .answering else { return }  // it went meanwhile
            worker.startTurn(request, reading, self)
        }
    }

    /// A request that can't be read: answered, then the connection ends, since nobody knows where the next one begins.
    private func refuse(_ error: WireError) {
        worker.scoreboard.add(.admissionRefused, worker: worker.slot)
        let code = error.status == 413 ? "payload_too_large" : "invalid_request_error"
        refuse(ProxyError(status: error.status, code: code, type: "invalid_request_error", message: error.reason, origin: .downstream))
    }

    private func refuse(_ error: ProxyError) {
        if let log = worker.accessLog, access == nil {
            // No head could be read.
            access = AccessEntry(log, start: now)
            access?.line.client = (proxiedClient ?? peer)?.description ?? "unix"
        }
        if let request { access?.line.bytesIn = request.receivedBytes }
        request = nil
        machine.refused()
        respond(error, requestID: nil)
    }

    // MARK: Answering

    /// Tells this object of the client's fate until the answer is finished.
    func answered(by answering: any Answering) { self.answering = answering }

    func respond(_ error: ProxyError, requestID: String?, _ extra: [(String, String)] = []) {
        var fields = extra
        access?.line.code = error.code
        if let seconds = error.retryAfterSeconds { fields.append(("Retry-After", String(seconds))) }
        respond(error.status, "application/json", ErrorEnvelope.body(error), requestID: requestID, fields)
    }

    /// A whole answer at once.
    func respond(_ status: Int, _ contentType: String, _ body: [UInt8], requestID: String?, _ extra: [(String, String)] = []) {
        guard !isClosed else { return }  // it went while the answer was made
        beginAnswer(status: status, length: body.count) { head in
            HeadWriter.field("Content-Type", contentType, into: &head)
            if let requestID { HeadWriter.field("X-Request-Id", requestID, into: &head) }
            for (name, value) in extra { HeadWriter.field(named: name, value, into: &head) }
        }
        append(body.span.bytes)
        endAnswer()
    }

    /// What a path takes, and to a page that may call what it asks for (Fetch standard, CORS-preflight).
    private func options(_ head: RequestHead, requestID: String) {
        let method = Route(path: head.path)?.method.text
        let asked = head.fields.first(named: "access-control-request-headers")
        beginAnswer(status: 204, length: 0) { out in
            HeadWriter.field("Allow", method.map { $0 + ", OPTIONS" } ?? "GET, POST, OPTIONS", into: &out)
            HeadWriter.field("X-Request-Id", requestID, into: &out)
            guard pageOrigin != nil else { return }
            HeadWriter.field("Access-Control-Allow-Methods", method ?? "GET, POST", into: &out)
            if let asked { HeadWriter.field("Access-Control-Allow-Headers", asked, into: &out) }
            if head.fields.first(named: "access-control-request-private-network") != nil {
                HeadWriter.field("Access-Control-Allow-Private-Network", "true", into: &out)
            }
            HeadWriter.field("Access-Control-Max-Age", "600", into: &out)
        }
        endAnswer()
    }

    /// Starts an answer; nothing is sent before `flush`. `length` nil: as long as it takes.
    func beginAnswer(status: Int, length: Int?, _ fields: (inout [UInt8]) -> Void) {
        machine.answerBegins(hasLength: length != nil, isDraining: worker.isDraining, hasUnread: stream.unreadBytes > 0)
        writer.begin(
            status: status, length: length, toHTTP10: machine.isHTTP10, isHead: machine.isHead, keepsAlive: machine.keepsAlive,
            date: worker.dateField
        ) { head in
            fields(&head)
            guard let pageOrigin else { return }
            HeadWriter.field("Access-Control-Allow-Origin", pageOrigin, into: &head)
            HeadWriter.field("Access-Control-Expose-Headers", "*", into: &head)
            HeadWriter.field("Vary", "Origin", into: &head)
        }
        worker.count(status: status)
        access?.answerBegan(status: status, now)
    }

    /// Body bytes of the answer that `flush` sends.
    var pending: [UInt8] {
        get { writer.pending }
        _modify { yield &writer.pending }
    }

    func append(_ bytes: RawSpan) {
        worker.spares.take(&writer.pending)
        writer.append(bytes)
    }

    /// Sends what has been gathered, as one chunk in one write.
    func flush() { if !writer.isEmpty { send(isLast: false) } }

    private func send(isLast: Bool) {
        guard !isClosed else { return }
        worker.scratch.removeAll(keepingCapacity: true)
        defer { if worker.scratch.capacity > Limits.scratchBytesMax { worker.scratch = [] } }
        writer.take(isLast: isLast, into: &worker.scratch)
        worker.spares.give(&writer.pending)
        lastWrite = now
        if stream.queuedBytes == 0 { stalledSince = lastWrite }
        writtenBytes += worker.scratch.count
        stream.write(worker.scratch)
    }

    /// Body bytes of the present answer, those not yet sent included.
    var bodyBytes: Int { writer.bodyBytes }

    /// Bytes the client has not taken yet.
    var queuedBytes: Int { stream.queuedBytes }

    /// Everything of this answer has been given; the next request may come.
    func endAnswer() {
        send(isLast: true)
        guard !isClosed else { return }
        answering = nil
        endAccess()
        writer.end()
        guard machine.answerEnded(isDraining: worker.isDraining, hasUnread: stream.unreadBytes > 0, now) else { return linger() }
        if isAdvancing { return }  // it has the bytes of further requests and goes on with them
        if !machine.isHalfClosed { stream.startReading() }
        if !machine.input.isEmpty { advanceInput() } else if machine.isAtEnd(isUnread: isUnread) { linger() }
        if machine.isFull { stream.stopReading() }
    }

    /// The answer can't be completed: the client must see that it is cut.
    func abort() {
        answering = nil
        guard machine.close() else { return }
        endAccess()
        worker.closed(self)
        stream.reset()
    }

    /// The access log has all that this connection will tell of the request.
    private func endAccess() {
        access?.answered(bytes: writer.bodyBytes, now)
        access = nil
    }

    // MARK: The end

    private func linger() {
        if machine.linger(queuedBytes: stream.queuedBytes, now) { return close() }
        stream.shutdown()
        if !machine.isHalfClosed { stream.startReading() }
    }

    private func perform(_ ending: ServerMachine.Ending) {
        switch ending {
        case .none: break
        case .linger: linger()
        case .close: close()
        }
    }

    func streamEnded(_ stream: ByteStream) {
        perform(machine.peerEnded(queuedBytes: stream.queuedBytes, isUnread: isUnread, now))
    }

    func streamFailed(_ stream: ByteStream, _ error: LoopError) { close() }

    func streamDrained(_ stream: ByteStream) {
        stalledSince = now
        if machine.phase == .lingering, machine.isHalfClosed { return close() }
        answering?.clientDrained()
        guard machine.phase == .idle || machine.phase == .head else { return }
        if !machine.isHalfClosed { stream.startReading() }
        advanceInput()
        if machine.input.isEmpty, machine.isAtEnd(isUnread: isUnread) { linger() }
    }

    func close() {
        guard machine.close() else { return }
        let answering = self.answering
        if let request { access?.line.bytesIn = request.receivedBytes }
        endAccess()
        (self.answering, request) = (nil, nil)
        worker.closed(self)
        stream.close()
        answering?.clientGone()
    }

    /// Enforces the deadlines. Their precision is the sweep's period.
    func sweep(_ now: Instant) {
        if let proxyHeader, now >= proxyHeader.by { return endWithoutProxyHeader("its PROXY header did not come in time") }
        if isStalled(now) { return }
        switch machine.due(queuedBytes: stream.queuedBytes, now) {
        case .close: close()
        case .refuse(let error): refuse(error)
        case nil:
            guard machine.phase == .answering else { return }
            // Behind its end the loop hears nothing more of it: that the kernel has given it up is to be asked for.
            if machine.isHalfClosed, stream.isLost { return close() }
            if !writer.hasBegun, machine.probes(now) { stream.write(Self.interim) }
            answering?.sweep(now)
        }
    }

    /// Ends a client that has taken no byte for too long.
    private func isStalled(_ now: Instant) -> Bool {
        let queued = stream.queuedBytes
        let taken = queued == 0 ? writtenBytes : writtenBytes - queued - stream.unacknowledgedBytes
        if queued == 0 || taken != takenMark {
            (takenMark, stalledSince) = (taken, now)
            return false
        }
        guard now.milliseconds(since: stalledSince) >= worker.settings.times.writeStalled else { return false }
        worker.log.info("client takes no bytes, disconnected", metadata: ["unsent_bytes": "\(queued)"])
        let answering = self.answering
        abort()
        answering?.clientGone()
        return true
    }

    /// The worker drains: an idle connection ends, a busy one after its answer.
    func drain(idleToo: Bool) {
        perform(machine.drained(idleToo: idleToo, queuedBytes: stream.queuedBytes, hasUnread: stream.unreadBytes > 0))
    }

    /// The drain deadline has passed.
    func cut() {
        machine.cut()
        if let answering { answering.cut() } else { close() }
    }
}
