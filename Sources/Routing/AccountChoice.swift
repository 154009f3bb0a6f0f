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

    @inlinable public init(
        accountID: Int64, isEligible: Bool, inFlight: Int, lastUsed: Instant, cooldownUntil: Instant, isLimited: Bool,
        isDoubtful: Bool = false
    ) {
        (self.accountID, self.isEligible, self.inFlight) = (accountID, isEligible, inFlight)
        (self.lastUsed, self.cooldownUntil, self.isLimited) = (lastUsed, cooldownUntil, isLimited)
        self.isDoubtful = isDoubtful
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
    case allLimited(until: Instant)
}

public enum Routing {
    /// Fewest turns in flight, then least recently used. Accounts that cool down after errors are used when no other is left;
    /// those that are rate limited never are. One that could not be reached gets a single turn to show that it can, not all that come
    /// while that one waits.
    @inlinable public static func choose(_ candidates: some Sequence<Candidate>, excluding tried: [Int64], now: Instant) -> Choice {
        var best: (index: Int, candidate: Candidate)?
        var spare: (index: Int, until: Instant)?  // cooling down after errors: the one that comes back first
        var firstReset: Instant?
        var anyEligible = false
        var i = -1
        for c in candidates {
            i += 1
            guard c.isEligible else { continue }
            anyEligible = true
            if !tried.isEmpty, tried.contains(c.accountID) { continue }
            let isCooling = c.cooldownUntil > now
            if isCooling || c.isDoubtful && c.inFlight > 0 {
                if isCooling, c.isLimited {
                    firstReset = min(firstReset ?? c.cooldownUntil, c.cooldownUntil)
                } else if spare.map({ c.cooldownUntil < $0.until }) ?? true {
                    spare = (i, c.cooldownUntil)
                }
            } else if best.map({ (c.inFlight, c.lastUsed) < ($0.candidate.inFlight, $0.candidate.lastUsed) }) ?? true {
                best = (i, c)
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
