internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

/// Where a listener is bound: `127.0.0.1:2455`, `[::1]:2455`, `:2455` (all addresses) or `unix:/path`.
public enum ListenAddress: Sendable, Equatable, CustomStringConvertible {
    case tcp(host: String, port: UInt16)
    case unix(path: String)

    /// Nil with a reason when the text is no such address.
    public static func parse(_ text: String) -> Result<ListenAddress, ListenAddressError> {
        if text.hasPrefix("unix:") || text.hasPrefix("/") {
            let path = text.hasPrefix("unix:") ? String(text.dropFirst(5)) : text
            guard path.hasPrefix("/"), path.utf8.count <= 107 else {
                return .failure(.init("listen address \"\(text)\": a Unix socket needs an absolute path of at most 107 bytes"))
            }
            return .success(.unix(path: path))
        }
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]) else {
            return .failure(
                .init("listen address \"\(text)\": expected ADDRESS:PORT with a port from 0 to 65535, for example 127.0.0.1:2455"))
        }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
        if host == "localhost" { host = "127.0.0.1" }
        if host.isEmpty || host == "*" { host = "0.0.0.0" }
        var v4 = in_addr()
        var v6 = in6_addr()
        guard inet_pton(AF_INET, host, &v4) == 1 || inet_pton(AF_INET6, host, &v6) == 1 else {
            return .failure(.init("listen address \"\(text)\": \"\(host)\" is no numeric address; give one of this machine's, or 0.0.0.0"))
        }
        return .success(.tcp(host: host, port: port))
    }

    public var description: String {
        switch self {
        case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
        case .unix(let path): "unix:\(path)"
        }
    }
}

/// A listener as settings write it: an address, then what is said of it: `0.0.0.0:2455,proxy`, `unix:/run/x.sock,mode=0660,group=www-data`.
public struct ListenerSpec: Sendable, Equatable {
    public var address: ListenAddress
    /// A PROXY header comes before the first request of each connection.
    public var isProxied = false
    /// Of a Unix-domain socket's file; nil: everybody may connect.
    public var mode: UInt32?
    /// The group that owns the file; nil: ours.
    public var group: String?

    /// As `parse` reads it.
    public var text: String {
        "\(address)" + (isProxied ? ",proxy" : "") + (mode.map { ",mode=" + String($0, radix: 8) } ?? "")
            + (group.map { ",group=\($0)" } ?? "")
    }

    public static func parse(_ text: String) -> Result<ListenerSpec, ListenAddressError> {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false)
        return ListenAddress.parse(String(parts[0])).flatMap { address in
            func wrong(_ why: String) -> Result<ListenerSpec, ListenAddressError> { .failure(.init("listen address \"\(text)\": \(why)")) }
            var spec = ListenerSpec(address: address)
            var isUnix = false
            if case .unix = address { isUnix = true }
            for option in parts.dropFirst() {
                let pair = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
                switch (pair[0], pair.count) {
                case ("proxy", 1): spec.isProxied = true
                case ("mode", 2):
                    guard isUnix, let mode = UInt32(pair[1], radix: 8), mode <= 0o777, mode & 0o600 == 0o600 else {
                        return wrong("mode= is for Unix sockets, in octal, and lets at least the owner in: mode=0660")
                    }
                    spec.mode = mode
                case ("group", 2):
                    guard isUnix, !pair[1].isEmpty else { return wrong("group= is for Unix sockets and names a group") }
                    spec.group = String(pair[1])
                default: return wrong("\"\(option)\" is no option; there are proxy, mode=0660 and group=NAME")
                }
            }
            return .success(spec)
        }
    }
}

public struct ListenAddressError: Error, Sendable, CustomStringConvertible {
    public var description: String
    init(_ text: String) { description = text }
}

public enum Sockets {
    public static func listen(_ spec: ListenerSpec) throws(SystemError) -> Int32 {
        guard case .unix(let path) = spec.address else { return try listen(spec.address) }
        return try listenUnix(path, mode: spec.mode ?? 0o666, group: spec.group)
    }

