import Diagnostics
import Exchange
import HTTPWire
import JSONWire
import Logging
import Loop
import Metering
import Platform
import Routing
import Settings
import Translation
import Vocabulary

/// Performs one `Exchange`: chooses accounts, sends the request, passes the answer on and accounts for it.
///
/// Lives until its record is in the journal and its answer is out; `Worker.turns` holds it.
final class Turn: UpstreamUser, Answering {
    unowned let worker: Worker
    let request: ClientRequest
    private(set) var ask: TurnRequest
    /// A large body as this kind of account gets it.
    private var prepared: (kind: Account.Kind, body: [UInt8])?
    weak var client: ClientConnection?
    var exchange = Exchange()
    var findings = UsageFindings()
    /// How the present upstream answer is passed on.
    var answer = AnswerMode.none
    var splitter = EventSplitter(eventBytesMax: Limits.eventBytesMax)
    /// Events that are kept back while another account may still be tried.
    var heldBack: [UInt8] = []
    var sawCreated = false
    /// Choices of a chat stream that have begun, and whether each goes on.
    var openChoices: [Int64: Bool] = [:]
    /// A chunk without choices has told the usage of the whole chat.
    var hasFinalUsage = false
    var responseHead: ResponseHead?
    /// The last attempt's error answer, for the client when no account is left.
    private var refused: (head: ResponseHead, body: [UInt8])?
    /// Output items of a stream, for answers whose terminal event leaves them out.
    var items: [[UInt8]] = []
    var itemsBytes = 0
    /// There was no room for some of them.
    var itemsLost = false
    /// What `keptBytes` takes of the instance's memory; nil while it is little.
    private var kept: MemoryShare?

    private var account: RoutedAccount?
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    private var wakeAt = Instant.never
    private var firstByteBy = Instant.never
    /// The body of an error answer is awaited until then.
    private var refusalBy = Instant.never
    var idleSince: Instant
    private var acceptedAt = Instant.never
    private var isPaused = false
    private var isSettled = false
    private var settledAt = Instant.never
    /// Rises when an attempt is given up: what its answer still brings is ignored.
    private var attemptNumber = 0
    private var firstByteMilliseconds: Int?
    /// The client has left; until `usageBy` the upstream may still tell what the answer cost.
    private var isClientGone = false
    private var usageBy = Instant.never
    /// Events of the answer that tell something of its text: about as many tokens.
    var outputEvents = 0

    /// What becomes of an upstream's answer.
    enum AnswerMode {
        case none
        /// An error status: its body is read to decide.
        case refusal([UInt8])
        /// A success that should be events, whatever its type says: its first byte tells what it is.
        case undecided
        /// JSON where events belong: read whole before anything of it is told.
        case gathered([UInt8])
        /// Server-sent events, passed on one by one.
        case events
        /// Server-sent events of the Responses API, told as a chat stream.
        case chatEvents(ChatStreamTranslator)
        /// A body passed on as it comes; a copy is kept for its usage.
        case body(AnswerCopy)
        /// Server-sent events that become one JSON answer.
        case assembled
    }

    init(_ worker: Worker, _ request: ClientRequest, _ ask: TurnRequest, _ client: ClientConnection) {
        (self.worker, self.request, self.ask, self.client) = (worker, request, ask, client)
        idleSince = worker.loop.now
    }

    var isChatGPT: Bool { account?.value.kind == .chatGPT }

    // MARK: Selection and dispatch

    func start() {
        worker.scoreboard.add(.turnsOpen, worker: worker.slot)
        client?.answered(by: self)
        select()
    }

    private func select() {
        switch worker.choose(for: request.route, model: ask.model, excluding: exchange.tried) {
        case .account(let chosen):
            lease(chosen)
            exchange.accountSelected(chosen.value.id)
            dispatch()
        case .allTried where exchange.lastFailure != nil, .allLimited where exchange.lastFailure != nil:
            surface(exchange.lastFailure!)
        case .allLimited(let until):
            let seconds = max(1, Int((until.milliseconds - Clock.wall.milliseconds + 999) / 1000))
            fail(
                ProxyError(
                    status: 429, code: "usage_limit_reached", type: "usage_limit_reached",
                    message: "Every account has reached its limit. Try again in \(seconds)s", origin: .upstream, retryAfterSeconds: seconds,
                    resetsAt: (until.milliseconds + 999) / 1000))
        case .noneEligible, .allTried:
            fail(worker.noAccounts(for: request.route), inStream: true)
        }
    }

