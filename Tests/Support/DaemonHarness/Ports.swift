import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// Ports of 127.0.0.1 for servers that have to be told theirs, or come back to the one that they had.
///
/// The kernel gives none of them to anybody who asks for any (ip(7), `ip_local_port_range`), a connection to somewhere least of all, and none
/// is given to two test processes: each is held by a lock for as long as this process lives.
public enum Ports {
    private static let lock = NSLock()
    nonisolated(unsafe) private static var given: Set<UInt16> = []  // under `lock`

    /// The place of each user's locks: byte N of the file is port N. A record lock (fcntl(2)) ends with its process, however that ends, and goes
    /// to no child.
    private static let locks = open("\(NSTemporaryDirectory())/codex-lb-test-ports.\(geteuid())", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)

    private static let candidates: Range<UInt16> = {
        let lowest = procText("/proc/sys/net/ipv4/ip_local_port_range").split(whereSeparator: \.isWhitespace).first.flatMap { UInt16($0) }
        let end = lowest ?? 32_768
        return (end > 12_000 ? 10_000 : 1_024)..<max(end, 1_025)
    }()

    /// One that nobody has.
    public static func free() throws -> UInt16 {
        lock.lock()
        defer { lock.unlock() }
        guard locks >= 0 else { throw HarnessError("no file for the locks of ports") }
        // Each process begins elsewhere, so that few locks are tried.
        let first = UInt16.random(in: candidates)
        for port in Array(first..<candidates.upperBound) + Array(candidates.lowerBound..<first) {
            guard !given.contains(port), take(port) else { continue }
            given.insert(port)
            if isFree(port) { return port }
        }
        throw HarnessError("no free port in \(candidates)")
    }

    private static func take(_ port: UInt16) -> Bool {
        var region = flock()
        region.l_type = Int16(F_WRLCK)
        region.l_whence = Int16(SEEK_SET)
        (region.l_start, region.l_len) = (off_t(port), 1)
        return fcntl(locks, F_SETLK, &region) == 0
    }

    /// Nobody listens on it, at any address; what is left of connections that have ended is no obstacle.
    private static func isFree(_ port: UInt16) -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(descriptor) }
        var one: Int32 = 1
        setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, 4)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
    }
}
