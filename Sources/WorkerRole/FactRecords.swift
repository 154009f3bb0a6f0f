import Loop
import Platform
import Vocabulary

/// Brings what was learned of accounts from the scoreboard into the store, so that a restart, and other instances, know it. One worker does it
/// for its instance, at a bounded rate: what changes more often than that is stored as it is then.
final class FactRecords {
    private unowned let worker: Worker
    /// What the store has, by account.
    private var kept: [Int64: (quota: WallTime, health: WallTime, at: Instant)] = [:]
    private var lookAt = Instant(nanoseconds: 0)
    private var isWriting = false
    /// Where the next look begins: with more changes than one look stores every account has its turn.
    private var nextPlace = 0

    init(_ worker: Worker) { self.worker = worker }

    /// A stop waits for it.
    var isBusy: Bool { isOurs && worker.isDraining && (isWriting || worker.accounts.all.contains { hasChanged($0.value) }) }

    private var isOurs: Bool { worker.position == 0 && worker.snapshot != nil }

    private func hasChanged(_ account: Account) -> Bool {
        let known = kept[account.id]
        return worker.scoreboard.quotaAt(account: account.slot) != known?.quota ?? WallTime(milliseconds: 0)
            || worker.scoreboard.healthAt(account: account.slot) != known?.health ?? WallTime(milliseconds: 0)
    }

    func sweep(_ now: Instant) {
        // Whoever takes over after a reload looks at the same memory; after a stop nobody does.
        guard isOurs, !isWriting, now >= lookAt || worker.isDraining, !worker.isLeaving || worker.isDraining else { return }
        lookAt = now.adding(milliseconds: Limits.renewalLookMilliseconds)
        let wall = Clock.wall
        let accounts = worker.accounts.all
        let first = nextPlace < accounts.count ? nextPlace : 0
        var (facts, changes): ([AccountFact], [Int64: (quota: WallTime, health: WallTime, at: Instant)]) = ([], [:])
        for step in accounts.indices {
            let place = (first + step) % accounts.count
            let account = accounts[place].value
            guard hasChanged(account) else { continue }
            let (quota, health) = (worker.scoreboard.quotaAt(account: account.slot), worker.scoreboard.healthAt(account: account.slot))
            let known = kept[account.id] ?? (WallTime(milliseconds: 0), WallTime(milliseconds: 0), Instant(nanoseconds: 0))
            let isDue = worker.isDraining || now.milliseconds(since: known.at) >= Limits.factSpacingMilliseconds
            guard isDue, changes.count < Limits.factAccountsMax else { continue }
            if quota != known.quota { facts.append(worker.accounts.quotaFact(of: account, wall)) }
            if health != known.health { facts.append(worker.accounts.healthFact(of: account, now, wall)) }
            changes[account.id] = (quota, health, now)
            nextPlace = place + 1
        }
        if kept.count > worker.accounts.all.count {
            let ids = Set(worker.accounts.all.lazy.map(\.value.id))
            kept = kept.filter { ids.contains($0.key) }
        }
        guard !facts.isEmpty else { return }
        isWriting = true
        worker.learn(facts) { [weak self] isKept in
            guard let self else { return }
            isWriting = false
            if isKept { kept.merge(changes) { $1 } }
        }
    }
}
