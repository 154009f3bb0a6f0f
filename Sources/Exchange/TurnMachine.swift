internal import Bytes
public import HTTPWire
internal import Metering
public import Vocabulary

/// One turn between two streams: which account is asked, what becomes of each failure, when the client begins to see an answer, when the
/// record is due, and what ends it. Knows no socket and no clock: events and the time come in, actions go out, and the answer's bytes pass
/// through the `AnswerAdapter` into `out`.
///
/// `Exchange` holds the states, `TurnDeadlines` the waits, `AnswerAdapter` the answer; what follows from the three together is decided here.
/// Whatever comes, there is one record, before the answer's last byte, and one `over`, the last of all actions.
public struct TurnMachine: Sendable {
    public private(set) var exchange = Exchange()
    private var deadlines: TurnDeadlines
    private var form: AnswerForm
    /// The present attempt's answer; nil before it begins.
    private var answer: AnswerAdapter?
    /// Of that answer.
    public private(set) var responseHead: ResponseHead?
    /// The last attempt's error answer, for the client when no account is left.
    private var refused: (head: ResponseHead, body: [UInt8])?
    private var isOnly = false
    private var isRenewable = false
    /// It is, and was not renewed in this turn.
    private var mayRenew = false
    /// What was refused while they are being renewed.
    private var refusedCredentials: Failure?
    private var isGuess = false
    /// A request is out whose answer has not ended.
    private var isUpstreamOpen = false
    private var isSettled = false
    private var isClientGone = false
    /// Rises when an attempt is given up: what its answer still brings is ignored.
    private var attemptNumber = 0
    private let requestBytes: Int
    private let started: (wall: WallTime, instant: Instant)
    private var random: JitterGenerator
    private var actions: [TurnAction] = []

    /// `requestBytes`: of the request's body, for a guess at what an answer without usage cost. `seed`: of the waits' jitter.
    public init(
        _ ask: TurnRequest, requestID: String, requestBytes: Int, _ times: TurnDeadlines.Times, wall: WallTime, now: Instant, seed: UInt64
    ) {
        form = AnswerForm(ask, isChatGPT: false, requestID: requestID, createdSeconds: wall.seconds)
        deadlines = TurnDeadlines(times)
        self.requestBytes = requestBytes
        started = (wall, now)
        random = JitterGenerator(state: seed)
    }

    // MARK: What it is

    public var isFinished: Bool { exchange.isFinished }
    /// The client sees this answer.
    public var isVisible: Bool { exchange.state == .visible }
    public var isPaused: Bool { deadlines.isPaused }
    /// Accounts that were tried, in order.
    public var tried: [Int64] { exchange.tried }
    public var attempts: Int { exchange.attempts }
    /// Bytes of the answer that are held for it.
    public var keptBytes: Int { answer?.keptBytes ?? 0 }
    /// What is in `out` may go out. The last bytes of a body wait for the record.
    public var mayFlush: Bool {
        guard isVisible else { return false }
        guard answer?.isBody == true, let whole = responseHead?.contentLength else { return true }
        return answer!.bodyBytes < whole
    }
    /// Between two events of the answer its client may be told that it goes on.
    public var takesComments: Bool { isVisible && isUpstreamOpen && !isPaused && answer?.takesComments == true }

    private func wall(_ now: Instant) -> WallTime {
        WallTime(milliseconds: started.wall.milliseconds + Int64(now.milliseconds(since: started.instant)))
    }

    private mutating func take() -> [TurnAction] {
        guard !actions.isEmpty else { return [] }
        defer { actions = [] }
        return actions
    }

    // MARK: Selection and dispatch

    public mutating func start() -> [TurnAction] { [.select] }

    /// `isOnly`: no other account can go on with the conversation. `isGuess`: nobody knows which one can. `mayRenew`: its credentials can be renewed.
    public mutating func accountSelected(_ id: Int64, isChatGPT: Bool, isOnly: Bool = false, isGuess: Bool = false, mayRenew: Bool = false)
        -> [TurnAction]
    {
        exchange.accountSelected(id)
        (self.isOnly, self.isGuess, self.isRenewable, self.mayRenew) = (isOnly, isGuess, mayRenew, mayRenew)
        form.isChatGPT = isChatGPT
        return [.send(fresh: false)]
    }

