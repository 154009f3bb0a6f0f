internal import Bytes
internal import HTTPWire
internal import Loop
internal import Vocabulary

/// What a proxy says that can't be gone on with, for people; without credentials.
struct TunnelError: Error, Equatable {
    var reason: String
}

/// What is said to a proxy before the bytes of a connection go through it. Knows nothing of sockets.
struct Tunnel {
    enum Step: Equatable {
        /// The proxy has not said enough yet.
        case wait
        case say([UInt8])
        /// What is sent from now on goes to the upstream.
        case open
    }
    private enum Phase {
        case connect
        case method
        case password
        case request
        case open
    }

    private let proxy: EgressProxy
    /// The upstream: its name, or its address in numbers.
    private let host: String
    private let port: UInt16
    private var phase: Phase
    private var received: [UInt8] = []

    /// An answer of a proxy that goes on beyond this is no answer.
    static let answerBytesMax = 16 * 1024

    init(through proxy: EgressProxy, to host: String, port: UInt16) {
        (self.proxy, self.host, self.port) = (proxy, host, port)
        switch proxy.scheme {
        case .http, .https: phase = .connect
        case .socks5, .socks5h: phase = .method
        }
    }

    /// The same from the beginning, for another connection to the proxy.
    var anew: Tunnel { Tunnel(through: proxy, to: host, port: port) }

    /// What is said first.
    var opening: [UInt8] {
        guard phase == .connect else { return proxy.user.isEmpty ? [5, 1, 0] : [5, 2, 0, 2] }
        var head: [UInt8] = []
        let target = "\(host.contains(":") ? "[\(host)]" : host):\(port)"
        head += "CONNECT \(target) HTTP/1.1\r\nHost: \(target)\r\n".utf8
        if !proxy.user.isEmpty {
            let credentials = Base64.standard.encode(Array("\(proxy.user):\(proxy.password)".utf8))
            HeadWriter.field("Proxy-Authorization", "Basic " + credentials, into: &head)
        }
        HeadWriter.end(into: &head)
        return head
    }

    mutating func feed(_ bytes: RawSpan) throws(TunnelError) -> Step {
        received.append(bytes)
        guard received.count <= Self.answerBytesMax else { throw problem("answers with more than \(Self.answerBytesMax) bytes") }
        switch phase {
        case .connect: return try connected()
        case .method:
            guard let answer = take(2) else { return .wait }
            guard answer[0] == 5 else { throw problem("does not speak SOCKS 5") }
            switch answer[1] {
            case 0: return try request()
            case 2 where !proxy.user.isEmpty:
                try expectSilence()
                phase = .password
                let (user, password) = (Array(proxy.user.utf8), Array(proxy.password.utf8))
                return .say([1, UInt8(user.count)] + user + [UInt8(password.count)] + password)  // at most 255 each: RFC 1929
            default: throw problem(proxy.user.isEmpty ? "wants a user and a password" : "takes none of the ways to log in")
            }
        case .password:
            guard let answer = take(2) else { return .wait }
            guard answer[1] == 0 else { throw problem("refuses the user or the password") }
            return try request()
        case .request: return try requested()
        case .open: throw problem("is asked twice")
        }
    }

    // MARK: CONNECT

    private mutating func connected() throws(TunnelError) -> Step {
        let answer = received
        let status: Int
        do throws(WireError) {
            var scanned = 0
            guard let (head, consumed) = try ResponseHead.parse(answer.span.bytes, scanned: &scanned) else { return .wait }
            status = head.status
            received.removeFirst(consumed)
        } catch { throw problem("answered CONNECT with no HTTP: \(error.reason)") }
        guard status / 100 == 2 else { throw problem("answered CONNECT with \(status)") }
        return try opened()
    }

    // MARK: SOCKS 5 (RFC 1928)

    private mutating func request() throws(TunnelError) -> Step {
        try expectSilence()
        phase = .request
        var out: [UInt8] = [5, 1, 0]
        switch SocketAddress(numeric: host, port: port)?.host {
        case .v4(let address): out += [1] + address
        case .v6(let address): out += [4] + address
        default:
            let name = Array(host.utf8)
            guard name.count <= 255 else { throw TunnelError(reason: "\(host): too long a name for \(proxy)") }
            out += [3, UInt8(name.count)] + name
        }
        return .say(out + [UInt8(port >> 8), UInt8(truncatingIfNeeded: port)])
    }

    private mutating func requested() throws(TunnelError) -> Step {
        guard received.count >= 2 else { return .wait }
        guard received[0] == 5 else { throw problem("does not speak SOCKS 5") }
        guard received[1] == 0 else { throw problem("can't connect: \(Self.words(received[1]))") }
        guard received.count >= 5 else { return .wait }
        let length: Int
        switch received[3] {
        case 1: length = 4 + 4 + 2
        case 3: length = 4 + 1 + Int(received[4]) + 2
        case 4: length = 4 + 16 + 2
        default: throw problem("answers with an address of kind \(received[3])")
        }
        guard take(length) != nil else { return .wait }
        return try opened()
    }

    private static func words(_ code: UInt8) -> String {
        let words = [
            "general failure", "not allowed by its rules", "network unreachable", "host unreachable", "connection refused", "TTL expired",
            "command not supported", "kind of address not supported",
        ]
        return (1...words.count).contains(Int(code)) ? words[Int(code) - 1] : "code \(code)"
    }

    // MARK: Both

    private mutating func opened() throws(TunnelError) -> Step {
        try expectSilence()
        phase = .open
        return .open
    }

    /// The upstream speaks only when it is spoken to, and so does the proxy.
    private func expectSilence() throws(TunnelError) {
        guard received.isEmpty else { throw problem("sent bytes that nobody asked for") }
    }

    private mutating func take(_ count: Int) -> [UInt8]? {
        guard received.count >= count else { return nil }
        defer { received.removeFirst(count) }
        return Array(received[..<count])
    }

    private func problem(_ what: String) -> TunnelError { TunnelError(reason: "the proxy \(proxy) \(what)") }
}
