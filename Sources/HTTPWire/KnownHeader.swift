import Bytes

/// The field names that the program handles itself; every other one is `other`.
public enum KnownHeader: UInt8, Sendable, CaseIterable {
    case other
    case host, contentLength, transferEncoding, connection, keepAlive, proxyConnection, proxyAuthenticate, proxyAuthorization
    case te, trailer, upgrade, expect
    case contentType, contentEncoding, acceptEncoding, accept
    case authorization, userAgent, originator, retryAfter, requestID, chatGPTAccountID
    case forwarded, xForwardedFor, xForwardedHost, xForwardedProto, xRealIP, trueClientIP
    case date, server, setCookie, cookie
    case origin, referer, secFetchSite, via
    case openAIOrganization, openAIProject, apiKey, xAPIKey, googleAPIKey
    case turnState, threadID, sessionID, sessionIDUnderscored, codexSessionID, codexConversationID, conversationIDUnderscored

    /// The name in lower case; empty for `other`.
    public var name: StaticString {
        switch self {
        case .other: ""
        case .host: "host"
        case .contentLength: "content-length"
        case .transferEncoding: "transfer-encoding"
        case .connection: "connection"
        case .keepAlive: "keep-alive"
        case .proxyConnection: "proxy-connection"
        case .proxyAuthenticate: "proxy-authenticate"
        case .proxyAuthorization: "proxy-authorization"
        case .te: "te"
        case .trailer: "trailer"
        case .upgrade: "upgrade"
        case .expect: "expect"
        case .contentType: "content-type"
        case .contentEncoding: "content-encoding"
        case .acceptEncoding: "accept-encoding"
        case .accept: "accept"
        case .authorization: "authorization"
        case .userAgent: "user-agent"
        case .originator: "originator"
        case .retryAfter: "retry-after"
        case .requestID: "x-request-id"
        case .chatGPTAccountID: "chatgpt-account-id"
        case .forwarded: "forwarded"
        case .xForwardedFor: "x-forwarded-for"
        case .xForwardedHost: "x-forwarded-host"
        case .xForwardedProto: "x-forwarded-proto"
        case .xRealIP: "x-real-ip"
        case .trueClientIP: "true-client-ip"
        case .date: "date"
        case .server: "server"
        case .setCookie: "set-cookie"
        case .cookie: "cookie"
        case .origin: "origin"
        case .referer: "referer"
        case .secFetchSite: "sec-fetch-site"
        case .via: "via"
        case .openAIOrganization: "openai-organization"
        case .openAIProject: "openai-project"
        case .apiKey: "api-key"
        case .xAPIKey: "x-api-key"
        case .googleAPIKey: "x-goog-api-key"
        case .turnState: "x-codex-turn-state"
        case .threadID: "thread-id"
        case .sessionID: "session-id"
        case .sessionIDUnderscored: "session_id"
        case .codexSessionID: "x-codex-session-id"
        case .codexConversationID: "x-codex-conversation-id"
        case .conversationIDUnderscored: "conversation_id"
        }
    }

    /// True for the fields of one hop (RFC 9110 §7.6.1), the framing fields with them: a proxy writes its own.
    public var isHopByHop: Bool {
        switch self {
        case .connection, .keepAlive, .proxyConnection, .proxyAuthenticate, .proxyAuthorization, .te, .trailer, .transferEncoding, .upgrade:
            true
        default: false
        }
    }

    static func named(_ bytes: RawSpan, _ range: Range<Int>) -> KnownHeader {
        @inline(__always) func either(_ a: KnownHeader, _ b: KnownHeader? = nil, _ c: KnownHeader? = nil, _ d: KnownHeader? = nil)
            -> KnownHeader
        {
            if bytes.equalsIgnoringCase(range, a.name) { return a }
            if let b, bytes.equalsIgnoringCase(range, b.name) { return b }
            if let c, bytes.equalsIgnoringCase(range, c.name) { return c }
            if let d, bytes.equalsIgnoringCase(range, d.name) { return d }
            return .other
        }
        switch range.count {
        case 2: return either(.te)
        case 3: return either(.via)
        case 4: return either(.host, .date)
        case 6:
            switch lowered(bytes[range.lowerBound]) {
            case UInt8(ascii: "a"): return either(.accept)
            case UInt8(ascii: "o"): return either(.origin)
            default: return either(.cookie, .expect, .server)
            }
        case 7: return either(.upgrade, .trailer, .referer, .apiKey)
        case 9: return either(.forwarded, .xRealIP, .xAPIKey, .threadID)
        case 10:
            switch lowered(bytes[range.lowerBound]) {
            case UInt8(ascii: "u"): return either(.userAgent)
            case UInt8(ascii: "c"): return either(.connection)
            case UInt8(ascii: "s"): return either(.setCookie, .sessionID, .sessionIDUnderscored)
            default: return either(.keepAlive, .originator)
            }
        case 11: return either(.retryAfter)
        case 12: return either(.contentType, .requestID)
        case 13: return either(.authorization)
        case 14:
            switch lowered(bytes[range.lowerBound]) {
            case UInt8(ascii: "c"): return either(.contentLength)
            case UInt8(ascii: "o"): return either(.openAIProject)
            default: return either(.trueClientIP, .secFetchSite, .googleAPIKey)
            }
        case 15: return either(.acceptEncoding, .xForwardedFor, .conversationIDUnderscored)
        case 16: return either(.contentEncoding, .proxyConnection, .xForwardedHost)
        case 17: return either(.transferEncoding, .xForwardedProto)
        case 18: return either(.chatGPTAccountID, .proxyAuthenticate, .turnState, .codexSessionID)
        case 19: return either(.proxyAuthorization, .openAIOrganization)
        case 23: return either(.codexConversationID)
        default: return .other
        }
    }
}
