/// A proxy that upstreams are reached through: `SCHEME://[USER[:PASSWORD]@]HOST[:PORT]`. Its description has no credentials.
public struct EgressProxy: Hashable, Sendable, CustomStringConvertible {
    public enum Scheme: String, Sendable, CaseIterable {
        /// A tunnel by CONNECT (RFC 9110 §9.3.6).
        case http
        /// The same, with TLS to the proxy.
        case https
        /// SOCKS 5 (RFC 1928); the upstream's name is resolved here.
        case socks5
        /// SOCKS 5; the upstream's name is resolved by the proxy.
        case socks5h

        var port: UInt16 {
            switch self {
            case .http: 80
            case .https: 443
            case .socks5, .socks5h: 1080
            }
        }
    }

    public var scheme: Scheme
    /// Without brackets.
    public var host: String
    public var port: UInt16
    /// Empty: none.
    public var user: String
    public var password: String

    /// What is expected, for whoever gave something else; says nothing of what was given, which may hold a password.
    public static let expected =
        "expected SCHEME://[USER:PASSWORD@]HOST[:PORT], SCHEME one of http, https, socks5 and socks5h; other characters as %XX"

    /// Nil for anything else. User and password may be percent-encoded and have at most 255 bytes, which is as many as SOCKS 5 can say.
    public init?(_ url: String) {
        guard let scheme = Scheme.allCases.first(where: { url.lowercased().hasPrefix($0.rawValue + "://") }) else { return nil }
        var rest = url.dropFirst(scheme.rawValue.count + 3)
        if rest.hasSuffix("/") { rest.removeLast() }
        (self.scheme, user, password) = (scheme, "", "")
        if let at = rest.lastIndex(of: "@") {
            let parts = rest[..<at].split(separator: ":", maxSplits: 1, omittingEmptySubsequences: false)
            guard let user = Self.decoded(parts[0]), let password = parts.count > 1 ? Self.decoded(parts[1]) : "" else { return nil }
            // A colon in the user's name can't be told from the one behind it (RFC 7617 §2).
            guard !user.isEmpty, !user.contains(":") else { return nil }
            (self.user, self.password) = (user, password)
            rest = rest[rest.index(after: at)...]
        }
        var port = scheme.port
        if !rest.hasSuffix("]"), let colon = rest.lastIndex(of: ":") {
            guard let number = UInt16(rest[rest.index(after: colon)...]), number > 0 else { return nil }
            (port, rest) = (number, rest[..<colon])
        }
        if rest.hasPrefix("["), rest.hasSuffix("]") {
            rest = rest.dropFirst().dropLast()
            guard rest.contains(":"), rest.utf8.allSatisfy(Self.isOfAddress) else { return nil }
        } else {
            guard rest.utf8.allSatisfy(Self.isOfName) else { return nil }
        }
        guard !rest.isEmpty, rest.utf8.count <= 253 else { return nil }
        (host, self.port) = (rest.lowercased(), port)
    }

    /// As it is read, with the credentials.
    public var url: String {
        let credentials = user.isEmpty ? "" : Self.encoded(user) + (password.isEmpty ? "" : ":" + Self.encoded(password)) + "@"
        return "\(scheme.rawValue)://\(credentials)\(host.contains(":") ? "[\(host)]" : host):\(port)"
    }

    public var description: String { "\(scheme.rawValue)://\(host.contains(":") ? "[\(host)]" : host):\(port)" }

    private static func isHex(_ c: UInt8) -> Bool { (48...57).contains(c) || (97...102).contains(c | 0x20) }
    /// Hexadecimal digits, `:` and `.`
    private static func isOfAddress(_ c: UInt8) -> Bool { isHex(c) || c == 58 || c == 46 }
    /// Letters, digits, `-`, `.` and `_`
    private static func isOfName(_ c: UInt8) -> Bool { isHex(c) || (97...122).contains(c | 0x20) || c == 45 || c == 46 || c == 95 }

    /// Everything but letters and digits as %XX.
    private static func encoded(_ text: String) -> String {
        text.utf8.reduce(into: "") { out, c in
            if (48...57).contains(c) || (97...122).contains(c | 0x20) {
                out.unicodeScalars.append(Unicode.Scalar(c))
            } else {
                out += (c < 16 ? "%0" : "%") + String(c, radix: 16)
            }
        }
    }

    /// Nil: it has no valid percent-encoding, is no UTF-8, has control characters or is too long.
    private static func decoded(_ text: Substring) -> String? {
        var out: [UInt8] = []
        var bytes = Array(text.utf8)[...]
        while let byte = bytes.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                out.append(byte)
                continue
            }
            let digits = String(decoding: bytes.prefix(2), as: UTF8.self)
            guard digits.utf8.count == 2, digits.utf8.allSatisfy(isHex), let value = UInt8(digits, radix: 16) else { return nil }
            out.append(value)
            bytes = bytes.dropFirst(2)
        }
        guard out.count <= 255, out.allSatisfy({ $0 >= 0x20 && $0 != 0x7F }) else { return nil }
        return String(validating: out, as: UTF8.self)
    }
}

/// The proxy of the environment (`HTTPS_PROXY`), with those who are reached without it (`NO_PROXY`).
public struct EnvironmentProxy: Hashable, Sendable {
    public var proxy: EgressProxy
    /// Names in lower case, `*` for all; a name is its subdomains' too.
    public var exceptions: [String]

    public init(_ proxy: EgressProxy, exceptions: [String]) { (self.proxy, self.exceptions) = (proxy, exceptions) }

    /// Loopback is never reached through it.
    public func serves(_ host: String) -> Bool {
        guard host != "localhost", !host.hasPrefix("127."), host != "::1" else { return false }
        return !exceptions.contains { rule in
            let name = rule.hasPrefix(".") ? rule.dropFirst() : rule[...]
            return rule == "*" || host == name || host.hasSuffix("." + name)
        }
    }
}
