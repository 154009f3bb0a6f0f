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
    let commits: GroupCommit
    private let scoreboard: Scoreboard
    private let spoolDirectories: [String]
    private let socketPath: String
    private let databasePath: String
    private var listener: Listener?
    private var socketFile: SocketFile?
    private var workers: [ObjectIdentifier: WorkerLink] = [:]
    /// Processes of another protocol that were told of: each comes again every second.
    var strangers: Set<Int64> = []
    private var supervisor: SupervisorLink!
    private var snapshot: Snapshot
    private var isDraining = false
    /// The supervisor is dead: the database belongs to whoever starts next.
    private var isOrphan = false
    /// Another one follows at once.
    private var isReplaced = false
    private var beatTimer: LoopTimer!
    private var lookTimer: LoopTimer!
    private var droppedTold = 0
    private var isBringingHome = false
    private var homecomingAt = Instant(nanoseconds: 0)
    private var isLookingAtLog = false
    private var logHeldToldAt: Instant?
    private var drainBy = Instant.never
    private var drainTimer: LoopTimer!

    static let beatMilliseconds = 250
    /// After files of records that could not be stored.
    static let homecomingMilliseconds = 10_000

    init(_ loop: EventLoop, _ session: StoreSession, _ snapshot: Snapshot, _ heritage: Heritage, _ settings: Settings, _ log: Logger)
        throws
    {
        (self.loop, self.heritage, self.log, self.snapshot) = (loop, heritage, log, snapshot)
        queue = CommitQueue(session, loop)
        commits = GroupCommit(loop, queue, spoolDirectories: settings.spoolDirectories, log)
        scoreboard = try Scoreboard(inherited: try SharedMemory(descriptor: heritage.scoreboard, count: Scoreboard.memoryBytes))
        (spoolDirectories, socketPath) = (settings.spoolDirectories, settings.writerSocket)
        databasePath = settings.database.sqlitePath ?? ""
        drainTimer = LoopTimer(loop) { [unowned self] in checkDrained() }
        beatTimer = LoopTimer(loop) { [unowned self] in
            scoreboard.add(.writerHeartbeat)
            droppedTold += LogSink.standard.dropped(since: droppedTold) { scoreboard.add(.logLinesDropped, $0) }
        }
        lookTimer = LoopTimer(loop) { [unowned self] in look() }
        commits.tried = { [unowned self] in
            if isOrphan { loop.stop() } else if isReplaced { leaveToNext() } else if isDraining { checkDrained() }
        }
        commits.hasRoom = { [unowned self] hasRoom in
            for worker in workers.values { if hasRoom { worker.resume() } else { worker.pause() } }
        }
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
        guard !isDraining, !isOrphan, !isReplaced else { return }
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

    func start(_ supervisor: SupervisorLink, database: String, revision: String) {
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

    // MARK: Commands

    /// `answer` nil: nobody waits for one, and what fails is told in the log.
    func received(_ command: StoreCommand, answer: ((StoreReply) -> Void)?) {
        queue.run({ session in StoreCommands.perform(command, on: session, now: Clock.wall) }) { [self] outcome in
            if let new = outcome.snapshot {
                snapshot = new
                let message = SnapshotMessage(new)
                for worker in workers.values { worker.send { $0.snapshot = message } }
            }
            // For workers that come later.
            if case .learnFacts(let learned) = command.body, outcome.reply.error.isEmpty {
                snapshot.learn(learned.facts.compactMap { AccountFact($0) })
            }
            if let answer { return answer(outcome.reply) }
            if !outcome.reply.error.isEmpty {
                log.error("a worker's word could not be stored", metadata: ["error": "\(outcome.reply.error)"])
            }
        }
    }

    // MARK: The end

    /// The workers have gone or are about to: commit what comes, then leave. With `handsOver` another writer follows at once: the commit on
    /// its way is finished and acknowledged, all else stays in the journals of the workers, which send it to the next one.
    func drain(milliseconds: Int, handsOver: Bool = false) {
        guard !isDraining, !isOrphan, !isReplaced else { return }
        if handsOver {
            isReplaced = true
            stopListening()
            commits.finish()
            // Behind the commands that wait for the database: their answers are on their way then.
            queue.run({ _ in }) { [self] in loop.later { [self] in leaveToNext() } }
            return
        }
        isDraining = true
        drainBy = loop.now.adding(milliseconds: milliseconds)
        drainTimer.start(milliseconds: 50, repeating: 50)
        checkDrained()
    }

    private func leaveToNext() {
        guard !commits.isCommitting || commits.isStuck else { return }  // the end of the commit comes back here
        loop.stop()
    }

    private func checkDrained() {
        guard isDraining, listener != nil else { return }
        let isOver = loop.now >= drainBy
        // Workers that went without an acknowledgement have left their records in journals that the supervisor puts into a file.
        let isDone = workers.isEmpty && (commits.isIdle || commits.isStuck)
        guard isDone || isOver else { return }
        if !commits.isIdle {
            log.warning("leaving with records not stored; the supervisor keeps them", metadata: ["records": "\(commits.waiting)"])
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
        commits.finish()
        if !commits.isCommitting || commits.isStuck { loop.stop() }
    }

    func close() { queue.close() }
}
