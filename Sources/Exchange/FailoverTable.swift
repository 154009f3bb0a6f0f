public import Vocabulary

/// What to do about a failed attempt before the client has seen anything (docs/failover.md is this table in prose).
public struct Verdict: Sendable, Equatable {
    public enum Next: Sendable, Equatable {
        case nextAccount
        /// The same account again, after this many milliseconds.
        case sameAccount(afterMilliseconds: Int)
        /// The client gets the failure.
        case surface
    }
    public enum Penalty: Sendable, Equatable {
        case none
        /// Skipped for so long unless nothing else is left.
        case errors(milliseconds: Int)
        /// No quota: skipped for so long whatever happens, for every model or for the asked one.
        case limited(milliseconds: Int, scope: Scope = .account)
        /// Its credentials are refused.
        case unauthorized(milliseconds: Int)
        /// Its upstream does not know the asked model, or does not let it be used.
        case lacksModel
        /// Its login is dead: only an operator can mend that.
        case reauthRequired(milliseconds: Int)
        /// The person's or the workspace's account is closed.
        case deactivated(milliseconds: Int)

        /// Its login is at fault, whatever was asked of it.
        var isOfLogin: Bool {
            switch self {
            case .unauthorized, .reauthRequired, .deactivated: true
            case .none, .errors, .limited, .lacksModel: false
            }
        }
    }
    public enum Scope: Sendable, Equatable { case account, model }
    public var next: Next
    public var penalty: Penalty
}

public enum FailoverTable {
    static let rateCodes: Set<String> = [
        "rate_limit_exceeded", "usage_limit_reached", "rate_limit_error", "rate_limit_reached", "too_many_requests", "RESOURCE_EXHAUSTED",
    ]
    /// Of one model alone.
    static let modelCodes: Set<String> = ["model_cooldown", "model_rate_limit_exceeded", "model_limit_reached"]
    /// Of an account that does not have the model; another may.
    static let lackingModelCodes: Set<String> = [
        "model_not_found", "model_not_available", "model_not_supported", "unsupported_model", "model_not_allowed", "deployment_not_found",
        "DeploymentNotFound", "no_plan_support_for_model",
    ]
    static let quotaCodes: Set<String> = [
        "insufficient_quota", "usage_not_included", "quota_exceeded", "billing_hard_limit_reached", "billing_not_active",
        "insufficient_credits", "insufficient_balance", "payment_required",
    ]
    static let authCodes: Set<String> = ["invalid_api_key", "invalid_authentication", "authentication_error"]
    /// The request itself is at fault: every account would say the same. Codes that end in `_policy` or `_policy_violation` and those of images
    /// belong to them.
    static let requestCodes: Set<String> = [
        "context_length_exceeded", "invalid_prompt", "invalid_request_error", "invalid_value", "invalid_type", "unsupported_parameter",
        "unsupported_value", "unknown_parameter", "missing_required_parameter", "string_above_max_length", "array_above_max_length",
        "content_filter", "empty_image_file", "failed_to_download_image", "unsupported_image_media_type", "request_too_large",
        "tokens_exceeded_error", "previous_response_not_found",
    ]
    /// Gateways that gave up waiting for an upstream that had the request.
    static let mayBeDoneStatus: Set<Int> = [504, 524, 598, 599]
    /// Gateways that did not get the request to anybody, or got it back.
    static let gatewayStatus: Set<Int> = [502, 503, 520, 521, 522, 523, 525, 526, 527, 529, 530]

    static let rateCooldownMilliseconds = 30_000
    /// A 429 that says nothing but its number: too many requests at once.
    static let burstCooldownMilliseconds = 5_000
    static let quotaCooldownMilliseconds = 120_000
    static let unauthorizedCooldownMilliseconds = 60_000
    static let deadLoginCooldownMilliseconds = 600_000
    static let errorCooldownMilliseconds = 5_000
    static let gatewayCooldownMillisecondsMax = 300_000

