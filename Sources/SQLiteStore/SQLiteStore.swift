internal import CPlatform
public import Schema
public import Store
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// The store in one SQLite file. One process at a time opens it for writing; any may open it read-only.
public enum SQLiteStore {
    /// How a writer's opening goes about the schema.
    public struct Upgrade {
        /// The revision to stop at; nil: all.
        public var target: Int?
        /// Copies made before an upgrade of an existing database that are kept; 0: none is made.
        public var backupsKept: Int
        /// Told what takes time, and what is done.
        public var progress: (String) -> Void
        /// Told of each statement just before it runs.
        public var willRun: (Revision, Int, Int) -> Void
        public init(
            target: Int? = nil, backupsKept: Int = 5, progress: @escaping (String) -> Void = { _ in },
            willRun: @escaping (Revision, Int, Int) -> Void = { _, _, _ in }
        ) {
            (self.target, self.backupsKept, self.progress, self.willRun) = (target, backupsKept, progress, willRun)
        }
    }

    /// The log is moved into the database when it has as many pages: 16 MiB.
    static let checkpointPages = 4_000

    /// Free space wanted before an upgrade, in hundredths of the database's size: its log and rebuilt tables.
    static let upgradeSpacePercent = 120

    /// Opens the database as its writer: makes what is missing (directory, database, key), upgrades the schema, checks the key.
    /// A file that is not ours is refused before anything is made or changed.
    ///
    /// Without `upgrade` the database must be there with a revision that this build can serve with.
    public static func open(
        path: String, keyPath: String, appVersion: String, lockWaitMilliseconds: Int, now: WallTime, upgrade: Upgrade? = Upgrade()
    ) throws(StoreError) -> StoreSession {
        try open(
            path: path, keyPath: keyPath, appVersion: appVersion, lockWaitMilliseconds: lockWaitMilliseconds, now: now, upgrade: upgrade,
            revisions: Schema.revisions)
    }

    static func open(
        path: String, keyPath: String, appVersion: String, lockWaitMilliseconds: Int, now: WallTime, upgrade: Upgrade? = Upgrade(),
        revisions: [Revision]
    ) throws(StoreError) -> StoreSession {
        var info = stat()
        // Its lock and its log go by its name: under two names there would be two of each.
        if stat(path, &info) == 0, info.st_nlink > 1 {
            throw StoreError(
                .constraint,
                "database \(path) has \(info.st_nlink) names (hard links), and SQLite keeps a log beside each; remove the others: find / -xdev -inum \(info.st_ino)"
            )
        }
        let isThere = try isOurs(path)
        guard upgrade != nil || isThere else { throw missing(path) }
        let lock = try WriterLock.acquire(
            database: path, waitMilliseconds: lockWaitMilliseconds, waiting: upgrade?.progress ?? { _ in })
        _ = try Inspection.of(path, isAlone: true)  // the former holder may have made it
        let isLogAside = try LogDamage.guardBeforeOpening(path, now: now, progress: upgrade?.progress ?? { _ in })
        let before = umask(0o077)  // SQLite gives its log and index the mode of the database
        defer { umask(before) }
        let connection = try Connection(path, .readWrite)
        if !isThere { codexlb_adopt_owner(path, Inspection.directory(path)) }  // SQLite gives its log and index the same owner
        try connection.execute("PRAGMA trusted_schema = OFF")
        try connection.execute("PRAGMA foreign_keys = ON")
        // A ledger that does not fit stops here, before the first write.
        var migrator = migrator(connection, revisions)
        let known = try migrator.applied()
        let vault = try Vault.open(connection, keyPath: keyPath, makesKey: upgrade != nil)
        let mode = try connection.rows("PRAGMA journal_mode = WAL", []) { $0.text(0) }.first ?? ""
        guard mode == "wal" else {
            throw StoreError(
                .io, "database \(path): this file system does not carry SQLite's WAL (journal mode stays \"\(mode)\"); use a local one")
        }
        // With groups of records FULL costs nothing, and a power cut loses nothing that was acknowledged.
        try connection.execute("PRAGMA synchronous = FULL")
        try connection.checkpointLog(pages: checkpointPages)
        // A log that a reader made longer gives the space back when it is begun anew.
        try connection.execute("PRAGMA journal_size_limit = \(Limits.logBytesMax)")
        // What stands behind the readable part would be found again at each start.
        if isLogAside { try connection.execute("PRAGMA wal_checkpoint(TRUNCATE)") }
        var (backup, applied): (String?, [String]) = (nil, [])
        if let upgrade {
            let isPending = revisions.dropFirst(known).contains { $0.number <= upgrade.target ?? .max }
            if known > 0, isPending {
                try Backup.checkSpace(
                    path, in: Inspection.directory(path),
                    percent: upgradeSpacePercent + (upgrade.backupsKept > 0 ? Backup.freeSpacePercent : 0),
                    for: "the upgrade of \(path)\(upgrade.backupsKept > 0 ? " with the copy before it" : "")")
                if upgrade.backupsKept > 0 {
                    backup = try Backup.beforeUpgrade(database: path, connection, now: now, progress: upgrade.progress)
                }
            }
            migrator.willRun = upgrade.willRun
            do throws(StoreError) {
                applied = try migrator.apply(upTo: upgrade.target, appVersion: appVersion, now: now)
            } catch {
                guard let backup else { throw error }
                throw StoreError(
                    error.kind, "\(error.message). The copy made before is \(backup); put it back with: codex-lb db restore \(backup)")
            }
            try vault.initialise(connection)
            // Only what has led to a good end may take the place of older copies.
            if backup != nil { try Backup.prune(database: path, label: Backup.upgradeLabel, keeping: upgrade.backupsKept) }
        }
        let revision = known + applied.count
        guard revision >= Schema.oldestUsable else {
            throw StoreError(.older, "database \(path) has no revision that this codex-lb can work with; run: codex-lb db upgrade")
        }
        return StoreSession(
            connection, vault: vault, revision: revisions[revision - 1].id, applied: applied, backup: backup, holding: lock)
    }

