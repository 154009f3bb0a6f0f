/// What one turn used and how it ended: exactly one per turn that was admitted, stored once.
public struct UsageRecord: Sendable, Equatable {
    public enum Transport: String, Sendable { case http, websocket }

    public var id: RecordID
    /// When the request head was complete.
    public var time: WallTime
    /// The path's pattern: `/v1/responses`.
    public var route: String
    public var transport: Transport
    public var keyID: Int64?
    /// The account that answered last; nil when none was tried.
    public var accountID: Int64?
    public var requestID: String
    public var modelAsked: String
    /// As the upstream names it; empty when it did not say.
    public var modelServed: String
    /// The HTTP status the client got; 499 when it went away first.
    public var status: Int
    /// Empty when the turn succeeded.
    public var errorCode: String
    public var inputTokens: Int64
    /// Part of `inputTokens`.
    public var cachedInputTokens: Int64
    public var outputTokens: Int64
    /// Part of `outputTokens`.
    public var reasoningTokens: Int64
    /// Nil when the price of the model is unknown or no usage was reported.
    public var costMicrodollars: Int64?
    /// From the complete request head to the first byte of the answer's body; nil without one.
    public var firstByteMilliseconds: Int64?
    public var durationMilliseconds: Int64
    /// Upstream requests made for the turn.
    public var attempts: Int
    /// Body bytes received from the client and sent to it.
    public var requestBytes: Int64
    public var responseBytes: Int64

    public init(id: RecordID, time: WallTime, route: String, requestID: String) {
        self.id = id
        self.time = time
        self.route = route
        self.requestID = requestID
        transport = .http
        (modelAsked, modelServed, status, errorCode) = ("", "", 0, "")
        (inputTokens, cachedInputTokens, outputTokens, reasoningTokens) = (0, 0, 0, 0)
        (durationMilliseconds, attempts, requestBytes, responseBytes) = (0, 0, 0, 0)
    }
}

extension String {
    /// The longest beginning of at most `count` bytes of UTF-8 that splits no scalar.
    public func cut(utf8 count: Int) -> String {
        guard utf8.count > count else { return self }
        var end = utf8.index(utf8.startIndex, offsetBy: count)
        while end.samePosition(in: unicodeScalars) == nil { end = utf8.index(before: end) }
        return String(self[..<end])
    }
}
