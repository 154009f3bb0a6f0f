import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// A real PostgreSQL server in a temporary folder, on a Unix socket there (trust) and on a loopback port (passwords, SCRAM). It ends with the
/// test process, however that ends.
public final class PostgresCluster: @unchecked Sendable {  // `lock` guards the databases; the rest is used by one test at a time
    public enum Shutdown: String, Sendable, CaseIterable { case fast, immediate }

    /// The owner of the databases that tests get. Its password has characters that a URL must encode.
    public static let user = "clb"
    public static let password = "pass@/:%word"
    public static let encodedPassword = "pass%40%2F%3A%25word"

    public let directory: String
    public let port: UInt16
    private var server: Child?
    private let lock = NSLock()
    private var databases = 0
    private var free: [String] = []

    // MARK: One for all tests

    private static let sharedLock = NSLock()
    nonisolated(unsafe) private static var sharedCluster: PostgresCluster?  // under `sharedLock`
    nonisolated(unsafe) private static var sharedBouncer: Bouncer?  // under `sharedLock`

    /// The one that tests share, made at first use. A test that stops it or changes its settings need not put it back: whoever asks gets a
    /// server that runs, with the settings of the beginning.
    public static func shared() throws -> PostgresCluster {
        sharedLock.lock()
        defer { sharedLock.unlock() }
        if let sharedCluster {
            try sharedCluster.mend()
            return sharedCluster
        }
        let made = try PostgresCluster()
        sharedCluster = made
        atexit { PostgresCluster.endShared() }
        return made
    }

    /// pgbouncer before the shared server.
    fileprivate static func bouncer() throws -> Bouncer {
        let cluster = try shared()
        sharedLock.lock()
        defer { sharedLock.unlock() }
        if let sharedBouncer { return sharedBouncer }
        let made = try Bouncer(cluster)
        sharedBouncer = made
        return made
    }

    fileprivate static func giveBackShared(_ name: String) {
        sharedLock.lock()
        defer { sharedLock.unlock() }
        sharedCluster?.giveBack(name)
    }

    private static func endShared() {
        sharedBouncer?.end()
        sharedCluster?.end()
    }

    // MARK: Life

    /// `settings` go to postgresql.conf.
    public init(_ settings: [String: String] = [:]) throws {
        var all = [
            "listen_addresses": "'127.0.0.1'", "shared_buffers": "'32MB'", "fsync": "on", "max_connections": "100",
            "log_line_prefix": "'%m [%p] '", "autovacuum": "off", "max_wal_size": "'256MB'", "recovery_init_sync_method": "syncfs",
        ]
        all.merge(settings) { $1 }
        directory = try Privilege.folder("clbp")
        port = try Ports.free()
        all["port"] = String(port)
        all["unix_socket_directories"] = "'\(directory)'"
        try Data(Self.password.utf8).write(to: URL(fileURLWithPath: directory + "/password"))
        try Privilege.giveAway(directory + "/password")
        let made = try Privilege.run(
            Self.tool("initdb"),
            [
                "--pgdata", data, "--username", "postgres", "--pwfile", directory + "/password", "--auth-local", "trust", "--auth-host",
                "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", "--no-instructions",
            ])
        guard made.isGood else { throw HarnessError("initdb: \(made.errors)") }
        try configure(all)
        try start()
        try sql("CREATE ROLE \(Self.user) LOGIN PASSWORD '\(Self.password)'")
    }

    /// A hot standby of `primary`, which follows it asynchronously.
    public init(standbyOf primary: PostgresCluster) throws {
        directory = try Privilege.folder("clbp")
        port = try Ports.free()
        let made = try Privilege.run(
            Self.tool("pg_basebackup"),
            [
                "--pgdata", directory + "/data", "--host", primary.directory, "--port", String(primary.port), "--username", "postgres",
                "--write-recovery-conf", "--checkpoint", "fast", "--no-sync", "--wal-method", "stream",
            ])
        guard made.isGood else { throw HarnessError("pg_basebackup: \(made.errors)") }
        try configure(["port": String(port), "unix_socket_directories": "'\(directory)'"])
        try start()
    }

    public func promote() throws { try sql("SELECT pg_promote(true, 30)") }

    private func configure(_ settings: [String: String]) throws {
        let text = settings.sorted { $0.key < $1.key }.map { "\($0.key) = \($0.value)\n" }.joined()
        let file = try FileHandle(forWritingTo: URL(fileURLWithPath: data + "/postgresql.conf"))
        try file.seekToEnd()
        try file.write(contentsOf: Data(text.utf8))
        try file.close()
    }

    deinit { end() }

    private var data: String { directory + "/data" }
    public var log: String { String(decoding: FileManager.default.contents(atPath: directory + "/log") ?? Data(), as: UTF8.self) }

