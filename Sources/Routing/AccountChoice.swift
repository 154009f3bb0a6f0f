public import Vocabulary

/// What routing knows of one account at the moment of choice.
@frozen public struct Candidate: Sendable, Equatable {
    public var accountID: Int64
    /// Serves the route and is active.
    public var isEligible: Bool
    /// Turns open on it, over all workers.
    public var inFlight: Int
    public var lastUsed: Instant
    public var cooldownUntil: Instant
    /// The cooldown is a quota's: upstream said when to come back, and that is honoured.
    public var isLimited: Bool
    /// It could not be reached when it was tried last.
    public var isDoubtful: Bool
    /// A quota window of it is nearly used up.
    public var isTight: Bool

    @inlinable public init(
        accountID: Int64, isEligible: Bool, inFlight: Int, lastUsed: Instant, cooldownUntil: Instant, isLimited: Bool,
        isDoubtful: Bool = false, isTight: Bool = false
    ) {
        (self.accountID, self.isEligible, self.inFlight) = (accountID, isEligible, inFlight)
        (self.lastUsed, self.cooldownUntil, self.isLimited) = (lastUsed, cooldownUntil, isLimited)
        (self.isDoubtful, self.isTight) = (isDoubtful, isTight)
    }
}

/// The account that a turn's conversation belongs to.
@frozen public struct Pin: Sendable, Equatable {
    public enum Strength: Sendable {
        /// Another account can't go on with it.
        case only
        /// It waits out a failure of its account, but not its quota.
        case owner
        /// Another account costs no more than the cached prompt.
        case prefer
    }
    public var account: Int64
    public var strength: Strength
    @inlinable public init(_ account: Int64, _ strength: Strength) { (self.account, self.strength) = (account, strength) }
}

/// Which account a turn goes to.
public enum Choice: Sendable, Equatable {
    /// Index into the candidates.
    case account(Int)
    /// None is configured or active for this route.
    case noneEligible
    /// All that could serve have been tried in this turn.
    case allTried
    /// The only one that can go on with the conversation is gone, paused or out of quota.
    case ownerUnavailable
    /// Each one's quota is used up; the earliest comes back then.
    case allLimited(until: Instant)
}

public enum Routing {
    /// What has quota left comes before what has hardly any, then the less busy, then the one that was used less recently.
    @inlinable static func isBetter(_ a: Candidate, _ b: Candidate) -> Bool {
        if a.isTight != b.isTight { return b.isTight }
        return (a.inFlight, a.lastUsed) < (b.inFlight, b.lastUsed)
    }

    /// Fewest turns in flight, then least recently used. Accounts that cool down after errors are used when no other is left;
    /// those that are rate limited never are. A conversation goes to its own account while that can serve it. One that could not be reached gets a single turn to show that it can, not all that come
    /// while that one waits.
    @inlinable public static func choose(
        _ candidates: some Sequence<Candidate>, excluding tried: [Int64], pin: Pin? = nil, now: Instant
    ) -> Choice {
        var best: (index: Int, candidate: Candidate)?
        var spare: (index: Int, until: Instant)?  // cooling down after errors: the one that comes back first
        var owner: (index: Int, candidate: Candidate)?
        var firstReset: Instant?
        var (anyEligible, isOwnerTried) = (false, false)
        var i = -1
        for c in candidates {
            i += 1
            guard c.isEligible else { continue }
            anyEligible = true
            let isOwner = c.accountID == pin?.account
            if !tried.isEmpty, tried.contains(c.accountID) {
                if isOwner { isOwnerTried = true }
                continue
            }
            if isOwner { owner = (i, c) }
            let isCooling = c.cooldownUntil > now
            if isCooling || c.isDoubtful && c.inFlight > 0 {
                if isCooling, c.isLimited {
                    firstReset = min(firstReset ?? c.cooldownUntil, c.cooldownUntil)
                } else if spare.map({ c.cooldownUntil < $0.until }) ?? true {
                    spare = (i, c.cooldownUntil)
                }
            } else if best.map({ isBetter(c, $0.candidate) }) ?? true {
                best = (i, c)
            }
        }
        if let pin {
            let isLimited = owner.map { $0.candidate.isLimited && $0.candidate.cooldownUntil > now } ?? false
            switch pin.strength {
            case .only:
                if isOwnerTried { return .allTried }
                guard let owner, !isLimited else { return .ownerUnavailable }
                return .account(owner.index)
            case .owner:
                if let owner, !isLimited { return .account(owner.index) }
            case .prefer:
                if let owner, let best, owner.candidate.cooldownUntil <= now, !owner.candidate.isDoubtful,
                    owner.candidate.inFlight <= best.candidate.inFlight + Limits.pinnedSurplusMax
                {
                    return .account(owner.index)
                }
            }
        }
        if let chosen = best?.index ?? spare?.index { return .account(chosen) }
        if !anyEligible { return .noneEligible }
        if let firstReset { return .allLimited(until: firstReset) }
        return .allTried
    }
}

/// How long an account that can't be reached is left alone.
public enum Backoff {
    /// 5, 10, 20 … 300 s for 1, 2, 3 … failures to connect in a row.
    public static func milliseconds(failures: Int) -> Int {
        min(Limits.unreachableMillisecondsMax, Limits.unreachableMilliseconds << max(0, min(16, failures - 1)))
    }
}