    /// There is none to choose; `error` says why. After an attempt its failure does, unless the error `saysMore`.
    public mutating func noAccount(_ error: ProxyError, inStream: Bool, saysMore: Bool = false, _ now: Instant) -> [TurnAction] {
        if let failure = exchange.lastFailure, !saysMore {
            surface(failure, now)
        } else {
            var error = error
            if let words = exchange.lastFailure?.words { error.message += " (the upstream: \(words))" }
            fail(error, inStream: inStream, now)
        }
        return take()
    }

    /// The request goes out on a connection. `isAgain`: in place of a kept one that had ended unnoticed.
    public mutating func requestSent(isAgain: Bool) {
        if !isAgain { exchange.requestDispatched() }
        isUpstreamOpen = true
    }

    /// The request can't be sent to this kind of account.
    public mutating func requestUnsendable(_ error: ProxyError, _ now: Instant) -> [TurnAction] {
        fail(error, now)
        return take()
    }

    /// Nothing was sent.
    public mutating func connectFailed(_ failure: Failure, _ now: Instant) -> [TurnAction] {
        attemptFailed(failure, now)
        return take()
    }

    /// The client has seen nothing: what now?
    private mutating func attemptFailed(_ failure: Failure, _ now: Instant) {
        isUpstreamOpen = false
        guard !isClientGone else { return abandon(status: 499, "client_disconnected", now) }
        deadlines.attemptEnded()
        if mayRenew, case .refused(let refusal) = failure, refusal.impliedStatus == 401 {
            (mayRenew, refusedCredentials) = (false, failure)
            if let body = answer?.refusalBody, let head = responseHead { refused = (head, body) }
            exchange.renewalAwaited()
            forgetAnswer()
            return actions.append(.renewCredentials)
        }
        if let body = answer?.refusalBody, let head = responseHead {
            refused = (head, body)
        } else if refusedCredentials == nil {
            refused = nil
        }
        var (action, penalty) = exchange.attemptFailed(
            failure, now: wall(now), jitter: random.jitter(), model: form.model, mayMove: !isOnly,
            isDenied: isGuess && isNotFound(failure))
        // Whether a login is dead is its issuer's word, where there is a token to ask it with.
        if isRenewable, case .refused(let refusal) = failure, Self.renewableCodes.contains(refusal.code), case .reauthRequired = penalty {
            penalty = .unauthorized(milliseconds: FailoverTable.unauthorizedCooldownMilliseconds)
        }
        // What is allowed of files says nothing of turns.
        if form.route.isFile, !penalty.isOfLogin { penalty = .none }
        if penalty != .none { actions.append(.penalise(penalty, failure)) }
        switch action {
        case .surface where penalty == .lacksModel && !isOnly:
            forgetAnswer()
            actions.append(.modelRefused)
        case .surface(let failure):
            surface(failure, now)
        case .select:
            forgetAnswer()
            actions += [.tryAgain(isFailover: true), .select]
        case .dispatch(let wait):
            forgetAnswer()
            actions.append(.tryAgain(isFailover: false))
            deadlines.attemptScheduled(now, afterMilliseconds: wait)
        }
    }

    /// `isDone`: there are new ones, in the store; else the turn goes on as if there had been no hope.
    public mutating func credentialsRenewed(_ isDone: Bool, _ now: Instant) -> [TurnAction] {
        guard !isFinished, let failure = refusedCredentials else { return [] }
        defer { refusedCredentials = nil }
        if isDone { return [.send(fresh: false)] }
        attemptFailed(failure, now)
        return take()
    }

    /// What only one account has is not with this one.
    private func isNotFound(_ failure: Failure) -> Bool {
        guard case .refused(let refusal) = failure else { return false }
        return refusal.code == "previous_response_not_found" || refusal.code == "file_not_found"
            || form.route.isFile && refusal.status == 404
    }

    private static let renewableCodes: Set<String> = ["token_expired", "token_invalidated"]

    /// The next attempt starts clean.
    private mutating func forgetAnswer() {
        attemptNumber += 1
        (answer, responseHead) = (nil, nil)
    }

    // MARK: The upstream's answer

    /// The last byte of the request has been taken.
    public mutating func requestTaken(_ now: Instant) {
        guard exchange.state == .dispatched, responseHead == nil else { return }
        deadlines.requestTaken(now)
    }

    public mutating func responded(_ head: ResponseHead, _ now: Instant) {
        responseHead = head
        let answer = AnswerAdapter(form, status: head.status, contentType: head.fields.first(.contentType) ?? "")
        deadlines.responded(now, isRefusal: answer.isRefusal, wantsStream: form.wantsStream)
        if !answer.isRefusal { exchange.responseAccepted() }
        self.answer = answer
    }

