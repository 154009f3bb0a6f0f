import ArgumentParser
import Platform
import Routing
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Measures one choice of an account, as a worker makes it for each turn: nanoseconds, for pools of several sizes.
@main
struct RoutingBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "codex-lb-routing-bench", abstract: "Nanoseconds per choice of an account.")

    @Option(name: .long, parsing: .upToNextOption, help: "Sizes of pools.") var accounts = [10, 100, 1_000, 4_096, 10_000]
    @Option(name: .long, help: "Choices of one measurement in a pool of ten; of larger ones fewer.") var choices = 200_000
    @Option(name: .long, help: "Of so many measurements the middle one counts.") var rounds = 5

    func validate() throws {
        guard accounts.allSatisfy({ (1...100_000).contains($0) }), (1...10_000_000).contains(choices), (1...99).contains(rounds) else {
            throw ValidationError("--accounts 1 to 100000 each, --choices up to 10000000, --rounds 1 to 99")
        }
    }

    func run() throws {
        print("accounts      idle      busy       lot      mask    pinned     taken   refresh")
        let board = Scoreboard(fresh: try SharedMemory.create("bench:turns", count: Scoreboard.memoryBytes))
        for count in accounts {
            let (idle, busy) = (pool(count, inFlight: 0), pool(count, inFlight: 9))
            let (mixed, mask) = (pool(count, inFlight: 0, weights: 1...300), mask(count))
            let row: [Double] = [
                measure(count) { choosing(idle, $0) },
                measure(count) { choosing(busy, $0) },
                measure(count) { choosing(mixed, $0) },
                measure(count) { choosing(busy, mask: mask, $0) },
                measure(count) { choosing(busy, pin: Pin(Int64(count / 2 + 1), .prefer), $0) },
                measure(count) { taking(busy, board, $0) },
                try refresh(min(count, Limits.accountsMax)),
            ]
            print(padded(String(count), 8) + row.map { padded(String(Int($0.rounded())), 10) }.joined())
            fflush(nil)
        }
        print(
            "ns per choice. idle: all accounts alike, no turn open; busy: 9 turns on average; lot: drawn by weight; mask: a third lacks the"
        )
        print(
            "model; pinned: of a conversation; taken: with the counts in shared memory that a turn takes and gives back; refresh: reading all of shared memory, up to 4096."
        )
    }

    private func padded(_ text: String, _ width: Int) -> String { String(repeating: " ", count: max(0, width - text.utf8.count)) + text }

    private func pool(_ count: Int, inFlight: Int, weights: ClosedRange<Int> = 100...100) -> AccountPool {
        var random = SeededGenerator(seed: 7)
        var pool = AccountPool(seed: 1)
        let facts = (1...count).map { id -> AccountFacts in
            var facts = AccountFacts(id: Int64(id))
            facts.weight = Int.random(in: weights, using: &random)
            facts.inFlight = inFlight == 0 ? 0 : Int.random(in: 0...2 * inFlight, using: &random)
            facts.lastUsed = Instant(nanoseconds: random.next() >> 20)
            return facts
        }
        pool.replace(with: facts, strategy: .capacityWeighted, single: nil, now: Clock.now, wall: Clock.wall)
        return pool
    }

    private func mask(_ count: Int) -> AccountMask { AccountMask((0..<count).map { $0 % 3 == 0 ? .notOffered : .serves }) }

    /// Gives something of each choice, so that none is left out.
    private func choosing(_ pool: AccountPool, mask: AccountMask? = nil, pin: Pin? = nil, _ turns: Int) -> Int {
        var (pool, sum) = (pool, 0)
        let now = Clock.now
        for _ in 0..<turns { if case .account(let place) = pool.choose(among: mask, pin: pin, now: now) { sum &+= place } }
        return sum
    }

    /// Each turn leaves when the next one has come.
    private func taking(_ pool: AccountPool, _ board: Scoreboard, _ turns: Int) -> Int {
        var (pool, before) = (pool, -1)
        for turn in 0..<turns {
            let now = Instant(nanoseconds: UInt64(turn))
            guard case .account(let place) = pool.choose(now: now) else { continue }
            guard board.acquire(account: place % Limits.accountsMax, worker: 0, cap: .max, now: now) != nil else { continue }
            pool.took(place, now: now)
            if before >= 0 {
                board.release(account: before % Limits.accountsMax, worker: 0)
                pool.released(before)
            }
            before = place
        }
        if before >= 0 { board.release(account: before % Limits.accountsMax, worker: 0) }
        return before
    }

    /// Of this process: others that run meanwhile don't count.
    private func cpuNanoseconds() -> Double {
        var time = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
        return Double(time.tv_sec) * 1e9 + Double(time.tv_nsec)
    }

    private func measure(_ count: Int, _ body: (Int) -> Int) -> Double {
        let choices = max(1_000, choices * 10 / max(10, count))
        var sum = body(choices / 20 + 1)
        let times = (0..<rounds).map { _ in
            let begin = cpuNanoseconds()
            sum &+= body(choices)
            return (cpuNanoseconds() - begin) / Double(choices)
        }
        precondition(sum != .min)
        return times.sorted()[rounds / 2]
    }

    /// The whole of what a worker reads when somebody else has changed something.
    private func refresh(_ count: Int) throws -> Double {
        let board = Scoreboard(fresh: try SharedMemory.create("bench:scoreboard", count: Scoreboard.memoryBytes))
        board.setRows(inUse: 4)
        for slot in 0..<count {
            board.claim(account: slot, owner: Int64(slot + 1))
            _ = board.acquire(account: slot, worker: slot % 4, cap: .max, now: Clock.now)
        }
        var pool = pool(count, inFlight: 0)
        let times = max(1, choices / count / 100)
        return measure(10) { _ in
            for _ in 0..<times {
                let now = Clock.now
                pool.refresh(now: now, wall: WallTime(milliseconds: 0)) { place, facts in
                    facts.inFlight = board.inFlight(account: place)
                    facts.lastUsed = board.lastUsed(account: place)
                    let cooldown = board.cooldown(account: place, owner: facts.id, now: now)
                    (facts.cooldownUntil, facts.isLimited) = (cooldown?.until ?? Instant(nanoseconds: 0), cooldown?.isLimit ?? false)
                    facts.isDoubtful = board.failures(account: place) > 0
                }
            }
            return pool.facts.count
        } * Double(choices) / Double(times)
    }
}
