import Exchange
import HTTPWire
import Logging
import Platform
import Routing
import Store
import Vocabulary

/// What turns and figures say of accounts, and what becomes of it: cooldowns, states, and facts that outlive the processes.
extension AccountTable {
    // MARK: Quotas

    /// Any answer of a login's upstream, good or not, says how much of its quotas is used up.
    func learnQuota(_ fields: HeaderFields, of account: RoutedAccount) {
        guard account.value.kind == .chatGPT, let reading = QuotaReading(fields, now: Clock.wall) else { return }
        learn(reading, of: account.value)
    }

    func learn(_ reading: QuotaReading, of account: Account) {
        guard account.kind == .chatGPT else { return }
        let (slot, id, wall) = (account.slot, account.id, Clock.wall)
        var hasChanged = false
        func set(_ window: Scoreboard.Window, _ told: QuotaWindow?) {
            if let told {
                if scoreboard.setQuota(account: slot, owner: id, window, usedPermille: told.usedPermille, resetsAt: told.resetsAt) {
                    hasChanged = true
                }
            } else if reading.isWhole, scoreboard.clearQuota(account: slot, owner: id, window) {
                hasChanged = true
            }
        }
        set(.primary, reading.primary)
        set(.secondary, reading.secondary)
        set(.monthly, reading.monthly)
        if reading.credits != nil || reading.isWhole, scoreboard.setCredits(account: slot, owner: id, reading.credits) { hasChanged = true }
        if let plan = reading.plan, scoreboard.setPlan(account: slot, owner: id, plan) { hasChanged = true }
        if reading.isWhole, setModelQuotas(reading.models, of: account) { hasChanged = true }
        if hasChanged { scoreboard.quotaLearned(account: slot, owner: id, at: wall) }
        keepOut(account, wall)
    }

    /// An operator has changed the account: what it is said to have no quota for may be asked again, until that is told again.
    func forgetModelQuotas(of account: Account) {
        guard setModelQuotas([], of: account) else { return }
        scoreboard.quotaLearned(account: account.slot, owner: account.id, at: Clock.wall)
    }

    private func setModelQuotas(_ quotas: [ModelQuota], of account: Account) -> Bool {
        modelQuotas[account.id] = quotas.isEmpty ? nil : quotas
        return scoreboard.setModelQuotas(
            account: account.slot, owner: account.id,
            quotas.map { (QuotaKey.of(model: $0.model), $0.window.usedPermille, $0.window.resetsAt) })
    }

    /// When a login whose windows are used up has quota again; nil when it has some now, or credits to go on with.
    func exhaustedUntil(_ slot: Int, _ wall: WallTime) -> WallTime? {
        guard scoreboard.credits(account: slot)?.areUsable != true else { return nil }
        return Scoreboard.Window.allCases.lazy.compactMap { self.scoreboard.quota(account: slot, $0, now: wall) }
            .filter { $0.usedPermille >= 1000 }.map(\.resetsAt).max()
    }

    /// Windows that are used up keep a login out until they begin anew.
    private func keepOut(_ account: Account, _ wall: WallTime) {
        guard let end = exhaustedUntil(account.slot, wall) else { return }
        let now = Clock.now
        let until = now.adding(milliseconds: Int(clamping: end.milliseconds - wall.milliseconds))
        // Upstreams round: what is a second longer is the same.
        if let known = scoreboard.cooldown(account: account.slot, owner: account.id, now: now), known.isLimit,
            known.until.adding(milliseconds: 1000) >= until
        {
            return
        }
        scoreboard.coolDown(account: account.slot, owner: account.id, until: until, isLimit: true, isQuota: true, at: wall)
        scoreboard.setTrouble(account: account.slot, owner: account.id, Trouble(at: wall, .exhausted))
        log.notice(
            "account has used its quota up",
            metadata: ["account": "\(account.name)", "seconds": "\((end.milliseconds - wall.milliseconds) / 1000)"])
    }

    /// The account's figures have come that were asked for when `mark` was taken: with room in them its quota's cooldown is over.
    func figuresCame(_ reading: QuotaReading, of account: Account, mark: UInt64) {
        learn(reading, of: account)
        let wall = Clock.wall
        guard exhaustedUntil(account.slot, wall) == nil,
            scoreboard.endQuotaCooldown(account: account.slot, owner: account.id, mark: mark, at: wall)
        else { return }
        log.notice("account has quota again", metadata: ["account": "\(account.name)"])
    }

    // MARK: Turns

