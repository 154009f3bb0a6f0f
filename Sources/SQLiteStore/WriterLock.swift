internal import CPlatform
public import Store
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// The right to write a database: an flock on `<database>.lock` that ends with the process.
///
/// It is a file of its own: closing any descriptor of the database would drop SQLite's locks (sqlite.org/howtocorrupt.html 2.2).
public final class WriterLock: Sendable {
    private let descriptor: Int32

    /// Between two tries, and between two lines that say who is waited for.
    private static let pollMicroseconds: UInt32 = 20_000
    private static let sayMilliseconds = 10_000

    private init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }

    /// Takes the lock, waiting for another holder up to `waitMilliseconds`; `waiting` is told after the first second and every 10 s.
    /// Makes the database's directory when missing (0700).
    public static func acquire(
        database path: String, waitMilliseconds: Int, waiting: (String) -> Void = { _ in }
    ) throws(StoreError) -> WriterLock {
        if let slash = path.lastIndex(of: "/") { try makeDirectory(String(path[..<slash])) }
        let lockPath = path + ".lock"
        let fd = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard fd >= 0 else { throw failed("lock file \(lockPath)") }
        codexlb_adopt_owner(lockPath, path)
        let start = Clock.now
        let deadline = start.adding(milliseconds: waitMilliseconds)
        var sayAt = start.adding(milliseconds: 1_000)
        while flock(fd, LOCK_EX | LOCK_NB) != 0 {
            guard errno == EWOULDBLOCK || errno == EINTR else {
                let error = failed("lock file \(lockPath)")
                close(fd)
                throw error
            }
            let now = Clock.now
            guard now < deadline else {
                let holder = holder(fd)
                close(fd)
                throw StoreError(
                    .busy,
                    "database \(path) is being written by \(holder); only one codex-lb can use a data directory. Stop it first (codex-lb ctl status shows it)"
                )
            }
            if now >= sayAt {
                sayAt = now.adding(milliseconds: sayMilliseconds)
                waiting(
                    "database \(path) is in use by \(holder(fd)): waiting up to \(waitMilliseconds / 1000) s for it, \(now.milliseconds(since: start) / 1000) s so far"
                )
            }
            usleep(pollMicroseconds)
        }
        let line = Array("\(getpid())\n".utf8)
        guard ftruncate(fd, 0) == 0, pwrite(fd, line, line.count, 0) == line.count else {
            let error = failed("lock file \(lockPath)")
            close(fd)
            throw error
        }
        return WriterLock(fd)
    }

    /// Whether anybody holds it now.
    static func isHeld(database path: String) -> Bool {
        let fd = open(path + ".lock", O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        guard fd >= 0 else { return false }
        defer { close(fd) }
        return flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK
    }

    private static func holder(_ fd: Int32) -> String {
        var text = [UInt8](repeating: 0, count: 32)
        let n = pread(fd, &text, text.count, 0)
        let pid = String(decoding: text[..<max(0, n)].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        return pid.isEmpty ? "another process" : "process \(pid)"
    }

    private static func makeDirectory(_ path: String) throws(StoreError) {
        guard !path.isEmpty, access(path, F_OK) != 0 else { return }
        if let slash = path.lastIndex(of: "/") { try makeDirectory(String(path[..<slash])) }
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else { throw failed("making directory \(path)") }
        codexlb_adopt_owner(path, path + "/..")
    }

    private static func failed(_ what: String) -> StoreError {
        let code = errno
        let kind: StoreError.Kind = code == ENOSPC ? .full : code == EROFS || code == EACCES ? .readOnly : .io
        let advice = code == EACCES || code == EROFS ? ". Give this user the right to write there, or choose another place" : ""
        return StoreError(kind, "\(what): \(String(cString: strerror(code)))\(advice)")
    }
}
