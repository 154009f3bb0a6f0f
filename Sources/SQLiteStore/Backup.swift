internal import CPlatform
internal import CSQLite
internal import Schema
public import Store
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// A finished copy of a database beside it.
public struct BackupFile: Sendable, Equatable {
    public var path: String
    public var bytes: Int
    /// From its name.
    public var stamp: String
    /// `0001`; empty when the file does not open or is not ours.
    public var revision: String
    /// Why it is no good; empty when it opens and `quick_check` finds nothing.
    public var problem: String

    public init(path: String, bytes: Int, stamp: String, revision: String, problem: String) {
        (self.path, self.bytes, self.stamp, self.revision, self.problem) = (path, bytes, stamp, revision, problem)
    }
}

/// Copies of a database and the way back. A file under a backup's name is always complete, on disk and checked.
public enum Backup {
    /// Free space wanted, in hundredths of the database's size.
    static let freeSpacePercent = 110

    /// Copies made by hand, which nothing removes, those of the schedule, and those made before an upgrade; the last two have a limit each.
    public static let (label, scheduledLabel, upgradeLabel) = ("backup", "scheduled", "before-upgrade")
    public static let labels = [label, scheduledLabel, upgradeLabel]

    /// Copies the database as it is at one moment, while others write. The default name is `<database>.<label>.YYYYMMDD-HHMMSS` (UTC).
    /// A copy that takes longer than a second tells `progress` each second how far it is: `copying 512 of 1024 MiB`.
    public static func make(
        database path: String, output: String? = nil, label: String = label, now: WallTime, progress: ((String) -> Void)? = nil
    ) throws(StoreError) -> BackupFile {
        guard case .ours = try Inspection.of(path) else { throw StoreError(.missing, "there is no database at \(path) to copy") }
        let target = output ?? free("\(path).\(label).\(stamp(now))")
        guard access(target, F_OK) != 0 else { throw StoreError(.constraint, "\(target) exists already; give another name") }
        try checkSpace(path, in: Inspection.directory(target), percent: freeSpacePercent, for: "the copy of \(path)")
        let revision = try withPartial(target, of: base(path)) { partial, fd throws(StoreError) in
            try copy(path, partial, fd, progress)
            let (revision, problem): (String, String)
            do throws(StoreError) { (revision, problem) = try check(partial, isThorough: false) } catch {
                guard error.kind == .corrupt else { throw error }
                // Its words are about the copy, which does not stay.
                (revision, problem) = ("", "it can't be read")
            }
            guard problem.isEmpty else {
                throw StoreError(
                    .corrupt, "the copy of \(path) is no good: \(problem); the database itself may be damaged, run: codex-lb db check")
            }
            try publish(partial, fd, as: target)
            return revision
        }
        return BackupFile(path: target, bytes: bytes(target), stamp: stamp(inNameOf: target), revision: revision, problem: "")
    }

    /// All copies under backups' names, newest first. Files of other names are not ours to list or delete.
    public static func list(database path: String, label: String = label) -> [BackupFile] {
        names(path, label: label).map { examine(Inspection.directory(path) + "/" + $0, isThorough: false) }
    }

    /// The newest copy's path; looks at names alone.
    public static func newest(database path: String, label: String) -> String? {
        names(path, label: label).first.map { Inspection.directory(path) + "/" + $0 }
    }

    /// Deletes the oldest copies beyond `count`.
    public static func prune(database path: String, label: String = label, keeping count: Int) throws(StoreError) {
        for name in names(path, label: label).dropFirst(max(1, count)) {
            guard unlink(Inspection.directory(path) + "/" + name) == 0 else { throw failed("deleting \(name)") }
        }
    }

