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
    let worker: Worker
    let request: ClientRequest
    private(set) var ask: TurnRequest
    /// A large body as this kind of account gets it.
    private var prepared: (kind: Account.Kind, body: [UInt8])?
    var client: ClientConnection?
    var exchange = Exchange()
    /// The present attempt's answer; nil before it begins.
    var answer: AnswerAdapter?
    private(set) var responseHead: ResponseHead?
    /// The last attempt's error answer, for the client when no account is left.
    private var refused: (head: ResponseHead, body: [UInt8])?
    /// What the answer keeps takes of the instance's memory; nil while it is little.
    private var kept: MemoryShare?

    var account: RoutedAccount?
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    var deadlines: TurnDeadlines
    /// The record is in the journal.
    var isSettled = false
    /// Rises when an attempt is given up: what its answer still brings is ignored.
    private var attemptNumber = 0
    var firstByteMilliseconds: Int?
    /// The client has left; the upstream may still tell what the answer cost.
    var isClientGone = false

    init(_ worker: Worker, _ request: ClientRequest, _ ask: TurnRequest, _ client: ClientConnection) {
        (self.worker, self.request, self.ask, self.client) = (worker, request, ask, client)
        let times = worker.settings.times
        deadlines = TurnDeadlines(.init(firstByte: times.firstByte, holdBack: times.holdBack, upstreamIdle: times.upstreamIdle))
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
        // To the nanosecond: of accounts with as few turns the one that was used least recently is next, also within a millisecond.
        worker.scoreboard.turnStarted(account: chosen.value.slot, worker: worker.slot, now: worker.loop.now)
    }

    func release() {
        guard let account else { return }
        worker.scoreboard.turnEnded(account: account.value.slot, worker: worker.slot)
    }

    /// `isAgain`: the request went out on a kept connection whose upstream had already closed it.
    private func dispatch(isAgain: Bool = false) {
        guard let account, let path = request.route.upstreamPath(account.value.kind) else { return }
        if ask.isLongToRewrite(account.value.kind), prepared?.kind != account.value.kind {
            return prepare(account.value.kind) { [self] in dispatch(isAgain: isAgain) }
        }
        // A kept connection is given at once, and what follows may already have asked for the next one.
        var isDone = false
        let attempt = worker.pool.connection(to: account.origin, fresh: isAgain) { [self] result in
            isDone = true
            guard !isSettled, !exchange.isFinished else {
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
        worker.bodyWork.run({ Result { () throws(ProxyError) in try ask.upstreamBody(kind) } }) { [self] result in
            // The body stays counted until the thread pool has given it back, also when its client has left.
            withExtendedLifetime(memory) {}
            guard !exchange.isFinished else { return }
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
        var head = UpstreamRequest.head(request, account, target: account.prefix + path, bodyCount: body.count)
        // A small body travels with its head in one packet.
        let isJoined = body.count < Limits.joinedBodyBytesMax
        if isJoined { head += body }
        connection.send(isJoined ? [head] : [head, body], method: .post, for: self)
    }

    /// Nothing has been seen by the client: what now?
    func attemptFailed(_ failure: Failure) {
        if isClientGone {
            connection?.close()
            return abandon(errorCode: "client_disconnected", status: 499)
        }
        deadlines.attemptEnded()
        connection = nil
        if let body = answer?.refusalBody, let head = responseHead { refused = (head, body) } else { refused = nil }
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
            deadlines.attemptScheduled(worker.loop.turnTime, afterMilliseconds: wait)
        }
    }

    /// The next attempt starts clean.
    private func forgetAnswer() {
        attemptNumber += 1
        (answer, responseHead, kept) = (nil, nil, nil)
    }

    // MARK: The upstream's answer

    func upstreamResponded(_ head: ResponseHead) {
        responseHead = head
        let form = AnswerForm(ask, isChatGPT: isChatGPT, requestID: request.id, createdSeconds: request.time.seconds)
        answer = AnswerAdapter(form, status: head.status, contentType: head.fields.first(.contentType) ?? "")
        let isRefusal = answer!.isRefusal
        deadlines.responded(worker.loop.turnTime, isRefusal: isRefusal, wantsStream: ask.wantsStream)
        if !isRefusal { exchange.responseAccepted() }
    }

    func upstreamSent(_ bytes: RawSpan) {
        deadlines.heard(worker.loop.turnTime)
        var offset = 0
        drive { answer, out in answer.feed(bytes, &offset, into: &out) }
        makeRoomForKept()
    }

    /// Lets the answer work until nothing of it has to be decided.
    private func drive(_ step: (inout AnswerAdapter, inout [UInt8]) -> AnswerAdapter.Signal?) {
        let attempt = attemptNumber
        while attempt == attemptNumber, !exchange.isFinished, answer != nil {
            guard let signal = tell(step) else { return }
            perform(signal)
        }
    }

    /// What the answer has for the client goes out at the next `flush`: after the record, when that is due.
    private func tell<T>(_ step: (inout AnswerAdapter, inout [UInt8]) -> T) -> T {
        defer { if exchange.state == .accepted, answer?.isTelling == true { becomeVisible() } }
        if let client {
            worker.spares.take(&client.pending)
            return step(&answer!, &client.pending)
        }
        var nobody: [UInt8] = []
        return step(&answer!, &nobody)
    }

    private func perform(_ signal: AnswerAdapter.Signal) {
        switch signal {
        case .complete(let code):
            settle(status: answer?.isBody == true ? responseHead?.status ?? 200 : 200, errorCode: code)
        case .failed(let refusal, let mayMove):
            // Only what the table lets go to another account ends the attempt, and only while nothing of the answer has been worked out: that
            // would be paid for twice. The rest is the answer; what it tells of the account counts all the same.
            let verdict = FailoverTable.verdict(.failedEvent(refusal), attemptsOnAccount: 1, now: Clock.wall, jitter: 0, model: ask.model)
            if mayMove, verdict.next == .nextAccount {
                connection?.close()
                return attemptFailed(.failedEvent(refusal))
            }
            if let account { worker.penalise(account, ask.model, verdict.penalty, .failedEvent(refusal), requestID: request.id) }
            if let next = tell({ $0.tellFailure(into: &$1) }) { perform(next) }
        case .refuse(let error, let inStream):
            fail(error, inStream: inStream)
        case .broken(let error):
            streamBroke(error)
        case .page:  // no client of an API reads it
            let why = "status \(responseHead?.status ?? 0) with a page of HTML"
            if !exchange.isInvisible { return streamBroke(code: "upstream_unavailable", message: why) }
            connection?.close()
            attemptFailed(.broken(why))
        case .refused:
            connection?.close()  // the rest is not worth waiting for
            refusedInPart()
        }
    }

    /// Counts what is kept. When the instance has no room for it, what the client's answer can do without goes first.
    private func makeRoomForKept() {
        guard !exchange.isFinished, answer != nil, !countKept() else { return }
        let problem = answer?.shed()
        if !countKept(), let problem { streamBroke(MemoryBudget.overloaded(problem)) }
    }

    private func countKept() -> Bool {
        let bytes = answer?.keptBytes ?? 0
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
        // The last bytes wait for the record; everything before them goes out now.
        if answer?.isBody == true, let whole = bodyLength, answer!.bodyBytes >= whole { return }
        client.flush()
        if client.queuedBytes > Limits.downstreamHighBytes, !deadlines.isPaused {
            deadlines.paused()
            connection?.pause()
        }
    }

    func clientDrained() {
        guard deadlines.isPaused else { return }
        deadlines.resumed(worker.loop.turnTime)
        connection?.resume()
    }

    func upstreamCompleted() {
        connection = nil
        if let body = answer?.refusalBody { return attemptFailed(.refused(refusal(body))) }
        let attempt = attemptNumber
        drive { $0.end(into: &$1) }
        if attempt == attemptNumber, !exchange.isFinished { finishAnswer() }
    }

    func upstreamTookRequest() {
        if exchange.state == .visible { request.memory.set(0) }
        guard exchange.state == .dispatched, responseHead == nil else { return }
        deadlines.requestTaken(worker.loop.turnTime)
    }

    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) {
        connection = nil
        guard !exchange.isFinished else { return }
        switch exchange.state {
        case .dispatched:
            if answer?.isRefusal == true { return refusedInPart() }
            if progress == .unread, !isClientGone, exchange.staleConnectionFound() { return dispatch(isAgain: true) }
            attemptFailed(.broken(why))
        case .accepted, .visible:
            if answer?.isBody == true {
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
        if answer?.isBare ?? true { return "upstream_unavailable" }
        return request.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated"
    }

    /// The status is known, only its body is cut: no client can read that, so it gets one of ours.
    private func refusedInPart() {
        let refusal = refusal(answer?.refusalBody ?? [])
        answer = nil
        attemptFailed(.refused(refusal))
    }

    private func refusal(_ body: [UInt8]) -> UpstreamRefusal {
        body.withUnsafeBytes {
            UpstreamRefusal(status: responseHead?.status ?? 502, body: $0.bytes, fields: responseHead?.fields ?? HeaderFields())
        }
    }

    // MARK: Answering the client

    /// The first bytes of the answer are about to go out: from here on no other account.
    private func becomeVisible() {
        exchange.becameVisible()
        deadlines.becameVisible()
        noteFirstByte()
        ask.forgetBody()
        prepared = nil
        // What is still on its way to an upstream that answered early is held until it is out.
        if connection?.isRequestOut ?? true { request.memory.set(0) }
        guard let client, let head = answer?.head, let received = responseHead else { return }
        switch head {
        case .received:
            client.beginAnswer(status: received.status, length: bodyLength) { out in
                UpstreamRequest.passFields(received, requestID: request.id, into: &out)
            }
        case .stream:
            client.beginAnswer(status: 200, length: nil) { out in
                HeadWriter.field("Content-Type", "text/event-stream; charset=utf-8", into: &out)
                UpstreamRequest.passFields(received, requestID: request.id, isStream: true, into: &out)
                HeadWriter.field("Cache-Control", "no-cache, no-transform", into: &out)
                HeadWriter.field("X-Accel-Buffering", "no", into: &out)
            }
        case .whole(let bytes):
            client.beginAnswer(status: 200, length: bytes) { out in
                HeadWriter.field("Content-Type", "application/json", into: &out)
                HeadWriter.field("X-Request-Id", request.id, into: &out)
            }
        }
    }

    private var bodyLength: Int? { responseHead?.fields.first(.contentLength).flatMap { Int($0) } }

    private func noteFirstByte() {
        guard firstByteMilliseconds == nil else { return }
        firstByteMilliseconds = worker.loop.turnTime.milliseconds(since: request.start)
        worker.scoreboard.observeFirstByte(milliseconds: firstByteMilliseconds!, worker: worker.slot)
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
        if exchange.isInvisible, !ask.wantsStream || !request.route.isResponses || answer == nil { return fail(error) }
        let code = tell { $0.tellBroken(error, into: &$1) }
        settle(status: 200, errorCode: code)
        logRefused(200, error.code)
        finishAnswer()
    }

    // MARK: Time and the client's fate

    func sweep(_ now: Instant) {
        // Once an answer has begun, what of the request is not taken says nothing: the answer's own deadlines bound the turn.
        if let connection, connection.isUploadStalled(now, milliseconds: worker.settings.times.writeStalled) {
            guard responseHead != nil else { return perform(.noAnswer) }
            connection.giveUpRequest()
            if exchange.state == .visible { request.memory.set(0) }
        }
        if let due = deadlines.due(now) { perform(due) } else { commentIfSilent(now) }
    }

    private func perform(_ due: TurnDeadlines.Due) {
        switch due {
        case .attempt:
            dispatch()
        case .noAnswer:
            connection?.close()
            attemptFailed(.timedOut)
        case .refusalCut:
            connection?.close()
            refusedInPart()
        case .usageMissing:
            connection?.close()
            abandon(errorCode: "client_disconnected", status: 499)
        case .tellSilence:
            // Silence is told as such: the client gets its head now and comments from here on.
            guard answer?.takesComments == true else { return }
            tell { $0.open(into: &$1) }
            client?.flush()
        case .endMissing:
            // The answer is complete; an upstream that does not end its body must not keep the client waiting.
            guard exchange.state == .visible, connection != nil else { return }
            connection?.close()
            connection = nil
            finishAnswer()
        case .silent:
            guard exchange.state == .accepted || exchange.state == .visible, connection != nil else { return }
            if answer?.isBody == true {
                connection?.close()
                return upstreamFailed("silent for too long", .answered)
            }
            streamBroke(code: "stream_idle_timeout", message: "The upstream was silent for too long")
        }
    }

    private func commentIfSilent(_ now: Instant) {
        guard exchange.state == .visible, connection != nil, !deadlines.isPaused, let client, client.queuedBytes == 0,
            answer?.takesComments == true
        else { return }
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
        deadlines.clientLeft(worker.loop.turnTime)
        worker.clientLeft(self)  // no connection sweeps it any more
        clientDrained()
    }

    /// The drain deadline has passed.
    func cut() {
        let error = ProxyError(
            status: 503, code: "proxy_unavailable", type: "server_error", message: "codex-lb is shutting down", origin: .ourselves)
        guard !exchange.isFinished else { return }
        if exchange.isInvisible { return fail(error) }
        if answer?.takesComments == true { return streamBroke(code: "proxy_unavailable", message: error.message) }
        if answer?.isAssembled == true, isSettled { return streamBroke(code: "", message: "") }
        let client = self.client
        abandon(errorCode: "proxy_unavailable", status: 503)
        client?.abort()
    }

    private func abandon(errorCode: String, status: Int) {
        connection?.close()
        connection = nil
        connecting?.cancel()
        settle(status: status, errorCode: errorCode)
        exchange.finished()
        worker.ended(self)
    }
}
