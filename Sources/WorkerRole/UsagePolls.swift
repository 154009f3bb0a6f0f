import Exchange
import HTTPWire
import JSONWire
import Logging
import Loop
import Platform
import Settings
import Store
import Upstream
import Vocabulary

/// Asks the upstreams of ChatGPT logins how much of their quotas is used up (`GET {base}/wham/usage`). One worker of an instance does it, and on
/// a shared database one instance for each account; the others see it in the scoreboard, and in the store.
final class UsagePolls {
    private unowned let worker: Worker

    private enum Step {
        case waiting(until: Instant)
        /// Whether another instance asks is not known yet.
        case claiming
        case asking(Fetch)
    }
    private struct Entry {
        var account: RoutedAccount
        var step: Step
        var failures = 0
        /// A 401 with these was answered by a wish for others.
        var refused: Account.Credentials?
    }
    private var entries: [Int64: Entry] = [:]
    private var hasBegun = false

    init(_ worker: Worker) { self.worker = worker }

    private var interval: Int { worker.settings.usagePollMilliseconds }

    /// The accounts are these now. Those of the start are asked one after the other over an interval, later ones at once.
    func accountsChanged(_ accounts: [RoutedAccount]) {
        guard worker.position == 0, interval > 0 else { return }
        let logins = accounts.filter { $0.value.kind == .chatGPT && $0.value.state == .active }
        var next: [Int64: Entry] = [:]
        for (index, account) in logins.enumerated() {
            let id = account.value.id
            if var entry = entries[id] {
                // Other credentials may be taken where those before were refused.
                if entry.account.value.credentials != account.value.credentials, entry.refused != nil {
                    entry.failures = 0
                    if case .waiting = entry.step { entry.step = .waiting(until: worker.loop.now) }
                }
                entry.account = account
                next[id] = entry
            } else {
                let wait = hasBegun ? 0 : interval * index / logins.count
                next[id] = Entry(account: account, step: .waiting(until: worker.loop.now.adding(milliseconds: wait)))
            }
        }
        for (id, entry) in entries where next[id] == nil { if case .asking(let fetch) = entry.step { fetch.cancel() } }
        entries = next
        hasBegun = hasBegun || !logins.isEmpty
    }

    func sweep(_ now: Instant) {
        guard !entries.isEmpty else { return }
        var (open, due): (Int, [RoutedAccount]) = (0, [])
        for entry in entries.values {
            switch entry.step {
            case .waiting(let until): if now >= until { due.append(entry.account) }
            case .claiming: open += 1
            case .asking(let fetch):
                open += 1
                fetch.sweep(now)
            }
        }
        guard !worker.isLeaving else { return }
        for account in due.prefix(max(0, Limits.usagePollsMax - open)) { begin(account) }
    }

    private func begin(_ account: RoutedAccount) {
        let id = account.value.id
        entries[id]?.step = .claiming
        // A little less than the interval: whoever asked last must not meet its own claim.
        worker.claim(.usage(milliseconds: interval * 9 / 10), account.value) { [weak self] isOurs in
            guard let self, case .claiming? = entries[id]?.step else { return }
            if isOurs { ask(account) } else { wait(id, milliseconds: interval / 2) }
        }
    }

    private func ask(_ account: RoutedAccount) {
        let id = account.value.id
        let mark = worker.scoreboard.cooldownMark(account: account.value.slot)
        let fetch = UsageFetch.make(worker.pool, account)
        entries[id]?.step = .asking(fetch)
        fetch.start { [weak self, weak fetch] result in
            guard let self, case .asking(let mine)? = entries[id]?.step, mine === fetch else { return }
            switch result {
            case .success(let answer): answered(id, account, answer, mark)
            case .failure(let problem): failed(id, problem.reason)
            }
        }
    }

    private func answered(_ id: Int64, _ account: RoutedAccount, _ answer: Fetch.Answer, _ mark: UInt64) {
        switch UsageAnswer(status: answer.status, body: answer.body, now: Clock.wall) {
        case .figures(let reading):
            if entries[id]?.failures ?? 0 > 0 {
                worker.log.notice("account's usage is told again", metadata: ["account": "\(account.value.name)"])
            }
            entries[id]?.failures = 0
            entries[id]?.refused = nil
            wait(id, milliseconds: interval)
            worker.accounts.figuresCame(reading, of: account.value, mark: mark)
        case .unauthorized:
            // Asked for once: what is refused with the new ones too is no matter of tokens.
            let isFirst = entries[id]?.refused != account.value.credentials
            entries[id]?.refused = account.value.credentials
            failed(id, "status 401")
            if isFirst { worker.logins.wanted(account) { _ in } }
        case .closed(let reason):
            failed(id, reason)
            worker.scoreboard.setTrouble(
                account: account.value.slot, owner: id,
                Trouble(at: Clock.wall, .refused, status: answer.status, code: reason.split(separator: " ").last.map(String.init) ?? ""))
            worker.accounts.leave(account.value, .deactivated, reason: reason)
        case .failed(let reason):
            failed(id, reason)
        }
    }

    private func failed(_ id: Int64, _ why: String) {
        guard var entry = entries[id] else { return }
        entry.failures += 1
        let pause = min(max(interval, Limits.usagePollBackoffMillisecondsMax), interval << min(entry.failures - 1, 16))
        entries[id] = entry
        wait(id, milliseconds: pause)
        // Once in a row: it is told again when it goes well.
        guard entry.failures == 1 else { return }
        worker.log.notice(
            "account's usage was not told; it is asked for again",
            metadata: ["account": "\(entry.account.value.name)", "why": "\(why)", "seconds": "\(pause / 1000)"])
    }

    private func wait(_ id: Int64, milliseconds: Int) {
        entries[id]?.step = .waiting(until: worker.loop.now.adding(milliseconds: milliseconds))
    }
}
