public enum Method: Sendable, Equatable {
    case get, post, head, put, delete, options, patch
    /// Any other token, as sent: methods are case-sensitive.
    case other(String)

    public var text: String {
        switch self {
        case .get: "GET"
        case .post: "POST"
        case .head: "HEAD"
        case .put: "PUT"
        case .delete: "DELETE"
        case .options: "OPTIONS"
        case .patch: "PATCH"
        case .other(let text): text
        }
    }

    init(_ text: String) {
        switch text {
        case "GET": self = .get
        case "POST": self = .post
        case "HEAD": self = .head
        case "PUT": self = .put
        case "DELETE": self = .delete
        case "OPTIONS": self = .options
        case "PATCH": self = .patch
        default: self = .other(text)
        }
    }
}

/// Where a message's body ends.
public enum BodyFraming: Sendable, Equatable {
    /// There is none, and no field announced one.
    case none
    case length(Int)
    case chunked
    /// With the connection: responses only.
    case untilClose
}
