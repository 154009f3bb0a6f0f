import Loop
import SQLiteStore
import Store
import Vocabulary

/// A worker's read-only connections to SQLite. They are opened and used on libuv's thread pool, never on the loop.
final class ReadPool {
    /// A read that takes longer is ended: it keeps one of libuv's few threads, and the log from being reset.
    private static let statementMilliseconds = 5_000

    private let loop: EventLoop
    private let work: WorkQueue
    private let path: String
    private let limits: PoolMachine.Limits
    private var machine: PoolMachine
    private var sessions: [Int: StoreSession] = [:]
    private var callers: [Int: (Result<Int, StoreError>) -> Void] = [:]
    private var nextCaller = 0
    private var lastError: StoreError?

    init(_ loop: EventLoop, path: String, _ limits: PoolMachine.Limits) {
        (self.loop, self.path, self.limits) = (loop, path, limits)
        work = WorkQueue(loop, threadsMax: Limits.readThreadsMax)
        machine = PoolMachine(limits)
    }

    /// The first row of a query that always has one.
    func first<T: Sendable>(_ query: Query<T>, _ done: @escaping (Result<T, StoreError>) -> Void) {
        let caller = nextCaller
        nextCaller += 1
        callers[caller] = { [self] leased in
            switch leased {
            case .failure(let error): done(.failure(error))
            case .success(let id):
                guard let session = sessions[id] else { return done(.failure(StoreError(.other, "database \(path): connection lost"))) }
                work.run({ Result { () throws(StoreError) in try session.rows(query) } }) { [self] result in
                    perform(machine.released(id, now: loop.now))
                    done(result.flatMap { $0.first.map { .success($0) } ?? .failure(StoreError(.other, "database \(path): no answer")) })
                }
            }
        }
        perform(machine.asked(caller: caller, now: loop.now))
    }

    private func perform(_ actions: [PoolMachine.Action]) {
        for action in actions {
            switch action {
            case .open(let id): open(id)
            case .close(let id):
                guard let session = sessions.removeValue(forKey: id) else { continue }
                work.run({ session.close() }) {}
            case .grant(let caller, let id): callers.removeValue(forKey: caller)?(.success(id))
            case .refuse(let caller, let why): callers.removeValue(forKey: caller)?(.failure(refusal(why)))
            }
        }
    }

    private func refusal(_ why: PoolMachine.Refusal) -> StoreError {
        if why == .unopened, let lastError { return lastError }
        return StoreError(
            .poolTimeout,
            "no connection to database \(path) became free within \(limits.waitMilliseconds / 1000) s: \(machine.busyCount) of \(limits.size + limits.overflow) of this worker are in use; raise CODEX_LB_DATABASE_POOL_SIZE or CODEX_LB_DATABASE_MAX_OVERFLOW"
        )
    }

    private func open(_ id: Int) {
        let path = self.path
        work.run({
            Result { () throws(StoreError) in try SQLiteStore.openReadOnly(path: path, statementMilliseconds: Self.statementMilliseconds) }
        }) { [self] result in
            switch result {
            case .success(let session):
                sessions[id] = session
                perform(machine.opened(id, jitter: Double.random(in: 0...1), now: loop.now))
            case .failure(let error):
                lastError = error
                perform(machine.openFailed(id, now: loop.now))
            }
        }
    }

    func sweep(_ now: Instant) { perform(machine.ticked(now)) }
}
