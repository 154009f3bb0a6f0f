import Admission
import Testing
import Vocabulary

@Suite struct AcceptBalanceTests {
    private func at(_ milliseconds: Int) -> Instant { Instant(nanoseconds: 1_000_000_000).adding(milliseconds: milliseconds) }

    @Test("Ahead is an eighth above the mean, and by a number that few connections never reach")
    func ahead() {
        #expect(!AcceptBalance.isAhead(own: 8, mean: 0) && AcceptBalance.isAhead(own: 9, mean: 0))
        #expect(!AcceptBalance.isAhead(own: 18, mean: 10) && AcceptBalance.isAhead(own: 19, mean: 10))
        #expect(!AcceptBalance.isAhead(own: 900, mean: 800) && AcceptBalance.isAhead(own: 901, mean: 800))
    }

    @Test("It pauses when it is ahead and listens again as soon as it is not")
    func pauses() {
        var balance = AcceptBalance()
        #expect(!balance.counted(own: 100, mean: 95, now: at(0)) && !balance.isPaused)
        #expect(balance.counted(own: 120, mean: 100, now: at(1)) && balance.isPaused)
        #expect(!balance.counted(own: 120, mean: 101, now: at(50)) && balance.isPaused)
        #expect(balance.counted(own: 120, mean: 110, now: at(100)) && !balance.isPaused)
        #expect(balance.counted(own: 130, mean: 110, now: at(101)) && balance.isPaused, "at once again")
    }

    @Test("Others that take nothing can't keep it from listening for longer than a moment")
    func others() {
        var balance = AcceptBalance()
        var listening = 0
        for now in stride(from: 0, to: 10_000, by: 50) {
            _ = balance.counted(own: 500, mean: 250, now: at(now))
            if !balance.isPaused { listening += 50 }
        }
        #expect((300...1_000).contains(listening), "\(listening) of 10000 ms")
    }

    @Test("Workers that wake by chance, one of them nearly always first, end up alike", arguments: [2, 4, 8, 64])
    func spread(_ workers: Int) {
        var balances = [AcceptBalance](repeating: AcceptBalance(), count: workers)
        var counts = [Int](repeating: 0, count: workers)
        var random = SystemRandomNumberGenerator()
        var (now, idle, idleMax) = (0, 0, 0)
        while counts.reduce(0, +) < 250 * workers {
            now += 1
            idleMax = max(idleMax, idle)
            if now % 50 == 0 {
                for i in 0..<workers { _ = balances[i].counted(own: counts[i], mean: counts.reduce(0, +) / workers, now: at(now)) }
            }
            for _ in 0..<10 {
                let awake = (0..<workers).filter { !balances[$0].isPaused }
                // In a burst all may have stopped; somebody is never above the mean, so the next look lets one of them go on.
                guard let first = awake.first else {
                    idle += 1
                    break
                }
                idle = 0
                let taker = Int.random(in: 0..<10, using: &random) == 0 ? awake.randomElement(using: &random)! : first
                counts[taker] += 1
                _ = balances[taker].counted(own: counts[taker], mean: counts.reduce(0, +) / workers, now: at(now))
            }
        }
        let mean = counts.reduce(0, +) / workers
        #expect(idleMax <= 50, "nobody listens for \(idleMax) ms")
        // What comes while it listens although it is ahead is on top.
        #expect(counts.max()! <= mean + max(8, mean / 8) + 2, "\(counts)")
    }
}
