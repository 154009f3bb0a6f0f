import ControlWire
import Diagnostics
import Fleet
import Logging
import Loop
import Platform
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Performs the fleet's actions: owns the listeners, the shared memory and the children. Parses no client byte and opens no database.
final class Supervisor {
    private let loop: EventLoop
    private let settings: Settings
    private let log: Logger
    private var fleet: Fleet
    private let started: Instant
    /// Empty from the order to stop on.
    private var listeners: [Int32]
    private let listenerNames: [String]
    /// Names of Unix-domain listeners that are ours to take away: not those that systemd holds.
    private let listenerFiles: [SocketFile]
    private let scoreboardMemory: SharedMemory
    private let scoreboard: Scoreboard
    private var journals: [SharedMemory] = []
    private var links: [ChildSlot: ChildLink] = [:]
    private let generation: UInt64 = 1
    private var exitCode: Int32?
    private var upgrade: Int32?
    /// One-shot children beside the fleet: the check after the start, the scheduled backup.
    private var check: Int32?
    private var backup: Int32?
    private var backupAt = Instant.never
    private var extendAt = Instant(nanoseconds: 0)
    private var droppedTold = 0
    private var lookAt = Instant(nanoseconds: 0)
    /// The one-shot child that stores what orphans of an earlier supervisor left as files; for SQLite the writer does it.
    private var homecoming: Int32?
    private var homecomingAt = Instant(nanoseconds: 0)
    /// One line about the database that an operator should know; empty when all is well.
    private var databaseProblem = ""
    private var timer: LoopTimer!
    private var door: ControlDoor!
    private var environment: [String: String]
    private var readyFacts: Ready?
    private var stopSignals = 0
    private var refusedFiles: [String] = []
    /// What the service manager was told last.
    private var statusTold = ""

    static let tickMilliseconds = 50
    /// A scheduled backup's child looks itself whether one is due; this is how often it is asked at most.
    static let backupLookMilliseconds = 300_000
    /// How much longer a start may take, said again and again while the database is being made ready.
    static let extendMilliseconds = 60_000
    /// Between two tries to store orphans' records in a shared database.
    static let homecomingMilliseconds = 10_000

    init(_ loop: EventLoop, _ settings: Settings, listeners: [Int32], areOurs: Bool, environment: [String: String], log: Logger)
        throws(SystemError)
    {
        (self.loop, self.settings, self.listeners, self.log) = (loop, settings, listeners, log)
        listenerNames = listeners.map { Sockets.name(of: $0) }
        listenerFiles = areOurs ? listeners.compactMap { SocketFile(of: $0) } : []
        started = loop.now
        fleet = Fleet(
            workers: settings.workers, hasWriter: settings.database.sqlitePath != nil, now: started, drainMilliseconds: settings.times.drain
        )
        scoreboardMemory = try SharedMemory.create("codex-lb:scoreboard", count: Scoreboard.memoryBytes)
        scoreboard = Scoreboard(scoreboardMemory)
        scoreboard.set(.workerSlots, settings.workers)
        self.environment = environment
        // Children find the same places, whatever flags and relative paths said.
        self.environment["CODEX_LB_DATA_DIR"] = settings.dataDirectory
        self.environment["CODEX_LB_RUNTIME_DIR"] = settings.runtimeDirectory
        self.environment[Heritage.serverVariable] = "1"
        self.environment["CODEX_LB_WORKERS"] = String(settings.workers)
        for _ in 0..<settings.workers { journals.append(try SharedMemory.create("codex-lb:journal", count: Journal.memoryBytes())) }
        door = try ControlDoor(loop, path: settings.controlSocket, log: log, supervisor: self)
        for number in [SIGTERM, SIGINT] { _ = LoopSignal(loop, number) { [unowned self] in stopRequested(number) } }
        _ = LoopSignal(loop, SIGCHLD) { [unowned self] in reap() }
        _ = LoopSignal(loop, SIGHUP) { [unowned self] in
            self.log.notice("SIGHUP: this version has no reload; accounts, keys and settings take effect without one")
        }
        timer = LoopTimer(loop) { [unowned self] in tick() }
    }