    private func lease(_ chosen: RoutedAccount) {
        release()
        account = chosen
        worker.scoreboard.turnStarted(account: chosen.value.slot, worker: worker.slot, now: worker.loop.now)
    }

    private func release() {
        guard let account else { return }
        worker.scoreboard.turnEnded(account: account.value.slot, worker: worker.slot)
    }

    /// `isAgain`: the request went out on a kept connection whose upstream had already closed it.
    private func dispatch(isAgain: Bool = false) {
        guard let account, let path = request.route.upstreamPath(account.value.kind) else { return }
        if ask.isLongToRewrite(account.value.kind), prepared?.kind != account.value.kind {
            return prepare(account.value.kind) { [unowned self] in dispatch(isAgain: isAgain) }
        }
        // A kept connection is given at once, and what follows may already have asked for the next one.
        var isDone = false
        let attempt = worker.pool.connection(to: account.origin, fresh: isAgain) { [weak self] result in
            isDone = true
            guard let self, !isSettled, !exchange.isFinished else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            connecting = nil
            switch result {
            case .success(let connection):
                worker.scoreboard.reached(account: account.value.slot)
                send(on: connection, account, path, isAgain: isAgain)
            case .failure(.unreachable(let why)): attemptFailed(.notConnected(why))
            case .failure(.untrusted(let why)): attemptFailed(.untrusted(why))
            case .failure(.exhausted(let why)): attemptFailed(.exhausted(why))
            }
        }
        if !isDone { connecting = attempt }
    }

    /// A large body is rewritten on the thread pool, before there is a connection that would wait for it.
    private func prepare(_ kind: Account.Kind, then next: @escaping () -> Void) {
        let (ask, memory) = (ask, request.memory)
        worker.bodyWork.run({ Result { () throws(ProxyError) in try ask.upstreamBody(kind) } }) { [weak self] result in
            // The body stays counted until the thread pool has given it back, also when its client has left.
            withExtendedLifetime(memory) {}
            guard let self, !exchange.isFinished else { return }
            switch result {
            case .success(let body):
                guard memory.grow(to: ask.memoryBytes + body.count) else {
                    return fail(MemoryBudget.overloaded("the request body does not fit twice, as its upstream needs it rewritten"))
                }
                prepared = (kind, body)
                next()
            case .failure(let error): fail(error)
            }
        }
    }

    private func send(on connection: UpstreamConnection, _ account: RoutedAccount, _ path: String, isAgain: Bool) {
        let body: [UInt8]
        do throws(ProxyError) {
            body = prepared?.kind == account.value.kind ? prepared!.body : try ask.upstreamBody(account.value.kind)
        } catch {
            connection.giveBack()
            return fail(error)
        }
        guard connection.isFit() else {
            // Nothing was sent. A kept connection may have ended unnoticed; a new one that already speaks will do so again.
            return connection.isReused ? dispatch(isAgain: isAgain) : attemptFailed(.notConnected("it sent bytes before it was asked"))
        }
        if !isAgain { exchange.requestDispatched() }
        self.connection = connection
        let head = UpstreamRequest.head(request, account, target: account.prefix + path, bodyCount: body.count)
        // A small body travels with its head in one packet.
        connection.send(body.count < 16 * 1024 ? [head + body] : [head, body], method: .post, for: self)
    }

