import Admission
import Bytes
import Diagnostics
import Exchange
import HTTPWire
import Inflate
import JSONWire
import Logging
import Loop
import Platform
import Settings
import Vocabulary

/// A client's request, from its complete head on.
final class ClientRequest {
    let head: RequestHead
    let route: Route
    /// Of its usage record.
    let recordID: RecordID
    /// The client's `x-request-id`, or `req_` and the record's id.
    let id: String
    let time: WallTime
    let start: Instant
    let key: ClientKey?
    /// As received; decoded once complete.
    var body: [UInt8] = []
    var receivedBytes = 0
    /// What `body` takes of the instance's memory.
    let memory: MemoryShare

    init(
        _ head: RequestHead, _ route: Route, recordID: RecordID, id: String, time: WallTime, start: Instant, key: ClientKey?,
        _ budget: MemoryBudget
    ) {
        (self.head, self.route, self.recordID, self.id) = (head, route, recordID, id)
        (self.time, self.start, self.key) = (time, start, key)
        memory = MemoryShare(budget, for: .request)
    }

    /// Makes room for `count` bytes more; false when the instance has none.
    func makeRoom(_ count: Int) -> Bool {
        let needed = body.count + count
        // Room that nothing has been written to yet is no memory: what has come is what counts.
        if needed > max(memory.bytes, Limits.memoryStepBytes), !memory.grow(to: needed + Limits.memoryStepBytes) { return false }
        if needed > Limits.bodyReservedBytes, body.count <= Limits.bodyReservedBytes, case .length(let whole) = head.framing {
            body.reserveCapacity(whole)
        }
        return true
    }

    /// The body is needed no more.
    func forgetBody() {
        body = []
        memory.set(0)
    }
}

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

/// One downstream HTTP/1.1 connection. Requests are answered one at a time, in order; what a client pipelines waits in `input`.
final class ClientConnection: ByteStreamDelegate {
    let worker: Worker
    let stream: ByteStream
    let isLocalPeer: Bool
    /// It has sent a request.
    private var hasAsked = false

    private enum Phase {
        /// Between requests.
        case idle
        /// Some bytes of a head are there.
        case head
        case body(ClientRequest, BodyDecoder)
        /// A request is being answered.
        case answering
        /// The last answer is out; what the client still sends is read and dropped, so that no reset destroys the answer.
        case lingering
        case closed
    }
    private var phase = Phase.idle
    private var input: [UInt8] = []
    private var scanned = 0
    private var isAdvancing = false
    /// The drain deadline has passed: nothing more is answered.
    private var isCut = false
    /// Of the bytes that are being advanced through, those behind the present request.
    private var unadvanced = 0
    private(set) var isHalfClosed = false
    private var probeAt = Instant.never
    private var probesLeft = 0
    private var deadline: Instant
    private var lingerUntil = Instant.never
    private var bodyMark = 0
    private var answering: (any Answering)?

    // The answer being written
    private var keepsAlive = true
    private var isHTTP10 = false
    private var isHead = false
    /// The web page that may read the answer.
    private var pageOrigin: String?
    private var answerHead: [UInt8] = []
    /// Some of it has been sent.
    private var hasBegun = false
    private var isChunked = false
    /// Body bytes of the answer that `flush` sends.
    var pending: [UInt8] = []
    private var answerBytes = 0
    private(set) var lastWrite: Instant
    private var stalledSince: Instant
    /// Everything written on this connection, and how much of it the client had taken when it was last seen to take some.
    private var writtenBytes = 0
    private var takenMark = 0

    /// Bytes of further requests that are kept while one is answered; above it the client is not read.
    static let pipelinedBytesMax = 64 * 1024
    /// How long a client that sends nothing more, and one that goes on sending, gets to read the last answer.
    static let lingerMilliseconds = 2_000
    static let lingerMillisecondsMax = 30_000
    static let probeMilliseconds = 1_000

