import JSONWire
public import Vocabulary

/// Errors in the shapes that OpenAI's clients read.
public enum ErrorEnvelope {
    /// `{"error":{"message","type","code","param"[,"resets_at"][,"resets_in_seconds"]}}`
    public static func body(_ error: ProxyError) -> [UInt8] {
        var out: [UInt8] = Array("{\"error\":".utf8)
        object(error, into: &out)
        out += "}".utf8
        return out
    }

    static func object(_ error: ProxyError, into out: inout [UInt8]) {
        out += "{\"message\":".utf8
        JSONWriter.string(error.message, into: &out)
        out += ",\"type\":".utf8
        JSONWriter.string(error.type, into: &out)
        out += ",\"code\":".utf8
        JSONWriter.string(error.code, into: &out)
        out += ",\"param\":".utf8
        if let param = error.param { JSONWriter.string(param, into: &out) } else { out += "null".utf8 }
        if let at = error.resetsAt {
            out += ",\"resets_at\":\(at)".utf8
            if let seconds = error.retryAfterSeconds { out += ",\"resets_in_seconds\":\(seconds)".utf8 }
        }
        out += "}".utf8
    }

    /// A whole `response.failed` event; `createdFirst` puts the `response.created` before it that SDKs insist on.
    public static func failedEvents(_ error: ProxyError, responseID: String, model: String, createdSeconds: Int64, createdFirst: Bool)
        -> [UInt8]
    {
        var out: [UInt8] = []
        func response(_ status: String, _ sequence: Int, withError: Bool) {
            out += "\"sequence_number\":\(sequence),\"response\":{\"id\":".utf8
            JSONWriter.string(responseID, into: &out)
            out += ",\"object\":\"response\",\"created_at\":\(createdSeconds),\"status\":\"\(status)\",\"model\":".utf8
            JSONWriter.string(model, into: &out)
            out += ",\"output\":[],\"error\":".utf8
            if withError {
                out += "{\"code\":".utf8
                JSONWriter.string(error.code, into: &out)
                out += ",\"message\":".utf8
                JSONWriter.string(error.message, into: &out)
                if let at = error.resetsAt { out += ",\"resets_at\":\(at)".utf8 }
                out += "}".utf8
            } else {
                out += "null".utf8
            }
            out += "}}\n\n".utf8
        }
        if createdFirst {
            out += "event: response.created\ndata: {\"type\":\"response.created\",".utf8
            response("in_progress", 0, withError: false)
        }
        out += "event: response.failed\ndata: {\"type\":\"response.failed\",".utf8
        response("failed", createdFirst ? 1 : 0, withError: true)
        return out
    }

    /// `data: {"error":…}` and `data: [DONE]`: how a chat stream fails.
    public static func chatFailure(_ error: ProxyError) -> [UInt8] {
        var out: [UInt8] = Array("data: ".utf8)
        out += body(error)
        out += "\n\ndata: [DONE]\n\n".utf8
        return out
    }

    /// What a client gets for a failure that no HTTP answer of the upstream stands for.
    public static func error(for failure: Failure) -> ProxyError {
        switch failure {
        case .notConnected(let why):
            upstream(502, "upstream_unavailable", "The upstream could not be reached: \(why)")
        case .untrusted(let why):
            upstream(502, "upstream_unavailable", "The upstream's certificate could not be verified: \(why)")
        case .exhausted(let why):
            ProxyError(
                status: 503, code: "server_overloaded", type: "server_error",
                message: "codex-lb has too much to do: \(why). Try again in 1s",
                origin: .ourselves, retryAfterSeconds: 1)
        case .timedOut:
            upstream(502, "upstream_request_timeout", "The upstream did not answer in time")
        case .broken(let why):
            upstream(502, "upstream_unavailable", "The connection to the upstream was lost before it answered: \(why)")
        case .refused(let r), .failedEvent(let r):
            ProxyError(
                status: r.impliedStatus >= 400 ? r.impliedStatus : status(forCode: r.code, type: r.type),
                code: r.code.isEmpty ? "upstream_error" : r.code,
                type: r.type.isEmpty ? "server_error" : r.type, message: r.message.isEmpty ? "The upstream failed" : r.message,
                param: r.param, origin: .upstream,
                retryAfterSeconds: r.waits.lazy.compactMap {
                    if case .milliseconds(let span) = $0 { max(1, (span + 999) / 1000) } else { nil }
                }
                .first,
                resetsAt: r.waits.lazy.compactMap { if case .until(let time) = $0 { time.seconds } else { nil } }.first)
        }
    }

    private static func upstream(_ status: Int, _ code: String, _ message: String) -> ProxyError {
        ProxyError(status: status, code: code, type: "server_error", message: message, origin: .upstream)
    }

    /// The HTTP status of an error that came as an event (behaviour report 1.2).
    public static func status(forCode code: String, type: String) -> Int {
        switch code {
        case "no_accounts", "no_plan_support_for_model", "quota_exhausted": return 503
        case "server_is_overloaded", "slow_down", "overloaded_error", "model_overloaded": return 503
        case "model_not_found": return 404
        case _ where FailoverTable.isRequestCode(code): return 400
        case _
        where FailoverTable.quotaCodes.contains(code) || FailoverTable.rateCodes.contains(code) || FailoverTable.modelCodes.contains(code):
            return 429
        case _ where LoginCodes.dead.contains(code): return 401
        case "invalid_api_key", "invalid_authentication", "token_invalidated": return 401
        default: break
        }
        if type.contains("authentication") { return 401 }
        if type.contains("invalid_request") { return 400 }
        if type.contains("rate") || type.contains("usage") || type.contains("quota") { return 429 }
        return 502
    }
}