    /// Upgrades the database in a child, then starts the fleet.
    func start() {
        do throws(SystemError) {
            upgrade = try Process.spawnSelf(["db", "upgrade", "--at-start"], heritage: nil, environment: environment)
        } catch {
            log.critical("cannot start", metadata: ["error": "\(error)"])
            return end(1)
        }
        timer.start(milliseconds: Self.tickMilliseconds, repeating: Self.tickMilliseconds)
    }

    var result: Int32 { exitCode ?? 0 }

    private func end(_ code: Int32) {
        guard exitCode == nil else { return }
        exitCode = code
        if let check { Process.signal(check, SIGKILL) }  // it only reads
        if let backup { Process.signal(backup, SIGTERM) }
        closeListeners()
        spool()
        ServiceManager.notify("STOPPING=1")
        door.close()
        loop.stop()
    }

    /// A backlog that nobody serves would take clients in only to reset them. What systemd holds stays with it, for the next start.
    private func closeListeners() {
        for descriptor in listeners { Descriptor.close(descriptor) }
        listeners = []
        for file in listenerFiles { file.remove() }
    }

    /// What no store has acknowledged outlives us as a file.
    private func spool() {
        do throws(SystemError) {
            guard
                let saved = try Spool.save(journals.map { Journal($0) }, directories: settings.spoolDirectories, now: Clock.wall)
            else { return }
            log.warning(
                "usage records that could not be stored are kept for the next start",
                metadata: ["records": "\(saved.count)", "file": "\(saved.path)"])
        } catch {
            log.critical("usage records are lost: they could be neither stored nor kept in a file", metadata: ["error": "\(error)"])
            exitCode = max(1, exitCode ?? 1)
        }
    }

    /// A migration may take longer than systemd gives a start.
    private func extendStart(_ now: Instant) {
        guard now >= extendAt else { return }
        extendAt = now.adding(milliseconds: Self.extendMilliseconds / 3)
        ServiceManager.notify("EXTEND_TIMEOUT_USEC=\(Self.extendMilliseconds * 1000)\nSTATUS=making the database ready")
    }

    private func tick() {
        let now = loop.now
        let isLookDue = now >= lookAt
        if isLookDue { lookAt = now.adding(milliseconds: Limits.lookMilliseconds) }
        door.sweep(now, isLookDue: isLookDue)
        droppedTold += LogSink.standard.dropped(since: droppedTold) { scoreboard.add(.logLinesDropped, $0) }
        guard upgrade == nil else { return extendStart(now) }
        if now >= backupAt, backup == nil, stopSignals == 0 { backup = oneShot(["db", "backup", "--scheduled"]) }
        perform(fleet.ticked(now))
        for child in fleet.children {
            let count =
                child.slot.role == .worker
                ? scoreboard.value(.heartbeat, worker: child.slot.number) : scoreboard.value(.writerHeartbeat)
            perform(fleet.heartbeatSeen(child.slot, count: count, now: now))
        }
        guard isLookDue else { return }
        bringHome(now)
        countRefused()
        tellStatus(now)
    }

    /// Records that the store has refused lie in files until an operator has them tried again.
    private func countRefused() {
        let files = Spool.files(directories: settings.spoolDirectories, .refused)
        guard files != refusedFiles else { return }
        refusedFiles = files
        // One that can't be read holds one thing to look at, at least.
        scoreboard.set(.recordsRefused, files.reduce(0) { $0 + ((try? Spool.load($1).records.count) ?? 1) })  // see above
    }

    /// The service manager's line says what `ctl status` says.
    private func tellStatus(_ now: Instant) {
        guard fleet.phase == .serving, stopSignals == 0 else { return }
        let problem = problem(now)
        let text = "serving on \(listenerNames.joined(separator: ", "))" + (problem.isEmpty ? "" : "; the database is \(problem)")
        guard text != statusTold else { return }
        statusTold = text
        ServiceManager.notify("STATUS=\(text)")
    }

