import ControlWire
import Exchange
import HTTPWire
import Loop
import Platform
import Routing
import Settings
import Vocabulary

/// Which account a turn would get now, and why: by the same pool, mask and pin as a turn's choice.
extension Worker {
    func explain(_ question: ExplainRequest) -> ExplainReply {
        var reply = ExplainReply()
        guard let route = Route(path: question.route.isEmpty ? Route.responses.rawValue : question.route), route.isTurn else {
            reply.error = "\(question.route.printable) is no route for turns; give /v1/responses, /v1/chat/completions or /v1/embeddings"
            return reply
        }
        var client: Int64 = 0
        if !question.key.isEmpty {
            guard let key = snapshot?.clientKeys.first(where: { $0.name == question.key && $0.revokedAt == nil }) else {
                reply.error = "there is no valid key \"\(question.key.printable)\"; codex-lb keys list shows them"
                return reply
            }
            client = key.id
        }
        reply.worker = UInt32(position)
        accounts.explain(route, question, client: client, now: loop.now, into: &reply)
        return reply
    }
}

extension AccountTable {
    fileprivate func explain(_ route: Route, _ question: ExplainRequest, client: Int64, now: Instant, into reply: inout ExplainReply) {
        freshen(now)
        let model = stored.aliases[question.model] ?? question.model
        (reply.strategy, reply.model) = (stored.strategy.rawValue, model)
        let affinity = question.session.isEmpty ? nil : Affinity(session: question.session, client: client, hash)
        let pin = affinity.flatMap { self.pin($0, now)?.pin }
        // Without a model what an account offers is no matter.
        let mask = mask(for: route, model: model, isAgain: false, isAnyModel: model.isEmpty, now: now)
        let pool = pool(for: model, now)
        let (choice, accounts) = pool.explain(among: mask, pin: pin, now: now)
        reply.outcome = outcome(choice, route, model, now)
        let first = accounts.first { $0.verdict == .chosen }
        reply.rows = accounts.map { row($0, pool.facts[$0.place], first, now) }
        if case .account(let place) = choice { reply.chosen = all[place].value.name }
    }

    private func outcome(_ choice: Choice, _ route: Route, _ model: String, _ now: Instant) -> String {
        switch choice {
        case .account(let place): "goes to \(all[place].value.name)"
        case .full: "waits up to \(Limits.capWaitMilliseconds / 1000) s for an account below its cap, then gets 429 account_stream_cap"
        case .ownerUnavailable(_): "502 previous_response_owner_unavailable"
        case .allLimited(let until): "429 usage_limit_reached: the first account is back in \(until.milliseconds(since: now) / 1000 + 1) s"
        case .noneEligible, .allTried:
            if isOfferedByNobody(route, model, now: now), case let error = modelNotFound(route, model, key: nil, now: now) {
                "\(error.status) \(error.code): \(error.message)"
            } else {
                "\(none(for: route).status) \(none(for: route).code): \(none(for: route).message)"
            }
        }
    }

    private func row(
        _ explanation: AccountPool.Explanation, _ facts: AccountFacts, _ first: AccountPool.Explanation?, _ now: Instant
    ) -> ExplainRow {
        let account = all[explanation.place].value
        var row = ExplainRow()
        (row.verdict, row.reason) = words(explanation, first, facts, account, now)
        (row.account, row.policy, row.weight) = (account.name, account.options.policy.rawValue, UInt32(account.options.weight))
        (row.inFlight, row.streamsMax) = (UInt32(clamping: facts.inFlight), UInt32(clamping: account.options.streamsMax ?? 0))
        (row.rank, row.load, row.size) = (UInt32(explanation.rank), explanation.load, explanation.size)
        (row.overflow, row.pinned) = (account.options.isOverflow, explanation.isPinned)
        row.sharePermille = UInt32(explanation.sharePermille)
        row.cooldownMs = UInt64(facts.cooldownUntil.milliseconds(since: now))
        if let used = facts.primaryUsed { row.primaryUsedPermille = UInt32(used) }
        if let used = facts.secondaryUsed { row.secondaryUsedPermille = UInt32(used) }
        return row
    }

    private func words(
        _ explanation: AccountPool.Explanation, _ first: AccountPool.Explanation?, _ facts: AccountFacts, _ account: Account, _ now: Instant
    ) -> (verdict: String, reason: String) {
        let seconds = facts.cooldownUntil.milliseconds(since: now) / 1000 + 1
        switch explanation.verdict {
        case .chosen:
            if explanation.isPinned { return ("chosen", "the conversation is with it") }
            return ("chosen", explanation.sharePermille < 1000 ? "drawn by lot, by its weight" : "the first by rank and load")
        case .equal: return ("equal", "as good as the chosen one; its turn comes by lot or by time of use")
        case .later: return ("later", later(explanation, first, facts))
        case .spare:
            return (
                "spare",
                facts.isCooling(now)
                    ? "failed lately: for \(seconds) s used only when no other is left"
                    : "failed before, and a turn is finding out whether it serves again"
            )
        case .full: return ("full", "\(facts.inFlight) of \(facts.cap) turns open")
        case .limited: return ("limited", "its quota is used up; back in \(seconds) s")
        case .tried: return ("tried", "was asked in this turn")
        case .inactive:
            return (
                "inactive",
                account.state == .paused
                    ? "paused by the operator" : account.state == .deactivated ? "its upstream says it is closed" : "needs a new login"
            )
        case .notTheSingle: return ("excluded", "the strategy is single_account, and it is another one")
        case .masked(let reason): return ("excluded", excluded(reason))
        }
    }

    private func later(_ explanation: AccountPool.Explanation, _ first: AccountPool.Explanation?, _ facts: AccountFacts) -> String {
        if let first, first.isPinned { return "the conversation is with another one" }
        guard let first, first.rank < explanation.rank else {
            if stored.strategy == .relativeAvailability { return "far behind the best for the time left, or more load" }
            return "more load than the first as \(stored.strategy.rawValue) counts it"
        }
        if facts.isOverflow { return "overflow: used when no other can serve" }
        if facts.isDraining { return "it had errors just now" }
        if facts.isTight { return "a quota window is used up to \(Limits.tightPermille / 10) %" }
        return facts.policy == .preserve ? "policy preserve: used when no other has quota to spare" : "others are burnt first"
    }

    private func excluded(_ reason: AccountMask.Reason) -> String {
        switch reason {
        case .serves: "it serves"
        case .otherRoute: "has no such route"
        case .otherModels: "is limited to other models (accounts set --models)"
        case .notOffered: "its upstream does not offer the model"
        case .modelLimited: "its upstream's limit for this model is reached"
        }
    }
}
