public import Schema
public import Settings
public import Store
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// The store in a PostgreSQL database, which several instances may share.
public enum PostgresStore {
    /// Keys of advisory locks, "CLB" and a number: the migrator's own, and the one that each revision's transaction takes.
    static let (guardLock, revisionLock): (Int64, Int64) = (0x434C_4201, 0x434C_4202)
    private static let lockPollMicroseconds: UInt32 = 200_000
    /// An ALTER waits in the server's lock queue and everybody else behind it: not for longer than this.
    private static let ddlLockMilliseconds = 5_000

    /// Opens the database as it is, with the key it is sealed with.
    public static func open(_ url: PostgresURL, keyPath: String) throws(StoreError) -> StoreSession {
        let connection = try PostgresConnection(PostgresTarget(url))
        let known = try Migrator(connection).applied()
        guard known >= Schema.oldestUsable else { throw older(connection.place) }
        let vault = try Vault.open(connection, keyPath: keyPath, makesKey: false)
        return StoreSession(connection, vault: vault, revision: Schema.revisions[known - 1].id)
    }

    /// Opens it for lists and checks; a standby will do. What is sealed is shown where the key at `keyPath` opens it.
    public static func openReadOnly(_ url: PostgresURL, keyPath: String? = nil) throws(StoreError) -> StoreSession {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        let known = try Migrator(connection).applied()
        guard known >= Schema.oldestUsable else { throw older(connection.place) }
        let vault = keyPath.flatMap { try? Vault.open(connection, keyPath: $0, makesKey: false) }  // a list needs none
        return StoreSession(connection, vault: vault, revision: Schema.revisions[known - 1].id)
    }

    private static func older(_ place: String) -> StoreError {
        StoreError(.older, "\(place) has no schema that this codex-lb can work with; run: codex-lb db upgrade")
    }

    // MARK: Migration

    /// Brings the schema to `target` (the newest when nil) and gives a new database its key and first facts.
    ///
    /// One migrator works at a time. The right to it is an advisory lock of a transaction that is kept open on a connection of its own:
    /// it goes through poolers that keep no session, and it ends with the process. Each revision's transaction takes a second one, so that
    /// a migrator which lost its guard unnoticed still never runs beside another.
    public static func upgrade(
        _ url: PostgresURL, keyPath: String, target: Int? = nil, appVersion: String, lockWaitMilliseconds: Int, now: WallTime,
        progress: @escaping (String) -> Void = { _ in }, willRun: @escaping (Revision, Int, Int) -> Void = { _, _, _ in },
        revisions: [Revision] = Schema.revisions
    ) throws(StoreError) -> StoreSession {
        let connection = try PostgresConnection(PostgresTarget(url))
        connection.statementMilliseconds = nil
        connection.waiting = { seconds in if seconds % 10 == 0 { progress("\(connection.place): still working, \(seconds) s") } }
        var migrator = Migrator(connection, revisions)
        var applied: [String] = []
        let isPending = { (known: Int) in revisions.dropFirst(known).contains { $0.number <= target ?? .max } }
        try refuseForeign(connection)
        if isPending(try migrator.applied()) {
            let keeper = try takeGuard(url, lockWaitMilliseconds, progress)
            defer { keeper.close() }
            migrator.willRun = { revision, statement, count in
                if statement == 1 { progress("\(connection.place): applying revision \(revision.id) (\(revision.name))") }
                willRun(revision, statement, count)
            }
            // Whoever had the guard before us may have done it all.
            migrator.willBegin = { () throws(StoreError) in
                try connection.execute("SELECT pg_advisory_xact_lock(\(revisionLock))")
                try connection.execute("SET LOCAL lock_timeout = \(ddlLockMilliseconds)")
            }
            applied = try migrator.apply(upTo: target, appVersion: appVersion, now: now)
        }
        let known = try migrator.applied()
        guard known >= Schema.oldestUsable else { throw older(connection.place) }
        let vault = try Vault.open(connection, keyPath: keyPath)
        try vault.initialise(connection)
        return StoreSession(connection, vault: vault, revision: revisions[known - 1].id, applied: applied)
    }

