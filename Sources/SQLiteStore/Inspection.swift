internal import Schema
internal import Store

#if canImport(Glibc)
    internal import Glibc
#endif

/// What a file is, found without changing a byte of it or beside it.
public enum Inspection {
    /// No file yet, or one without tables.
    case empty
    case ours(revision: Int)

    /// A log of this length has no page in it (fileformat2.html 4.1).
    private static let walHeaderBytes = 32

    /// Between looks at a file that somebody writes.
    private static let (looksMax, lookMicroseconds): (Int, UInt32) = (10, 20_000)

    /// `isAlone`: the caller holds the right to write.
    static func of(_ path: String, isAlone: Bool = false) throws(StoreError) -> Inspection {
        // Read without a lock, what another process makes or checkpoints right now may be half of it.
        for _ in 1..<looksMax {
            do throws(StoreError) { return try look(path) } catch {
                guard error.kind == .corrupt || error.kind == .foreign, !isAlone, WriterLock.isHeld(database: path) else { throw error }
                usleep(lookMicroseconds)
            }
        }
        return try look(path)
    }

    private static func look(_ path: String) throws(StoreError) -> Inspection {
        var (info, log, journal) = (stat(), stat(), stat())
        let hasJournal = stat(path + "-journal", &journal) == 0
        let hasLog = stat(path + "-wal", &log) == 0
        let isThere = stat(path, &info) == 0
        // Reading a pipe that nobody writes to takes for ever.
        let files = [(path, isThere, info), (path + "-wal", hasLog, log), (path + "-journal", hasJournal, journal)]
        for (name, exists, file) in files where exists && file.st_mode & S_IFMT != S_IFREG {
            throw StoreError(.foreign, "database \(path): \(name) is not a regular file; move it away")
        }
        // We make a log only when the file has its first page, and SQLite would throw this one away.
        if !isThere || info.st_size == 0, hasLog, log.st_size > walHeaderBytes {
            throw StoreError(
                .corrupt,
                "database \(path) is \(isThere ? "empty (0 bytes)" : "missing"), but its log \(path)-wal is there and may hold changes: put the file back beside it, or a backup with codex-lb db restore, which sets the log aside; to begin anew, move the log away"
            )
        }
        guard isThere else { return .empty }
        // Taken for a new database it would be begun anew in silence.
        if info.st_size == 0, !hasLog, !Backup.names(path).isEmpty {
            let way = "codex-lb db restore puts one in its place; remove the file to begin anew"
            throw StoreError(.corrupt, "database \(path) is empty (0 bytes), but there are backups of it; \(way)")
        }
        do throws(StoreError) {
            if case .ours(let revision) = try judge(Connection(path, .immutable)) { return .ours(revision: revision) }
        } catch {
            guard error.kind == .corrupt else { throw error }
            if pagesBeforeJournal(path) == 0 { return .empty }
            // A checkpoint that was cut off leaves a main file that is neither the old nor the new state; with its log it is whole.
            guard hasLog else { throw unreadable(path, error) }
        }
        // A log may hold tables that the main file does not have yet; a read-only connection reads it and never checkpoints.
        // One with a journal, too, was cut off while it was being made; SQLite takes that back when a writer opens it.
        guard hasLog, pagesBeforeJournal(path).map({ $0 > 1 }) ?? true else { return .empty }
        do throws(StoreError) {
            return try judge(Connection(path, .readOnly))
        } catch {
            throw error.kind == .corrupt ? unreadable(path, error) : error
        }
    }

    /// The kind of network file system (`nfs4`, `cifs`, `9p`, `fuse.sshfs` …) that `path`, or before it exists its directory, lies on;
    /// nil for a local one. SQLite's locks and its shared memory do not work reliably there (sqlite.org/howtocorrupt.html 2.1).
    public static func networkFileSystem(of path: String) -> String? {
        guard let real = realpath(path, nil) ?? realpath(directory(path), nil) else { return nil }
        defer { free(real) }
        return networkFileSystem(of: String(cString: real), mounts: String(decoding: contents("/proc/self/mountinfo"), as: UTF8.self))
    }

    /// `mounts` is proc_pid_mountinfo(5): the mount point is the fifth word, the type the first one after ` - `.
    static func networkFileSystem(of path: String, mounts: String) -> String? {
        var (best, type) = (-1, Substring())
        for line in mounts.split(separator: "\n") {
            let halves = line.split(separator: " - ", maxSplits: 1)
            let words = halves[0].split(separator: " ")
            guard halves.count == 2, words.count > 4, let found = halves[1].split(separator: " ").first else { continue }
            let point = words[4].split(separator: "\\040", omittingEmptySubsequences: false).joined(separator: " ")
            let isAbove = point == "/" || path == point || path.hasPrefix(point + "/")
            // Of two on one point the later one covers the other.
            if isAbove, point.utf8.count >= best { (best, type) = (point.utf8.count, found) }
        }
        let remote: Set<Substring> = [
            "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "coda", "ncpfs", "lustre", "gfs2", "ocfs2", "virtiofs", "vboxsf",
            "fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.glusterfs", "fuse.gcsfuse", "fuse.ceph", "fuse.davfs2", "davfs",
        ]
        return remote.contains(type) ? String(type) : nil
    }

