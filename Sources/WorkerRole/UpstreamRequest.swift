import Exchange
import HTTPWire
import JSONWire
import Translation
import Vocabulary

/// What of a request's body decides about its turn.
struct TurnRequest {
    var model: String
    var wantsStream: Bool
    /// The client asked for the usage chunk of a chat stream.
    var includesUsage: Bool
    var route: Route

    /// Reads the body; a body that is no JSON object with a model is refused.
    init(_ body: [UInt8], route: Route) throws(ProxyError) {
        self.route = route
        let bytes = body.span.bytes
        do throws(JSONError) {
            try JSONScan.validate(bytes)
        } catch {
            throw Self.invalid(
                body.isEmpty
                    ? "The request body is empty; send a JSON object"
                    : "The request body is no valid JSON: \(error.reason) at byte \(error.offset)", nil)
        }
        var (model, stream, includes): (String?, Bool?, Bool) = (nil, nil, false)
        var problem: ProxyError?
        let isObject = JSONScan.members(bytes, nil) { key, value in
            let key = bytes.extracting(key)
            if key.isText("model") {
                model = JSONScan.string(bytes, value)
                if model == nil { problem = Self.invalid("\"model\" must be a string", "model") }
            } else if key.isText("stream") {
                stream = JSONScan.bool(bytes, value)
                if stream == nil, JSONScan.kind(bytes, value) != .null {
                    problem = Self.invalid("\"stream\" must be true or false", "stream")
                }
            } else if key.isText("stream_options"), JSONScan.kind(bytes, value) == .object {
                JSONScan.members(bytes, value) { name, option in
                    if bytes.extracting(name).isText("include_usage") { includes = JSONScan.bool(bytes, option) ?? false }
                    return true
                }
            }
            return true
        }
        if let problem { throw problem }
        guard isObject || model != nil else { throw Self.invalid("The request body must be a JSON object", nil) }
        guard let model, !model.isEmpty else { throw Self.invalid("\"model\" is missing", "model") }
        self.model = model
        // Codex clients always get a stream, whatever the body says.
        wantsStream = route == .codexResponses ? true : route == .embeddings ? false : stream ?? false
        includesUsage = includes
    }

    static func invalid(_ message: String, _ param: String?) -> ProxyError {
        ProxyError(
            status: 400, code: "invalid_request_error", type: "invalid_request_error", message: message, param: param, origin: .downstream)
    }

    /// The body for an account's upstream: as it is, but for what accounting or the upstream's contract needs.
    func upstreamBody(_ body: [UInt8], kind: Account.Kind) throws(ProxyError) -> [UInt8] {
        switch (kind, route) {
        case (.chatGPT, .chatCompletions):
            let responses = try ChatTranslation.responsesRequest(fromChat: body.span.bytes)
            return try ResponsesTranslation.codexRequest(from: responses.span.bytes)
        case (.chatGPT, _):
            return try ResponsesTranslation.codexRequest(from: body.span.bytes)
        case (.apiKey, .chatCompletions) where wantsStream && !includesUsage:
            // Without this an OpenAI-compatible stream tells no usage; the extra chunk is taken out again on the way back.
            let bytes = body.span.bytes
            var options = Array("{\"include_usage\":true}".utf8)
            if let present = JSONScan.find(bytes, "stream_options"), JSONScan.kind(bytes, present) == .object,
                let edited = JSONEdit.setting(bytes.extracting(present), [("include_usage", Array("true".utf8))])
            {
                options = edited
            }
            return JSONEdit.setting(bytes, [("stream_options", options)]) ?? body
        case (.apiKey, .codexResponses):
            return JSONEdit.setting(body.span.bytes, [("stream", Array("true".utf8))]) ?? body
        default:
            return body
        }
    }
}

extension RawSpan {
    func isText(_ text: StaticString) -> Bool {
        byteCount == text.utf8CodeUnitCount && withUnsafeBytes { bytes in text.withUTF8Buffer { bytes.elementsEqual($0) } }
    }
}

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
        out.reserveCapacity(1024)
        HeadWriter.request(.post, target: target, into: &out)
        HeadWriter.field("Host", account.origin.authority, into: &out)
        HeadWriter.field("Authorization", account.authorization, into: &out)
        HeadWriter.field("Content-Type", "application/json", into: &out)
        HeadWriter.field("Content-Length", String(bodyCount), into: &out)
        let isChatGPT = account.value.kind == .chatGPT
        if isChatGPT {
            HeadWriter.field("Accept", "text/event-stream", into: &out)
            if let id = account.chatGPTAccountID { HeadWriter.field("chatgpt-account-id", id, into: &out) }
        }
        let isNative = isNative(request.head.fields)
        if !isNative { HeadWriter.field("User-Agent", "codex-lb/\(Version.text)", into: &out) }
        var hasRequestID = false
        request.head.fields.forEachEndToEnd { known, name, value in
            switch known {
            case .host, .authorization, .contentLength, .transferEncoding, .contentType, .contentEncoding, .acceptEncoding, .expect,
                .forwarded, .xForwardedFor, .xForwardedHost, .xForwardedProto, .xRealIP, .trueClientIP, .via,
                .connection, .upgrade:
                return
            // Whose account and quota a request is charged to is the account's choice, and a client's credentials are its own.
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
                hasRequestID = true
            default:
                if name.hasPrefix(ignoringCase: "x-forwarded-") || name.hasPrefix(ignoringCase: "cf-")
                    || name.hasPrefix(ignoringCase: "x-codex-lb-")
                    || name.hasPrefix(ignoringCase: "x-codex-installation-id") || name.hasPrefix(ignoringCase: "proxy-")
                    || name.hasPrefix(ignoringCase: "sec-") || name.hasPrefix(ignoringCase: "access-control-")
                    || name.hasPrefix(ignoringCase: "x-openai-account-")
                {
                    return
                }
                if !isNative, name.hasPrefix(ignoringCase: "x-stainless-") || name.hasPrefix(ignoringCase: "x-openai-client-") { return }
            }
            HeadWriter.field(name, value, into: &out)
        }
        if !hasRequestID { HeadWriter.field("X-Request-Id", request.id, into: &out) }
        HeadWriter.end(into: &out)
        return out
    }

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
