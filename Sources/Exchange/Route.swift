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
    case healthLive = "/health/live"
    case healthReady = "/health/ready"
    case metrics = "/metrics"
    case usage = "/v1/usage"

    public init?(path: String) {
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
        case .responses, .chatCompletions, .embeddings, .codexResponses: .post
        case .models, .codexModels, .healthLive, .healthReady, .metrics, .usage: .get
        }
    }

    /// A turn: admitted, sent upstream, recorded.
    public var isTurn: Bool { method == .post }

    /// Streams carry Responses events.
    public var isResponses: Bool { self == .responses || self == .codexResponses }

    /// Needs a client key from callers that aren't local.
    public var isProxied: Bool {
        switch self {
        case .healthLive, .healthReady, .metrics: false
        default: true
        }
    }

    public var bodyBytesMax: Int { isResponses ? Limits.responsesBodyBytesMax : Limits.bodyBytesMax }

    /// The path below an account's base URL.
    public func upstreamPath(_ kind: Account.Kind) -> String? {
        switch (self, kind) {
        case (.responses, .apiKey), (.codexResponses, .apiKey): "/responses"
        case (.chatCompletions, .apiKey): "/chat/completions"
        case (.embeddings, .apiKey): "/embeddings"
        case (.models, .apiKey), (.codexModels, .apiKey): "/models"
        case (.responses, .chatGPT), (.codexResponses, .chatGPT), (.chatCompletions, .chatGPT): "/codex/responses"
        case (.models, .chatGPT), (.codexModels, .chatGPT): "/codex/models"
        default: nil
        }
    }
}
