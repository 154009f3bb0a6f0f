import Routing
import Testing
import Vocabulary

/// What each strategy does, as docs/routing.md draws it.
@Suite struct StrategyTests {
    private func day(_ days: Double) -> WallTime { WallTime(milliseconds: wallStart.milliseconds + Int64(days * 86_400_000)) }

    private func login(_ id: Int64, primary: Int = 0, secondary: Int, resets: Double = 5, weight: Int = 100, inFlight: Int = 0)
        -> AccountFacts
    {
        account(id) {
            ($0.primaryUsed, $0.secondaryUsed, $0.weight, $0.inFlight) = (primary, secondary, weight, inFlight)
            ($0.primaryResets, $0.secondaryResets) = (day(0.1), day(resets))
        }
    }

    /// How often each account is chosen by turns that come one after another.
    private func counts(_ pool: inout AccountPool, _ turns: Int) -> [Int] {
        var out = [Int](repeating: 0, count: pool.facts.count)
        for turn in 0..<turns {
            guard case .account(let place) = pool.choose(now: start) else { continue }
            pool.took(place, now: Instant(nanoseconds: start.nanoseconds + UInt64(turn)))
            pool.released(place)
            out[place] += 1
        }
        return out
    }

    /// Pearson's, with the 99.9 % quantiles of the chi-square distribution for 1 … 9 degrees of freedom.
    private func fits(_ counts: [Int], _ weights: [Double]) -> Bool {
        let (turns, sum) = (Double(counts.reduce(0, +)), weights.reduce(0, +))
        let quantiles = [10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88]
        let statistic = zip(counts, weights).reduce(0.0) {
            let expected = turns * $1.1 / sum
            return $0 + (Double($1.0) - expected) * (Double($1.0) - expected) / expected
        }
        return statistic < quantiles[counts.count - 2]
    }

    @Test("capacity_weighted: turns one after another fall by weight and by what is left", arguments: [1, 2, 3, 4, 5] as [UInt64])
    func capacity(_ seed: UInt64) {
        var keys = pool([100, 300, 50, 1].map { weight in account(Int64(weight)) { $0.weight = weight } }, seed: seed)
        let counted = counts(&keys, 40_000)
        #expect(fits(counted, [100, 300, 50, 1]), "seed \(seed): \(counted)")
        var logins = pool([login(1, secondary: 500), login(2, secondary: 100), login(3, secondary: 900, weight: 200)], seed: seed)
        let shares = counts(&logins, 40_000)
        #expect(fits(shares, [50, 90, 20]), "seed \(seed): \(shares)")
    }

    /// The credits of a week, as the Python system knows them (reference/codex-lb-behaviour.md 3.3).
    private static let weeks: [(Plan, Int)] = [
        (.plus, 7560), (.pro, 50400), (.free, 1134), (.prolite, 37800), (.team, 7560), (.enterprise, 50400),
    ]

    @Test("capacity_weighted: an account counts for what its plan gives in a week", arguments: [1, 2, 3] as [UInt64])
    func plans(_ seed: UInt64) {
        var logins = pool(Self.weeks.enumerated().map { place, week in account(Int64(place)) { $0.plan = week.0 } }, seed: seed)
        let shares = counts(&logins, 40_000)
        #expect(fits(shares, Self.weeks.map { Double($0.1) }), "seed \(seed): \(shares)")
        // A weight says what part of its plan an account is.
        var parts = pool(
            [account(1) { ($0.plan, $0.weight) = (.pro, 50) }, account(2) { ($0.plan, $0.weight) = (.plus, 200) }], seed: seed)
        let drawn = counts(&parts, 40_000)
        #expect(fits(drawn, [25_200, 15_120]), "seed \(seed): \(drawn)")
    }

    @Test("sequential_drain: the smallest plan first")
    func smallestPlan() {
        var order: [Plan] = []
        var logins = pool(Self.weeks.enumerated().map { place, week in account(Int64(place)) { $0.plan = week.0 } }, .sequentialDrain)
        while case .account(let place) = logins.choose(excluding: (0..<6).filter { order.contains(Self.weeks[Int($0)].0) }, now: start) {
            order.append(Self.weeks[place].0)
        }
        #expect(order == [.free, .plus, .team, .prolite, .pro, .enterprise])
    }

