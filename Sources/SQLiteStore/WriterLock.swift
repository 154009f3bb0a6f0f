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

    private init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }

    /// Takes the lock, waiting for another holder up to `waitMilliseconds`. Makes the database's directory when missing (0700).
    public static func acquire(database path: String, waitMilliseconds: Int) throws(StoreError) -> WriterLock {
        if let slash = path.lastIndex(of: "/") { try makeDirectory(String(path[..<slash])) }
        let lockPath = path + ".lock"
        let fd = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard fd >= 0 else { throw StoreError(.io, "lock file \(lockPath): \(String(cString: strerror(errno)))") }
        let deadline = Clock.now.adding(milliseconds: waitMilliseconds)
        while flock(fd, LOCK_EX | LOCK_NB) != 0 {
            let code = errno
            guard code == EWOULDBLOCK || code == EINTR else {
                close(fd)
                throw StoreError(.io, "lock file \(lockPath): \(String(cString: strerror(code)))")
            }
            guard Clock.now < deadline else {
                var text = [UInt8](repeating: 0, count: 32)
                let n = pread(fd, &text, text.count, 0)
                let pid = String(decoding: text[..<max(0, n)].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
                close(fd)
                throw StoreError(
                    .busy,
                    "database \(path) is being written by \(pid.isEmpty ? "another process" : "process \(pid)"); only one codex-lb can use a data directory"
                )
            }
            usleep(20_000)
        }
        let line = Array("\(getpid())\n".utf8)
        guard ftruncate(fd, 0) == 0, pwrite(fd, line, line.count, 0) == line.count else {
            let code = errno
            close(fd)
            throw StoreError(code == ENOSPC ? .full : .io, "lock file \(lockPath): \(String(cString: strerror(code)))")
        }
        return WriterLock(fd)
    }

    private static func makeDirectory(_ path: String) throws(StoreError) {
        guard !path.isEmpty, access(path, F_OK) != 0 else { return }
        if let slash = path.lastIndex(of: "/") { try makeDirectory(String(path[..<slash])) }
        guard mkdir(path, 0o700) == 0 || errno == EEXIST else {
            throw StoreError(.io, "making directory \(path): \(String(cString: strerror(errno)))")
        }
    }
}