    /// A turn on it went well.
    func succeeded(_ account: RoutedAccount, now: Instant) {
        guard scoreboard.health(account: account.value.slot) != 0 else { return }
        _ = scoreboard.changeHealth(account: account.value.slot, owner: account.value.id) {
            var health = AccountHealth(word: $0)
            health.succeeded(now: now)
            return health.word
        }
    }

    /// An error of its upstream: how long it is left alone for the errors that it had.
    private func failed(_ account: Account, since begin: Instant, now: Instant) -> Int {
        let word = scoreboard.changeHealth(account: account.slot, owner: account.id) {
            var health = AccountHealth(word: $0)
            health.failed(since: begin, now: now)
            return health.word
        }
        return AccountHealth(word: word).backoffMilliseconds
    }

    /// What a turn met that was given the account at `begin` counts against that, for all workers or, where it is about one model, for this one.
    func penalise(
        _ account: RoutedAccount, _ model: String, _ penalty: Verdict.Penalty, _ failure: Failure, requestID: String, since begin: Instant,
        now: Instant
    ) {
        let owner = account.value.id
        look()
        // What the old key met says nothing of the new one.
        guard let today = today(account)?.value, today.credentials == account.value.credentials,
            today.baseURL == account.value.baseURL
        else { return }
        let wall = Clock.wall
        let trouble = Trouble(at: wall, failure)
        var isOfModel = false
        var (milliseconds, isLimit): (Int, Bool)
        switch penalty {
        case .none: return
        case .lacksModel:
            modelOffers.refused(
                account: owner, model: model, until: now.adding(milliseconds: Limits.modelRefusedMilliseconds), now: now)
            log.notice(
                "account does not offer the model",
                metadata: ["account": "\(account.value.name)", "model": "\(model)", "request_id": "\(requestID)"])
            return modelRefused()
        case .errors(let ms): (milliseconds, isLimit) = (ms, false)
        case .limited(let ms, let scope):
            (milliseconds, isLimit) = (ms, true)
            isOfModel = scope == .model
        case .unauthorized(let ms), .reauthRequired(let ms), .deactivated(let ms): (milliseconds, isLimit) = (ms, false)
        }
        switch penalty {
        case .reauthRequired: leave(today, .reauthRequired, reason: trouble.description, requestID: requestID)
        case .deactivated: leave(today, .deactivated, reason: trouble.description, requestID: requestID)
        default: break
        }
        switch failure {
        case .notConnected, .untrusted:
            // The longer it can't be reached, the less often a turn has to find that out.
            milliseconds = Backoff.milliseconds(failures: scoreboard.unreachable(account: account.value.slot, owner: owner, now: now))
        default: if case .errors = penalty { milliseconds = max(milliseconds, failed(today, since: begin, now: now)) }
        }
        let until = now.adding(milliseconds: milliseconds)
        if isOfModel {
            modelCooldowns.coolDown(account: owner, model: model, until: until, now: now)
        } else {
            scoreboard.coolDown(
                account: account.value.slot, owner: owner, until: until, isLimit: isLimit, isQuota: isLimit && failure.isQuota, at: wall)
        }
        scoreboard.setTrouble(account: account.value.slot, owner: owner, trouble)
        log.notice(
            "account cools down",
            metadata: [
                "account": "\(account.value.name)", "why": "\(failure.reason)", "seconds": "\(milliseconds / 1000)",
                "model": "\(isOfModel ? model : "")", "request_id": "\(requestID)",
            ])
    }

    /// Out of routing until somebody has seen to it.
    func leave(_ account: Account, _ state: Account.State, reason: String, requestID: String = "") {
        takeOut(AccountRemoval(account, state, reason: reason))
        log.error(
            state == .deactivated ? "account is closed, its upstream says" : "account needs a new login",
            metadata: [
                "account": "\(account.name)", "why": "\(reason)",
                "mend": account.kind == .chatGPT ? "codex-lb accounts login, or accounts import" : "codex-lb accounts add --replace",
                "request_id": "\(requestID)",
            ])
    }

    // MARK: Facts

    /// What the store knows and nobody here does.
    func restore(_ facts: [AccountFact]) {
        guard !facts.isEmpty else { return }
        let byID = Dictionary(all.map { ($0.value.id, $0.value) }, uniquingKeysWith: { a, _ in a })
        let (now, wall) = (Clock.now, Clock.wall)
        for fact in facts {
            guard let account = byID[fact.accountID] else { continue }
            switch fact.subject {
            case .quota: restoreQuota(fact, of: account)
            case .health: restoreHealth(fact, of: account, now, wall)
            case .state: break  // for people
            }
        }
    }

