internal import Synchronization
public import Vocabulary

/// Why and until when accounts are left alone.
extension Scoreboard {
    /// A cooldown in one cell, so that no reader sees half of one: until when (monotonic, milliseconds), why, and whose it is. A turn may
    /// outlive its account: what it says then counts for nobody else.
    private struct Cooldown {
        var until: UInt64
        var isLimit: Bool
        var isQuota: Bool
        var tag: UInt64

        static func tag(_ owner: Int64) -> UInt64 { UInt64(bitPattern: owner) & 0xFFFF }
        init(until: Instant, isLimit: Bool, isQuota: Bool, owner: Int64) {
            // Rounded up: a cooldown never ends early.
            self.until = min(until.nanoseconds / 1_000_000 + (until.nanoseconds % 1_000_000 == 0 ? 0 : 1), UInt64.max / 1_000_000)
            (self.isLimit, self.isQuota, tag) = (isLimit, isQuota, Self.tag(owner))
        }
        init(cell: UInt64) {
            (until, isQuota, isLimit, tag) = (cell >> 18, cell >> 17 & 1 == 1, cell >> 16 & 1 == 1, cell & 0xFFFF)
        }
        var cell: UInt64 { until << 18 | (isQuota ? 1 << 17 : 0) | (isLimit ? 1 << 16 : 0) | tag }
    }

    /// The account is skipped until then; a shorter cooldown never replaces a longer one. `isLimit`: it has no quota left, so it
    /// is not to be tried even when no other is there; `isQuota`: its figures tell when that is over. Nothing happens when the slot has
    /// another owner by now.
    public func coolDown(account slot: Int, owner id: Int64, until: Instant, isLimit: Bool, isQuota: Bool = false, at: WallTime) {
        let new = Cooldown(until: until, isLimit: isLimit, isQuota: isQuota, owner: id)
        let cell = accountCell(slot, .cooldown)
        var seen = cell.pointee.load(ordering: .relaxed)
        while isOwned(slot, by: id) {
            let old = Cooldown(cell: seen)
            if old.tag == new.tag, old.until >= new.until { return }
            let (isDone, now) = cell.pointee.compareExchange(expected: seen, desired: new.cell, ordering: .relaxed)
            if isDone {
                touch(slot, .healthAt, at)
                changed()
                return
            }
            seen = now
        }
    }

    /// Until when the account is skipped, and whether for its quota; nil when it is not.
    public func cooldown(account slot: Int, owner id: Int64, now: Instant) -> (until: Instant, isLimit: Bool, isQuota: Bool)? {
        let cooldown = Cooldown(cell: accountCell(slot, .cooldown).pointee.load(ordering: .relaxed))
        let until = Instant(nanoseconds: cooldown.until &* 1_000_000)
        return cooldown.tag == Cooldown.tag(id) && until > now ? (until, cooldown.isLimit, cooldown.isQuota) : nil
    }

    /// The operator resumed it, or it has new credentials. `keepsLimits`: they are of the same quota.
    public func endCooldown(account slot: Int, keepsLimits: Bool = false, at: WallTime) {
        let cell = accountCell(slot, .cooldown)
        let seen = cell.pointee.load(ordering: .relaxed)
        if !keepsLimits || !Cooldown(cell: seen).isLimit {
            _ = cell.pointee.compareExchange(expected: seen, desired: 0, ordering: .relaxed)
            if seen != 0 { touch(slot, .healthAt, at) }
        }
        for cell in [AccountCell.failures, .health] { accountCell(slot, cell).pointee.store(0, ordering: .relaxed) }
        changed()
    }

    /// The cooldown as it is now, to be ended if it is still the same when the account's figures have come.
    public func cooldownMark(account slot: Int) -> UInt64 { accountCell(slot, .cooldown).pointee.load(ordering: .relaxed) }

    /// The account's figures, asked for when `mark` was taken, show room: a quota's cooldown of before is over. True: one was ended.
    public func endQuotaCooldown(account slot: Int, owner id: Int64, mark: UInt64, at: WallTime) -> Bool {
        guard Cooldown(cell: mark).isQuota, isOwned(slot, by: id) else { return false }
        let isDone = accountCell(slot, .cooldown).pointee.compareExchange(expected: mark, desired: 0, ordering: .relaxed).exchanged
        guard isDone else { return false }
        touch(slot, .healthAt, at)
        changed()
        return true
    }