    /// A migrator that leaves its mark in the file's header, and no orphaned row.
    static func migrator(_ connection: Connection, _ revisions: [Revision]) -> Migrator {
        var migrator = Migrator(connection, revisions)
        migrator.willCommit = { revision throws(StoreError) in
            let orphans = try connection.rows("PRAGMA foreign_key_check", []) { "\($0.text(0)) → \($0.text(2))" }
            guard orphans.isEmpty else {
                throw StoreError(.constraint, "rows point to missing rows: \(Set(orphans).sorted().joined(separator: ", "))")
            }
            try connection.execute("PRAGMA application_id = \(Schema.applicationID)")
            try connection.execute("PRAGMA user_version = \(revision.number)")
        }
        return migrator
    }

    /// Opens an existing database for lists and checks; `snapshot()` is not for it. What is sealed is shown where the key at `keyPath` opens it.
    /// A statement that takes longer than `statementMilliseconds` is ended.
    public static func openReadOnly(path: String, keyPath: String? = nil, statementMilliseconds: Int? = nil) throws(StoreError)
        -> StoreSession
    {
        let connection = try reader(path)
        connection.limitStatements(milliseconds: statementMilliseconds)
        let known = try Migrator(connection).applied()
        guard known >= Schema.oldestUsable else {
            throw StoreError(.older, "database \(path) has no revision that this codex-lb can work with; run: codex-lb db upgrade")
        }
        let vault = keyPath.flatMap { try? Vault.open(connection, keyPath: $0, makesKey: false) }  // a list needs none
        return StoreSession(connection, vault: vault, revision: Schema.revisions[known - 1].id)
    }

    static func reader(_ path: String) throws(StoreError) -> Connection {
        guard try isOurs(path) else { throw missing(path) }
        let connection = try Connection(path, .readOnly)
        try connection.execute("PRAGMA trusted_schema = OFF")
        return connection
    }

    /// The revisions applied to a database, oldest first; empty when there is no database yet.
    public static func history(path: String) throws(StoreError) -> [AppliedRevision] {
        guard try isOurs(path) else { return [] }
        return try Migrator.history(reader(path))
    }

    /// What an upgrade would apply; looks only.
    public static func pending(path: String) throws(StoreError) -> [Revision] {
        guard try isOurs(path) else { return Schema.revisions }
        return Array(Schema.revisions.dropFirst(try Migrator(reader(path)).applied()))
    }

    private static func isOurs(_ path: String) throws(StoreError) -> Bool {
        if case .ours = try Inspection.of(path) { true } else { false }
    }

    private static func missing(_ path: String) -> StoreError {
        StoreError(.missing, "there is no database at \(path) yet; codex-lb serve or codex-lb db upgrade makes one")
    }
}
