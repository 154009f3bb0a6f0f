internal import Schema
internal import Sealing
public import Store
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// The store in one SQLite file. One process at a time opens it for writing; any may open it read-only.
public final class SQLiteStore: StoreSession, @unchecked Sendable {  // one caller at a time: the contract of StoreSession
    public let path: String
    public let revision: String
    /// The revisions that opening it applied.
    public let applied: [String]
    /// The copy that was made before the upgrade.
    public let backup: String?

    let connection: Connection
    private let key: SealingKey?
    private var lock: WriterLock?

    private init(
        _ connection: Connection, key: SealingKey?, lock: WriterLock?, revision: String, applied: [String], backup: String? = nil
    ) {
        (self.connection, self.key, self.lock, self.backup) = (connection, key, lock, backup)
        (self.revision, self.applied, path) = (revision, applied, connection.path)
    }

    /// Opens the database as its writer: makes what is missing (directory, database, key), upgrades the schema, checks the key.
    /// A file that is not ours is refused before anything is made or changed.
    ///
    /// Before an existing database is upgraded a copy of it is made, of which the newest `backupsKept` are kept; 0 makes none.
    public static func open(
        path: String, keyPath: String, appVersion: String, lockWaitMilliseconds: Int, now: WallTime, backupsKept: Int = 5
    ) throws(StoreError) -> SQLiteStore {
        try open(
            path: path, keyPath: keyPath, appVersion: appVersion, lockWaitMilliseconds: lockWaitMilliseconds, now: now,
            backupsKept: backupsKept, revisions: Schema.revisions)
    }

    static func open(
        path: String, keyPath: String, appVersion: String, lockWaitMilliseconds: Int, now: WallTime, backupsKept: Int = 5,
        revisions: [Revision]
    ) throws(StoreError) -> SQLiteStore {
        _ = try Inspection.of(path)
        let lock = try WriterLock.acquire(database: path, waitMilliseconds: lockWaitMilliseconds)
        _ = try Inspection.of(path)  // the former holder may have made it
        let before = umask(0o077)  // SQLite gives its log and index the mode of the database
        defer { umask(before) }
        let connection = try Connection(path, .readWrite)
        try connection.execute("PRAGMA trusted_schema = OFF")
        try connection.execute("PRAGMA foreign_keys = ON")
        // A ledger that does not fit stops here, before the first write.
        let known = try connection.checkHistory(revisions)
        let key = try key(for: connection, keyPath: keyPath)
        let mode = try connection.rows("PRAGMA journal_mode = WAL") { $0.text(0) }.first ?? ""
        guard mode == "wal" else {
            throw StoreError(
                .io, "database \(path): this file system does not carry SQLite's WAL (journal mode stays \"\(mode)\"); use a local one")
        }
        // With groups of records FULL costs nothing, and a power cut loses nothing that was acknowledged.
        try connection.execute("PRAGMA synchronous = FULL")
        try connection.execute("PRAGMA wal_autocheckpoint = 4000")
        var backup: String?
        if known > 0, known < revisions.count, backupsKept > 0 {
            backup = try Backup.make(database: path, now: now).path
            try Backup.prune(database: path, keeping: backupsKept)
        }
        let applied = try connection.upgrade(revisions, appVersion: appVersion, now: now)
        try initialise(connection, key)
        return SQLiteStore(connection, key: key, lock: lock, revision: revisions.last?.id ?? "0000", applied: applied, backup: backup)
    }

    /// Opens an existing database for lists. It has no key: `snapshot()` is not for it.
    public static func openReadOnly(path: String) throws(StoreError) -> SQLiteStore {
        guard case .ours = try Inspection.of(path) else {
            throw StoreError(.missing, "there is no database at \(path) yet; codex-lb serve makes one")
        }
        let connection = try Connection(path, .readOnly)
        try connection.execute("PRAGMA trusted_schema = OFF")
        let known = try connection.checkHistory(Schema.revisions)
        guard known == Schema.revisions.count else {
            throw StoreError(.older, "database \(path) has an older revision than \(Schema.head.id); run: codex-lb db upgrade")
        }
        return SQLiteStore(connection, key: nil, lock: nil, revision: Schema.head.id, applied: [])
    }

