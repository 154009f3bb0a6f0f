import ControlWire
import Logging
import Loop
import Platform
import PostgresStore
import Schema
import Settings
import Store
import Vocabulary

/// The store that workers share directly: brings the journal into PostgreSQL and looks for a newer snapshot there. What was not
/// acknowledged stays in the journal and is sent again; turns never wait for any of it.
final class DatabaseLink: StoreLink {
    private unowned let worker: Worker
    private let pool: PostgresPool
    private let queue: RecordQueue
    private let pins: PinExchange
    /// Place in the journal up to which records have been given to the queue.
    private var sent: UInt64
    private var gatherTimer: LoopTimer!
    private var isGathering = false
    private var pollAt: Instant
    private var isPolling = false
    /// The database was away: a standby that took over may lack the last changes, and count others under the same versions.
    private var mayHaveMoved = false
    private var complainedAt: Instant?
    /// Until the database has told its own.
    private var kept: KeptSnapshot?
    private let startedAt: Instant
    private(set) var revision = ""
    let isPolled = true

    /// Between two looks at the snapshot's version: a change on another instance is here in less than a second. NOTIFY would be quicker,
    /// but it takes a lock over all commits of the server and needs a session, which poolers do not keep.
    static let pollMilliseconds = 400
    static let complainMilliseconds = 5_000
    /// A database that says nothing for so long is away for a worker that starts.
    static let keptAfterMilliseconds = 1_000
    /// One worker of an instance says that it serves.
    static let servingMilliseconds = 5_000
    private var servingAt = Instant(nanoseconds: 0)
    private var factsAt = Instant(nanoseconds: 0)
    private var newestFact = WallTime(milliseconds: 0)

    init(_ worker: Worker, _ url: PostgresURL) {
        self.worker = worker
        pool = PostgresPool(worker.loop, PostgresTarget(url), worker.poolLimits)
        queue = RecordQueue(worker.loop, pool)
        pins = PinExchange(worker, pool, name: Self.instanceName)
        sent = worker.usageJournal.tail
        (startedAt, pollAt) = (worker.loop.now, worker.loop.now)
        gatherTimer = LoopTimer(worker.loop) { [unowned self] in
            isGathering = false
            flush()
        }
        queue.failed = { [unowned self] in complain($0) }
        poll()
        flush()
    }

    // MARK: Records

    func iterationEnded() {
        let waiting = worker.usageJournal.head &- sent
        guard waiting > 0, queue.hasRoom else { return }
        if waiting >= WriterLink.gatherBytes {
            flush()
        } else if !isGathering {
            isGathering = true
            gatherTimer.start(milliseconds: WriterLink.gatherMilliseconds)
        }
    }

    private func flush() {
        // What the records' table looks like is known with the first look.
        guard !revision.isEmpty else { return }
        while queue.hasRoom, sent < worker.usageJournal.head {
            let (entries, end, damaged) = worker.usageJournal.read(from: sent, count: Limits.batchRecordsMax)
            if damaged { worker.log.critical("the journal is damaged: what follows this place is given up", metadata: ["place": "\(end)"]) }
            // The acknowledgement of what could still be read forgets what could not.
            let upTo = damaged ? worker.usageJournal.head : end
            sent = upTo
            var rows = JournalRows()
            rows.append(entries: entries) { hex, error in
                worker.log.critical("a usage record can't be read and is set aside", metadata: ["error": "\(error)", "bytes": "\(hex)"])
            }
            let count = entries.count
            queue.append(rows.records) { [unowned self] setAside in acknowledged(upTo, count, setAside) }
        }
    }

    private func acknowledged(_ end: UInt64, _ count: Int, _ setAside: [UsageRecord]) {
        keep(setAside)
        worker.usageJournal.acknowledge(through: end)
        worker.acknowledged(count)
        seen()
        flush()
    }

    /// What the database refuses for what it holds must not hold up the rest: it goes into a file of its own.
    private func keep(_ refused: [UsageRecord]) {
        guard !refused.isEmpty else { return }
        do throws(SystemError) {
            let path = try Spool.keep(
                refused: refused.map(\.journalBytes), directories: worker.settings.spoolDirectories, now: Clock.wall)
            return worker.log.critical(
                "usage records that the database refuses are kept in a file; try them again with: codex-lb db spool retry",
                metadata: ["records": "\(refused.count)", "file": "\(path)"])
        } catch {
            worker.log.critical("usage records that the database refuses can't be kept in a file", metadata: ["error": "\(error)"])
        }
        for record in refused {
            let hex = record.journalBytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
            worker.log.critical("the database refuses a usage record for what it holds; it is set aside", metadata: ["bytes": "\(hex)"])
        }
    }