    /// Nothing has been seen by the client: what now?
    func attemptFailed(_ failure: Failure) {
        if isClientGone {
            connection?.close()
            return abandon(errorCode: "client_disconnected", status: 499)
        }
        firstByteBy = .never
        refusalBy = .never
        acceptedAt = .never
        connection = nil
        if case .refusal(let body) = answer, let head = responseHead { refused = (head, body) } else { refused = nil }
        let wall = Clock.wall
        let (action, penalty) = exchange.attemptFailed(failure, now: wall, jitter: Double.random(in: -1...1), model: ask.model)
        if let account { worker.penalise(account, ask.model, penalty, failure, requestID: request.id) }
        switch action {
        case .surface(let failure):
            surface(failure)
        case .select:
            worker.scoreboard.add(.failovers, worker: worker.slot)
            forgetAnswer()
            select()
        case .dispatch(let wait):
            worker.scoreboard.add(.retries, worker: worker.slot)
            forgetAnswer()
            wakeAt = worker.loop.now.adding(milliseconds: wait)
        }
    }

    /// The stream's first telling event is a failure that another account may make good.
    func failedBeforeVisible(_ refusal: UpstreamRefusal) {
        connection?.close()
        attemptFailed(.failedEvent(refusal))
    }

    /// The next attempt starts clean.
    private func forgetAnswer() {
        attemptNumber += 1
        answer = .none
        splitter = EventSplitter(eventBytesMax: Limits.eventBytesMax)
        heldBack = []
        (sawCreated, openChoices, hasFinalUsage, outputEvents) = (false, [:], false, 0)
        (items, itemsBytes, itemsLost) = ([], 0, false)
        kept = nil
        responseHead = nil
        isPaused = false
        findings = UsageFindings()
    }

    // MARK: The upstream's answer

    func upstreamResponded(_ head: ResponseHead) {
        firstByteBy = .never
        idleSince = worker.loop.now
        responseHead = head
        guard (200..<300).contains(head.status) else {
            answer = .refusal([])
            refusalBy = worker.loop.now.adding(milliseconds: Limits.errorBodyMilliseconds)
            return
        }
        exchange.responseAccepted()
        acceptedAt = worker.loop.now
        let type = head.fields.first(.contentType)?.lowercased() ?? ""
        let mayBeEvents = ask.wantsStream || isChatGPT || type.hasPrefix("text/event-stream")
        answer = mayBeEvents || type.hasPrefix("text/html") ? .undecided : .body(AnswerCopy())
    }

    private var eventsMode: AnswerMode {
        if !ask.wantsStream, isChatGPT { return .assembled }
        guard request.route == .chatCompletions, isChatGPT else { return .events }
        return .chatEvents(
            ChatStreamTranslator(
                model: ask.model, includeUsage: ask.includesUsage, created: request.time.seconds, id: "chatcmpl-" + request.id))
    }

    /// White space and a byte order mark mean nothing to either kind.
    private func decide(_ bytes: RawSpan) {
        let (blank, first) = bytes.withUnsafeBytes { raw in
            let rest = raw.dropFirst(raw.starts(with: [0xEF, 0xBB, 0xBF]) ? 3 : 0).drop { $0 == 0x20 || $0 >= 0x09 && $0 <= 0x0D }
            return (raw.count - rest.count, rest.first)
        }
        guard let first else { return }
        switch first {
        case UInt8(ascii: "<"):  // some gateway's page: no client of an API reads it
            let why = "status \(responseHead?.status ?? 0) with a page of HTML"
            if !exchange.isInvisible { return streamBroke(code: "upstream_unavailable", message: why) }
            connection?.close()
            return attemptFailed(.broken(why))
        case UInt8(ascii: "{"), UInt8(ascii: "["):
            answer = ask.wantsStream || isChatGPT ? .gathered([]) : .body(AnswerCopy())
        default: answer = eventsMode
        }
        upstreamSent(bytes.extracting(droppingFirst: blank))
    }

