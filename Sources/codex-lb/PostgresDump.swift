import Platform
import PostgresStore
import SQLiteStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Backups of a PostgreSQL database by its own tools, pg_dump and pg_restore. Files are `<data>/<database>.backup.YYYYMMDD-HHMMSS.dump`; a
/// file with that name is complete, on disk, and pg_restore can read it.
struct PostgresDump {
    private let url: PostgresURL
    private let directory: String
    private static let suffix = ".dump"

    init(_ url: PostgresURL, _ settings: Settings) { (self.url, directory) = (url, settings.dataDirectory) }

    private var name: String { url.database ?? url.user ?? "postgresql" }

    /// `stillWanted` is asked now and then; false ends the dump and leaves nothing.
    func make(
        output: String? = nil, label: String = Backup.label, stillWanted: () throws(StoreError) -> Bool = { true }
    ) throws(StoreError) -> BackupFile {
        let server = try PostgresStore.server(url)
        let tool = try Self.tool("pg_dump", for: server)
        do throws(SystemError) { try Directory.make(directory) } catch { throw StoreError(.io, "\(error)") }
        let target = output ?? Backup.free("\(directory)/\(name).\(label).\(Backup.stamp(Clock.wall))", suffix: Self.suffix)
        guard access(target, F_OK) != 0 else { throw StoreError(.constraint, "\(target) exists already; give another name") }
        try Backup.withPartial(target, of: name) { partial, fd throws(StoreError) in
            // Only ours: what else is in the database belongs to somebody else.
            let (schema, tables) = try PostgresStore.tables(url)
            func quoted(_ name: String) -> String { "\"" + name.replacing("\"", with: "\"\"") + "\"" }
            let ours = tables.map { "--table=\(quoted(schema)).\(quoted($0))" }
            // Its AccessShareLock would queue behind a migration and hold up those behind it: not for long.
            try run(
                tool, ["--format=custom", "--lock-wait-timeout=5000", "--no-password", "--file=\(partial)"] + ours + connection(server)
            ) {
                seconds throws(StoreError) in
                var info = stat()
                if stat(partial, &info) == 0 { complain("pg_dump: \(info.st_size >> 20) MiB written, \(seconds) s") }
                return try stillWanted()
            }
            let made = examine(partial)
            guard made.problem.isEmpty else { throw StoreError(.corrupt, "the dump can't be read back: \(made.problem)") }
            try Backup.publish(partial, fd, as: target)
        }
        return examine(target)
    }

    /// Files under backups' names, newest first; with `label` only those.
    func list(label: String? = nil) -> [BackupFile] {
        let labels = label.map { [$0] } ?? [Backup.label, Backup.scheduledLabel]
        return labels.flatMap { label in
            Backup.names(in: directory, prefix: "\(name).\(label).", suffix: Self.suffix).map { examine(directory + "/" + $0) }
        }.sorted { $0.stamp > $1.stamp }
    }

    func prune(label: String, keeping count: Int) throws(StoreError) {
        for name in Backup.names(in: directory, prefix: "\(name).\(label).", suffix: Self.suffix).dropFirst(max(1, count)) {
            guard unlink(directory + "/" + name) == 0 else { throw Self.failed("deleting \(name)") }
        }
    }

    /// Replaces the database's contents in one transaction: either all of the dump is there afterwards or all of before.
    func restore(_ file: String) throws(StoreError) -> String? {
        guard access(file, R_OK) == 0 else { throw Self.failed("reading \(file)") }
        let dump = examine(file)
        guard dump.problem.isEmpty else { throw StoreError(.corrupt, "\(file): \(dump.problem); nothing was changed") }
        try PostgresStore.refuseUsed(url)
        let server = try PostgresStore.server(url)
        let tool = try Self.tool("pg_restore", for: server)
        let chosen = try ours(in: file, tool)
        defer { unlink(chosen) }
        let aside = try PostgresStore.history(url).isEmpty ? nil : make(label: Backup.label).path
        try run(
            tool,
            [
                "--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error", "--no-password", "--use-list=\(chosen)",
            ] + connection(server) + [file]
        ) { seconds throws(StoreError) in
            complain("pg_restore: \(seconds) s")
            return true
        }
        return aside
    }

    /// A file with those lines of a dump's table of contents that are about our tables: what else is in it, as in dumps that an older codex-lb
    /// made of a shared database, is not put back over what others have there now.
    private func ours(in file: String, _ tool: String) throws(StoreError) -> String {
        let (schema, tables) = try PostgresStore.tables(url)
        let list = "\(directory)/.restore-list.\(getpid())"
        try run(tool, ["--list", "--file=\(list)", file]) { _ throws(StoreError) in true }
        func failed(_ what: String) -> StoreError {
            unlink(list)
            return StoreError(.corrupt, what)
        }
        guard let lines = try? readFile(list, what: "list", bytesMax: 64 << 20) else {  // it has just been made
            throw failed("the table of contents of \(file) can't be read")
        }
        var (kept, elsewhere) = ([String](), Set<String>())
        for line in String(decoding: lines, as: UTF8.self).split(separator: "\n") where !line.hasPrefix(";") {
            // `3456; 1259 16386 TABLE DATA public accounts owner`: the kind has one or more words in capitals.
            let words = line.split(separator: " ").dropFirst(3).drop { $0.allSatisfy { $0.isUppercase } }
            guard words.count >= 2, let space = words.first, let object = words.dropFirst().first else { continue }
            guard tables.contains(where: { object == $0 || object.hasPrefix($0 + "_") }) else { continue }
            if space == schema { kept.append(String(line)) } else { elsewhere.insert(String(space)) }
        }
        guard kept.contains(where: { $0.contains(" TABLE ") }) else {
            throw failed(
                elsewhere.isEmpty
                    ? "\(file) holds no table of codex-lb; nothing was changed"
                    : "\(file) holds the tables of the schema \(elsewhere.sorted().joined(separator: ", ")), and this URL leads to \(schema); nothing was changed"
            )
        }
        let text = kept.joined(separator: "\n") + "\n"
        let fd = open(list, O_WRONLY | O_TRUNC | O_CLOEXEC)
        defer { if fd >= 0 { close(fd) } }
        guard fd >= 0, write(fd, text, text.utf8.count) == text.utf8.count else { throw failed("writing \(list)") }
        return list
    }

