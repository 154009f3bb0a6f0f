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
    /// Refreshes on their way; nil while the claim is awaited.
    private var fetches: [Int64: Fetch?] = [:]
    /// Turns that wait for other credentials than these.
    private var waiting: [(account: Account, by: Instant, done: (Bool) -> Void)] = []
    /// New tokens that the store has not taken yet: their old ones work no more.
    private var unsaved: [Int64: (old: Account.Credentials, new: Account.Credentials, nextTry: Instant)] = [:]
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
        if !today.value.credentials.hasTokens(of: account.value.credentials) { return done(true) }
        guard today.renewsAt != nil, today.value.state == .active else { return done(false) }
        if isSettling(today.value), fetches[today.value.id] == nil, unsaved[today.value.id] == nil { return done(false) }
        waiting.append((today.value, worker.loop.now.adding(milliseconds: Limits.renewalWaitMilliseconds), done))
        begin(today)
    }

    /// The snapshot has changed.
    func accountsChanged(_ accounts: [RoutedAccount]) {
        // A pause or a new address is no reason to lose them: only other credentials, or the account's end.
        unsaved = unsaved.filter { id, mine in accounts.contains { $0.value.id == id && $0.value.credentials.hasTokens(of: mine.old) } }
        let before = waiting
        waiting = []
        for wait in before {
            let today = accounts.first { $0.value.id == wait.account.id }?.value
            if let today, today.credentials.hasTokens(of: wait.account.credentials), today.state == .active {
                waiting.append(wait)
            } else {
                wait.done(today?.state == .active)
            }
        }
    }

    func sweep(_ now: Instant) {
        for fetch in fetches.values { fetch?.sweep(now) }
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

    /// It has just been renewed.
    private func isSettling(_ account: Account) -> Bool { settlesBy[account.id].map { worker.loop.now < $0 } ?? false }

    /// Refreshes the account's tokens, unless somebody is at it or tried just now.
    private func begin(_ account: RoutedAccount) {
        let (value, now) = (account.value, worker.loop.now)
        guard fetches[value.id] == nil, unsaved[value.id] == nil, !isSettling(value), !worker.isDraining,
            worker.scoreboard.claimRenewal(
                account: value.slot, owner: value.id, changedAt: value.changedAt, now: now,
                until: now.adding(milliseconds: Limits.renewalClaimMilliseconds))
        else { return }
        fetches[value.id] = .some(nil)
        worker.claim(.renewal, value) { [weak self] isOurs in
            guard let self else { return }
            if isOurs { fetch(account) } else { fetches[value.id] = nil }  // another instance is at it, or was
        }
    }

    private func fetch(_ account: RoutedAccount) {
        let (value, settings) = (account.value, worker.settings)
        guard let (issuer, prefix) = Origin.parse(settings.issuer) else {
            return finished(account, .failed("\(settings.issuer) is no URL of an issuer"))
        }
        var origin = issuer
        origin.proxy = account.origin.proxy
        let body = RenewalRequest.body(clientID: settings.issuerClientID, refreshToken: value.credentials.refreshToken ?? "")
        let fetch = Fetch(
            worker.pool,
            .init(
                .post, origin, prefix + "/oauth/token",
                fields: [("Content-Type", "application/json"), ("Accept", "application/json")], body: body),
            bytesMax: Limits.renewalAnswerBytesMax, milliseconds: Limits.renewalMilliseconds)
        fetches[value.id] = fetch
        fetch.start { [weak self] result in
            switch result {
            case .success(let answer):
                self?.finished(account, Renewal(status: answer.status, body: answer.body, old: value.credentials))
            case .failure(let problem): self?.finished(account, .failed(problem.reason))
            }
        }
    }

    private func finished(_ account: RoutedAccount, _ renewal: Renewal) {
        let (value, now) = (account.value, worker.loop.now)
        fetches[value.id] = nil
        switch renewal {
        case .renewed(let new):
            failures[value.id] = nil
            settlesBy[value.id] = now.adding(milliseconds: Limits.renewalSpacingMilliseconds)
            unsaved[value.id] = (value.credentials, new, now)
            save(value.id, now)
            worker.log.notice("login renewed", metadata: ["account": "\(value.name)"])
        case .refused(let code):
            worker.log.error("login can't be renewed", metadata: ["account": "\(value.name)", "code": "\(code)"])
            let trouble = Trouble(at: Clock.wall, .issuer, code: code)
            worker.scoreboard.setTrouble(account: value.slot, owner: value.id, trouble)
            worker.accounts.leave(
                value, FailoverTable.isClosed(code: code) ? .deactivated : .reauthRequired, reason: "issuer: \(code)")
            giveUp(value)
        case .failed(let why):
            let count = (failures[value.id] ?? 0) + 1
            failures[value.id] = count
            let pause = min(
                Limits.renewalBackoffMillisecondsMax, Limits.renewalBackoffMilliseconds << min(count - 1, 16))
            worker.scoreboard.pauseRenewal(
                account: value.slot, owner: value.id, changedAt: value.changedAt, until: now.adding(milliseconds: pause))
            worker.log.warning(
                "login was not renewed; it is tried again",
                metadata: ["account": "\(value.name)", "why": "\(why)", "seconds": "\(pause / 1000)"])
            giveUp(value)
        }
    }

    private func save(_ id: Int64, _ now: Instant) {
        guard let mine = unsaved[id], let today = worker.accounts.all.first(where: { $0.value.id == id }) else { return }
        unsaved[id]?.nextTry = now.adding(milliseconds: Limits.renewalLookMilliseconds)
        worker.saveLogin(today.value, today.value.credentials.withTokens(of: mine.new))
    }

    /// Those that wait for this account go elsewhere.
    private func giveUp(_ account: Account) {
        let theirs = waiting.filter { $0.account.id == account.id }
        waiting.removeAll { $0.account.id == account.id }
        for wait in theirs { wait.done(false) }
    }
}
