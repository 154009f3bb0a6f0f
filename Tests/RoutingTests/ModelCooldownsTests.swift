import Routing
import Testing
import Vocabulary

@Suite struct ModelCooldownsTests {
    private func at(_ seconds: Int64) -> Instant { Instant(nanoseconds: UInt64(seconds) * 1_000_000_000) }

    @Test("A limit is one account's and one model's, ends in time, and is never shortened")
    func scope() {
        var limits = ModelCooldowns()
        limits.coolDown(account: 1, model: "a", until: at(10), now: at(0))
        limits.coolDown(account: 1, model: "a", until: at(5), now: at(0))
        #expect(limits.until(account: 1, model: "a", now: at(0)) == at(10))
        #expect(limits.until(account: 1, model: "b", now: at(0)) == nil && limits.until(account: 2, model: "a", now: at(0)) == nil)
        #expect(limits.until(account: 1, model: "a", now: at(10)) == nil && limits.isEmpty)
    }

    @Test("Names that clients invent fill a bounded room")
    func bounded() {
        var limits = ModelCooldowns()
        for n in 0..<5_000 { limits.coolDown(account: 1, model: "m\(n)", until: at(Int64(100 + n)), now: at(0)) }
        let kept = (0..<5_000).filter { limits.until(account: 1, model: "m\($0)", now: at(0)) != nil }
        #expect(kept == Array(5_000 - 1_024..<5_000))
    }
}
