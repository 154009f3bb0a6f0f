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

/// One-shot children beside the fleet: the check after the start, backups, records that orphans have left.
extension Supervisor {
    /// On a shared database no process of ours lives that could store an orphan's records: a child does it when there are any.
    func bringHome(_ now: Instant) {
        guard settings.database.sqlitePath == nil, fleet.phase == .serving, homecoming == nil, now >= homecomingAt,
            !Spool.files(directories: settings.spoolDirectories).isEmpty
        else { return }
        homecomingAt = now.adding(milliseconds: Self.homecomingMilliseconds)
        homecoming = oneShot(["db", "bring-home"])
    }

    func oneShot(_ arguments: [String]) -> Int32? {
        do throws(SystemError) {
            return try Process.spawnSelf(arguments, heritage: nil, environment: plan.environment)
        } catch {
            log.error("child cannot be started", metadata: ["child": "\(arguments.joined(separator: " "))", "error": "\(error)"])
            return nil
        }
    }

    func startJobs() {
        if settings.database.sqlitePath != nil, settings.database.startupCheck != .off {
            scoreboard.set(.checkResult, Scoreboard.CheckResult.running.rawValue)
            check = oneShot(["db", "check", "--at-start"] + (settings.database.startupCheck == .quick ? ["--quick"] : []))
        }
        scheduleBackup()
        schedulePrune()
    }

    /// One that is at it by other settings ends after its portion.
    func schedulePrune() {
        if let prune { Process.signal(prune, SIGTERM) }
        pruneAt = settings.database.retentionDays == nil ? .never : loop.now
    }

    func scheduleBackup() {
        guard let interval = settings.database.backupIntervalMilliseconds else { return }
        backupAt = loop.now.adding(milliseconds: min(interval, Self.backupLookMilliseconds))
    }

    func reapJobs() {
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
        if let pid = prune, let exit = Process.reap(pid) {
            prune = nil
            if exit != .code(0), exit != .signal(SIGTERM), stopSignals == 0 {
                log.warning("old usage records could not be deleted; the lines above say why", metadata: ["exit": "\(exit)"])
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

    // MARK: Pins

    private var pinFile: String { settings.dataDirectory + "/pins" }

    func loadPins() {
        do throws(SystemError) {
            guard let count = try PinFile.load(pinFile, into: scoreboard.pins, now: loop.now, wall: Clock.wall) else { return }
            log.debug("conversations of the last run are known", metadata: ["pins": "\(count)"])
        } catch { log.warning("conversations of the last run are not known", metadata: ["error": "\(error)"]) }
    }

    /// Writes them when it is time and there were turns; `never`: the last time, whatever the time is.
    func savePins(_ now: Instant) {
        let turns = scoreboard.sum(.turnsFinished)
        guard now >= pinsSaveAt, turns != pinsTurns else { return }
        pinsSaveAt = now == .never ? .never : now.adding(milliseconds: Limits.pinFileMilliseconds)
        do throws(SystemError) {
            _ = try PinFile.save(scoreboard.pins, to: pinFile, now: loop.now, wall: Clock.wall)
            pinsTurns = turns
        } catch { log.warning("whose conversations are whose can't be kept for the next start", metadata: ["error": "\(error)"]) }
    }
}
