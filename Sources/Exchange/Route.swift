public import HTTPWire
public import Vocabulary

/// What a request asks for. The path's pattern, never the path itself, goes into records and metrics.
public enum Route: String, Sendable {
    case responses = "/v1/responses"
    case chatCompletions = "/v1/chat/completions"
    case embeddings = "/v1/embeddings"
    case models = "/v1/models"
    case codexResponses = "/backend-api/codex/responses"
    case codexModels = "/backend-api/codex/models"
    case files = "/backend-api/files"
    case fileUploaded = "/backend-api/files/{id}/uploaded"
    case healthLive = "/health/live"
    case healthReady = "/health/ready"
    case metrics = "/metrics"
    case usage = "/v1/usage"

    public init?(path: String) {
        if path.hasPrefix("/backend-api/files/"), path != "/backend-api/files/" {
            guard Self.fileID(ofPath: path) != nil else { return nil }
            self = .fileUploaded
            return
        }
        if let exact = Self(rawValue: path) {
            self = exact
            return
        }
        var path = path
        if path.count > 1, path.hasSuffix("/") { path.removeLast() }
        if path.hasPrefix("/backend-api/codex/v1/") { path = "/backend-api/codex/" + path.dropFirst(22) }
        if path == "/health" { path = "/health/live" }
        self.init(rawValue: path)
    }

    public var method: Method {
        switch self {
        case .responses, .chatCompletions, .embeddings, .codexResponses, .files, .fileUploaded: .post
        case .models, .codexModels, .healthLive, .healthReady, .metrics, .usage: .get
        }
    }

    /// A turn: admitted, sent upstream, recorded.
    public var isTurn: Bool { method == .post }

    /// About a file that turns name: no model works on it.
    public var isFile: Bool { self == .files || self == .fileUploaded }

    /// Of `/backend-api/files/ID/uploaded`. Nil: it is no such path, or no id that a path may hold.
    public static func fileID(ofPath path: String) -> String? {
        let parts = path.split(separator: "/", omittingEmptySubsequences: true)
        guard parts.count == 4, parts[0] == "backend-api", parts[1] == "files", parts[3] == "uploaded" else { return nil }
        let isPlain = parts[2].allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_" || $0 == "-") }
        return isPlain && parts[2].utf8.count <= Limits.affinityKeyBytesMax ? String(parts[2]) : nil
    }

    /// Streams carry Responses events.
    public var isResponses: Bool { self == .responses || self == .codexResponses }

    /// Needs a client key from callers that aren't local.
    public var isProxied: Bool {
        switch self {
        case .healthLive, .healthReady, .metrics: false
        default: true
        }
    }

    public var bodyBytesMax: Int {
        isResponses ? Limits.responsesBodyBytesMax : isFile ? Limits.fileRequestBytesMax : Limits.bodyBytesMax
    }

    /// The path below an account's base URL, with `{id}` where it has one.
    public func upstreamPath(_ kind: Account.Kind) -> String? {
        switch (self, kind) {
        case (.responses, .apiKey), (.codexResponses, .apiKey): "/responses"
        case (.chatCompletions, .apiKey): "/chat/completions"
        case (.embeddings, .apiKey): "/embeddings"
        case (.models, .apiKey), (.codexModels, .apiKey): "/models"
        case (.responses, .chatGPT), (.codexResponses, .chatGPT), (.chatCompletions, .chatGPT): "/codex/responses"
        case (.models, .chatGPT), (.codexModels, .chatGPT): "/codex/models"
        case (.files, .chatGPT): "/files"
        case (.fileUploaded, .chatGPT): "/files/{id}/uploaded"
        default: nil
        }
    }
}
