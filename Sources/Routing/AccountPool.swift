public import Vocabulary

/// The accounts among which turns are spread, as one worker knows them, and the choice among them.
///
/// What is known is put into one number per account when it changes (`Ranking`), not when a turn asks: a choice is the lowest of a row of
/// 32-bit keys, and one of those that share it. It allocates nothing and compares no text.
public struct AccountPool: Sendable {
    public private(set) var facts: [AccountFacts] = []
    private var keys: [Int32] = []
    private var weights: [Float] = []
    private var lastUsed: [UInt64] = []
    private var places: [Int64: Int] = [:]
    /// The largest of `weights`, and whether all are the same.
    private var (weightMax, isEven): (Float, Bool) = (0, true)
    private var ranking = Ranking()
    private var random: SeededGenerator
    /// Until then keys are what they would be if they were made anew.
    public private(set) var validUntil = Instant(nanoseconds: 0)

    public init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    public var strategy: RoutingStrategy { ranking.strategy }

    public func place(of account: Int64) -> Int? { places[account] }

    /// These are the accounts now, and this is how one is chosen.
    public mutating func replace(with facts: [AccountFacts], strategy: RoutingStrategy, single: Int64?, now: Instant, wall: WallTime) {
        self.facts = facts
        places = Dictionary(facts.enumerated().map { ($1.id, $0) }, uniquingKeysWith: { first, _ in first })
        (ranking.strategy, ranking.single) = (strategy, single)
        keys = [Int32](repeating: Ranking.never, count: facts.count)
        weights = [Float](repeating: 0, count: facts.count)
        lastUsed = [UInt64](repeating: 0, count: facts.count)
        rank(now, wall)
    }

    /// Reads what changes by itself anew: `read` gets each account's place and facts.
    public mutating func refresh(now: Instant, wall: WallTime, _ read: (Int, inout AccountFacts) -> Void) {
        for place in facts.indices { read(place, &facts[place]) }
        rank(now, wall)
    }

    private mutating func rank(_ now: Instant, _ wall: WallTime) {
        (ranking.now, ranking.wall) = (now, wall)
        ranking.look(at: facts)
        (weightMax, isEven) = (0, true)
        var until = Instant.never
        var common: Float?
        for place in facts.indices {
            rank(place)
            // What can't be chosen makes nothing uneven.
            if keys[place] != Ranking.never {
                if weights[place] != common ?? weights[place] { isEven = false }
                common = weights[place]
            }
            let account = facts[place]
            if account.cooldownUntil > now { until = min(until, account.cooldownUntil) }
            if account.primaryUsed != nil { until = min(until, moment(account.primaryResets)) }
            if account.secondaryUsed != nil { until = min(until, moment(account.secondaryResets)) }
            if account.changesAt > now { until = min(until, account.changesAt) }
        }
        validUntil = until
    }

    /// As the monotonic clock will have it; never, when it is past: what is told then is not told any more.
    private func moment(_ time: WallTime) -> Instant {
        guard time > ranking.wall else { return .never }
        return ranking.now.adding(
            milliseconds: Int(clamping: time.milliseconds.subtractingReportingOverflow(ranking.wall.milliseconds).partialValue))
    }

    private mutating func rank(_ place: Int) {
        keys[place] = ranking.key(facts[place])
        weights[place] = Float(ranking.weight(facts[place]))
        weightMax = max(weightMax, weights[place])
        lastUsed[place] = facts[place].lastUsed.nanoseconds
    }

    /// A turn of this worker has the account.
    public mutating func took(_ place: Int, now: Instant) {
        facts[place].inFlight += 1
        facts[place].lastUsed = now
        rank(place)
    }

    /// A turn of this worker has let it go.
    public mutating func released(_ place: Int) {
        facts[place].inFlight = max(0, facts[place].inFlight - 1)
        rank(place)
    }

    /// Turns that may be open on it, with the one that takes it now. Whether it works one turn finds out, over all workers.
    public func room(_ place: Int) -> Int {
        let facts = facts[place]
        return facts.isDoubtful && facts.inFlight == 0 ? min(1, facts.cap) : facts.cap
    }

    /// Others have so many open there already.
    public mutating func foundFull(_ place: Int, _ room: Int) {
        facts[place].inFlight = max(facts[place].inFlight, room)
        rank(place)
    }

    // MARK: The choice

    /// `mask`: which can serve the route and the model; nil: all. Those of `tried` have been asked in this turn.
    public mutating func choose(
        among mask: AccountMask? = nil, excluding tried: [Int64] = [], pin: Pin? = nil, now: Instant
    ) -> Choice {
        if tried.isEmpty { return pick(mask, tried, pin, now) }
        let hidden = tried.compactMap { places[$0] }
        let kept = hidden.map { keys[$0] }
        for place in hidden { keys[place] = Ranking.never }
        defer { for (place, key) in zip(hidden, kept) { keys[place] = key } }
        return pick(mask, tried, pin, now)
    }

