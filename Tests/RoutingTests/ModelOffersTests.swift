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

    @Test("A name is known while some list has it")
    func names() {
        var offers = ModelOffers()
        offers.listed(account: 1, models: ["x", "y"])
        offers.listed(account: 2, models: ["y", "z"])
        #expect(Set(offers.names) == ["x", "y", "z"])
        offers.listed(account: 1, models: ["w"])
        #expect(Set(offers.names) == ["w", "y", "z"] && offers.lists("w", account: 1) && !offers.lists("x", account: 1))
        offers.forget(account: 2)
        offers.listed(account: 2, models: [])
        #expect(Set(offers.names) == ["w"])
    }

    /// Wagner and Fischer's whole table.
    private static func distance(_ a: [UInt8], _ b: [UInt8]) -> Int {
        var table = [[Int]](repeating: [Int](repeating: 0, count: b.count + 1), count: a.count + 1)
        for i in 0...a.count {
            for j in 0...b.count {
                guard i > 0, j > 0 else {
                    table[i][j] = i + j
                    continue
                }
                table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1))
            }
        }
        return table[a.count][b.count]
    }

    @Test("Near names are those of least distance, whatever is looked at first; none that is not meant", arguments: 0..<40)
    func near(_ seed: UInt64) {
        var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
        func random(_ bound: Int) -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33) % bound
        }
        func name() -> String { String((0..<1 + random(12)).map { _ in Array("abcdgpt-5.é")[random(11)] }) }
        let (asked, known) = (name(), (0..<100).map { _ in name() })
        let byDistance = Set(known).filter { !$0.hasPrefix("b") }.map { (Self.distance(Array(asked.utf8), Array($0.utf8)), $0) }
            .filter { $0.0 * 2 <= max(asked.utf8.count, $0.1.utf8.count) }.sorted { $0 < $1 }
        #expect(NearNames.nearest(to: asked, in: known) { !$0.hasPrefix("b") } == byDistance.prefix(Limits.nearNamesMax).map(\.1))
    }
}
