public import HTTPWire
import JSONWire
import Vocabulary

/// How an attempt at an account failed.
public enum Failure: Sendable, Equatable {
    /// Nothing was sent: name not found, refused, proxy refused, timed out connecting.
    case notConnected(String)
    /// The certificate did not verify. Another account of the same origin would fail too, and a person must look.
    case untrusted(String)
    /// Nothing was sent, and the fault is ours: no descriptor or memory was left for a connection.
    case exhausted(String)
    /// Sent, but no answer began in time.
    case timedOut
    /// Sent, and the connection ended before an answer began, or the answer was no HTTP.
    case broken(String)
    /// An HTTP error status.
    case refused(UpstreamRefusal)
    /// A 200 stream whose first telling event is a failure.
    case failedEvent(UpstreamRefusal)
}

/// An upstream's own words for a failure: the one reader of errors, wherever they stand (docs/failover.md lists the shapes).
public struct UpstreamRefusal: Sendable, Equatable {
    /// The HTTP status; 200 for an event.
    public var status: Int
    /// A number as its digits; the type where there is no code.
    public var code: String
    public var type: String
    public var message: String
    public var param: String?
    /// What it says about when to come back, the most exact first.
    public var waits: [Wait]
    /// It came in a shape that OpenAI's clients read: a body like that passes as it is.
    public var isReadable = true

    public init(
        status: Int, code: String = "", type: String = "", message: String = "", param: String? = nil, waits: [Wait] = []
    ) {
        (self.status, self.code, self.type, self.message, self.param) = (status, code, type, message, param)
        self.waits = waits
    }

    /// The status that it stands for: of an event the number that it carries as its code; 0 when nothing says.
    public var impliedStatus: Int {
        if status >= 400 { return status }
        return Int(code).flatMap { (400..<600).contains($0) ? $0 : nil } ?? 0
    }

    /// An event, or a chunk of a chat stream, that tells a failure.
    public init(event json: RawSpan) {
        self.init(status: 200)
        read(json)
        finish()
    }

    /// An answer with an error status.
    public init(status: Int, body: RawSpan, fields: HeaderFields) {
        self.init(status: status)
        read(body)
        if let wait = fields.first(named: "retry-after-ms").flatMap({ Wait.retryAfterMilliseconds($0) }) { waits.append(wait) }
        if let wait = fields.first(.retryAfter).flatMap({ Wait.retryAfter($0) }) { waits.append(wait) }
        finish()
    }

    /// The failure in an answer that claims success; nil when it has none.
    public init?(answer json: RawSpan) {
        guard let error = JSONScan.find(json, "error"), JSONScan.kind(json, error) != .null else { return nil }
        self.init(event: json)
    }

    private mutating func finish() {
        if code.isEmpty { code = type }
        if let wait = Wait.message(message) { waits.append(wait) }
    }

    private mutating func read(_ body: RawSpan) {
        var root = 0..<body.byteCount
        while let first = root.first, first < root.upperBound, isSpace(body, first) { root = first + 1..<root.upperBound }
        if root.isEmpty { return }
        isReadable = JSONScan.kind(body, root) == .object
        if JSONScan.kind(body, root) == .array {
            // `[{"error":{…}}]`, as Google's endpoint for OpenAI's clients has it.
            var inner: Range<Int>?
            JSONScan.elements(body, root) {
                inner = $0
                return false
            }
            guard let inner else { return }
            root = inner
        }
        guard JSONScan.kind(body, root) == .object else { return readText(body) }
        for place in [
            JSONScan.find(body, in: root, "error"), JSONScan.find(body, in: root, "response", "error"),
            JSONScan.find(body, in: root, "detail"),
            JSONScan.find(body, in: root, "errors"),
        ] {
            guard let place else { continue }
            switch JSONScan.kind(body, place) {
            case .object:
                return readObject(body, place)
            case .string:
                readObject(body, root)  // OAuth's `{"error":"code","error_description":"…"}` and the like
                let text = JSONScan.string(body, place) ?? ""
                if message.isEmpty { message = text } else if code.isEmpty { code = text }
                return
            case .array:
                var first: Range<Int>?
                JSONScan.elements(body, place) {
                    first = $0
                    return false
                }
                if let first, JSONScan.kind(body, first) == .object { return readObject(body, first) }
                if let first { message = JSONScan.string(body, first) ?? "" }
                return
            default: continue
            }
        }
        if status >= 400 { isReadable = false }  // flat: a client looks for "error"
        readObject(body, root)
    }

