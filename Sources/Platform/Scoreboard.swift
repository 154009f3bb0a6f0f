internal import Synchronization
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// What all processes count together, in one shared memory of fixed slots. Advisory: whatever stands in it, no record is lost.
///
/// Arithmetic wraps: the memory outlives every worker, and a number in it that nobody can count with must not end those who read it.
/// A row belongs to one process of the fleet, from its start until its records are home: that process alone writes it, and the supervisor
/// clears what was open in it when the process is dead. Cooldowns are written by whoever learns of one.
public struct Scoreboard: @unchecked Sendable {  // atomics only
    /// Counters of one worker. `rawValue` is the cell's number; sums over workers are what `/metrics` shows.
    public enum Counter: Int, CaseIterable, Sendable {
        case heartbeat, openConnections, acceptedConnections, turnsOpen, turnsFinished, turnsFailed, failovers, retries
        case requestBytes, responseBytes, inputTokens, outputTokens, recordsJournaled, recordsAcknowledged, journalBytes
        case admissionRefused, clientsGone, upstreamConnects, upstreamReused, keepaliveComments, snapshotVersion, ready
        case status2xx, status4xx, status5xx
        /// Milliseconds of the monotonic clock when the store last acknowledged or a fresh snapshot came.
        case storeSeenMilliseconds
        /// Bytes of bodies and of what nobody has taken yet.
        case bufferedBytes
        /// Log lines that could not be written.
        case logLinesDropped
    }
    /// Upper bounds of the first-byte histogram, milliseconds; one more cell counts what is above.
    public static let firstByteBounds = [1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000]

    private static let workerCells = 64  // counters, then the histogram, rounded up
    private static let histogramStart = 40
    /// What the row's process is about to do to an account's turns: the account's slot and 1, or 0.
    private static let intentCell = 63
    /// Three cache lines; what every choice reads stands in the first.
    private static let accountCells = 24
    /// After the layout's version and fifteen facts; in a line of its own, since every turn counts it up.
    private static let changesOffset = 128
    private static let workersOffset = 192
    private static let accountsOffset = workersOffset + Limits.rowsMax * workerCells * 8
    /// Row by row, so that a process counts in cache lines, and pages, of its own.
    private static let inFlightOffset = accountsOffset + Limits.accountsMax * accountCells * 8
    private static let pinsOffset = inFlightOffset + Limits.rowsMax * Limits.accountsMax * 4
    public static let memoryBytes = pinsOffset + PinTable.memoryBytes

    /// What lies where. To be counted up with every change of it: builds of two versions never write one memory.
    public static let layoutVersion = 10

    private let base: UnsafeMutableRawPointer

    /// A memory that another build has laid out is refused.
    public init(inherited memory: SharedMemory) throws(SystemError) {
        self.init(memory)
        guard value(.layoutVersion) == Self.layoutVersion else {
            throw SystemError(
                EPROTO, "the scoreboard has layout \(value(.layoutVersion)), this build knows \(Self.layoutVersion)")
        }
    }

    /// Lays a fresh memory out.
    public init(fresh memory: SharedMemory) {
        self.init(memory)
        set(.layoutVersion, Self.layoutVersion)
    }

    private init(_ memory: SharedMemory) {
        precondition(memory.bytes.count == Self.memoryBytes && Fact.allCases.count * 8 <= Self.changesOffset)
        precondition(
            Counter.allCases.count <= Self.histogramStart && Self.histogramStart + Self.firstByteBounds.count + 2 <= Self.intentCell)
        base = memory.bytes.baseAddress!
    }

