public import Loop
internal import Schema
public import Store
public import Vocabulary

/// A worker's connections to PostgreSQL, on its loop. Everything runs on the loop's thread.
public final class PostgresPool {
    private let loop: EventLoop
    private let target: PostgresTarget
    private let limits: PoolMachine.Limits
    private var machine: PoolMachine
    private var wires: [Int: PostgresPipeline] = [:]
    private var callers: [Int: (Result<Int, StoreError>) -> Void] = [:]
    private var nextCaller = 0
    private var lastError: StoreError?

    /// A statement without an answer for this long costs its connection: the server may be black-holed, where its own time limits
    /// can't reach us.
    public static let statementMilliseconds = 8_000

    public init(_ loop: EventLoop, _ target: PostgresTarget, _ limits: PoolMachine.Limits) {
        (self.loop, self.target, self.limits) = (loop, target, limits)
        machine = PoolMachine(limits)
    }

    var waiterCount: Int { machine.waiterCount }

    /// Gets a connection or, after the pool's time limit, an error.
    func lease(_ done: @escaping (Result<Int, StoreError>) -> Void) {
        let caller = nextCaller
        nextCaller += 1
        callers[caller] = done
        perform(machine.asked(caller: caller, now: loop.now))
    }

    func release(_ id: Int) { perform(machine.released(id, now: loop.now)) }

    func wire(_ id: Int) -> PostgresPipeline? { wires[id] }

    /// The server has become one that can't be worked with: its connections are dropped.
    func evict(_ cause: StoreError) {
        lastError = cause
        perform(machine.condemned(now: loop.now))
    }

    private func perform(_ actions: [PoolMachine.Action]) {
        for action in actions {
            switch action {
            case .open(let id): open(id)
            case .close(let id): wires.removeValue(forKey: id)?.close(lastError)
            case .grant(let caller, let id): callers.removeValue(forKey: caller)?(.success(id))
            case .refuse(let caller, let why): callers.removeValue(forKey: caller)?(.failure(refusal(why)))
            }
        }
    }

    private func refusal(_ why: PoolMachine.Refusal) -> StoreError {
        let seconds = limits.waitMilliseconds / 1000
        switch why {
        case .unopened: return lastError ?? StoreError(.unreachable, "\(target.url) can't be reached")
        case .timeout, .tooManyWaiters:
            return StoreError(
                .poolTimeout,
                "no connection to \(target.url) became free within \(seconds) s: \(machine.busyCount) of \(limits.size + limits.overflow) of this worker are in use, \(machine.waiterCount) callers wait; raise CODEX_LB_DATABASE_POOL_SIZE or CODEX_LB_DATABASE_MAX_OVERFLOW"
            )
        }
    }

    private func open(_ id: Int) {
        let wire = PostgresPipeline(loop, target)
        wires[id] = wire
        wire.connect { [weak self] error in
            guard let self else { return }
            if let error {
                lastError = error
                wires[id] = nil
                return perform(machine.openFailed(id, now: loop.now))
            }
            wire.lost = { [weak self] error in
                guard let self else { return }
                lastError = error
                wires[id] = nil
                perform(machine.broke(id, now: loop.now))
            }
            perform(machine.opened(id, jitter: Double.random(in: 0...1), now: loop.now))
        }
    }

    /// Runs the statements on a connection of their own; `done` once.
    func run(_ statements: [PostgresStatement], milliseconds: Int, _ done: @escaping (Result<[PostgresResult], StoreError>) -> Void) {
        lease { [self] leased in
            switch leased {
            case .failure(let error): done(.failure(error))
            case .success(let id):
                guard let wire = wires[id] else { return done(.failure(StoreError(.unreachable, "\(target.url): the connection is lost"))) }
                wire.send(statements, milliseconds: milliseconds) { [self] answer in
                    if case .failure(let error) = answer, PostgresFailure.evicts(error.kind) { evict(error) }
                    release(id)
                    done(answer)
                }
            }
        }
    }

    /// Rows of one query.
    public func rows<T>(
        _ query: Query<T>, milliseconds: Int = statementMilliseconds, _ done: @escaping (Result<[T], StoreError>) -> Void
    ) {
        run([PostgresStatement(query)], milliseconds: milliseconds) { answer in
            do throws(StoreError) { done(.success(try answer.get()[0].rows(query.decode))) } catch { done(.failure(error)) }
        }
    }

    /// Says that an instance serves from the database, for `PostgresStore.servingMilliseconds`; with `isLeaving` that it does no more. Rows of
    /// instances that were never heard of again go after an hour.
    public func serving(_ instance: String, isLeaving: Bool, _ done: @escaping (Result<[Int64], StoreError>) -> Void) {
        let now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
        let query = Query<Int64>(
            """
            WITH old AS (DELETE FROM leases WHERE name LIKE 'serving:%' AND name <> $1 AND expires_at_ms < \(now) - 3600000)
            INSERT INTO leases (name, holder, epoch, expires_at_ms, done_at_ms) VALUES ($1, $2, 1, \(now) + $3, 0)
            ON CONFLICT (name) DO UPDATE SET expires_at_ms = \(now) + $3 RETURNING epoch
            """,
            [.text("serving:" + instance), .text(instance), .int(isLeaving ? 0 : PostgresStore.servingMilliseconds)]
        ) { $0.int(0) }
        rows(query, done)
    }

    /// Keeps facts of accounts, each unless a later one is there.
    public func learn(_ facts: [AccountFact], now: WallTime, _ done: @escaping (Result<Void, StoreError>) -> Void) {
        run(facts.map { PostgresStatement(Queries.learn($0, now: now)) }, milliseconds: Self.statementMilliseconds) { answer in
            done(answer.map { _ in })
        }
    }

