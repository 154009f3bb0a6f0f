import Bytes
import Loop
import Platform
import PostgresStore
import Store
import Vocabulary

/// Tells the instances that share the database whose conversations are whose, and learns it from them, each within a second. While ours is
/// the only one, nothing is told.
///
/// Each worker tells what it learns; the first one of the instance reads for all, into the table that they share.
final class PinExchange {
    private unowned let worker: Worker
    private let pool: PostgresPool
    /// What others need to know of us, and what we need not hear.
    private let name: String
    private let instance: Int64
    private var untold: [UInt64: SharedPin] = [:]
    private var isTelling = false
    private var tellAt = Instant(nanoseconds: 0)
    private var next = "0"
    private var isReading = false
    private var readAt = Instant(nanoseconds: 0)
    private var trimAt = Instant.never

    init(_ worker: Worker, _ pool: PostgresPool, name: String) {
        (self.worker, self.pool, self.name) = (worker, pool, name)
        instance = Int64(bitPattern: SipHash(key: (0, 0)).hash(0, name))
    }

    private var isAlone: Bool { worker.scoreboard.value(.otherInstances) == 0 }

    /// This worker has learned it.
    func learned(_ pin: SharedPin) {
        guard !isAlone, untold.count < Limits.pinsUntoldMax else { return }
        untold[pin.key] = pin
    }

    /// `hasTable`: the schema has the revision that makes it.
    func sweep(_ now: Instant, hasTable: Bool) {
        guard hasTable else { return }
        if !untold.isEmpty, !isTelling, now >= tellAt { tell(now) }
        guard worker.position == 0, !worker.isDraining else { return }
        if !isReading, now >= readAt { read(now) }
        if trimAt == .never { trimAt = now.adding(milliseconds: Limits.pinTrimMilliseconds) }
        if now >= trimAt {
            trimAt = now.adding(milliseconds: Limits.pinTrimMilliseconds)
            pool.trimPins { _ in }  // what fails is done the next time
        }
    }

    private func tell(_ now: Instant) {
        tellAt = now.adding(milliseconds: Limits.pinTellMilliseconds)
        let batch = untold.prefix(Limits.pinsToldMax).map(\.value)
        for pin in batch { untold[pin.key] = nil }
        isTelling = true
        pool.tell(pins: batch, of: instance) { [weak self] result in
            guard let self else { return }
            isTelling = false
            // What was not told costs another instance a cached prompt, or a question more: not worth memory while the database is away.
            guard case .success = result, !untold.isEmpty else { return }
            tellAt = worker.loop.now
        }
    }

    private func read(_ now: Instant) {
        readAt = now.adding(milliseconds: Limits.pinNewsMilliseconds)
        isReading = true
        pool.pinNews(since: next, of: instance, named: name) { [weak self] result in
            guard let self else { return }
            isReading = false
            guard case .success(let news) = result else { return }
            let now = worker.loop.now
            for pin in news.pins where pin.seconds > 0 {
                worker.scoreboard.pins.pin(pin.key, to: pin.account, seconds: min(pin.seconds, Limits.pinSeconds), now: now)
            }
            next = news.next
            if news.isCut { readAt = now }
            if isAlone, news.others > 0 { tellAll(now) }
            worker.scoreboard.set(.otherInstances, news.others)
        }
    }

    /// Another instance has come: it knows nothing of what was learned before.
    private func tellAll(_ now: Instant) {
        worker.scoreboard.pins.forEach(now: now) { key, account, seconds in
            guard untold.count < Limits.pinsMax else { return }
            untold[key] = SharedPin(key: key, account: account, seconds: seconds)
        }
    }
}
