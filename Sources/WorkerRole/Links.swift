import ControlWire
import Diagnostics
import Logging
import Loop
import Platform
import PostgresStore
import SQLiteStore
import Settings
import Store
import Vocabulary

/// The control socket to the supervisor: we say ready, it says drain; its end means that the supervisor is dead.
final class SupervisorLink: ByteStreamDelegate {
    private unowned let worker: Worker
    private let stream: ByteStream
    private var reader = FrameReader()

    init(_ worker: Worker) {
        self.worker = worker
        stream = ByteStream(worker.loop, .unix)
        stream.delegate = self
        do throws(LoopError) {
            try stream.open(worker.heritage.control)
        } catch {
            worker.log.critical("control socket unusable", metadata: ["error": "\(error)"])
        }
        stream.startReading()
        send { $0.hello = Hello(role: "worker", slot: worker.position, generation: worker.heritage.generation, pid: Process.id) }
    }

    func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        var bytes: [UInt8] = []
        FrameCodec.encode(frame, into: &bytes)
        stream.write(bytes)
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in
                switch frame.body {
                case .drain(let drain):
                    worker.drain(milliseconds: Int(drain.milliseconds), handsOver: drain.handsOver) {
                        drain.orphanedListeners.contains(UInt32($0))
                    }
                case .logOrder(let order):
                    Logs.obey(order.level, reopens: order.reopen, worker.log)
                    if order.reopen { worker.accessLog?.reopen(worker.log) }
                case .explainRequest(let question):
                    let reply = worker.explain(question)
                    send {
                        $0.correlation = frame.correlation
                        $0.explainReply = reply
                    }
                case .keptSnapshot(let kept): worker.keptSnapshotArrived(kept)
                default: break  // a newer supervisor may say more
                }
            }
        } catch {
            worker.log.error("unreadable frame from the supervisor", metadata: ["error": "\(error)"])
            worker.supervisorGone()
        }
    }

    func streamEnded(_ stream: ByteStream) { worker.supervisorGone() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { worker.supervisorGone() }
    func streamDrained(_ stream: ByteStream) {}
}

/// What one of all workers and instances does for an account.
enum AccountJob {
    /// Refreshes its login.
    case renewal
    /// Asks for its figures; nobody else does for so long.
    case usage(milliseconds: Int)
}

/// A worker's way to the store: takes the journal there and brings snapshots back.
protocol StoreLink: AnyObject {
    /// Called at the end of each iteration of the loop.
    func iterationEnded()
    /// To be called some times a second.
    func sweep(_ now: Instant)
    func totals(ofKey key: Int64?, _ done: @escaping (Result<UsageTotals, StoreError>) -> Void)
    /// An account is taken out of routing, unless it has changed meanwhile.
    func takeOut(_ order: AccountRemoval)
    /// Keeps what was learned of accounts; `done` says whether it may be taken for kept.
    func learn(_ facts: [AccountFact], _ done: @escaping (Bool) -> Void)
    /// Takes the right to a job for the account from other instances; `done` says whether it is ours and the account as it was.
    func claim(_ job: AccountJob, _ account: Account, _ done: @escaping (Bool) -> Void)
    /// The account has these credentials now, unless it has changed meanwhile. To be called again until the snapshot has them.
    func saveLogin(_ account: Account, _ new: Account.Credentials)
    /// Instances that share the database get to know it.
    func learned(_ pin: SharedPin)
    /// What another worker served by, sealed: to begin with while the store is away.
    func keptSnapshotArrived(_ kept: KeptSnapshot)
    /// The worker takes nothing new any more.
    func draining()
    /// What it has to say at its end is still on its way.
    var isLeaving: Bool { get }
    /// The schema's revision; empty when this side does not know it.
    var revision: String { get }
    /// Whether the store is asked regularly, so that its silence means something.
    var isPolled: Bool { get }
}

