import Exchange
import Routing
import Settings
import Vocabulary

/// Which accounts can serve a route and a model, remembered for the pairs that are asked for.
struct MaskCache {
    struct Key: Hashable {
        var route: Route
        var model: String
        /// Some account has been asked in vain in this turn.
        var isAgain: Bool
    }
    private struct Entry {
        var mask: AccountMask?
        var validUntil: Instant
    }
    private var entries: [Key: Entry] = [:]
    private var order: [Key] = []
    private var version = 0

    /// The mask of `key` as `make` gives it; that of before while `version` stands and time has not changed it.
    mutating func mask(_ key: Key, version: Int, now: Instant, _ make: () -> (AccountMask, validUntil: Instant)) -> AccountMask? {
        if version != self.version { forget() }
        self.version = version
        if let entry = entries[key], now < entry.validUntil { return entry.mask }
        let (mask, validUntil) = make()
        if entries[key] == nil {
            order.append(key)
            if order.count > Limits.modelMasksMax { entries[order.removeFirst()] = nil }
        }
        entries[key] = Entry(mask: mask.hidesNone ? nil : mask, validUntil: validUntil)
        return entries[key]?.mask
    }

    mutating func forget() {
        entries = [:]
        order = []
    }
}

extension AccountTable {
    /// Nil: every account can serve it. `isAnyModel`: whichever model it is about.
    func mask(for route: Route, model: String, isAgain: Bool, isAnyModel: Bool = false, now: Instant) -> AccountMask? {
        if isAnyModel {
            guard hasRouteGaps(route) else { return nil }
            return AccountMask(all.map { route.upstreamPath($0.value.kind) == nil ? .otherRoute : .serves })
        }
        guard hasModelLists || hasRouteGaps(route) || !modelOffers.isEmpty || !modelCooldowns.isEmpty else { return nil }
        let key = MaskCache.Key(route: route, model: model, isAgain: isAgain)
        return masks.mask(key, version: modelOffers.version + modelCooldowns.version, now: now) {
            makeMask(route, model, isAgain: isAgain, now)
        }
    }

    private func hasRouteGaps(_ route: Route) -> Bool {
        kinds.contains { route.upstreamPath($0) == nil }
    }

    private func makeMask(_ route: Route, _ model: String, isAgain: Bool, _ now: Instant) -> (AccountMask, validUntil: Instant) {
        var reasons = all.map { account -> AccountMask.Reason in
            if route.upstreamPath(account.value.kind) == nil { return .otherRoute }
            return account.value.options.models.map { Self.lists($0, model) } ?? true ? .serves : .otherModels
        }
        var validUntil = Instant.never
        if !modelOffers.isEmpty {
            let serving = reasons.indices.filter { reasons[$0] == .serves && all[$0].value.state == .active }
            let lacking = modelOffers.lacking(model, among: serving.map { all[$0].value.id }, now: now)
            // Where everybody lacks it one account may say so, in its own words.
            if lacking.count < serving.count || isAgain {
                for place in serving where lacking.contains(all[place].value.id) { reasons[place] = .notOffered }
            }
            validUntil = min(validUntil, modelOffers.firstEnd ?? .never)
        }
        var limitedUntil: Instant?
        if !modelCooldowns.isEmpty {
            for place in reasons.indices where reasons[place] == .serves && all[place].value.state == .active {
                guard let until = modelCooldowns.until(account: all[place].value.id, model: model, now: now) else { continue }
                reasons[place] = .modelLimited
                limitedUntil = min(limitedUntil ?? until, until)
            }
            validUntil = min(validUntil, modelCooldowns.firstEnd ?? .never)
        }
        return (AccountMask(reasons, limitedUntil: limitedUntil), max(validUntil, now.adding(milliseconds: 1)))
    }

    /// Byte for byte, as upstreams compare.
    private static func lists(_ models: [String], _ model: String) -> Bool {
        models.contains { $0.utf8.elementsEqual(model.utf8) }
    }

    private func serving(_ route: Route) -> [RoutedAccount] {
        all.filter { $0.value.state == .active && route.upstreamPath($0.value.kind) != nil }
    }

    /// Those that may be asked for the model, as their operator's lists say.
    private func asked(_ route: Route, _ model: String) -> [RoutedAccount] {
        serving(route).filter { $0.value.options.models.map { Self.lists($0, model) } ?? true }
    }

    /// Of every account that serves the route its operator's list, its upstream's or its upstream's refusal says that it has not got the model.
    func isOfferedByNobody(_ route: Route, _ model: String, now: Instant) -> Bool {
        guard !model.isEmpty, !serving(route).isEmpty else { return false }
        let asked = asked(route, model).map(\.value.id)
        return modelOffers.lacking(model, among: asked, now: now).count == asked.count
    }

    /// Upstreams' own lists count for some of the accounts.
    func hasListsToLookInto(_ route: Route, _ model: String) -> Bool { asked(route, model).contains { $0.value.options.models == nil } }

    /// What a client is told whose model is not to be had, with names that are, of those that its key may use.
    func modelNotFound(_ route: Route, _ model: String, key: ClientKey?, now: Instant) -> ProxyError {
        let serving = serving(route)
        let chosen = Set(serving.flatMap { $0.value.options.models ?? [] }).union(stored.aliases.keys)
        let others = modelOffers.names.lazy.filter { !chosen.contains($0) }
        let near = NearNames.nearest(to: model, in: [AnySequence(chosen), AnySequence(others)].joined()) { name in
            if let allowed = key?.models, !Self.lists(allowed, stored.aliases[name] ?? name) { return false }
            return chosen.contains(name)
                || serving.contains { $0.value.options.models == nil && modelOffers.lists(name, account: $0.value.id) }
        }
        let who = isOfferedByNobody(route, model, now: now) ? "No account offers" : "None of the accounts that were asked offers"
        return ProxyError(
            status: 404, code: "model_not_found", type: "invalid_request_error",
            message: "\(who) the model \"\(model.cut(utf8: Limits.recordModelBytesMax))\""
                + (near.isEmpty ? "" : ". Did you mean \(near.joined(separator: ", "))?"),
            param: "model", origin: .downstream)
    }
}
