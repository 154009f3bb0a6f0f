import Routing
import Testing
import Vocabulary

/// A pool of accounts and workers that share a scoreboard, played by a seed: accounts fail, run out and come back, workers die and know things
/// late, clocks jump.
private struct World {
    struct Turn {
        var worker: Int
        var place: Int
    }

    var random: SeededGenerator
    var truth: [AccountFacts]
    /// Each worker's share of the accounts' turns.
    var shares: [[Int]]
    var pools: [AccountPool]
    var turns: [Turn] = []
    var now = start
    var wall = wallStart
    let strategy: RoutingStrategy
    var served: [Int]

    init(seed: UInt64, strategy: RoutingStrategy) {
        random = SeededGenerator(seed: seed)
        self.strategy = strategy
        var made: [AccountFacts] = []
        for id in 1...Int64.random(in: 3...9, using: &random) {
            var facts = AccountFacts(id: id)
            facts.policy = Account.Policy.allCases.randomElement(using: &random)!
            facts.weight = Int.random(in: 1...300, using: &random)
            facts.cap = Bool.random(using: &random) ? Int.random(in: 1...5, using: &random) : .max
            facts.isOverflow = Int.random(in: 0...4, using: &random) == 0
            made.append(facts)
        }
        truth = made
        served = [Int](repeating: 0, count: made.count)
        let workers = Int.random(in: 1...4, using: &random)
        shares = [[Int]](repeating: [Int](repeating: 0, count: made.count), count: workers)
        pools = []
        for _ in 0..<workers { pools.append(newPool()) }
    }

    private mutating func newPool() -> AccountPool {
        var pool = AccountPool(seed: random.next())
        pool.replace(with: truth, strategy: strategy, single: 1, now: now, wall: wall)
        return pool
    }

