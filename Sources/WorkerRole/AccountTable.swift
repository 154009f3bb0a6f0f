import Bytes
import Diagnostics
import Exchange
import HTTPWire
import Logging
import Platform
import Routing
import Sealing
import Settings
import Store
import Vocabulary

/// Which account a turn got.
enum AccountChoice {
    /// `isOnly`: no other one can go on with the conversation. `isReleased`: it goes on without its previous response.
    case account(RoutedAccount, isOnly: Bool, isReleased: Bool = false)
    case ownerUnavailable(ProxyError)
    case noneEligible
    case allTried
    case allLimited(until: WallTime)
    /// `isOwn`: the account of its conversation, and no other will do.
    case full(isOwn: Bool)
}

/// The accounts of the snapshot, with what the scoreboard and this worker's own turns know of them.
final class AccountTable {
    private(set) var all: [RoutedAccount] = []
    let scoreboard: Scoreboard
    /// Its worker's row of the scoreboard.
    private let row: Int
    let log: Logger
    /// Names of accounts whose clients may choose whom a request is charged to.
    private let passingOrganization: Set<String>
    private let isSticky: Bool
    /// What operators set while it runs.
    private(set) var stored = StoredSettings()
    private(set) var pool: AccountPool
    /// Rises each time `pool` is read.
    private var poolVersion = 0
    /// The same accounts for the model that was asked for last; nil where none of them has a quota of its own for it.
    private var modelPool: (key: UInt64, version: Int, pool: AccountPool?)?
    /// When the pool was read last: the scoreboard's count of changes, and until when that is good enough.
    private var (seenChanges, freshUntil) = (UInt64.max, Instant(nanoseconds: 0))
    /// Of this worker alone: the others learn of a model's limit by a refusal of their own.
    var modelCooldowns = ModelCooldowns()
    var modelOffers = ModelOffers()
    /// Quotas of single models by account, with the names that the scoreboard has no room for.
    var modelQuotas: [Int64: [ModelQuota]] = [:]
    var masks = MaskCache()
    private(set) var hasModelLists = false
    private(set) var kinds: Set<Account.Kind> = []
    /// An account can't be used any more before somebody has seen to it.
    var takeOut: (AccountRemoval) -> Void = { _ in }
    /// Under which conversations are remembered.
    private(set) var hash = SipHash(key: (0, 0))
    /// A conversation is an account's; others may need to know.
    var pinned: (_ key: UInt64, _ account: Int64, _ seconds: Int) -> Void = { _, _, _ in }
    /// Some account does not offer a model: its list is worth asking for.
    var modelRefused: () -> Void = {}

    static let clockSlackMilliseconds: Int64 = 10

    init(_ scoreboard: Scoreboard, row: Int, passingOrganization: Set<String>, isSticky: Bool, _ log: Logger) {
        (self.scoreboard, self.row, self.passingOrganization, self.isSticky) = (scoreboard, row, passingOrganization, isSticky)
        self.log = log
        pool = AccountPool(seed: UInt64.random(in: .min ... .max))
    }

