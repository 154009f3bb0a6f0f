import Bytes
internal import Vocabulary

/// The head of a request that keeps RFC 9112 to the letter; everything else is refused, because what two parsers read
/// differently is how requests are smuggled.
public struct RequestHead: Sendable {
    public var method: Method
    /// Path and query as sent; of the absolute form, what follows the authority. `*` for `OPTIONS *`.
    public var target: String
    /// 0 or 1.
    public var minorVersion: Int
    public var fields: HeaderFields
    public var framing: BodyFraming
    /// Whether the client wants to send more on this connection.
    public var keepsAlive: Bool
    /// Whether it waits for `100 Continue` before the body.
    public var expectsContinue: Bool

    /// The target up to its question mark.
    public var path: String {
        guard let mark = target.utf8.firstIndex(of: UInt8(ascii: "?")) else { return target }
        return String(target[..<mark])
    }

    /// What follows the question mark; nil without one.
    public var query: String? {
        guard let mark = target.utf8.firstIndex(of: UInt8(ascii: "?")) else { return nil }
        return String(target[target.utf8.index(after: mark)...])
    }

    /// Nil: the head isn't complete yet. `scanned` is the caller's note of how far the search for the end has come;
    /// it starts with 0 and is 0 again after a success.
    public static func parse(_ bytes: RawSpan, scanned: inout Int) throws(WireError) -> (head: RequestHead, consumed: Int)? {
        let scan = HeadScan(status: 400)
        // RFC 9112 §2.2: one empty line before the request line is forgiven.
        var start = 0
        if bytes.byteCount > 0, bytes[0] == 0x0D {
            guard bytes.byteCount > 1 else { return nil }
            guard bytes[1] == 0x0A else { throw scan.fault("CR without LF") }
            start = 2
        }
        let lineEndMax = start + Limits.requestLineBytesMax + 2
        if bytes.byteCount >= lineEndMax, scanned < lineEndMax, bytes.lineFeed(from: start, to: lineEndMax) == nil {
            throw WireError(414, "request line longer than \(Limits.requestLineBytesMax) bytes")
        }
        guard let end = try scan.end(bytes, from: start, scanned: &scanned, bytesMax: Limits.headBytesMax) else { return nil }

        // request-line = method SP request-target SP HTTP-version
        var i = start
        while isTokenByte(bytes[i]) { i += 1 }
        guard i > start, bytes[i] == 0x20 else { throw scan.fault("invalid method") }
        let method = Method(bytes.text(start..<i))
        i += 1
        let targetStart = i
        while bytes[i] > 0x20 && bytes[i] < 0x7F && bytes[i] != UInt8(ascii: "#") { i += 1 }
        let target = targetStart..<i
        guard !target.isEmpty, bytes[i] == 0x20 else { throw scan.fault("invalid request target") }
        i += 1
        let minorVersion = try version(bytes, i, scan)
        i += 8
        guard bytes[i] == 0x0D, bytes[i + 1] == 0x0A else { throw scan.fault("invalid request line") }
        i += 2

        let list = try scan.fields(bytes, i, end, origin: start)
        let copy = bytes.extracting(start..<end).withUnsafeBytes { Array($0) }
        let fields = HeaderFields(bytes: copy, fields: list)

        if case .other("CONNECT") = method { throw WireError(501, "CONNECT isn't offered") }
        let host = try host(fields, minorVersion, scan)
        let origin = try originForm(bytes, target, method, fields, host, scan)
        let framing = try scan.framing(fields, minorVersion: minorVersion) ?? .none
        var expectsContinue = false
        for field in list where field.known == .expect {
            guard fields.bytes.span.bytes.equalsIgnoringCase(field.value, "100-continue") else {
                throw WireError(417, "Expect other than 100-continue")
            }
            // RFC 9110 §10.1.1: in HTTP/1.0 it means nothing.
            expectsContinue = minorVersion >= 1
        }
        let head = RequestHead(
            method: method, target: origin, minorVersion: minorVersion, fields: fields, framing: framing,
            keepsAlive: HeadScan.keepsAlive(fields, minorVersion: minorVersion), expectsContinue: expectsContinue)
        return (head, end)
    }

