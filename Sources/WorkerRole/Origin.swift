/// Where an upstream is: scheme, host, port. Connections are pooled by it.
struct Origin: Hashable, Sendable {
    var isTLS: Bool
    var host: String
    var port: UInt16

    /// The value of `Host`: the port only where it is not the scheme's own.
    var authority: String {
        let name = host.contains(":") ? "[\(host)]" : host
        return port == (isTLS ? 443 : 80) ? name : "\(name):\(port)"
    }

    /// Splits `https://host:port/prefix` into origin and path prefix (no slash at its end); nil for anything else.
    static func parse(_ url: String) -> (origin: Origin, prefix: String)? {
        let isTLS: Bool
        var rest: Substring
        if url.hasPrefix("https://") {
            (isTLS, rest) = (true, url.dropFirst(8))
        } else if url.hasPrefix("http://") {
            (isTLS, rest) = (false, url.dropFirst(7))
        } else {
            return nil
        }
        var prefix = ""
        if let slash = rest.firstIndex(of: "/") {
            prefix = String(rest[slash...])
            rest = rest[..<slash]
        }
        while prefix.hasSuffix("/") { prefix.removeLast() }
        guard !rest.contains("@"), !rest.isEmpty, !prefix.contains("?"), !prefix.contains("#") else { return nil }
        var host = rest
        var port: UInt16 = isTLS ? 443 : 80
        if rest.hasPrefix("["), let end = rest.firstIndex(of: "]") {
            host = rest[rest.index(after: rest.startIndex)..<end]
            let tail = rest[rest.index(after: end)...]
            if !tail.isEmpty {
                guard tail.hasPrefix(":"), let p = UInt16(tail.dropFirst()) else { return nil }
                port = p
            }
        } else if let colon = rest.lastIndex(of: ":") {
            host = rest[..<colon]
            guard let p = UInt16(rest[rest.index(after: colon)...]) else { return nil }
            port = p
        }
        guard !host.isEmpty, host.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else { return nil }
        return (Origin(isTLS: isTLS, host: host.lowercased(), port: port), prefix)
    }
}

/// The HTTP proxy that https upstreams are reached through (`HTTPS_PROXY`, `NO_PROXY`).
struct OutboundProxy: Sendable {
    var host: String
    var port: UInt16
    /// `Basic …` for `Proxy-Authorization`.
    var authorization: String?
    private var exceptions: [String]

    init?(url: String?, exceptions: [String]) {
        guard var text = url else { return nil }
        if text.hasPrefix("http://") { text = String(text.dropFirst(7)) }
        while text.hasSuffix("/") { text.removeLast() }
        if let at = text.lastIndex(of: "@") {
            authorization = "Basic " + Self.base64(Array(Self.percentDecoded(text[..<at]).utf8))
            text = String(text[text.index(after: at)...])
        }
        guard let parsed = Origin.parse("http://" + text) else { return nil }
        (host, port) = (parsed.origin.host, parsed.origin.port)
        self.exceptions = exceptions
    }

    /// Whether `origin` goes through the proxy. Loopback never does.
    func serves(_ origin: Origin) -> Bool {
        guard origin.isTLS, origin.host != "localhost", !origin.host.hasPrefix("127."), origin.host != "::1" else { return false }
        return !exceptions.contains { rule in
            let name = rule.hasPrefix(".") ? String(rule.dropFirst()) : rule
            return rule == "*" || origin.host == name || origin.host.hasSuffix("." + name)
        }
    }

    private static func percentDecoded(_ text: Substring) -> String {
        var out: [UInt8] = []
        var bytes = Array(text.utf8)[...]
        while let byte = bytes.popFirst() {
            if byte == UInt8(ascii: "%"), bytes.count >= 2, let value = UInt8(String(decoding: bytes.prefix(2), as: UTF8.self), radix: 16) {
                out.append(value)
                bytes = bytes.dropFirst(2)
            } else {
                out.append(byte)
            }
        }
        return String(decoding: out, as: UTF8.self)
    }

    private static func base64(_ bytes: [UInt8]) -> String {
        let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
        var out: [UInt8] = []
        for start in stride(from: 0, to: bytes.count, by: 3) {
            let part = bytes[start..<min(start + 3, bytes.count)]
            let word = part.enumerated().reduce(UInt32(0)) { $0 | UInt32($1.element) << (16 - 8 * UInt32($1.offset)) }
            for i in 0..<4 { out.append(i <= part.count ? alphabet[Int(word >> (18 - 6 * UInt32(i)) & 63)] : UInt8(ascii: "=")) }
        }
        return String(decoding: out, as: UTF8.self)
    }
}
