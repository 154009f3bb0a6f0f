import ArgumentParser
import ControlWire
import Platform
import PostgresStore
import SQLiteStore
import Schema
import Settings
import Store
import SupervisorRole
import Vocabulary
import WriterRole

#if canImport(Glibc)
    import Glibc
#endif

extension Database {
    struct Upgrade: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Bring the schema to this build's revision.",
            discussion: "A copy of an SQLite database is made first. The start of the server runs the same.")
        @Option(name: .customLong("to"), help: "Stop at this revision, for example 0001.") var target: String?
        @Flag(name: .customLong("dry-run"), help: "Print the statements and change nothing.") var isDry = false
        @Flag(name: .customLong("at-start"), help: .hidden) var isAtStart = false
        /// For tests: kill -9 just before the n-th statement.
        @Option(name: .customLong("die-before"), help: .hidden) var dieBefore: Int?
        @OptionGroup var database: DatabaseOptions

        func validate() throws {
            guard let target else { return }
            guard Schema.revisions.contains(where: { $0.id == target }) else {
                throw ValidationError("--to \(target): this build knows \(Schema.revisions.map(\.id).joined(separator: ", "))")
            }
        }

        func run() throws {
            let settings = try database.settings()
            if isDry { return try LocalStore.failing { try show(LocalStore.pending(settings), settings) } }
            if isAtStart { return try start(settings) }
            try LocalStore.failing {
                // A running server holds the right to write: whoever asks for what is there already need not wait for it.
                // The ledger is read second: another migrator may be at work.
                let isPending = try LocalStore.pending(settings).contains { target == nil || $0.id <= target! }
                let before = try LocalStore.history(settings)
                if !before.isEmpty, !isPending { return report(before.last?.id, before.last?.id ?? "", [], nil, settings) }
                let store = try Ticker.during("upgrading \(settings.database.url)") {
                    try LocalStore.upgrade(
                        settings, target: target.flatMap { Int($0) }, lockWaitMilliseconds: settings.database.lockTimeoutMilliseconds,
                        dieBefore: dieBefore)
                }
                defer { store.close() }
                report(before.last?.id, store.revision, store.applied, store.backup, settings)
            }
        }

        private func show(_ revisions: [Revision], _ settings: Settings) {
            let revisions = revisions.filter { target == nil || $0.id <= target! }
            let dialect: Dialect = settings.database.sqlitePath == nil ? .postgresql : .sqlite
            if database.json {
                print(
                    JSONText.array(
                        revisions.map {
                            JSONText.object([
                                ("id", .string($0.id)), ("name", .string($0.name)),
                                ("statements", .raw(JSONText.array(($0.statements[dialect] ?? []).map { $0.jsonQuoted }))),
                            ])
                        }))
            } else if revisions.isEmpty {
                print("\(settings.database.url): nothing to do")
            }
            if database.json { return }
            for revision in revisions {
                print("-- revision \(revision.id): \(revision.name)")
                for statement in revision.statements[dialect] ?? [] { print(statement + ";") }
            }
        }

        private func report(_ before: String?, _ after: String, _ applied: [String], _ backup: String?, _ settings: Settings) {
            if database.json {
                print(
                    JSONText.object([
                        ("database", .string(settings.database.url.description)), ("before", .optional(before)),
                        ("revision", .string(after)), ("applied", .raw(JSONText.array(applied.map { $0.jsonQuoted }))),
                        ("backup", .optional(backup)),
                    ]))
                return
            }
            if let backup { complain("\(settings.database.url): copied to \(backup) before the upgrade") }
            if applied.isEmpty {
                if !isAtStart { print("\(settings.database.url): revision \(after), nothing to do") }
            } else {
                complain("\(settings.database.url): revision \(applied.joined(separator: ", ")) applied")
            }
        }

        // MARK: At start

        /// What the supervisor has done before it starts the fleet: waits for the database, migrates or looks whether that is needed, brings
        /// home what an earlier instance could not store, tells what an operator should know.
        private func start(_ settings: Settings) throws {
            Self.heedStop(SIG_BLOCK)
            try LocalStore.failing(isAtStart: true) {
                tellPlace(settings)
                let store: StoreSession
                do throws(StoreError) {
                    store = try waiting(settings) { () throws(StoreError) in try ready(settings) }
                } catch {
                    let mayGoOn = settings.database.migratesOnStartup && !settings.database.failsFast && !error.isSchemaRefusal
                    let old = mayGoOn ? try? openAsItIs(settings) : nil  // why that fails too says nothing more
                    guard let old else { throw error }
                    complain(error.message)
                    defer { old.close() }
                    _ = Homecoming.run(settings.spoolDirectories, old, tell: complain)
                    throw ExitCode(OneShotExit.oldSchemaUsable)
                }
                defer { store.close() }
                report(nil, store.revision, store.applied, store.backup, settings)
                _ = Homecoming.run(settings.spoolDirectories, store, tell: complain)
                tellCapacity(settings)
            }
        }

        private func ready(_ settings: Settings) throws(StoreError) -> StoreSession {
            if settings.database.migratesOnStartup {
                return try Ticker.during("making \(settings.database.url) ready") { () throws(StoreError) in
                    try LocalStore.upgrade(
                        settings, lockWaitMilliseconds: settings.database.lockTimeoutMilliseconds, dieBefore: dieBefore)
                }
            }
            try LocalStore.mayUpgrade(settings)
            // Nothing is pending: this opens it, with its key.
            return try LocalStore.upgrade(settings, lockWaitMilliseconds: settings.database.lockTimeoutMilliseconds)
        }

        /// A server that can't be reached may be starting too: it is tried again, with growing pauses, up to the limit.
        private func waiting<T>(_ settings: Settings, _ body: () throws(StoreError) -> T) throws(StoreError) -> T {
            let start = Clock.now
            let limit = settings.database.startupWaitMilliseconds
            var pause = 100
            while true {
                do throws(StoreError) { return try body() } catch {
                    let isPassing = settings.database.sqlitePath == nil && [.unreachable, .exhausted, .readOnly].contains(error.kind)
                    let waited = Clock.now.milliseconds(since: start)
                    guard isPassing else { throw error }
                    // The last try is at the end, not before it.
                    pause = min(pause, max(50, limit - waited))
                    guard waited < limit else {
                        throw StoreError(error.kind, "\(error.message) (waited \(waited / 1000) s, CODEX_LB_DATABASE_STARTUP_WAIT_SECONDS)")
                    }
                    complain("waiting for the database, \(waited / 1000) of \(limit / 1000) s: \(error.message)")
                    Self.heedStop(SIG_UNBLOCK)
                    usleep(UInt32(pause) * 1000)
                    Self.heedStop(SIG_BLOCK)
                    pause = min(5_000, pause * 2)
                }
            }
        }

        /// The supervisor's order to stop ends this process where it only waits for the server; everywhere else the order waits.
        private static func heedStop(_ how: Int32) {
            var signals = sigset_t()
            sigemptyset(&signals)
            sigaddset(&signals, SIGTERM)
            pthread_sigmask(how, &signals, nil)
        }

        /// The store with the schema that is there, if this build can work with it.
        private func openAsItIs(_ settings: Settings) throws(StoreError) -> StoreSession {
            switch settings.database.url {
            case .sqlite(let path):
                try SQLiteStore.open(
                    path: path, keyPath: settings.keyFile, appVersion: Version.text,
                    lockWaitMilliseconds: LocalStore.changeWaitMilliseconds, now: Clock.wall, upgrade: nil)
            case .postgresql(let url): try PostgresStore.open(url, keyPath: settings.keyFile)
            }
        }

        /// What is odd about a file's place, before it is opened.
        private func tellPlace(_ settings: Settings) {
            guard let path = settings.database.sqlitePath else { return }
            if let kind = Inspection.networkFileSystem(of: path) {
                complain(
                    "database \(path) is on a network file system (\(kind)), where SQLite's locks are not reliable and files get damaged; put it on a local disk, or use PostgreSQL"
                )
            }
            if access(path, F_OK) != 0, let newest = Backup.list(database: path).first {
                complain(
                    "there is no database at \(path), but a backup of one: \(newest.path). A new, empty one is made; to have the old one back stop this and run: codex-lb db restore \(newest.path)"
                )
            }
        }

        /// More connections than the server has would be refused under load, when they are needed most.
        private func tellCapacity(_ settings: Settings) {
            guard case .postgresql(let url) = settings.database.url, let server = try? PostgresStore.server(url) else { return }  // only advice
            let total = settings.database.poolTotal(workers: settings.workers)
            guard total > server.connections else { return }
            complain(
                "the pools of \(settings.workers) workers may open \(total) connections (CODEX_LB_DATABASE_POOL_SIZE \(settings.database.poolSize) + CODEX_LB_DATABASE_MAX_OVERFLOW \(settings.database.poolOverflow), at least 1 each), but \(settings.database.url) gives ordinary users \(server.connections) in all (max_connections less superuser_reserved_connections); lower the pool or raise max_connections"
            )
        }
    }

    struct Wait: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Wait until the database answers and has this build's schema, for start-up scripts.")
        @Option(name: .long, help: "Seconds, then exit code 1.") var timeout = 300.0
        @OptionGroup var database: DatabaseOptions

        func validate() throws {
            guard (0...86_400).contains(timeout) else { throw ValidationError("--timeout takes 0 to 86400 seconds") }
        }

        func run() throws {
            let settings = try database.settings()
            let start = Clock.now
            var (pause, told) = (50, 0)
            while true {
                var (problem, isPassing) = ("", true)
                do throws(StoreError) {
                    let pending = try LocalStore.pending(settings)
                    guard !pending.isEmpty else { break }
                    problem = "revision \(pending.map(\.id).joined(separator: ", ")) is not applied yet"
                } catch {
                    // User and database may be made by the same script that waits here.
                    (problem, isPassing) = (error.message, error.mayBeRetried || error.kind == .refused || error.kind == .missing)
                }
                let waited = Clock.now.milliseconds(since: start)
                guard isPassing, Double(waited) < timeout * 1000 else {
                    complain("\(settings.database.url) is not ready after \(waited / 1000) s: \(problem)")
                    throw ExitCode(1)
                }
                if waited / 10_000 >= told {
                    complain("waiting for \(settings.database.url), \(waited / 1000) s: \(problem)")
                    told = waited / 10_000 + 1
                }
                usleep(UInt32(pause) * 1000)
                pause = min(1_000, pause * 2)
            }
            let waited = Clock.now.milliseconds(since: start)
            if database.json {
                print(
                    JSONText.object([
                        ("database", .string(settings.database.url.description)), ("revision", .string(Schema.head.id)),
                        ("waited_ms", .int(Int64(waited))),
                    ]))
            } else {
                print("\(settings.database.url): ready, revision \(Schema.head.id)")
            }
        }
    }
}
