internal import Bytes

/// The HTTP proxy that https upstreams are reached through (`HTTPS_PROXY`, `NO_PROXY`).
public struct OutboundProxy: Sendable {
    var host: String
    var port: UInt16
    /// `Basic …` for `Proxy-Authorization`.
    var authorization: String?
    private var exceptions: [String]

    public init?(url: String?, exceptions: [String]) {
        guard var text = url else { return nil }
        if text.hasPrefix("http://") { text = String(text.dropFirst(7)) }
        while text.hasSuffix("/") { text.removeLast() }
        if let at = text.lastIndex(of: "@") {
            authorization = "Basic " + Base64.standard.encode(Array(Self.percentDecoded(text[..<at]).utf8))
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
}