    /// What the store, or another instance, knows of the account's health, if it is newer than what is known here. `until` nil: no cooldown.
    public func restoreHealth(
        account slot: Int, owner id: Int64, until: Instant?, isLimit: Bool, isQuota: Bool, trouble: Trouble?, at: WallTime
    ) {
        guard isOwned(slot, by: id), at > healthAt(account: slot) else { return }
        let told = until.map { Cooldown(until: $0, isLimit: isLimit, isQuota: isQuota, owner: id) }
        let known = Cooldown(cell: accountCell(slot, .cooldown).pointee.load(ordering: .relaxed))
        // Of two instances that met different things the longer limit is right; only an operator ends it.
        let isKnownLonger = known.isLimit && known.tag == Cooldown.tag(id) && told.map { $0.until < known.until } ?? false
        if !isKnownLonger { accountCell(slot, .cooldown).pointee.store(told?.cell ?? 0, ordering: .relaxed) }
        changed()
        if let trouble { accountCell(slot, .trouble).pointee.store(trouble.word, ordering: .relaxed) }
        // What was kept is newer than what was told: the others are to know it.
        touch(slot, .healthAt, isKnownLonger ? at.adding(milliseconds: 1) : at)
    }

    public func setTrouble(account slot: Int, owner id: Int64, _ trouble: Trouble) {
        guard isOwned(slot, by: id) else { return }
        accountCell(slot, .trouble).pointee.store(trouble.word, ordering: .relaxed)
        touch(slot, .healthAt, trouble.at)
    }
    public func trouble(account slot: Int) -> Trouble? { Trouble(word: accountCell(slot, .trouble).pointee.load(ordering: .relaxed)) }

    /// When its cooldown or trouble changed last.
    public func healthAt(account slot: Int) -> WallTime { time(slot, .healthAt) }

    /// Errors of its upstream, as `AccountHealth` packs them.
    public func health(account slot: Int) -> UInt64 { accountCell(slot, .health).pointee.load(ordering: .relaxed) }

    /// Returns what `change` made of it.
    public func changeHealth(account slot: Int, owner id: Int64, _ change: (UInt64) -> UInt64) -> UInt64 {
        let cell = accountCell(slot, .health)
        var seen = cell.pointee.load(ordering: .relaxed)
        while isOwned(slot, by: id) {
            let new = change(seen)
            // Read first: a write each turn would pull the line from cache to cache.
            if new == seen { return new }
            let (isDone, now) = cell.pointee.compareExchange(expected: seen, desired: new, ordering: .relaxed)
            if isDone {
                changed()
                return new
            }
            seen = now
        }
        return 0
    }

    /// Whose the slot is; nil when it never was anybody's.
    public func owner(account slot: Int) -> Int64? {
        let id = Int64(bitPattern: accountCell(slot, .owner).pointee.load(ordering: .acquiring))
        return id == 0 ? nil : id
    }

    func time(_ slot: Int, _ cell: AccountCell) -> WallTime {
        WallTime(milliseconds: Int64(clamping: accountCell(slot, cell).pointee.load(ordering: .relaxed)))
    }

    /// Later than before, also when the clock was set back: whoever compares must see the change.
    func touch(_ slot: Int, _ cell: AccountCell, _ at: WallTime) {
        let cell = accountCell(slot, cell)
        let now = UInt64(clamping: at.milliseconds)
        var seen = cell.pointee.load(ordering: .relaxed)
        while true {
            // A clock that was set back by hours must not hold up what it learns until it has caught up.
            let isAhead = seen > now &+ UInt64(Limits.factDelayMilliseconds)
            let new = isAhead ? now : max(now, seen &+ 1)
            let (isDone, other) = cell.pointee.compareExchange(expected: seen, desired: new, ordering: .relaxed)
            if isDone { return }
            seen = other
        }
    }
}
