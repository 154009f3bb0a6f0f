import Bytes
import Diagnostics
import Exchange
import HTTPWire
import Logging
import Platform
import Routing
import Sealing
import Store
import Vocabulary

/// Which account a turn got.
enum AccountChoice {
    /// `isOnly`: no other one can go on with the conversation.
    case account(RoutedAccount, isOnly: Bool)
    case ownerUnavailable
    case noneEligible
    case allTried
    case allLimited(until: WallTime)
}

/// The accounts of the snapshot, with what the scoreboard and this worker's own turns know of them.
final class AccountTable {
    private(set) var all: [RoutedAccount] = []
    let scoreboard: Scoreboard
    let log: Logger
    /// Names of accounts whose clients may choose whom a request is charged to.
    private let passingOrganization: Set<String>
    private let isSticky: Bool
    /// Of this worker alone: the others learn of a model's limit by a refusal of their own.
    var modelCooldowns = ModelCooldowns()
    var modelOffers = ModelOffers()
    /// An account can't be used any more before somebody has seen to it.
    var takeOut: (AccountRemoval) -> Void = { _ in }
    /// Quotas of single models by account, with the names that the scoreboard has no room for.
    var modelQuotas: [Int64: [ModelQuota]] = [:]
    /// Under which conversations are remembered.
    private var hash = SipHash(key: (0, 0))
    /// Some account does not offer a model: its list is worth asking for.
    var modelRefused: () -> Void = {}

    static let clockSlackMilliseconds: Int64 = 10

    init(_ scoreboard: Scoreboard, passingOrganization: Set<String>, isSticky: Bool, _ log: Logger) {
        (self.scoreboard, self.passingOrganization, self.isSticky, self.log) = (scoreboard, passingOrganization, isSticky, log)
    }