/// Carries the journal to the writer and brings snapshots back. Reconnects for ever; what was not acknowledged is sent again.
final class WriterLink: ByteStreamDelegate, StoreLink {
    private unowned let worker: Worker
    private let reads: ReadPool
    let revision = ""
    let isPolled = false
    private var stream: ByteStream?
    private var reader = FrameReader()
    private var isConnected = false
    private var retryAt: Instant
    private var retryMilliseconds = 10
    /// Place in the journal up to which records have been sent on this connection.
    private var sent: UInt64 = 0
    /// Ends of sent batches with their counts, oldest first.
    private var unacknowledged: [(end: UInt64, count: Int)] = []
    private var hasComplained = false
    /// Who waits for the writer's word on what was learned, by the number of the question.
    private var learning: [UInt64: (Bool) -> Void] = [:]
    private var nextQuestion: UInt64 = 0
    private var gatherTimer: LoopTimer!
    private var isGathering = false
    private var flushedAt = Instant(nanoseconds: 0)

    /// Records soon after others wait this long for company, unless there is much: a wake-up of the writer per turn would cost more than
    /// the record.
    static let gatherMilliseconds = 3
    static let gatherBytes = 32 * 1024

    init(_ worker: Worker, database path: String) {
        self.worker = worker
        reads = ReadPool(worker.loop, path: path, worker.poolLimits)
        retryAt = worker.loop.now
        gatherTimer = LoopTimer(worker.loop) { [unowned self] in
            isGathering = false
            flush()
        }
        connect()
    }

    /// Called at the end of each iteration of the loop.
    func iterationEnded() {
        let waiting = worker.usageJournal.head &- sent
        guard waiting > 0, isConnected else { return }
        if isGathering, waiting < Self.gatherBytes { return }
        if waiting >= Self.gatherBytes || worker.loop.iterationTime.milliseconds(since: flushedAt) >= Self.gatherMilliseconds {
            flush()
        } else {
            isGathering = true
            gatherTimer.start(milliseconds: Self.gatherMilliseconds)
        }
    }

    private func connect() {
        retryAt = .never
        let stream = ByteStream(worker.loop, .unix)
        self.stream = stream
        stream.connect(to: SocketAddress(host: .unix(worker.settings.writerSocket), port: 0)) { [weak self] error in
            guard let self, self.stream === stream else { return }
            if let error { return lost("\(error)") }
            connected(stream)
        }
    }

    private func connected(_ stream: ByteStream) {
        isConnected = true
        reader = FrameReader()
        unacknowledged = []
        sent = worker.usageJournal.tail
        stream.delegate = self
        stream.startReading()
        send { $0.hello = Hello(role: "worker", slot: worker.position, generation: worker.heritage.generation, pid: Process.id) }
        if hasComplained { worker.log.notice("writer reached again") }
        hasComplained = false
        flush()
    }

    private func lost(_ why: String) {
        stream?.close()
        stream = nil
        isConnected = false
        // What was on its way may be stored or not.
        let unanswered = learning
        learning = [:]
        for done in unanswered.values { done(false) }
        // The writer restarts within milliseconds when it dies; only a longer absence is worth a line.
        if retryMilliseconds >= 500, !hasComplained {
            hasComplained = true
            worker.log.warning(
                "writer not reachable: records wait in the journal",
                metadata: ["error": "\(why)", "journal_bytes": "\(worker.usageJournal.usedBytes)"])
        }
        retryAt = worker.loop.now.adding(milliseconds: retryMilliseconds)
        retryMilliseconds = min(1000, retryMilliseconds * 2)
    }

    func sweep(_ now: Instant) {
        if now >= retryAt { connect() }
        reads.sweep(now)
    }

    func totals(ofKey key: Int64?, _ done: @escaping (Result<UsageTotals, StoreError>) -> Void) {
        reads.first(Queries.totals(ofKey: key), done)
    }

    func learned(_ pin: SharedPin) {}  // this database is of one instance
    func keptSnapshotArrived(_ kept: KeptSnapshot) {}  // the writer is of this machine, as we are
    func draining() {}
    let isLeaving = false

