import Bytes
import Diagnostics
import Exchange
import HTTPWire
import Logging
import Platform
import Routing
import Sealing
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
    private let scoreboard: Scoreboard
    private let log: Logger
    /// Names of accounts whose clients may choose whom a request is charged to.
    private let passingOrganization: Set<String>
    private let isSticky: Bool
    /// Of this worker alone: the others learn of a model's limit by a refusal of their own.
    private var modelCooldowns = ModelCooldowns()
    var modelOffers = ModelOffers()
    /// An account's login is dead.
    var needsLogin: (Account) -> Void = { _ in }
    /// Under which conversations are remembered.
    private var hash = SipHash(key: (0, 0))
    /// Some account does not offer a model: its list is worth asking for.
    var modelRefused: () -> Void = {}

    static let clockSlackMilliseconds: Int64 = 10

    init(_ scoreboard: Scoreboard, passingOrganization: Set<String>, isSticky: Bool, _ log: Logger) {
        (self.scoreboard, self.passingOrganization, self.isSticky, self.log) = (scoreboard, passingOrganization, isSticky, log)
    }

    /// The accounts are these now. One whose credentials or state have changed starts clean.
    func replace(with accounts: [Account], previous: [Account], pepper: [UInt8]) {
        let secret = HMAC.sha256(key: pepper, message: Array("conversations".utf8))
        hash = secret.withUnsafeBytes {
            SipHash(key: ($0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        }
        all = accounts.compactMap(routed)
        let before = Dictionary(previous.map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
        for account in all.lazy.map(\.value) {
            scoreboard.claim(account: account.slot, owner: account.id)
            if let before = before[account.id], before.credentials != account.credentials || before.state != account.state {
                scoreboard.endCooldown(account: account.slot)
                modelCooldowns.forget(account: account.id)
            }
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
            if hasModelLimits, let until = modelCooldowns.until(account: account.value.id, model: model, now: now),
                until > cooldown?.until ?? now
            {
                cooldown = (until, isLimit: true)
            }
            return Candidate(
                accountID: account.value.id,
                isEligible: serves(account) && (lacking.isEmpty || !lacking.contains(account.value.id)),
                inFlight: scoreboard.inFlight(account: slot), lastUsed: scoreboard.lastUsed(account: slot),
                cooldownUntil: cooldown?.until ?? now, isLimited: cooldown?.isLimit ?? false,
                isDoubtful: scoreboard.failures(account: slot) > 0,
                isTight: account.value.kind == .chatGPT && isTight(slot, wall))
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

    // MARK: Quotas

    private func isTight(_ slot: Int, _ wall: WallTime) -> Bool {
        Scoreboard.Window.allCases.contains {
            scoreboard.quota(account: slot, $0, now: wall).map { $0.usedPermille >= Limits.tightPermille } ?? false
        }
    }

    /// Any answer of a login's upstream, good or not, says how much of its quotas is used up.
    func learnQuota(_ fields: HeaderFields, of account: RoutedAccount) {
        guard account.value.kind == .chatGPT, let reading = QuotaReading(fields, now: Clock.wall) else { return }
        for (window, told) in [(Scoreboard.Window.primary, reading.primary), (.secondary, reading.secondary)] {
            guard let told else { continue }
            scoreboard.setQuota(
                account: account.value.slot, owner: account.value.id, window, usedPermille: told.usedPermille, resetsAt: told.resetsAt)
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

    /// What a turn met counts against its account, for all workers or, where it is about one model, for this one.
    func penalise(
        _ account: RoutedAccount, _ model: String, _ penalty: Verdict.Penalty, _ failure: Failure, requestID: String, now: Instant
    ) {
        let owner = account.value.id
        // What the old key met says nothing of the new one.
        guard let today = all.first(where: { $0.value.id == owner })?.value, today.credentials == account.value.credentials,
            today.baseURL == account.value.baseURL
        else { return }
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
        case .unauthorized(let ms), .reauthRequired(let ms): (milliseconds, isLimit) = (ms, false)
        }
        if case .reauthRequired = penalty {
            needsLogin(account.value)
            log.error(
                "account needs a new login",
                metadata: [
                    "account": "\(account.value.name)",
                    "mend": account.value.kind == .chatGPT
                        ? "codex-lb accounts login, or accounts import" : "codex-lb accounts add --replace",
                    "request_id": "\(requestID)",
                ])
        }
        switch failure {
        case .notConnected, .untrusted:
            // The longer it can't be reached, the less often a turn has to find that out.
            milliseconds = Backoff.milliseconds(failures: scoreboard.unreachable(account: account.value.slot, owner: owner, now: now))
        default: break
        }
        let until = now.adding(milliseconds: milliseconds)
        if isOfModel {
            modelCooldowns.coolDown(account: owner, model: model, until: until, now: now)
        } else {
            scoreboard.coolDown(account: account.value.slot, owner: owner, until: until, isLimit: isLimit)
        }
        let why: String
        switch failure {
        case .refused(let r), .failedEvent(let r): why = "status \(r.status) \(r.code)"
        case .notConnected(let text), .untrusted(let text), .exhausted(let text), .broken(let text): why = text
        case .timedOut: why = "no answer in time"
        }
        log.notice(
            "account cools down",
            metadata: [
                "account": "\(account.value.name)", "why": "\(why)", "seconds": "\(milliseconds / 1000)",
                "model": "\(isOfModel ? model : "")", "request_id": "\(requestID)",
            ])
    }
}