    /// Reads the dump's table of contents; its revision is not in there.
    private func examine(_ path: String) -> BackupFile {
        var info = stat()
        let bytes = stat(path, &info) == 0 ? Int(info.st_size) : 0
        let base = path[(path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex)...]
        let stamp = base.split(separator: ".").first { $0.count >= 15 && $0.dropFirst(8).first == "-" }.map(String.init) ?? ""
        var file = BackupFile(path: path, bytes: bytes, stamp: stamp, revision: "-", problem: "")
        do throws(StoreError) {
            // Restoring the schema into nowhere makes it read every byte of every table.
            let tool = try Self.tool("pg_restore", for: nil)
            try run(tool, ["--file=/dev/null", path]) { _ throws(StoreError) in true }
        } catch {
            file.problem = error.message
        }
        return file
    }

    // MARK: The tools

    /// The password goes by the environment: arguments can be seen by everyone on the host.
    private func connection(_ server: PostgresStore.Server) -> [String] {
        func quoted(_ value: String) -> String {
            "'" + value.replacing("\\", with: "\\\\").replacing("'", with: "\\'") + "'"
        }
        var parts = ["host=\(quoted(server.host.name))", "port=\(server.host.port)"]
        if let user = url.user { parts.append("user=\(quoted(user))") }
        if let database = url.database { parts.append("dbname=\(quoted(database))") }
        for (name, value) in url.parameters where name != "target_session_attrs" && name != "sslpassword" {
            parts.append("\(name)=\(quoted(value))")
        }
        return ["--dbname=" + parts.joined(separator: " ")]
    }

    private func run(
        _ tool: String, _ arguments: [String], eachSecond: (Int) throws(StoreError) -> Bool
    ) throws(StoreError) {
        var environment = Environment.current
        if let password = url.password { environment["PGPASSWORD"] = password }
        let pid: Int32
        do throws(SystemError) { pid = try Process.spawn(tool, arguments, environment: environment) } catch {
            throw StoreError(.io, "\(error)")
        }
        let start = Clock.now
        var told = 0
        while true {
            if let exit = Process.reap(pid) {
                guard exit == .code(0) else { throw StoreError(.io, "\(tool) ended with \(exit); what it said stands above") }
                return
            }
            let seconds = Clock.now.milliseconds(since: start) / 1000
            if seconds > told {
                told = seconds
                do throws(StoreError) {
                    guard try eachSecond(seconds) else { throw StoreError(.conflict, "\(tool) was ended: it is not wanted any more") }
                } catch {
                    Process.signal(pid, SIGTERM)
                    while Process.reap(pid) == nil { usleep(10_000) }
                    throw error
                }
            }
            usleep(10_000)
        }
    }

    /// The tool whose major version is at least the server's, from PATH or Debian's versioned directories. pg_dump refuses newer servers,
    /// pg_restore newer dumps: without a server it is the newest.
    private static func tool(_ name: String, for server: PostgresStore.Server?) throws(StoreError) -> String {
        let wanted = (server?.version ?? 0) / 10_000
        var candidates = (Environment.current["PATH"] ?? "").split(separator: ":").map { $0 + "/" + name }
        // Debian's /usr/bin/pg_dump is a wrapper that looks for a cluster of its own choice: the real ones come first.
        let versions = Backup.entries(of: "/usr/lib/postgresql").compactMap { Int($0) }.sorted(by: server == nil ? (>) : (<))
        candidates = versions.filter { $0 >= wanted }.map { "/usr/lib/postgresql/\($0)/bin/\(name)" } + candidates
        var found: [String] = []
        for path in candidates where access(path, X_OK) == 0 {
            guard let major = major(path) else { continue }
            if major >= wanted { return path }
            found.append("\(path) is version \(major)")
        }
        throw StoreError(
            .missing,
            found.isEmpty
                ? "\(name) is not installed here; install it with: apt-get install postgresql-client"
                : "\(name) must be of version \(wanted) or newer, the server's; \(found.joined(separator: ", ")). Install postgresql-client-\(wanted)"
        )
    }

    /// Out of `pg_dump (PostgreSQL) 15.18 …`.
    private static func major(_ path: String) -> Int? {
        guard let pipe = popen("'\(path.replacing("'", with: "'\\''"))' --version 2>/dev/null", "r") else { return nil }
        defer { pclose(pipe) }
        var buffer = [CChar](repeating: 0, count: 256)
        guard fgets(&buffer, 256, pipe) != nil else { return nil }
        let line = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return line.split(separator: " ").lazy.compactMap { $0.split(separator: ".").first.flatMap { Int($0) } }.first
    }

    private static func failed(_ what: String) -> StoreError {
        let code = errno
        return StoreError(code == ENOSPC ? .full : code == EROFS ? .readOnly : .io, "\(what): \(String(cString: strerror(code)))")
    }
}