    func upstreamSent(_ bytes: RawSpan) {
        idleSince = worker.loop.now
        switch answer {
        case .none:
            break
        case .undecided:
            return decide(bytes)
        case .refusal(var body):
            answer = .none  // sole owner while appending
            let room = max(0, Limits.errorBodyBytesMax - body.count)
            bytes.withUnsafeBytes { body += $0.prefix(room) }
            answer = .refusal(body)
            if bytes.byteCount > room {  // the rest is not worth waiting for
                connection?.close()
                return refusedInPart(body)
            }
        case .gathered(var body):
            answer = .none
            let isTooLarge = body.count + bytes.byteCount > Limits.eventBytesMax
            if !isTooLarge { bytes.withUnsafeBytes { body += $0 } }
            answer = .gathered(body)
            if isTooLarge { return streamBroke(code: "upstream_unavailable", message: "The upstream's JSON answer is too large") }
        case .body(var copy):
            answer = .none
            copy.append(bytes)
            answer = .body(copy)
            beginBodyIfNeeded()
            client?.append(bytes)
        case .events, .chatEvents, .assembled:
            // An event may end the attempt, and the next one has a splitter of its own: this one is taken out while it works.
            var feeding = EventSplitter(eventBytesMax: Limits.eventBytesMax)
            swap(&feeding, &splitter)
            let attempt = attemptNumber
            do throws(WireError) {
                try feeding.feed(bytes) { event in
                    if attempt == attemptNumber { received(event: event) }
                }
            } catch {
                if attempt == attemptNumber { streamBroke(code: "stream_event_too_large", message: error.reason) }
                return
            }
            if attempt == attemptNumber { swap(&feeding, &splitter) }
        }
        makeRoomForKept()
    }

    /// Bytes of the answer that are held here.
    private var keptBytes: Int {
        let copied =
            switch answer {
            case .body(let copy): copy.bytes.count
            case .refusal(let body), .gathered(let body): body.count
            default: 0
            }
        return copied + splitter.heldBytes + heldBack.count + itemsBytes
    }

    /// Counts what is kept. When the instance has no room for it, what the client's answer can do without goes first.
    private func makeRoomForKept() {
        guard !exchange.isFinished, !countKept() else { return }
        switch answer {
        case .body(var copy):
            answer = .none
            copy.giveUp()  // its usage stands near its end, or is estimated
            answer = .body(copy)
        case .events, .chatEvents, .assembled:
            (items, itemsBytes, itemsLost) = ([], 0, itemsLost || !items.isEmpty)
            if countKept() { return }
            return streamBroke(MemoryBudget.overloaded("an event of the answer does not fit"))
        case .gathered:
            return streamBroke(MemoryBudget.overloaded("the answer does not fit"))
        case .none, .undecided, .refusal:
            break  // small, and needed
        }
        _ = countKept()
    }

    private func countKept() -> Bool {
        let bytes = keptBytes
        guard bytes > Limits.memoryStepBytes else {
            kept = nil
            return true
        }
        let share = kept ?? MemoryShare(worker.memory, for: .answer)
        kept = share
        if bytes > share.bytes { return share.grow(to: bytes + Limits.memoryStepBytes) }
        if share.bytes - bytes > 2 * Limits.memoryStepBytes { share.set(bytes + Limits.memoryStepBytes) }
        return true
    }

    func upstreamPaused() {
        guard let client, exchange.state == .visible else { return }
        if case .body(let copy) = answer {
            // The last bytes wait for the record; everything before them goes out now.
            if let whole = responseHead?.fields.first(.contentLength).flatMap({ Int($0) }), copy.count >= whole { return }
        }
        client.flush()
        if client.queuedBytes > Limits.downstreamHighBytes, !isPaused {
            isPaused = true
            connection?.pause()
        }
    }

    func clientDrained() {
        guard isPaused else { return }
        isPaused = false
        idleSince = worker.loop.now
        connection?.resume()
    }

    func upstreamCompleted() {
        connection = nil
        switch answer {
        case .none: break
        case .undecided:
            answer = eventsMode
            endOfEvents()
        case .refusal(let body): attemptFailed(.refused(refusal(body)))
        case .gathered(let body): tell(gathered: body)
        case .body(let copy):
            beginBodyIfNeeded()
            let tail = copy.isWhole ? [] : copy.usageInTail
            let body = copy.isWhole ? copy.bytes.span.bytes : tail.span.bytes
            switch request.route {
            case .chatCompletions: UsageTap.chatChunk(body, into: &findings)
            case .embeddings: UsageTap.embeddingsBody(body, into: &findings)
            default: UsageTap.responsesBody(body, into: &findings)
            }
            let failure = copy.isWhole ? UpstreamRefusal(answer: body) : nil
            settle(status: responseHead?.status ?? 200, errorCode: failure.map { $0.code.isEmpty ? "upstream_error" : $0.code } ?? "")
            finishAnswer()
        case .events, .chatEvents, .assembled:
            endOfEvents()
        }
    }