    init(_ worker: Worker, _ stream: ByteStream) {
        (self.worker, self.stream) = (worker, stream)
        isLocalPeer = stream.peer?.isLoopback ?? false
        let now = worker.loop.turnTime
        deadline = now.adding(milliseconds: worker.settings.times.idle)
        (lastWrite, stalledSince) = (now, now)
        stream.delegate = self
        stream.startReading()
    }

    var isIdle: Bool { if case .idle = phase { true } else { false } }

    // MARK: Reading

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        switch phase {
        case .closed:
            return
        case .lingering:
            // A client in the middle of a large body gets to read its refusal.
            deadline = min(lingerUntil, worker.loop.turnTime.adding(milliseconds: Self.lingerMilliseconds))
        case .answering:
            input += bytes
            if input.count > Self.pipelinedBytesMax { stream.stopReading() }
        case .idle where isUnread, .head where isUnread:
            input += bytes
            if input.count > Self.pipelinedBytesMax { stream.stopReading() }
        case .idle, .head, .body:
            if input.isEmpty {
                var offset = 0
                advance(bytes.bytes, &offset)
                putBack(bytes[offset...])
            } else {
                input += bytes
                advanceInput()
            }
        }
    }

    /// The client has not taken the answers it has: it gets no more before it does.
    private var isUnread: Bool { stream.queuedBytes > Limits.downstreamHighBytes }

    /// Bytes that wait here or in the kernel's queue for this client, or of it.
    var bufferedBytes: Int { input.count + pending.count + stream.queuedBytes }

    private func advanceInput() {
        guard !isAdvancing, !input.isEmpty, !isUnread else { return }
        let whole = input
        input = []
        var offset = 0
        advance(whole.span.bytes, &offset)
        putBack(whole[offset...])
        endIfHalfClosed()
    }

    /// What could not be taken yet; a connection that ends takes no more.
    private func putBack(_ rest: some Collection<UInt8>) {
        switch phase {
        case .lingering, .closed: break
        case .idle, .head, .body, .answering: if !rest.isEmpty { input.insert(contentsOf: rest, at: 0) }
        }
    }

    /// Of a client that has sent its end nothing follows what is here: a request that is not whole by now never will be.
    private func endIfHalfClosed() {
        guard isHalfClosed, input.isEmpty || !isUnread else { return }
        switch phase {
        case .idle, .head, .body: linger()
        case .answering, .lingering, .closed: break
        }
    }

    /// Behind the present request there is more: a client that pipelines gets all of its answers, also of a worker that drains, until its
    /// deadline. What a worker that drains has not read yet counts too.
    private var isFollowed: Bool {
        guard !isCut else { return false }
        return unadvanced > 0 || hasInput || worker.isDraining && !isHalfClosed && stream.unreadBytes > 0
    }

    /// Of a further request.
    private var hasInput: Bool { input.withUnsafeBytes { !Self.isBlank($0.bytes) } }

    /// Nothing, or (the beginning of) the empty line that may stand before a request (RFC 9112 §2.2).
    private static func isBlank(_ bytes: RawSpan) -> Bool {
        switch bytes.byteCount {
        case 0: true
        case 1: bytes[0] == Ascii.cr
        case 2: bytes[0] == Ascii.cr && bytes[1] == Ascii.lf
        default: false
        }
    }

    /// Takes requests from `bytes` for as long as they can be answered at once.
    private func advance(_ bytes: RawSpan, _ offset: inout Int) {
        isAdvancing = true
        defer { (isAdvancing, unadvanced) = (false, 0) }
        do throws(WireError) {
            while offset < bytes.byteCount {
                switch phase {
                case .idle, .head:
                    if isUnread { return }
                    if case .idle = phase {
                        if Self.isBlank(bytes.extracting(droppingFirst: offset)) {  // no request has begun
                            if bytes.byteCount - offset == 2 { offset += 2 }
                            return
                        }
                        phase = .head
                        scanned = 0
                        deadline = worker.loop.turnTime.adding(milliseconds: worker.settings.times.head)
                    }
                    guard let (head, consumed) = try RequestHead.parse(bytes.extracting(droppingFirst: offset), scanned: &scanned) else {
                        return
                    }
                    offset += consumed
                    unadvanced = Self.meaning(bytes, offset)
                    scanned = 0
                    received(head)
                case .body(let request, var decoder):
                    let isComplete = try takeBody(request, &decoder, bytes, &offset)
                    unadvanced = Self.meaning(bytes, offset)
                    if case .body = phase { phase = .body(request, decoder) }
                    if isComplete { complete(request) }
                case .answering, .lingering, .closed:
                    return
                }
            }
        } catch {
            refuse(error)
        }
    }

    /// Bytes from `offset` on that are (the beginning of) another request.
    private static func meaning(_ bytes: RawSpan, _ offset: Int) -> Int {
        let rest = bytes.extracting(droppingFirst: offset)
        return isBlank(rest) ? 0 : rest.byteCount
    }

    /// A request that can't be read: answered, then the connection ends, since nobody knows where the next one begins.
    private func refuse(_ error: WireError) {
        worker.scoreboard.add(.admissionRefused, worker: worker.slot)
        let code = error.status == 413 ? "payload_too_large" : "invalid_request_error"
        refuse(ProxyError(status: error.status, code: code, type: "invalid_request_error", message: error.reason, origin: .downstream))
    }

    private func refuse(_ error: ProxyError) {
        keepsAlive = false
        (isHead, isHTTP10) = (false, false)
        respond(error, requestID: nil)
    }

    private func takeBody(_ request: ClientRequest, _ decoder: inout BodyDecoder, _ bytes: RawSpan, _ offset: inout Int) throws(WireError)
        -> Bool
    {
        while let piece = try decoder.next(bytes, &offset) {
            switch piece {
            case .data(let range):
                request.receivedBytes += range.count
                guard request.receivedBytes <= request.route.bodyBytesMax else { throw tooLarge(request.route) }
                guard request.makeRoom(range.count) else {
                    worker.scoreboard.add(.admissionRefused, worker: worker.slot)
                    refuse(MemoryBudget.overloaded("the request body does not fit"))
                    return false
                }
                bytes.extracting(range).withUnsafeBytes { request.body += $0 }
            case .end:
                return true
            }
        }
        return false
    }

    private func tooLarge(_ route: Route) -> WireError {
        WireError(413, "The request body is larger than \(route.bodyBytesMax) bytes")
    }

    private func received(_ head: RequestHead) {
        let now = worker.loop.turnTime
        hasAsked = true
        keepsAlive = head.keepsAlive
        isHTTP10 = head.minorVersion == 0
        isHead = head.method == .head
        pageOrigin = nil
        let time = Clock.wall
        let recordID = worker.makeID(time)
        var id = head.fields.first(.requestID) ?? ""
        if id.isEmpty || id.utf8.count > Limits.requestIDBytesMax || !id.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) {
            id = "req_" + recordID.description
        }
        // A body that nobody will read ends the connection after the answer.
        func answerAtOnce(_ error: ProxyError, _ extra: [(String, String)] = []) {
            if head.framing != .none { keepsAlive = false }
            worker.log.refused(
                error.code, ["request_id": "\(id)", "method": "\(head.method.text)", "status": "\(error.status)"])
            respond(error, requestID: id, extra)
        }
        switch worker.originPolicy.verdict(head.fields) {
        case .pass: break
        case .allowed(let origin): pageOrigin = origin
        case .refused:
            worker.scoreboard.add(.admissionRefused, worker: worker.slot)
            return answerAtOnce(OriginPolicy.refusal)
        }
        if head.method == .options {
            if head.framing != .none { keepsAlive = false }
            return options(head, requestID: id)
        }
        guard let route = Route(path: head.path) else {
            return answerAtOnce(
                ProxyError(
                    status: 404, code: "not_found", type: "invalid_request_error",
                    message: "No such path: \(head.method.text) \(head.path)",
                    origin: .downstream))
        }
        guard head.method == route.method || (head.method == .head && route.method == .get) else {
            return answerAtOnce(
                ProxyError(
                    status: 405, code: "method_not_allowed", type: "invalid_request_error",
                    message: "\(route.rawValue) takes \(route.method.text), not \(head.method.text)", origin: .downstream),
                [("Allow", route.method.text)])
        }
        var key: ClientKey?
        if route.isProxied {
            switch worker.admit(head, isLocalPeer: isLocalPeer) {
            case .success(let found): key = found
            case .failure(let error):
                worker.scoreboard.add(.admissionRefused, worker: worker.slot)
                return answerAtOnce(error, error.status == 401 ? [("WWW-Authenticate", "Bearer")] : [])
            }
        }
        if case .length(let count) = head.framing, count > route.bodyBytesMax {
            let error = tooLarge(route)
            return answerAtOnce(
                ProxyError(
                    status: 413, code: "payload_too_large", type: "invalid_request_error", message: error.reason, origin: .downstream))
        }
        if head.framing != .none, !worker.memory.hasRoom(0, for: .request) {
            worker.scoreboard.add(.admissionRefused, worker: worker.slot)
            return answerAtOnce(MemoryBudget.overloaded("no further request body is taken"))
        }
        let request = ClientRequest(head, route, recordID: recordID, id: id, time: time, start: now, key: key, worker.memory)
        if head.expectsContinue, head.framing != .none, !isHTTP10 { stream.write(Array("HTTP/1.1 100 Continue\r\n\r\n".utf8)) }
        switch head.framing {
        case .none, .length(0):
            complete(request)
        default:
            if case .length(let count) = head.framing { request.body.reserveCapacity(min(count, Limits.memoryStepBytes)) }
            phase = .body(request, BodyDecoder(head.framing))
            bodyMark = 0
            deadline = now.adding(milliseconds: worker.settings.times.bodyProgress)
        }
    }

    /// What a path takes, and to a page that may call what it asks for (Fetch standard, CORS-preflight).
    private func options(_ head: RequestHead, requestID: String) {
        phase = .answering
        let method = Route(path: head.path)?.method.text
        let asked = head.fields.first(named: "access-control-request-headers")
        beginAnswer(status: 204, length: nil) { out in
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

    private func complete(_ request: ClientRequest) {
        phase = .answering
        deadline = .never
        let encodings = request.head.fields.contentEncodings
        guard request.route.isTurn else { return worker.answer(request, on: self) }
        let body = request.body
        request.body = []
        let inline = Limits.inlineBodyBytesMax
        if body.count <= inline {
            // A small body may unpack to a large one: then the attempt ends early and the thread pool does it.
            let (reading, isLarger) = Self.read(
                body, encodings, request.route, bytesMax: encodings.isEmpty ? inline : min(inline, request.route.bodyBytesMax))
            if !isLarger { return finish(request, reading) }
        }
        unpack(request, body, encodings, room: encodings.isEmpty ? body.count : max(1 << 20, 8 * body.count))
    }

    private func finish(_ request: ClientRequest, _ reading: Result<TurnRequest, ProxyError>) {
        guard case .answering = phase else { return }
        if case .success(let ask) = reading, ask.memoryBytes > Limits.memoryStepBytes, !request.memory.resize(to: ask.memoryBytes) {
            return respond(MemoryBudget.overloaded("the request body does not fit"), requestID: request.id)
        }
        worker.startTurn(request, reading, self)
    }

    /// Reads a body on the thread pool. What a packed one unpacks to has its room before it is unpacked: more is tried with more.
    private func unpack(_ request: ClientRequest, _ body: [UInt8], _ encodings: [String], room: Int) {
        let route = request.route
        let room = min(room, route.bodyBytesMax)
        guard encodings.isEmpty || request.memory.resize(to: body.count + room) else {
            return respond(MemoryBudget.overloaded("the request body does not fit when it is unpacked"), requestID: request.id)
        }
        worker.bodyWork.run({ Self.read(body, encodings, route, bytesMax: room) }) { [self] reading, isLarger in
            guard isLarger, room < route.bodyBytesMax else { return finish(request, reading) }
            guard case .answering = phase else { return }
            unpack(request, body, encodings, room: 4 * room)
        }
    }

    /// Unpacks and reads a request's body; `isLarger`: more than `bytesMax` came out.
    private static func read(
        _ body: [UInt8], _ encodings: [String], _ route: Route, bytesMax: Int
    ) -> (reading: Result<TurnRequest, ProxyError>, isLarger: Bool) {
        do throws(InflateError) {
            let whole = encodings.isEmpty ? body : try Inflate.decode(body, encodings: encodings, bytesMax: bytesMax)
            return (Result { () throws(ProxyError) in try TurnRequest(whole, route: route) }, false)
        } catch {
            return (.failure(problem(error, bytesMax)), error == .tooLarge)
        }
    }

    private static func problem(_ error: InflateError, _ limit: Int) -> ProxyError {
        switch error {
        case .unsupported(let name):
            ProxyError(
                status: 400, code: "invalid_request_error", type: "invalid_request_error",
                message: "Content-Encoding \"\(name)\" is not supported; send gzip, deflate, zstd or no encoding", origin: .downstream)
        case .malformed(let name):
            ProxyError(
                status: 400, code: "invalid_request_error", type: "invalid_request_error",
                message: "The request body is no valid \(name) data", origin: .downstream)
        case .tooLarge:
            ProxyError(
                status: 413, code: "payload_too_large", type: "invalid_request_error",
                message: "The request body is larger than \(limit) bytes after decompression", origin: .downstream)
        }
    }

    // MARK: Answering

    /// Tells this object of the client's fate until the answer is finished.
    func answered(by answering: any Answering) { self.answering = answering }

    func respond(_ error: ProxyError, requestID: String?, _ extra: [(String, String)] = []) {
        var fields = extra
        if let seconds = error.retryAfterSeconds { fields.append(("Retry-After", String(seconds))) }
        respond(error.status, "application/json", ErrorEnvelope.body(error), requestID: requestID, fields)
    }

    /// A whole answer at once.
    func respond(_ status: Int, _ contentType: String, _ body: [UInt8], requestID: String?, _ extra: [(String, String)] = []) {
        guard !isClosed else { return }  // it went while the answer was made
        phase = .answering
        beginAnswer(status: status, length: body.count) { head in
            HeadWriter.field("Content-Type", contentType, into: &head)
            if let requestID { HeadWriter.field("X-Request-Id", requestID, into: &head) }
            for (name, value) in extra { HeadWriter.field(named: name, value, into: &head) }
        }
        body.withUnsafeBytes { append($0.bytes) }
        endAnswer()
    }

    /// Starts an answer; nothing is sent before `flush`. `length` nil: as long as it takes.
    func beginAnswer(status: Int, length: Int?, _ fields: (inout [UInt8]) -> Void) {
        precondition(answerHead.isEmpty)
        let isBodiless = status == 204 || status == 304  // RFC 9112 §6.3: what looked like a body would be read as the next answer
        isChunked = length == nil && !isHTTP10 && !isBodiless
        if length == nil, isHTTP10 { keepsAlive = false }
        if worker.isDraining, !isFollowed { keepsAlive = false }
        HeadWriter.status(status, into: &answerHead)
        answerHead += worker.dateField
        fields(&answerHead)
        if let pageOrigin {
            HeadWriter.field("Access-Control-Allow-Origin", pageOrigin, into: &answerHead)
            HeadWriter.field("Access-Control-Expose-Headers", "*", into: &answerHead)
            HeadWriter.field("Vary", "Origin", into: &answerHead)
        }
        if let length, !isBodiless { HeadWriter.field("Content-Length", String(length), into: &answerHead) }
        if isChunked { HeadWriter.field("Transfer-Encoding", "chunked", into: &answerHead) }
        if !keepsAlive {
            HeadWriter.field("Connection", "close", into: &answerHead)
        } else if isHTTP10 {
            HeadWriter.field("Connection", "keep-alive", into: &answerHead)  // else it would wait for our end
        }
        HeadWriter.end(into: &answerHead)
        worker.count(status: status)
    }

    func append(_ bytes: RawSpan) {
        guard !isHead else { return }
        worker.spares.take(&pending)
        pending.append(bytes)
    }

    /// Sends what has been gathered, as one chunk in one write.
    func flush() {
        guard !pending.isEmpty || !answerHead.isEmpty else { return }
        send(isLast: false)
    }

    private func send(isLast: Bool) {
        if case .closed = phase { return }
        worker.scratch.removeAll(keepingCapacity: true)
        hasBegun = true
        defer { if worker.scratch.capacity > Limits.scratchBytesMax { worker.scratch = [] } }
        if !answerHead.isEmpty {
            worker.scratch += answerHead
            answerHead = []
        }
        if !pending.isEmpty {
            if isChunked { HeadWriter.chunkStart(count: pending.count, into: &worker.scratch) }
            worker.scratch += pending
            if isChunked { worker.scratch += [13, 10] }
            answerBytes += pending.count
            pending.removeAll(keepingCapacity: true)
            worker.spares.give(&pending)
        }
        if isLast, isChunked, !isHead { worker.scratch += HeadWriter.lastChunk }
        lastWrite = worker.loop.turnTime
        if stream.queuedBytes == 0 { stalledSince = lastWrite }
        writtenBytes += worker.scratch.count
        stream.write(worker.scratch)
    }

    /// Body bytes of the present answer, those not yet sent included.
    var bodyBytes: Int { answerBytes + pending.count }

    /// Bytes the client has not taken yet.
    var queuedBytes: Int { stream.queuedBytes }

    /// Everything of this answer has been given; the next request may come.
    func endAnswer() {
        send(isLast: true)
        if case .closed = phase { return }
        answering = nil
        hasBegun = false
        answerBytes = 0
        pending = []
        if !keepsAlive || worker.isDraining && !isFollowed { return linger() }
        phase = .idle
        deadline = worker.loop.turnTime.adding(milliseconds: worker.settings.times.idle)
        if isAdvancing { return }  // it has the bytes of further requests and goes on with them
        if !isHalfClosed { stream.startReading() }
        if input.isEmpty { endIfHalfClosed() } else { advanceInput() }
        if input.count > Self.pipelinedBytesMax { stream.stopReading() }
    }

    /// Nothing more will be answered: the connection ends once the client has taken what was written.
    private func linger() {
        phase = .lingering
        let now = worker.loop.turnTime
        deadline = now.adding(milliseconds: Self.lingerMilliseconds)
        lingerUntil = now.adding(milliseconds: Self.lingerMillisecondsMax)
        input = []
        if isHalfClosed, stream.queuedBytes == 0 { return close() }
        stream.shutdown()
        if !isHalfClosed { stream.startReading() }
    }

    /// The answer can't be completed: the client must see that it is cut.
    func abort() {
        guard !isClosed else { return }
        answering = nil
        markClosed()
        stream.reset()
    }

    // MARK: The end

    func streamEnded(_ stream: ByteStream) {
        isHalfClosed = true
        (probeAt, probesLeft) = (worker.loop.turnTime.adding(milliseconds: Self.probeMilliseconds), 2)
        switch phase {
        case .answering, .closed: break  // a client may close its sending side and wait for the answer
        case .lingering: if stream.queuedBytes == 0 { close() }
        case .idle where !input.isEmpty, .head where isUnread: break  // whole requests wait here until the client has read
        case .idle, .head, .body: linger()
        }
    }

    func streamFailed(_ stream: ByteStream, _ error: LoopError) { close() }

    func streamDrained(_ stream: ByteStream) {
        stalledSince = worker.loop.turnTime
        if case .lingering = phase, isHalfClosed { return close() }
        answering?.clientDrained()
        switch phase {
        case .idle, .head:
            if !isHalfClosed { stream.startReading() }
            advanceInput()
            if input.isEmpty { endIfHalfClosed() }
        case .body, .answering, .lingering, .closed: break
        }
    }

    private var isClosed: Bool { if case .closed = phase { true } else { false } }

    private func markClosed() {
        phase = .closed
        input = []
        worker.closed(self)
    }

    func close() {
        guard !isClosed else { return }
        let answering = self.answering
        self.answering = nil
        markClosed()
        stream.close()
        answering?.clientGone()
    }

    /// Enforces the deadlines. Their precision is the sweep's period.
    func sweep(_ now: Instant) {
        if isStalled(now) { return }
        switch phase {
        case .idle, .lingering:
            if stream.queuedBytes > 0 {
                // The end of an answer is still on its way.
                deadline = max(deadline, now.adding(milliseconds: Self.lingerMilliseconds))
            } else if now >= deadline {
                close()
            }
        case .head:
            if now >= deadline {
                refuse(WireError(408, "The request head was not complete after \(worker.settings.times.head / 1000) seconds"))
            }
        case .body(let request, _):
            guard now >= deadline else { return }
            if request.receivedBytes - bodyMark < Limits.bodyProgressBytes {
                refuse(
                    WireError(
                        408,
                        "The request body brought less than \(Limits.bodyProgressBytes) bytes in \(worker.settings.times.bodyProgress / 1000) seconds"
                    ))
            } else {
                bodyMark = request.receivedBytes
                deadline = now.adding(milliseconds: worker.settings.times.bodyProgress)
            }
        case .answering:
            // Behind its end the loop hears nothing more of it: that the kernel has given it up is to be asked for.
            if isHalfClosed, stream.isLost { return close() }
            probe(now)
            answering?.sweep(now)
        case .closed:
            break
        }
    }

    /// A client that has sent its end waits for its answer or is gone; only writing tells. Before an answer has begun there is one thing
    /// that may be written: an interim response, which every HTTP/1.1 client skips (RFC 9110 §15.2). To the first one a client that is
    /// gone answers with a reset, which the second one meets; some clients bear no more than a few.
    private func probe(_ now: Instant) {
        guard now >= probeAt, probesLeft > 0, !isHTTP10, !hasBegun else { return }
        probesLeft -= 1
        probeAt = now.adding(milliseconds: Self.probeMilliseconds)
        stream.write(Array("HTTP/1.1 100 Continue\r\n\r\n".utf8))
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

    /// The worker drains: an idle connection ends, a busy one after its answer. One whose request is already here, or whose first is yet
    /// to come, is not idle until `idleToo` says so.
    func drain(idleToo: Bool) {
        switch phase {
        case .idle where hasInput: break  // requests that wait until the client has read
        case .idle:
            if stream.queuedBytes > 0 { linger() } else if idleToo || hasAsked && stream.unreadBytes == 0 { close() }
        case .head, .body, .answering, .lingering, .closed: break  // an answer that nothing follows ends it
        }
    }

    /// The drain deadline has passed.
    func cut() {
        (isCut, keepsAlive, input) = (true, false, [])
        if let answering { answering.cut() } else { close() }
    }
}

extension StringProtocol {
    var trimmingSpaces: String {
        var part = self[...]
        while part.first == " " || part.first == "\t" { part = part.dropFirst() }
        while part.last == " " || part.last == "\t" { part = part.dropLast() }
        return String(part)
    }
}