    static func directory(_ path: String) -> String {
        path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
    }

    private static func judge(_ connection: Connection) throws(StoreError) -> Inspection {
        let path = connection.path
        let application = try connection.int("PRAGMA application_id") ?? 0
        let version = try connection.int("PRAGMA user_version") ?? 0
        let tables = try connection.rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name", []) { $0.text(0) }
        if application == Int64(Schema.applicationID) {
            guard version <= Int64(Schema.head.number) else {
                throw StoreError(
                    .newer,
                    "database \(path) has revision \(Schema.name(Int(version))), this codex-lb knows \(Schema.head.id); run the newer codex-lb that made it, or restore a backup"
                )
            }
            return .ours(revision: Int(version))
        }
        if tables.isEmpty && application == 0 { return .empty }
        if Set(["accounts", "client_keys", "revision_history", "state", "usage_records"]).isSubset(of: tables) {
            throw StoreError(
                .corrupt, Connection.damaged("database \(path)", "its header does not carry codex-lb's mark, its tables are codex-lb's"))
        }
        let what: String
        if tables.contains("alembic_version") {
            let revision = try connection.rows("SELECT version_num FROM alembic_version LIMIT 1", []) { $0.text(0) }.first ?? ""
            what = "the database of the Python codex-lb\(revision.isEmpty ? "" : " (alembic revision \(revision))")"
        } else {
            let some = tables.prefix(3).joined(separator: ", ")
            what =
                "a database of another program (application id \(application), \(tables.isEmpty ? "no tables" : "tables \(some)\(tables.count > 3 ? ", …" : "")"))"
        }
        throw StoreError(.foreign, "\(path) is \(what); it was not touched. Move it away or choose another --data-dir")
    }

    /// How many pages the file had before the transaction that its rollback journal takes back; nil without a journal
    /// (fileformat2.html 3: magic, and the number at offset 16). We write such a journal only while we make a database.
    private static func pagesBeforeJournal(_ path: String) -> Int? {
        let head = bytes(path + "-journal", from: 0, count: 28)
        guard head.count == 28, head.starts(with: [0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7]) else { return nil }
        return head[16..<20].reduce(0) { $0 << 8 | Int($1) }
    }

    /// A file that SQLite can't read: is it a damaged database of ours or something else?
    private static func unreadable(_ path: String, _ error: StoreError) -> StoreError {
        if bytes(path, from: 0, count: 16) == Array("SQLite format 3\0".utf8) { return error }
        let isOurs = ["-wal", ".lock"].contains { access(path + $0, F_OK) == 0 } || !Backup.names(path).isEmpty || looksLikePages(path)
        guard isOurs else {
            return StoreError(.foreign, "\(path) is not an SQLite database; it was not touched. Move it away or choose another --data-dir")
        }
        return StoreError(.corrupt, Connection.damaged("database \(path)", "its header can't be read"))
    }

    /// Whether most of the first pages after the header page begin as pages of a B-tree do (fileformat2.html 1.6).
    private static func looksLikePages(_ path: String) -> Bool {
        let size = 4096  // SQLite's default, which our databases have
        let heads = (1...16).map { bytes(path, from: $0 * size, count: 8) }.filter { $0.count == 8 }
        let good = heads.filter { head in
            let cells = Int(head[3]) << 8 | Int(head[4])
            let content = Int(head[5]) << 8 | Int(head[6])
            return [2, 5, 10, 13].contains(head[0]) && (cells > 0 || content == size) && 8 + 2 * cells <= size && content <= size
                && head[7] <= 60
        }
        return heads.count >= 2 && good.count * 2 >= heads.count
    }

    private static func contents(_ path: String) -> [UInt8] {
        let fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard fd >= 0 else { return [] }
        defer { close(fd) }
        var (out, buffer) = ([UInt8](), [UInt8](repeating: 0, count: 16_384))
        while case let n = read(fd, &buffer, buffer.count), n > 0 { out += buffer[..<n] }
        return out
    }

    /// For files that no connection of this process has open with a lock: closing the descriptor drops the process's locks on it.
    private static func bytes(_ path: String, from offset: Int, count: Int) -> [UInt8] {
        let fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard fd >= 0 else { return [] }
        defer { close(fd) }
        var out = [UInt8](repeating: 0, count: count)
        let read = pread(fd, &out, count, off_t(offset))
        return Array(out.prefix(max(0, read)))
    }
}