    private func restoreQuota(_ fact: AccountFact, of account: Account) {
        let (slot, id) = (account.slot, account.id)
        guard fact.at > scoreboard.quotaAt(account: slot) || modelQuotas[id] == nil, let told = QuotaFact(fact) else { return }
        let models = told.models.map {
            ModelQuota(model: $0.name, window: QuotaWindow(usedPermille: $0.window.usedPermille, resetsAt: $0.window.resetsAt))
        }
        if modelQuotas[id] == nil, !models.isEmpty { modelQuotas[id] = models }
        guard fact.at > scoreboard.quotaAt(account: slot) else { return }
        for window in Scoreboard.Window.allCases {
            guard let figures = told.windows.first(where: { $0.name == "\(window)" })?.window else {
                scoreboard.clearQuota(account: slot, owner: id, window)
                continue
            }
            scoreboard.setQuota(account: slot, owner: id, window, usedPermille: figures.usedPermille, resetsAt: figures.resetsAt)
        }
        scoreboard.setCredits(account: slot, owner: id, told.credits)
        scoreboard.setPlan(account: slot, owner: id, told.plan)
        _ = setModelQuotas(models, of: account)
        scoreboard.quotaLearned(account: slot, owner: id, at: fact.at)
    }

    private func restoreHealth(_ fact: AccountFact, of account: Account, _ now: Instant, _ wall: WallTime) {
        guard fact.at > scoreboard.healthAt(account: account.slot), let told = HealthFact(fact) else { return }
        // A year ahead is no time that an upstream asks for.
        let wait = told.cooldown.map { $0.until.milliseconds.subtractingReportingOverflow(wall.milliseconds).partialValue } ?? 0
        let until = wait > 0 && wait <= Wait.millisecondsMax ? now.adding(milliseconds: Int(wait)) : nil
        scoreboard.restoreHealth(
            account: account.slot, owner: account.id, until: until, isLimit: told.cooldown.map { $0.kind != .errors } ?? false,
            isQuota: told.cooldown?.kind == .quota, trouble: told.trouble, at: fact.at)
    }

    /// The account's figures as they stand here, for the store.
    func quotaFact(of account: Account, _ wall: WallTime) -> AccountFact {
        var fact = QuotaFact()
        fact.plan = scoreboard.plan(account: account.slot)
        fact.credits = scoreboard.credits(account: account.slot)
        for window in Scoreboard.Window.allCases {
            guard let figures = scoreboard.quota(account: account.slot, window, now: wall) else { continue }
            fact.windows.append(("\(window)", .init(usedPermille: figures.usedPermille, resetsAt: figures.resetsAt)))
        }
        fact.models = (modelQuotas[account.id] ?? []).map {
            ($0.model, .init(usedPermille: $0.window.usedPermille, resetsAt: $0.window.resetsAt))
        }
        return fact.fact(of: account.id, at: scoreboard.quotaAt(account: account.slot))
    }

    func healthFact(of account: Account, _ now: Instant, _ wall: WallTime) -> AccountFact {
        var fact = HealthFact(trouble: scoreboard.trouble(account: account.slot))
        if let cooldown = scoreboard.cooldown(account: account.slot, owner: account.id, now: now) {
            let until = WallTime(milliseconds: wall.milliseconds + Int64(cooldown.until.milliseconds(since: now)))
            fact.cooldown = (until, cooldown.isQuota ? .quota : cooldown.isLimit ? .limit : .errors)
        }
        return fact.fact(of: account.id, at: scoreboard.healthAt(account: account.slot))
    }
}

extension Failure {
    /// For people.
    var reason: String {
        switch self {
        case .refused(let r), .failedEvent(let r): "status \(r.status) \(r.code)"
        case .notConnected(let text), .untrusted(let text), .exhausted(let text), .broken(let text): text
        case .timedOut: "no answer in time"
        }
    }

    /// A limit that the account's figures tell of too.
    var isQuota: Bool {
        switch self {
        case .refused(let r), .failedEvent(let r): FailoverTable.isQuota(r)
        case .notConnected, .untrusted, .exhausted, .timedOut, .broken: false
        }
    }
}

extension Trouble {
    init(at: WallTime, _ failure: Failure) {
        switch failure {
        case .refused(let r), .failedEvent(let r): self.init(at: at, .refused, status: r.status, code: r.code)
        case .notConnected, .exhausted: self.init(at: at, .unreachable)
        case .untrusted: self.init(at: at, .untrusted)
        case .timedOut: self.init(at: at, .silent)
        case .broken: self.init(at: at, .broken)
        }
    }
}