    func takeOut(_ order: AccountRemoval) {
        guard isConnected else { return }  // the next turn that meets it says so again
        send {
            $0.storeCommand.setAccountState.id = order.accountID
            $0.storeCommand.setAccountState.state = order.state.rawValue
            $0.storeCommand.setAccountState.unchangedSinceMs = order.changedAt.milliseconds
            $0.storeCommand.setAccountState.reason = order.reason
        }
    }

    func learn(_ facts: [AccountFact], _ done: @escaping (Bool) -> Void) {
        guard isConnected else { return done(false) }
        nextQuestion += 1
        learning[nextQuestion] = done
        send {
            $0.correlation = nextQuestion
            $0.storeCommand.learnFacts.facts = facts.map { AccountFactMessage($0) }
        }
    }

    func claim(_ job: AccountJob, _ account: Account, _ done: @escaping (Bool) -> Void) { done(true) }  // nobody else writes this database

    func saveLogin(_ account: Account, _ new: Account.Credentials) {
        guard isConnected else { return }
        send {
            $0.storeCommand.renewLogin.id = account.id
            $0.storeCommand.renewLogin.unchangedSinceMs = account.changedAt.milliseconds
            $0.storeCommand.renewLogin.bearer = new.bearer
            $0.storeCommand.renewLogin.refreshToken = new.refreshToken ?? ""
            if let token = new.idToken { $0.storeCommand.renewLogin.idToken = token }
            if let id = new.chatGPTAccountID { $0.storeCommand.renewLogin.chatgptAccountID = id }
            $0.storeCommand.renewLogin.headers = new.headers.map { HeaderMessage($0) }
            $0.storeCommand.renewLogin.proxy = new.proxy?.url ?? ""
        }
    }

    /// Sends what the journal holds beyond what was sent.
    func flush() {
        guard isConnected, let stream, stream.queuedBytes < 1 << 20 else { return }
        flushedAt = worker.loop.iterationTime
        while sent < worker.usageJournal.head {
            var records: [UInt8] = []
            let (count, end, damaged) = worker.usageJournal.visit(from: sent, count: Limits.batchRecordsMax) {
                FrameCodec.append(record: $0, to: &records)
            }
            if damaged { worker.log.critical("the journal is damaged: what follows this place is given up", metadata: ["place": "\(end)"]) }
            // The acknowledgement of what could still be read forgets what could not.
            sent = damaged ? worker.usageJournal.head : end
            unacknowledged.append((sent, count))
            var frame: [UInt8] = []
            FrameCodec.encodeBatch(end: sent, records: records, into: &frame)
            stream.write(frame)
        }
    }

    private func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        var bytes: [UInt8] = []
        FrameCodec.encode(frame, into: &bytes)
        stream?.write(bytes)
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in
                switch frame.body {
                case .usageAck(let ack): acknowledged(through: ack.end)
                case .storeReply(let reply): learned(frame.correlation, reply)
                case .snapshot(let message):
                    retryMilliseconds = 10
                    do {
                        worker.snapshotArrived(try Snapshot(message))
                        worker.storeSeen()
                    } catch {
                        worker.log.error("unreadable snapshot", metadata: ["error": "\(error)"])
                    }
                default: break  // a newer writer may say more
                }
            }
        } catch {
            lost("\(error)")
        }
    }

    private func learned(_ number: UInt64, _ reply: StoreReply) {
        if !reply.error.isEmpty {
            worker.log.error("what was learned of accounts could not be stored; it is tried again", metadata: ["error": "\(reply.error)"])
        }
        learning.removeValue(forKey: number)?(reply.error.isEmpty)
    }

    private func acknowledged(through end: UInt64) {
        var count = 0
        while let first = unacknowledged.first, first.end <= end {
            count += first.count
            unacknowledged.removeFirst()
        }
        worker.usageJournal.acknowledge(through: end)
        worker.acknowledged(count)
        worker.storeSeen()
    }

    func streamEnded(_ stream: ByteStream) { lost("the writer closed the connection") }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { lost("\(error)") }
    func streamDrained(_ stream: ByteStream) { flush() }
}
