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

/// Carries out a command on the store: lists are read from the database directly. Changes of SQLite go to the running server, or with none
/// running are made here under the writer's lock, never behind the writer's back; a shared database is changed directly.
enum StoreClient {
    static func perform(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        if isList(command) { return try good(LocalStore.list(command, settings)) }
        if settings.database.sqlitePath != nil, let reply = try askServer(command, settings) { return reply }
        return try good(LocalStore.change(signed(command), settings))
    }

    /// The same by the running server alone; nil: none runs.
    static func askServer(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply? {
        guard let server = try ControlClient.connect(settings) else { return nil }
        var frame = Frame()
        frame.storeCommand = signed(command)
        guard case .storeReply(let reply)? = try server.ask(frame).body else {
            complain("the server gave an answer this build does not know")
            throw ExitCode(1)
        }
        return try good(reply)
    }

    private static func signed(_ command: StoreCommand) -> StoreCommand {
        var command = command
        command.givenBy = OperatorMessage(Operator.current)
        return command
    }

    private static func good(_ reply: StoreReply) throws -> StoreReply {
        guard reply.error.isEmpty else {
            complain(reply.error)
            throw ExitCode(1)
        }
        return reply
    }

    private static func isList(_ command: StoreCommand) -> Bool {
        switch command.body {
        case .listAccounts, .listClientKeys, .listUsage, .listSettings, .listAudit: true
        default: false
        }
    }
}

extension Operator {
    /// Who runs this command.
    static var current: Operator {
        Operator(User(Process.user, Process.userName(Process.user) ?? ""), environment: Environment.current)
    }
}

/// The database opened by the command line itself, whatever kind it is.
enum LocalStore {
    /// How long a change by hand waits for another writer of an SQLite database.
    static let changeWaitMilliseconds = 2_000

    /// Not even its file is there, as far as one may look.
    private static func isMissing(_ settings: Settings) -> Bool {
        settings.database.sqlitePath.map { access($0, F_OK) != 0 && errno == ENOENT } ?? false
    }

    static func list(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        if isMissing(settings) { return StoreReply() }  // nothing was ever stored
        return try failing {
            let store = try openReadOnly(settings)
            defer { store.close() }
            return StoreCommands.perform(command, on: store, now: Clock.wall, makesSnapshot: false).reply
        }
    }

    /// An account with its credentials.
    static func account(_ name: String, _ settings: Settings) throws -> Account {
        try failing {
            if isMissing(settings), let path = settings.database.sqlitePath {
                throw StoreError(.notFound, "there is no account \"\(name)\"; nothing was ever stored in \(path)")
            }
            let store = try openReadOnly(settings)
            defer { store.close() }
            return try store.account(named: name, keyPath: settings.keyFile)
        }
    }

    static func change(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        try failing {
            let store = try openForChange(settings)
            defer { store.close() }
            return StoreCommands.perform(command, on: store, now: Clock.wall, makesSnapshot: false).reply
        }
    }

    /// An operator who upgrades by hand is not overruled by a command that only wants to open the database.
    static func mayUpgrade(_ settings: Settings) throws(StoreError) {
        guard !settings.database.migratesOnStartup else { return }
        let pending = try pending(settings)
        guard pending.isEmpty else {
            throw StoreError(
                .older,
                "\(settings.database.url) lacks revision \(pending.map(\.id).joined(separator: ", ")), and CODEX_LB_DATABASE_MIGRATE_ON_STARTUP is false; run: codex-lb db upgrade"
            )
        }
    }

    /// A shared database that this build can work with is left at its revision: bringing it up is for a start, or for `db upgrade`.
    static func openForChange(_ settings: Settings) throws(StoreError) -> StoreSession {
        if case .postgresql(let url) = settings.database.url {
            do throws(StoreError) { return try PostgresStore.open(url, keyPath: settings.keyFile) } catch {
                guard error.kind == .older else { throw error }  // new: it is made
            }
        }
        try mayUpgrade(settings)
        return try upgrade(settings, lockWaitMilliseconds: changeWaitMilliseconds)
    }

    /// Opens the store with the schema brought up to `target`, the newest when nil.
    static func upgrade(
        _ settings: Settings, target: Int? = nil, lockWaitMilliseconds: Int, dieBefore: Int? = nil
    ) throws(StoreError) -> StoreSession {
        var statements = 0
        let willRun: (Revision, Int, Int) -> Void = { _, _, _ in
            statements += 1
            if statements == dieBefore { kill(getpid(), SIGKILL) }
        }
        // The key's place; the database may be elsewhere.
        do throws(SystemError) { try Directory.make(settings.dataDirectory) } catch {
            throw StoreError(.readOnly, "\(error). Give this user the right to it, or choose another --data-dir")
        }
        switch settings.database.url {
        case .sqlite(let path):
            return try SQLiteStore.open(
                path: path, keyPath: settings.keyFile, appVersion: Version.text, lockWaitMilliseconds: lockWaitMilliseconds,
                now: Clock.wall,
                upgrade: SQLiteStore.Upgrade(
                    target: target, backupsKept: settings.database.preMigrateBackups, progress: complain, willRun: willRun))
        case .postgresql(let url):
            return try PostgresStore.upgrade(
                url, keyPath: settings.keyFile, target: target, appVersion: Version.text, lockWaitMilliseconds: lockWaitMilliseconds,
                now: Clock.wall, progress: complain, willRun: willRun)
        }
    }

    static func openReadOnly(_ settings: Settings) throws(StoreError) -> StoreSession {
        switch settings.database.url {
        case .sqlite(let path): try SQLiteStore.openReadOnly(path: path, keyPath: settings.keyFile)
        case .postgresql(let url): try PostgresStore.openReadOnly(url, keyPath: settings.keyFile)
        }
    }

    static func history(_ settings: Settings) throws(StoreError) -> [AppliedRevision] {
        switch settings.database.url {
        case .sqlite(let path): try SQLiteStore.history(path: path)
        case .postgresql(let url): try PostgresStore.history(url)
        }
    }

    static func pending(_ settings: Settings) throws(StoreError) -> [Revision] {
        switch settings.database.url {
        case .sqlite(let path): try SQLiteStore.pending(path: path)
        case .postgresql(let url): try PostgresStore.pending(url)
        }
    }

    /// Runs `body`; a failure of the store is told and ends the command with 1.
    /// `isAtStart`: what starting again can't mend has an exit code of its own.
    static func failing<T>(isAtStart: Bool = false, _ body: () throws -> T) throws -> T {
        do {
            return try body()
        } catch let error as StoreError {
            complain(error.message)
            throw ExitCode(isAtStart && error.needsOperator ? OneShotExit.needsOperator : 1)
        }
    }
}