    /// The accounts are these now. One whose credentials or state have changed starts clean.
    func replace(with accounts: [Account], previous: [Account], facts: [AccountFact], pepper: [UInt8]) {
        let secret = HMAC.sha256(key: pepper, message: Array("conversations".utf8))
        hash = secret.withUnsafeBytes {
            SipHash(key: ($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
        all = accounts.compactMap(routed)
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
        for account in all where account.value.kind == .chatGPT && scoreboard.plan(account: account.value.slot) == .unknown {
            if let plan = account.plan { scoreboard.setPlan(account: account.value.slot, owner: account.value.id, plan) }
        }
    }

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

    /// The account for a turn; those of `tried` have been asked already.
    func choose(for route: Route, model: String, _ affinity: Affinity?, excluding tried: [Int64], now: Instant) -> AccountChoice {
        let pin = affinity.flatMap { self.pin($0, now) }
        let hasModelLimits = !modelCooldowns.isEmpty
        let quotaKey = scoreboard.hasModelQuotas ? QuotaKey.of(model: model) : nil
        func serves(_ account: RoutedAccount) -> Bool {
            account.value.state == .active && route.upstreamPath(account.value.kind) != nil
        }
        var lacking: Set<Int64> = []
        if !modelOffers.isEmpty {
            let serving = all.filter(serves)
            lacking = modelOffers.lacking(model, among: serving.map(\.value.id), now: now)
            // Where everybody lacks it one account may say so, in its own words.
            if lacking.count == serving.count, tried.isEmpty { lacking = [] }
        }
        let wall = Clock.wall
        let candidates = all.lazy.map { [self] account in
            let slot = account.value.slot
            var cooldown = scoreboard.cooldown(account: slot, owner: account.value.id, now: now)
            let ownQuota = quotaKey.flatMap { scoreboard.modelQuota(account: slot, $0, now: wall) }
            if let ownQuota {
                // A model with a quota of its own is not held up by the account's.
                if cooldown?.isQuota == true { cooldown = nil }
                if ownQuota.usedPermille >= 1000 {
                    let wait = ownQuota.resetsAt.milliseconds - wall.milliseconds
                    cooldown = (now.adding(milliseconds: Int(clamping: wait)), isLimit: true, isQuota: true)
                }
            }
            let tier = AccountHealth(word: scoreboard.health(account: slot)).tier(now: now)
            if hasModelLimits, let until = modelCooldowns.until(account: account.value.id, model: model, now: now),
                until > cooldown?.until ?? now
            {
                cooldown = (until, isLimit: true, isQuota: false)
            }
            return Candidate(
                accountID: account.value.id,
                isEligible: serves(account) && (lacking.isEmpty || !lacking.contains(account.value.id)),
                inFlight: scoreboard.inFlight(account: slot), lastUsed: scoreboard.lastUsed(account: slot),
                cooldownUntil: cooldown?.until ?? now, isLimited: cooldown?.isLimit ?? false,
                isDoubtful: scoreboard.failures(account: slot) > 0 || tier == .probing,
                isTight: tier == .draining
                    || account.value.kind == .chatGPT
                        && (ownQuota.map { $0.usedPermille >= Limits.tightPermille } ?? isTight(slot, wall)))
        }
        switch Routing.choose(candidates, excluding: tried, pin: pin, now: now) {
        case .account(let index):
            let chosen = all[index]
            if let affinity { remember(affinity, chosen, now) }
            return .account(chosen, isOnly: pin?.strength == .only)
        case .ownerUnavailable: return .ownerUnavailable
        case .noneEligible: return all.contains(where: serves) ? .allTried : .noneEligible
        case .allTried: return .allTried
        case .allLimited(let until):
            // Clients are told whole seconds, rounded up: what is lost between two clocks must not make one more.
            let wait = Int64(until.milliseconds(since: now)) - Self.clockSlackMilliseconds
            return .allLimited(until: WallTime(milliseconds: Clock.wall.milliseconds + wait))
        }
    }

    private func isTight(_ slot: Int, _ wall: WallTime) -> Bool {
        Scoreboard.Window.allCases.contains {
            scoreboard.quota(account: slot, $0, now: wall).map { $0.usedPermille >= Limits.tightPermille } ?? false
        }
    }

    // MARK: Conversations

    /// A pool of one has nothing to choose.
    func affinity(_ ask: TurnRequest, _ request: ClientRequest) -> Affinity? {
        guard isSticky, all.count > 1 else { return nil }
        let affinity = Affinity(ask, request.head.fields, client: request.key?.id ?? 0, hash)
        return affinity.keys.isEmpty ? nil : affinity
    }

    /// The first of its keys that somebody remembers.
    private func pin(_ affinity: Affinity, _ now: Instant) -> Pin? {
        for key in affinity.keys where key.isKnown {
            if let account = scoreboard.pins.account(key.hash, now: now) { return Pin(account, key.strength) }
        }
        return nil
    }

    /// The conversation is this account's from now on. What only one account has stays with that.
    private func remember(_ affinity: Affinity, _ account: RoutedAccount, _ now: Instant) {
        for key in affinity.keys where key.strength != .only {
            scoreboard.pins.pin(key.hash, to: account.value.id, seconds: key.seconds, now: now)
        }
    }

    /// A good answer says by what its conversation will come back.
    func learn(responseID: String?, turnState: String?, of account: RoutedAccount, now: Instant) {
        guard isSticky, all.count > 1 else { return }
        if let responseID {
            scoreboard.pins.pin(Affinity.response(responseID, hash), to: account.value.id, seconds: Limits.pinSeconds, now: now)
        }
        if let turnState {
            scoreboard.pins.pin(Affinity.turnState(turnState, hash), to: account.value.id, seconds: Limits.pinSeconds, now: now)
        }
    }

    static let ownerUnavailable = ProxyError(
        status: 502, code: "previous_response_owner_unavailable", type: "server_error",
        message: "The account that has the previous response is unavailable; retry later, or send the whole conversation without"
            + " previous_response_id", origin: .ourselves)

    /// What a client is told when there is none to choose.
    func none(for route: Route) -> ProxyError {
        let message: String
        if all.isEmpty {
            message = "No account is configured. Add one with: codex-lb accounts add NAME --base-url URL --key-file FILE"
        } else if all.allSatisfy({ $0.value.state != .active }) {
            message = "All accounts are paused or need a new login. See: codex-lb accounts list"
        } else {
            message = "No active account serves \(route.rawValue). See: codex-lb accounts list"
        }
        return ProxyError(
            status: 503, code: "no_accounts", type: "server_error", message: message, origin: .ourselves, retryAfterSeconds: 5)
    }

    /// The account as it is now.
    func today(_ account: RoutedAccount) -> RoutedAccount? { all.first { $0.value.id == account.value.id } }
}