    private mutating func pick(_ mask: AccountMask?, _ tried: [Int64], _ pin: Pin?, _ now: Instant) -> Choice {
        let lowest = lowestKey(mask)
        if let pin {
            switch owner(pin, mask, tried, lowest, now) {
            case .goes(let place): return .account(place)
            case .waits: return .full
            case .unavailable(let until):
                // That nobody has quota says more; it can't go elsewhere before its own account can serve.
                if let until, lowest == Ranking.never, case .allLimited = none(mask, tried, now) { return .allLimited(until: until) }
                return .ownerUnavailable(until: until)
            case .tried: return .allTried
            case .free: break
            }
        }
        guard lowest != Ranking.never else { return none(mask, tried, now) }
        // One that failed is no help to a turn that could have one that works in a moment.
        if lowest >> 24 >= Ranking.spareRank, hasFull(mask, tried) { return .full }
        return .account(one(of: lowest, mask))
    }

    private func lowestKey(_ mask: AccountMask?) -> Int32 {
        let keys = keys.span
        var lowest = Ranking.never
        guard let blocked = mask?.blocked else {
            for place in 0..<keys.count { lowest = min(lowest, keys[unchecked: place]) }
            return lowest
        }
        let blocks = blocked.span
        precondition(blocks.count == keys.count)
        for place in 0..<keys.count { lowest = min(lowest, keys[unchecked: place] | blocks[unchecked: place]) }
        return lowest
    }

    private func has(_ lowest: Int32, _ place: Int, _ mask: AccountMask?) -> Bool {
        keys[place] | (mask?.blocked[place] ?? 0) == lowest
    }

    /// One of those with this key.
    private mutating func one(of lowest: Int32, _ mask: AccountMask?) -> Int {
        if lowest >> 24 >= Ranking.spareRank { return first(of: lowest, mask) }
        switch ranking.tie {
        case .first: return first(of: lowest, mask)
        case .leastRecent: return leastRecent(of: lowest, mask)
        case .lot: return isEven ? leastRecent(of: lowest, mask) : byLot(lowest, mask)
        }
    }

    private func first(of lowest: Int32, _ mask: AccountMask?) -> Int {
        keys.indices.first { has(lowest, $0, mask) } ?? 0
    }

    private func leastRecent(of lowest: Int32, _ mask: AccountMask?) -> Int {
        let (keys, used) = (keys.span, lastUsed.span)
        var (least, found) = (UInt64.max, -1)
        if let blocked = mask?.blocked {
            let blocks = blocked.span
            precondition(blocks.count == keys.count && used.count == keys.count)
            for place in 0..<keys.count where keys[unchecked: place] | blocks[unchecked: place] == lowest {
                if used[unchecked: place] < least || found < 0 { (least, found) = (used[unchecked: place], place) }
            }
        } else {
            precondition(used.count == keys.count)
            for place in 0..<keys.count where keys[unchecked: place] == lowest {
                if used[unchecked: place] < least || found < 0 { (least, found) = (used[unchecked: place], place) }
            }
        }
        return found
    }

    /// Draws by weight. Any place is tried, and taken with the probability of its weight next to the largest (von Neumann's rejection): where many
    /// share the key that takes two or three tries, whatever their number. Where few do, their weights are summed up.
    private mutating func byLot(_ lowest: Int32, _ mask: AccountMask?) -> Int {
        for _ in 0..<Self.triesMax {
            let bits = random.next()
            let place = Int(((bits >> 32) * UInt64(keys.count)) >> 32)
            guard has(lowest, place, mask) else { continue }
            if Float(bits & 0xFF_FFFF) * 0x1p-24 * weightMax < weights[place] { return place }
        }
        var sum = 0.0
        for place in keys.indices where has(lowest, place, mask) { sum += Double(weights[place]) }
        var rest = Double(random.next() >> 11) * 0x1p-53 * sum
        var last = 0
        for place in keys.indices where has(lowest, place, mask) {
            rest -= Double(weights[place])
            if rest < 0 { return place }
            last = place
        }
        return last
    }
    private static let triesMax = 12

    // MARK: The account of the conversation

    private enum Owner {
        case goes(Int)
        case unavailable(until: Instant?)
        case waits, tried, free
    }

    private func owner(_ pin: Pin, _ mask: AccountMask?, _ tried: [Int64], _ lowest: Int32, _ now: Instant) -> Owner {
        let isTried = tried.contains(pin.account)
        guard let place = places[pin.account], serves(place, mask), !isTried else {
            guard pin.strength == .only else { return .free }
            let isModels = places[pin.account].map { mask?.reasons[$0] == .modelLimited } ?? false
            return isTried ? .tried : .unavailable(until: isModels ? mask?.limitedUntil : nil)
        }
        let account = facts[place]
        switch pin.strength {
        case .only:
            return account.isLimited(now) ? .unavailable(until: account.cooldownUntil) : account.isFull ? .waits : .goes(place)
        case .owner:
            return account.isLimited(now) ? .free : account.isFull ? .waits : .goes(place)
        case .prefer:
            guard lowest >> 24 < Ranking.spareRank, !account.isCooling(now), !account.isDoubtful, !account.isFull else { return .free }
            if has(lowest, place, mask) { return .goes(place) }
            let other = facts[first(of: lowest, mask)].inFlight
            return account.inFlight <= other + Limits.pinnedSurplusMax ? .goes(place) : .free
        }
    }

