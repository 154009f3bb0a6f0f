import Routing
import Testing
import Vocabulary

let start = Instant(nanoseconds: 1_000_000_000_000)
let wallStart = WallTime(milliseconds: 1_800_000_000_000)

func account(_ id: Int64, _ change: (inout AccountFacts) -> Void = { _ in }) -> AccountFacts {
    var facts = AccountFacts(id: id)
    change(&facts)
    return facts
}

func pool(
    _ facts: [AccountFacts], _ strategy: RoutingStrategy = .capacityWeighted, single: Int64? = nil, seed: UInt64 = 1
) -> AccountPool {
    var pool = AccountPool(seed: seed)
    pool.replace(with: facts, strategy: strategy, single: single, now: start, wall: wallStart)
    return pool
}

func used(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
extension AccountPool {
    /// What the next choice would be.
    func would(among mask: AccountMask? = nil, excluding tried: [Int64] = [], pin: Pin? = nil, now: Instant) -> Choice {
        var copy = self
        return copy.choose(among: mask, excluding: tried, pin: pin, now: now)
    }
}

func later(_ milliseconds: Int) -> Instant { start.adding(milliseconds: milliseconds) }

/// What holds whatever the strategy is.
@Suite struct AccountPoolTests {
    private func choose(
        _ facts: [AccountFacts], _ strategy: RoutingStrategy = .capacityWeighted, tried: [Int64] = [], pin: Pin? = nil,
        mask: AccountMask? = nil
    ) -> Choice {
        var pool = pool(facts, strategy)
        return pool.choose(among: mask, excluding: tried, pin: pin, now: start)
    }

    @Test("Keys alone, all of one weight: fewest open turns win, then the one not used for longest")
    func order() {
        #expect(choose([account(1) { $0.inFlight = 2 }, account(2) { ($0.inFlight, $0.lastUsed) = (1, used(9)) }]) == .account(1))
        #expect(
            choose([account(1) { $0.lastUsed = used(9) }, account(2) { $0.lastUsed = used(3) }, account(3) { $0.lastUsed = used(5) }])
                == .account(1))
    }

    @Test("A paused or limited account of another weight makes no lottery of the others")
    func even() {
        let others = [
            account(9) { ($0.weight, $0.isActive) = (300, false) },
            account(8) { ($0.weight, $0.cooldownUntil, $0.isLimited) = (300, later(9_000), true) },
        ]
        var pool = pool(others + (1...5).map { n in account(n) { $0.lastUsed = used(UInt64(n)) } })
        let chosen = (0..<10).map { turn in
            guard case .account(let place) = pool.choose(now: start) else { return -1 }
            pool.took(place, now: later(turn))
            pool.released(place)
            return place
        }
        #expect(chosen == [2, 3, 4, 5, 6, 2, 3, 4, 5, 6])
    }

    @Test("What was tried, is paused or cools down is not chosen, by any strategy", arguments: RoutingStrategy.allCases)
    func filters(_ strategy: RoutingStrategy) {
        let all = [
            account(1), account(2) { $0.isActive = false }, account(3) { $0.cooldownUntil = later(1_000) },
            account(4) { $0.inFlight = 50 }, account(5) { ($0.inFlight, $0.cap) = (2, 2) },
        ]
        let pool = pool(all, strategy, single: 4)
        #expect(pool.would(excluding: [1], now: start) == .account(3))
        #expect(pool.would(excluding: [1], now: start) == .account(3), "what was tried is hidden from one turn only")
    }

    @Test("Errors are forgiven when nothing else is left, the earliest first; used-up quota never is")
    func lastResort() {
        let cooling = [
            account(1) { $0.cooldownUntil = later(3_000) }, account(2) { $0.cooldownUntil = later(2_000) },
            account(3) { ($0.cooldownUntil, $0.isLimited) = (later(1_500), true) },
        ]
        #expect(choose(cooling) == .account(1))
        #expect(choose(cooling, tried: [1, 2]) == .allLimited(until: later(1_500)))
    }

    @Test("None, all tried, all limited and all full are told apart")
    func nothing() {
        #expect(choose([]) == .noneEligible)
        #expect(choose([account(1) { $0.isActive = false }]) == .noneEligible)
        #expect(choose([account(1)], tried: [1]) == .allTried)
        let limited = [1200, 1100].map { at in account(Int64(at)) { ($0.cooldownUntil, $0.isLimited) = (later(at), true) } }
        #expect(choose(limited) == .allLimited(until: later(1100)))
        let full = account(9) { ($0.inFlight, $0.cap) = (3, 3) }
        #expect(choose(limited + [full]) == .full)
        #expect(choose(limited + [full], tried: [9]) == .allLimited(until: later(1100)))
        // One that works will have room soon; one that fails is no better than waiting.
        #expect(choose([full, account(1) { $0.cooldownUntil = later(9_000) }]) == .full)
    }

    @Test("An account that could not be reached gets one turn at a time until it answers, and more only when nobody else is left")
    func doubtful() {
        func doubtful(_ inFlight: Int) -> AccountFacts { account(2) { ($0.isDoubtful, $0.inFlight) = (true, inFlight) } }
        let busy = account(1) { $0.inFlight = 9 }
        #expect(choose([busy, doubtful(0)]) == .account(1))
        #expect(choose([busy, doubtful(1)]) == .account(0))
        #expect(choose([doubtful(1)]) == .account(0))
    }

    @Test("Ranks: burn_first, normal, preserve; hardly any quota left after that; overflow after all; failing ones last")
    func ranks() {
        let inOrder: [AccountFacts] = [
            account(1) { ($0.policy, $0.secondaryUsed) = (.burnFirst, 990) },
            account(2),
            account(3) { $0.policy = .preserve },
            account(4) { $0.primaryUsed = 950 },
            account(5) { ($0.policy, $0.secondaryUsed) = (.preserve, 950) },
            account(6) { $0.isOverflow = true },
            account(7) { $0.cooldownUntil = later(500) },
            account(8) { ($0.isOverflow, $0.cooldownUntil) = (true, later(100)) },
        ]
        for strategy in [RoutingStrategy.capacityWeighted, .usageWeighted, .roundRobin, .fillFirst, .leastInFlight, .resetDrain] {
            var pool = pool(inOrder.reversed(), strategy)
            var tried: [Int64] = []
            while case .account(let place) = pool.choose(excluding: tried, now: start) { tried.append(pool.facts[place].id) }
            #expect(tried == [1, 2, 3, 4, 5, 6, 7, 8], "\(strategy)")
        }
    }

    @Test("A conversation goes to its account: always, unless its quota is used up, or while that is no worse than another")
    func pinned() {
        func choices(_ all: [AccountFacts], tried: [Int64] = []) -> [Choice] {
            [Pin.Strength.only, .owner, .prefer].map { choose(all, tried: tried, pin: Pin(2, $0)) }
        }
        // Busier than the other, and used later.
        let busy = [account(1), account(2) { ($0.inFlight, $0.lastUsed) = (5, used(9)) }]
        #expect(choices(busy) == [.account(1), .account(1), .account(1)])
        #expect(
            choices([account(1), account(2) { $0.inFlight = Limits.pinnedSurplusMax + 1 }]) == [.account(1), .account(1), .account(0)])
        #expect(choices([account(1), account(2) { $0.cooldownUntil = later(1) }]) == [.account(1), .account(1), .account(0)])
        let limited = account(2) { ($0.cooldownUntil, $0.isLimited) = (later(1), true) }
        #expect(choices([account(1), limited]) == [.ownerUnavailable(until: later(1)), .account(0), .account(0)])
        // That nobody has quota is what its client can use; its own account's time counts.
        let all = [
            account(1) { ($0.cooldownUntil, $0.isLimited) = (later(1), true) },
            account(2) { ($0.cooldownUntil, $0.isLimited) = (later(9), true) },
        ]
        #expect(choices(all) == [.allLimited(until: later(9)), .allLimited(until: later(1)), .allLimited(until: later(1))])
        #expect(choices([account(1), account(2) { $0.isActive = false }]) == [.ownerUnavailable(until: nil), .account(0), .account(0)])
        #expect(choices([account(1)]) == [.ownerUnavailable(until: nil), .account(0), .account(0)])
        #expect(choices(busy, tried: [2]) == [.allTried, .account(0), .account(0)])
        // Whoever can't go elsewhere waits for it.
        #expect(choices([account(1), account(2) { ($0.inFlight, $0.cap) = (4, 4) }]) == [.full, .full, .account(0)])
        // With nobody else to go to, a failing account is asked by whoever prefers it too.
        #expect(choose([account(2) { $0.cooldownUntil = later(1) }], pin: Pin(2, .prefer)) == .account(0))
        // A tight one keeps its conversations.
        #expect(choose([account(1), account(2) { $0.primaryUsed = 990 }], pin: Pin(2, .prefer)) == .account(1))
        let mask = AccountMask([.serves, .notOffered])
        #expect(choose(busy, pin: Pin(2, .only), mask: mask) == .ownerUnavailable(until: nil))
        #expect(choose(busy, pin: Pin(2, .prefer), mask: mask) == .account(0))
    }

    @Test("A mask hides accounts, and says when a model's limit ends")
    func masks() {
        let all = [account(1), account(2), account(3)]
        #expect(choose(all, mask: AccountMask([.otherRoute, .otherModels, .serves])) == .account(2))
        #expect(choose(all, tried: [3], mask: AccountMask([.otherRoute, .otherModels, .serves])) == .allTried)
        #expect(choose(all, mask: AccountMask([.otherRoute, .otherModels, .notOffered])) == .noneEligible)
        let limited = AccountMask([.otherRoute, .modelLimited, .modelLimited], limitedUntil: later(70))
        #expect(choose(all, mask: limited) == .allLimited(until: later(70)))
    }

    @Test("An account that others have filled is not chosen again, and is when it has room")
    func foundFull() {
        var pool = pool([account(1) { $0.cap = 2 }, account(2) { ($0.cap, $0.inFlight) = (2, 1) }])
        #expect(pool.would(now: start) == .account(0))
        pool.foundFull(0, pool.room(0))
        #expect(pool.would(now: start) == .account(1))
        pool.took(1, now: start)
        #expect(pool.would(now: start) == .full)
        pool.released(0)
        #expect(pool.would(now: start) == .account(0))
    }

    @Test("An account that had errors just now comes after all others, also one that is to be burnt first")
    func draining() {
        let burning = account(1) { ($0.policy, $0.isDraining) = (.burnFirst, true) }
        let tight = account(2) { ($0.policy, $0.secondaryUsed) = (.preserve, 990) }
        #expect(choose([burning, tight]) == .account(1))
        #expect(choose([burning, account(3) { $0.isOverflow = true }]) == .account(0))
    }

    @Test("The owner of a conversation has a limit for the model: it is told until when")
    func modelLimitedOwner() {
        let mask = AccountMask([.serves, .modelLimited], limitedUntil: later(45))
        #expect(choose([account(1), account(2)], pin: Pin(2, .only), mask: mask) == .ownerUnavailable(until: later(45)))
        let all = AccountMask([.modelLimited, .modelLimited], limitedUntil: later(45))
        #expect(choose([account(1), account(2)], pin: Pin(2, .only), mask: all) == .allLimited(until: later(45)))
    }

    @Test("An account that may not work is tried by one turn, whoever else would be the first")
    func oneProbe() {
        var pool = pool([account(1) { $0.isDoubtful = true }, account(2) { ($0.cap, $0.inFlight) = (5, 2) }], .leastInFlight)
        #expect(pool.would(now: start) == .account(0) && pool.room(0) == 1 && pool.room(1) == 5)
        pool.foundFull(0, 1)
        #expect(pool.would(now: start) == .account(1) && pool.room(0) == .max)
        // Whoever has nobody else goes there all the same.
        #expect(pool.choose(excluding: [2], now: start) == .account(0))
    }

    @Test("Keys are good until the first cooldown or window ends")
    func validity() {
        var pool = pool([account(1) { $0.cooldownUntil = later(700) }, account(2) { $0.cooldownUntil = later(900) }])
        #expect(pool.validUntil == later(700))
        pool.refresh(now: later(700), wall: WallTime(milliseconds: wallStart.milliseconds + 700)) { _, _ in }
        #expect(pool.validUntil == later(900) && pool.would(now: later(700)) == .account(0))
        pool = RoutingTests.pool([
            account(1) { ($0.primaryUsed, $0.primaryResets) = (10, WallTime(milliseconds: wallStart.milliseconds + 50)) }
        ])
        #expect(pool.validUntil == later(50))
    }

    @Test("The pause after failures to connect doubles from 5 s to 5 min")
    func backoff() {
        #expect((1...9).map { Backoff.milliseconds(failures: $0) / 1000 } == [5, 10, 20, 40, 80, 160, 300, 300, 300])
        #expect(Backoff.milliseconds(failures: .max) == 300_000)
    }
}
