import Bytes
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

    /// The upstream's own, for whoever may make more of them than we do.
    var words: String? {
        switch self {
        case .refused(let refusal), .failedEvent(let refusal): refusal.message.isEmpty ? nil : refusal.message.cut(utf8: 1024)
        case .notConnected, .untrusted, .exhausted, .timedOut, .broken: nil
        }
    }
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
    /// A status that stands inside it.
    private var toldStatus = 0

    public init(
        status: Int, code: String = "", type: String = "", message: String = "", param: String? = nil, waits: [Wait] = []
    ) {
        (self.status, self.code, self.type, self.message, self.param) = (status, code, type, message, param)
        self.waits = waits
    }

    /// The status that it stands for: of an event the number that it carries as its code; 0 when nothing says.
    public var impliedStatus: Int {
        if status >= 400 { return status }
        return toldStatus > 0 ? toldStatus : Int(code).flatMap { (400..<600).contains($0) ? $0 : nil } ?? 0
    }

    /// Whether an event, a chunk of a chat stream or a body with a success status tells a failure: an `error` that says something, or one of the
    /// forms without it. `name`: of the event. A Responses event that has a type of its own is what its type says.
    public static func isTold(_ json: RawSpan, name: RawSpan? = nil) -> Bool {
        if let name, name.withUnsafeBytes({ $0.elementsEqual("error".utf8) }) { return true }
        return json.withUnsafeBytes { raw in
            guard let first = raw.first(where: { $0 > 0x20 }) else { return false }
            return first == UInt8(ascii: "[") || first == UInt8(ascii: "{")
        } && isTold(json, in: nil)
    }

    private static func isTold(_ json: RawSpan, in object: Range<Int>?) -> Bool {
        let root = object ?? 0..<json.byteCount
        if object == nil, let start = json.withUnsafeBytes({ $0.firstIndex { $0 > 0x20 } }),
            JSONScan.kind(json, start..<root.upperBound) == .array
        {
            var told = false
            JSONScan.elements(json, start..<root.upperBound) { first in
                told = JSONScan.kind(json, first) == .object && isTold(json, in: first)
                return false
            }
            return told
        }
        var (told, detail, hasChoices) = (false, false, false)
        JSONScan.members(json, object) { key, value in
            func isKey(_ name: StaticString) -> Bool { JSONScan.keyEquals(json, key, name) }
            if isKey("error") {
                switch JSONScan.kind(json, value) {
                case .object:
                    JSONScan.members(json, value) { _, _ in
                        told = true
                        return false
                    }
                case .string: told = told || value.count > 2
                case .array, .number, .bool, .null: break
                }
            } else if isKey("type") {
                told = told || JSONScan.equals(json, value, "error") || JSONScan.equals(json, value, "response.error")
            } else if isKey("object") {
                told = told || JSONScan.equals(json, value, "error")
            } else if isKey("detail") {
                detail = JSONScan.kind(json, value) != .null
            } else if isKey("choices") || isKey("output") || isKey("data") || isKey("delta") {
                hasChoices = true
            }
            return true
        }
        return told || detail && !hasChoices
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
        guard Self.isTold(json) else { return nil }
        self.init(event: json)
    }

    private mutating func finish() {
        // A status where a code belongs (LiteLLM and others): then the type is the code.
        if let number = Double(code), (400..<600).contains(number) {
            if toldStatus == 0 { toldStatus = Int(number) }
            if !type.isEmpty { code = type }
        }
        if code.isEmpty { code = type }
        if let wait = Wait.message(message) { waits.append(wait) }
    }

    private mutating func read(_ body: RawSpan) {
        var root = body.skippingSpace(0)..<body.byteCount
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
                readObject(body, place)
                // What stands beside it, in an event or around it, counts too.
                if JSONScan.kind(body, root) == .object { readBeside(body, root) }
                return
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
        JSONScan.members(body, object) { key, value in
            func isKey(_ name: StaticString) -> Bool { JSONScan.keyEquals(body, key, name) }
            if isKey("code") {
                if JSONScan.kind(body, value) == .number { code = body.text(value) } else { code = string(body, value) }
            } else if isKey("type") {
                let told = string(body, value)
                if told != "error", told != "response.failed", told != "response.error" { type = told }
            } else if isKey("status") || isKey("status_code"), let number = number(body, value) {
                if (400..<600).contains(number) { toldStatus = Int(number) }
            } else if isKey("status"), type.isEmpty, JSONScan.kind(body, value) == .string, status >= 400 {
                type = string(body, value)
            } else if isKey("message") || isKey("error_description") || isKey("msg") {
                message = string(body, value)
            } else if isKey("param") {
                param = JSONScan.string(body, value)
            } else if isKey("details") {
                JSONScan.elements(body, value) { detail in
                    if let delay = JSONScan.find(body, in: detail, "retryDelay"), let told = JSONScan.string(body, delay),
                        let wait = Wait.span(Array(told.utf8)[...])
                    {
                        waits.append(wait)
                    }
                    return true
                }
            }
            return true
        }
        readWaits(body, object)
    }

    private mutating func readBeside(_ body: RawSpan, _ root: Range<Int>) {
        JSONScan.members(body, root) { key, value in
            if JSONScan.keyEquals(body, key, "status") || JSONScan.keyEquals(body, key, "status_code"), toldStatus == 0,
                let number = number(body, value), (400..<600).contains(number)
            {
                toldStatus = Int(number)
            }
            return true
        }
        readWaits(body, root)
    }

    /// The waiting times that stand in an object, and one level deeper where some put them.
    private mutating func readWaits(_ body: RawSpan, _ object: Range<Int>, isInner: Bool = false) {
        var (at, span): ([Wait], [Wait]) = ([], [])
        var inner: [Range<Int>] = []
        JSONScan.members(body, object) { key, value in
            func isKey(_ names: StaticString...) -> Bool { names.contains { JSONScan.keyEquals(body, key, $0) } }
            if isKey("resets_at", "reset_at") {
                if let wait = number(body, value).flatMap({ Wait.epoch($0) }) ?? JSONScan.string(body, value).flatMap({ Wait.rfc3339($0) })
                {
                    at.append(wait)
                }
            } else if isKey("resets_in_seconds", "retry_after", "retry_after_seconds") {
                if let wait = number(body, value).flatMap({ Wait.seconds($0) }) { span.append(wait) }
            } else if isKey("retry_after_ms", "retry-after-ms") {
                if let wait = number(body, value).flatMap({ Wait.seconds($0 / 1000) }) { span.append(wait) }
            } else if isKey("retry-after", "Retry-After") {
                let told = JSONScan.kind(body, value) == .number ? body.text(value) : JSONScan.string(body, value)
                if let wait = told.flatMap({ Wait.retryAfter($0) }) { span.append(wait) }
            } else if isKey("metadata", "headers"), !isInner, JSONScan.kind(body, value) == .object {
                inner.append(value)
            }
            return true
        }
        waits += at + span
        for object in inner { readWaits(body, object, isInner: true) }
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

private func number(_ body: RawSpan, _ value: Range<Int>) -> Double? {
    switch JSONScan.kind(body, value) {
    case .number where value.count < 64: Double(body.text(value))
    case .string: JSONScan.string(body, value).flatMap { $0.utf8.count < 64 ? Double($0) : nil }
    default: nil
    }
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
