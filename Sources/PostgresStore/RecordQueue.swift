public import Loop
public import Store
public import Vocabulary

/// Brings batches of usage records into the database over one leased connection, several on their way at a time, and answers them in
/// their order. A batch is one statement and so one transaction, and can be repeated: its records have ids.
///
/// Everything runs on the loop's thread.
public final class RecordQueue {
    /// Batches sent and not yet answered.
    public static let depthMax = 8
    /// The connection goes back to the pool after this long without a batch.
    static let idleMilliseconds = 5_000
    static let retryMillisecondsMax = 2_000

    private struct Batch {
        var records: [StoredRecord]
        var isSent = false
        /// Goes in piece by piece over other connections than the queue's.
        var isApart = false
        /// Nil while it is on its way.
        var outcome: Outcome?
        var done: (_ setAside: [UsageRecord]) -> Void
        var isOnItsWay: Bool { isSent && !isApart && outcome == nil }
    }
    private enum Outcome {
        case stored
        case setAside([UsageRecord])
    }

    private let loop: EventLoop
    private let pool: PostgresPool
    private var batches: [Batch] = []
    private var first = 0  // number of batches[0]
    private var leased: Int?
    private var isLeasing = false
    private var usedAt: Instant
    private var retryAt: Instant
    private var retryMilliseconds = 50
    /// Why the batch in front is not stored yet; nil when all goes well.
    public private(set) var problem: StoreError?
    /// Whether the schema has checksums of records. It may get them while the queue is in use.
    public var storesChecksums = true
    /// An error of a batch that will be tried again.
    public var failed: (StoreError) -> Void = { _ in }

    public init(_ loop: EventLoop, _ pool: PostgresPool) {
        (self.loop, self.pool) = (loop, pool)
        (usedAt, retryAt) = (loop.now, loop.now)
    }

    public var hasRoom: Bool { batches.count < Self.depthMax }

    /// Stores the records. `done` is called once, when they are durable, in the order of the calls; it gets those that the database
    /// refuses for what they are, alone, and that are given up. A batch without records only waits for its turn.
    public func append(_ records: [UsageRecord], _ done: @escaping (_ setAside: [UsageRecord]) -> Void) {
        guard !records.isEmpty else {
            batches.append(Batch(records: [], isSent: true, outcome: .stored, done: done))
            return answer()
        }
        batches.append(Batch(records: records.map { StoredRecord(sealing: $0) }, done: done))
        advance()
    }

    /// `isGranted`: the connection was waited for, and this is our turn of it.
    private func advance(isGranted: Bool = false) {
        guard batches.contains(where: { !$0.isSent }), loop.now >= retryAt else { return }
        usedAt = loop.now
        if !isGranted {
            giveWay()
            if leased != nil, pool.waiterCount > 0 { return }  // what is on its way comes first, then they, then we again
        }
        guard let leased, let wire = pool.wire(leased) else {
            leased = nil
            return lease()
        }
        for i in batches.indices where !batches[i].isSent {
            batches[i].isSent = true
            let number = first + i
            wire.send([statement(batches[i].records)], milliseconds: PostgresPool.statementMilliseconds) { [self] answer in
                switch answer {
                case .success: settled(number, .stored)
                case .failure(let error): refused(number, error)
                }
            }
        }
    }

    private func statement(_ records: [StoredRecord]) -> PostgresStatement {
        PostgresStatement(inserting: records, withChecksums: storesChecksums)
    }

    /// The pool may have no other connection: whoever waits gets ours as soon as nothing is on its way over it.
    private func giveWay() {
        guard let id = leased, pool.waiterCount > 0, !batches.contains(where: \.isOnItsWay) else { return }
        leased = nil
        pool.release(id)
    }

    private func lease() {
        guard !isLeasing else { return }
        isLeasing = true
        pool.lease { [self] result in
            isLeasing = false
            switch result {
            case .success(let id):
                leased = id
                advance(isGranted: true)
            case .failure(let error): waitAndRetry(error)
            }
        }
    }

    private func settled(_ number: Int, _ outcome: Outcome) {
        guard number >= first, number - first < batches.count else { return }
        batches[number - first].outcome = outcome
        problem = nil
        retryMilliseconds = 50
        answer()
        giveWay()
        advance()
    }

    /// Answers the batches in front that are done.
    private func answer() {
        while let batch = batches.first, let outcome = batch.outcome {
            batches.removeFirst()
            first += 1
            if case .setAside(let records) = outcome { batch.done(records) } else { batch.done([]) }
        }
    }

    private func refused(_ number: Int, _ error: StoreError) {
        guard number >= first, number - first < batches.count else { return }
        if PostgresFailure.isPoison(error.kind) { return isolate(number, error) }
        batches[number - first].isSent = false
        if PostgresFailure.evicts(error.kind) {
            let id = leased
            leased = nil
            // Condemned before it is given back, or whoever waits would get it.
            pool.evict(error)
            id.map { pool.release($0) }
        }
        waitAndRetry(error)
    }

    /// The values themselves are refused: half by half until the record at fault is alone.
    private func isolate(_ number: Int, _ error: StoreError) {
        batches[number - first].isApart = true
        var bad: [StoredRecord] = []
        var rest = [batches[number - first].records]
        func next() {
            guard let part = rest.popLast() else {
                return settled(number, bad.isEmpty ? .stored : .setAside(bad.map(\.record)))
            }
            pool.run([statement(part)], milliseconds: PostgresPool.statementMilliseconds) { [self] answer in
                switch answer {
                case .success: break
                case .failure(let error) where PostgresFailure.isPoison(error.kind):
                    if part.count == 1 {
                        bad += part
                    } else {
                        rest.append(Array(part.prefix(part.count / 2)))
                        rest.append(Array(part.suffix(part.count - part.count / 2)))
                    }
                case .failure(let error):
                    // What went in already is known by its id: the whole batch starts again.
                    guard number >= first, number - first < batches.count else { return }
                    batches[number - first].isSent = false
                    batches[number - first].isApart = false
                    return waitAndRetry(error)
                }
                next()
            }
        }
        next()
    }

    private func waitAndRetry(_ error: StoreError) {
        if problem == nil { retryMilliseconds = 50 }
        problem = error
        failed(error)
        let now = loop.now
        guard now >= retryAt else { return }  // several batches fail together
        retryAt = now.adding(milliseconds: retryMilliseconds)
        retryMilliseconds = min(Self.retryMillisecondsMax, retryMilliseconds * 2)
    }

    /// To be called some times a second.
    public func sweep(_ now: Instant) {
        advance()
        giveWay()
        if batches.isEmpty, let leased, now.milliseconds(since: usedAt) >= Self.idleMilliseconds {
            self.leased = nil
            pool.release(leased)
        }
    }
}
