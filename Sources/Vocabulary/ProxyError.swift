/// Whose fault an error is, for logs and metrics.
public enum ErrorOrigin: String, Sendable { case downstream, upstream, ourselves }

/// An error as a client sees it: a status and the OpenAI envelope `{"error":{message,type,code,param}}`.
public struct ProxyError: Error, Sendable, Equatable {
    public var status: Int
    public var code: String
    public var type: String
    public var message: String
    public var param: String?
    public var origin: ErrorOrigin
    /// Seconds for `Retry-After`.
    public var retryAfterSeconds: Int?
    /// Epoch seconds when the pool has quota again.
    public var resetsAt: Int64?

    public init(
        status: Int, code: String, type: String, message: String, param: String? = nil, origin: ErrorOrigin,
        retryAfterSeconds: Int? = nil, resetsAt: Int64? = nil
    ) {
        (self.status, self.code, self.type, self.message, self.param) = (status, code, type, message, param)
        (self.origin, self.retryAfterSeconds, self.resetsAt) = (origin, retryAfterSeconds, resetsAt)
    }
}