    /// Puts a copy in the database's place. The present database, with its log, is kept under `<database>.replaced.YYYYMMDD-HHMMSS`,
    /// which is returned; nil when there was none. Refuses while a server runs and when the copy is no good. `progress` as with `make`.
    public static func restore(
        _ file: String, database path: String, now: WallTime, progress: ((String) -> Void)? = nil
    ) throws(StoreError) -> String? {
        let lock = try WriterLock.acquire(database: path, waitMilliseconds: Limits.leavingMilliseconds)
        defer { withExtendedLifetime(lock) {} }
        guard access(file, R_OK) == 0 else { throw failed("reading \(file)") }
        guard case .ours = try Inspection.of(file) else { throw StoreError(.foreign, "\(file) is no database of codex-lb") }
        let checked = examine(file, isThorough: true)
        guard checked.problem.isEmpty else { throw StoreError(.corrupt, "\(file) is damaged: \(checked.problem); nothing was changed") }
        try checkSpace(file, in: Inspection.directory(path), percent: freeSpacePercent, for: "the copy of \(file)")
        return try withPartial(path, of: base(path)) { partial, fd throws(StoreError) in
            try copy(file, partial, fd, progress)
            guard fsync(fd) == 0 else { throw failed("writing \(partial)") }
            // The log goes first: a database without its log is an old one, a log beside the wrong database is a broken one. One that lost
            // its database goes too.
            let present = ["-wal", "-shm", ""].filter { access(path + $0, F_OK) == 0 }
            let name = free(path + ".replaced." + stamp(now))
            for suffix in present {
                guard rename(path + suffix, name + suffix) == 0 else { throw failed("setting \(path + suffix) aside") }
            }
            guard rename(partial, path) == 0 else { throw failed("putting \(path) in place") }
            try syncDirectory(of: path)
            return present.isEmpty ? nil : present.contains("") ? name : name + present[0]
        }
    }

    /// The copy made before an upgrade, or the one of an earlier try when nothing has changed since: a start that fails again and again must
    /// neither fill the disk nor drive out the good copies.
    static func beforeUpgrade(
        database path: String, _ connection: Connection, now: WallTime, progress: @escaping (String) -> Void
    ) throws(StoreError) -> String {
        if let newest = names(path, label: upgradeLabel).first.map({ Inspection.directory(path) + "/" + $0 }),
            let kept = try? Connection(newest, .readOnly), let facts = try? facts(kept),  // one that can't be read is no copy
            facts == (try Self.facts(connection)),
            examine(newest, isThorough: false).problem.isEmpty
        {
            progress("\(newest) is a copy of \(path) as it is: no other is made before the upgrade")
            return newest
        }
        return try make(database: path, label: upgradeLabel, now: now, progress: progress).path
    }

    /// What every change changes: accounts, keys and settings count the version up, records have ids of their own.
    private static func facts(_ connection: Connection) throws(StoreError) -> [String] {
        try connection.rows(
            """
            SELECT coalesce((SELECT max(id) FROM revision_history), ''), coalesce((SELECT value FROM state WHERE key = 'snapshot_version'), ''),
                (SELECT count(*) FROM usage_records), (SELECT count(*) FROM settings), coalesce((SELECT hex(max(id)) FROM usage_records), '')
            """, []
        ) { row in (0..<5).map { row.text($0) } }.first ?? []
    }

    // MARK: Parts

    /// Has `body` fill a new file (0600) beside `target` and give it its name. Whatever else comes of it, neither that file nor what SQLite
    /// made beside it stays. `name` is the database's: what killed processes left unfinished of it in that directory goes too.
    public static func withPartial<T>(
        _ target: String, of name: String, _ body: (_ partial: String, _ fd: Int32) throws(StoreError) -> T
    ) throws(StoreError) -> T {
        clearLeft(in: Inspection.directory(target), of: name)
        let partial = "\(target).\(getpid()).partial"
        clear(partial)
        // An operator who breaks it off leaves nothing behind: said before there is anything.
        codexlb_remove_at_signal(partial)
        defer { codexlb_remove_at_signal(nil) }
        let fd = open(partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw failed("making \(partial)") }
        defer {
            close(fd)
            clear(partial)
        }
        // What root makes must be the service's to write.
        codexlb_adopt_owner(partial, target)
        var info = stat()
        if stat(target, &info) == 0 { fchmod(fd, info.st_mode & 0o777) }
        flock(fd, LOCK_EX | LOCK_NB)  // says that somebody works on it, and ends with the process
        return try body(partial, fd)
    }

