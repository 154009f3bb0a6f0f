import Bytes
import Exchange
import HTTPWire
import Vocabulary

/// Heads of requests to upstreams and which fields pass either way. Heads are written anew, never copied.
enum UpstreamRequest {
    private static let nativeAgents = [
        "codex_cli_rs", "codex-tui", "codex_exec", "codex_sdk_ts", "codex_vscode", "codex desktop", "codex ",
    ]
    private static let nativeOriginators: Set<String> = [
        "Codex Desktop", "codex_atlas", "codex_chatgpt_desktop", "codex_cli_rs", "codex_exec", "codex_sdk_ts", "codex_vscode",
    ]

    /// Codex's own clients, whose identifying fields pass unchanged.
    static func isNative(_ fields: HeaderFields) -> Bool {
        if let agent = fields.first(.userAgent)?.lowercased(), nativeAgents.contains(where: { agent.hasPrefix($0) }) { return true }
        return fields.first(.originator).map { nativeOriginators.contains($0) } ?? false
    }

    static func head(_ request: ClientRequest, _ account: RoutedAccount, target: String, bodyCount: Int) -> [UInt8] {
        var out: [UInt8] = []
        out.reserveCapacity(1024 + (bodyCount < Limits.joinedBodyBytesMax ? bodyCount : 0))
        HeadWriter.request(.post, target: target, into: &out)
        let isFile = request.route.isFile
        out += isFile ? account.fileFields : account.headFields
        HeadWriter.field("Content-Length", bodyCount, into: &out)
        let isChatGPT = account.value.kind == .chatGPT
        let isNative = isNative(request.head.fields)
        let hasOwn = !account.value.credentials.headers.isEmpty
        if !isNative { HeadWriter.field("User-Agent", "codex-lb/\(Version.text)", into: &out) }
        request.head.fields.forEachEndToEnd { known, name, value in
            switch known {
            case .host, .authorization, .contentLength, .transferEncoding, .contentType, .contentEncoding, .acceptEncoding, .expect,
                .forwarded, .xForwardedFor, .xForwardedHost, .xForwardedProto, .xRealIP, .trueClientIP, .via,
                .connection, .upgrade:
                return
            // Whose account and quota a request is charged to is the account's choice, and a client's credentials are its own.
            case .openAIOrganization where account.passesOrganization, .openAIProject where account.passesOrganization:
                break
            case .chatGPTAccountID, .openAIOrganization, .openAIProject, .cookie, .apiKey, .xAPIKey, .googleAPIKey:
                return
            // A page's address is nobody's business upstream.
            case .origin, .referer, .secFetchSite:
                return
            case .accept where isChatGPT:
                return
            case .userAgent, .originator:
                if !isNative { return }
            case .requestID:
                return  // the one that the client is told
            default:
                if name.hasPrefix(ignoringCase: "x-forwarded-") || name.hasPrefix(ignoringCase: "cf-")
                    || name.hasPrefix(ignoringCase: "x-codex-lb-")
                    || name.hasPrefix(ignoringCase: "x-codex-installation-id") || name.hasPrefix(ignoringCase: "proxy-")
                    || name.hasPrefix(ignoringCase: "sec-") || name.hasPrefix(ignoringCase: "access-control-")
                    || name.hasPrefix(ignoringCase: "x-openai-account-") || isPrivate(name)
                {
                    return
                }
                if !isNative, name.hasPrefix(ignoringCase: "x-stainless-") || name.hasPrefix(ignoringCase: "x-openai-client-") { return }
            }
            if hasOwn, account.owns(name) { return }
            // Whatever else comes with a file's request makes ChatGPT's gateway refuse it.
            if isFile, known != .userAgent, !name.hasPrefix(ignoringCase: "x-openai-"), !name.hasPrefix(ignoringCase: "x-codex-") { return }
            HeadWriter.field(name, value, into: &out)
        }
        HeadWriter.field("X-Request-Id", request.id, into: &out)
        HeadWriter.end(into: &out)
        return out
    }

    /// Fields that carry a credential or an identity under one of the many names that gateways have for them, or that are about the body or the
    /// answer as the client meant them, which here are others.
    private static func isPrivate(_ name: RawSpan) -> Bool {
        if name.hasSuffix(ignoringCase: "-key") { return !name.equalsIgnoringCase("idempotency-key") }
        return privateEnds.contains { name.hasSuffix(ignoringCase: $0) } || privateNames.contains { name.equalsIgnoringCase($0) }
            || name.hasPrefix(ignoringCase: "x-") && privateStarts.contains { name.hasPrefix(ignoringCase: $0) }
    }
    private static let privateNames: [StaticString] = [
        "from", "cookie2", "api_key", "remote-user", "content-md5", "digest", "content-digest", "repr-digest", "range", "if-range",
        "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "x-rewrite-url", "x-original-url",
    ]
    private static let privateEnds: [StaticString] = ["-token", "-auth", "authorization", "-secret", "-password"]
    private static let privateStarts: [StaticString] = ["x-auth-", "x-amzn-oidc-", "x-goog-iap-", "x-ms-client-principal", "x-ms-token-"]

    /// The upstream's end-to-end fields for the client, without those that this answer has of its own.
    static func passFields(_ head: ResponseHead, requestID: String, isStream: Bool = false, into out: inout [UInt8]) {
        head.fields.forEachEndToEnd { known, name, value in
            switch known {
            case .contentLength, .transferEncoding, .connection, .setCookie, .requestID, .server, .date, .trailer, .upgrade: return
            case .contentType where isStream: return
            default: break
            }
            // Which pages may read an answer is said here, not upstream.
            if name.hasPrefix(ignoringCase: "access-control-") || name.hasPrefix(ignoringCase: "cross-origin-") { return }
            if name.hasPrefix(ignoringCase: "alt-svc") || name.hasPrefix(ignoringCase: "strict-transport-security") { return }
            if isStream, name.hasPrefix(ignoringCase: "cache-control") || name.hasPrefix(ignoringCase: "x-accel-") { return }
            HeadWriter.field(name, value, into: &out)
        }
        HeadWriter.field("X-Request-Id", requestID, into: &out)
    }
}
