import ArgumentParser
import ControlWire
import SQLiteStore
import Settings
import Store
import Vocabulary
import WriterRole

#if canImport(Glibc)
    import Glibc
#endif

/// Carries out a command on the store: lists are read from the database directly; changes go to the running server, or with none
/// running are made here under the writer's lock. Never behind the writer's back.
enum StoreClient {
    static func perform(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        let reply: StoreReply
        if isList(command) {
            reply = try LocalStore.list(command, settings)
        } else if let server = try ControlClient.connect(settings) {
            var frame = Frame()
            frame.storeCommand = command
            guard case .storeReply(let answer)? = try server.ask(frame).body else {
                complain("the server gave an answer this build does not know")
                throw ExitCode(1)
            }
            reply = answer
        } else {
            reply = try LocalStore.change(command, settings)
        }
        guard reply.error.isEmpty else {
            complain(reply.error)
            throw ExitCode(1)
        }
        return reply
    }

    private static func isList(_ command: StoreCommand) -> Bool {
        switch command.body {
        case .listAccounts, .listClientKeys, .listUsage: true
        default: false
        }
    }
}

/// The database opened by the command line itself.
enum LocalStore {
    static func list(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        guard access(settings.databasePath, F_OK) == 0 else { return StoreReply() }  // nothing was ever stored
        return try failing {
            let store = try SQLiteStore.openReadOnly(path: settings.databasePath)
            defer { store.close() }
            return StoreCommands.perform(command, on: store, now: Clock.wall).reply
        }
    }

    static func change(_ command: StoreCommand, _ settings: Settings) throws -> StoreReply {
        try failing {
            let store = try open(settings, waitMilliseconds: 2_000)
            defer { store.close() }
            return StoreCommands.perform(command, on: store, now: Clock.wall).reply
        }
    }

    static func upgrade(_ settings: Settings) throws {
        try failing {
            let store = try open(settings, waitMilliseconds: 5_000)
            defer { store.close() }
            if let backup = store.backup { complain("database \(settings.databasePath): copied to \(backup) before the upgrade") }
            if !store.applied.isEmpty {
                complain("database \(settings.databasePath): revision \(store.applied.joined(separator: ", ")) applied")
            }
        }
    }

    private static func open(_ settings: Settings, waitMilliseconds: Int) throws -> SQLiteStore {
        try SQLiteStore.open(
            path: settings.databasePath, keyPath: settings.keyFile, appVersion: Version.text, lockWaitMilliseconds: waitMilliseconds,
            now: Clock.wall,
            backupsKept: settings.preMigrateBackups)
    }

    static func history(_ settings: Settings) throws -> [AppliedRevision] {
        try failing { try SQLiteStore.history(path: settings.databasePath) }
    }

    /// Runs `body`; a failure of the store is told and ends the command with 1.
    static func failing<T>(_ body: () throws -> T) throws -> T {
        do {
            return try body()
        } catch let error as StoreError {
            complain(error.message)
            throw ExitCode(1)
        }
    }
}
