import Bytes

/// Appends heads and chunks to an output buffer. No value can end its line: a field whose name isn't a token, or whose value holds
/// CR, LF, NUL or another control, is left out whole.
public enum HeadWriter {
    public static func status(_ code: Int, into out: inout [UInt8]) {
        precondition((100...599).contains(code))
        out.append("HTTP/1.1 " as StaticString)
        out.append(decimal: code)
        out.append(0x20)
        out.append(reason(code))
        out.append("\r\n" as StaticString)
    }

    /// Bytes that a target can't have (controls, spaces, all beyond ASCII) are percent-encoded.
    public static func request(_ method: Method, target: String, into out: inout [UInt8]) {
        for c in method.text.utf8 where isTokenByte(c) { out.append(c) }
        out.append(0x20)
        let hex: StaticString = "0123456789ABCDEF"
        for c in target.utf8 {
            if c > 0x20 && c < 0x7F {
                out.append(c)
            } else {
                out.append(UInt8(ascii: "%"))
                hex.withUTF8Buffer { out.append(contentsOf: [$0[Int(c >> 4)], $0[Int(c & 15)]]) }
            }
        }
        out.append(" HTTP/1.1\r\n" as StaticString)
    }

    public static func field(_ name: StaticString, _ value: String, into out: inout [UInt8]) {
        var value = value
        value.withUTF8 { bytes in
            for c in bytes where !isValueByte(c) { return }
            out.append(name)
            out.append(": " as StaticString)
            out.append(contentsOf: bytes)
            out.append("\r\n" as StaticString)
        }
    }

    /// A field whose name is not known before.
    public static func field(named name: String, _ value: String, into out: inout [UInt8]) {
        guard !name.isEmpty, name.utf8.allSatisfy(isTokenByte), value.utf8.allSatisfy(isValueByte) else { return }
        out.append(contentsOf: name.utf8)
        out.append(": " as StaticString)
        out.append(contentsOf: value.utf8)
        out.append("\r\n" as StaticString)
    }

    public static func field(_ name: RawSpan, _ value: RawSpan, into out: inout [UInt8]) {
        guard name.byteCount > 0 else { return }
        for i in 0..<name.byteCount where !isTokenByte(name[i]) { return }
        for i in 0..<value.byteCount where !isValueByte(value[i]) { return }
        out.append(name)
        out.append(": " as StaticString)
        out.append(value)
        out.append("\r\n" as StaticString)
    }

    public static func field(_ name: StaticString, _ value: Int, into out: inout [UInt8]) {
        out.append(name)
        out.append(": " as StaticString)
        out.append(decimal: value)
        out.append("\r\n" as StaticString)
    }

    /// The blank line.
    public static func end(into out: inout [UInt8]) { out.append("\r\n" as StaticString) }

    /// The size line of a chunk; `count` must not be 0, for that is the last chunk.
    public static func chunkStart(count: Int, into out: inout [UInt8]) {
        precondition(count > 0)
        out.append(hex: count)
        out.append("\r\n" as StaticString)
    }

    public static func chunkEnd(into out: inout [UInt8]) { out.append("\r\n" as StaticString) }

    /// Ends a chunked body without trailers.
    public static let lastChunk: [UInt8] = Array("0\r\n\r\n".utf8)

    private static func reason(_ code: Int) -> StaticString {
        switch code {
        case 100: "Continue"
        case 101: "Switching Protocols"
        case 200: "OK"
        case 201: "Created"
        case 202: "Accepted"
        case 204: "No Content"
        case 206: "Partial Content"
        case 301: "Moved Permanently"
        case 302: "Found"
        case 303: "See Other"
        case 304: "Not Modified"
        case 307: "Temporary Redirect"
        case 308: "Permanent Redirect"
        case 400: "Bad Request"
        case 401: "Unauthorized"
        case 402: "Payment Required"
        case 403: "Forbidden"
        case 404: "Not Found"
        case 405: "Method Not Allowed"
        case 408: "Request Timeout"
        case 409: "Conflict"
        case 411: "Length Required"
        case 413: "Content Too Large"
        case 414: "URI Too Long"
        case 415: "Unsupported Media Type"
        case 417: "Expectation Failed"
        case 422: "Unprocessable Content"
        case 426: "Upgrade Required"
        case 429: "Too Many Requests"
        case 431: "Request Header Fields Too Large"
        case 499: "Client Closed Request"
        case 500: "Internal Server Error"
        case 501: "Not Implemented"
        case 502: "Bad Gateway"
        case 503: "Service Unavailable"
        case 504: "Gateway Timeout"
        case 505: "HTTP Version Not Supported"
        default: ""
        }
    }
}
