public import Vocabulary

/// What routing knows of one account at the moment of choice.
public struct Candidate: Sendable, Equatable {
    public var accountID: Int64
    /// Serves the route and is active.
    public var isEligible: Bool
    /// Turns open on it, over all workers.
    public var inFlight: Int
    public var lastUsed: Instant
    public var cooldownUntil: WallTime
    /// The cooldown is a quota's: upstream said when to come back, and that is honoured.
    public var isLimited: Bool

    public init(accountID: Int64, isEligible: Bool, inFlight: Int, lastUsed: Instant, cooldownUntil: WallTime, isLimited: Bool) {
        (self.accountID, self.isEligible, self.inFlight) = (accountID, isEligible, inFlight)
        (self.lastUsed, self.cooldownUntil, self.isLimited) = (lastUsed, cooldownUntil, isLimited)
    }
}

/// Which account a turn goes to.
public enum Choice: Sendable, Equatable {
    /// Index into the candidates.
    case account(Int)
    /// None is configured or active for this route.
    case noneEligible
    /// All that could serve have been tried in this turn.
    case allTried
    /// Each one's quota is used up; the earliest comes back then.
    case allLimited(until: WallTime)
}

public enum Routing {
    /// Fewest turns in flight, then least recently used. Accounts that cool down after errors are used when no other is left;
    /// those that are rate limited never are.
    public static func choose(_ candidates: [Candidate], excluding tried: [Int64], now: WallTime) -> Choice {
        var best: Int?
        var spare: Int?  // cooling down after errors: the one that comes back first
        var firstReset: WallTime?
        var anyEligible = false
        for (i, c) in candidates.enumerated() where c.isEligible {
            anyEligible = true
            if tried.contains(c.accountID) { continue }
            if c.cooldownUntil > now {
                if c.isLimited {
                    firstReset = min(firstReset ?? c.cooldownUntil, c.cooldownUntil)
                } else if spare.map({ c.cooldownUntil < candidates[$0].cooldownUntil }) ?? true {
                    spare = i
                }
            } else if let b = best {
                if (c.inFlight, c.lastUsed) < (candidates[b].inFlight, candidates[b].lastUsed) { best = i }
            } else {
                best = i
            }
        }
        if let chosen = best ?? spare { return .account(chosen) }
        if !anyEligible { return .noneEligible }
        if let firstReset { return .allLimited(until: firstReset) }
        return .allTried
    }
}