    typealias Cell = UnsafeMutablePointer<Atomic<UInt64>>
    private func workerCell(_ slot: Int, _ index: Int) -> Cell {
        (base + Self.workersOffset + (slot * Self.workerCells + index) * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    /// What stands in an account's cells, one word each.
    enum AccountCell: Int {
        case owner, cooldown, lastUsed
        /// Failures to connect in a row.
        case failures
        case renewal
        case primaryQuota, secondaryQuota
        /// Open on it: `acquire`.
        case turns
        case monthlyQuota
        /// Errors of its upstream: `AccountHealth`'s word.
        case health
        case credits, plan
        /// When the figures before it were learned, milliseconds since 1970.
        case quotaAt
        /// When cooldown and trouble were.
        case healthAt
        case trouble
        /// The first of `Limits.modelQuotasMax`.
        case modelQuotas
    }

    func accountCell(_ slot: Int, _ cell: AccountCell, _ index: Int = 0) -> Cell {
        (base + Self.accountsOffset + (slot * Self.accountCells + cell.rawValue + index) * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    /// A row's share of the account's turns.
    private func shareCell(_ account: Int, _ row: Int) -> UnsafeMutablePointer<Atomic<UInt32>> {
        (base + Self.inFlightOffset + (row * Limits.accountsMax + account) * 4).assumingMemoryBound(to: Atomic<UInt32>.self)
    }

    /// Rises with all that a choice among accounts depends on: whoever saw it stand still need not look again.
    public var accountChanges: UInt64 { changes.pointee.load(ordering: .acquiring) }
    @discardableResult func changed() -> UInt64 { changes.pointee.wrappingAdd(1, ordering: .releasing).newValue }
    private var changes: Cell { (base + Self.changesOffset).assumingMemoryBound(to: Atomic<UInt64>.self) }

    /// Which conversation belongs to which account.
    public var pins: PinTable { PinTable(base + Self.pinsOffset) }

    // The instance

    /// Facts of the whole instance, written by whoever learns of them.
    public enum Fact: Int, CaseIterable, Sendable {
        case layoutVersion
        /// Rows below this one may have something open; rows below the other have ever been used, so that sums need not visit all.
        case rowsInUse, rowsEver
        /// Number of the schema's revision; 0 when it is not known yet.
        case schemaRevision
        /// What the check after the start found: `CheckResult`.
        case checkResult
        /// Iterations of the writer's loop, as `Counter.heartbeat` is a worker's.
        case writerHeartbeat
        /// Log lines that supervisor and writer could not write; workers count their own.
        case logLinesDropped
        /// In files, until somebody has them tried again.
        case recordsRefused
        /// Bytes of SQLite's log while a reader keeps it from being emptied and it is beyond its limit; else 0.
        case logHeldBytes
        /// That serve from the database beside this one, as its first worker has seen lately.
        case otherInstances
        /// 1 once some account has a quota of a single model.
        case modelQuotas
    }
    public enum CheckResult: Int, Sendable { case none, running, good, damaged, failed }

    public func value(_ fact: Fact) -> Int { Int(truncatingIfNeeded: factCell(fact).pointee.load(ordering: .relaxed)) }
    public func set(_ fact: Fact, _ value: Int) { factCell(fact).pointee.store(UInt64(bitPattern: Int64(value)), ordering: .relaxed) }
    public func add(_ fact: Fact, _ amount: Int = 1) {
        factCell(fact).pointee.wrappingAdd(UInt64(bitPattern: Int64(amount)), ordering: .relaxed)
    }
    private func factCell(_ fact: Fact) -> Cell { (base + fact.rawValue * 8).assumingMemoryBound(to: Atomic<UInt64>.self) }
    public var checkResult: CheckResult { CheckResult(rawValue: value(.checkResult)) ?? .none }

    // Workers

    /// The first worker whose records, or, when the store `isPolled`, whose questions, the store has not answered for
    /// `Limits.storeSilentMilliseconds`: the one truth for health, metrics, status and the service manager, whichever process is asked.
    public func isStoreAway(now: Instant, isPolled: Bool) -> Bool {
        let now = Int(now.nanoseconds / 1_000_000)
        return (0..<rows(.rowsInUse)).contains { slot in
            guard value(.ready, worker: slot) == 1, isPolled || value(.journalBytes, worker: slot) > 0 else { return false }
            return now - value(.storeSeenMilliseconds, worker: slot)
                > (isPolled ? Limits.storePolledSilentMilliseconds : Limits.storeSilentMilliseconds)
        }
    }

    public func add(_ counter: Counter, worker slot: Int, _ amount: Int = 1) {
        workerCell(slot, counter.rawValue).pointee.wrappingAdd(UInt64(bitPattern: Int64(amount)), ordering: .relaxed)
    }
    public func set(_ counter: Counter, worker slot: Int, _ value: Int) {
        workerCell(slot, counter.rawValue).pointee.store(UInt64(bitPattern: Int64(value)), ordering: .relaxed)
    }
    public func value(_ counter: Counter, worker slot: Int) -> Int {
        Self.shown(workerCell(slot, counter.rawValue).pointee.load(ordering: .relaxed))
    }
    public func sum(_ counter: Counter) -> Int {
        (0..<rows(.rowsEver)).reduce(0) { $0 &+ value(counter, worker: $1) }
    }

    /// Rows of workers that serve.
    public func forEachReady(_ body: (Int) -> Void) {
        for slot in 0..<rows(.rowsInUse) where value(.ready, worker: slot) == 1 { body(slot) }
    }

    /// Nothing is counted below zero: a cell that says so has been cleared under somebody's hands.
    private static func shown(_ cell: UInt64) -> Int { max(0, Int(Int64(bitPattern: cell))) }
    private func rows(_ fact: Fact) -> Int { min(max(0, value(fact)), Limits.rowsMax) }

    /// A process gets the row, or the highest row in use has changed.
    public func setRows(inUse count: Int) {
        set(.rowsInUse, count)
        if count > value(.rowsEver) { set(.rowsEver, count) }
    }

    /// Counts a time to first byte; the sum of all is kept in the cell after the buckets.
    public func observeFirstByte(milliseconds: Int, worker slot: Int) {
        let bucket = Self.firstByteBounds.firstIndex { milliseconds <= $0 } ?? Self.firstByteBounds.count
        workerCell(slot, Self.histogramStart + bucket).pointee.wrappingAdd(1, ordering: .relaxed)
        workerCell(slot, Self.histogramStart + Self.firstByteBounds.count + 1).pointee.wrappingAdd(
            UInt64(max(0, milliseconds)), ordering: .relaxed)
    }
    /// Counts per bucket (not cumulative) over all workers, the last one unbounded, and the sum in milliseconds.
    public var firstByteHistogram: (counts: [Int], sumMilliseconds: Int) {
        func total(_ index: Int) -> Int {
            (0..<rows(.rowsEver)).reduce(0) {
                $0 &+ Self.shown(workerCell($1, Self.histogramStart + index).pointee.load(ordering: .relaxed))
            }
        }
        return ((0...Self.firstByteBounds.count).map(total), total(Self.firstByteBounds.count + 1))
    }

    /// The row's process is dead, or its next one begins: what was open is closed now. Totals stay, so that counters never fall.
    public func close(row slot: Int) {
        for counter in [Counter.openConnections, .turnsOpen, .ready, .bufferedBytes, .journalBytes] { set(counter, worker: slot, 0) }
        for account in 0..<Limits.accountsMax {
            let share = shareCell(account, slot).pointee.exchange(0, ordering: .acquiringAndReleasing)
            if share > 0 { addTurns(account, -Int(share)) }
        }
        // What it was in the middle of is found by `reconcile`.
        workerCell(slot, Self.intentCell).pointee.store(0, ordering: .releasing)
        changed()
    }

    // Accounts

    /// Gives a slot to `account`; a slot that had another owner forgets its cooldown.
    public func claim(account slot: Int, owner id: Int64) {
        let now = UInt64(bitPattern: id)
        let before = accountCell(slot, .owner).pointee.exchange(now, ordering: .acquiringAndReleasing)
        if before != now {
            for index in 1..<Self.accountCells where index != AccountCell.turns.rawValue {
                accountCell(slot, .owner, index).pointee.store(0, ordering: .relaxed)
            }
            changed()
        }
    }

    // Turns open on an account: their total, which decides, and beside it each row's share, by which a dead worker's turns are taken back. The
    // total is one word, the number in its lower half and in its upper half one that rises with each change. A row says in its intent cell
    // which account it is about to change, so that whoever compares the two knows when it may.

    private static let turnsStep: UInt64 = 1 << 32
    private static func turns(_ word: UInt64) -> Int { Int(word & 0xFFFF_FFFF) }

    /// Turns that all workers have open on the account.
    public func inFlight(account slot: Int) -> Int { Self.turns(accountCell(slot, .turns).pointee.load(ordering: .relaxed)) }

    /// A turn of the row begins on the account, unless `cap` of all workers are open there: then nil, else what `accountChanges` is by it. Only
    /// the row's own process may call it.
    public func acquire(account slot: Int, worker row: Int, cap: Int, now: Instant) -> UInt64? {
        let intent = workerCell(row, Self.intentCell)
        intent.pointee.store(UInt64(slot) + 1, ordering: .releasing)
        defer { intent.pointee.store(0, ordering: .releasing) }
        let total = accountCell(slot, .turns)
        var seen = total.pointee.load(ordering: .relaxed)
        while true {
            guard Self.turns(seen) < min(cap, Int(UInt32.max)) else { return nil }
            let (isDone, now) = total.pointee.compareExchange(
                expected: seen, desired: seen &+ Self.turnsStep &+ 1, ordering: .acquiringAndReleasing)
            if isDone { break }
            seen = now
        }
        shareCell(slot, row).pointee.wrappingAdd(1, ordering: .releasing)
        accountCell(slot, .lastUsed).pointee.store(now.nanoseconds, ordering: .relaxed)
        return changed()
    }

    /// A turn of the row has left the account. The same.
    @discardableResult public func release(account slot: Int, worker row: Int) -> UInt64? {
        let intent = workerCell(row, Self.intentCell)
        intent.pointee.store(UInt64(slot) + 1, ordering: .releasing)
        defer { intent.pointee.store(0, ordering: .releasing) }
        let share = shareCell(slot, row)
        guard share.pointee.load(ordering: .relaxed) > 0 else { return nil }  // cleared under our hands, and taken from the total with it
        share.pointee.wrappingSubtract(1, ordering: .releasing)
        addTurns(slot, -1)
        return changed()
    }

    private func addTurns(_ slot: Int, _ amount: Int) {
        let total = accountCell(slot, .turns)
        var seen = total.pointee.load(ordering: .relaxed)
        while true {
            let count = UInt64(min(max(0, Self.turns(seen) + amount), Int(UInt32.max)))
            let desired = (seen &+ Self.turnsStep) & ~0xFFFF_FFFF | count
            let (isDone, now) = total.pointee.compareExchange(expected: seen, desired: desired, ordering: .acquiringAndReleasing)
            if isDone { return }
            seen = now
        }
    }

    /// Makes totals what the shares say: a process that was killed between the two has left one turn too many. Gives how many accounts were
    /// mended. For the supervisor; an account that somebody is changing at this moment is left for the next time.
    public func reconcile() -> Int {
        let mended = (0..<Limits.accountsMax).count { inFlight(account: $0) > 0 && reconcile(account: $0) }
        if mended > 0 { changed() }
        return mended
    }

    /// Whoever begins a change after the total was read makes the exchange fail; whoever had begun before is seen by its intent, before or
    /// after its share was counted.
    private func reconcile(account slot: Int) -> Bool {
        let total = accountCell(slot, .turns)
        let seen = total.pointee.load(ordering: .acquiring)
        guard !isBeingChanged(slot) else { return false }
        let sum = (0..<rows(.rowsInUse)).reduce(0) { $0 + Int(shareCell(slot, $1).pointee.load(ordering: .acquiring)) }
        guard sum != Self.turns(seen), !isBeingChanged(slot) else { return false }
        let desired = (seen &+ Self.turnsStep) & ~0xFFFF_FFFF | UInt64(min(sum, Int(UInt32.max)))
        return total.pointee.compareExchange(expected: seen, desired: desired, ordering: .acquiringAndReleasing).exchanged
    }

    private func isBeingChanged(_ slot: Int) -> Bool {
        (0..<rows(.rowsInUse)).contains { workerCell($0, Self.intentCell).pointee.load(ordering: .acquiring) == UInt64(slot) + 1 }
    }

    /// For tests: the row's process dies in the middle of a change, after the total.
    package func dieInAcquire(account slot: Int, worker row: Int) {
        workerCell(row, Self.intentCell).pointee.store(UInt64(slot) + 1, ordering: .releasing)
        addTurns(slot, 1)
    }

    public func lastUsed(account slot: Int) -> Instant {
        Instant(nanoseconds: accountCell(slot, .lastUsed).pointee.load(ordering: .relaxed))
    }

    /// It could not be reached; how often in a row by now. Turns that fail together while it cools down already count once.
    public func unreachable(account slot: Int, owner id: Int64, now: Instant) -> Int {
        let cell = accountCell(slot, .failures)
        guard isOwned(slot, by: id) else { return 1 }
        guard cooldown(account: slot, owner: id, now: now) == nil else { return max(1, failures(account: slot)) }
        defer { changed() }
        return Int(clamping: cell.pointee.wrappingAdd(1, ordering: .relaxed).newValue)
    }
    /// Failures to connect since it was reached last.
    public func failures(account slot: Int) -> Int { Int(clamping: accountCell(slot, .failures).pointee.load(ordering: .relaxed)) }
    public func reached(account slot: Int) {
        let cell = accountCell(slot, .failures)
        // Read first: a write each turn would pull the line from cache to cache.
        guard cell.pointee.load(ordering: .relaxed) != 0 else { return }
        cell.pointee.store(0, ordering: .relaxed)
        changed()
    }

    /// Who may refresh an account's login, in one word: until when somebody has the right to it or it is left alone, and for which state of the
    /// account. A worker that has not heard of the new tokens yet must not use the old ones again.
    private struct RenewalClaim {
        var isPause: Bool
        /// Of the monotonic clock, rounded up; 31 bits.
        var untilSeconds: UInt64
        /// The account's `changedAt` in steps of 64 ms, the low 32 bits: which of two states is the newer one can be told within four years.
        var changed: UInt32

        init(isPause: Bool, until: Instant, changedAt: WallTime) {
            self.isPause = isPause
            untilSeconds = min((until.nanoseconds + 999_999_999) / 1_000_000_000, 0x7FFF_FFFF)
            changed = UInt32(truncatingIfNeeded: changedAt.milliseconds >> 6)
        }
        init(cell: UInt64) {
            (isPause, untilSeconds) = (cell >> 63 == 1, cell >> 32 & 0x7FFF_FFFF)
            changed = UInt32(truncatingIfNeeded: cell)
        }
        var cell: UInt64 { (isPause ? 1 << 63 : 0) | untilSeconds << 32 | UInt64(changed) }

        /// What a claim meets in the cell lets it pass.
        func yields(to new: RenewalClaim, now: Instant) -> Bool {
            let age = Int32(bitPattern: new.changed &- changed)
            if age < 0 { return false }  // of a state that is over
            if untilSeconds <= now.nanoseconds / 1_000_000_000 { return true }
            return isPause && age > 0
        }
    }

    /// Takes the right to refresh the login of the account as it was at `changedAt`, until whoever takes it must be dead. False: somebody has it,
    /// it is left alone, or it was refreshed since.
    public func claimRenewal(account slot: Int, owner id: Int64, changedAt: WallTime, now: Instant, until: Instant) -> Bool {
        let cell = accountCell(slot, .renewal)
        let seen = cell.pointee.load(ordering: .relaxed)
        let new = RenewalClaim(isPause: false, until: until, changedAt: changedAt)
        guard isOwned(slot, by: id), seen == 0 || RenewalClaim(cell: seen).yields(to: new, now: now) else { return false }
        return cell.pointee.compareExchange(expected: seen, desired: new.cell, ordering: .acquiringAndReleasing).exchanged
    }
    /// Nobody tries before that, unless the account has changed.
    public func pauseRenewal(account slot: Int, owner id: Int64, changedAt: WallTime, until: Instant) {
        guard isOwned(slot, by: id) else { return }
        accountCell(slot, .renewal).pointee.store(
            RenewalClaim(isPause: true, until: until, changedAt: changedAt).cell, ordering: .releasing)
    }

    func isOwned(_ slot: Int, by id: Int64) -> Bool {
        accountCell(slot, .owner).pointee.load(ordering: .acquiring) == UInt64(bitPattern: id)
    }
}