    private static func version(_ bytes: RawSpan, _ i: Int, _ scan: HeadScan) throws(WireError) -> Int {
        func isDigit(_ c: UInt8) -> Bool { c >= 0x30 && c <= 0x39 }
        guard i + 8 < bytes.byteCount,
            bytes.extracting(i..<i + 5).equals("HTTP/"), isDigit(bytes[i + 5]), bytes[i + 6] == UInt8(ascii: "."), isDigit(bytes[i + 7])
        else { throw scan.fault("invalid HTTP version") }
        guard bytes[i + 5] == UInt8(ascii: "1"), bytes[i + 7] <= UInt8(ascii: "1") else {
            throw WireError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        }
        return Int(bytes[i + 7] - 0x30)
    }

    /// The one `Host`, checked for bytes that no authority has. Nil only in HTTP/1.0.
    private static func host(_ fields: HeaderFields, _ minorVersion: Int, _ scan: HeadScan) throws(WireError) -> Range<Int>? {
        var host: Range<Int>?
        for field in fields.fields where field.known == .host {
            guard host == nil else { throw scan.fault("more than one Host") }
            host = field.value
        }
        guard let host else {
            guard minorVersion == 0 else { throw scan.fault("no Host") }
            return nil
        }
        guard !host.isEmpty else { throw scan.fault("empty Host") }
        let bytes = fields.bytes.span.bytes
        for i in host {
            switch bytes[i] {
            case 0x30...0x39, 0x41...0x5A, 0x61...0x7A: continue
            case UInt8(ascii: "."), UInt8(ascii: "-"), UInt8(ascii: "_"), UInt8(ascii: "~"), UInt8(ascii: ":"), UInt8(ascii: "["),
                UInt8(ascii: "]"), UInt8(ascii: "%"), UInt8(ascii: "!"), UInt8(ascii: "$"), UInt8(ascii: "&"), UInt8(ascii: "'"),
                UInt8(ascii: "("), UInt8(ascii: ")"), UInt8(ascii: "*"), UInt8(ascii: "+"), UInt8(ascii: ";"), UInt8(ascii: "="):
                continue
            default: throw scan.fault("invalid Host")
            }
        }
        return host
    }

    /// RFC 9112 §3.2: origin form, absolute form with the authority of `Host`, or `*` for OPTIONS.
    private static func originForm(
        _ bytes: RawSpan, _ target: Range<Int>, _ method: Method, _ fields: HeaderFields, _ host: Range<Int>?, _ scan: HeadScan
    ) throws(WireError) -> String {
        if bytes[target.lowerBound] == UInt8(ascii: "/") { return bytes.text(target) }
        if target.count == 1, bytes[target.lowerBound] == UInt8(ascii: "*"), method == .options { return "*" }
        var start = target.lowerBound
        if target.count > 7, bytes.equalsIgnoringCase(start..<start + 7, "http://") {
            start += 7
        } else if target.count > 8, bytes.equalsIgnoringCase(start..<start + 8, "https://") {
            start += 8
        } else {
            throw scan.fault("invalid request target")
        }
        var end = start
        while end < target.upperBound, bytes[end] != UInt8(ascii: "/"), bytes[end] != UInt8(ascii: "?") { end += 1 }
        guard let host, fields.bytes.span.bytes.equalsIgnoringCase(host, bytes.extracting(start..<end)) else {
            throw scan.fault("request target and Host name different hosts")
        }
        let rest = bytes.text(end..<target.upperBound)
        return rest.utf8.first == UInt8(ascii: "/") ? rest : "/" + rest
    }
}
