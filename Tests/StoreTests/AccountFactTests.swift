import DaemonHarness
import Testing
import Vocabulary

@testable import Store

/// Goal: what was learned of accounts comes back as it was, the later word counts, and an operator's is the last.
@Suite(.serialized) struct AccountFactTests {
    private func later(_ milliseconds: Int64) -> WallTime { WallTime(milliseconds: now.milliseconds + milliseconds) }
    private let reset = WallTime(milliseconds: 1_800_000_900_000)

    private var quota: QuotaFact {
        var quota = QuotaFact()
        (quota.plan, quota.credits) = (.prolite, Credits(hasCredits: true, isUnlimited: false, balanceHundredths: 1_250))
        quota.windows = [("primary", .init(usedPermille: 425, resetsAt: reset)), ("monthly", .init(usedPermille: 1000, resetsAt: reset))]
        quota.models = [("gpt \"5\"", .init(usedPermille: 0, resetsAt: reset))]
        return quota
    }
    private var health: HealthFact {
        HealthFact(
            cooldown: (reset, .quota), trouble: Trouble(at: now, .refused, status: 429, code: "usage_limit_reached"))
    }

    @Test("Facts are read back from their text, and what is none reads as none")
    func text() {
        #expect(QuotaFact(quota.fact(of: 1, at: now)) == quota)
        #expect(HealthFact(health.fact(of: 1, at: now)) == health)
        #expect(HealthFact(HealthFact().fact(of: 1, at: now)) == HealthFact())
        for text in [
            "", "{", "[]", "7", "{\"windows\":7}", "{\"windows\":{\"primary\":{\"used_permille\":1001,\"resets_at_ms\":1}}}",
            "{\"cooldown\":{\"until_ms\":\"x\",\"kind\":\"quota\"}}", "{\"trouble\":{\"at_ms\":1,\"kind\":\"nothing\"}}",
            "{\"credits\":{\"has_credits\":true,\"balance_hundredths\":-5}}", String(repeating: "{\"a\":", count: 5_000),
        ] {
            func fact(_ subject: AccountFact.Subject) -> AccountFact { AccountFact(accountID: 1, subject: subject, at: now, value: text) }
            let quota = QuotaFact(fact(.quota))
            #expect(quota.map { $0.windows.isEmpty && $0.models.isEmpty && $0.credits?.balanceHundredths == nil } ?? true, "\(text)")
            #expect(HealthFact(fact(.health)).map { $0 == HealthFact() } ?? true, "\(text)")
            #expect(StateFact(fact(.state)) == nil)
        }
    }

    @Test(
        "Of two facts on one subject the later one stays, whichever comes first; none is kept of an account that is gone",
        arguments: Database.both)
    func kept(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        let (one, two) = (try store.addAccount(account("one"), now: now).id, try store.addAccount(account("two"), now: now).id)
        let version = try store.snapshot().version
        try store.learn(
            [quota.fact(of: one, at: later(5)), health.fact(of: one, at: later(5)), health.fact(of: two, at: later(5))], now: now)
        try store.learn([HealthFact().fact(of: one, at: later(4)), HealthFact().fact(of: two, at: later(6))], now: now)
        try store.learn([quota.fact(of: 99, at: now)], now: now)
        func facts() throws -> [AccountFact] {
            try store.facts().sorted { ($0.accountID, $0.subject.rawValue) < ($1.accountID, $1.subject.rawValue) }
        }
        #expect(
            try facts() == [
                health.fact(of: one, at: later(5)), quota.fact(of: one, at: later(5)), HealthFact().fact(of: two, at: later(6)),
            ])
        let snapshot = try store.snapshot()
        #expect(snapshot.version == version, "figures make no version: nobody would be told anything else all day")
        #expect(Set(snapshot.facts.map(\.value)) == Set(try facts().map(\.value)))
        _ = try store.removeAccount("one", now: later(7))
        #expect(try facts().map(\.accountID) == [two])
        // A clock that was a year ahead has been set right: what it wrote holds up nothing; one that is a minute ahead is later.
        try store.learn([health.fact(of: two, at: later(365 * 86_400_000))], now: now)
        try store.learn([HealthFact().fact(of: two, at: later(8))], now: later(8))
        #expect(try facts().map(\.value) == [HealthFact().fact(of: two, at: now).value])
        try store.learn([health.fact(of: two, at: later(60_008))], now: later(8))
        try store.learn([HealthFact().fact(of: two, at: later(9))], now: later(9))
        #expect(try facts().map(\.value) == [health.fact(of: two, at: now).value])
        store.close()
        #expect(try ground.check().isEmpty)
    }

    @Test("An account is taken out as it was, with the reason; an operator's word ends what was held against it", arguments: Database.both)
    func takenOut(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let made = try store.addAccount(account("one"), now: now)
        func order(_ state: Account.State, changedAt: WallTime) -> AccountRemoval {
            AccountRemoval(accountID: made.id, changedAt: changedAt, state, reason: "status 402 \"x\"")
        }
        try store.learn([health.fact(of: made.id, at: later(1)), quota.fact(of: made.id, at: later(1))], now: now)
        #expect(try !store.takeOut(order(.deactivated, changedAt: later(-1)), now: later(2)), "it has changed since")
        #expect(try store.takeOut(order(.deactivated, changedAt: now), now: later(2)))
        #expect(try !store.takeOut(order(.reauthRequired, changedAt: later(2)), now: later(3)), "it is out already")
        #expect(try store.accounts()[0].state == .deactivated)
        func state() throws -> StateFact? { try store.facts().lazy.compactMap { StateFact($0) }.first }
        func cooldown() throws -> WallTime? { try store.facts().lazy.compactMap { HealthFact($0) }.first?.cooldown?.until }
        #expect(try state() == StateFact(reason: "status 402 \"x\"") && cooldown() == reset)
        _ = try store.setAccountState("one", .active, now: later(10))
        #expect(try state() == nil && cooldown() == nil)
        try store.learn([health.fact(of: made.id, at: later(9))], now: now)
        #expect(try cooldown() == nil, "what was learned before the operator's word")
        try store.learn([health.fact(of: made.id, at: later(11))], now: now)
        #expect(try cooldown() == reset)
        #expect(try store.facts().contains { QuotaFact($0) == quota }, "figures are nobody's fault")
        var other = account("one")
        other.known = .replaced
        _ = try store.putAccount(other, now: later(20))
        #expect(try cooldown() == nil)
    }
}
