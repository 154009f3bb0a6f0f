import Diagnostics
import Exchange
import HTTPWire
import Logging
import Loop
import Metering
import Platform
import Routing
import Settings
import Upstream
import Vocabulary

/// Performs one turn: tells its `TurnMachine` what happens and does what that says, with the worker's accounts, connections and journal.
///
/// Lives until its record is in the journal and its answer is out; `Worker.turns` holds it.
final class Turn: UpstreamUser, Answering {
    let worker: Worker
    let request: ClientRequest
    private(set) var ask: TurnRequest
    private var machine: TurnMachine
    /// What ties it to an account; nil where nothing does.
    private let affinity: Affinity?
    /// Nil once it has left.
    private(set) var client: ClientConnection?
    /// A large body as this kind of account gets it.
    private var prepared: (kind: Account.Kind, body: [UInt8])?
    /// What the answer keeps takes of the instance's memory; nil while it is little.
    private var kept: MemoryShare?
    /// The last one that was chosen.
    private(set) var account: RoutedAccount?
    private var chosenAt = Instant(nanoseconds: 0)
    private var isLeased = false
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    private(set) var firstByteMilliseconds: Int?

    init(_ worker: Worker, _ request: ClientRequest, _ ask: TurnRequest, _ client: ClientConnection) {
        (self.worker, self.request, self.ask, self.client) = (worker, request, ask, client)
        affinity = worker.accounts.affinity(ask, request)
        let times = worker.settings.times
        machine = TurnMachine(
            ask, requestID: request.id, requestBytes: request.receivedBytes,
            .init(firstByte: times.firstByte, holdBack: times.holdBack, upstreamIdle: times.upstreamIdle), wall: request.time,
            now: request.start, seed: request.recordID.low)
    }

    func start() {
        worker.scoreboard.add(.turnsOpen, worker: worker.slot)
        client?.answered(by: self)
        perform(machine.start())
    }

    private var now: Instant { worker.loop.iterationTime }

    // MARK: Actions

    private func perform(_ actions: [TurnAction]) { for action in actions { perform(action) } }

    private func perform(_ action: TurnAction) {
        switch action {
        case .select: select()
        case .send(let fresh): connect(fresh: fresh)
        case .tryAgain(let isFailover):
            worker.scoreboard.add(isFailover ? .failovers : .retries, worker: worker.slot)
            kept = nil
        case .renewCredentials: renew()
        case .modelRefused: refuseModel(mayChooseAgain: false)
        case .penalise(let penalty, let failure):
            if let account {
                worker.accounts.penalise(
                    account, ask.model, penalty, failure, requestID: request.id, since: chosenAt, now: worker.loop.now)
            }
        case .learnQuota(let reading): if let account { worker.accounts.learn(reading, of: account.value) }
        case .closeUpstream:
            connection?.close()
            connection = nil
            connecting?.cancel()
            connecting = nil
        case .giveUpRequest:
            connection?.giveUpRequest()
            if machine.isVisible { request.memory.set(0) }
        case .begin(let head): begin(head)
        case .record(let outcome):
            release()
            learn(outcome)
            record(outcome)
        case .logRefused(let status, let code):
            logRefused(status, code, attempts: machine.attempts)
            if request.access != nil { logAccess(code, attempts: machine.attempts) }
        case .flush: client?.flush()
        case .passRefusal(let head, let body): pass(head, body)
        case .respond(let error, let events): respond(error, events)
        case .end: client?.endAnswer()
        case .abort: client?.abort()
        case .awaitUsage:
            worker.clientLeft(self)  // no connection sweeps it any more
            clientDrained()
        case .over:
            request.access?.turnEnded()
            worker.ended(self)
        }
    }

    /// Lets the machine write into what its client gets at the next flush.
    private func perform(_ step: (inout TurnMachine, inout [UInt8]) -> [TurnAction]) {
        if let client {
            perform(step(&machine, &client.pending))
        } else {
            var nobody: [UInt8] = []
            perform(step(&machine, &nobody))
        }
    }

