public import Vocabulary

/// What routing knows of one account.
@frozen public struct AccountFacts: Sendable, Equatable {
    public var id: Int64
    public var isActive = true
    public var policy = Account.Policy.normal
    public var isOverflow = false
    public var weight = Limits.accountWeightDefault
    public var plan = Plan.unknown
    /// Its quota next to other accounts': 100 is a Plus login of the usual weight.
    public var size: Int { weight * plan.weekHundredths / 100 }
    /// Turns that may be open on it; `Int.max` without a limit.
    public var cap = Int.max
    /// Turns open on it, over all workers.
    public var inFlight = 0
    public var lastUsed = Instant(nanoseconds: 0)
    /// Not to be used before, if others are there.
    public var cooldownUntil = Instant(nanoseconds: 0)
    /// The cooldown is a quota's: upstream said when to come back, and that is honoured.
    public var isLimited = false
    /// It could not be reached when it was tried last, or is being tried again after errors.
    public var isDoubtful = false
    /// It had errors just now: others come first.
    public var isDraining = false
    /// When any of this changes by itself.
    public var changesAt = Instant.never
    /// Thousandths of its quota windows that are used up; nil where nobody has told.
    public var primaryUsed: Int?
    public var secondaryUsed: Int?
    /// When the windows begin anew; of those that are told.
    public var primaryResets = WallTime(milliseconds: 0)
    public var secondaryResets = WallTime(milliseconds: 0)

    public init(id: Int64) { self.id = id }

    /// What an operator has set.
    public init(_ account: Account) {
        id = account.id
        isActive = account.state == .active
        (policy, isOverflow, weight) = (account.options.policy, account.options.isOverflow, account.options.weight)
        cap = account.options.streamsMax ?? .max
    }

    public func isCooling(_ now: Instant) -> Bool { cooldownUntil > now }
    /// Out of quota until its upstream's time has come.
    public func isLimited(_ now: Instant) -> Bool { isLimited && cooldownUntil > now }
    public var isFull: Bool { inFlight >= cap }
    /// A quota window of it is nearly used up.
    public var isTight: Bool { max(primaryUsed ?? 0, secondaryUsed ?? 0) >= Limits.tightPermille }
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
    /// Its place in the pool.
    case account(Int)
    /// None is active for this route and model.
    case noneEligible
    /// All that could serve have been tried in this turn.
    case allTried
    /// The only one that can go on with the conversation is gone, paused or out of quota; with quota again at that time, where one is told.
    case ownerUnavailable(until: Instant?)
    /// Those that can serve it have as many turns open as they may: one of them will be free again.
    case full
    /// Each one's quota is used up; the earliest comes back then.
    case allLimited(until: Instant)

    /// There may be others that could serve a turn which is not bound to one account.
    public var isOfOwner: Bool {
        switch self {
        case .ownerUnavailable, .allTried, .allLimited: true
        default: false
        }
    }
}

/// Which accounts of a pool can serve a route and a model, and why the others can't.
public struct AccountMask: Sendable {
    public enum Reason: UInt8, Sendable {
        case serves
        /// It has no such route.
        case otherRoute
        /// The model is not on the list that its operator gave it.
        case otherModels
        /// Its upstream does not offer the model, as its list or a refusal has told.
        case notOffered
        /// Its upstream has a limit of its own for the model.
        case modelLimited
    }
    public let reasons: [Reason]
    /// When the first limit of the model ends.
    public let limitedUntil: Instant?
    /// All ones where it can't: such an account's key is the last of all.
    let blocked: [Int32]

    public init(_ reasons: [Reason], limitedUntil: Instant? = nil) {
        (self.reasons, self.limitedUntil) = (reasons, limitedUntil)
        blocked = reasons.map { $0 == .serves ? 0 : Ranking.never }
    }

    public var hidesNone: Bool { !blocked.contains(Ranking.never) }
}

/// How long an account that can't be reached is left alone.
public enum Backoff {
    /// 5, 10, 20 … 300 s for 1, 2, 3 … failures to connect in a row.
    public static func milliseconds(failures: Int) -> Int {
        min(Limits.unreachableMillisecondsMax, Limits.unreachableMilliseconds << max(0, min(16, failures - 1)))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same choices for the same seed.
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }
    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
