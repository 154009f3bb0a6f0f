internal import CUV
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// An IPv4 or IPv6 address with its port, or the path of a Unix-domain socket.
public struct SocketAddress: Hashable, Sendable, CustomStringConvertible {
    public enum Host: Hashable, Sendable {
        case v4([UInt8])
        case v6([UInt8])
        case unix(String)
    }
    public var host: Host
    public var port: UInt16

    public init(host: Host, port: UInt16) { (self.host, self.port) = (host, port) }

    /// Parses a numeric address; nil for a name.
    public init?(numeric text: String, port: UInt16) {
        self.port = port
        var v4 = in_addr()
        var v6 = in6_addr()
        if inet_pton(AF_INET, text, &v4) == 1 {
            host = .v4(withUnsafeBytes(of: &v4) { Array($0) })
        } else if inet_pton(AF_INET6, text, &v6) == 1 {
            host = .v6(withUnsafeBytes(of: &v6) { Array($0) })
        } else {
            return nil
        }
    }

    init?(_ raw: UnsafePointer<sockaddr>) {
        switch Int32(raw.pointee.sa_family) {
        case AF_INET:
            (host, port) = raw.withMemoryRebound(to: sockaddr_in.self, capacity: 1) { a in
                var address = a.pointee.sin_addr
                return (.v4(withUnsafeBytes(of: &address) { Array($0) }), UInt16(bigEndian: a.pointee.sin_port))
            }
        case AF_INET6:
            (host, port) = raw.withMemoryRebound(to: sockaddr_in6.self, capacity: 1) { a in
                var address = a.pointee.sin6_addr
                return (.v6(withUnsafeBytes(of: &address) { Array($0) }), UInt16(bigEndian: a.pointee.sin6_port))
            }
        case AF_UNIX:
            (host, port) = (.unix(""), 0)
        default:
            return nil
        }
    }

    /// 127.0.0.0/8, ::1, their mapped forms, and Unix-domain sockets.
    public var isLoopback: Bool {
        switch host {
        case .v4(let b): b[0] == 127
        case .v6(let b):
            b[..<15].allSatisfy { $0 == 0 } && b[15] == 1
                || b[..<10].allSatisfy { $0 == 0 } && b[10] == 0xFF && b[11] == 0xFF && b[12] == 127
        case .unix: true
        }
    }

    /// Nil for a Unix-domain socket.
    public var ip: IPAddress? {
        switch host {
        case .v4(let bytes), .v6(let bytes): IPAddress(bytes: bytes)
        case .unix: nil
        }
    }

    public var isV6: Bool { if case .v6 = host { true } else { false } }

    public var hostText: String {
        var out = [CChar](repeating: 0, count: Int(INET6_ADDRSTRLEN))
        switch host {
        case .v4(let b): inet_ntop(AF_INET, b, &out, socklen_t(out.count))
        case .v6(let b): inet_ntop(AF_INET6, b, &out, socklen_t(out.count))
        case .unix(let path): return path.isEmpty ? "unix" : path
        }
        return String(decoding: out.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    public var description: String {
        switch host {
        case .v4: "\(hostText):\(port)"
        case .v6: "[\(hostText)]:\(port)"
        case .unix: hostText
        }
    }

    func withSockaddr<R>(_ body: (UnsafePointer<sockaddr>) -> R) -> R {
        switch host {
        case .v4(let bytes):
            var a = sockaddr_in()
            a.sin_family = sa_family_t(AF_INET)
            a.sin_port = port.bigEndian
            withUnsafeMutableBytes(of: &a.sin_addr) { $0.copyBytes(from: bytes) }
            return withUnsafePointer(to: &a) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1, body) }
        case .v6(let bytes):
            var a = sockaddr_in6()
            a.sin6_family = sa_family_t(AF_INET6)
            a.sin6_port = port.bigEndian
            withUnsafeMutableBytes(of: &a.sin6_addr) { $0.copyBytes(from: bytes) }
            return withUnsafePointer(to: &a) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1, body) }
        case .unix:
            preconditionFailure("a Unix-domain path is connected to by name")
        }
    }
}

extension EventLoop {
    private final class Lookup {
        let request = UnsafeMutablePointer<uv_getaddrinfo_t>.allocate(capacity: 1)
        let done: (Result<[SocketAddress], LoopError>) -> Void
        init(_ done: @escaping (Result<[SocketAddress], LoopError>) -> Void) { self.done = done }
        deinit { request.deallocate() }
    }

    /// Resolves a name on libuv's thread pool; the port of the results is `port`.
    public func resolve(_ name: String, port: UInt16, then done: @escaping (Result<[SocketAddress], LoopError>) -> Void) {
        let lookup = Lookup(done)
        lookup.request.pointee.data = Unmanaged.passRetained(lookup).toOpaque()
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        let code = uv_getaddrinfo(
            uv, lookup.request,
            { request, status, list in
                let lookup = Unmanaged<Lookup>.fromOpaque(request!.pointee.data).takeRetainedValue()
                defer { uv_freeaddrinfo(list) }
                guard status == 0 else { return lookup.done(.failure(LoopError(code: status))) }
                var found: [SocketAddress] = []
                var next = list
                while let entry = next {
                    if let raw = entry.pointee.ai_addr, let address = SocketAddress(raw), !found.contains(address) { found.append(address) }
                    next = entry.pointee.ai_next
                }
                lookup.done(.success(found))
            }, name, String(port), &hints)
        if code < 0 {
            Unmanaged<Lookup>.fromOpaque(lookup.request.pointee.data).release()
            post { [done = UncheckedBox(done)] in done.value(.failure(LoopError(code: code))) }
        }
    }
}

/// Carries a loop-bound value through `post`; it never leaves the loop's thread.
struct UncheckedBox<T>: @unchecked Sendable {
    let value: T
    init(_ value: T) { self.value = value }
}