    private mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &random) < percent }

    mutating func step() {
        switch Int.random(in: 0..<100, using: &random) {
        case 0..<45: begin()
        case 45..<75: end()
        case 75..<82: fail()
        case 82..<88: learnQuota()
        case 88..<90: die()
        case 90..<92: jump()
        case 92..<94:
            let place = Int.random(in: truth.indices, using: &random)
            truth[place].isActive.toggle()
            // A snapshot: every worker hears of it.
            for worker in pools.indices { pools[worker].replace(with: truth, strategy: strategy, single: 1, now: now, wall: wall) }
        default: now = now.adding(milliseconds: Int.random(in: 1...2_000, using: &random))
        }
    }

    private mutating func begin() {
        let worker = Int.random(in: pools.indices, using: &random)
        // What a worker knows may be old, but never beyond a moment that it knew of.
        let isFresh = chance(70) || now >= pools[worker].validUntil
        if isFresh { refresh(worker) }
        let pin =
            chance(40)
            ? Pin(Int64.random(in: 1...Int64(truth.count) + 1, using: &random), [.only, .owner, .prefer].randomElement(using: &random)!)
            : nil
        let mask = chance(20) ? AccountMask(truth.map { _ in chance(70) ? .serves : .notOffered }) : nil
        let tried = chance(20) ? [Int64.random(in: 1...Int64(truth.count), using: &random)] : []
        while true {
            let told = pools[worker].explain(among: mask, excluding: tried, pin: pin, now: now)
            let choice = pools[worker].choose(among: mask, excluding: tried, pin: pin, now: now)
            #expect(told.choice == choice, "explain is no other code")
            checkExplanation(told.accounts, choice, worker, mask, tried)
            if isFresh { checkPinned(choice, pin, mask, tried) }
            guard case .account(let place) = choice else { return }
            #expect(truth[place].isActive && !tried.contains(truth[place].id) && mask?.reasons[place] ?? .serves == .serves)
            let room = pools[worker].room(place)
            guard truth[place].inFlight < room else {
                #expect(!isFresh, "a full account is not chosen by one that knows")
                pools[worker].foundFull(place, room)
                continue
            }
            // Of several workers that would all be the first to try it, one is.
            let seen = pools[worker].facts[place]
            #expect(truth[place].inFlight == 0 || !seen.isDoubtful || seen.inFlight > 0, "\(place) is tried by two at a time")
            truth[place].inFlight += 1
            truth[place].lastUsed = now
            shares[worker][place] += 1
            pools[worker].took(place, now: now)
            turns.append(Turn(worker: worker, place: place))
            served[place] += 1
            return
        }
    }

    private mutating func refresh(_ worker: Int) {
        let (truth, now) = (truth, now)
        pools[worker].refresh(now: now, wall: wall) { place, facts in
            facts = truth[place]
            if facts.cooldownUntil <= now { (facts.cooldownUntil, facts.isLimited) = (Instant(nanoseconds: 0), false) }
        }
    }

    /// A conversation never moves while its account can serve it.
    private func checkPinned(_ choice: Choice, _ pin: Pin?, _ mask: AccountMask?, _ tried: [Int64]) {
        guard let pin, pin.strength != .prefer, let owner = truth.firstIndex(where: { $0.id == pin.account }) else { return }
        let isThere =
            truth[owner].isActive && (strategy != .singleAccount || truth[owner].id == 1) && !tried.contains(pin.account)
            && mask?.reasons[owner] ?? .serves == .serves
        guard isThere, !(truth[owner].isLimited && truth[owner].cooldownUntil > now) else {
            guard pin.strength == .only else { return }
            switch choice {
            case .ownerUnavailable(let until), .allLimited(let until as Instant?):
                #expect(until == (isThere ? truth[owner].cooldownUntil : nil))
            default: #expect(choice == .allTried)
            }
            return
        }
        #expect(choice == (truth[owner].inFlight < truth[owner].cap ? .account(owner) : .full))
    }

    /// Exactly the chosen account is told as chosen, and each other has a reason that is true.
    private func checkExplanation(
        _ accounts: [AccountPool.Explanation], _ choice: Choice, _ worker: Int, _ mask: AccountMask?, _ tried: [Int64]
    ) {
        let chosen = accounts.filter { $0.verdict == .chosen }.map { Choice.account($0.place) }
        if case .account = choice { #expect(chosen == [choice]) } else { #expect(chosen == []) }
        for account in accounts {
            let facts = pools[worker].facts[account.place]
            switch account.verdict {
            case .chosen, .equal, .later, .spare:
                #expect(facts.isActive && !tried.contains(facts.id))
            case .full: #expect(facts.inFlight >= facts.cap)
            case .limited: #expect(facts.isLimited)
            case .tried: #expect(tried.contains(facts.id))
            case .inactive: #expect(!facts.isActive)
            case .notTheSingle: #expect(strategy == .singleAccount && facts.id != 1)
            case .masked(let reason): #expect(mask?.reasons[account.place] == reason)
            }
        }
    }

    private mutating func end() {
        guard !turns.isEmpty else { return }
        let turn = turns.remove(at: Int.random(in: turns.indices, using: &random))
        truth[turn.place].inFlight -= 1
        shares[turn.worker][turn.place] -= 1
        pools[turn.worker].released(turn.place)
    }

    private mutating func fail() {
        let place = Int.random(in: truth.indices, using: &random)
        truth[place].cooldownUntil = now.adding(milliseconds: Int.random(in: 100...30_000, using: &random))
        truth[place].isLimited = chance(40)
        truth[place].isDoubtful = chance(30)
    }

    private mutating func learnQuota() {
        let place = Int.random(in: truth.indices, using: &random)
        (truth[place].primaryUsed, truth[place].secondaryUsed) = (
            Int.random(in: 0...1000, using: &random), Int.random(in: 0...1000, using: &random)
        )
        truth[place].primaryResets = WallTime(milliseconds: wall.milliseconds + Int64.random(in: -5...18_000_000, using: &random))
        truth[place].secondaryResets = WallTime(milliseconds: wall.milliseconds + Int64.random(in: -5...604_800_000, using: &random))
    }

    /// Its turns are over; another one with nothing in its memory takes its place.
    private mutating func die() {
        let worker = Int.random(in: pools.indices, using: &random)
        for place in truth.indices {
            truth[place].inFlight -= shares[worker][place]
            shares[worker][place] = 0
        }
        turns.removeAll { $0.worker == worker }
        pools[worker] = newPool()
    }

    private mutating func jump() {
        if chance(50) { now = now.adding(milliseconds: Int.random(in: 0...10_000_000, using: &random)) }
        wall = WallTime(milliseconds: wall.milliseconds + Int64.random(in: -100_000_000...100_000_000, using: &random))
    }

    func check() {
        for place in truth.indices {
            #expect(truth[place].inFlight <= truth[place].cap, "cap exceeded")
            #expect(truth[place].inFlight == turns.count { $0.place == place })
        }
    }
}

@Suite struct PoolSimulation {
    @Test(
        "Caps hold, conversations stay, and what is explained is what is chosen, whatever happens", arguments: RoutingStrategy.allCases)
    func worlds(_ strategy: RoutingStrategy) {
        for seed in UInt64(1)...20 {
            var world = World(seed: seed, strategy: strategy)
            for _ in 0..<400 {
                world.step()
                world.check()
            }
            #expect(strategy == .singleAccount || world.served.reduce(0, +) > 20, "seed \(seed), \(strategy): nothing was served")
        }
    }
}
