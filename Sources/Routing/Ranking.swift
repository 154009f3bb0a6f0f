internal import Vocabulary

/// Puts what is known of an account into one number, its key: of all keys the lowest is served first. The upper 8 bits are its rank, the lower
/// 24 its load as the strategy sees it.
struct Ranking: Sendable {
    var strategy = RoutingStrategy.standard
    /// The account of `single_account`.
    var single: Int64?
    /// Of the whole pool, for `relative_availability`.
    private var (bestScore, lowestScore) = (1.0, 0.0)
    var (now, wall) = (Instant(nanoseconds: 0), WallTime(milliseconds: 0))

    /// Which of several accounts with the same key.
    enum Tie: Sendable {
        /// Of equal weights the one that was used least recently; else one by lot, by its weight.
        case lot
        case leastRecent
        case first
    }

    var tie: Tie {
        switch strategy {
        case .capacityWeighted, .relativeAvailability: .lot
        case .usageWeighted, .roundRobin, .resetDrain, .leastInFlight, .singleAccount: .leastRecent
        case .fillFirst, .sequentialDrain: .first
        }
    }

    static let never = Int32.max
    /// The first rank of accounts that are used when no other is left.
    static let spareRank: Int32 = 32
    static let loadMax: UInt32 = 0xFF_FFFF

    /// What an account can be used for now, whatever the turn.
    enum Standing: Sendable, Equatable {
        case inactive, notTheSingle, limited, full
        /// It failed lately, or nobody knows whether it can be reached and a turn is finding out.
        case spare
        case ready
    }

    func standing(_ facts: AccountFacts) -> Standing {
        if !facts.isActive { return .inactive }
        if strategy == .singleAccount, facts.id != single { return .notTheSingle }
        if facts.isLimited(now) { return .limited }
        if facts.isFull { return .full }
        return facts.isCooling(now) || facts.isDoubtful && facts.inFlight > 0 ? .spare : .ready
    }

    func key(_ facts: AccountFacts) -> Int32 {
        switch standing(facts) {
        case .inactive, .notTheSingle, .limited, .full: Self.never
        // The one that comes back first.
        case .spare: spareRank(facts) << 24 | Int32(clamping: min(facts.cooldownUntil.milliseconds(since: now), Int(Self.loadMax)))
        case .ready: rank(facts) << 24 | Int32(bitPattern: load(facts))
        }
    }

    private func spareRank(_ facts: AccountFacts) -> Int32 { Self.spareRank + (facts.isOverflow ? 8 : 0) }

    /// burn_first, normal, preserve, then those with hardly any quota left in the same order; overflow accounts after all others. What is to be
    /// burnt is burnt to its end.
    private func rank(_ facts: AccountFacts) -> Int32 {
        let order: Int32 = facts.policy == .burnFirst ? 0 : facts.policy == .normal ? 1 : 2
        if strategy == .sequentialDrain || strategy == .singleAccount { return order + (facts.isOverflow ? 8 : 0) }
        let isLate = facts.isTight && facts.policy != .burnFirst
        // One that had errors just now comes after all others that are not overflow, whatever it is.
        return order + (facts.isDraining ? 4 : isLate ? 2 : 0) + (facts.isOverflow ? 8 : 0)
    }

    // MARK: The load, by strategy

    private func load(_ facts: AccountFacts) -> UInt32 {
        switch strategy {
        case .capacityWeighted: Self.ordered(Double(facts.inFlight) / weight(facts))
        case .relativeAvailability: relativeLoad(facts)
        case .usageWeighted: pressed(facts, facts.secondaryUsed) << 12 | pressed(facts, facts.primaryUsed)
        case .roundRobin, .singleAccount: 0
        case .leastInFlight: UInt32(clamping: min(facts.inFlight, Int(Self.loadMax)))
        case .fillFirst: Self.left(facts.primaryUsed) << 12 | Self.left(facts.secondaryUsed)
        case .sequentialDrain: UInt32(facts.size)
        case .resetDrain:
            days(facts) << 19 | min(pressed(facts, facts.primaryUsed) / 2, 511) << 10 | min(Self.used(facts.secondaryUsed), 1000)
        }
    }