    /// On a shared database no process of ours lives that could store an orphan's records: a child does it when there are any.
    private func bringHome(_ now: Instant) {
        guard settings.database.sqlitePath == nil, fleet.phase == .serving, homecoming == nil, now >= homecomingAt,
            !Spool.files(directories: settings.spoolDirectories).isEmpty
        else { return }
        homecomingAt = now.adding(milliseconds: Self.homecomingMilliseconds)
        homecoming = oneShot(["db", "bring-home"])
    }

    private func perform(_ actions: [Fleet.Action]) {
        for action in actions {
            switch action {
            case .spawn(let slot): spawn(slot)
            case .drain(let slot, let milliseconds):
                var drain = Drain()
                drain.milliseconds = UInt32(milliseconds)
                links[slot]?.send { $0.drain = drain }
            case .abort(let pid):
                log.error("child hangs: aborting it", metadata: ["pid": "\(pid)"])
                Process.signal(pid, SIGABRT)
            case .kill(let pid):
                log.error("child is overdue: killing it", metadata: ["pid": "\(pid)"])
                Process.signal(pid, SIGKILL)
            case .closeListeners: closeListeners()
            case .announceReady: announce()
            case .exit(let code): end(code)
            }
        }
    }

    private func spawn(_ slot: ChildSlot) {
        do throws(SystemError) {
            let (ours, theirs) = try Descriptor.socketPair()
            defer { Descriptor.close(theirs) }
            let isWorker = slot.role == .worker
            let heritage = Heritage(
                control: theirs, listeners: isWorker ? listeners : [], scoreboard: scoreboardMemory.descriptor,
                journal: isWorker ? journals[slot.number].descriptor : -1, slot: slot.number, generation: generation,
                dataDirectory: settings.dataDirectory, runtimeDirectory: settings.runtimeDirectory)
            let pid: Int32
            do throws(SystemError) {
                pid = try Process.spawnSelf(["role", slot.role.rawValue], heritage: heritage, environment: environment)
            } catch {
                Descriptor.close(ours)
                throw error
            }
            links[slot]?.close()
            links[slot] = ChildLink(loop, ours, slot, self)
            log.debug("child started", metadata: ["child": "\(slot)", "pid": "\(pid)"])
            perform(fleet.spawned(slot, pid: pid, now: loop.now))
        } catch {
            log.error("child cannot be started", metadata: ["child": "\(slot)", "error": "\(error)"])
            perform(fleet.spawnFailed(slot, now: loop.now))
        }
    }

    private func oneShot(_ arguments: [String]) -> Int32? {
        do throws(SystemError) {
            return try Process.spawnSelf(arguments, heritage: nil, environment: environment)
        } catch {
            log.error("child cannot be started", metadata: ["child": "\(arguments.joined(separator: " "))", "error": "\(error)"])
            return nil
        }
    }

    private func startJobs() {
        if settings.database.sqlitePath != nil, settings.database.startupCheck != .off {
            scoreboard.set(.checkResult, Scoreboard.CheckResult.running.rawValue)
            check = oneShot(["db", "check", "--at-start"] + (settings.database.startupCheck == .quick ? ["--quick"] : []))
        }
        if let interval = settings.database.backupIntervalMilliseconds {
            backupAt = loop.now.adding(milliseconds: min(interval, Self.backupLookMilliseconds))
        }
    }

    private func reapJobs() {
        if let pid = check, let exit = Process.reap(pid) {
            check = nil
            let result: Scoreboard.CheckResult =
                exit == .code(0) ? .good : exit == .code(OneShotExit.damaged) ? .damaged : .failed
            scoreboard.set(.checkResult, result.rawValue)
            switch result {
            case .good: log.info("the database is sound")
            case .damaged:
                databaseProblem = "damaged: see the log, then codex-lb db check, db recover, db restore"
                log.critical(
                    "the database is damaged; the lines above say where. Stop the server, then codex-lb db recover or codex-lb db restore")
            default: log.warning("the database could not be checked, or its schema is not as expected", metadata: ["exit": "\(exit)"])
            }
        }
        if let pid = homecoming, let exit = Process.reap(pid) {
            homecoming = nil
            if exit != .code(0) {
                log.warning("usage records of an earlier run could not all be stored yet", metadata: ["exit": "\(exit)"])
            }
        }
        if let pid = backup, let exit = Process.reap(pid) {
            backup = nil
            let interval = settings.database.backupIntervalMilliseconds ?? Self.backupLookMilliseconds
            backupAt = loop.now.adding(milliseconds: min(interval, Self.backupLookMilliseconds))
            if exit != .code(0) { log.error("the scheduled backup failed; the lines above say why", metadata: ["exit": "\(exit)"]) }
        }
    }

