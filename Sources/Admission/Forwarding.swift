import Bytes
public import HTTPWire
public import Vocabulary

/// Who sent a request that came through trusted proxies.
///
/// Each proxy adds the address of whoever connected to it at the end of `X-Forwarded-For` (or `Forwarded`, RFC 7239), so the list is read
/// from its end for as long as the proxies that wrote it are trusted. What a client has written itself stands before that and is never
/// reached. For logs only: it gives nobody a right (docs/decisions/0017).
public enum Forwarding {
    /// `peer`: who connected, or whom a PROXY header named; nil over a Unix-domain socket. Nil: not known.
    public static func client(peer: IPAddress?, _ fields: HeaderFields, trusting trusted: TrustedProxies) -> IPAddress? {
        var client = peer
        guard trusted.contains(client) else { return client }
        // Where both are, only one may be of the proxy; the older one is what nearly all of them write.
        let list = addresses(fields, .xForwardedFor, key: nil) ?? addresses(fields, .forwarded, key: "for") ?? []
        for entry in list.reversed() {
            // One that hides its client, or nonsense: nobody knows who stands behind it.
            guard let address = entry else { return client }
            client = address
            guard trusted.contains(address) else { return client }
        }
        return client
    }

    /// The addresses of all fields of this name, in order; nil where there is no such field.
    private static func addresses(_ fields: HeaderFields, _ field: KnownHeader, key: String?) -> [IPAddress?]? {
        var texts: [String] = []
        fields.forEach { known, _, value in
            if known == field { texts.append(value.withUnsafeBytes { String(decoding: $0, as: UTF8.self) }) }
        }
        guard !texts.isEmpty else { return nil }
        return texts.joined(separator: ",").split(separator: ",", omittingEmptySubsequences: false).map { element in
            guard let key else { return address(element) }
            for pair in element.split(separator: ";") {
                let parts = pair.split(separator: "=", maxSplits: 1)
                if parts.count == 2, trimmed(parts[0]).lowercased() == key { return address(parts[1]) }
            }
            return nil
        }
    }

    /// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`, each perhaps in quotes.
    static func address(_ text: Substring) -> IPAddress? {
        var text = trimmed(text)
        if text.count > 1, text.first == "\"", text.last == "\"" { text = text.dropFirst().dropLast() }
        if text.first == "[" {
            guard let end = text.firstIndex(of: "]") else { return nil }
            let port = text[text.index(after: end)...]
            guard port.isEmpty || isPort(port) else { return nil }
            return IPAddress(text[text.index(after: text.startIndex)..<end])
        }
        if let colon = text.firstIndex(of: ":"), colon == text.lastIndex(of: ":") {
            return isPort(text[colon...]) ? IPAddress(text[..<colon]) : nil
        }
        return IPAddress(text)
    }

    private static func isPort(_ text: Substring) -> Bool {
        text.first == ":" && text.count > 1 && text.dropFirst().utf8.allSatisfy { (0x30...0x39).contains($0) }
    }

    private static func trimmed(_ text: Substring) -> Substring {
        var text = text
        while let c = text.first, c == " " || c == "\t" { text.removeFirst() }
        while let c = text.last, c == " " || c == "\t" { text.removeLast() }
        return text
    }
}
