import ArgumentParser
import Platform
import PostgresStore
import SQLiteStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// The key that the store's secrets are sealed with; clients' keys are `keys`.
struct EncryptionKey: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "key", abstract: "Look after the encryption key of the store.", subcommands: [Rotate.self])

    struct Rotate: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Seal every secret of the store with a new encryption key; the server must be stopped.",
            discussion: """
                Can be cut at any point: the next start, or this again, finds a key file that fits the store. The key before is kept as
                encryption.key.old.FINGERPRINT, because backups made until now are sealed with it: delete it when none of them is needed any
                more. Instances that share a PostgreSQL database get the new encryption.key by hand before they start. Client keys stay valid.
                """)
        /// For tests: kill -9 just before the n-th step, from 1.
        @Option(name: .customLong("die-before"), help: .hidden) var dieBefore: Int?
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            let outcome = try LocalStore.failing {
                try Ticker.during("rotating the encryption key of \(settings.database.url)") { try rotate(settings) }
            }
            if let why = outcome.unscrubbed {
                complain(
                    "the key is rotated, but unused parts of the database's files may still hold what the old key opens: \(why). Run this again when that is mended"
                )
            }
            if database.json {
                print(
                    JSONText.object([
                        ("database", .string(settings.database.url.description)), ("before", .string(outcome.before)),
                        ("after", .string(outcome.after)), ("accounts", .int(Int64(outcome.accounts))), ("kept", .optional(outcome.kept)),
                    ]))
                return
            }
            print(
                "\(settings.database.url) is sealed with a new key: \(outcome.after), before \(outcome.before), \(outcome.accounts) accounts"
            )
            print("keep a copy of \(settings.keyFile) in a safe place")
            if let kept = outcome.kept {
                print("backups made until now need the old key, kept as \(kept); delete it when none of them is needed any more")
            }
            if settings.database.sqlitePath == nil { print("every other instance of this database needs the new file before it starts") }
            print("make a backup now: codex-lb db backup")
        }

        private func rotate(_ settings: Settings) throws(StoreError) -> KeyRotation.Outcome {
            let lock: InstanceLock
            do throws(SystemError) { lock = try InstanceLock.take([settings.dataDirectory]) } catch {
                guard error.code == EWOULDBLOCK else { throw StoreError(.io, "\(error)") }
                throw StoreError(.busy, "\(error.what); stop it first: the key can't be rotated under a running server")
            }
            defer { withExtendedLifetime(lock) {} }
            let store = try open(settings)
            defer { store.close() }
            return try KeyRotation(store, keyPath: settings.keyFile, by: Author("\(Operator.current)", at: Clock.wall)) { step in
                if step.rawValue + 1 == dieBefore { kill(getpid(), SIGKILL) }
            }.run()
        }

        private func open(_ settings: Settings) throws(StoreError) -> StoreSession {
            switch settings.database.url {
            case .sqlite(let path):
                return try SQLiteStore.open(
                    path: path, keyPath: settings.keyFile, appVersion: Version.text,
                    lockWaitMilliseconds: Limits.leavingMilliseconds, now: Clock.wall, upgrade: nil)
            case .postgresql(let url):
                try PostgresStore.refuseUsed(url)
                return try PostgresStore.open(url, keyPath: settings.keyFile)
            }
        }
    }
}
