import Routing
import Testing
import Vocabulary

private let now = Instant(nanoseconds: 1_000_000_000_000)
private func candidate(_ id: Int64, eligible: Bool = true, inFlight: Int = 0, used: UInt64 = 0, cools: Int64 = 0, limited: Bool = false)
    -> Candidate
{
    Candidate(
        accountID: id, isEligible: eligible, inFlight: inFlight, lastUsed: Instant(nanoseconds: used),
        cooldownUntil: Instant(nanoseconds: UInt64(cools) * 1_000_000), isLimited: limited)
}

@Suite struct AccountChoiceTests {
    @Test("Fewest open turns win, then the one not used for longest")
    func order() {
        #expect(Routing.choose([candidate(1, inFlight: 2), candidate(2, inFlight: 1, used: 9)], excluding: [], now: now) == .account(1))
        #expect(
            Routing.choose([candidate(1, used: 9), candidate(2, used: 3), candidate(3, used: 5)], excluding: [], now: now) == .account(1))
    }

    @Test("What was tried, is paused or cools down is not chosen")
    func filters() {
        let all = [candidate(1), candidate(2, eligible: false), candidate(3, cools: 2_000_000), candidate(4, inFlight: 50)]
        #expect(Routing.choose(all, excluding: [1], now: now) == .account(3))
    }

    @Test("Errors are forgiven when nothing else is left, the earliest first; used-up quota never is")
    func lastResort() {
        let cooling = [candidate(1, cools: 3_000_000), candidate(2, cools: 2_000_000), candidate(3, cools: 1_500_000, limited: true)]
        #expect(Routing.choose(cooling, excluding: [], now: now) == .account(1))
        #expect(Routing.choose(cooling, excluding: [1, 2], now: now) == .allLimited(until: Instant(nanoseconds: 1_500_000_000_000)))
    }

    @Test("None, all tried and all limited are told apart")
    func nothing() {
        #expect(Routing.choose([], excluding: [], now: now) == .noneEligible)
        #expect(Routing.choose([candidate(1, eligible: false)], excluding: [], now: now) == .noneEligible)
        #expect(Routing.choose([candidate(1)], excluding: [1], now: now) == .allTried)
        let limited = [candidate(1, cools: 1_200_000, limited: true), candidate(2, cools: 1_100_000, limited: true)]
        #expect(Routing.choose(limited, excluding: [], now: now) == .allLimited(until: Instant(nanoseconds: 1_100_000_000_000)))
    }

    @Test("An account that could not be reached gets one turn at a time until it answers, and more only when nobody else is left")
    func doubtful() {
        func doubtful(_ id: Int64, inFlight: Int) -> Candidate {
            Candidate(
                accountID: id, isEligible: true, inFlight: inFlight, lastUsed: Instant(nanoseconds: 0), cooldownUntil: now,
                isLimited: false, isDoubtful: true)
        }
        #expect(Routing.choose([candidate(1, inFlight: 9), doubtful(2, inFlight: 0)], excluding: [], now: now) == .account(1))
        #expect(Routing.choose([candidate(1, inFlight: 9), doubtful(2, inFlight: 1)], excluding: [], now: now) == .account(0))
        #expect(Routing.choose([doubtful(2, inFlight: 1)], excluding: [], now: now) == .account(0))
    }

    @Test("An account with hardly any quota left gets a turn only when no other is left, and its conversations keep it")
    func tight() {
        func candidate(_ id: Int64, inFlight: Int, isTight: Bool) -> Candidate {
            Candidate(
                accountID: id, isEligible: true, inFlight: inFlight, lastUsed: Instant(nanoseconds: 0), cooldownUntil: now,
                isLimited: false,
                isTight: isTight)
        }
        let all = [candidate(1, inFlight: 0, isTight: true), candidate(2, inFlight: 9, isTight: false)]
        #expect(Routing.choose(all, excluding: [], now: now) == .account(1))
        #expect(Routing.choose(all, excluding: [2], now: now) == .account(0))
        #expect(Routing.choose(all, excluding: [], pin: Pin(1, .prefer), now: now) == .account(0))
    }

    @Test("A conversation goes to its account: always, unless its quota is used up, or while that is no worse than another")
    func pinned() {
        func choose(_ all: [Candidate], _ strength: Pin.Strength, tried: [Int64] = []) -> Choice {
            Routing.choose(all, excluding: tried, pin: Pin(2, strength), now: now)
        }
        let strengths: [Pin.Strength] = [.only, .owner, .prefer]
        // Busier than the other, and used later.
        let busy = [candidate(1), candidate(2, inFlight: 5, used: 9)]
        #expect(strengths.map { choose(busy, $0) } == [.account(1), .account(1), .account(1)])
        let crowded = [candidate(1), candidate(2, inFlight: Limits.pinnedSurplusMax + 1)]
        #expect(strengths.map { choose(crowded, $0) } == [.account(1), .account(1), .account(0)])
        let failing = [candidate(1), candidate(2, cools: 2_000_000)]
        #expect(strengths.map { choose(failing, $0) } == [.account(1), .account(1), .account(0)])
        let limited = [candidate(1), candidate(2, cools: 2_000_000, limited: true)]
        #expect(strengths.map { choose(limited, $0) } == [.ownerUnavailable, .account(0), .account(0)])
        let paused = [candidate(1), candidate(2, eligible: false)]
        #expect(strengths.map { choose(paused, $0) } == [.ownerUnavailable, .account(0), .account(0)])
        #expect(strengths.map { choose([candidate(1)], $0) } == [.ownerUnavailable, .account(0), .account(0)])
        #expect(strengths.map { choose(busy, $0, tried: [2]) } == [.allTried, .account(0), .account(0)])
        // With nobody else to go to, a failing account is asked by whoever prefers it too.
        #expect(choose([candidate(2, cools: 2_000_000)], .prefer) == .account(0))
    }

    @Test("The pause after failures to connect doubles from 5 s to 5 min")
    func backoff() {
        #expect((1...9).map { Backoff.milliseconds(failures: $0) / 1000 } == [5, 10, 20, 40, 80, 160, 300, 300, 300])
        #expect(Backoff.milliseconds(failures: .max) == 300_000)
    }
}
