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
    private static let accountCells = AccountCell.modelQuotas.rawValue + Limits.modelQuotasMax
    private static let workersOffset = 128  // the layout's version and fifteen facts before it
    private static let accountsOffset = workersOffset + Limits.rowsMax * workerCells * 8
    /// Row by row, so that a process counts in cache lines, and pages, of its own.
    private static let inFlightOffset = accountsOffset + Limits.accountsMax * accountCells * 8
    private static let pinsOffset = inFlightOffset + Limits.rowsMax * Limits.accountsMax * 8
    public static let memoryBytes = pinsOffset + PinTable.memoryBytes

    /// What lies where. To be counted up with every change of it: builds of two versions never write one memory.
    public static let layoutVersion = 6

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
        precondition(memory.bytes.count == Self.memoryBytes && Fact.allCases.count * 8 <= Self.workersOffset)
        precondition(
            Counter.allCases.count <= Self.histogramStart && Self.histogramStart + Self.firstByteBounds.count + 2 <= Self.workerCells)
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
        case primaryQuota, secondaryQuota, monthlyQuota, credits, plan
        /// When the figures before it were learned, milliseconds since 1970.
        case quotaAt
        /// When cooldown and trouble were.
        case healthAt
        case trouble
        /// Errors of its upstream: `AccountHealth`'s word.
        case health
        /// The first of `Limits.modelQuotasMax`.
        case modelQuotas
    }

    func accountCell(_ slot: Int, _ cell: AccountCell, _ index: Int = 0) -> Cell {
        (base + Self.accountsOffset + (slot * Self.accountCells + cell.rawValue + index) * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }
    private func inFlightCell(_ account: Int, _ row: Int) -> Cell {
        (base + Self.inFlightOffset + (row * Limits.accountsMax + account) * 8).assumingMemoryBound(to: Atomic<UInt64>.self)
    }

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
        /// Turns of the writer's loop, as `Counter.heartbeat` is a worker's.
        case writerHeartbeat
        /// Log lines that supervisor and writer could not write; workers count their own.
        case logLinesDropped
        /// In files, until somebody has them tried again.
        case recordsRefused
        /// Bytes of SQLite's log while a reader keeps it from being emptied and it is beyond its limit; else 0.
        case logHeldBytes
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
        for account in 0..<Limits.accountsMax { inFlightCell(account, slot).pointee.store(0, ordering: .relaxed) }
    }

    // Accounts

    /// Gives a slot to `account`; a slot that had another owner forgets its cooldown.
    public func claim(account slot: Int, owner id: Int64) {
        let now = UInt64(bitPattern: id)
        let before = accountCell(slot, .owner).pointee.exchange(now, ordering: .acquiringAndReleasing)
        if before != now {
            for index in 1..<Self.accountCells { accountCell(slot, .owner, index).pointee.store(0, ordering: .relaxed) }
        }
    }
    /// Turns that all workers have open on the account.
    public func inFlight(account slot: Int) -> Int {
        (0..<rows(.rowsInUse)).reduce(0) { $0 &+ Self.shown(inFlightCell(slot, $1).pointee.load(ordering: .relaxed)) }
    }
    public func turnStarted(account slot: Int, worker: Int, now: Instant) {
        inFlightCell(slot, worker).pointee.wrappingAdd(1, ordering: .relaxed)
        accountCell(slot, .lastUsed).pointee.store(now.nanoseconds, ordering: .relaxed)
    }
    public func turnEnded(account slot: Int, worker: Int) {
        inFlightCell(slot, worker).pointee.wrappingSubtract(1, ordering: .relaxed)
    }
    public func lastUsed(account slot: Int) -> Instant { Instant(nanoseconds: accountCell(slot, .lastUsed).pointee.load(ordering: .relaxed)) }
    /// It could not be reached; how often in a row by now. Turns that fail together while it cools down already count once.
    public func unreachable(account slot: Int, owner id: Int64, now: Instant) -> Int {
        let cell = accountCell(slot, .failures)
        guard isOwned(slot, by: id) else { return 1 }
        guard cooldown(account: slot, owner: id, now: now) == nil else { return max(1, failures(account: slot)) }
        return Int(clamping: cell.pointee.wrappingAdd(1, ordering: .relaxed).newValue)
    }
    /// Failures to connect since it was reached last.
    public func failures(account slot: Int) -> Int { Int(clamping: accountCell(slot, .failures).pointee.load(ordering: .relaxed)) }
    public func reached(account slot: Int) {
        let cell = accountCell(slot, .failures)
        // Read first: a write each turn would pull the line from cache to cache.
        if cell.pointee.load(ordering: .relaxed) != 0 { cell.pointee.store(0, ordering: .relaxed) }
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
