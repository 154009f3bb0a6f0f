public import Vocabulary

/// Where an upstream is and what it is reached through. Connections are pooled by it.
public struct Origin: Hashable, Sendable {
    public var isTLS: Bool
    public var host: String
    public var port: UInt16
    /// The account's own; nil: the environment's, if that serves the host.
    public var proxy: EgressProxy?

    /// The value of `Host`: the port only where it is not the scheme's own.
    public var authority: String {
        let name = host.contains(":") ? "[\(host)]" : host
        return port == (isTLS ? 443 : 80) ? name : "\(name):\(port)"
    }

    /// Splits an account's base URL, which may have a query: that goes with each request (`?api-version=2024-10-21`).
    public static func parse(base url: String) -> (origin: Origin, prefix: String, query: String)? {
        let address = url.prefix { $0 != "?" }
        guard let (origin, prefix) = parse(String(address)) else { return nil }
        return (origin, prefix, String(url[address.endIndex...]))
    }

    /// Splits `https://host:port/prefix` into origin and path prefix (no slash at its end); nil for anything else.
    public static func parse(_ url: String) -> (origin: Origin, prefix: String)? {
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