    // MARK: The key

    /// The key file's key, made when the database is sealed with none yet.
    private static func key(for connection: Connection, keyPath: String) throws(StoreError) -> SealingKey {
        let path = connection.path
        var sealedWith: String?
        if try connection.int("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'state'") == 1 {
            sealedWith = try connection.rows("SELECT value FROM state WHERE key = 'key_fingerprint'") { $0.text(0) }.first
        }
        guard let sealedWith else { return try sealing { () throws(SealingError) in try KeyFile.loadOrCreate(path: keyPath) } }
        let key = try sealing { () throws(SealingError) in try KeyFile.load(path: keyPath) }
        if let key, key.fingerprint == sealedWith { return key }
        let what =
            key.map { "\(keyPath) (\($0.fingerprint)) is not the encryption key of database \(path)" }
            ?? "\(keyPath) is missing, the encryption key of database \(path)"
        throw StoreError(.wrongKey, "\(what), which is sealed with key \(sealedWith); put the right file back")
    }

    private static func initialise(_ connection: Connection, _ key: SealingKey) throws(StoreError) {
        guard try connection.int("SELECT count(*) FROM state WHERE key = 'key_fingerprint'") == 0 else { return }
        let pepper = try sealing { () throws(SealingError) in try key.seal(SecureRandom.bytes(32), context: Self.pepperContext) }
        try connection.transaction { () throws(StoreError) in
            for (name, value): (String, SQLValue) in [
                ("key_fingerprint", .text(key.fingerprint)), ("pepper", .blob(pepper)), ("snapshot_version", .int(1)),
            ] {
                try connection.run("INSERT INTO state (key, value) VALUES (?, ?)", [.text(name), value])
            }
        }
    }

    private static let pepperContext = "state|pepper|value|1"
    static func credentialsContext(_ id: Int64) -> String { "accounts|\(id)|credentials|1" }

    static func sealing<T>(_ body: () throws(SealingError) -> T) throws(StoreError) -> T {
        do throws(SealingError) { return try body() } catch {
            throw StoreError(error.kind == .wrongKey || error.kind == .keyFile ? .wrongKey : .corrupt, error.description)
        }
    }

    func requireKey() throws(StoreError) -> SealingKey {
        guard let key else { throw StoreError(.readOnly, "database \(path) is open for reading only, without its key") }
        return key
    }

    func pepper() throws(StoreError) -> [UInt8] {
        let key = try requireKey()
        guard let sealed = try connection.rows("SELECT value FROM state WHERE key = 'pepper'", [], { $0.blob(0) }).first else {
            throw StoreError(.corrupt, "database \(path) has no pepper for client keys; restore a backup")
        }
        return try Self.sealing { () throws(SealingError) in try key.open(sealed, context: Self.pepperContext) }
    }

    // MARK: Snapshot

    /// A change that workers must see: `body` and the next version in one transaction.
    func change<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        try connection.transaction { () throws(StoreError) in
            let result = try body()
            try connection.run("UPDATE state SET value = value + 1 WHERE key = 'snapshot_version'")
            return result
        }
    }

    public func snapshot() throws(StoreError) -> Snapshot {
        try connection.transaction(immediate: false) { () throws(StoreError) in
            let version = try connection.int("SELECT value FROM state WHERE key = 'snapshot_version'") ?? 0
            let settings = try connection.rows("SELECT key, value FROM settings") { ($0.text(0), $0.text(1)) }
            return Snapshot(
                version: version, accounts: try accounts(withCredentials: true), clientKeys: try keys("WHERE revoked_at_ms IS NULL"),
                pepper: try pepper(), settings: Dictionary(uniqueKeysWithValues: settings))
        }
    }

    public func checkpoint() throws(StoreError) {
        // PASSIVE never waits and never stops a reader (benbjohnson/litestream#724).
        try connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    }

    public func close() {
        connection.close()
        lock = nil
    }
}