    @Test("capacity_weighted: a burst spreads by weight while quotas stand still, and stays there")
    func burst() {
        var pool = pool([100, 300, 200].map { weight in account(Int64(weight)) { $0.weight = weight } })
        for _ in 0..<600 {
            guard case .account(let place) = pool.choose(now: start) else { return }
            pool.took(place, now: start)
        }
        let open = pool.facts.map(\.inFlight)
        #expect(zip(open, [100, 300, 200]).allSatisfy { abs($0 - $1) <= 3 }, "\(open)")
    }

    @Test("capacity_weighted: equal keys are used in turn, to the last one")
    func even() {
        var pool = pool((1...7).map { account($0) })
        let poolCounts = counts(&pool, 700)
        #expect(poolCounts == [Int](repeating: 100, count: 7))
    }

    @Test("relative_availability: by the square of what is left for the time left; the far-off and all but five wait")
    func relative() {
        // 100 left in one day against 100 left in two: twice the score, four times the turns; 30 days' worth is far behind.
        var pair = pool(
            [login(1, secondary: 0, resets: 1), login(2, secondary: 0, resets: 2), login(3, secondary: 900, resets: 7)],
            .relativeAvailability)
        let counted = counts(&pair, 40_000)
        #expect(counted[2] == 0 && fits(Array(counted[..<2]), [4, 1]), "\(counted)")
        var many = pool((1...8).map { login($0, secondary: Int($0) * 10, resets: 1) }, .relativeAvailability)
        let manyCounts = counts(&many, 2_000)
        #expect(manyCounts.map { $0 > 0 } == [true, true, true, true, true, false, false, false])
        #expect(many.would(excluding: [1, 2, 3, 4, 5], now: start) != .allTried, "the others are used when the first can't be")
    }

    @Test("usage_weighted: the least used week, then the least used five hours; turns in flight count 2.5 points each")
    func usage() {
        let all = [login(1, primary: 10, secondary: 300), login(2, primary: 900, secondary: 200), login(3, primary: 800, secondary: 200)]
        var pool = pool(all, .usageWeighted)
        #expect(pool.would(now: start) == .account(2))
        for _ in 0..<5 { pool.took(2, now: start) }
        for _ in 0..<5 { pool.took(1, now: start) }
        #expect(pool.would(now: start) == .account(0))
    }

    @Test("round_robin: each in turn, however busy")
    func roundRobin() {
        var pool = pool([account(1) { $0.inFlight = 40 }, account(2), account(3) { $0.weight = 900 }], .roundRobin)
        let poolCounts = counts(&pool, 9)
        #expect(poolCounts == [3, 3, 3])
    }

    @Test("fill_first: the fullest until it is nearly full; sequential_drain: the smallest until it can take no more")
    func filling() {
        var fill = pool(
            [login(1, primary: 100, secondary: 0), login(2, primary: 940, secondary: 0), login(3, primary: 960, secondary: 0)], .fillFirst)
        let fillCounts = counts(&fill, 10)
        #expect(fillCounts == [0, 10, 0])
        var drain = pool(
            [login(1, secondary: 0, weight: 200), login(2, secondary: 990, weight: 50), login(3, secondary: 0, weight: 50)],
            .sequentialDrain)
        let drainCounts = counts(&drain, 10)
        #expect(drainCounts == [0, 10, 0])
    }

    @Test("reset_drain: the week that ends first, by days; within a day the one with most left")
    func resets() {
        let pool = pool(
            [
                login(1, secondary: 0, resets: 3.2), login(2, secondary: 600, resets: 1.9), login(3, secondary: 500, resets: 1.1),
                account(4),
            ], .resetDrain)
        #expect(pool.would(now: start) == .account(2))
        #expect(pool.would(excluding: [2, 3], now: start) == .account(0))
        #expect(pool.would(excluding: [1, 2, 3], now: start) == .account(3))
    }

    @Test("single_account: that one or none")
    func single() {
        let all = [account(1), account(2)]
        var pool = pool(all, .singleAccount, single: 2)
        let poolCounts = counts(&pool, 4)
        #expect(poolCounts == [0, 4])
        #expect(pool.would(excluding: [2], now: start) == .allTried)
        pool = RoutingTests.pool(all, .singleAccount, single: nil)
        #expect(pool.would(now: start) == .noneEligible)
    }

    @Test(
        "No account starves under the strategies that spread",
        arguments: [RoutingStrategy.capacityWeighted, .usageWeighted, .roundRobin, .leastInFlight])
    func starving(_ strategy: RoutingStrategy) {
        var pool = pool((1...10).map { id in account(id) { $0.weight = Int(id) * 20 } }, strategy)
        let counted = counts(&pool, 5_000)
        #expect(counted.allSatisfy { $0 > 20 }, "\(counted)")
    }
}