    func upstreamTookRequest() {
        if exchange.state == .visible { request.memory.set(0) }
        guard exchange.state == .dispatched, responseHead == nil else { return }
        firstByteBy = worker.loop.now.adding(milliseconds: worker.settings.times.firstByte)
    }

    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) {
        connection = nil
        guard !exchange.isFinished else { return }
        switch exchange.state {
        case .dispatched:
            if case .refusal(let body) = answer { return refusedInPart(body) }
            if progress == .unread, !isClientGone, exchange.staleConnectionFound() { return dispatch(isAgain: true) }
            attemptFailed(.broken(why))
        case .accepted, .visible:
            if case .body = answer {
                if exchange.isInvisible { return attemptFailed(.broken(why)) }
                settle(status: 502, errorCode: "upstream_unavailable")
                exchange.finished()
                client?.abort()
                worker.ended(self)
            } else {
                streamBroke(code: isSettled ? "" : brokenCode, message: "The upstream's stream was cut: \(why)")
            }
        case .admitted, .selected, .finished:
            break
        }
    }

    private var brokenCode: String {
        if isBare { return "upstream_unavailable" }
        return request.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated"
    }

    /// The status is known, only its body is cut: no client can read that, so it gets one of ours.
    private func refusedInPart(_ body: [UInt8]) {
        let refusal = refusal(body)
        answer = .none
        attemptFailed(.refused(refusal))
    }

    private func refusal(_ body: [UInt8]) -> UpstreamRefusal {
        body.withUnsafeBytes {
            UpstreamRefusal(status: responseHead?.status ?? 502, body: $0.bytes, fields: responseHead?.fields ?? HeaderFields())
        }
    }

    // MARK: Answering the client

    /// The first bytes of the answer are about to go out: from here on no other account.
    func becomeVisible() {
        guard exchange.state == .accepted else { return }
        exchange.becameVisible()
        acceptedAt = .never
        noteFirstByte()
        ask.forgetBody()
        prepared = nil
        // What is still on its way to an upstream that answered early is held until it is out.
        if connection?.isRequestOut ?? true { request.memory.set(0) }
    }

    /// What a failure that is told, not failed over, says of the account.
    func penalise(_ refusal: UpstreamRefusal, _ penalty: Verdict.Penalty) {
        if let account { worker.penalise(account, ask.model, penalty, .failedEvent(refusal), requestID: request.id) }
    }

    /// No event has told anything of the answer yet.
    var isBare: Bool { !sawCreated && outputEvents == 0 }

    private func noteFirstByte() {
        guard firstByteMilliseconds == nil else { return }
        firstByteMilliseconds = worker.loop.now.milliseconds(since: request.start)
        worker.scoreboard.observeFirstByte(milliseconds: firstByteMilliseconds!, worker: worker.slot)
    }

    private func beginBodyIfNeeded() {
        guard exchange.state == .accepted, let head = responseHead else { return }
        becomeVisible()
        let length = head.fields.first(.contentLength).flatMap { Int($0) }
        client?.beginAnswer(status: head.status, length: length) { out in
            UpstreamRequest.passFields(head, requestID: request.id, into: &out)
        }
    }

    func beginStream() {
        guard exchange.state == .accepted else { return }
        becomeVisible()
        client?.beginAnswer(status: 200, length: nil) { out in
            HeadWriter.field("Content-Type", "text/event-stream; charset=utf-8", into: &out)
            if let head = responseHead { UpstreamRequest.passFields(head, requestID: request.id, isStream: true, into: &out) }
            HeadWriter.field("Cache-Control", "no-cache, no-transform", into: &out)
            HeadWriter.field("X-Accel-Buffering", "no", into: &out)
        }
        if !heldBack.isEmpty {
            client?.append(heldBack.span.bytes)
            heldBack = []
        }
    }

    func finishAnswer() {
        exchange.finished()
        client?.endAnswer()
        worker.ended(self)
    }

    /// Answers with the upstream's own failure, or with ours where it has none.
    private func surface(_ failure: Failure) {
        switch failure {
        case .refused(let refusal):
            // What no client can read is told in the shape that they do.
            guard let (head, body) = refused, refusal.isReadable else { fallthrough }
            settle(status: head.status, errorCode: refusal.code.isEmpty ? "upstream_error" : refusal.code)
            exchange.finished()
            logRefused(head.status, refusal.code)
            noteFirstByte()
            client?.beginAnswer(status: head.status, length: body.count) { out in
                UpstreamRequest.passFields(head, requestID: request.id, into: &out)
            }
            client?.append(body.span.bytes)
            client?.endAnswer()
            worker.ended(self)
        default:
            fail(ErrorEnvelope.error(for: failure), inStream: { if case .failedEvent = failure { true } else { false } }())
        }
    }

    /// Answers with an error of ours while the client has seen nothing. `inStream`: clients that asked for a Responses stream get
    /// status 200 and the failure as an event, as the contract of these routes has it.
    func fail(_ error: ProxyError, inStream: Bool = false) {
        connection?.close()
        connection = nil
        connecting?.cancel()
        logRefused(error.status, error.code)
        let asStream = inStream && ask.wantsStream && request.route.isResponses
        settle(status: asStream ? 200 : error.status, errorCode: error.code)
        exchange.finished()
        if asStream {
            client?.beginAnswer(status: 200, length: nil) { out in
                HeadWriter.field("Content-Type", "text/event-stream; charset=utf-8", into: &out)
                HeadWriter.field("Cache-Control", "no-cache, no-transform", into: &out)
                HeadWriter.field("X-Request-Id", request.id, into: &out)
            }
            let events = ErrorEnvelope.failedEvents(
                error, responseID: request.id, model: ask.model, createdSeconds: request.time.seconds,
                createdFirst: request.route == .responses)
            client?.append(events.span.bytes)
            client?.endAnswer()
        } else {
            client?.respond(error, requestID: request.id)
        }
        worker.ended(self)
    }

    private func logRefused(_ status: Int, _ code: String) {
        worker.log.refused(
            code,
            [
                "request_id": "\(request.id)", "method": "POST", "path": "\(request.route.rawValue)", "status": "\(status)",
                "model": "\(ask.model.cut(utf8: Limits.recordModelBytesMax))", "account": "\(account?.value.name ?? "")",
                "attempts": "\(exchange.attempts)",
            ])
    }

    /// A stream that the client has begun to see, or that was accepted and must not be sent again, ends without its end.
    func streamBroke(code: String, message: String) {
        streamBroke(ProxyError(status: 502, code: code, type: "server_error", message: message, origin: .upstream))
    }

    func streamBroke(_ error: ProxyError) {
        connection?.close()
        connection = nil
        guard !isSettled else {  // the terminal event is out; only the end of the body is missing
            return finishAnswer()
        }
        if exchange.isInvisible, !ask.wantsStream || !request.route.isResponses { return fail(error) }
        if let told = findings.errorCode {  // the upstream's own word is out: one is enough
            settle(status: 200, errorCode: told)
            return finishAnswer()
        }
        settle(status: 200, errorCode: error.code)
        beginStream()
        let events =
            request.route.isResponses
            ? ErrorEnvelope.failedEvents(
                error, responseID: findings.responseID ?? request.id, model: ask.model, createdSeconds: request.time.seconds,
                createdFirst: !sawCreated && request.route == .responses)
            : ErrorEnvelope.chatFailure(error)
        client?.append(events.span.bytes)
        logRefused(200, error.code)
        finishAnswer()
    }

    // MARK: Time and the client's fate

    func sweep(_ now: Instant) {
        if now >= wakeAt {
            wakeAt = .never
            return dispatch()
        }
        // Once an answer has begun, what of the request is not taken says nothing: the answer's own deadlines bound the turn.
        let isStalled = connection?.isUploadStalled(now, milliseconds: worker.settings.times.writeStalled) == true
        if isStalled, responseHead != nil {
            connection?.giveUpRequest()
            if exchange.state == .visible { request.memory.set(0) }
        }
        if now >= firstByteBy || isStalled && responseHead == nil {
            connection?.close()
            return attemptFailed(.timedOut)
        }
        if now >= usageBy {
            connection?.close()
            return abandon(errorCode: "client_disconnected", status: 499)
        }
        if now >= refusalBy, case .refusal(let body) = answer {
            connection?.close()
            return refusedInPart(body)
        }
        if acceptedAt != .never, now.milliseconds(since: acceptedAt) >= worker.settings.times.holdBack, ask.wantsStream {
            // Silence is told as such: the client gets its head now and comments from here on.
            switch answer {
            case .undecided, .gathered, .events, .chatEvents:
                beginStream()
                client?.flush()
            case .none, .refusal, .body, .assembled: break
            }
        }
        guard connection != nil, !isPaused else { return }
        if isSettled, exchange.state == .visible, now.milliseconds(since: settledAt) >= Limits.afterTerminalMilliseconds {
            // The answer is complete; an upstream that does not end its body must not keep the client waiting.
            connection?.close()
            connection = nil
            return finishAnswer()
        }
        if exchange.state == .accepted || exchange.state == .visible,
            now.milliseconds(since: idleSince) >= worker.settings.times.upstreamIdle
        {
            if case .body = answer {
                connection?.close()
                return upstreamFailed("silent for too long", .answered)
            }
            return streamBroke(code: "stream_idle_timeout", message: "The upstream was silent for too long")
        }
        commentIfSilent(now)
    }

    private func commentIfSilent(_ now: Instant) {
        guard exchange.state == .visible, let client, client.queuedBytes == 0 else { return }
        switch answer {
        case .undecided, .gathered, .events, .chatEvents: break
        default: return
        }
        // A half-closed client may be gone: only writing tells, so it is asked more often.
        let interval = client.isHalfClosed ? min(1000, worker.settings.times.keepaliveComment) : worker.settings.times.keepaliveComment
        guard now.milliseconds(since: client.lastWrite) >= interval else { return }
        client.append(Self.comment.span.bytes)
        client.flush()
        worker.scoreboard.add(.keepaliveComments, worker: worker.slot)
    }

    /// Whole events only are ever written, so between writes there is always a border for it.
    private static let comment = Array(": keepalive\n\n".utf8)

    func clientGone() {
        client = nil
        isClientGone = true
        guard !exchange.isFinished else { return }
        worker.scoreboard.add(.clientsGone, worker: worker.slot)
        worker.log.debug("client went away", metadata: ["request_id": "\(request.id)"])
        guard exchange.state == .accepted || exchange.state == .visible, !isSettled, connection != nil else {
            return abandon(errorCode: "client_disconnected", status: 499)
        }
        // What was read is paid for: the usage stands at the answer's end, which may be near.
        usageBy = worker.loop.now.adding(milliseconds: Limits.usageAfterClientMilliseconds)
        worker.clientLeft(self)  // no connection sweeps it any more
        clientDrained()
    }

    /// The drain deadline has passed.
    func cut() {
        let error = ProxyError(
            status: 503, code: "proxy_unavailable", type: "server_error", message: "codex-lb is shutting down", origin: .ourselves)
        guard !exchange.isFinished else { return }
        if exchange.isInvisible { return fail(error) }
        switch answer {
        case .undecided, .gathered, .events, .chatEvents: streamBroke(code: "proxy_unavailable", message: error.message)
        case .assembled where isSettled: streamBroke(code: "", message: "")
        default:
            let client = self.client
            abandon(errorCode: "proxy_unavailable", status: 503)
            client?.abort()
        }
    }

    private func abandon(errorCode: String, status: Int) {
        connection?.close()
        connection = nil
        connecting?.cancel()
        settle(status: status, errorCode: errorCode)
        exchange.finished()
        worker.ended(self)
    }

    // MARK: Accounting

    /// Puts the turn's record into the journal, once: before the last byte of the answer goes out.
    func settle(status: Int, errorCode: String) {
        guard !isSettled else { return }
        isSettled = true
        release()
        let (status, errorCode) = isClientGone ? (499, "client_disconnected") : (status, errorCode)
        estimateUsage(errorCode)
        let now = worker.loop.now
        settledAt = now
        var record = UsageRecord(id: request.recordID, time: request.time, route: request.route.rawValue, requestID: request.id)
        record.keyID = request.key?.id
        record.accountID = exchange.attempts > 0 || account != nil ? account?.value.id : nil
        record.modelAsked = ask.model.cut(utf8: Limits.recordModelBytesMax)
        record.modelServed = findings.modelServed.cut(utf8: Limits.recordModelBytesMax)
        record.status = status
        // A turn whose numbers were changed is no failure, but whoever reads the record must see it.
        let mark =
            findings.isEstimated
            ? (errorCode.isEmpty ? "usage_estimated" : errorCode + "_usage_estimated")
            : errorCode.isEmpty && findings.isOutOfRange ? "usage_out_of_range" : errorCode
        record.errorCode = mark.cut(utf8: Limits.recordCodeBytesMax)
        if let usage = findings.usage {
            record.inputTokens = usage.input
            record.cachedInputTokens = usage.cachedInput
            record.outputTokens = usage.output
            record.reasoningTokens = usage.reasoning
            record.costMicrodollars = PriceTable.costMicrodollars(
                model: findings.modelServed.isEmpty ? ask.model : findings.modelServed, serviceTier: findings.serviceTier, usage: usage)
            worker.scoreboard.add(.inputTokens, worker: worker.slot, Int(usage.input))
            worker.scoreboard.add(.outputTokens, worker: worker.slot, Int(usage.output))
        }
        record.firstByteMilliseconds = firstByteMilliseconds.map { Int64($0) }
        record.durationMilliseconds = Int64(now.milliseconds(since: request.start))
        record.attempts = exchange.attempts
        record.requestBytes = Int64(request.receivedBytes)
        record.responseBytes = Int64(client?.bodyBytes ?? 0)
        worker.journal(record)
        worker.scoreboard.add(.turnsFinished, worker: worker.slot)
        if !errorCode.isEmpty { worker.scoreboard.add(.turnsFailed, worker: worker.slot) }
        worker.scoreboard.add(.requestBytes, worker: worker.slot, request.receivedBytes)
        worker.scoreboard.add(.turnsOpen, worker: worker.slot, -1)
        worker.log.debug(
            "turn finished",
            metadata: [
                "request_id": "\(request.id)", "route": "\(request.route.rawValue)",
                "model": "\(ask.model.cut(utf8: Limits.recordModelBytesMax))", "status": "\(status)",
                "code": "\(errorCode)", "account": "\(account?.value.name ?? "")", "attempts": "\(exchange.attempts)",
                "duration_ms": "\(record.durationMilliseconds)",
            ])
    }

    var hasSettled: Bool { isSettled }

    /// An answer that told no usage was not free: neither one whose client left before its end nor one of an upstream that never tells.
    /// The record says that its numbers are a guess: four bytes of the request, or one event or four bytes of the answer, to a token.
    private func estimateUsage(_ errorCode: String) {
        // What we ended for want of memory was asked for and worked on all the same.
        guard findings.usage == nil, isClientGone || errorCode.isEmpty || errorCode == "server_overloaded" else { return }
        switch (exchange.state, answer) {
        case (.dispatched, .none) where isClientGone, (.accepted, _), (.visible, _): break
        default: return
        }
        var output = outputEvents
        if case .body(let copy) = answer, request.route != .embeddings { output = copy.count / 4 }
        if case .gathered(let body) = answer { output = body.count / 4 }
        findings.usage = TokenUsage(input: Int64(request.receivedBytes / 4), output: Int64(output))
        findings.isEstimated = true
    }
}
