import Bytes
public import HTTPWire

/// What a request's head tells about who stands behind its peer. It can show that somebody does, never that nobody does.
public enum Locality {
    /// `Host` names this host, and no field tells of a proxy.
    public static func isDirect(_ fields: HeaderFields) -> Bool {
        guard fields.with(.host, { isLocal(authority: $0) }) ?? true else { return false }
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
        var authority = authority
        return authority.withUTF8 { isLocal(authority: UnsafeRawBufferPointer($0).bytes) }
    }

    private static func isLocal(authority: RawSpan) -> Bool {
        let count = authority.byteCount
        if count > 0, authority[0] == Ascii.openBracket {
            guard let end = authority.first(Ascii.closeBracket, from: 1, to: count) else { return false }
            guard end + 1 == count || isPort(authority.extracting(droppingFirst: end + 1)) else { return false }
            let name = authority.extracting(1..<end)
            return name.equals("::1") || name.hasPrefix(ignoringCase: "::ffff:127.") && isLoopbackV4(name.extracting(droppingFirst: 7))
        }
        var end = count
        if let colon = authority.first(Ascii.colon, from: 0, to: count) {
            guard isPort(authority.extracting(droppingFirst: colon)) else { return false }
            end = colon
        }
        let name = authority.extracting(0..<end)
        return name.equalsIgnoringCase("localhost") || name.hasSuffix(ignoringCase: ".localhost") || isLoopbackV4(name)
    }

    private static func isPort(_ text: RawSpan) -> Bool {
        guard text.byteCount > 0, text[0] == Ascii.colon else { return false }
        for i in 1..<text.byteCount where !isDigit(text[i]) { return false }
        return true
    }

    /// Four numbers from 0 to 255, the first of them 127; no name can look like that (WHATWG URL, "ends in a number").
    private static func isLoopbackV4(_ text: RawSpan) -> Bool {
        guard text.hasPrefix("127.") else { return false }
        var (parts, digits, number) = (0, 0, 0)
        for i in 0...text.byteCount {
            if i == text.byteCount || text[i] == UInt8(ascii: ".") {
                guard digits > 0, number <= 255 else { return false }
                (parts, digits, number) = (parts + 1, 0, 0)
            } else {
                guard isDigit(text[i]), digits < 3 else { return false }
                (digits, number) = (digits + 1, number * 10 + Int(text[i] - 0x30))
            }
        }
        return parts == 4
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