    private func reap() {
        reapJobs()
        if let pid = upgrade, let exit = Process.reap(pid) {
            upgrade = nil
            switch exit {
            case .code(0): break
            case .code(OneShotExit.oldSchemaUsable):
                databaseProblem = "the upgrade of the schema failed: serving with the old one"
                log.error(
                    "the schema could not be upgraded; going on with the old one, since CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST is false")
            case .signal where stopSignals > 0: return end(0)
            default:
                log.critical("the database could not be made ready; the lines above say why", metadata: ["exit": "\(exit)"])
                return end(exit == .code(OneShotExit.needsOperator) ? OneShotExit.needsOperator : 1)
            }
            if stopSignals > 0 { return end(0) }
            tick()
        }
        for child in fleet.children {
            guard let pid = child.state.pid, let exit = Process.reap(pid) else { continue }
            let hasRecords = child.slot.role == .worker && !Journal(journals[child.slot.number]).isEmpty
            let isOrderly = exit == .code(0) && child.state.name == "draining"
            if !isOrderly {
                log.error(
                    "child ended",
                    metadata: ["child": "\(child.slot)", "pid": "\(pid)", "cause": "\(exit)", "unacknowledged_records": "\(hasRecords)"])
            }
            links[child.slot]?.close()
            links[child.slot] = nil
            if child.slot.role == .writer { door.writerGone() }
            if child.slot.role == .worker { scoreboard.workerStarted(child.slot.number) }
            // One that ended by itself has tried to hand its records over for as long as there is sense in it.
            perform(fleet.exited(pid: pid, hasRecords: hasRecords && !isOrderly, now: loop.now))
        }
    }

    private func stopRequested(_ number: Int32) {
        stopSignals += 1
        if stopSignals > 1 {
            log.warning("second signal: ending at once")
            if let upgrade { Process.signal(upgrade, SIGKILL) }
            return perform(fleet.stopNow())
        }
        log.notice("stopping: open turns are finished first", metadata: ["signal": "\(number == SIGINT ? "SIGINT" : "SIGTERM")"])
        ServiceManager.notify("STOPPING=1\nSTATUS=stopping: open turns are finished first")
        // It ends while it only waits for the database. A migration is never cut: the end comes after it.
        if let upgrade {
            closeListeners()
            return Process.signal(upgrade, SIGTERM)
        }
        perform(fleet.stop(loop.now))
    }

    private func announce() {
        let names = listenerNames
        log.notice(
            "ready",
            metadata: [
                "workers": "\(settings.workers)", "listen": "\(names.joined(separator: " "))", "accounts": "\(readyFacts?.accounts ?? 0)",
                "milliseconds": "\(loop.now.milliseconds(since: started))",
            ])
        if readyFacts?.accounts == 0 {
            log.notice("no account yet; add one with: codex-lb accounts add NAME --base-url https://api.openai.com/v1 --key-file FILE")
        }
        startJobs()
        statusTold = "serving on \(names.joined(separator: ", "))"
        ServiceManager.notify("READY=1\nSTATUS=\(statusTold)")
    }

    // MARK: What children say

    func received(_ frame: Frame, from slot: ChildSlot) {
        switch frame.body {
        case .ready(let ready):
            if slot.role == .writer || readyFacts == nil {
                readyFacts = ready
                scoreboard.set(.schemaRevision, Int(ready.revision) ?? 0)
                log.info(
                    "database ready",
                    metadata: ["database": "\(ready.database)", "revision": "\(ready.revision)", "accounts": "\(ready.accounts)"])
            }
            perform(fleet.ready(slot, now: loop.now))
        case .refused(let refused):
            log.critical("\(refused.reason)", metadata: ["child": "\(slot)"])
            perform(fleet.refused(slot, now: loop.now))
        case .storeReply(let reply):
            door.answered(frame.correlation, reply)
        default: break
        }
    }