    // MARK: The account

    var isFinished: Bool { machine.isFinished }

    private func select() {
        release()
        if !worker.capLine.isEmpty { worker.capLine.look() }
        chosen(choose())
    }

    /// What an account must be for it.
    struct Want: Hashable {
        var route: Route
        var model: String
        var tried: [Int64]
    }
    var want: Want { Want(route: request.route, model: ask.model, tried: machine.tried) }
    var hasConversation: Bool { affinity != nil }

    func choose() -> AccountChoice {
        worker.accounts.choose(for: request.route, model: ask.model, affinity, excluding: machine.tried, now: now)
    }

    func chosen(_ choice: AccountChoice) {
        guard !machine.isFinished else {
            if case .account(let unused, _, _) = choice { worker.accounts.release(unused) }
            return
        }
        switch choice {
        case .account(let chosen, let isOnly, let isReleased):
            (account, isLeased, chosenAt) = (chosen, true, now)
            if isReleased, ask.previousResponseID != nil {
                ask.releasePreviousResponse()
                prepared = nil
                worker.log.debug(
                    "conversation goes on without its previous response: the account that has it can't serve",
                    metadata: ["account": "\(chosen.value.name)", "request_id": "\(request.id)"])
            }
            perform(
                machine.accountSelected(
                    chosen.value.id, isChatGPT: chosen.value.kind == .chatGPT, isOnly: isOnly,
                    isGuess: !isOnly && (ask.previousResponseID != nil || !ask.fileIDs.isEmpty), mayRenew: chosen.renewsAt != nil))
        case .full:
            if !worker.capLine.join(self) { gaveUpWaiting() }
        case .ownerUnavailable(let error):
            perform(machine.noAccount(error, inStream: true, now))
        case .allLimited(let until):
            let seconds = max(1, Int((until.milliseconds - Clock.wall.milliseconds + 999) / 1000))
            let error = ProxyError(
                status: 429, code: "usage_limit_reached", type: "usage_limit_reached",
                message: "Every account has reached its limit. Try again in \(seconds)s", origin: .upstream, retryAfterSeconds: seconds,
                resetsAt: (until.milliseconds + 999) / 1000)
            perform(machine.noAccount(error, inStream: false, now))
        case .noneEligible, .allTried:
            if worker.accounts.isOfferedByNobody(request.route, ask.model, now: now) {
                refuseModel(mayChooseAgain: true)
            } else {
                perform(machine.noAccount(worker.accounts.none(for: request.route), inStream: true, now))
            }
        }
    }

    /// The model is not to be had. What its client may have meant is worth a moment; an account that has it may come meanwhile.
    private func refuseModel(mayChooseAgain: Bool) {
        let accounts = worker.accounts
        func answer() {
            let error = accounts.modelNotFound(request.route, ask.model, key: request.key, now: now)
            perform(machine.noAccount(error, inStream: false, saysMore: true, now))
        }
        guard accounts.hasListsToLookInto(request.route, ask.model) else { return answer() }
        worker.catalogue.whenKnown { [self] in
            guard !machine.isFinished else { return }
            if mayChooseAgain, !accounts.isOfferedByNobody(request.route, ask.model, now: now) { chosen(choose()) } else { answer() }
        }
    }

    /// No account has had room for it in time, or too many wait.
    func gaveUpWaiting() { perform(machine.noAccount(AccountTable.capReached, inStream: false, now)) }

    private func renew() {
        guard let account else { return }
        worker.logins.wanted(account) { [self] isDone in
            if isDone, let today = worker.accounts.today(account) { self.account = today }
            perform(machine.credentialsRenewed(isDone, now))
        }
    }

    private func release() {
        guard let account, isLeased else { return }
        isLeased = false
        worker.accounts.release(account)
        worker.capLine.accountReleased()
    }