    /// The load in numbers that people know: turns by size, thousandths, days; whatever it is, less comes first.
    func shownLoad(_ facts: AccountFacts) -> Double {
        switch strategy {
        case .capacityWeighted, .relativeAvailability: Double(facts.inFlight) / weight(facts)
        case .usageWeighted: Double(pressed(facts, facts.secondaryUsed))
        case .roundRobin, .singleAccount: 0
        case .leastInFlight: Double(facts.inFlight)
        case .fillFirst: Double(Self.left(facts.primaryUsed))
        case .sequentialDrain: Double(facts.size)
        case .resetDrain: Double(days(facts))
        }
    }

    /// A positive number in 23 bits that keep its order: IEEE 754 has it so.
    private static func ordered(_ number: Double) -> UInt32 { Float(number).bitPattern >> 8 }

    private static func used(_ permille: Int?) -> UInt32 { UInt32(clamping: permille ?? 0) }
    private static func left(_ permille: Int?) -> UInt32 { 1000 - min(used(permille), 1000) }

    /// What is used, and what the turns in flight will use.
    private func pressed(_ facts: AccountFacts, _ permille: Int?) -> UInt32 {
        let pressure = facts.inFlight.multipliedReportingOverflow(by: Limits.pressurePermille * Limits.accountWeightDefault)
        guard !pressure.overflow else { return 4095 }
        return min(Self.used(permille) &+ UInt32(clamping: pressure.partialValue / max(1, facts.size)), 4095)
    }

    /// Until its week begins anew; those that have none come last.
    private func days(_ facts: AccountFacts) -> UInt32 {
        guard facts.secondaryUsed != nil else { return 31 }
        return UInt32(clamping: min(30, max(0, facts.secondaryResets.milliseconds - wall.milliseconds) / 86_400_000))
    }

    // MARK: Weights

    /// Its part of the turns next to others.
    func weight(_ facts: AccountFacts) -> Double {
        guard strategy == .relativeAvailability else { return capacity(facts) }
        let part = score(facts) / bestScore
        return max(part * part, 1e-6)
    }

    /// Its size and what is left of it; an account of which nobody has told is whole.
    private func capacity(_ facts: AccountFacts) -> Double {
        Double(max(1, facts.size)) * Double(max(1, 1000 - min(facts.secondaryUsed ?? facts.primaryUsed ?? 0, 1000))) / 1000
    }

    /// What is left for each second until there is more.
    private func score(_ facts: AccountFacts) -> Double {
        let seconds = facts.secondaryUsed == nil ? 7 * 86_400 : (facts.secondaryResets.milliseconds - wall.milliseconds) / 1000
        return capacity(facts) / Double(min(max(seconds, 300), 7 * 86_400))
    }

    /// Those that are far behind the best, and all but the best five, are used when these can't be.
    private func relativeLoad(_ facts: AccountFacts) -> UInt32 {
        let weight = weight(facts)
        let isBehind = weight < 0.1 || score(facts) < lowestScore
        return Self.ordered(Double(facts.inFlight) / weight) >> 1 | (isBehind ? 0x80_0000 : 0)
    }
    private static let relativeMax = 5

    /// What of the whole pool a key depends on.
    mutating func look(at pool: [AccountFacts]) {
        guard strategy == .relativeAvailability else { return }
        var best = [Double](repeating: 0, count: Self.relativeMax)  // highest first
        for facts in pool where standing(facts) == .ready || standing(facts) == .full {
            var score = score(facts)
            for place in best.indices where score > best[place] { swap(&score, &best[place]) }
        }
        bestScore = best[0] > 0 ? best[0] : 1
        lowestScore = best[Self.relativeMax - 1]
    }
}
