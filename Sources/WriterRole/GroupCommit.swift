import ControlWire
import Logging
import Loop
import Store
import Vocabulary

/// Gathers the records of all workers into groups, commits one group after the other and acknowledges what is durable.
final class GroupCommit {
    private struct Group {
        var records = JournalRows()
        /// The place in each sender's journal after its last record here.
        var ends: [(worker: WorkerLink, end: UInt64)] = []

        /// No other batch goes into it.
        var isFull: Bool { records.rows.count >= Limits.batchRecordsMax || records.bytes.count >= Limits.frameBytesMax }

        mutating func add(_ worker: WorkerLink, _ end: UInt64) {
            if let known = ends.lastIndex(where: { $0.worker === worker }) { ends[known].end = end } else { ends.append((worker, end)) }
        }
    }

    private let loop: EventLoop
    private let queue: CommitQueue
    private let spoolDirectories: [String]
    private let log: Logger
    /// Oldest first. The first one is with the store while `isCommitting`, and stays in front until it is durable.
    private var groups: [Group] = []
    private(set) var isCommitting = false
    private var isFinished = false
    private var pace = CommitPace()
    private var paceTimer: LoopTimer!
    private var retryTimer: LoopTimer!
    private var retryMilliseconds = retryMillisecondsMin
    private var complainedAt: Instant?

    /// Records of all groups.
    private(set) var waiting = 0
    /// Called after each commit, also one that failed.
    var tried: () -> Void = {}
    /// Called when so many records wait that workers are no longer read, and when they may be read again.
    var hasRoom: (Bool) -> Void = { _ in }

    static let retryMillisecondsMin = 50
    static let retryMillisecondsMax = 1_000
    static let complainMilliseconds = 5_000

    init(_ loop: EventLoop, _ queue: CommitQueue, spoolDirectories: [String], _ log: Logger) {
        (self.loop, self.queue, self.spoolDirectories, self.log) = (loop, queue, spoolDirectories, log)
        paceTimer = LoopTimer(loop) { [unowned self] in
            pace.waitEnded(now: loop.now)
            commit()
        }
        retryTimer = LoopTimer(loop) { [unowned self] in
            isCommitting = false
            commit()
        }
    }

    var isIdle: Bool { groups.isEmpty }
    /// Whether the last commit failed.
    var isStuck: Bool { retryMilliseconds > Self.retryMillisecondsMin }

    /// Takes the records of a `UsageBatch`. Those of one that breaks off in the middle are stored too, and sent again.
    func received(_ batch: RawSpan, from worker: WorkerLink) throws(FrameError) {
        if groups.count == (isCommitting ? 1 : 0) || groups[groups.count - 1].isFull { groups.append(Group()) }
        let last = groups.count - 1
        let before = groups[last].records.rows.count
        let end = groups[last].records.append(batch: batch) { [log] hex, error in
            log.critical("a usage record can't be read and is set aside", metadata: ["error": "\(error)", "bytes": "\(hex)"])
        }
        waiting += groups[last].records.rows.count - before
        defer { advance() }
        guard let end else { throw .undecodable(bytes: batch.byteCount) }
        groups[last].add(worker, end)
        if waiting > Limits.intakeRecordsMax { hasRoom(false) }
    }

    private func advance() {
        guard !isCommitting, !groups.isEmpty else { return }
        switch pace.recordsWait(isFull: groups[0].isFull, now: loop.now) {
        case .commit: commit()
        case .wait(let milliseconds): paceTimer.start(milliseconds: milliseconds)
        case .goOnWaiting: break
        }
    }

    private func commit() {
        guard !isCommitting, !isFinished, !groups.isEmpty else { return }
        isCommitting = true
        paceTimer.stop()
        let (records, directories, log) = (groups[0].records, spoolDirectories, log)
        queue.run({ session -> StoreError? in
            do throws(StoreError) {
                let refused = try session.appendWhatFits(records).refused
                if !refused.isEmpty { try Homecoming.keep(refused, directories) { log.critical("\($0)") } }
                return nil
            } catch {
                return error
            }
        }) { [self] error in
            if let error { failed(error) } else { committed() }
        }
    }

    private func committed() {
        isCommitting = false
        pace.commitEnded(now: loop.now)
        let group = groups.removeFirst()
        waiting -= group.records.rows.count
        if isStuck { log.notice("the store takes records again", metadata: ["waiting": "\(waiting)"]) }
        retryMilliseconds = Self.retryMillisecondsMin
        complainedAt = nil
        for (worker, end) in group.ends { worker.acknowledge(end) }
        if waiting < Limits.intakeRecordsMax / 2 { hasRoom(true) }
        advance()
        tried()
    }

    private func failed(_ error: StoreError) {
        let now = loop.now
        if complainedAt.map({ now.milliseconds(since: $0) >= Self.complainMilliseconds }) ?? true {
            complainedAt = now
            log.error("records can't be stored; they wait and are tried again", metadata: ["error": "\(error)", "waiting": "\(waiting)"])
        }
        // Never dropped: the group stays in front, and every worker's journal still has it.
        retryTimer.start(milliseconds: retryMilliseconds)
        retryMilliseconds = min(Self.retryMillisecondsMax, retryMilliseconds * 2)
        tried()
    }

    /// No further commit begins; one on its way ends.
    func finish() { isFinished = true }
}