    private func learn(_ outcome: TurnOutcome) {
        guard outcome.errorCode.isEmpty, let account else { return }
        if !request.route.isFile { worker.accounts.succeeded(account, now: now) }
        worker.accounts.learn(
            responseID: request.route.isResponses ? outcome.findings.responseID : nil,
            fileID: outcome.findings.fileID, turnState: machine.responseHead?.fields.first(.turnState), of: account, now: now)
    }

    // MARK: The request

    private func connect(fresh: Bool) {
        guard let account, let path = ask.upstreamPath(account.value.kind) else { return }
        if ask.isLongToRewrite(account.value.kind), prepared?.kind != account.value.kind {
            return prepare(account.value.kind) { [self] in connect(fresh: fresh) }
        }
        // A kept connection is given at once, and what follows may already have asked for the next one.
        var isDone = false
        let attempt = worker.pool.connection(to: account.origin, fresh: fresh) { [self] result in
            isDone = true
            guard !machine.isFinished else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            connecting = nil
            switch result {
            case .success(let connection):
                worker.scoreboard.reached(account: account.value.slot)
                send(on: connection, account, path, isAgain: fresh)
            case .failure(.unreachable(let why)): perform(machine.connectFailed(.notConnected(why), now))
            case .failure(.untrusted(let why)): perform(machine.connectFailed(.untrusted(why), now))
            case .failure(.exhausted(let why)): perform(machine.connectFailed(.exhausted(why), now))
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
            guard !machine.isFinished else { return }
            switch result {
            case .success(let body):
                guard memory.grow(to: ask.memoryBytes + body.count) else {
                    let error = MemoryBudget.overloaded("the request body does not fit twice, as its upstream needs it rewritten")
                    return perform(machine.requestUnsendable(error, now))
                }
                prepared = (kind, body)
                next()
            case .failure(let error): perform(machine.requestUnsendable(error, now))
            }
        }
    }

    private func send(on connection: UpstreamConnection, _ account: RoutedAccount, _ path: String, isAgain: Bool) {
        let body: [UInt8]
        do throws(ProxyError) {
            body = prepared?.kind == account.value.kind ? prepared!.body : try ask.upstreamBody(account.value.kind)
        } catch {
            connection.giveBack()
            return perform(machine.requestUnsendable(error, now))
        }
        guard connection.isFit() else {
            // Nothing was sent. A kept connection may have ended unnoticed; a new one that already speaks will do so again.
            if connection.isReused { return connect(fresh: isAgain) }
            return perform(machine.connectFailed(.notConnected("it sent bytes before it was asked"), now))
        }
        machine.requestSent(isAgain: isAgain)
        self.connection = connection
        var head = UpstreamRequest.head(request, account, target: account.target(path), bodyCount: body.count)
        // A small body travels with its head in one packet.
        let isJoined = body.count < Limits.joinedBodyBytesMax
        if isJoined { head += body }
        connection.send(isJoined ? [head] : [head, body], method: .post, for: self)
    }

    func upstreamTookRequest() {
        if machine.isVisible { request.memory.set(0) }
        machine.requestTaken(now)
    }

    // MARK: The answer

    func upstreamResponded(_ head: ResponseHead) {
        if let account { worker.accounts.learnQuota(head.fields, of: account) }
        machine.responded(head, now)
    }

    func upstreamReceived(_ bytes: RawSpan) {
        let now = now
        if let client { worker.spares.take(&client.pending) }
        perform { $0.received(bytes, now, into: &$1) }
        makeRoomForKept()
    }

    /// Counts what is kept. When the instance has no room for it, what the client's answer can do without goes first.
    private func makeRoomForKept() {
        guard !machine.isFinished, !countKept() else { return }
        let problem = machine.shed()
        guard !countKept(), let problem else { return }
        let (error, now) = (MemoryBudget.overloaded(problem), now)
        perform { $0.outOfMemory(error, now, into: &$1) }
    }

    private func countKept() -> Bool {
        let bytes = machine.keptBytes
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
        guard let client, machine.mayFlush else { return }
        client.flush()
        if client.queuedBytes > Limits.downstreamHighBytes, !machine.isPaused {
            machine.clientStalled()
            connection?.pause()
        }
    }

    func upstreamCompleted() {
        connection = nil
        let now = now
        perform { $0.answerEnded(now, into: &$1) }
    }

    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) {
        connection = nil
        let now = now
        perform { $0.upstreamFailed(why, progress, now, into: &$1) }
    }