    /// A database with tables but without our ledger belongs to somebody else.
    private static func refuseForeign(_ connection: PostgresConnection) throws(StoreError) {
        let encoding = try connection.rows("SELECT current_setting('server_encoding')", []) { $0.text(0) }.first ?? ""
        guard encoding == "UTF8" else {
            throw StoreError(
                .constraint,
                "\(connection.place) is encoded in \(encoding), which can't hold every name that clients and upstreams use; make one that can: createdb -E UTF8 -T template0 codex_lb"
            )
        }
        // One look: between two of them another migrator may make it ours.
        let tables = try connection.rows(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1", []
        ) { $0.text(0) }
        guard let first = tables.first, !tables.contains("revision_history") else { return }
        let what =
            tables.contains("alembic_version")
            ? "the Python codex-lb" : "another program (table \(first)\(tables.count > 1 ? " and \(tables.count - 1) more" : ""))"
        throw StoreError(
            .foreign,
            "\(connection.place) has tables of \(what); nothing was changed. Create an empty database for this codex-lb: createdb codex_lb")
    }

    private static func takeGuard(
        _ url: PostgresURL, _ waitMilliseconds: Int, _ progress: (String) -> Void
    ) throws(StoreError) -> PostgresConnection {
        let keeper = try PostgresConnection(PostgresTarget(url))
        let start = Clock.now
        var sayAt = start.adding(milliseconds: 1_000)
        while true {
            try keeper.execute("BEGIN")
            if try keeper.rows("SELECT pg_try_advisory_xact_lock(\(guardLock))", [], { $0.text(0) }).first == "t" { return keeper }
            try keeper.execute("ROLLBACK")
            let now = Clock.now
            let waited = now.milliseconds(since: start)
            guard waited < waitMilliseconds else {
                keeper.close()
                throw StoreError(
                    .busy,
                    "\(keeper.place) is being migrated by another codex-lb for more than \(waitMilliseconds / 1000) s; find it in pg_stat_activity (application_name codex-lb), or wait and try again"
                )
            }
            if now >= sayAt {
                sayAt = now.adding(milliseconds: 10_000)
                progress("\(keeper.place) is being migrated by another codex-lb: waiting, \(waited / 1000) s so far")
            }
            usleep(lockPollMicroseconds)
        }
    }

    /// The revisions applied to the database, oldest first.
    public static func history(_ url: PostgresURL) throws(StoreError) -> [AppliedRevision] {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        return try Migrator.history(connection)
    }

    /// What an upgrade would apply; looks only.
    public static func pending(_ url: PostgresURL) throws(StoreError) -> [Revision] {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        try refuseForeign(connection)
        return Array(Schema.revisions.dropFirst(try Migrator(connection).applied()))
    }

    /// The server that answers, its version (150018), and the connections that it gives ordinary users.
    public struct Server: Sendable {
        public var host: PostgresURL.Host
        public var version: Int
        public var connections: Int
    }

    public static func server(_ url: PostgresURL) throws(StoreError) -> Server {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        let numbers = try connection.rows(
            "SELECT current_setting('max_connections'), current_setting('superuser_reserved_connections'), current_setting('server_version_num')",
            []
        ) { ($0.int(0), $0.int(1), $0.int(2)) }
        let (all, reserved, version) = numbers.first ?? (0, 0, 0)
        return Server(host: connection.host, version: Int(version), connections: Int(all - reserved))
    }

    /// Server processes that work for other connections of codex-lb to this database.
    static func otherSessions(_ url: PostgresURL) throws(StoreError) -> [Int] {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        return try connection.rows(
            """
            SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = current_setting('application_name')
              AND pid <> pg_backend_pid() ORDER BY pid
            """, []
        ) { Int($0.int(0)) }
    }

    /// An instance that was heard of no longer ago than this serves.
    public static let servingMilliseconds: Int64 = 20_000

    /// Instances that serve from the database, and how long ago each said so: rows, since a session's name is whatever a URL gives it.
    static func instances(_ url: PostgresURL) throws(StoreError) -> [(name: String, seconds: Int64)] {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        guard try connection.hasTable("leases") else { return [] }
        return try connection.rows(
            """
            SELECT holder, CAST((extract(epoch FROM clock_timestamp()) * 1000 - (expires_at_ms - $1)) / 1000 AS BIGINT) FROM leases
            WHERE name LIKE 'serving:%' AND expires_at_ms > extract(epoch FROM clock_timestamp()) * 1000 ORDER BY name
            """, [.int(servingMilliseconds)]
        ) { ($0.text(0), max(0, $0.int(1))) }
    }