    /// Part of the answer's body.
    public mutating func received(_ bytes: RawSpan, _ now: Instant, into out: inout [UInt8]) -> [TurnAction] {
        deadlines.heard(now)
        var offset = 0
        let attempt = attemptNumber
        while attempt == attemptNumber, !isFinished, answer != nil {
            let signal = answer!.feed(bytes, &offset, into: &out)
            learnQuota(now)
            guard let signal else { break }
            seeVisible()
            perform(signal, now, into: &out)
        }
        seeVisible()
        return take()
    }

    private mutating func learnQuota(_ now: Instant) {
        guard let event = answer?.takeQuotaEvent(), let reading = QuotaReading(event: event.span.bytes, now: wall(now)) else { return }
        actions.append(.learnQuota(reading))
    }

    /// The whole body has come.
    public mutating func answerEnded(_ now: Instant, into out: inout [UInt8]) -> [TurnAction] {
        isUpstreamOpen = false
        if let body = answer?.refusalBody {
            attemptFailed(.refused(refusal(body)), now)
            return take()
        }
        let attempt = attemptNumber
        while attempt == attemptNumber, !isFinished, answer != nil {
            guard let signal = answer!.end(into: &out) else { break }
            seeVisible()
            perform(signal, now, into: &out)
        }
        seeVisible()
        if attempt == attemptNumber, !isFinished { finishAnswer() }
        return take()
    }

    private mutating func perform(_ signal: AnswerAdapter.Signal, _ now: Instant, into out: inout [UInt8]) {
        switch signal {
        case .complete(let code):
            settle(status: answer?.isBody == true ? responseHead?.status ?? 200 : 200, code, now)
        case .failed(let refusal, let mayMove):
            // Only what the table lets go to another account ends the attempt, and only while nothing of the answer has been worked out: that
            // would be paid for twice. The rest is the answer; what it tells of the account counts all the same.
            let failure = Failure.failedEvent(refusal)
            let verdict = FailoverTable.verdict(failure, attemptsOnAccount: 1, now: wall(now), jitter: 0, model: form.model)
            if mayMove, verdict.next == .nextAccount {
                actions.append(.closeUpstream)
                return attemptFailed(failure, now)
            }
            if verdict.penalty != .none { actions.append(.penalise(verdict.penalty, failure)) }
            let next = answer!.tellFailure(into: &out)
            seeVisible()
            if let next { perform(next, now, into: &out) }
        case .refuse(let error, let inStream):
            fail(error, inStream: inStream, now)
        case .broken(let error):
            streamBroke(error, now, into: &out)
        case .page:  // no client of an API reads it
            let why = "status \(responseHead?.status ?? 0) with a page of HTML"
            guard exchange.isInvisible else {
                return streamBroke(upstreamFault("upstream_unavailable", why), now, into: &out)
            }
            actions.append(.closeUpstream)
            attemptFailed(.broken(why), now)
        case .refused:
            actions.append(.closeUpstream)  // the rest is not worth waiting for
            refusedInPart(now)
        }
    }

    /// The connection is lost or talks nonsense.
    public mutating func upstreamFailed(_ why: String, _ progress: UpstreamProgress, _ now: Instant, into out: inout [UInt8])
        -> [TurnAction]
    {
        isUpstreamOpen = false
        switch exchange.state {
        case .dispatched:
            if answer?.isRefusal == true {
                refusedInPart(now)
            } else if progress == .unread, !isClientGone, exchange.staleConnectionFound() {
                actions.append(.send(fresh: true))
            } else {
                attemptFailed(.broken(why), now)
            }
        case .accepted where answer?.isBody == true:
            attemptFailed(.broken(why), now)
        case .visible where answer?.isBody == true:
            settle(status: 502, "upstream_unavailable", now)
            exchange.finished()
            actions += [.abort, .over]
        case .accepted, .visible:
            streamBroke(upstreamFault(brokenCode, "The upstream's stream was cut: \(why)"), now, into: &out)
        case .admitted, .selected, .finished:
            break
        }
        return take()
    }

    private var brokenCode: String {
        if answer?.isBare ?? true { return "upstream_unavailable" }
        return form.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated"
    }

    private func upstreamFault(_ code: String, _ message: String) -> ProxyError {
        ProxyError(status: 502, code: code, type: "server_error", message: message, origin: .upstream)
    }

