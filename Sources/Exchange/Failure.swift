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

/// An upstream's own words for a failure, from an error body or a `response.failed` event.
public struct UpstreamRefusal: Sendable, Equatable {
    /// The HTTP status; 200 for an event.
    public var status: Int
    public var code: String
    public var type: String
    public var message: String
    /// From `Retry-After`, seconds.
    public var retryAfterSeconds: Int?
    /// From `resets_at`, epoch seconds.
    public var resetsAt: Int64?
    public var resetsInSeconds: Int64?

    public init(
        status: Int, code: String = "", type: String = "", message: String = "", retryAfterSeconds: Int? = nil, resetsAt: Int64? = nil,
        resetsInSeconds: Int64? = nil
    ) {
        (self.status, self.code, self.type, self.message) = (status, code, type, message)
        (self.retryAfterSeconds, self.resetsAt, self.resetsInSeconds) = (retryAfterSeconds, resetsAt, resetsInSeconds)
    }

    /// Reads `{"error":{…}}`, `{"detail":…}` or an event with `response.error` or `error`; what is missing stays empty.
    public init(status: Int, json: RawSpan, retryAfter: String?) {
        self.init(status: status)
        retryAfterSeconds = retryAfter.flatMap { Int($0) }
        guard let error = JSONScan.find(json, "error") ?? JSONScan.find(json, "response", "error") else {
            if let detail = JSONScan.find(json, "detail") { message = JSONScan.string(json, detail) ?? "" }
            return
        }
        if let text = JSONScan.string(json, error) {
            message = text
            return
        }
        JSONScan.members(json, error) { key, value in
            if Self.isKey(json, key, "code") { code = JSONScan.string(json, value) ?? JSONScan.int(json, value).map { String($0) } ?? "" }
            if Self.isKey(json, key, "type") { type = JSONScan.string(json, value) ?? "" }
            if Self.isKey(json, key, "message") { message = JSONScan.string(json, value) ?? "" }
            if Self.isKey(json, key, "resets_at") { resetsAt = JSONScan.int(json, value) }
            if Self.isKey(json, key, "resets_in_seconds") { resetsInSeconds = JSONScan.int(json, value) }
            return true
        }
        if code.isEmpty, FailoverTable.namedTypes.contains(type) { code = type }
    }

    private static func isKey(_ json: RawSpan, _ key: Range<Int>, _ name: StaticString) -> Bool {
        key.count == name.utf8CodeUnitCount
            && json.extracting(key).withUnsafeBytes { bytes in
                name.withUTF8Buffer { text in bytes.elementsEqual(text) }
            }
    }
}
