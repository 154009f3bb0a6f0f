import Exchange
import HTTPWire
import JSONWire
import Logging
import Loop
import Routing
import Settings
import Upstream
import Vocabulary

/// The models of all accounts as one list. Each account's list is asked for on its own, kept until a newer one has come, and renewed behind
/// the answers: one upstream that is mute or broken holds up nobody and takes nothing away.
final class ModelCatalogue {
    private unowned let worker: Worker

    private struct Entry {
        var account: RoutedAccount
        /// The last good list.
        var models: [ListedModel]?
        /// By which its upstream tells it from a newer one.
        var etag: String?
        /// Why there is no newer one.
        var problem: String?
        var failures = 0
        var askAt = Instant(nanoseconds: 0)
        var fetch: ModelFetch?

        /// What is listed and may be asked for.
        var offered: [ListedModel] {
            guard let only = account.value.options.models else { return models ?? [] }
            return (models ?? []).filter { only.contains($0.id) }
        }
    }
    private var entries: [Int64: Entry] = [:]

    /// Whoever waits for the first list of some account, and until when.
    private struct Waiter {
        var by: Instant
        /// Also when no list at all is known by then.
        var goesWithout: Bool
        var then: () -> Void
    }
    private var waiting: [Waiter] = []

    init(_ worker: Worker) { self.worker = worker }

    /// The accounts are these now. What is known of one that is as it was stays.
    func accountsChanged(_ accounts: [RoutedAccount]) {
        let active = accounts.filter { $0.value.state == .active }
        var next: [Int64: Entry] = [:]
        for account in active {
            let id = account.value.id
            if var entry = entries[id], entry.account.value.isSamePlace(as: account.value) {
                entry.account = account
                next[id] = entry
            } else {
                entries[id]?.fetch?.cancel()
                next[id] = Entry(account: account)
                worker.accounts.modelOffers.forget(account: id)
            }
        }
        for (id, entry) in entries where next[id] == nil {
            entry.fetch?.cancel()
            worker.accounts.modelOffers.forget(account: id)
        }
        entries = next
        answerWaiting()
    }

    func answer(_ request: ClientRequest, on client: ClientConnection) {
        refresh()
        let by = isKnown ? worker.loop.now.adding(milliseconds: Limits.modelListWaitMilliseconds) : Instant.never
        waiting.append(Waiter(by: by, goesWithout: false) { [unowned self] in respond(request, client) })
        answerWaiting()
    }

    /// Calls back when what can be known of the models' names is, maybe at once, at the latest after a second.
    func whenKnown(_ then: @escaping () -> Void) {
        refresh()
        let by = worker.loop.now.adding(milliseconds: Limits.modelListWaitMilliseconds)
        waiting.append(Waiter(by: by, goesWithout: true, then: then))
        answerWaiting()
    }

    /// Asks every account whose list is missing or old.
    func refresh() {
        let now = worker.loop.now
        for (id, entry) in entries where entry.fetch == nil && now >= entry.askAt {
            let fetch = ModelFetch(worker, entry.account, etag: entry.models == nil ? nil : entry.etag)
            entries[id]?.fetch = fetch
            fetch.start { [weak self, weak fetch] result in
                guard let self, let fetch, entries[id]?.fetch === fetch else { return }
                fetched(id, result)
            }
        }
    }

    private func fetched(_ id: Int64, _ result: Result<ModelFetch.Answer, Fetch.Problem>) {
        guard var entry = entries[id] else { return }
        let wasKnown = isKnown
        entry.fetch = nil
        switch result {
        case .success(let answer):
            (entry.problem, entry.failures) = (nil, 0)
            entry.askAt = worker.loop.now.adding(milliseconds: worker.settings.modelListMilliseconds)
            if case .models(let models, let etag) = answer {
                (entry.models, entry.etag) = (models, etag)
            }
            // Also of a list that has not changed: what it has was not refused for good.
            worker.accounts.modelOffers.listed(account: id, models: Set((entry.models ?? []).map(\.id)))
        case .failure(let error):
            entry.problem = error.reason
            entry.failures += 1
            let pause = min(worker.settings.modelListMilliseconds, Limits.modelListRetryMilliseconds << min(8, entry.failures - 1))
            entry.askAt = worker.loop.now.adding(milliseconds: pause)
            worker.log.notice(
                "an account's models could not be listed",
                metadata: ["account": "\(entry.account.value.name)", "why": "\(error.reason)", "again_seconds": "\(pause / 1000)"])
        }
        entries[id] = entry
        if !wasKnown, isKnown {
            let by = worker.loop.now.adding(milliseconds: Limits.modelListWaitMilliseconds)
            for i in waiting.indices { waiting[i].by = min(waiting[i].by, by) }
        }
        answerWaiting()
    }

    private var isKnown: Bool { entries.values.contains { $0.models != nil } }

    /// Nothing is on its way that could add an account whose models were never told; while nothing at all is known, nothing at all.
    private var isSettled: Bool {
        let isKnown = isKnown
        return !entries.values.contains { $0.fetch != nil && $0.models == nil && ($0.problem == nil || !isKnown) }
    }

    private func answerWaiting() {
        guard !waiting.isEmpty else { return }
        let now = worker.loop.now
        let isSettled = isSettled
        let isKnown = isKnown
        let isDue = { (waiter: Waiter) in isSettled || now >= waiter.by && (isKnown || waiter.goesWithout) }
        let due = waiting.filter(isDue)
        waiting.removeAll(where: isDue)
        for waiter in due { waiter.then() }
    }

    private func respond(_ request: ClientRequest, _ client: ClientConnection) {
        if entries.isEmpty { return client.respond(worker.accounts.none(for: request.route), requestID: request.id) }
        let sorted = entries.values.sorted { $0.account.value.name < $1.account.value.name }
        let problems = sorted.compactMap { entry in entry.problem.map { "\(entry.account.value.name): \($0)" } }
        if !isKnown, !problems.isEmpty {
            return client.respond(
                ProxyError(
                    status: 502, code: "upstream_unavailable", type: "server_error",
                    message: "No account's models could be listed: \(problems.joined(separator: "; "))", origin: .upstream),
                requestID: request.id)
        }
        var seen: Set<String> = []
        let models = sorted.flatMap(\.offered).filter { model in
            seen.insert(model.id).inserted && request.key?.models.map { $0.contains(model.id) } ?? true
        }
        let list = JSONValue.array(models.map(\.json))
        let codex = models.filter(\.isCodex)
        let isCodex = request.route == .codexModels || request.head.query?.contains("client_version") == true
        var out: [UInt8] = isCodex ? Array("{\"models\":".utf8) : Array("{\"object\":\"list\",\"data\":".utf8)
        out += (isCodex && !codex.isEmpty ? JSONValue.array(codex.map(\.json)) : list).serialized()
        if isCodex {
            out += ",\"data\":".utf8
            out += list.serialized()
        }
        out += "}".utf8
        client.respond(200, "application/json", out, requestID: request.id)
    }

    func sweep(_ now: Instant) {
        for entry in entries.values { entry.fetch?.sweep(now) }
        answerWaiting()
    }
}

extension Account {
    /// The same upstream with the same rights: what is known of its models holds.
    fileprivate func isSamePlace(as other: Account) -> Bool {
        kind == other.kind && state == other.state && baseURL == other.baseURL && credentials == other.credentials
    }
}
