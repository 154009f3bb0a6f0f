import Admission
import Exchange
import HTTPWire
import Logging
import Loop
import Platform
import Settings
import Upstream
import Vocabulary

/// Keeps ChatGPT logins fresh: ahead of their end, and at once when a turn meets a 401. A refresh token works once, so one refresh is made at a
/// time for an account: over this instance's workers by a claim in shared memory, over instances by one in the database. What comes back is
/// in the store before anybody uses it: turns wait for the snapshot that has it.
final class LoginRenewals {
    private unowned let worker: Worker
    private var fetches: [Int64: RenewalFetch] = [:]
    /// Turns that wait for other credentials than these.
    private var waiting: [(account: Account, by: Instant, done: (Bool) -> Void)] = []
    /// New tokens that the store has not taken yet: their old ones work no more.
    private var unsaved: [Int64: (account: Account, new: Account.Credentials, nextTry: Instant)] = [:]
    private var failures: [Int64: Int] = [:]
    /// Until when new tokens that are refused too are not renewed again.
    private var settlesBy: [Int64: Instant] = [:]
    private var lookAt = Instant(nanoseconds: 0)

    init(_ worker: Worker) { self.worker = worker }

    /// Something would be lost if the worker ended now.
    var isBusy: Bool { !fetches.isEmpty || !unsaved.isEmpty }

    /// A turn met a 401 with this account's credentials. `done` says whether there are others now; called once, at once or later.
    func wanted(_ account: RoutedAccount, _ done: @escaping (Bool) -> Void) {
        guard let today = worker.accounts.all.first(where: { $0.value.id == account.value.id }) else { return done(false) }
        if today.value.credentials != account.value.credentials { return done(true) }
        guard today.renewsAt != nil, today.value.state == .active else { return done(false) }
        if fetches[today.value.id] == nil, unsaved[today.value.id] == nil, let settled = settlesBy[today.value.id],
            worker.loop.now < settled
        {
            return done(false)
        }
        waiting.append((today.value, worker.loop.now.adding(milliseconds: Limits.renewalWaitMilliseconds), done))
        begin(today)
    }

    /// The snapshot has changed.
    func accountsChanged(_ accounts: [RoutedAccount]) {
        unsaved = unsaved.filter { id, mine in accounts.contains { $0.value.id == id && $0.value.changedAt == mine.account.changedAt } }
        let before = waiting
        waiting = []
        for wait in before {
            let today = accounts.first { $0.value.id == wait.account.id }?.value
            if let today, today.credentials == wait.account.credentials, today.state == .active {
                waiting.append(wait)
            } else {
                wait.done(today?.state == .active)
            }
        }
    }

    func sweep(_ now: Instant) {
        for fetch in fetches.values { fetch.sweep(now) }
        for (id, mine) in unsaved where now >= mine.nextTry { save(id, now) }
        if waiting.contains(where: { now >= $0.by }) {
            let over = waiting.filter { now >= $0.by }
            waiting.removeAll { now >= $0.by }
            for wait in over { wait.done(false) }
        }
        // What is due is one worker's affair; what a turn needs is that turn's worker's.
        guard now >= lookAt, worker.position == 0, !worker.isLeaving, !worker.isDraining else { return }
        lookAt = now.adding(milliseconds: Limits.renewalLookMilliseconds)
        let wall = Clock.wall
        for account in worker.accounts.all where account.value.state == .active {
            if let due = account.renewsAt, due <= wall { begin(account) }
        }
    }

    /// Refreshes the account's tokens, unless somebody is at it or tried just now.
    private func begin(_ account: RoutedAccount) {
        let (value, now) = (account.value, worker.loop.now)
        guard fetches[value.id] == nil, unsaved[value.id] == nil, !worker.isDraining,
            worker.scoreboard.claimRenewal(
                account: value.slot, owner: value.id, now: now, until: now.adding(milliseconds: Limits.renewalClaimMilliseconds))
        else { return }
        let fetch = RenewalFetch(worker, value)
        fetches[value.id] = fetch
        worker.claimRenewal(of: value) { [weak self, weak fetch] isOurs in
            guard let self, let fetch, fetches[value.id] === fetch else { return }
            guard isOurs else {  // another instance is at it, or was
                fetches[value.id] = nil
                return
            }
            fetch.start { [weak self] renewal in self?.finished(account, renewal) }
        }
    }