    /// Takes the right to a job for an account, which is called `name`, for so long: one row, if nobody has it and the account is as it was at
    /// `changedAt`.
    public func claim(
        _ name: String, account: Int64, changedAt: WallTime, holder: String, milliseconds: Int,
        _ done: @escaping (Result<[Int64], StoreError>) -> Void
    ) {
        let now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
        let query = Query<Int64>(
            """
            INSERT INTO leases (name, holder, epoch, expires_at_ms, done_at_ms)
            SELECT $1, $2, 1, \(now) + $3, 0 FROM accounts WHERE id = $4 AND changed_at_ms = $5 AND removed_at_ms IS NULL
            ON CONFLICT (name) DO UPDATE SET holder = $2, epoch = leases.epoch + 1, expires_at_ms = \(now) + $3
              WHERE leases.expires_at_ms < \(now)
            RETURNING epoch
            """,
            [.text(name), .text(holder), .int(Int64(milliseconds)), .int(account), .int(changedAt.milliseconds)]
        ) { $0.int(0) }
        rows(query, done)
    }

    /// New tokens for a login that was refreshed, if the account is as it was at `changedAt`. `sealed` gets the fingerprint of the key that
    /// the store is sealed with.
    public func renewLogin(
        account id: Int64, changedAt: WallTime, now: WallTime,
        sealed: @escaping (_ fingerprint: String) throws(StoreError) -> [UInt8], _ done: @escaping (Result<[Int64], StoreError>) -> Void
    ) {
        rows(Queries.keyFingerprint) { [weak self] result in
            guard let self else { return }
            let blob: [UInt8]
            let fingerprint: String
            do throws(StoreError) {
                fingerprint = try result.get().first ?? ""
                blob = try sealed(fingerprint)
            } catch {
                return done(.failure(error))
            }
            // A key that is rotated between the two statements must not leave a row that the new one does not open.
            let query = Query<Int64>(
                """
                WITH v AS (
                    UPDATE state SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE key = 'snapshot_version' RETURNING value
                )
                UPDATE accounts SET credentials = $1, changed_at_ms = $2
                WHERE id = $3 AND changed_at_ms = $4 AND removed_at_ms IS NULL AND EXISTS (SELECT 1 FROM v)
                  AND EXISTS (SELECT 1 FROM state WHERE key = 'key_fingerprint' AND value = $5) RETURNING id
                """,
                [
                    .blob(blob), .int(now.after(changedAt).milliseconds), .int(id), .int(changedAt.milliseconds),
                    .text(fingerprint),
                ]
            ) { $0.int(0) }
            rows(query, done)
        }
    }

    /// The snapshot's version and the schema's revision, of this moment.
    public func facts(_ done: @escaping (Result<(version: Int64, revision: String), StoreError>) -> Void) {
        run([PostgresStatement(Queries.version), PostgresStatement(Queries.revision)], milliseconds: Self.statementMilliseconds) { answer in
            do throws(StoreError) {
                let results = try answer.get()
                done(
                    .success(
                        (
                            try results[0].rows(Queries.version.decode).first ?? 0,
                            try results[1].rows(Queries.revision.decode).first ?? ""
                        )))
            } catch {
                done(.failure(error))
            }
        }
    }

    /// A snapshot of one moment. Every change raises the version in its own transaction: what is read between two equal versions belongs
    /// together, without a transaction that an error would leave open on a pooled connection. `revision`: of its schema. `vault` gets the
    /// fingerprint of the key that the database is sealed with. Facts have no version: they are as they were a moment later.
    public func snapshot(
        revision: Int, _ vault: @escaping (_ fingerprint: String) throws(StoreError) -> Vault, tries: Int = snapshotTriesMax,
        _ done: @escaping (Result<Snapshot, StoreError>) -> Void
    ) {
        let (accounts, keys) = (Queries.accounts(revision: revision), Queries.clientKeys(validOnly: false))
        let statements = [
            PostgresStatement(Queries.version), PostgresStatement(Queries.keyFingerprint), PostgresStatement(accounts),
            PostgresStatement(keys), PostgresStatement(Queries.pepper), PostgresStatement(Queries.settings),
            PostgresStatement(Queries.version),
        ]
        let (facts, withFacts) = (Queries.facts(), revision >= Schema.factsRevision)
        let all = statements + (withFacts ? [PostgresStatement(facts)] : [])
        run(all, milliseconds: Self.statementMilliseconds) { [self] answer in
            do throws(StoreError) {
                let r = try answer.get()
                let version = try r[0].rows(Queries.version.decode).first
                guard try r[6].rows(Queries.version.decode).first == version else {
                    guard tries > 1 else { throw StoreError(.conflict, "\(target.url): accounts and keys change all the time") }
                    return snapshot(revision: revision, vault, tries: tries - 1, done)
                }
                let fingerprint = try r[1].rows(Queries.keyFingerprint.decode).first ?? ""
                done(
                    .success(
                        try vault(fingerprint).snapshot(
                            version: version, accounts: r[2].rows(accounts.decode), keys: r[3].rows(keys.decode),
                            pepper: r[4].rows(Queries.pepper.decode).first, settings: r[5].rows(Queries.settings.decode),
                            facts: withFacts ? r[7].rows(facts.decode).compactMap { $0 } : [])))
            } catch {
                done(.failure(error))
            }
        }
    }
    public static let snapshotTriesMax = 10

    /// Time limits of callers, connections and requests; to be called some times a second.
    public func sweep(_ now: Instant) {
        for wire in wires.values { wire.sweep(now) }
        perform(machine.ticked(now))
    }
}