    /// The status is known, only its body is cut: no client can read that, so it gets one of ours.
    private mutating func refusedInPart(_ now: Instant) {
        let refusal = refusal(answer?.refusalBody ?? [])
        answer = nil
        attemptFailed(.refused(refusal), now)
    }

    private func refusal(_ body: [UInt8]) -> UpstreamRefusal {
        body.withUnsafeBytes {
            UpstreamRefusal(status: responseHead?.status ?? 502, body: $0.bytes, fields: responseHead?.fields ?? HeaderFields())
        }
    }

    // MARK: Answering the client

    /// The first bytes of the answer are about to go out: from here on no other account.
    private mutating func seeVisible() {
        guard exchange.state == .accepted, answer?.isTelling == true else { return }
        exchange.becameVisible()
        deadlines.becameVisible()
        actions.append(.begin(answer!.head))
    }

    private mutating func finishAnswer() {
        exchange.finished()
        if !isClientGone { actions.append(.end) }
        actions.append(.over)
    }

    /// Answers with the upstream's own failure, or with ours where it has none.
    private mutating func surface(_ failure: Failure, _ now: Instant) {
        // What no client can read is told in the shape that they do.
        if case .refused(let refusal) = failure, refusal.isReadable, let (head, body) = refused {
            let code = refusal.code.isEmpty ? "upstream_error" : refusal.code
            settle(status: head.status, code, now)
            exchange.finished()
            actions += [.logRefused(status: head.status, code: refusal.code), .passRefusal(head, body: body), .over]
            return
        }
        var isEvent = false
        if case .failedEvent = failure { isEvent = true }
        fail(ErrorEnvelope.error(for: failure), inStream: isEvent, now)
    }

    /// Answers with an error of ours while the client has seen nothing. `inStream`: clients that asked for a Responses stream get
    /// status 200 and the failure as an event, as the contract of these routes has it.
    private mutating func fail(_ error: ProxyError, inStream: Bool = false, _ now: Instant) {
        isUpstreamOpen = false
        let asStream = inStream && form.wantsStream && form.route.isResponses
        actions += [.closeUpstream, .logRefused(status: error.status, code: error.code)]
        settle(status: asStream ? 200 : error.status, error.code, now)
        exchange.finished()
        if !isClientGone {
            let events =
                asStream
                ? ErrorEnvelope.failedEvents(
                    error, responseID: form.requestID, model: form.model, createdSeconds: form.createdSeconds,
                    createdFirst: form.route == .responses)
                : nil
            actions.append(.respond(error, events: events))
        }
        actions.append(.over)
    }

    /// A stream that the client has begun to see, or that was accepted and must not be sent again, ends without its end.
    private mutating func streamBroke(_ error: ProxyError, _ now: Instant, into out: inout [UInt8]) {
        isUpstreamOpen = false
        actions.append(.closeUpstream)
        guard !isSettled else { return finishAnswer() }  // the terminal event is out; only the end of the body is missing
        if exchange.isInvisible, !form.wantsStream || !form.route.isResponses || answer == nil { return fail(error, now) }
        let code = answer!.tellBroken(error, into: &out)
        seeVisible()
        settle(status: 200, code, now)
        actions.append(.logRefused(status: 200, code: error.code))
        finishAnswer()
    }

    // MARK: The record

    /// Once: before the last byte of the answer goes out.
    private mutating func settle(status: Int, _ errorCode: String, _ now: Instant) {
        guard !isSettled else { return }
        isSettled = true
        deadlines.completed(now)
        let (status, errorCode) = isClientGone ? (499, "client_disconnected") : (status, errorCode)
        actions.append(
            .record(TurnOutcome(status: status, errorCode: errorCode, findings: findings(errorCode), attempts: exchange.attempts)))
    }

    /// What the answer told. One that told no usage was not free: neither one whose client left before its end nor one of an upstream that
    /// never tells. The record says that its numbers are a guess: four bytes of the request to a token.
    private func findings(_ errorCode: String) -> UsageFindings {
        var findings = answer?.findings ?? UsageFindings()
        guard !form.route.isFile else { return findings }  // no model works on it
        // What we ended for want of memory was asked for and worked on all the same.
        guard findings.usage == nil, isClientGone || errorCode.isEmpty || errorCode == "server_overloaded" else { return findings }
        switch exchange.state {
        case .dispatched where isClientGone && answer == nil, .accepted, .visible: break
        default: return findings
        }
        findings.usage = TokenUsage(input: Int64(requestBytes / 4), output: Int64(answer?.tokensGuess ?? 0))
        findings.isEstimated = true
        return findings
    }