    /// Throws when an instance serves from the database or other connections of codex-lb use it.
    public static func refuseUsed(_ url: PostgresURL) throws(StoreError) {
        if let first = try instances(url).first {
            throw StoreError(
                .busy,
                "\(url) is served from by \(first.name), heard of \(first.seconds) s ago; stop every instance first (one that is dead is forgotten \(servingMilliseconds / 1000) s after its last word)"
            )
        }
        let end = Clock.now.adding(milliseconds: Limits.leavingMilliseconds)
        var users = try otherSessions(url)
        while !users.isEmpty, Clock.now < end {
            usleep(100_000)
            users = try otherSessions(url)
        }
        guard !users.isEmpty else { return }
        throw StoreError(
            .busy,
            "\(url) is used by \(users.count) other connections of codex-lb (server process \(users.prefix(5).map(String.init).joined(separator: ", "))); stop every instance first"
        )
    }

    /// The tables that are ours, of the schema that this URL leads to; other programs may have theirs in the same database.
    public static func tables(_ url: PostgresURL) throws(StoreError) -> (schema: String, names: [String]) {
        let connection = try PostgresConnection(PostgresTarget(url, needsWrites: false))
        defer { connection.close() }
        let schema = try connection.rows("SELECT coalesce(current_schema(), '')", []) { $0.text(0) }.first ?? ""
        return (schema, Schema.tables)
    }

    // MARK: Check

    /// Reads every row (damaged pages show then), and compares the real schema with the one that the revisions make, which is made anew in
    /// temporary tables of a transaction that is rolled back.
    public static func check(_ url: PostgresURL) throws(StoreError) -> CheckReport {
        let connection = try PostgresConnection(PostgresTarget(url))
        connection.statementMilliseconds = nil
        defer { connection.close() }
        try refuseForeign(connection)
        let known = try Migrator(connection).applied()
        guard known > 0 else { throw older(connection.place) }
        var problems: [String] = []
        if known < Schema.revisions.count { problems.append("revision \(Schema.head.id) is not applied; run: codex-lb db upgrade") }
        let found = try SchemaShape.read(connection, namespace: "current_schema()")
        let expected = try expectedShape(connection, known)
        problems += SchemaDrift.lines(expected: expected, found: found)
        for table in try connection.rows(
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1", [], { $0.text(0) })
        {
            do throws(StoreError) {
                _ = try connection.rows("SELECT count(*) FROM (SELECT * FROM \"\(table)\" OFFSET 0) AS every_row", []) { $0.int(0) }
            } catch {
                guard error.kind != .unreachable else { throw error }
                problems.append("table \(table) can't be read: \(error.message)")
            }
        }
        let audit = try RowAudit.run(connection, revision: known, beside: &problems)
        return CheckReport(problems, audit: audit)
    }

    private static func expectedShape(_ connection: PostgresConnection, _ count: Int) throws(StoreError) -> [String: String] {
        try connection.execute("BEGIN")
        do throws(StoreError) {
            // Unqualified names of CREATE go to the session's temporary schema.
            try connection.execute("SET LOCAL search_path = pg_temp")
            for revision in Schema.revisions.prefix(count) {
                for statement in revision.statements[.postgresql] ?? [] { try connection.execute(statement) }
            }
            let shape = try SchemaShape.read(connection, namespace: "(SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema())")
            try connection.execute("ROLLBACK")
            return shape
        } catch {
            _ = try? connection.execute("ROLLBACK")  // the first error is the one that counts
            throw error
        }
    }
}

/// A schema as PostgreSQL tells it: columns, keys and indexes by name.
enum SchemaShape {
    /// `namespace`: SQL for the schema's name.
    static func read(_ connection: PostgresConnection, namespace: String) throws(StoreError) -> [String: String] {
        let columns = try connection.rows(
            """
            SELECT 'column ' || c.relname || '.' || a.attname,
              format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
                || CASE WHEN a.attidentity <> '' THEN ' IDENTITY' ELSE '' END
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = \(namespace) AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
            """, []
        ) { ($0.text(0), $0.text(1)) }
        let indexes = try connection.rows(
            """
            SELECT 'index ' || i.relname,
              c.relname || CASE WHEN x.indisprimary THEN ' PRIMARY' WHEN x.indisunique THEN ' UNIQUE' ELSE '' END || ' ('
                || (SELECT string_agg(pg_get_indexdef(x.indexrelid, k, true), ', ' ORDER BY k) FROM generate_series(1, x.indnkeyatts) k)
                || ')' || coalesce(' WHERE ' || pg_get_expr(x.indpred, x.indrelid), '')
                || CASE WHEN x.indisvalid THEN '' ELSE ' INVALID' END
            FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
            JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = \(namespace) AND c.relkind IN ('r', 'p')
            """, []
        ) { ($0.text(0), $0.text(1)) }
        return Dictionary(columns + indexes, uniquingKeysWith: { a, _ in a })
    }
}
