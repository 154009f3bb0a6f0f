/// Bytes that aren't the HTTP this program speaks. The connection they came on can't be used further.
public struct WireError: Error, Equatable, Sendable {
    /// For a request, the status to answer with: 400, 408, 411, 413, 414, 417, 431, 501 or 505. For a response, 502.
    public var status: Int
    /// One line, fit for the client: no byte of the message is in it.
    public var reason: String
    public init(_ status: Int, _ reason: String) { (self.status, self.reason) = (status, reason) }
}