    /// The accounts are these now, this is known of them, and this is set. One whose credentials or state have changed starts clean.
    func replace(
        with accounts: [Account], previous: [Account], facts: [AccountFact], pepper: [UInt8], _ stored: StoredSettings
    ) {
        let secret = HMAC.sha256(key: pepper, message: Array("conversations".utf8))
        hash = secret.withUnsafeBytes {
            SipHash(key: ($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
        self.stored = stored
        all = accounts.compactMap(routed)
        (hasModelLists, kinds) = (all.contains { $0.value.options.models != nil }, Set(all.map(\.value.kind)))
        masks.forget()
        let before = Dictionary(previous.map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
        for account in all.lazy.map(\.value) {
            scoreboard.claim(account: account.slot, owner: account.id)
            if let before = before[account.id], before.credentials != account.credentials || before.state != account.state {
                // A login that was renewed has the quota that it had.
                let isSameQuota =
                    account.kind == .chatGPT && before.state == account.state
                    && before.credentials.chatGPTAccountID == account.credentials.chatGPTAccountID
                scoreboard.endCooldown(account: account.slot, keepsLimits: isSameQuota, at: Clock.wall)
                if !isSameQuota { modelCooldowns.forget(account: account.id) }
            }
        }
        let ids = Set(all.lazy.map(\.value.id))
        modelQuotas = modelQuotas.filter { ids.contains($0.key) }
        restore(facts)
        for account in all.lazy.map(\.value) {
            guard let before = before[account.id], before.credentials == account.credentials, before.changedAt != account.changedAt else {
                continue
            }
            forgetModelQuotas(of: account)
        }
        for account in all where account.value.kind == .chatGPT && scoreboard.plan(account: account.value.slot) == .unknown {
            if let plan = account.plan { scoreboard.setPlan(account: account.value.slot, owner: account.value.id, plan) }
        }
        let single = stored.singleAccount.flatMap { name in all.first { $0.value.name == name }?.value.id }
        pool.replace(
            with: all.map { AccountFacts($0.value) }, strategy: stored.strategy, single: single, now: Clock.now, wall: Clock.wall)
        modelPool = nil
        look()
    }

    /// The pool is to be read again before the next choice.
    func look() { freshUntil = Instant(nanoseconds: 0) }

    /// Nil, and told: one that can't be used.
    private func routed(_ account: Account) -> RoutedAccount? {
        guard (0..<Limits.accountsMax).contains(account.slot) else {
            log.error(
                "account has an impossible slot and is left out", metadata: ["account": "\(account.name)", "slot": "\(account.slot)"])
            return nil
        }
        let routed = RoutedAccount(account, passesOrganization: passingOrganization.contains(account.name))
        if routed == nil { log.error("account has an unusable base URL and is left out", metadata: ["account": "\(account.name)"]) }
        return routed
    }

    /// The account for a turn, which it has from then on; those of `tried` have been asked already.
    func choose(for route: Route, model: String, _ affinity: Affinity?, excluding tried: [Int64], now: Instant) -> AccountChoice {
        freshen(now)
        var (pin, isFile) = affinity.flatMap { self.pin($0, now) } ?? (nil, false)
        let mayRelease = affinity?.isWhole == true && pin?.strength == .only && !isFile
        var isReleased = false
        let mask = mask(for: route, model: model, isAgain: !tried.isEmpty, isAnyModel: route.isFile, now: now)
        let hasOwn = freshenModel(model, now)
        while true {
            let choice =
                hasOwn
                ? modelPool!.pool!.choose(among: mask, excluding: tried, pin: pin, now: now)
                : pool.choose(among: mask, excluding: tried, pin: pin, now: now)
            guard case .account(let place) = choice else {
                if mayRelease, !isReleased, choice.isOfOwner {
                    // What else ties it to an account counts as it does without a previous response.
                    (pin, isReleased) = (affinity.flatMap { self.pin($0, now, beyondResponses: true) }?.pin, true)
                    continue
                }
                return none(choice, pin, isFile: isFile, now)
            }
            let chosen = all[place]
            // To the nanosecond: of accounts with as few turns the one that was used least recently is next, also within a millisecond.
            let used = Clock.now
            let room = hasOwn ? modelPool!.pool!.room(place) : pool.room(place)
            guard let changes = scoreboard.acquire(account: chosen.value.slot, worker: row, cap: room, now: used) else {
                pool.foundFull(place, room)
                modelPool?.pool?.foundFull(place, room)
                continue
            }
            pool.took(place, now: used)
            modelPool?.pool?.took(place, now: used)
            changedByUs(changes)
            if let affinity { remember(affinity, chosen, now) }
            return .account(chosen, isOnly: pin?.strength == .only && !mayRelease, isReleased: isReleased)
        }
    }

    private func none(_ choice: Choice, _ pin: Pin?, isFile: Bool, _ now: Instant) -> AccountChoice {
        switch choice {
        case .account: preconditionFailure("there is one")
        case .ownerUnavailable(let until):
            var error = isFile ? Self.fileOwnerUnavailable : Self.ownerUnavailable
            if !isFile, let pin, pool.place(of: pin.account) == nil { error.message = Self.ownerGone }
            if let until { error.retryAfterSeconds = (until.milliseconds(since: now) + 999) / 1000 }
            return .ownerUnavailable(error)
        case .noneEligible: return .noneEligible
        case .allTried: return .allTried
        case .full: return .full(isOwn: pin.map { $0.strength != .prefer } ?? false)
        case .allLimited(let until):
            // Clients are told whole seconds, rounded up: what is lost between two clocks must not make one more.
            let wait = Int64(until.milliseconds(since: now)) - Self.clockSlackMilliseconds
            return .allLimited(until: WallTime(milliseconds: Clock.wall.milliseconds + wait))
        }
    }

    /// A turn has left its account.
    func release(_ account: RoutedAccount) {
        let changes = scoreboard.release(account: account.value.slot, worker: row)
        guard let place = pool.place(of: account.value.id) else { return }
        pool.released(place)
        modelPool?.pool?.released(place)
        if let changes { changedByUs(changes) }
    }

    /// The pool knows of this change; where it is the only one nothing need be read anew.
    private func changedByUs(_ changes: UInt64) { if changes == seenChanges &+ 1 { seenChanges = changes } }

    /// Reads what has changed in the scoreboard. A large pool is read no more often than it takes a hundredth of the time.
    func freshen(_ now: Instant) {
        let changes = scoreboard.accountChanges
        if now < freshUntil, now < pool.validUntil, changes == seenChanges || all.count > Limits.accountsAlwaysFresh { return }
        let wall = Clock.wall
        pool.refresh(now: now, wall: wall) { read(all[$0].value, &$1, now, wall) }
        (seenChanges, poolVersion) = (changes, poolVersion + 1)
        freshUntil =
            all.count > Limits.accountsAlwaysFresh
            ? Instant(nanoseconds: now.nanoseconds + UInt64(all.count) * Limits.refreshNanosecondsPerAccount) : .never
    }

    private func read(_ account: Account, _ facts: inout AccountFacts, _ now: Instant, _ wall: WallTime) {
        let slot = account.slot
        facts.inFlight = scoreboard.inFlight(account: slot)
        facts.lastUsed = scoreboard.lastUsed(account: slot)
        let cooldown = scoreboard.cooldown(account: slot, owner: account.id, now: now)
        (facts.cooldownUntil, facts.isLimited) = (cooldown?.until ?? Instant(nanoseconds: 0), cooldown?.isLimit ?? false)
        let health = AccountHealth(word: scoreboard.health(account: slot))
        let tier = health.tier(now: now)
        facts.isDoubtful = scoreboard.failures(account: slot) > 0 || tier == .probing
        (facts.isDraining, facts.changesAt) = (tier == .draining, tier == .draining ? health.probingAt : .never)
        guard account.kind == .chatGPT else { return }
        facts.plan = scoreboard.plan(account: slot)
        let primary = scoreboard.quota(account: slot, .primary, now: wall)
        // Of the long windows the one that holds it up more: few plans have both.
        let long = [scoreboard.quota(account: slot, .secondary, now: wall), scoreboard.quota(account: slot, .monthly, now: wall)]
            .compactMap { $0 }.max { $0.usedPermille < $1.usedPermille }
        (facts.primaryUsed, facts.secondaryUsed) = (primary?.usedPermille, long?.usedPermille)
        facts.primaryResets = primary?.resetsAt ?? WallTime(milliseconds: 0)
        facts.secondaryResets = long?.resetsAt ?? WallTime(milliseconds: 0)
    }

    // MARK: Models with quotas of their own

    /// Reads the accounts as they are for a model that some of them have a quota of its own for; false: it has none.
    private func freshenModel(_ model: String, _ now: Instant) -> Bool {
        guard scoreboard.hasModelQuotas else { return false }
        let key = QuotaKey.of(model: model)
        if let known = modelPool, known.key == key, known.version == poolVersion, now < known.pool?.validUntil ?? .never {
            return known.pool != nil
        }
        let wall = Clock.wall
        guard all.contains(where: { scoreboard.modelQuota(account: $0.value.slot, key, now: wall) != nil }) else {
            modelPool = (key, poolVersion, nil)
            return false
        }
        var own = modelPool?.pool ?? pool
        modelPool = nil
        own.refresh(now: now, wall: wall) { place, facts in
            read(all[place].value, &facts, now, wall)
            readModel(all[place].value, key, &facts, now, wall)
        }
        modelPool = (key, poolVersion, own)
        return true
    }

    /// Such a model is not held up by the account's windows, but by its own.
    private func readModel(_ account: Account, _ key: UInt64, _ facts: inout AccountFacts, _ now: Instant, _ wall: WallTime) {
        guard let own = scoreboard.modelQuota(account: account.slot, key, now: wall) else { return }
        if scoreboard.cooldown(account: account.slot, owner: account.id, now: now)?.isQuota == true {
            (facts.cooldownUntil, facts.isLimited) = (Instant(nanoseconds: 0), false)
        }
        (facts.primaryUsed, facts.primaryResets, facts.secondaryUsed) = (own.usedPermille, own.resetsAt, nil)
        guard own.usedPermille >= 1000 else { return }
        let until = now.adding(milliseconds: Int(clamping: own.resetsAt.milliseconds - wall.milliseconds))
        (facts.cooldownUntil, facts.isLimited) = (max(facts.cooldownUntil, until), true)
    }

    /// The accounts as a choice for this model sees them.
    func pool(for model: String, _ now: Instant) -> AccountPool { freshenModel(model, now) ? modelPool!.pool! : pool }

    // MARK: Conversations

    /// A pool of one has nothing to choose.
    func affinity(_ ask: TurnRequest, _ request: ClientRequest) -> Affinity? {
        guard isSticky, all.count > 1 else { return nil }
        let affinity = Affinity(ask, request.head.fields, client: request.key?.id ?? 0, hash)
        return affinity.keys.isEmpty ? nil : affinity
    }

    /// By the first of its keys that somebody remembers. `isFile`: only that account has a file which the turn names.
    func pin(_ affinity: Affinity, _ now: Instant, beyondResponses: Bool = false) -> (pin: Pin?, isFile: Bool)? {
        for key in affinity.keys where key.isKnown && !(beyondResponses && key.strength == .only) {
            guard let account = scoreboard.pins.account(key.hash, now: now) else { continue }
            // The login may have come back under another id: its files are looked for.
            if key.isFile, pool.place(of: account) == nil { continue }
            return (Pin(account, key.strength), key.isFile)
        }
        return nil
    }

    /// The conversation is this account's from now on. What only one account has stays with that.
    private func remember(_ affinity: Affinity, _ account: RoutedAccount, _ now: Instant) {
        for key in affinity.keys where key.strength != .only {
            pin(key.hash, to: account, seconds: key.seconds, now)
        }
    }

    private func pin(_ key: UInt64, to account: RoutedAccount, seconds: Int, _ now: Instant) {
        if scoreboard.pins.pin(key, to: account.value.id, seconds: seconds, now: now) { pinned(key, account.value.id, seconds) }
    }

    /// A good answer says by what its conversation will come back.
    func learn(responseID: String?, fileID: String?, turnState: String?, of account: RoutedAccount, now: Instant) {
        // A file outlives the time when there was one account.
        if isSticky, let fileID { pin(Affinity.file(fileID, hash), to: account, seconds: Limits.pinSeconds, now) }
        guard isSticky, all.count > 1 else { return }
        if let responseID { pin(Affinity.response(responseID, hash), to: account, seconds: Limits.pinSeconds, now) }
        if let turnState { pin(Affinity.turnState(turnState, hash), to: account, seconds: Limits.pinSeconds, now) }
    }

    static let ownerUnavailable = ProxyError(
        status: 502, code: "previous_response_owner_unavailable", type: "server_error",
        message: "The account that has the previous response is unavailable; retry later, or send the whole conversation without"
            + " previous_response_id", origin: .ourselves)

    private static let ownerGone =
        "The account that has the previous response is no longer here; send the whole conversation without previous_response_id"

    static let fileOwnerUnavailable = ProxyError(
        status: 502, code: "file_owner_unavailable", type: "server_error",
        message: "The account that has the file is unavailable; retry later, or upload the file again", origin: .ourselves)

    static let capReached = ProxyError(
        status: 429, code: "account_stream_cap", type: "rate_limit_error",
        message: "Every account that can serve this has as many turns open as it may, and none became free in time. Try again in 5s",
        origin: .ourselves, retryAfterSeconds: 5)

    /// What a client is told when there is none to choose.
    func none(for route: Route) -> ProxyError {
        var code = "no_accounts"
        let message: String
        if all.isEmpty {
            message = "No account is configured. Add one with: codex-lb accounts add NAME --base-url URL --key-file FILE"
        } else if stored.strategy == .singleAccount, stored.singleAccount == nil {
            code = "single_account_not_configured"
            message =
                "The routing strategy is single_account, but no account is named. Set one with: codex-lb settings set routing.single_account NAME"
        } else if stored.strategy == .singleAccount, let name = stored.singleAccount {
            code = "single_account_unavailable"
            message =
                "The routing strategy is single_account, and the account \(name) can't serve \(route.rawValue). See: codex-lb accounts explain"
        } else if all.allSatisfy({ $0.value.state != .active }) {
            message = "All accounts are paused or need a new login. See: codex-lb accounts list"
        } else {
            message = "No active account serves \(route.rawValue). See: codex-lb accounts list"
        }
        return ProxyError(status: 503, code: code, type: "server_error", message: message, origin: .ourselves, retryAfterSeconds: 5)
    }

    /// The account as it is now.
    func today(_ account: RoutedAccount) -> RoutedAccount? { pool.place(of: account.value.id).map { all[$0] } }
}
