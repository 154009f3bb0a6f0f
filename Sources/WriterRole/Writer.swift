import ControlWire
import Diagnostics
import Logging
import Loop
import Platform
import SQLiteStore
import Settings
import Store
import Vocabulary

/// The one process that writes SQLite: takes usage records and commands, commits them in groups, publishes snapshots.
final class Writer {
    let loop: EventLoop
    let log: Logger
    private let heritage: Heritage
    private let queue: CommitQueue
    private let scoreboard: Scoreboard
    private let spoolDirectories: [String]
    private let socketPath: String
    private let databasePath: String
    private var listener: Listener?
    private var socketFile: SocketFile?
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
    /// The supervisor is dead: the database belongs to whoever starts next.
    private var isOrphan = false
    private var beatTimer: LoopTimer!
    private var lookTimer: LoopTimer!
    private var droppedTold = 0
    private var isBringingHome = false
    private var homecomingAt = Instant(nanoseconds: 0)
    private var isLookingAtLog = false
    private var logHeldToldAt: Instant?
    private var drainBy = Instant.never
    private var drainTimer: LoopTimer!

    /// Records waiting for a commit; above it the workers are not read, and their journals fill.
    static let intakeRecordsMax = 20_000
    static let complainMilliseconds = 5_000
    static let beatMilliseconds = 250
    /// After files of records that could not be stored.
    static let homecomingMilliseconds = 10_000

    init(_ loop: EventLoop, _ session: StoreSession, _ snapshot: Snapshot, _ heritage: Heritage, _ settings: Settings, _ log: Logger)
        throws
    {
        (self.loop, self.heritage, self.log, self.snapshot) = (loop, heritage, log, snapshot)
        queue = CommitQueue(session, loop)
        scoreboard = try Scoreboard(inherited: try SharedMemory(descriptor: heritage.scoreboard, count: Scoreboard.memoryBytes))
        (spoolDirectories, socketPath) = (settings.spoolDirectories, settings.writerSocket)
        databasePath = settings.database.sqlitePath ?? ""
        batchTimer = LoopTimer(loop) { [unowned self] in commit() }
        retryTimer = LoopTimer(loop) { [unowned self] in
            isCommitting = false
            commit()
        }
        drainTimer = LoopTimer(loop) { [unowned self] in checkDrained() }
        beatTimer = LoopTimer(loop) { [unowned self] in
            scoreboard.add(.writerHeartbeat)
            droppedTold += LogSink.standard.dropped(since: droppedTold) { scoreboard.add(.logLinesDropped, $0) }
        }
        lookTimer = LoopTimer(loop) { [unowned self] in look() }
        try listen()
        beatTimer.start(milliseconds: Self.beatMilliseconds, repeating: Self.beatMilliseconds)
        lookTimer.start(milliseconds: Limits.lookMilliseconds, repeating: Limits.lookMilliseconds)
    }

    private func listen() throws {
        if let slash = socketPath.lastIndex(of: "/") { try Directory.make(String(socketPath[..<slash])) }
        let descriptor = try Sockets.listen(.unix(path: socketPath), mode: 0o600)
        socketFile = SocketFile(socketPath)
        listener = try Listener(loop, descriptor: descriptor, kind: .unix) { [unowned self] in accepted($0) }
    }

    private func stopListening() {
        listener?.close()
        listener = nil
        socketFile?.remove()
    }

    /// Somebody may have cleaned the runtime directory up, and orphans of an earlier supervisor may have left records as files.
    private func look() {
        guard !isDraining, !isOrphan else { return }
        if socketFile?.isInPlace != true {
            log.warning("the writer's socket is gone: making it again", metadata: ["path": "\(socketPath)"])
            listener?.close()
            listener = nil
            do { try listen() } catch { log.error("the writer's socket can't be made again", metadata: ["error": "\(error)"]) }
        }
        lookAtLog()
        let now = loop.now
        guard !isBringingHome, now >= homecomingAt, !Spool.files(directories: spoolDirectories).isEmpty else { return }
        isBringingHome = true
        let (directories, log) = (spoolDirectories, log)
        queue.run({ session in Homecoming.run(directories, session) { log.warning("\($0)") } }) { [self] isWell in
            isBringingHome = false
            if !isWell { homecomingAt = loop.now.adding(milliseconds: Self.homecomingMilliseconds) }
        }
    }

