internal import Synchronization
public import Vocabulary

/// What upstreams say of accounts' quotas.
extension Scoreboard {
    /// Quota windows that upstreams tell of.
    public enum Window: Int, CaseIterable, Sendable {
        case primary, secondary, monthly

        var cell: AccountCell {
            switch self {
            case .primary: .primaryQuota
            case .secondary: .secondaryQuota
            case .monthly: .monthlyQuota
            }
        }
    }

    /// So much of the window is used up, in thousandths, until it begins anew; in one word, so that no reader sees half of it. Like those
    /// below it says whether anything is different now.
    @discardableResult
    public func setQuota(account slot: Int, owner id: Int64, _ window: Window, usedPermille: Int, resetsAt: WallTime) -> Bool {
        guard isOwned(slot, by: id) else { return false }
        return set(slot, window.cell, UInt64(clamping: resetsAt.seconds) << 16 | UInt64(min(max(usedPermille, 0), 1000) + 1))
    }
    /// The account has no such window.
    @discardableResult
    public func clearQuota(account slot: Int, owner id: Int64, _ window: Window) -> Bool {
        isOwned(slot, by: id) && set(slot, window.cell, 0)
    }
    /// Nil when nobody has told of it, or it has begun anew since.
    public func quota(account slot: Int, _ window: Window, now: WallTime) -> (usedPermille: Int, resetsAt: WallTime)? {
        let word = accountCell(slot, window.cell).pointee.load(ordering: .relaxed)
        let resetsAt = WallTime(milliseconds: Int64(clamping: word >> 16) * 1000)
        return word != 0 && resetsAt > now ? (Int(word & 0xFFFF) - 1, resetsAt) : nil
    }

    @discardableResult
    public func setCredits(account slot: Int, owner id: Int64, _ credits: Credits?) -> Bool {
        isOwned(slot, by: id) && set(slot, .credits, credits?.word ?? 0)
    }
    public func credits(account slot: Int) -> Credits? { Credits(word: accountCell(slot, .credits).pointee.load(ordering: .relaxed)) }

    @discardableResult
    public func setPlan(account slot: Int, owner id: Int64, _ plan: Plan) -> Bool {
        isOwned(slot, by: id) && set(slot, .plan, UInt64(plan.rawValue))
    }
    public func plan(account slot: Int) -> Plan {
        Plan(rawValue: UInt8(truncatingIfNeeded: accountCell(slot, .plan).pointee.load(ordering: .relaxed))) ?? .unknown
    }

    /// When the figures were learned that stand here; the start of 1970 where none do.
    public func quotaAt(account slot: Int) -> WallTime { time(slot, .quotaAt) }
    public func quotaLearned(account slot: Int, owner id: Int64, at: WallTime) {
        if isOwned(slot, by: id) { touch(slot, .quotaAt, at) }
    }

    // MARK: Quotas of single models

    /// In one word: the end in minutes, rounded up, what is used up, and enough of the model's number to tell it from others.
    private struct ModelWord {
        static func tag(_ key: UInt64) -> UInt64 { (key ^ key >> 32) & (1 << 28 - 1) }
        static func word(_ key: UInt64, _ usedPermille: Int, _ resetsAt: WallTime) -> UInt64 {
            let minutes = min(UInt64(clamping: (resetsAt.seconds + 59) / 60), 1 << 26 - 1)
            return minutes << 38 | UInt64(min(max(usedPermille, 0), 1000) + 1) << 28 | tag(key)
        }
    }

    /// The account's quotas of single models are these, by `QuotaKey`; those beyond `Limits.modelQuotasMax` are left out.
    @discardableResult
    public func setModelQuotas(account slot: Int, owner id: Int64, _ quotas: [(key: UInt64, usedPermille: Int, resetsAt: WallTime)]) -> Bool
    {
        guard isOwned(slot, by: id) else { return false }
        var hasChanged = false
        for index in 0..<Limits.modelQuotasMax {
            let word = index < quotas.count ? ModelWord.word(quotas[index].key, quotas[index].usedPermille, quotas[index].resetsAt) : 0
            hasChanged = set(slot, .modelQuotas, word, index: index) || hasChanged
        }
        if !quotas.isEmpty, value(.modelQuotas) == 0 { set(.modelQuotas, 1) }
        return hasChanged
    }
    /// Some account has one.
    public var hasModelQuotas: Bool { value(.modelQuotas) != 0 }
    /// Nil when the account has none for this model, or it has begun anew since it was told.
    public func modelQuota(account slot: Int, _ key: UInt64, now: WallTime) -> (usedPermille: Int, resetsAt: WallTime)? {
        for index in 0..<Limits.modelQuotasMax {
            let word = accountCell(slot, .modelQuotas, index).pointee.load(ordering: .relaxed)
            guard word != 0, word & (1 << 28 - 1) == ModelWord.tag(key) else { continue }
            let resetsAt = WallTime(milliseconds: Int64(word >> 38) * 60_000)
            return resetsAt > now ? (Int(word >> 28 & 0x3FF) - 1, resetsAt) : nil
        }
        return nil
    }

    private func set(_ slot: Int, _ cell: AccountCell, _ word: UInt64, index: Int = 0) -> Bool {
        let cell = accountCell(slot, cell, index)
        guard cell.pointee.load(ordering: .relaxed) != word else { return false }
        cell.pointee.store(word, ordering: .relaxed)
        changed()
        return true
    }
}