    /// It is there for such turns, though perhaps not at this moment.
    private func serves(_ place: Int, _ mask: AccountMask?) -> Bool {
        guard mask.map({ $0.reasons[place] == .serves }) ?? true else { return false }
        let standing = ranking.standing(facts[place])
        return standing != .inactive && standing != .notTheSingle
    }

    // MARK: Why there is none

    private func hasFull(_ mask: AccountMask?, _ tried: [Int64]) -> Bool {
        facts.indices.contains { place in
            serves(place, mask) && ranking.standing(facts[place]) == .full && !tried.contains(facts[place].id)
        }
    }

    private func none(_ mask: AccountMask?, _ tried: [Int64], _ now: Instant) -> Choice {
        var firstReset = mask?.limitedUntil
        var isAnyThere = firstReset != nil
        for place in facts.indices where serves(place, mask) {
            isAnyThere = true
            let account = facts[place]
            if tried.contains(account.id) { continue }
            if ranking.standing(account) == .full { return .full }
            if account.isLimited(now) { firstReset = min(firstReset ?? account.cooldownUntil, account.cooldownUntil) }
        }
        if !isAnyThere { return .noneEligible }
        return firstReset.map { .allLimited(until: $0) } ?? .allTried
    }
}

// MARK: Why it is so

extension AccountPool {
    /// Why an account is chosen or not, with the numbers that decided.
    public struct Explanation: Sendable, Equatable {
        public enum Verdict: Sendable, Equatable {
            case chosen
            /// As good as the chosen one; its part of such turns, in thousandths.
            case equal
            /// It could serve; a lower rank or load came first.
            case later
            /// It failed lately: used when no other is left.
            case spare
            case full, limited, tried, inactive, notTheSingle
            case masked(AccountMask.Reason)
        }
        public var place: Int
        public var verdict: Verdict
        public var isPinned: Bool
        public var rank: Int
        /// As the strategy counts it: of accounts of one rank the lowest comes first.
        public var load: Double
        /// Its part of the turns next to others.
        public var size: Double
        /// Of the turns that come now, in thousandths; of those with the lowest key, where a lot is drawn.
        public var sharePermille: Int
    }

    /// What `choose` would do at this moment with the same arguments, and why for each account. The choice is made by it, on a copy.
    public func explain(
        among mask: AccountMask? = nil, excluding tried: [Int64] = [], pin: Pin? = nil, now: Instant
    ) -> (choice: Choice, accounts: [Explanation]) {
        var copy = self
        let choice = copy.choose(among: mask, excluding: tried, pin: pin, now: now)
        var lowest = Ranking.never
        for place in facts.indices where !tried.contains(facts[place].id) {
            lowest = min(lowest, keys[place] | (mask?.blocked[place] ?? 0))
        }
        let ties = facts.indices.filter {
            lowest != Ranking.never && keys[$0] | (mask?.blocked[$0] ?? 0) == lowest && !tried.contains(facts[$0].id)
        }
        let weight = ties.reduce(0) { $0 + Double(weights[$1]) }
        let drawsLot = ranking.tie == .lot && !isEven && lowest >> 24 < Ranking.spareRank
        let accounts = facts.indices.map { place -> Explanation in
            let isChosen = choice == .account(place)
            let verdict: Explanation.Verdict =
                isChosen ? .chosen : why(place, mask, tried, isTie: ties.contains(place) && lowest >> 24 < Ranking.spareRank)
            let share = drawsLot && ties.contains(place) ? Int(Double(weights[place]) / weight * 1000) : isChosen ? 1000 : 0
            let isRanked = keys[place] != Ranking.never
            return Explanation(
                place: place, verdict: verdict, isPinned: pin?.account == facts[place].id,
                rank: isRanked ? Int(keys[place] >> 24) : 0, load: ranking.shownLoad(facts[place]),
                size: ranking.weight(facts[place]), sharePermille: share)
        }
        return (choice, accounts)
    }

    private func why(_ place: Int, _ mask: AccountMask?, _ tried: [Int64], isTie: Bool) -> Explanation.Verdict {
        switch ranking.standing(facts[place]) {
        case .inactive: return .inactive
        case .notTheSingle: return .notTheSingle
        default: break
        }
        if let reason = mask?.reasons[place], reason != .serves { return .masked(reason) }
        if tried.contains(facts[place].id) { return .tried }
        switch ranking.standing(facts[place]) {
        case .limited: return .limited
        case .full: return .full
        case .spare: return .spare
        default: return isTie ? .equal : .later
        }
    }
}