    public static func isRequestCode(_ code: String) -> Bool {
        requestCodes.contains(code) || code.hasSuffix("_policy") || code.hasSuffix("_policy_violation") || code.hasPrefix("image_")
            || code.hasPrefix("invalid_image") || code == "invalid_base64_image"
    }

    /// A failure that this request causes on every account: its codes, and limits that the request alone exceeds ("Request too large …
    /// Limit 10000, Requested 20000").
    static func isCausedByRequest(_ refusal: UpstreamRefusal) -> Bool {
        let status = refusal.impliedStatus
        // `invalid_request_error` is also the type of refusals that have nothing to do with the request.
        if isRequestCode(refusal.code), refusal.code != "invalid_request_error" || status < 500 && status != 429 { return true }
        guard [400, 413, 429, 0].contains(status) else { return false }
        let text = refusal.message.cut(utf8: 4096).lowercased()
        if text.contains("request too large") || text.contains("reduce the length of the messages") { return true }
        guard let limit = number(after: "limit", in: text), let requested = number(after: "requested", in: text) else { return false }
        return requested > limit
    }

    /// "The model `x` does not exist or you do not have access to it", "… model is not supported when using Codex with a ChatGPT account".
    static func lacksModel(_ refusal: UpstreamRefusal, _ model: String) -> Bool {
        guard refusal.status < 400 || [400, 403, 404].contains(refusal.status) else { return false }
        if lackingModelCodes.contains(refusal.code) { return true }
        if isRequestCode(refusal.code), refusal.code != "invalid_request_error" { return false }
        let text = refusal.message.cut(utf8: 4096).lowercased()
        let isNamed = model.utf8.count >= 3 && text.contains(model.lowercased()) || refusal.param == "model"
        if refusal.status == 404, isNamed { return true }
        guard isNamed || text.contains("model") else { return false }
        if text.contains("not supported when using codex") || text.contains("not allowed to sample from this model") { return true }
        let isAbout = lackingWords.contains { text.contains($0) }
        return isAbout && (isNamed || text.contains("the model") || text.contains("this model") || text.contains("access to model"))
    }

    private static let lackingWords = [
        "not found", "does not exist", "doesn't exist", "do not have access", "does not have access", "not a valid model", "invalid model",
        "unknown model", "no such model", "is not available", "model is not supported", "unsupported model",
    ]

    private static func number(after mark: String, in text: String) -> Double? {
        // "Rate limit reached … Limit 10000": the first that a number follows. Some write 1,000,000.
        for place in text.ranges(of: mark) {
            let rest = text[place.upperBound...].drop { $0 == " " || $0 == ":" }
            let digits = rest.prefix { $0.isASCII && $0.isNumber || $0 == "," }.filter { $0 != "," }
            if let number = Double(digits) { return number }
        }
        return nil
    }

    /// Decides on one failure. `attemptsOnAccount` counts this one; `jitter` is in -1 … 1; `model` is the one that was asked for.
    public static func verdict(_ failure: Failure, attemptsOnAccount: Int, now: WallTime, jitter: Double, model: String = "") -> Verdict {
        switch failure {
        case .notConnected:
            return Verdict(next: .nextAccount, penalty: .errors(milliseconds: errorCooldownMilliseconds))
        case .exhausted:
            return Verdict(next: .surface, penalty: .none)  // every account would meet the same want
        case .untrusted:
            return Verdict(next: .surface, penalty: .errors(milliseconds: errorCooldownMilliseconds))
        case .timedOut, .broken:
            // The request may have been taken up: sending it again could do the work, and charge for it, twice.
            return Verdict(next: .surface, penalty: .errors(milliseconds: errorCooldownMilliseconds))
        case .failedEvent(let refusal):
            // Beyond these the request was accepted: never replayed.
            return common(refusal, now: now, model: model) ?? Verdict(next: .surface, penalty: .none)
        case .refused(let refusal):
            return common(refusal, now: now, model: model)
                ?? byStatus(refusal, attemptsOnAccount: attemptsOnAccount, now: now, jitter: jitter)
        }
    }

