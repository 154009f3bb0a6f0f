import ControlWire
import Logging
import Loop
import Platform
import Settings
import Store
import Vocabulary

/// The one process that writes SQLite: takes usage records and commands, commits them in groups, publishes snapshots.
final class Writer {
    let loop: EventLoop
    let log: Logger
    private let heritage: Heritage
    private let queue: CommitQueue
    private var listener: Listener?
    private var workers: [ObjectIdentifier: WorkerLink] = [:]
    private var supervisor: ControlLink!
    private var snapshot: Snapshot

    private struct Intake {
        /// Nil where the batch had only records that can't be read: its acknowledgement waits for its turn all the same.
        var record: UsageRecord?
        var from: WorkerLink
        /// The sender's journal place after the batch that this record ends; nil inside a batch.
        var end: UInt64?
    }
    private var intake: [Intake] = []
    private var isCommitting = false
    private var batchTimer: LoopTimer!
    private var retryTimer: LoopTimer!
    private var retryMilliseconds = 50
    private var complainedAt: Instant?
    private var isDraining = false
    /// Whether the supervisor is there to keep the journals: what can't be stored now need not be waited for.
    private var hasSupervisor = true
    private var drainBy = Instant.never
    private var drainTimer: LoopTimer!

    /// Records waiting for a commit; above it the workers are not read, and their journals fill.
    static let intakeRecordsMax = 20_000
    static let complainMilliseconds = 5_000

    init(_ loop: EventLoop, _ session: StoreSession, _ snapshot: Snapshot, _ heritage: Heritage, _ settings: Settings, _ log: Logger)
        throws
    {
        (self.loop, self.heritage, self.log, self.snapshot) = (loop, heritage, log, snapshot)
        queue = CommitQueue(session, loop)
        let descriptor = try Sockets.listen(.unix(path: settings.writerSocket), mode: 0o600)
        batchTimer = LoopTimer(loop) { [unowned self] in commit() }
        retryTimer = LoopTimer(loop) { [unowned self] in
            isCommitting = false
            commit()
        }
        drainTimer = LoopTimer(loop) { [unowned self] in checkDrained() }
        listener = try Listener(loop, descriptor: descriptor, kind: .unix) { [unowned self] in accepted($0) }
    }

    func start(_ supervisor: ControlLink, database: String, revision: String) {
        self.supervisor = supervisor
        supervisor.attach(self)
        var ready = Ready()
        (ready.database, ready.revision) = (database, revision)
        ready.accounts = UInt32(snapshot.accounts.count)
        supervisor.send { $0.ready = ready }
    }

    private func accepted(_ stream: ByteStream) {
        guard let user = Descriptor.peerUser(stream.descriptor), user == Process.user || user == 0 else {
            log.warning("connection of another user refused")
            return stream.close()
        }
        let worker = WorkerLink(self, stream)
        workers[ObjectIdentifier(worker)] = worker
    }

    func greeted(_ worker: WorkerLink) {
        let message = SnapshotMessage(snapshot)
        worker.send { $0.snapshot = message }
    }

    func gone(_ worker: WorkerLink) {
        workers[ObjectIdentifier(worker)] = nil
        if isDraining { checkDrained() }
    }

    // MARK: Records

    func received(_ batch: UsageBatch, from worker: WorkerLink) {
        let decoded = UsageRecord.decode(batch.recordBytes) { hex, error in
            log.critical("a usage record can't be read and is set aside", metadata: ["error": "\(error)", "bytes": "\(hex)"])
        }
        let isFirst = intake.isEmpty
        for (i, record) in decoded.enumerated() {
            intake.append(Intake(record: record, from: worker, end: i == decoded.count - 1 ? batch.end : nil))
        }
        if decoded.isEmpty { intake.append(Intake(record: nil, from: worker, end: batch.end)) }
        if intake.count > Self.intakeRecordsMax { for worker in workers.values { worker.pause() } }
        if intake.count >= Limits.batchRecordsMax {
            commit()
        } else if isFirst {
            batchTimer.start(milliseconds: Limits.batchMilliseconds)
        }
    }

    /// Commits up to a batch of records in one transaction; the rest follows when it is done.
    private func commit() {
        guard !isCommitting, !intake.isEmpty else { return }
        isCommitting = true
        let part = Array(intake.prefix(Limits.batchRecordsMax))
        let records = part.compactMap(\.record)
        queue.run({ session -> StoreError? in
            do throws(StoreError) {
                _ = try session.append(records)
                return nil
            } catch {
                return error
            }
        }) { [self] error in
            if let error { failed(error, part) } else { committed(part) }
        }
    }

    private func committed(_ part: [Intake]) {
        isCommitting = false
        if isStuck { log.notice("the store takes records again", metadata: ["waiting": "\(intake.count)"]) }
        retryMilliseconds = 50
        complainedAt = nil
        intake.removeFirst(part.count)
        var ends: [ObjectIdentifier: (WorkerLink, UInt64)] = [:]
        for entry in part { if let end = entry.end { ends[ObjectIdentifier(entry.from)] = (entry.from, end) } }
        for (worker, end) in ends.values { worker.acknowledge(end) }
        if intake.count < Self.intakeRecordsMax / 2 { for worker in workers.values { worker.resume() } }
        if intake.count >= Limits.batchRecordsMax {
            commit()
        } else if !intake.isEmpty {
            batchTimer.start(milliseconds: Limits.batchMilliseconds)
        } else if isDraining {
            checkDrained()
        }
    }