    private static func clear(_ partial: String) { for suffix in ["", "-journal", "-wal", "-shm"] { unlink(partial + suffix) } }

    /// A file that nobody holds, and that nobody has written to for this long, is nobody's.
    private static let leftMilliseconds: Int64 = 60_000

    private static func clearLeft(in directory: String, of name: String) {
        for entry in entries(of: directory) where entry.hasPrefix(name + ".") && entry.hasSuffix(".partial") {
            let parts = entry.split(separator: ".")
            guard parts.count > 2, parts[parts.count - 2].utf8.allSatisfy({ (48...57).contains($0) }) else { continue }
            let path = directory + "/" + entry
            let fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
            guard fd >= 0 else { continue }
            defer { close(fd) }
            var info = stat()
            guard flock(fd, LOCK_EX | LOCK_NB) == 0, fstat(fd, &info) == 0,
                Clock.wall.milliseconds - Int64(info.st_mtim.tv_sec) * 1000 > leftMilliseconds
            else { continue }
            clear(path)
        }
    }

    static func base(_ path: String) -> String {
        String(path[(path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex)...])
    }

    /// Gives a finished file, on disk by then, its name.
    public static func publish(_ partial: String, _ fd: Int32, as target: String) throws(StoreError) {
        guard fsync(fd) == 0 else { throw failed("writing \(partial)") }
        // link refuses a name that someone took meanwhile; rename would replace it.
        guard link(partial, target) == 0 else { throw failed("naming \(target)") }
        unlink(partial)
        try syncDirectory(of: target)
    }

    /// A copy goes to the disk in portions of this size: kept for the end, its pages would hold up the writer's own syncs.
    private static let syncBytes = 16 << 20

    /// `fd`: the target, open.
    private static func copy(_ source: String, _ target: String, _ fd: Int32, _ progress: ((String) -> Void)?) throws(StoreError) {
        let from = try Connection(source, .readOnly)
        let to = try Connection(target, .readWrite)
        var (told, synced) = (Clock.now, 0)
        try to.copy(from: from) { bytes, total in
            if bytes - synced >= syncBytes {
                fdatasync(fd)  // what fails here fails again in the sync at the end, whose word counts
                synced = bytes
            }
            guard let progress, bytes < total, Clock.now.milliseconds(since: told) >= 1000 else { return }
            told = Clock.now
            progress("copying \(bytes >> 20) of \(total >> 20) MiB")
        }
        // A copy is one file: it needs no log beside it.
        try to.execute("PRAGMA journal_mode = DELETE")
        to.close()
        from.close()
    }

    /// What a file under a backup's name is; what keeps it from being read is its problem.
    static func examine(_ path: String, isThorough: Bool) -> BackupFile {
        var file = BackupFile(path: path, bytes: bytes(path), stamp: stamp(inNameOf: path), revision: "", problem: "")
        do throws(StoreError) {
            (file.revision, file.problem) = try check(path, isThorough: isThorough)
        } catch {
            file.problem = error.message
        }
        return file
    }

    /// The file's revision and what is wrong with it, empty when it holds together. Throws when it can't be read.
    private static func check(_ path: String, isThorough: Bool) throws(StoreError) -> (revision: String, problem: String) {
        let connection = try Connection(path, .readOnly)
        guard try connection.int("PRAGMA application_id") == Int64(Schema.applicationID) else { return ("", "not a database of codex-lb") }
        let version = Schema.name(Int(try connection.int("PRAGMA user_version") ?? 0))
        let problems = try connection.problems(isThorough: isThorough, limit: 5)
        return (version, problems.joined(separator: "; "))
    }

    private static func bytes(_ path: String) -> Int {
        var info = stat()
        return stat(path, &info) == 0 ? Int(info.st_size) : 0
    }

