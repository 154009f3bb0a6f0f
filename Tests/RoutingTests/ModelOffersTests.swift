import Routing
import Testing
import Vocabulary

@Suite struct ModelOffersTests {
    private func at(_ seconds: Int64) -> Instant { Instant(nanoseconds: UInt64(seconds) * 1_000_000_000) }

    @Test("A list speaks against an account only where another one's has the model; without a list nothing does")
    func lists() {
        var offers = ModelOffers()
        #expect(offers.lacking("x", among: [1, 2, 3], now: at(0)) == [])
        offers.listed(account: 1, models: ["x", "y"])
        offers.listed(account: 2, models: ["y"])
        #expect(offers.lacking("x", among: [1, 2, 3], now: at(0)) == [2])
        #expect(offers.lacking("x", among: [2, 3], now: at(0)) == [], "an alias may stand in no list")
        #expect(offers.lacking("z", among: [1, 2, 3], now: at(0)) == [])
        offers.listed(account: 2, models: [])
        #expect(offers.lacking("x", among: [1, 2], now: at(0)) == [], "an empty list says nothing")
    }

    @Test("A refusal holds for its time, until the list has the model after all, or until the account changes")
    func refusals() {
        var offers = ModelOffers()
        for account in [1, 2, 3] as [Int64] { offers.refused(account: account, model: "x", until: at(10), now: at(0)) }
        #expect(offers.lacking("x", among: [1, 2, 3], now: at(9)) == [1, 2, 3])
        #expect(offers.lacking("y", among: [1, 2, 3], now: at(9)) == [])
        offers.listed(account: 1, models: ["x"])
        offers.forget(account: 2)
        #expect(offers.lacking("x", among: [1, 2, 3], now: at(9)) == [3])
        #expect(offers.lacking("x", among: [1, 2, 3], now: at(10)) == [])
    }
}