    private func finished(_ account: RoutedAccount, _ renewal: Renewal) {
        let (value, now) = (account.value, worker.loop.now)
        fetches[value.id] = nil
        switch renewal {
        case .renewed(let new):
            failures[value.id] = nil
            settlesBy[value.id] = now.adding(milliseconds: Limits.renewalSpacingMilliseconds)
            unsaved[value.id] = (value, new, now)
            save(value.id, now)
            worker.log.notice("login renewed", metadata: ["account": "\(value.name)"])
        case .refused(let code):
            worker.accounts.needsLogin(value)
            worker.log.error(
                "login can't be renewed: the account needs a new one",
                metadata: ["account": "\(value.name)", "code": "\(code)", "mend": "codex-lb accounts import"])
            giveUp(value)
        case .failed(let why):
            let count = (failures[value.id] ?? 0) + 1
            failures[value.id] = count
            let pause = min(
                Limits.renewalBackoffMillisecondsMax, Limits.renewalBackoffMilliseconds << min(count - 1, 16))
            worker.scoreboard.pauseRenewal(account: value.slot, owner: value.id, until: now.adding(milliseconds: pause))
            worker.log.warning(
                "login was not renewed; it is tried again",
                metadata: ["account": "\(value.name)", "why": "\(why)", "seconds": "\(pause / 1000)"])
            giveUp(value)
        }
    }

    private func save(_ id: Int64, _ now: Instant) {
        guard let mine = unsaved[id] else { return }
        unsaved[id]?.nextTry = now.adding(milliseconds: Limits.renewalLookMilliseconds)
        worker.saveLogin(mine.account, mine.new)
    }

    /// Those that wait for this account go elsewhere.
    private func giveUp(_ account: Account) {
        let theirs = waiting.filter { $0.account.id == account.id }
        waiting.removeAll { $0.account.id == account.id }
        for wait in theirs { wait.done(false) }
    }
}

/// One POST of a refresh token to the issuer.
private final class RenewalFetch: UpstreamUser {
    private unowned let worker: Worker
    private let account: Account
    private var done: ((Renewal) -> Void)?
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    private var status = 0
    private var body: [UInt8] = []
    private var deadline = Instant.never

    init(_ worker: Worker, _ account: Account) { (self.worker, self.account) = (worker, account) }

    func start(_ done: @escaping (Renewal) -> Void) {
        self.done = done
        deadline = worker.loop.now.adding(milliseconds: Limits.renewalMilliseconds)
        guard let (origin, prefix) = Origin.parse(worker.settings.issuer) else { return finish(.failed("the issuer's URL is none")) }
        var isDone = false
        let attempt = worker.pool.connection(to: origin, fresh: true) { [weak self] result in
            isDone = true
            guard let self, self.done != nil else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            connecting = nil
            switch result {
            case .success(let connection): send(connection, origin, prefix)
            case .failure(.unreachable(let why)), .failure(.untrusted(let why)), .failure(.exhausted(let why)): finish(.failed(why))
            }
        }
        if !isDone { connecting = attempt }
    }

    private func send(_ connection: UpstreamConnection, _ origin: Origin, _ prefix: String) {
        guard connection.isFit() else { return finish(.failed("it sent bytes before it was asked")) }
        self.connection = connection
        let body = RenewalRequest.body(clientID: worker.settings.issuerClientID, refreshToken: account.credentials.refreshToken ?? "")
        var head: [UInt8] = []
        HeadWriter.request(.post, target: prefix + "/oauth/token", into: &head)
        HeadWriter.field("Host", origin.authority, into: &head)
        HeadWriter.field("Content-Type", "application/json", into: &head)
        HeadWriter.field("Accept", "application/json", into: &head)
        HeadWriter.field("Accept-Encoding", "identity", into: &head)
        HeadWriter.field("User-Agent", "codex-lb/\(Version.text)", into: &head)
        HeadWriter.field("Content-Length", body.count, into: &head)
        HeadWriter.end(into: &head)
        connection.send([head + body], method: .post, for: self)
    }

    func upstreamTookRequest() {}
    func upstreamResponded(_ head: ResponseHead) { status = head.status }
    func upstreamSent(_ bytes: RawSpan) {
        guard body.count + bytes.byteCount <= Limits.renewalAnswerBytesMax else {
            connection?.close()
            return finish(.failed("its answer is larger than \(Limits.renewalAnswerBytesMax) bytes"))
        }
        bytes.withUnsafeBytes { body += $0 }
    }
    func upstreamPaused() {}
    func upstreamCompleted() {
        connection = nil
        finish(Renewal(status: status, body: body, old: account.credentials))
    }
    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) {
        connection = nil
        finish(.failed(why))
    }

    func sweep(_ now: Instant) {
        guard now >= deadline else { return }
        connecting?.cancel()
        connection?.close()
        finish(.failed("no answer in \(Limits.renewalMilliseconds / 1000) s"))
    }

    private func finish(_ renewal: Renewal) {
        let done = self.done
        self.done = nil
        deadline = .never
        done?(renewal)
    }
}