    // MARK: Snapshots

    private func poll() {
        guard !isPolling else { return }
        isPolling = true
        pool.facts { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let facts):
                revision = facts.revision
                worker.scoreboard.set(.schemaRevision, Int(facts.revision) ?? 0)
                queue.storesChecksums = Int(facts.revision) ?? 0 >= Schema.checksumRevision
                guard mayHaveMoved || facts.version != worker.snapshot?.version else {
                    seen()
                    return polled()
                }
                loadSnapshot()
            case .failure(let error):
                mayHaveMoved = true
                complain(error)
                beginWithKept()
                polled()
            }
        }
    }

    private func vault(_ fingerprint: String) throws(StoreError) -> Vault {
        try Vault.load(
            sealedWith: fingerprint, keyPath: worker.settings.keyFile, place: worker.settings.database.url.description)
    }

    private func loadSnapshot() {
        var vault: Vault?
        pool.snapshot(
            revision: Int(revision) ?? 0,
            { [self] fingerprint throws(StoreError) in
                let loaded = try self.vault(fingerprint)
                vault = loaded
                return loaded
            }
        ) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let snapshot):
                (mayHaveMoved, kept) = (false, nil)
                seen()
                worker.snapshotArrived(snapshot)
                if let vault { keep(snapshot, vault) }
            case .failure(let error):
                // No time and no other server makes the key right.
                if error.kind == .wrongKey { worker.refuse(error) }
                complain(error)
                beginWithKept()
            }
            polled()
        }
    }

    /// One worker of an instance gives the supervisor what the next one begins with if the database is away then.
    private func keep(_ snapshot: Snapshot, _ vault: Vault) {
        guard worker.position == 0 else { return }
        do throws(StoreError) {
            let sealed = try vault.seal(kept: FrameCodec.bytes(of: SnapshotMessage(snapshot)))
            guard sealed.count < Limits.frameBytesMax - 4096 else {
                return worker.log.warning(
                    "the snapshot is too large for the supervisor to keep: a worker can't begin while the database is away",
                    metadata: ["bytes": "\(sealed.count)"])
            }
            worker.keep(KeptSnapshot(fingerprint: vault.fingerprint, sealed: sealed))
        } catch { worker.log.error("the snapshot can't be sealed for the supervisor to keep", metadata: ["error": "\(error)"]) }
    }

    func keptSnapshotArrived(_ kept: KeptSnapshot) {
        guard worker.snapshot == nil else { return }
        self.kept = kept
        if mayHaveMoved { beginWithKept() }
    }

    /// The database is away: what stood in it when somebody reached it last is better than to serve nobody.
    private func beginWithKept() {
        guard worker.snapshot == nil, let kept else { return }
        self.kept = nil
        do {
            let bytes = try vault(kept.fingerprint).open(kept: kept.sealedBytes)
            let snapshot = try Snapshot(SnapshotMessage(serialized: bytes))
            worker.log.warning(
                "the database is away: beginning with what the worker before served by", metadata: ["version": "\(snapshot.version)"])
            mayHaveMoved = true
            worker.snapshotArrived(snapshot)
        } catch { worker.log.error("the kept snapshot can't be used", metadata: ["error": "\(error)"]) }
    }

    private func polled() {
        isPolling = false
        pollAt = worker.loop.now.adding(milliseconds: Self.pollMilliseconds)
    }

    // MARK: Reads

    func totals(ofKey key: Int64?, _ done: @escaping (Result<UsageTotals, StoreError>) -> Void) {
        pool.rows(Queries.totals(ofKey: key)) { result in done(result.map { $0[0] }) }
    }

    // MARK: Presence

    private(set) var isLeaving = false

    /// As other instances see us.
    private static var instanceName: String { "\(Process.hostName) pid \(Process.parentID)" }
    func learned(_ pin: SharedPin) { pins.learned(pin) }

    private func tellServing(_ now: Instant, isLeaving: Bool = false) {
        guard worker.position == 0, Int(revision) ?? 0 >= 2 else { return }  // the revision that makes the table
        servingAt = isLeaving ? .never : now.adding(milliseconds: Self.servingMilliseconds)
        // What fails is tried again; health and the log tell about the database elsewhere.
        self.isLeaving = isLeaving
        pool.serving(Self.instanceName, isLeaving: isLeaving) { [weak self] _ in self?.isLeaving = false }
    }

    func draining() { tellServing(worker.loop.now, isLeaving: true) }

    // MARK: Accounts

    private var hasFacts: Bool { Int(revision) ?? 0 >= Schema.factsRevision }

    func takeOut(_ order: AccountRemoval) {
        pool.rows(Queries.takeOut(order, now: Clock.wall, hasFacts: hasFacts)) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success: pollAt = worker.loop.now
            case .failure(let error): complain(error)  // the next turn that meets it says so again
            }
        }
    }

    func learn(_ facts: [AccountFact], _ done: @escaping (Bool) -> Void) {
        guard hasFacts else { return done(true) }  // there is no place for them
        pool.learn(facts, now: Clock.wall) { [weak self] result in
            if case .failure(let error) = result { self?.complain(error) }
            if case .success = result { done(true) } else { done(false) }
        }
    }

    /// What other instances have learned; by one worker, for the others see it in memory.
    private func readFacts(_ now: Instant) {
        guard hasFacts, worker.position == 0, now >= factsAt else { return }
        factsAt = now.adding(milliseconds: Limits.factReadMilliseconds)
        let since = WallTime(milliseconds: newestFact.milliseconds - Limits.factDelayMilliseconds)
        pool.rows(Queries.facts(since: since)) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let rows):
                let facts = rows.compactMap { $0 }
                // One of a clock that is ahead must not hide what others tell.
                newestFact = min(max(newestFact, facts.map(\.at).max() ?? newestFact), Clock.wall)
                worker.accounts.restore(facts)
            case .failure(let error): complain(error)
            }
        }
    }

    func claim(_ job: AccountJob, _ account: Account, _ done: @escaping (Bool) -> Void) {
        let holder = "\(Process.hostName) pid \(Process.id)"
        let (name, milliseconds) =
            switch job {
            case .renewal: ("renewal", Limits.renewalClaimMilliseconds)
            case .usage(let milliseconds): ("usage", milliseconds)
            }
        pool.claim("\(name):\(account.id)", account: account.id, changedAt: account.changedAt, holder: holder, milliseconds: milliseconds) {
            [weak self] result in
            switch result {
            case .success(let rows): done(!rows.isEmpty)
            case .failure(let error):
                self?.complain(error)
                done(false)
            }
        }
    }

    func saveLogin(_ account: Account, _ new: Account.Credentials) {
        pool.renewLogin(
            account: account.id, changedAt: account.changedAt, now: Clock.wall,
            sealed: { [self] fingerprint throws(StoreError) in try vault(fingerprint).seal(new, account: account.id) }
        ) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success: pollAt = worker.loop.now
            case .failure(let error): complain(error)  // it is tried again
            }
        }
    }

    // MARK: Health

    /// The database answers; that does not help while it does not take records.
    private func seen() {
        guard queue.problem == nil else { return }
        if complainedAt != nil {
            complainedAt = nil
            worker.log.notice("the database is reached again", metadata: ["journal_bytes": "\(worker.usageJournal.usedBytes)"])
        }
        worker.storeSeen()
    }

    private func complain(_ error: StoreError) {
        let now = worker.loop.now
        guard complainedAt.map({ now.milliseconds(since: $0) >= Self.complainMilliseconds }) ?? true else { return }
        complainedAt = now
        worker.log.error(
            "the database does not serve: turns go on, records wait in the journal",
            metadata: ["error": "\(error)", "journal_bytes": "\(worker.usageJournal.usedBytes)"])
    }

    func sweep(_ now: Instant) {
        pool.sweep(now)
        queue.sweep(now)
        pins.sweep(now, hasTable: Int(revision) ?? 0 >= Schema.pinsRevision)
        if now >= pollAt { poll() }
        if kept != nil, now.milliseconds(since: startedAt) >= Self.keptAfterMilliseconds { beginWithKept() }
        if now >= servingAt { tellServing(now) }
        readFacts(now)
        if queue.hasRoom, sent < worker.usageJournal.head, !isGathering { flush() }
    }
}