    // MARK: Memory, time and the client's fate

    /// The instance has no room for what the answer keeps. Gives up what the client's answer can do without; nil: the rest is small, else why
    /// `outOfMemory` has to follow if that was not enough.
    public mutating func shed() -> String? { answer?.shed() }

    /// What the answer keeps does not fit.
    public mutating func outOfMemory(_ error: ProxyError, _ now: Instant, into out: inout [UInt8]) -> [TurnAction] {
        guard !isFinished else { return [] }
        streamBroke(error, now, into: &out)
        return take()
    }

    /// The upstream takes nothing more of the request. Once an answer has begun, that says nothing: its own deadlines bound the turn.
    public mutating func uploadStalled(_ now: Instant) -> [TurnAction] {
        guard responseHead == nil else { return [.giveUpRequest] }
        actions.append(.closeUpstream)
        attemptFailed(.timedOut, now)
        return take()
    }

    /// The client takes no more for now: the upstream is not read, and nothing is expected of it.
    public mutating func clientStalled() { deadlines.paused() }
    public mutating func clientDrained(_ now: Instant) { if deadlines.isPaused { deadlines.resumed(now) } }

    /// To be asked again and again; what is due by now.
    public mutating func timePassed(_ now: Instant, into out: inout [UInt8]) -> [TurnAction] {
        guard !isFinished, let due = deadlines.due(now) else { return [] }
        switch due {
        case .attempt:
            actions.append(.send(fresh: false))
        case .noAnswer:
            actions.append(.closeUpstream)
            attemptFailed(.timedOut, now)
        case .refusalCut:
            actions.append(.closeUpstream)
            refusedInPart(now)
        case .usageMissing:
            abandon(status: 499, "client_disconnected", now)
        case .tellSilence:
            // Silence is told as such: the client gets its head now and comments from here on.
            guard answer?.takesComments == true else { break }
            answer!.open(into: &out)
            seeVisible()
            actions.append(.flush)
        case .endMissing:
            // The answer is complete; an upstream that does not end its body must not keep the client waiting.
            guard isVisible, isUpstreamOpen else { break }
            isUpstreamOpen = false
            actions.append(.closeUpstream)
            finishAnswer()
        case .silent:
            guard exchange.state == .accepted || isVisible, isUpstreamOpen else { break }
            if answer?.isBody == true {
                actions.append(.closeUpstream)
                return upstreamFailed("silent for too long", .answered, now, into: &out)
            }
            streamBroke(upstreamFault("stream_idle_timeout", "The upstream was silent for too long"), now, into: &out)
        }
        return take()
    }

    public mutating func clientLeft(_ now: Instant) -> [TurnAction] {
        guard !isFinished else { return [] }
        isClientGone = true
        guard exchange.state == .accepted || isVisible, !isSettled, isUpstreamOpen else {
            abandon(status: 499, "client_disconnected", now)
            return take()
        }
        // What was read is paid for: the usage stands at the answer's end, which may be near.
        deadlines.clientLeft(now)
        return [.awaitUsage]
    }

    /// The drain deadline has passed.
    public mutating func cut(_ now: Instant, into out: inout [UInt8]) -> [TurnAction] {
        guard !isFinished else { return [] }
        let error = ProxyError(
            status: 503, code: "proxy_unavailable", type: "server_error", message: "codex-lb is shutting down", origin: .ourselves)
        if exchange.isInvisible {
            fail(error, now)
        } else if answer?.takesComments == true {
            streamBroke(
                ProxyError(status: 502, code: error.code, type: error.type, message: error.message, origin: .upstream), now, into: &out)
        } else if answer?.isAssembled == true, isSettled {
            actions.append(.closeUpstream)
            finishAnswer()
        } else {
            abandon(status: 503, "proxy_unavailable", now, isCut: true)
        }
        return take()
    }

    private mutating func abandon(status: Int, _ errorCode: String, _ now: Instant, isCut: Bool = false) {
        isUpstreamOpen = false
        actions.append(.closeUpstream)
        settle(status: status, errorCode, now)
        exchange.finished()
        if isCut, !isClientGone { actions.append(.abort) }
        actions.append(.over)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): waits differ from turn to turn and are the same for the same seed.
struct JitterGenerator: Sendable {
    var state: UInt64
    /// In -1 ... 1.
    mutating func jitter() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        z ^= z >> 31
        return Double(z >> 11) * 0x1p-52 - 1
    }
}
