import ControlWire
public import Logging
import Loop
public import Platform
import SQLiteStore
public import Settings
import Store
import Vocabulary

public enum WriterRole {
    /// How long a new writer waits for the old one to let the database go.
    static let lockWaitMilliseconds = 5_000

    /// Runs the writer until it has drained. Called in the process that the supervisor started for it.
    public static func run(heritage: Heritage, settings: Settings, log: Logger) -> Int32 {
        Process.name("codex-lb:writer")
        Process.forbidDumps()
        let loop = EventLoop()
        let supervisor: SupervisorLink
        do throws(LoopError) {
            supervisor = try SupervisorLink(loop, heritage)
        } catch {
            log.critical("control socket unusable", metadata: ["error": "\(error)"])
            return 1
        }
        do {
            guard let path = settings.database.sqlitePath else {
                log.critical("the writer is for SQLite only", metadata: ["database": "\(settings.database.url)"])
                return 1
            }
            // The upgrade is over: what the schema is now must do.
            let store = try SQLiteStore.open(
                path: path, keyPath: settings.keyFile, appVersion: Version.text, lockWaitMilliseconds: lockWaitMilliseconds,
                now: Clock.wall, upgrade: nil)
            let writer = try Writer(loop, store, try store.snapshot(), heritage, settings, log)
            writer.start(supervisor, database: path, revision: store.revision)
            loop.run()
            writer.close()
            return 0
        } catch let error as StoreError where !error.mayBeRetried {
            supervisor.send { $0.refused.reason = error.message }
            return 1
        } catch {
            log.critical("the writer cannot start", metadata: ["error": "\(error)"])
            return 1
        }
    }
}
