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
    private let lane: RecordLane
    /// Place in the journal up to which records have been given to the lane.
    private var sent: UInt64
    private var gatherTimer: LoopTimer!
    private var isGathering = false
    private var pollAt: Instant
    private var isPolling = false
    /// The database was away: a standby that took over may lack the last changes, and count others under the same versions.
    private var mayHaveMoved = false
    private var complainedAt: Instant?
    private(set) var revision = ""
    let isPolled = true

    /// Between two looks at the snapshot's version: a change on another instance is here in less than a second. NOTIFY would be quicker,
    /// but it takes a lock over all commits of the server and needs a session, which poolers do not keep.
    static let pollMilliseconds = 400
    static let complainMilliseconds = 5_000
    /// One worker of an instance says that it serves.
    static let servingMilliseconds = 5_000
    private var servingAt = Instant(nanoseconds: 0)
    private var factsAt = Instant(nanoseconds: 0)
    private var newestFact = WallTime(milliseconds: 0)

    init(_ worker: Worker, _ url: PostgresURL) {
        self.worker = worker
        pool = PostgresPool(worker.loop, PostgresTarget(url), worker.poolLimits)
        lane = RecordLane(worker.loop, pool)
        sent = worker.usageJournal.tail
        pollAt = worker.loop.now
        gatherTimer = LoopTimer(worker.loop) { [unowned self] in
            isGathering = false
            flush()
        }
        lane.failed = { [unowned self] in complain($0) }
        poll()
        flush()
    }

    // MARK: Records

    func turnEnded() {
        let waiting = worker.usageJournal.head &- sent
        guard waiting > 0, lane.hasRoom else { return }
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
        while lane.hasRoom, sent < worker.usageJournal.head {
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
            lane.append(rows.records) { [unowned self] setAside in acknowledged(upTo, count, setAside) }
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
                lane.storesChecksums = Int(facts.revision) ?? 0 >= Schema.checksumRevision
                guard mayHaveMoved || facts.version != worker.snapshot?.version else {
                    seen()
                    return polled()
                }
                loadSnapshot()
            case .failure(let error):
                mayHaveMoved = true
                complain(error)
                polled()
            }
        }
    }

    private func loadSnapshot() {
        let settings = worker.settings
        pool.snapshot(revision: Int(revision) ?? 0, { fingerprint throws(StoreError) in
            try Vault.load(sealedWith: fingerprint, keyPath: settings.keyFile, place: settings.database.url.description)
        }) { [weak self] result in
            guard let self else { return }
            switch result {
            case .success(let snapshot):
                mayHaveMoved = false
                seen()
                worker.snapshotArrived(snapshot)
            case .failure(let error):
                // No time and no other server makes the key right.
                if error.kind == .wrongKey { worker.refuse(error) }
                complain(error)
            }
            polled()
        }
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

    private func tellServing(_ now: Instant, isLeaving: Bool = false) {
        guard worker.position == 0, Int(revision) ?? 0 >= 2 else { return }  // the revision that makes the table
        servingAt = isLeaving ? .never : now.adding(milliseconds: Self.servingMilliseconds)
        // What fails is tried again; health and the log tell about the database elsewhere.
        self.isLeaving = isLeaving
        pool.serving("\(Process.hostName) pid \(Process.parentID)", isLeaving: isLeaving) { [weak self] _ in self?.isLeaving = false }
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
        pool.learn(facts) { [weak self] result in
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
                newestFact = max(newestFact, facts.map(\.at).max() ?? newestFact)
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
        let settings = worker.settings
        pool.renewLogin(
            account: account.id, changedAt: account.changedAt, now: Clock.wall,
            sealed: { fingerprint throws(StoreError) in
                try Vault.load(sealedWith: fingerprint, keyPath: settings.keyFile, place: settings.database.url.description).seal(
                    new, account: account.id)
            }
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
        guard lane.problem == nil else { return }
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
        lane.sweep(now)
        if now >= pollAt { poll() }
        if now >= servingAt { tellServing(now) }
        readFacts(now)
        if lane.hasRoom, sent < worker.usageJournal.head, !isGathering { flush() }
    }
}