    private func failed(_ error: StoreError, _ part: [Intake]) {
        let now = loop.now
        if complainedAt.map({ now.milliseconds(since: $0) >= Self.complainMilliseconds }) ?? true {
            complainedAt = now
            log.error(
                "records can't be stored; they wait and are tried again", metadata: ["error": "\(error)", "waiting": "\(intake.count)"])
        }
        // Never dropped: the batch stays in front, and every worker's journal still has it.
        retryTimer.start(milliseconds: retryMilliseconds)
        retryMilliseconds = min(1000, retryMilliseconds * 2)
        if isDraining { checkDrained() }
    }

    /// Whether the last commit failed.
    private var isStuck: Bool { retryMilliseconds > 50 }

    // MARK: Commands

    func received(_ command: StoreCommand, correlation: UInt64) {
        queue.run({ session in StoreCommands.perform(command, on: session, now: Clock.wall) }) { [self] outcome in
            if let new = outcome.snapshot {
                snapshot = new
                let message = SnapshotMessage(new)
                for worker in workers.values { worker.send { $0.snapshot = message } }
            }
            supervisor.send {
                $0.correlation = correlation
                $0.storeReply = outcome.reply
            }
        }
    }

    // MARK: The end

    /// The workers have gone or are about to: commit what comes, then leave.
    func drain(milliseconds: Int, hasSupervisor: Bool = true) {
        self.hasSupervisor = hasSupervisor
        guard !isDraining else { return }
        isDraining = true
        drainBy = loop.now.adding(milliseconds: milliseconds)
        drainTimer.start(milliseconds: 50, repeating: 50)
        checkDrained()
    }

    private func checkDrained() {
        guard isDraining, listener != nil else { return }
        let isOver = loop.now >= drainBy
        // Workers that went without an acknowledgement have left their records in journals that the supervisor puts into a file.
        let isDone = workers.isEmpty && (intake.isEmpty && !isCommitting || isStuck && hasSupervisor)
        guard isDone || isOver else { return }
        if !intake.isEmpty, hasSupervisor {
            log.warning("leaving with records not stored; the supervisor keeps them", metadata: ["records": "\(intake.count)"])
        } else if !intake.isEmpty {
            log.critical("drain deadline reached with records not stored", metadata: ["records": "\(intake.count)"])
        }
        listener?.close()
        listener = nil
        drainTimer.close()
        loop.stop()
    }

    func close() { queue.close() }
}

/// A connected worker.
final class WorkerLink: ByteStreamDelegate {
    private unowned let writer: Writer
    private let stream: ByteStream
    private var reader = FrameReader()
    private var isClosed = false

    init(_ writer: Writer, _ stream: ByteStream) {
        (self.writer, self.stream) = (writer, stream)
        stream.delegate = self
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        guard !isClosed else { return }
        var frame = Frame()
        fill(&frame)
        stream.write(FrameCodec.encode(frame))
    }

    func acknowledge(_ end: UInt64) {
        var ack = UsageAck()
        ack.end = end
        send { $0.usageAck = ack }
    }

    func pause() { stream.stopReading() }
    func resume() { if !isClosed { stream.startReading() } }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in
                switch frame.body {
                case .hello: writer.greeted(self)
                case .usageBatch(let batch): writer.received(batch, from: self)
                default: break  // a newer worker may say more
                }
            }
        } catch {
            writer.log.error("unreadable frame from a worker", metadata: ["error": "\(error)"])
            end()
        }
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    private func end() {
        guard !isClosed else { return }
        isClosed = true
        stream.close()
        writer.gone(self)
    }
}

/// The control socket to the supervisor.
final class ControlLink: ByteStreamDelegate {
    private weak var writer: Writer?
    private let stream: ByteStream
    private var reader = FrameReader()

    init(_ loop: EventLoop, _ heritage: Heritage) throws(LoopError) {
        stream = ByteStream(loop, .unix)
        try stream.open(heritage.control)
        stream.delegate = self
        var hello = Hello()
        hello.protocol = protocolVersion
        hello.role = "writer"
        hello.generation = heritage.generation
        hello.pid = Int64(Process.id)
        send { $0.hello = hello }
    }

    func attach(_ writer: Writer) {
        self.writer = writer
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        stream.write(FrameCodec.encode(frame))
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in
                switch frame.body {
                case .drain(let drain): writer?.drain(milliseconds: Int(drain.milliseconds))
                case .storeCommand(let command): writer?.received(command, correlation: frame.correlation)
                default: break
                }
            }
        } catch {
            supervisorGone()
        }
    }
    func streamEnded(_ stream: ByteStream) { supervisorGone() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { supervisorGone() }
    func streamDrained(_ stream: ByteStream) {}

    /// The workers drain now too; the writer outlives them, so that their last records find it.
    private func supervisorGone() {
        writer?.log.error("the supervisor has gone: staying until the workers have drained")
        Process.setHardDeadline(seconds: Limits.drainMilliseconds / 1000 + 20)
        writer?.drain(milliseconds: Limits.drainMilliseconds + 5_000, hasSupervisor: false)
    }
}
