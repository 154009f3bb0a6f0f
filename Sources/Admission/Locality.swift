import Bytes
public import HTTPWire

/// What a request's head tells about who stands behind its peer. It can show that somebody does, never that nobody does.
public enum Locality {
    /// `Host` names this host, and no field tells of a proxy.
    public static func isDirect(_ fields: HeaderFields) -> Bool {
        guard isLocal(authority: fields.first(.host) ?? "localhost") else { return false }
        var isDirect = true
        fields.forEach { known, name, _ in
            switch known {
            case .forwarded, .xForwardedFor, .xForwardedHost, .xForwardedProto, .xRealIP, .trueClientIP, .via: isDirect = false
            case .other: if isDirect, isProxyField(name) { isDirect = false }
            default: break
            }
        }
        return isDirect
    }

    /// `localhost`, a name below it, or a loopback address, with or without a port. Anything behind a bracketed address but a port makes
    /// it another name.
    public static func isLocal(authority: String) -> Bool {
        var name = authority.lowercased()[...]
        if name.hasPrefix("[") {
            guard let end = name.firstIndex(of: "]") else { return false }
            let rest = name[name.index(after: end)...]
            guard rest.isEmpty || isPort(rest) else { return false }
            name = name[name.index(after: name.startIndex)..<end]
            return name == "::1" || name.hasPrefix("::ffff:127.") && isLoopbackV4(name.dropFirst(7))
        }
        if let colon = name.firstIndex(of: ":") {
            guard isPort(name[colon...]) else { return false }
            name = name[..<colon]
        }
        return name == "localhost" || name.hasSuffix(".localhost") || isLoopbackV4(name)
    }

    private static func isPort(_ text: Substring) -> Bool {
        text.first == ":" && text.utf8.dropFirst().allSatisfy { (0x30...0x39).contains($0) }
    }

    /// Four numbers from 0 to 255, the first of them 127; no name can look like that (WHATWG URL, "ends in a number").
    private static func isLoopbackV4(_ text: Substring) -> Bool {
        let parts = text.split(separator: ".", omittingEmptySubsequences: false)
        return parts.count == 4 && parts[0] == "127"
            && parts.allSatisfy {
                !$0.isEmpty && $0.utf8.count <= 3 && $0.utf8.allSatisfy { (0x30...0x39).contains($0) } && UInt8($0) != nil
            }
    }

    /// Fields that reverse proxies, CDNs and load balancers add; `name` in any case.
    private static func isProxyField(_ name: RawSpan) -> Bool {
        for field in proxyFields where name.byteCount == field.utf8CodeUnitCount && name.hasPrefix(ignoringCase: field) { return true }
        for prefix in proxyPrefixes where name.hasPrefix(ignoringCase: prefix) { return true }
        return false
    }

    private static let proxyFields: [StaticString] = [
        "client-ip", "x-client-ip", "x-cluster-client-ip", "x-original-forwarded-for", "x-original-host", "x-original-url",
        "x-proxyuser-ip",
        "fastly-client-ip", "fly-client-ip", "do-connecting-ip", "incap-client-ip", "x-sucuri-clientip", "ali-cdn-real-ip", "x-remote-ip",
        "x-remote-addr", "remote-addr", "cdn-loop", "x-amzn-trace-id", "x-request-start", "x-real-port", "x-host", "x-scheme",
        "x-nf-client-connection-ip", "x-arr-log-id", "x-coming-from", "x-forwarded", "forwarded-for", "x-cache", "x-varnish",
        "surrogate-capability",
    ]
    private static let proxyPrefixes: [StaticString] = [
        "x-forwarded-", "cf-", "x-envoy-", "x-azure-", "x-amz-cf-", "cloudfront-", "x-appengine-", "x-vercel-", "akamai-", "tailscale-",
        "x-proxy-", "x-traefik-", "fastly-",
    ]
}