    /// Damage and old schemas stay; that the database is away comes and goes, and its word is that of `/health/ready`.
    private func problem(_ now: Instant) -> String {
        if !databaseProblem.isEmpty { return databaseProblem }
        if scoreboard.isStoreAway(now: now, isPolled: settings.database.sqlitePath == nil) {
            return "unreachable: records wait in the journals; the log says why"
        }
        guard case let held = scoreboard.value(.logHeldBytes), held > 0 else { return "" }
        return "log held by a reader: \(held >> 20) MiB and growing; the log says how to find it"
    }

    /// Passes a command to the writer; false when there is none.
    func toWriter(_ correlation: UInt64, _ command: StoreCommand) -> Bool {
        guard let link = links[ChildSlot(.writer)] else { return false }
        link.send {
            $0.correlation = correlation
            $0.storeCommand = command
        }
        return true
    }

    func status() -> StatusReply {
        var reply = StatusReply()
        let now = loop.now
        reply.supervisorPid = Int64(Process.id)
        reply.version = Version.text
        reply.generation = generation
        reply.state = fleet.phase.rawValue
        reply.ageMs = UInt64(now.milliseconds(since: started))
        reply.listeners = listenerNames
        reply.dataDirectory = settings.dataDirectory
        reply.database = settings.database.url.description
        let revision = scoreboard.value(.schemaRevision)
        if revision > 0 { reply.revision = String(repeating: "0", count: max(0, 4 - String(revision).count)) + String(revision) }
        reply.databaseProblem = problem(now)
        reply.children = fleet.children.map { child in
            var status = ChildStatus()
            status.pid = Int64(child.state.pid ?? 0)
            status.role = child.slot.role.rawValue
            status.slot = UInt32(child.slot.number)
            status.generation = generation
            status.state = child.state.name
            status.ageMs = UInt64(now.milliseconds(since: child.since))
            status.restarts = UInt32(child.restarts)
            if child.slot.role == .worker {
                status.connections = UInt32(clamping: scoreboard.value(.openConnections, worker: child.slot.number))
            }
            return status
        }
        return reply
    }
}

/// Exit codes of the one-shot children, beyond 0 (all done) and 1 (failed).
public enum OneShotExit {
    /// `db upgrade --at-start`: it failed, and the schema that is there will do.
    public static let oldSchemaUsable: Int32 = 3
    /// `db check --at-start`: pages, rows or indexes are damaged.
    public static let damaged: Int32 = 4
    /// What stands in the way is for an operator to change; starting again would meet the same (EX_CONFIG of sysexits.h). The server ends
    /// with it too, so that a service manager need not try (RestartPreventExitStatus).
    public static let needsOperator: Int32 = 78
}

/// The supervisor's end of a child's control socket.
final class ChildLink: ByteStreamDelegate {
    private let stream: ByteStream
    private let slot: ChildSlot
    private unowned let supervisor: Supervisor
    private var reader = FrameReader()

    init(_ loop: EventLoop, _ descriptor: Int32, _ slot: ChildSlot, _ supervisor: Supervisor) {
        (self.slot, self.supervisor) = (slot, supervisor)
        stream = ByteStream(loop, .unix)
        do throws(LoopError) { try stream.open(descriptor) } catch { preconditionFailure("control socket: \(error)") }
        stream.delegate = self
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        var bytes: [UInt8] = []
        FrameCodec.encode(frame, into: &bytes)
        stream.write(bytes)
    }

    func close() { stream.close() }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in supervisor.received(frame, from: slot) }
        } catch {
            stream.close()  // it talks nonsense: it will see our end and go
        }
    }
    // The exit itself is told by SIGCHLD.
    func streamEnded(_ stream: ByteStream) {}
    func streamFailed(_ stream: ByteStream, _ error: LoopError) {}
    func streamDrained(_ stream: ByteStream) {}
}