    public static func tool(_ name: String) -> String {
        let debian = "/usr/lib/postgresql/15/bin/" + name
        return access(debian, X_OK) == 0 ? debian : "/usr/bin/" + name
    }

    public func start() throws {
        guard server?.poll() != nil || server == nil else { return }
        let child = try Privilege.start(Self.tool("postgres"), ["-D", data], errors: directory + "/log")
        server = child
        // The first line is the server's pid, the eighth its state (PostgreSQL's pidfile.h).
        let isUp = eventually(30) {
            if child.poll() != nil { return true }
            let lines = procText(data + "/postmaster.pid").split(separator: "\n", omittingEmptySubsequences: false)
            return lines.count >= 8 && lines[0] == String(child.pid) && lines[7].hasPrefix("ready")
        }
        guard isUp, child.poll() == nil else { throw HarnessError("PostgreSQL does not start:\n\(log)") }
    }

    /// Fast: connections are cut, then the server ends orderly. Immediate: as in a crash.
    public func stop(_ how: Shutdown = .fast) throws {
        guard let server else { return }
        server.signal(how == .fast ? SIGINT : SIGQUIT)
        guard server.wait(30) != nil else { throw HarnessError("PostgreSQL does not stop:\n\(log)") }
        self.server = nil
    }

    public func restart(_ how: Shutdown = .fast) throws {
        try stop(how)
        try start()
    }

    /// Every process of the server stands still: connections are taken by the kernel, and nobody answers.
    public func freeze() {
        guard let server, server.poll() == nil else { return }
        // First the one that would start others.
        kill(server.pid, SIGSTOP)
        for pid in Self.children(server.pid) { kill(pid, SIGSTOP) }
    }

    public func thaw() {
        guard let server, server.poll() == nil else { return }
        for pid in Self.children(server.pid) { kill(pid, SIGCONT) }
        kill(server.pid, SIGCONT)
    }

    private static func children(_ pid: Int32) -> [Int32] {
        procText("/proc/\(pid)/task/\(pid)/children").split(separator: " ").compactMap { Int32($0.filter(\.isNumber)) }
    }

    /// Makes a setting count at once, for all sessions that do not set it themselves; nil is the value of the beginning.
    public func alterSystem(_ name: String, _ value: String?) throws {
        try sql(value.map { "ALTER SYSTEM SET \(name) = \($0)" } ?? "ALTER SYSTEM RESET \(name)")
        let look = "SELECT setting FROM pg_settings WHERE name = '\(name)'"
        let before = try sql(look, options: "")
        try sql("SELECT pg_reload_conf()")
        // The postmaster reads it first and then tells everybody.
        guard try eventually(5, every: 0.02, { try sql(look, options: "") != before }) else {
            throw HarnessError("\(name) stays \(before)")
        }
    }

    /// Turns TLS on, with a certificate for 127.0.0.1 that has signed itself; its file.
    public func enableTLS() throws -> String {
        let (certificate, key) = (directory + "/server.crt", directory + "/server.key")
        let made = try Privilege.run(
            "/usr/bin/openssl",
            [
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
                "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key,
            ])
        guard made.isGood else { throw HarnessError("openssl: \(made.errors)") }
        try sql("ALTER SYSTEM SET ssl_cert_file = '\(certificate)'")
        try sql("ALTER SYSTEM SET ssl_key_file = '\(key)'")
        try alterSystem("ssl", "on")
        return certificate
    }

    private func mend() throws {
        thaw()
        try start()
        let file = data + "/postgresql.auto.conf"
        guard procText(file).split(separator: "\n").contains(where: { !$0.hasPrefix("#") }) else { return }
        try sql("ALTER SYSTEM RESET ALL")
        try sql("SELECT pg_reload_conf()")
    }

    func end() {
        thaw()
        server?.signal(SIGQUIT)
        if server?.wait(5) == nil { server?.signal(SIGKILL) }
        server = nil
        if ProcessInfo.processInfo.environment["CODEX_LB_TEST_KEEP"] == nil {
            try? FileManager.default.removeItem(atPath: directory)  // a leftover in /tmp is no failure
        }
    }

    // MARK: Use

    /// An empty database; its name. To be given back: a checkpoint writes some 300 files for each that there is.
    public func createDatabase() throws -> String {
        lock.lock()
        let used = free.popLast()
        if used == nil { databases += 1 }
        let name = used ?? "store_\(databases)"
        lock.unlock()
        guard used != nil else {
            try sql("CREATE DATABASE \(name) OWNER \(Self.user)")
            return name
        }
        let others = "FROM pg_stat_activity WHERE datname = '\(name)' AND pid <> pg_backend_pid()"
        guard
            try eventually(
                10, every: 0.05,
                {
                    try sql("SELECT pg_terminate_backend(pid) \(others)")
                    return try sql("SELECT count(*) \(others)") == "0"
                })
        else { throw HarnessError("\(name) is still used") }
        try sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION \(Self.user)", in: name)
        return name
    }

