import Testing
import Vocabulary

@testable import Routing

/// Goal: an account that fails is trusted less, and step by step again; every step follows from one word and the time.
@Suite struct AccountHealthTests {
    private func at(_ seconds: UInt64) -> Instant { Instant(nanoseconds: (1_000_000 + seconds) * 1_000_000_000) }

    @Test("Two errors within a minute drain it, a minute without one has it probed, three good turns heal it")
    func tiers() {
        var health = AccountHealth()
        #expect(health.tier(now: at(0)) == .healthy && health.word == 0)
        health.failed(now: at(0))
        #expect(health.tier(now: at(0)) == .healthy && health.backoffMilliseconds == 0)
        health.failed(now: at(59))
        #expect(health.tier(now: at(59)) == .draining && health.tier(now: at(118)) == .draining)
        health.succeeded(now: at(100))
        #expect(health.tier(now: at(118)) == .draining, "a good turn while it drains heals nothing")
        #expect(health.tier(now: at(119)) == .probing)
        for _ in 0..<2 { health.succeeded(now: at(120)) }
        #expect(health.tier(now: at(120)) == .probing)
        health.succeeded(now: at(121))
        #expect(health.tier(now: at(121)) == .healthy && health.word == 0)
    }

    @Test("Turns that were open together meet an error together: it counts once")
    func together() {
        var health = AccountHealth()
        for _ in 0..<12 { health.failed(since: at(0), now: at(1)) }
        #expect(health.tier(now: at(1)) == .healthy && health.backoffMilliseconds == 0)
        // One after the other, within the same second.
        health.failed(since: at(1), now: at(1))
        #expect(health.tier(now: at(1)) == .draining && health.backoffMilliseconds == 0)
        for _ in 0..<5 { health.failed(since: at(1), now: at(2)) }
        #expect(health.backoffMilliseconds == 30_000)
    }

    @Test("Two errors far apart, or with a good turn between them, are no row")
    func apart() {
        var health = AccountHealth()
        health.failed(now: at(0))
        health.failed(now: at(60))
        #expect(health.tier(now: at(60)) == .healthy)
        health.succeeded(now: at(61))
        health.failed(now: at(62))
        #expect(health.tier(now: at(62)) == .healthy)
    }

    @Test("An error while it is probed drains it again, and the back-off doubles from the third on to its end")
    func backoff() {
        var (health, waits, time) = (AccountHealth(), [Int](), UInt64(0))
        for _ in 0..<9 {
            health.failed(now: at(time))
            waits.append(health.backoffMilliseconds)
            time += 70
        }
        // The first two were too far apart to make a row.
        #expect(waits == [0, 0, 0, 0, 0, 0, 0, 0, 0])
        (health, waits) = (AccountHealth(), [])
        for i in 0..<9 {
            health.failed(now: at(1_000 + UInt64(i)))
            waits.append(health.backoffMilliseconds / 1000)
        }
        #expect(waits == [0, 0, 30, 60, 120, 240, 300, 300, 300])
        #expect(health.tier(now: at(1_100)) == .probing)
        health.succeeded(now: at(1_100))
        health.failed(now: at(1_101))
        #expect(health.tier(now: at(1_101)) == .draining && health.tier(now: at(1_161)) == .probing)
    }

    /// Events at random: the word says everything, whoever reads it; errors never make it healthier, good turns never worse.
    @Test(arguments: 1...4) func words(_ seed: UInt64) {
        var (state, health, time) = (seed, AccountHealth(), UInt64(0))
        func rank(_ tier: AccountHealth.Tier) -> Int { tier == .healthy ? 0 : tier == .probing ? 1 : 2 }
        for _ in 0..<20_000 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            time += state >> 58
            let before = rank(health.tier(now: at(time)))
            if state >> 40 & 3 == 0 {
                health.failed(now: at(time))
                #expect(rank(health.tier(now: at(time))) >= before, "seed \(seed)")
            } else {
                health.succeeded(now: at(time))
                #expect(rank(health.tier(now: at(time))) <= before, "seed \(seed)")
            }
            #expect(AccountHealth(word: health.word).word == health.word)
            #expect(AccountHealth(word: health.word).tier(now: at(time)) == health.tier(now: at(time)), "seed \(seed)")
            #expect((0...Limits.errorBackoffMillisecondsMax).contains(health.backoffMilliseconds))
        }
    }
}
