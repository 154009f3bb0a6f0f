internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

/// The right to serve out of a directory: an flock on `serve.lock` in each of its directories, taken before anything is bound.
///
/// It belongs to the supervisor's open file alone: children never inherit it, and it ends with the process however that ends.
public final class InstanceLock: Sendable {
    private static let fileName = "serve.lock"
    /// Whoever has these open has the lock.
    public let descriptors: [Int32]

    private init(_ descriptors: [Int32]) { self.descriptors = descriptors }
    /// Those that another program in this process took.
    public convenience init(adopting descriptors: [Int32]) { self.init(descriptors) }
    deinit { for descriptor in descriptors { close(descriptor) } }

    /// Takes the locks of all `directories`, in their order, or none: of two that start together exactly one gets the first.
    /// Throws EWOULDBLOCK with the holder's pid when another process serves there.
    public static func take(_ directories: [String]) throws(SystemError) -> InstanceLock {
        var taken: [Int32] = []
        do throws(SystemError) {
            for directory in directories where taken.isEmpty || directory != directories[0] { taken.append(try take(directory)) }
        } catch {
            for descriptor in taken { close(descriptor) }
            throw error
        }
        return InstanceLock(taken)
    }

    private static func take(_ directory: String) throws(SystemError) -> Int32 {
        let path = directory + "/" + fileName
        let fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard fd >= 0 else { throw SystemError(errno, "lock file \(path)") }
        codexlb_adopt_owner(path, directory + "/.")
        while flock(fd, LOCK_EX | LOCK_NB) != 0 {
            let code = errno
            if code == EINTR { continue }
            let holder = holder(fd)
            close(fd)
            throw SystemError(code, code == EWOULDBLOCK ? "\(holder) serves \(directory)" : "locking \(path)")
        }
        let line = Array("\(getpid())\n".utf8)
        // Only a help for whoever reads it: the lock is what counts.
        if ftruncate(fd, 0) == 0 { _ = pwrite(fd, line, line.count, 0) }
        return fd
    }

    private static func holder(_ fd: Int32) -> String {
        var text = [UInt8](repeating: 0, count: 32)
        let n = pread(fd, &text, text.count, 0)
        let pid = String(decoding: text[..<max(0, n)].prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
        return pid.isEmpty ? "another process" : "process \(pid)"
    }
}