    /// What `createDatabase()` gave is not needed any more.
    public func giveBack(_ database: String) {
        lock.lock()
        free.append(database)
        lock.unlock()
    }

    /// As an operator would write it: over TCP, with a password.
    public func url(_ database: String, password: String = encodedPassword, parameters: String = "") -> String {
        "postgresql://\(Self.user):\(password)@127.0.0.1:\(port)/\(database)" + (parameters.isEmpty ? "" : "?" + parameters)
    }

    /// As the superuser; rows come as lines, columns between `|`.
    /// `options`: libpq's PGOPTIONS; the usual ones let it write whatever a test has set.
    @discardableResult
    public func sql(
        _ text: String, in database: String = "postgres", options: String = "-c default_transaction_read_only=off"
    ) throws -> String {
        let result = try Privilege.run(Self.tool("psql"), Self.psql(self, database) + ["-c", text], ["PGOPTIONS": options])
        guard result.isGood else { throw HarnessError("psql: \(result.errors)\nin: \(text)") }
        return result.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    /// Processes of the server that work for codex-lb on a database, whatever they do there.
    public func sessions(of database: String) throws -> Int {
        Int(try sql("SELECT count(*) FROM pg_stat_activity WHERE datname = '\(database)' AND application_name = 'codex-lb'")) ?? 0
    }

    /// Whether a process of the server waits for a lock in this database, by its title (`update_process_title`): seen without a question to the
    /// server, which takes longer than some things last.
    public func waitsForLock(in database: String) -> Bool {
        Self.children(server?.pid ?? 0).contains {
            let title = procText("/proc/\($0)/cmdline")
            return title.contains(" \(database) ") && title.contains(" waiting")
        }
    }

    static func psql(_ cluster: PostgresCluster, _ database: String) -> [String] {
        [
            "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", cluster.directory, "-p", String(cluster.port), "-U", "postgres", "-d",
            database,
        ]
    }

    /// A session that has carried out `text` and stays as it is then (in its transaction, with its locks) until `end()`.
    public final class Holder {
        private let child: Child
        private let cluster: PostgresCluster
        private let mark = "held_\(UUID().uuidString.prefix(8).lowercased())"

        init(_ cluster: PostgresCluster, _ database: String, _ text: String) throws {
            self.cluster = cluster
            child = try Privilege.start(
                PostgresCluster.tool("psql"),
                PostgresCluster.psql(cluster, database) + [
                    "-c", "SET application_name = '\(mark)'", "-c", text + "; SELECT pg_sleep(600)",
                ],
                errors: cluster.directory + "/holder.log")
            let (mark, child) = (mark, child)
            let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '\(mark)' AND wait_event = 'PgSleep'"
            guard try eventually(10, every: 0.02, { try child.poll() != nil || cluster.sql(sleeps) == "1" }), child.poll() == nil else {
                throw HarnessError("the session does not hold: \(procText(cluster.directory + "/holder.log"))")
            }
        }
        /// The server does not notice by itself that its client has gone.
        public func end() throws {
            try cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '\(mark)'")
            guard child.wait(5) != nil else { throw HarnessError("the session does not end") }
        }
    }

    public func hold(_ text: String, in database: String) throws -> Holder { try Holder(self, database, text) }
}

/// pgbouncer in transaction mode with few connections, before a cluster; it takes any database of it.
public final class Bouncer: @unchecked Sendable {  // started and ended once
    public let port: UInt16
    private let directory: String
    private var child: Child?
    /// Connections to the server for each database.
    static let poolSize = 4

    init(_ cluster: PostgresCluster) throws {
        directory = try Privilege.folder("clbb")
        port = try Ports.free()
        let settings = """
            [databases]
            * = host=\(cluster.directory) port=\(cluster.port)
            [pgbouncer]
            listen_addr = 127.0.0.1
            listen_port = \(port)
            unix_socket_dir =
            auth_type = plain
            auth_file = \(directory)/users
            pool_mode = transaction
            default_pool_size = \(Self.poolSize)
            max_client_conn = 200
            server_idle_timeout = 5
            server_login_retry = 1
            """
        for (name, text) in [("settings", settings + "\n"), ("users", "\"\(PostgresCluster.user)\" \"\(PostgresCluster.password)\"\n")] {
            try Data(text.utf8).write(to: URL(fileURLWithPath: "\(directory)/\(name)"))
            try Privilege.giveAway("\(directory)/\(name)")
        }
        let child = try Privilege.start("/usr/sbin/pgbouncer", [directory + "/settings"], errors: directory + "/log")
        self.child = child
        guard eventually(10, { child.poll() != nil || procText(directory + "/log").contains("process up") }), child.poll() == nil else {
            throw HarnessError("pgbouncer does not start:\n\(procText(directory + "/log"))")
        }
    }