    /// Binds and listens (backlog 4096). No SO_REUSEPORT: one accept queue is shared by all workers of all generations.
    public static func listen(_ address: ListenAddress, mode: UInt32 = 0o666) throws(SystemError) -> Int32 {
        switch address {
        case .tcp(let host, let port):
            let v6 = host.contains(":")
            let fd = socket(v6 ? AF_INET6 : AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
            guard fd >= 0 else { throw SystemError(errno, "socket for \(address)") }
            var one: Int32 = 1
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, 4)
            var bound: Int32
            if v6 {
                setsockopt(fd, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &one, 4)
                var a = sockaddr_in6()
                a.sin6_family = sa_family_t(AF_INET6)
                a.sin6_port = port.bigEndian
                inet_pton(AF_INET6, host, &a.sin6_addr)
                bound = withUnsafePointer(to: &a) { p in
                    p.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(fd, $0, socklen_t(MemoryLayout<sockaddr_in6>.size)) }
                }
            } else {
                var a = sockaddr_in()
                a.sin_family = sa_family_t(AF_INET)
                a.sin_port = port.bigEndian
                inet_pton(AF_INET, host, &a.sin_addr)
                bound = withUnsafePointer(to: &a) { p in
                    p.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
                }
            }
            if bound == 0 { bound = Glibc.listen(fd, 4096) }
            if bound != 0 {
                let code = errno
                close(fd)
                throw SystemError(code, "listening on \(address)")
            }
            return fd
        case .unix(let path):
            return try listenUnix(path, mode: mode)
        }
    }

    private static func withAddress<R>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) throws(SystemError) -> R {
        var a = sockaddr_un()
        a.sun_family = sa_family_t(AF_UNIX)
        let bytes = Array(path.utf8)
        guard bytes.count < MemoryLayout.size(ofValue: a.sun_path) else {
            throw SystemError(ENAMETOOLONG, "Unix socket \(path) (at most 107 bytes; set CODEX_LB_RUNTIME_DIR to a shorter directory)")
        }
        withUnsafeMutableBytes(of: &a.sun_path) { $0.copyBytes(from: bytes) }
        return withUnsafePointer(to: &a) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
    }

    private static func listenUnix(_ path: String, mode: UInt32, group: String? = nil) throws(SystemError) -> Int32 {
        // A socket file of a dead process is replaced, a live one never.
        if let live = try? connectUnix(path) {  // no one answers: that is the usual, good case
            close(live)
            throw SystemError(EADDRINUSE, "listening on \(path)")
        }
        unlink(path)
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
        guard fd >= 0 else { throw SystemError(errno, "socket for \(path)") }
        let before = umask(0o777 & ~mode)
        defer { umask(before) }
        do throws(SystemError) {
            let code = try withAddress(path) { bind(fd, $0, $1) != 0 ? errno : 0 }
            if code != 0 { throw SystemError(code, "listening on \(path)") }
            if let group {
                // Before anybody can connect: that is from listen(2) on.
                guard let id = getgrnam(group)?.pointee.gr_gid else { throw SystemError(ENOENT, "group \(group) of \(path)") }
                guard chown(path, uid_t.max, id) == 0 else { throw SystemError(errno, "giving \(path) to group \(group)") }
            }
            guard Glibc.listen(fd, 4096) == 0 else { throw SystemError(errno, "listening on \(path)") }
            return fd
        } catch {
            close(fd)
            throw error
        }
    }

    /// A blocking connection to a Unix-domain socket, for the command line; connecting, each send and each receive take at most
    /// `milliseconds` (EAGAIN).
    public static func connectUnix(_ path: String, milliseconds: Int = 5_000) throws(SystemError) -> Int32 {
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard fd >= 0 else { throw SystemError(errno, "socket for \(path)") }
        var limit = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] { setsockopt(fd, SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size)) }
        let code = try withAddress(path) { connect(fd, $0, $1) == 0 ? 0 : errno }
        if code != 0 {
            close(fd)
            throw SystemError(code, "connecting to \(path)")
        }
        return fd
    }

    /// Whether a TCP host says anything to a connection within `milliseconds`: also that nobody listens there.
    public static func answers(_ host: String, port: UInt16, milliseconds: Int) -> Bool {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        guard getaddrinfo(host, String(port), &hints, &found) == 0 else { return true }  // who connects says it better
        defer { freeaddrinfo(found) }
        var next = found
        while let address = next?.pointee {
            next = address.ai_next
            let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
            let fd = socket(address.ai_family, kind, 0)
            guard fd >= 0 else { continue }
            defer { close(fd) }
            if connect(fd, address.ai_addr, address.ai_addrlen) == 0 || errno != EINPROGRESS { return true }
            if Descriptor.wait(fd, for: POLLOUT, milliseconds: milliseconds) { return true }
        }
        return false
    }

    /// The next connection of a listening socket's backlog, non-blocking and close-on-exec; nil when none waits.
    public static func accept(_ listener: Int32) -> Int32? {
        let fd = Glibc.accept(listener, nil, nil)
        guard fd >= 0 else { return nil }
        Descriptor.setCloseOnExec(fd)
        Descriptor.setNonBlocking(fd)
        return fd
    }

    /// Whether the descriptor is a stream socket that listens.
    public static func isListening(_ fd: Int32) -> Bool {
        func option(_ name: Int32) -> Int32 {
            var (value, size): (Int32, socklen_t) = (0, 4)
            return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1
        }
        return option(SO_ACCEPTCONN) == 1 && option(SO_TYPE) == Int32(SOCK_STREAM.rawValue)
    }

    /// The address a socket is bound to, as a client would write it.
    public static func name(of fd: Int32) -> String {
        var raw = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let ok = withUnsafeMutablePointer(to: &raw) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &size) }
        }
        guard ok == 0 else { return "?" }
        var text = [CChar](repeating: 0, count: 128)
        switch Int32(raw.ss_family) {
        case AF_INET:
            return withUnsafePointer(to: &raw) { p in
                p.withMemoryRebound(to: sockaddr_in.self, capacity: 1) { a in
                    var address = a.pointee.sin_addr
                    inet_ntop(AF_INET, &address, &text, 128)
                    return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
                        + ":\(UInt16(bigEndian: a.pointee.sin_port))"
                }
            }
        case AF_INET6:
            return withUnsafePointer(to: &raw) { p in
                p.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { a in
                    var address = a.pointee.sin6_addr
                    inet_ntop(AF_INET6, &address, &text, 128)
                    return
                        "[\(String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))]:\(UInt16(bigEndian: a.pointee.sin6_port))"
                }
            }
        default:
            return withUnsafePointer(to: &raw) { p in
                p.withMemoryRebound(to: sockaddr_un.self, capacity: 1) { a in
                    withUnsafeBytes(of: a.pointee.sun_path) { "unix:" + String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
                }
            }
        }
    }

    /// Bound to an address that only this host reaches.
    public static func isLocal(_ fd: Int32) -> Bool {
        let name = name(of: fd)
        return name.hasPrefix("unix:") || name.hasPrefix("127.") || name.hasPrefix("[::1]:") || name.hasPrefix("[::ffff:127.")
    }

    /// True for a Unix-domain socket.
    public static func isUnix(_ fd: Int32) -> Bool { name(of: fd).hasPrefix("unix:") }
}

/// The name of a Unix-domain socket that we bound. Its maker looks whether it is still there, and never takes away another's.
public struct SocketFile: Sendable {
    public let path: String
    private let identity: Identity?

    private struct Identity: Equatable, Sendable { var device, number: UInt64 }

    /// To be made right after the socket was bound.
    public init(_ path: String) {
        self.path = path
        identity = Self.identity(path)
    }

    /// Of a bound Unix-domain socket; nil for others.
    public init?(of descriptor: Int32) {
        let name = Sockets.name(of: descriptor)
        guard name.hasPrefix("unix:/") else { return nil }
        self.init(String(name.dropFirst(5)))
    }

    public var isInPlace: Bool { identity != nil && Self.identity(path) == identity }
    public func remove() { if isInPlace { unlink(path) } }

    private static func identity(_ path: String) -> Identity? {
        var info = stat()
        return lstat(path, &info) == 0 ? Identity(device: UInt64(info.st_dev), number: UInt64(info.st_ino)) : nil
    }
}