    /// A reader that stays keeps the database's log from being emptied, until the disk is full.
    private func lookAtLog() {
        guard !isLookingAtLog else { return }
        isLookingAtLog = true
        queue.run({ session in LogState.of(session) }) { [self] state in
            isLookingAtLog = false
            let now = loop.now
            guard let state, state.isBeyondLimit, let since = state.heldSince else {
                scoreboard.set(.logHeldBytes, 0)
                guard logHeldToldAt != nil else { return }
                logHeldToldAt = nil
                return log.notice("the database's log is emptied again")
            }
            scoreboard.set(.logHeldBytes, state.bytes)
            guard logHeldToldAt.map({ now.milliseconds(since: $0) >= Limits.logHeldToldMilliseconds }) ?? true else { return }
            logHeldToldAt = now
            log.warning(
                "a reader keeps the database's log from being emptied: it grows with each record",
                metadata: [
                    "log": "\(databasePath)-wal", "bytes": "\(state.bytes)", "held_seconds": "\(now.milliseconds(since: since) / 1000)",
                    "advice": "another program has a read transaction open; find it with: fuser -v \(databasePath)-shm",
                ])
        }
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
        let (directories, log) = (spoolDirectories, log)
        queue.run({ session -> StoreError? in
            do throws(StoreError) {
                let refused = try session.appendWhatFits(records).refused
                if !refused.isEmpty { try Homecoming.keep(refused, directories) { log.critical("\($0)") } }
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
        if isOrphan { return loop.stop() }
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
        if isOrphan { return loop.stop() }
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

    /// `correlation` nil: from a worker, which waits for no answer.
    func received(_ command: StoreCommand, correlation: UInt64?) {
        queue.run({ session in StoreCommands.perform(command, on: session, now: Clock.wall) }) { [self] outcome in
            if let new = outcome.snapshot {
                snapshot = new
                let message = SnapshotMessage(new)
                for worker in workers.values { worker.send { $0.snapshot = message } }
            }
            guard let correlation else {
                if !outcome.reply.error.isEmpty {
                    log.error("a worker's word could not be stored", metadata: ["error": "\(outcome.reply.error)"])
                }
                return
            }
            supervisor.send {
                $0.correlation = correlation
                $0.storeReply = outcome.reply
            }
        }
    }

    // MARK: The end

    /// The workers have gone or are about to: commit what comes, then leave.
    func drain(milliseconds: Int) {
        guard !isDraining, !isOrphan else { return }
        isDraining = true
        drainBy = loop.now.adding(milliseconds: milliseconds)
        drainTimer.start(milliseconds: 50, repeating: 50)
        checkDrained()
    }

    private func checkDrained() {
        guard isDraining, listener != nil else { return }
        let isOver = loop.now >= drainBy
        // Workers that went without an acknowledgement have left their records in journals that the supervisor puts into a file.
        let isDone = workers.isEmpty && (intake.isEmpty && !isCommitting || isStuck)
        guard isDone || isOver else { return }
        if !intake.isEmpty {
            log.warning("leaving with records not stored; the supervisor keeps them", metadata: ["records": "\(intake.count)"])
        }
        stopListening()
        drainTimer.close()
        loop.stop()
    }

    /// The supervisor is dead. Whoever starts next waits for the database, so it is let go at once: a commit on its way is finished and
    /// acknowledged, all else is in the journals of the workers, which bring it to the next writer or leave it as files.
    func supervisorGone() {
        guard !isOrphan else { return }
        isOrphan = true
        log.error("the supervisor has gone: letting the database go")
        Process.setHardDeadline(seconds: Limits.drainMilliseconds / 1000)
        stopListening()
        if !isCommitting || isStuck { loop.stop() }
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
                case .storeCommand(let command): writer.received(command, correlation: nil)
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
                case .logOrder(let order): if let writer { Logs.obey(order.level, reopens: order.reopen, writer.log) }
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

    private func supervisorGone() { writer?.supervisorGone() }
}