    /// The one before the cluster that tests share.
    public static func shared() throws -> Bouncer { try PostgresCluster.bouncer() }

    public func url(_ database: String) -> String {
        "postgresql://\(PostgresCluster.user):\(PostgresCluster.encodedPassword)@127.0.0.1:\(port)/\(database)"
    }

    func end() {
        child?.signal(SIGKILL)
        _ = child?.wait(5)
        try? FileManager.default.removeItem(atPath: directory)  // a leftover in /tmp is no failure
    }
}

/// What a test's server has its store in.
public enum Database: String, Sendable, CaseIterable, CustomStringConvertible {
    case sqlite, postgresql
    /// PostgreSQL behind pgbouncer in transaction mode.
    case bouncer

    public var description: String { rawValue }
    /// Those that a test of the store itself should hold for.
    public static let both: [Database] = [.sqlite, .postgresql]

    /// The URL of a new one in the cluster that tests share, and its name there; nil for the default, a file in the data directory.
    public func make() throws -> (url: String, name: String)? {
        guard self != .sqlite else { return nil }
        let cluster = try PostgresCluster.shared()
        let name = try cluster.createDatabase()
        return (try self == .bouncer ? Bouncer.shared().url(name) : cluster.url(name), name)
    }

    /// A database of the shared cluster is not needed any more. Behind a pooler nothing is used again: it may still carry out what a client
    /// asked that has been killed since.
    public func giveBack(_ name: String) {
        guard self == .postgresql else { return }
        PostgresCluster.giveBackShared(name)
    }
}

/// Programs that refuse to run as root: as the user `postgres` then. All end with this process.
enum Privilege {
    private static let isRoot = geteuid() == 0
    private static let environment = ["PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/tmp"]

    static func folder(_ name: String) throws -> String {
        var template = Array("/tmp/\(name).XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw HarnessError("no temporary directory") }
        let path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        try giveAway(path)
        return path
    }

    static func giveAway(_ path: String) throws {
        guard isRoot else { return }
        guard let user = getpwnam("postgres") else { throw HarnessError("there is no user postgres: install the package postgresql") }
        guard chown(path, user.pointee.pw_uid, user.pointee.pw_gid) == 0 else { throw HarnessError("\(path) can't be given to postgres") }
    }

    static func start(
        _ executable: String, _ arguments: [String], _ extra: [String: String] = [:], output: String = "/dev/null", errors: String
    ) throws -> Child {
        let user = isRoot ? ["--reuid=postgres", "--regid=postgres", "--init-groups"] : []
        return try LastingThread.shared.run {
            try Child(
                "/usr/bin/setpriv", user + ["--pdeathsig", "KILL", executable] + arguments, environment: environment.merging(extra) { $1 },
                output: output,
                errors: errors)
        }
    }

    static func run(
        _ executable: String, _ arguments: [String], _ extra: [String: String] = [:], seconds: Double = 60
    ) throws -> CommandResult {
        let name = "/tmp/clbt-\(getpid())-\(UUID().uuidString)"
        defer { for end in ["out", "err"] { unlink("\(name).\(end)") } }
        let child = try start(executable, arguments, extra, output: name + ".out", errors: name + ".err")
        guard let exit = child.wait(seconds) else { throw HarnessError("\(executable) \(arguments.joined(separator: " ")) did not end") }
        return CommandResult(exit: exit, output: procText(name + ".out"), errors: procText(name + ".err"))
    }
}

private final class Box<T>: @unchecked Sendable {  // written before a semaphore's signal, read after it
    var result: Result<T, any Error>?
    init() {}
}

/// A thread that lives as long as the process: PR_SET_PDEATHSIG speaks of the thread that started the child, and those of the test runner
/// come and go.
private final class LastingThread: @unchecked Sendable {  // `condition` guards the jobs
    static let shared = LastingThread()
    private let condition = NSCondition()
    private var jobs: [@Sendable () -> Void] = []

    private init() {
        Thread.detachNewThread { [self] in
            while true {
                condition.lock()
                while jobs.isEmpty { condition.wait() }
                let job = jobs.removeFirst()
                condition.unlock()
                job()
            }
        }
    }

    func run<T: Sendable>(_ body: @escaping @Sendable () throws -> T) throws -> T {
        let (box, done) = (Box<T>(), DispatchSemaphore(value: 0))
        condition.lock()
        jobs.append {
            box.result = Result { try body() }
            done.signal()
        }
        condition.signal()
        condition.unlock()
        done.wait()
        return try box.result!.get()
    }
}