    private mutating func readObject(_ body: RawSpan, _ object: Range<Int>) {
        var (at, span): ([Wait], [Wait]) = ([], [])
        JSONScan.members(body, object) { key, value in
            func number() -> Double? {
                switch JSONScan.kind(body, value) {
                case .number where value.count < 64: text(body, value).flatMap { Double($0) }
                case .string: JSONScan.string(body, value).flatMap { $0.utf8.count < 64 ? Double($0) : nil }
                default: nil
                }
            }
            func isKey(_ name: StaticString) -> Bool { JSONScan.keyEquals(body, key, name) }
            if isKey("code") {
                if JSONScan.kind(body, value) == .number { code = text(body, value) ?? "" } else { code = string(body, value) }
            } else if isKey("type") {
                let told = string(body, value)
                if told != "error", told != "response.failed" { type = told }
            } else if isKey("status"), type.isEmpty, JSONScan.kind(body, value) == .string, status >= 400 {
                type = string(body, value)
            } else if isKey("message") || isKey("error_description") || isKey("msg") {
                message = string(body, value)
            } else if isKey("param") {
                param = JSONScan.string(body, value)
            } else if isKey("resets_at") {
                if let wait = number().flatMap({ Wait.epoch($0) }) { at.append(wait) }
            } else if isKey("resets_in_seconds") || isKey("retry_after") || isKey("retry_after_seconds") {
                if let wait = number().flatMap({ Wait.seconds($0) }) { span.append(wait) }
            } else if isKey("details") {
                JSONScan.elements(body, value) { detail in
                    if let delay = JSONScan.find(body, in: detail, "retryDelay"), let told = JSONScan.string(body, delay),
                        let wait = Wait.span(Array(told.utf8)[...])
                    {
                        span.append(wait)
                    }
                    return true
                }
            }
            return true
        }
        waits += at + span
    }

    /// A page or a line of some gateway: its title, or its beginning.
    private mutating func readText(_ body: RawSpan) {
        isReadable = false
        let all = body.extracting(first: 4096).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
        if let start = all.range(ofFirst: "<title>"), let end = all[start.upperBound...].range(ofFirst: "</title>") {
            message = String(all[start.upperBound..<end.lowerBound]).cut(utf8: 200)
        } else if !all.contains("<") {
            message = String(all.unicodeScalars.filter { $0.value >= 0x20 && $0.value != 0x7F }).cut(utf8: 200)
        }
    }
}

private func isSpace(_ bytes: RawSpan, _ i: Int) -> Bool {
    bytes.extracting(i..<i + 1).withUnsafeBytes { $0[0] == 0x20 || $0[0] >= 0x09 && $0[0] <= 0x0D }
}

private func text(_ bytes: RawSpan, _ range: Range<Int>) -> String? {
    bytes.extracting(range).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
}

private func string(_ bytes: RawSpan, _ value: Range<Int>) -> String { JSONScan.string(bytes, value) ?? "" }

extension StringProtocol {
    /// The first occurrence, letters of ASCII in any case.
    fileprivate func range(ofFirst text: String) -> Range<Index>? {
        var at = startIndex
        while at < endIndex {
            if let end = index(at, offsetBy: text.count, limitedBy: endIndex), self[at..<end].lowercased() == text { return at..<end }
            at = index(after: at)
        }
        return nil
    }
}