    // MARK: Answering the client

    /// From here on no other account: the request is needed no more.
    private func begin(_ form: AnswerAdapter.Head) {
        noteFirstByte()
        ask.forgetBody()
        prepared = nil
        // What is still on its way to an upstream that answered early is held until it is out.
        if connection?.isRequestOut ?? true { request.memory.set(0) }
        guard let client, let received = machine.responseHead else { return }
        switch form {
        case .received:
            client.beginAnswer(status: received.status, length: received.contentLength) { out in
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

    private func noteFirstByte() {
        guard firstByteMilliseconds == nil else { return }
        firstByteMilliseconds = now.milliseconds(since: request.start)
        worker.scoreboard.observeFirstByte(milliseconds: firstByteMilliseconds!, worker: worker.slot)
    }

    private func pass(_ refusal: ResponseHead, _ body: [UInt8]) {
        noteFirstByte()
        client?.beginAnswer(status: refusal.status, length: body.count) { out in
            UpstreamRequest.passFields(refusal, requestID: request.id, into: &out)
        }
        client?.append(body.span.bytes)
        client?.endAnswer()
    }

    private func respond(_ error: ProxyError, _ events: [UInt8]?) {
        guard let events else {
            client?.respond(error, requestID: request.id)
            return
        }
        client?.beginAnswer(status: 200, length: nil) { out in
            HeadWriter.field("Content-Type", "text/event-stream; charset=utf-8", into: &out)
            HeadWriter.field("Cache-Control", "no-cache, no-transform", into: &out)
            HeadWriter.field("X-Request-Id", request.id, into: &out)
        }
        client?.append(events.span.bytes)
        client?.endAnswer()
    }

    // MARK: Time and the client's fate

    func sweep(_ now: Instant) {
        if let connection, connection.isUploadStalled(now, milliseconds: worker.settings.times.writeStalled) {
            perform(machine.uploadStalled(now))
        }
        perform { $0.timePassed(now, into: &$1) }
        commentIfSilent(now)
    }

    private func commentIfSilent(_ now: Instant) {
        guard machine.takesComments, let client, client.queuedBytes == 0 else { return }
        // A half-closed client may be gone: only writing tells, so it is asked more often.
        let interval = client.isHalfClosed ? min(1000, worker.settings.times.keepaliveComment) : worker.settings.times.keepaliveComment
        guard now.milliseconds(since: client.lastWrite) >= interval else { return }
        client.append(Self.comment.span.bytes)
        client.flush()
        worker.scoreboard.add(.keepaliveComments, worker: worker.slot)
    }

    /// Whole events only are ever written, so between writes there is always a border for it.
    private static let comment = Array(": keepalive\n\n".utf8)

    func clientDrained() {
        guard machine.isPaused else { return }
        machine.clientDrained(now)
        connection?.resume()
    }

    func clientGone() {
        client = nil
        guard !machine.isFinished else { return }
        worker.scoreboard.add(.clientsGone, worker: worker.slot)
        worker.log.debug("client went away", metadata: ["request_id": "\(request.id)"])
        perform(machine.clientLeft(now))
    }

    /// The drain deadline has passed.
    func cut() {
        let now = now
        perform { $0.cut(now, into: &$1) }
    }
}
