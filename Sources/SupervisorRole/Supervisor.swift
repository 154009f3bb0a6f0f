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
    let loop: EventLoop
    var log: Logger
    var fleet: Fleet
    let source: SettingsSource
    private let lock: InstanceLock
    let started: Instant
    /// What the generation in charge works by. its sockets are gone from the order to stop on.
    var plan: Plan
    var planGeneration: UInt64
    /// Of the generations that have a process, and of the candidate.
    var plans: [UInt64: Plan] = [:]
    /// Of the last generation that did not fail right after its reload (`Fleet.lastGood`).
    var goodPlan: Plan?
    /// Why the reload under way brings older settings back; empty when it does not.
    var returnReason = ""
    /// Of the program that is about to replace this one.
    var nextEnvironment: [String: String] = [:]
    /// The file that was asked, as it was then.
    var checkedFile: String?
    var isReplacing = false
    /// Another program was here before us, and not all of its processes have followed it yet.
    var isSuccessor = false
    /// Children that nobody waits for any more.
    var strays: [Int32] = []
    /// Of the reload under way, once its settings are known to be good.
    var nextPlan: Plan?
    private let scoreboardMemory: SharedMemory
    /// When the pins are written next, and how many turns had been finished when they were last.
    var pinsSaveAt = Instant(nanoseconds: 0), pinsTurns = 0
    let scoreboard: Scoreboard
    /// By the row whose process appends to it.
    var journals: [Int: SharedMemory] = [:]
    private let handover: (taking: Int32, giving: Int32)
    var links: [ChildID: ChildLink] = [:]
    private var exitCode: Int32?
    /// The one-shot child that makes the database ready, before the fleet.
    private var migration: Int32?
    /// One-shot children beside the fleet: the check after the start, the scheduled backup.
    var check: Int32?
    var backup: Int32?
    var prune: Int32?
    /// Settings being read for a reload. The last one counts; those before were late, and have not been reaped yet.
    var readings: [SettingsReading] = []
    /// How many reloads have begun, and who waits for one of which number.
    var reloads = 0
    var waiting: [ReloadWaiter] = []
    /// Why the last reload failed; empty when it did not.
    var reloadProblem = ""
    var backupAt = Instant.never
    /// When usage records are looked for that are older than they are kept.
    var pruneAt = Instant.never
    private var extendAt = Instant(nanoseconds: 0)
    private let watchdogMilliseconds = ServiceManager.watchdogMilliseconds(Environment.current)
    private var aliveAt = Instant(nanoseconds: 0)
    private var droppedTold = 0
    private var lookAt = Instant(nanoseconds: 0)
    /// The one-shot child that stores what orphans of an earlier supervisor left as files; for SQLite the writer does it.
    var homecoming: Int32?
    var homecomingAt = Instant(nanoseconds: 0)
    /// One line about the database that an operator should know; empty when all is well.
    var databaseProblem = ""
    private var timer: LoopTimer!
    private var control: ControlServer!
    /// What workers serve by, sealed: for one that starts while PostgreSQL is away. The last one told, as of the workers themselves.
    /// By generation: one that is not in charge yet, or no more, may read another database.
    private var keptSnapshots: [UInt64: KeptSnapshot] = [:]
    private var readyFacts: Ready?
    var stopSignals = 0
    private var refusedFiles: [String] = []
    /// What the service manager was told last.
    var statusTold = ""

    var settings: Settings { plan.settings }
    var listenerNames: [String] { plan.sockets.map(\.name) }

    static let tickMilliseconds = 50
    /// A scheduled backup's child looks itself whether one is due; this is how often it is asked at most.
    static let backupLookMilliseconds = 300_000
    /// How much longer a start may take, said again and again while the database is being made ready.
    static let extendMilliseconds = 60_000
    /// Between two tries to store orphans' records in a shared database.
    static let homecomingMilliseconds = 10_000

    init(_ loop: EventLoop, _ plan: Plan, _ source: SettingsSource, _ lock: InstanceLock, log: Logger) throws(SystemError) {
        (self.loop, self.plan, self.source, self.lock, self.log) = (loop, plan, source, lock, log)
        started = loop.now
        let settings = plan.settings
        fleet = Fleet(
            workers: settings.workers, hasWriter: settings.database.sqlitePath != nil, now: started, times: Fleet.Times(settings))
        planGeneration = fleet.generation
        plans = [fleet.generation: plan]
        scoreboardMemory = try SharedMemory.create("codex-lb:scoreboard", count: Scoreboard.memoryBytes)
        scoreboard = Scoreboard(fresh: scoreboardMemory)
        handover = try HandoverSocket.pair()
        control = try ControlServer(loop, path: settings.controlSocket, supervisor: self)
        loadPins()
        obeySignals()
        timer = LoopTimer(loop) { [unowned self] in tick() }
    }

    /// Goes on with what another program has left in this process.
    init(
        _ loop: EventLoop, adopting left: Succession, _ settings: Settings, _ source: SettingsSource, _ lock: InstanceLock, log: Logger
    ) throws(SystemError) {
        (self.loop, self.source, self.lock, self.log) = (loop, source, lock, log)
        for descriptor in left.descriptors { Descriptor.setCloseOnExec(descriptor) }
        started = Instant(nanoseconds: left.startedNs)
        guard let fleet = left.fleet(now: loop.now, times: Fleet.Times(settings)) else {
            throw SystemError(EPROTO, "what codex-lb \(left.versionBefore) has left")
        }
        self.fleet = fleet
        var sockets: [ListeningSocket] = []
        for socket in left.sockets { sockets.append(try ListeningSocket(socket)) }
        for generation in left.generations {
            plans[generation.number] = Plan(
                settings: settings, environment: left.environment, sockets: generation.sockets.map { sockets[Int($0)] })
        }
        (planGeneration, isSuccessor) = (fleet.generation, true)
        plan = plans[fleet.generation] ?? Plan(settings: settings, environment: left.environment, sockets: sockets)
        scoreboardMemory = try SharedMemory(descriptor: left.scoreboard, count: Scoreboard.memoryBytes)
        scoreboard = try Scoreboard(inherited: scoreboardMemory)
        for journal in left.journals {
            journals[Int(journal.row)] = try SharedMemory(descriptor: journal.descriptorNumber, count: Journal.memoryBytes())
        }
        handover = (left.handoverTaking, left.handoverGiving)
        (check, backup) = (left.checkPid == 0 ? nil : left.checkPid, left.backupPid == 0 ? nil : left.backupPid)
        homecoming = left.homecomingPid == 0 ? nil : left.homecomingPid
        (strays, databaseProblem) = (left.strayPids, left.databaseProblem)
        if left.hasKeptSnapshot { keptSnapshots[fleet.generation] = left.keptSnapshot }
        control = try ControlServer(loop, path: settings.controlSocket, supervisor: self, adopting: left.control)
        for (child, (link, pending)) in zip(fleet.children, zip(left.childLinks, left.childPending)) where link >= 0 {
            links[child.id] = ChildLink(loop, link, child.id, self, unfinished: Array(pending))
        }
        try control.adopt(left.visitors) { since, answer in
            waiting.append(ReloadWaiter(number: 1, since: since, isUpgrade: true, answer: answer))
        }
        obeySignals()
        timer = LoopTimer(loop) { [unowned self] in tick() }
    }

    /// Begins where another program has left off: with new workers.
    func takeOver(from version: String) {
        log.notice(
            "taken over: workers of this program are started",
            metadata: ["version": "\(Version.text)", "before": "\(version)", "generation": "\(fleet.generation)"])
        timer.start(milliseconds: Self.tickMilliseconds, repeating: Self.tickMilliseconds)
        scheduleBackup()
        schedulePrune()
        reap()  // who ended while nobody listened
        perform(fleet.adopted(now: loop.now))
    }

    /// No word is half said between us and anybody.
    var isAtRest: Bool { control.isAtRest && links.values.allSatisfy(\.isAtRest) && stopSignals == 0 }

    /// What another program in this process needs to go on, in these settings.
    func succession(_ environment: [String: String]) -> Succession {
        var left = Succession()
        left.environment = environment
        left.locks = lock.descriptors
        left.scoreboard = scoreboardMemory.descriptor
        (left.handoverTaking, left.handoverGiving) = handover
        control.leave(to: &left)
        left.journals = journals.map { row, memory in
            var journal = SuccessionJournal()
            (journal.row, journal.descriptorNumber) = (UInt32(row), memory.descriptor)
            return journal
        }
        // A socket that has been closed is none of anybody's any more.
        let sockets = plan.sockets
        left.sockets = sockets.map {
            var socket = SuccessionSocket()
            (socket.address, socket.descriptorNumber, socket.isProxied) = ($0.spec?.text ?? "", $0.descriptor, $0.isProxied)
            return socket
        }
        left.generations = plans.map { number, plan in
            var generation = SuccessionGeneration()
            generation.number = number
            generation.sockets = plan.sockets.compactMap { sockets.firstIndex(of: $0).map { UInt32($0) } }
            return generation
        }
        left.setFleet(fleet)
        for child in fleet.children {
            let link = links[child.id]
            left.addLink(link?.descriptor ?? -1, unfinished: link?.unfinished ?? [])
        }
        (left.checkPid, left.backupPid, left.homecomingPid) = (check ?? 0, backup ?? 0, homecoming ?? 0)
        left.strayPids = strays + readings.filter { $0.exit == nil }.map(\.pid) + (prune.map { [$0] } ?? [])
        left.startedNs = started.nanoseconds
        left.databaseProblem = databaseProblem
        left.versionBefore = Version.text
        if let kept = keptSnapshots[fleet.generation] { left.keptSnapshot = kept }
        return left
    }

    func obstacle(to new: Settings) -> String? { plan.obstacle(to: new) }

    /// Upgrades the database in a child, then starts the fleet.
    func start() {
        do throws(SystemError) {
            migration = try Process.spawnSelf(["db", "upgrade", "--at-start"], heritage: nil, environment: plan.environment)
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
        for job in [backup, prune] { if let job { Process.signal(job, SIGTERM) } }
        for reading in readings where reading.exit == nil { Process.signal(reading.pid, SIGKILL) }  // they only read
        closeListeners()
        spool()
        savePins(.never)
        awaitJobs()
        ServiceManager.notify("STOPPING=1")
        ServiceManager.barrier(milliseconds: Limits.barrierMilliseconds)
        control.close()
        loop.stop()
    }

    /// They were told to end. Whoever comes after us finds nobody at work on the database.
    private func awaitJobs() {
        let end = Clock.now.adding(milliseconds: Limits.leavingMilliseconds)
        var left = [backup, prune].compactMap { $0 }
        while !left.isEmpty, Clock.now < end {
            left.removeAll { Process.reap($0) != nil }
            usleep(10_000)
        }
    }

    /// A backlog that nobody serves would take clients in only to reset them. What systemd holds stays with it, for the next start.
    private func closeListeners() {
        for socket in plan.sockets { socket.close() }
        plan.sockets = []
    }

    /// What no store has acknowledged outlives us as a file.
    private func spool() {
        do throws(SystemError) {
            guard
                let saved = try Spool.save(journals.values.map { Journal($0) }, directories: settings.spoolDirectories, now: Clock.wall)
            else { return }
            log.warning(
                "usage records that could not be stored are kept for the next start",
                metadata: ["records": "\(saved.count)", "file": "\(saved.path)"])
        } catch {
            log.critical("usage records are lost: they could be neither stored nor kept in a file", metadata: ["error": "\(error)"])
            exitCode = max(1, exitCode ?? 1)
        }
    }

    /// Says to the service manager that this loop turns; when it does not, the manager ends us and starts another one.
    private func tellAlive(_ now: Instant) {
        guard let watchdogMilliseconds, now >= aliveAt else { return }
        aliveAt = now.adding(milliseconds: watchdogMilliseconds)
        ServiceManager.notify("WATCHDOG=1", isRepeated: true)
    }

    /// Open turns may take longer to end than systemd gives a stop.
    private func extendStop(_ now: Instant) {
        guard now >= extendAt, fleet.phase == .stoppingWorkers || fleet.phase == .stoppingWriter else { return }
        extendAt = now.adding(milliseconds: Limits.extendMilliseconds)
        ServiceManager.notify("EXTEND_TIMEOUT_USEC=\(2 * Limits.extendMilliseconds * 1000)", isRepeated: true)
    }

    /// A migration may take longer than systemd gives a start.
    private func extendStart(_ now: Instant) {
        guard now >= extendAt else { return }
        extendAt = now.adding(milliseconds: Self.extendMilliseconds / 3)
        ServiceManager.notify(
            "EXTEND_TIMEOUT_USEC=\(Self.extendMilliseconds * 1000)\nSTATUS=making the database ready", isRepeated: true)
    }

    private func tick() {
        let now = loop.now
        ServiceManager.flush()
        tellAlive(now)
        let isLookDue = now >= lookAt
        if isLookDue { lookAt = now.adding(milliseconds: Limits.lookMilliseconds) }
        control.sweep(now, isLookDue: isLookDue)
        droppedTold += LogSink.standard.dropped(since: droppedTold) { scoreboard.add(.logLinesDropped, $0) }
        guard migration == nil else { return extendStart(now) }
        if now >= backupAt, backup == nil, stopSignals == 0 { backup = oneShot(["db", "backup", "--scheduled"]) }
        if now >= pruneAt, prune == nil, stopSignals == 0 {
            pruneAt = now.adding(milliseconds: Limits.pruneMilliseconds)
            prune = oneShot(["db", "prune", "--scheduled"])
        }
        perform(fleet.ticked(now))
        for child in fleet.children {
            let count = child.row.map { scoreboard.value(.heartbeat, worker: $0) } ?? scoreboard.value(.writerHeartbeat)
            perform(fleet.heartbeatSeen(child.id, count: count, now: now))
        }
        for reading in readings where now >= reading.by { reading.isLate() }
        extendStop(now)
        guard isLookDue else { return }
        mendTurns()
        bringHome(now)
        savePins(now)
        countRefused()
        tellStatus(now)
    }

    /// A worker that was killed between two counts of a turn has left one that nobody else takes back.
    private func mendTurns() {
        let count = scoreboard.reconcile()
        if count > 0 { log.notice("turns of a dead worker are taken back", metadata: ["accounts": "\(count)"]) }
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
        let serving = fleet.workers == 0 ? "drained, clients wait at" : "serving on"
        let text =
            "\(serving) \(listenerNames.joined(separator: ", "))" + (problem.isEmpty ? "" : "; the database is \(problem)")
            + (reloadProblem.isEmpty ? "" : "; the last reload failed: \(reloadProblem.printable)")
        guard text != statusTold else { return }
        statusTold = text
        ServiceManager.notify("STATUS=\(text)")
    }

    func perform(_ actions: [Fleet.Action]) {
        for action in actions {
            switch action {
            case .spawn(let id): spawn(id)
            case .drain(let id, let milliseconds, let handsOver): drain(id, milliseconds, handsOver)
            case .abort(let pid):
                log.error("child hangs: aborting it", metadata: ["pid": "\(pid)"])
                Process.signal(pid, SIGABRT)
            case .kill(let pid):
                log.error("child is overdue: killing it", metadata: ["pid": "\(pid)"])
                Process.signal(pid, SIGKILL)
            case .closeListeners: closeListeners()
            case .announceReady: announce()
            case .checkSettings: readSettings(source)
            case .reloaded(let generation): reloaded(generation)
            case .reloadFailed(let reason): reloadFailed(reason)
            case .restoreSettings(let good, let failed): restore(good, failed)
            case .checkProgram: checkProgram()
            case .replaceProgram: replaceProgram()
            case .upgradeFailed(let reason): upgradeFailed(reason)
            case .upgraded: upgraded()
            case .tightened(let generation, let milliseconds): tightened(generation, milliseconds)
            case .retired(let generation):
                plans[generation] = nil
                log.info("all processes of a generation have ended", metadata: ["generation": "\(generation)"])
            case .exit(let code): end(code)
            }
        }
    }

    /// Who is told to leave hears on which of its listeners nobody listens after it.
    private func drain(_ id: ChildID, _ milliseconds: Int, _ handsOver: Bool) {
        guard let child = fleet[id] else { return }
        var drain = Drain()
        drain.milliseconds = UInt32(clamping: milliseconds)
        drain.handsOver = handsOver
        for (number, socket) in (plans[child.generation]?.sockets ?? []).enumerated() where !plan.sockets.contains(socket) {
            drain.orphanedListeners.append(UInt32(number))
        }
        links[id]?.send { $0.drain = drain }
    }

    private func spawn(_ id: ChildID) {
        // A spawn before it may have failed, and this one with it.
        guard let child = fleet[id], case .waiting = child.state else { return }
        if child.slot.role == .worker, plans[child.generation] == nil { plans[child.generation] = nextPlan }
        let plan = plans[child.generation] ?? plan  // the writer goes by the settings of today
        do throws(SystemError) {
            let (ours, theirs) = try Descriptor.socketPair()
            defer { Descriptor.close(theirs) }
            var heritage = Heritage(
                control: theirs, listeners: [], scoreboard: scoreboardMemory.descriptor, journal: -1, handover: (-1, -1),
                slot: child.slot.number, row: child.row ?? 0, generation: child.generation, dataDirectory: plan.settings.dataDirectory,
                runtimeDirectory: plan.settings.runtimeDirectory)
            if let row = child.row {
                if journals[row] == nil { journals[row] = try SharedMemory.create("codex-lb:journal", count: Journal.memoryBytes()) }
                heritage.journal = journals[row]!.descriptor
                heritage.handover = handover
                // One that only brings records home listens nowhere, and its listeners may have been closed.
                if child.isWanted {
                    heritage.listeners = plan.sockets.map(\.descriptor)
                    heritage.proxied = Set(plan.sockets.indices.filter { plan.sockets[$0].isProxied })
                }
                scoreboard.close(row: row)
                scoreboard.setRows(inUse: fleet.rowsEnd)
            }
            let pid: Int32
            do throws(SystemError) {
                pid = try Process.spawnSelf(["role", child.slot.role.rawValue], heritage: heritage, environment: plan.environment)
            } catch {
                Descriptor.close(ours)
                throw error
            }
            links[id]?.close()
            links[id] = ChildLink(loop, ours, id, self)
            log.debug("child started", metadata: ["child": "\(child.slot)", "generation": "\(child.generation)", "pid": "\(pid)"])
            perform(fleet.spawned(id, pid: pid, now: loop.now))
        } catch {
            log.error("child cannot be started", metadata: ["child": "\(child.slot)", "error": "\(error)"])
            perform(fleet.spawnFailed(id, reason: "\(child.slot) can't be started: \(error)", now: loop.now))
        }
    }

    func reap() {
        reapJobs()
        if let pid = migration, let exit = Process.reap(pid) {
            migration = nil
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
        for reading in readings where reading.exit == nil {
            if let exit = Process.reap(reading.pid) { reading.ended(exit) }
        }
        strays.removeAll { Process.reap($0) != nil }
        for child in fleet.children {
            guard let pid = child.state.pid, let exit = Process.reap(pid) else { continue }
            ended(child, pid, exit)
        }
    }

    private func ended(_ child: Child, _ pid: Int32, _ exit: Process.Exit) {
        let journal = child.row.flatMap { journals[$0] }.map { Journal($0) }
        let hasRecords = journal.map { !$0.isEmpty } ?? false
        let isOrderly = exit == .code(0) && child.state.name == "draining"
        if !isOrderly {
            log.error(
                "child ended",
                metadata: [
                    "child": "\(child.slot)", "generation": "\(child.generation)", "pid": "\(pid)", "cause": "\(exit)",
                    "unacknowledged_records": "\(hasRecords)",
                ])
        }
        links[child.id]?.close()
        links[child.id] = nil
        if child.slot.role == .writer { control.writerGone() } else { control.workerGone(child.id) }
        if let row = child.row { scoreboard.close(row: row) }
        if !hasRecords { journal?.rest() }
        let actions = fleet.exited(pid: pid, hasRecords: hasRecords, isOrderly: isOrderly, reason: "\(exit)", now: loop.now)
        scoreboard.setRows(inUse: fleet.rowsEnd)
        perform(actions)
    }

    func stopRequested(_ number: Int32) {
        stopSignals += 1
        if stopSignals > 1 {
            log.warning("second signal: ending at once")
            return stopAtOnce()
        }
        log.notice("stopping: open turns are finished first", metadata: ["signal": "\(number == SIGINT ? "SIGINT" : "SIGTERM")"])
        ServiceManager.notify("STOPPING=1\nSTATUS=stopping: open turns are finished first")
        // It ends while it only waits for the database. A migration is never cut: the end comes after it.
        if let migration {
            closeListeners()
            return Process.signal(migration, SIGTERM)
        }
        perform(fleet.stop(loop.now))
    }

    func stopAtOnce() {
        stopSignals = max(1, stopSignals)
        if let migration { Process.signal(migration, SIGKILL) }
        perform(fleet.stopNow())
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
            log.notice(
                "no account yet; add one with: codex-lb accounts add NAME --base-url https://api.openai.com/v1 --key-file FILE, or log in with: codex-lb accounts login"
            )
        }
        startJobs()
        statusTold = "serving on \(names.joined(separator: ", "))"
        ServiceManager.notify("READY=1\nSTATUS=\(statusTold)")
    }

    // MARK: What children say

    func received(_ frame: Frame, from id: ChildID) {
        guard let slot = fleet[id]?.slot else { return }
        switch frame.body {
        case .ready(let ready):
            if slot.role == .writer || readyFacts == nil && settings.database.sqlitePath == nil {
                readyFacts = ready
                scoreboard.set(.schemaRevision, Int(ready.revision) ?? 0)
                log.info(
                    "database ready",
                    metadata: ["database": "\(ready.database)", "revision": "\(ready.revision)", "accounts": "\(ready.accounts)"])
            }
            perform(fleet.ready(id, now: loop.now))
        case .refused(let refused):
            log.critical("\(refused.reason)", metadata: ["child": "\(slot)"])
            perform(fleet.refused(id, reason: refused.reason, now: loop.now))
        case .hello where slot.role == .worker:
            // One of a new generation must show that it reaches the database by its settings.
            if let kept = keptSnapshots[fleet.generation], fleet[id]?.generation == fleet.generation {
                links[id]?.send { $0.keptSnapshot = kept }
            }
        case .keptSnapshot(let snapshot): keep(snapshot, of: fleet[id]?.generation ?? 0)
        case .storeReply(let reply):
            control.answered(frame.correlation) { $0.storeReply = reply }
        case .explainReply(let reply):
            control.answered(frame.correlation) { $0.explainReply = reply }
        default: break
        }
    }

    private func keep(_ snapshot: KeptSnapshot, of generation: UInt64) {
        guard generation >= fleet.generation else { return }
        keptSnapshots = keptSnapshots.filter { $0.key == fleet.generation }
        keptSnapshots[generation] = snapshot
    }

    /// Passes a command to the writer; false when there is none.
    func toWriter(_ correlation: UInt64, _ command: StoreCommand) -> Bool {
        guard let writer = fleet.children.first(where: { $0.slot.role == .writer }), let link = links[writer.id] else { return false }
        link.send {
            $0.correlation = correlation
            $0.storeCommand = command
        }
        return true
    }

    /// A worker of the generation in charge that serves.
    func servingWorker() -> ChildID? {
        for child in fleet.children where child.slot.role == .worker && child.generation == fleet.generation {
            if child.isReady, child.isWanted, links[child.id] != nil { return child.id }
        }
        return nil
    }

    func send(to child: ChildID, _ fill: (inout Frame) -> Void) { links[child]?.send(fill) }
}