    /// Empty when the name has none.
    private static func stamp(inNameOf path: String) -> String {
        path.split(separator: ".").last { $0.count >= 15 && $0.dropFirst(8).first == "-" }.map(String.init) ?? ""
    }

    /// A copy of a file's bytes, whatever they are, on disk when it returns (0600).
    static func copyBytes(_ source: String, _ target: String) throws(StoreError) {
        let from = open(source, O_RDONLY | O_CLOEXEC)
        guard from >= 0 else { throw failed("reading \(source)") }
        defer { close(from) }
        let to = open(target, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard to >= 0 else { throw failed("making \(target)") }
        defer { close(to) }
        codexlb_adopt_owner(target, source)
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            let n = read(from, &buffer, buffer.count)
            if n == 0 { break }
            guard n > 0, write(to, buffer, n) == n else {
                let error = failed("copying \(source) to \(target)")
                unlink(target)
                throw error
            }
        }
        guard fsync(to) == 0 else { throw failed("writing \(target)") }
    }

    /// Refuses when the directory has less room than `percent` hundredths of the file `source`.
    static func checkSpace(_ source: String, in directory: String, percent: Int, for what: String) throws(StoreError) {
        var info = stat()
        var space = statvfs()
        guard stat(source, &info) == 0, statvfs(directory, &space) == 0 else { throw failed("looking at \(directory)") }
        let free = Int(space.f_bavail) * Int(space.f_frsize)
        let wanted = Int(info.st_size) / 100 * percent
        guard free > wanted else {
            throw StoreError(
                .full, "\(directory) has \(free >> 20) MiB free, \(what) wants \((wanted >> 20) + 1) MiB; make room, nothing was changed")
        }
    }

    static func names(_ path: String, label: String = label) -> [String] {
        names(in: Inspection.directory(path), prefix: "\(base(path)).\(label).", suffix: "")
    }

    /// Names `<prefix>YYYYMMDD-HHMMSS[-n]<suffix>` in a directory, the newest first.
    public static func names(in directory: String, prefix: String, suffix: String) -> [String] {
        entries(of: directory).filter { name in
            guard name.hasPrefix(prefix), name.hasSuffix(suffix), name.count > prefix.count + suffix.count else { return false }
            let parts = name.dropFirst(prefix.count).dropLast(suffix.count).split(separator: "-", omittingEmptySubsequences: false)
            return (2...3).contains(parts.count) && parts[0].count == 8 && parts[1].count == 6
                && parts.allSatisfy { !$0.isEmpty && $0.utf8.allSatisfy { (48...57).contains($0) } }
        }.sorted { $0.dropLast(suffix.count) > $1.dropLast(suffix.count) }
    }

    /// Names of a directory's entries; none when it can't be read.
    public static func entries(of directory: String) -> [String] {
        guard let folder = opendir(directory) else { return [] }
        defer { closedir(folder) }
        var out: [String] = []
        while let entry = readdir(folder) {
            out.append(
                withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                })
        }
        return out
    }

    /// The name, or the first of `name-1`, `name-2` … that nobody has.
    public static func free(_ name: String, suffix: String = "") -> String {
        if access(name + suffix, F_OK) != 0 { return name + suffix }
        return (1...).lazy.map { "\(name)-\($0)\(suffix)" }.first { access($0, F_OK) != 0 } ?? name + suffix
    }

    /// `20261123-100500`
    public static func stamp(_ now: WallTime) -> String {
        let digits = now.rfc3339.filter { $0.isNumber }
        return digits.prefix(8) + "-" + digits.dropFirst(8).prefix(6)
    }

    private static func syncDirectory(of path: String) throws(StoreError) {
        let fd = open(Inspection.directory(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard fd >= 0 else { throw failed("opening \(Inspection.directory(path))") }
        defer { close(fd) }
        guard fsync(fd) == 0 else { throw failed("syncing \(Inspection.directory(path))") }
    }

    static func failed(_ what: String) -> StoreError {
        let code = errno
        return StoreError(code == ENOSPC ? .full : code == EROFS ? .readOnly : .io, "\(what): \(String(cString: strerror(code)))")
    }
}
