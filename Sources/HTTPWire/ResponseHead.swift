import Bytes
internal import Vocabulary

/// The head of an upstream's response, as strictly read as a request: a doubt about where it ends would give one turn's bytes to another.
public struct ResponseHead: Sendable {
    /// 100 to 599.
    public var status: Int
    /// 0 or 1.
    public var minorVersion: Int
    public var fields: HeaderFields
    /// Whether the upstream will take another request on this connection. Says nothing about a body that ends with the connection.
    public var keepsAlive: Bool
    /// As the fields say; nil when they say nothing.
    private var announced: BodyFraming?
    /// Of the body that is passed on; nil when nobody knows it yet.
    public private(set) var contentLength: Int?

    /// The body is passed on without its coding, and so longer than was told.
    public mutating func removeContentCoding() {
        fields.remove(.contentEncoding)
        fields.remove(.contentLength)
        contentLength = nil
    }

    /// RFC 9112 §6.3: answers to HEAD and 1xx, 204, 304 have no body; without a length the body ends with the connection.
    public func framing(toMethod method: Method) -> BodyFraming {
        if method == .head || status < 200 || status == 204 || status == 304 { return .none }
        return announced ?? .untilClose
    }

    /// Nil: the head isn't complete yet. `scanned` is the caller's note of how far the search for the end has come;
    /// it starts with 0 and is 0 again after a success. Every error has status 502.
    public static func parse(_ bytes: RawSpan, scanned: inout Int) throws(WireError) -> (head: ResponseHead, consumed: Int)? {
        let scan = HeadScan(status: 502)
        // What is no HTTP at all may never come to an end: its first wrong byte says so, however the bytes come.
        let mark: StaticString = "HTTP/"
        for i in 0..<min(mark.utf8CodeUnitCount, bytes.byteCount) where bytes[i] != mark.utf8Start[i] {
            throw scan.fault("invalid status line")
        }
        guard let end = try scan.end(bytes, from: 0, scanned: &scanned, bytesMax: Limits.upstreamHeadBytesMax) else { return nil }
        // status-line = HTTP-version SP status-code [ SP reason ]; the space before an empty reason is often left out.
        guard end > 14, bytes.extracting(0..<7).equals("HTTP/1."), bytes[7] == 0x30 || bytes[7] == 0x31, bytes[8] == 0x20 else {
            throw scan.fault("invalid status line")
        }
        let minorVersion = Int(bytes[7] - 0x30)
        var status = 0
        for i in 9..<12 {
            guard bytes[i] >= 0x30 && bytes[i] <= 0x39 else { throw scan.fault("invalid status") }
            status = status * 10 + Int(bytes[i] - 0x30)
        }
        guard (100...599).contains(status) else { throw scan.fault("invalid status") }
        var i = 12
        if bytes[i] == 0x20 {
            while isValueByte(bytes[i]) { i += 1 }
        }
        guard bytes[i] == 0x0D, bytes[i + 1] == 0x0A else { throw scan.fault("invalid status line") }
        let list = try scan.fields(bytes, i + 2, end, origin: 0)
        let fields = HeaderFields(bytes: bytes.extracting(0..<end).withUnsafeBytes { Array($0) }, fields: list)
        let announced = try scan.framing(fields, minorVersion: minorVersion)
        var head = ResponseHead(
            status: status, minorVersion: minorVersion, fields: fields,
            keepsAlive: HeadScan.keepsAlive(fields, minorVersion: minorVersion), announced: announced)
        if case .length(let count) = announced { head.contentLength = count }
        return (head, end)
    }
}
