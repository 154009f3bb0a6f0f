public import Vocabulary

/// Which accounts offer which models, as far as their lists and their refusals have told. A list may leave out what is offered all the same,
/// so it speaks against an account only where another one's list has the model.
public struct ModelOffers: Sendable {
    private var listed: [Int64: Set<String>] = [:]
    /// In how many of the lists a name is.
    private var counts: [String: Int] = [:]
    private var refusals = ModelCooldowns()

    public init() {}
    public var isEmpty: Bool { listed.isEmpty && refusals.isEmpty }
    private var lists = 0
    /// Rises with each change that is not the passing of time.
    public var version: Int { lists + refusals.version }
    /// When the first refusal is forgotten.
    public var firstEnd: Instant? { refusals.firstEnd }
    /// Names that some list has.
    public var names: some Collection<String> { counts.keys }
    /// Whether the account's list has the model.
    public func lists(_ model: String, account: Int64) -> Bool { listed[account]?.contains(model) ?? false }

    /// What an account's list has now; an empty one says nothing.
    public mutating func listed(account: Int64, models: Set<String>) {
        lists += 1
        replace(account, with: models)
        for model in models { refusals.forget(account: account, model: model) }
    }

    private mutating func replace(_ account: Int64, with models: Set<String>) {
        let old = listed[account] ?? []
        for model in models.subtracting(old) { counts[model, default: 0] += 1 }
        for model in old.subtracting(models) {
            let left = counts[model, default: 0] - 1
            counts[model] = left > 0 ? left : nil
        }
        listed[account] = models.isEmpty ? nil : models
    }

    /// The account's upstream does not know the model, or does not let it use it.
    public mutating func refused(account: Int64, model: String, until: Instant, now: Instant) {
        refusals.coolDown(account: account, model: model, until: until, now: now)
    }

    /// Its credentials or its place have changed, or it is gone.
    public mutating func forget(account: Int64) {
        lists += 1
        replace(account, with: [])
        refusals.forget(account: account)
    }

    /// Those of `accounts` that don't offer the model. All of them: then nobody knows better than to ask.
    public mutating func lacking(_ model: String, among accounts: [Int64], now: Instant) -> Set<Int64> {
        guard !isEmpty else { return [] }
        let isListed = accounts.contains { listed[$0]?.contains(model) == true }
        return Set(
            accounts.filter { account in
                if refusals.until(account: account, model: model, now: now) != nil { return true }
                return isListed && listed[account].map { !$0.contains(model) } ?? false
            })
    }
}