    /// What means the same as a status and as an event.
    private static func common(_ refusal: UpstreamRefusal, now: WallTime, model: String) -> Verdict? {
        let status = refusal.impliedStatus
        let mayTellLogin = refusal.status < 400 || [400, 401, 402, 403].contains(status)
        if mayTellLogin, LoginCodes.dead.contains(refusal.code) {
            let isClosed = LoginCodes.closed.contains(refusal.code)
            return Verdict(
                next: .nextAccount,
                penalty: isClosed
                    ? .deactivated(milliseconds: deadLoginCooldownMilliseconds)
                    : .reauthRequired(milliseconds: deadLoginCooldownMilliseconds))
        }
        if status == 401 || refusal.status != 400 && mayTellLogin && authCodes.contains(refusal.code) {
            return Verdict(next: .nextAccount, penalty: .unauthorized(milliseconds: unauthorizedCooldownMilliseconds))
        }
        if status == 402 || quotaCodes.contains(refusal.code) {
            return Verdict(next: .nextAccount, penalty: .limited(milliseconds: wait(refusal, now, else: quotaCooldownMilliseconds)))
        }
        if lacksModel(refusal, model) { return Verdict(next: .nextAccount, penalty: .lacksModel) }
        if isCausedByRequest(refusal) { return Verdict(next: .surface, penalty: .none) }
        let isModel = modelCodes.contains(refusal.code)
        guard status == 429 || isModel || rateCodes.contains(refusal.code) else { return nil }
        let namesModel = model.utf8.count >= 3 && refusal.message.cut(utf8: 4096).lowercased().contains(model.lowercased())
        return Verdict(
            next: .nextAccount,
            penalty: .limited(
                milliseconds: wait(refusal, now, else: isBare(refusal) ? burstCooldownMilliseconds : rateCooldownMilliseconds),
                scope: isModel || namesModel ? .model : .account))
    }

    /// It has no code of its own.
    private static func isBare(_ refusal: UpstreamRefusal) -> Bool { refusal.code.isEmpty || Int(refusal.code) != nil }

    /// A limit that an account's figures tell of too: when they show room again, it is over.
    public static func isQuota(_ refusal: UpstreamRefusal) -> Bool {
        quotaCodes.contains(refusal.code) || refusal.code == "usage_limit_reached" || refusal.impliedStatus == 402
    }

    /// Of a person's or a workspace's account that is closed.
    public static func isClosed(code: String) -> Bool { LoginCodes.closed.contains(code) }
    public static func isClosed(_ refusal: UpstreamRefusal) -> Bool {
        isClosed(code: refusal.code) || refusal.message.cut(utf8: 4096).lowercased().contains("has been deactivated")
    }

    private static func byStatus(_ refusal: UpstreamRefusal, attemptsOnAccount: Int, now: WallTime, jitter: Double) -> Verdict {
        switch refusal.status {
        case 500:
            if attemptsOnAccount < Limits.sameAccountAttemptsMax {
                let wait = 200.0 * Double(1 << (attemptsOnAccount - 1)) * (1 + 0.1 * jitter)
                return Verdict(next: .sameAccount(afterMilliseconds: Int(wait)), penalty: .none)
            }
            return Verdict(next: .nextAccount, penalty: .errors(milliseconds: 30_000))
        case _ where mayBeDoneStatus.contains(refusal.status):
            return Verdict(next: .surface, penalty: .errors(milliseconds: errorCooldownMilliseconds))
        case _ where gatewayStatus.contains(refusal.status):
            let asked = min(wait(refusal, now, else: errorCooldownMilliseconds), gatewayCooldownMillisecondsMax)
            return Verdict(next: .nextAccount, penalty: .errors(milliseconds: asked))
        default:
            return Verdict(next: .surface, penalty: .none)
        }
    }

    /// What the upstream asks for, the most exact word first.
    private static func wait(_ refusal: UpstreamRefusal, _ now: WallTime, else usual: Int) -> Int {
        refusal.waits.lazy.compactMap { $0.milliseconds(from: now) }.first ?? usual
    }
}
