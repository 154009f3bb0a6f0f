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
        /// No quota: skipped for so long whatever happens.
        case limited(milliseconds: Int)
        /// Its credentials are refused.
        case unauthorized(milliseconds: Int)
    }
    public var next: Next
    public var penalty: Penalty
}

public enum FailoverTable {
    static let rateCodes: Set<String> = ["rate_limit_exceeded", "usage_limit_reached"]
    static let quotaCodes: Set<String> = ["insufficient_quota", "usage_not_included", "quota_exceeded"]
    static let authCodes: Set<String> = [
        "token_invalidated", "token_expired", "invalid_api_key", "invalid_authentication", "app_session_terminated",
        "account_session_expired",
        "account_auth_invalidated", "account_deactivated", "account_suspended", "account_deleted", "refresh_token_expired",
        "refresh_token_reused", "refresh_token_invalidated", "invalid_grant",
    ]
    /// Types that some upstreams send where others send codes.
    static let namedTypes: Set<String> = rateCodes.union(quotaCodes)

    static let rateCooldownMilliseconds = 30_000
    static let quotaCooldownMilliseconds = 120_000
    static let unauthorizedCooldownMilliseconds = 60_000
    static let errorCooldownMilliseconds = 5_000
    static let cooldownSecondsMax: Int64 = 366 * 86_400

    /// Decides on one failure. `attemptsOnAccount` counts this one; `jitter` is in -1 … 1.
    public static func verdict(_ failure: Failure, attemptsOnAccount: Int, now: WallTime, jitter: Double) -> Verdict {
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
            if let penalty = limit(refusal, now: now) { return Verdict(next: .nextAccount, penalty: penalty) }
            if authCodes.contains(refusal.code) {
                return Verdict(next: .nextAccount, penalty: .unauthorized(milliseconds: unauthorizedCooldownMilliseconds))
            }
            return Verdict(next: .surface, penalty: .none)  // the request was accepted: never replayed
        case .refused(let refusal):
            if let penalty = limit(refusal, now: now) { return Verdict(next: .nextAccount, penalty: penalty) }
            switch refusal.status {
            case 401:
                return Verdict(next: .nextAccount, penalty: .unauthorized(milliseconds: unauthorizedCooldownMilliseconds))
            case 402 where authCodes.contains(refusal.code), 403 where authCodes.contains(refusal.code):
                return Verdict(next: .nextAccount, penalty: .unauthorized(milliseconds: unauthorizedCooldownMilliseconds))
            case 500:
                if attemptsOnAccount < Limits.sameAccountAttemptsMax {
                    let wait = 200.0 * Double(1 << (attemptsOnAccount - 1)) * (1 + 0.1 * jitter)
                    return Verdict(next: .sameAccount(afterMilliseconds: Int(wait)), penalty: .none)
                }
                return Verdict(next: .nextAccount, penalty: .errors(milliseconds: 30_000))
            case 502, 503, 504:
                return Verdict(
                    next: .nextAccount,
                    penalty: .errors(
                        milliseconds: (refusal.retryAfterSeconds ?? 0) > 0
                            ? min(300, refusal.retryAfterSeconds!) * 1000 : errorCooldownMilliseconds))
            case 400 where refusal.message.contains("model is not supported when using Codex"):
                return Verdict(next: attemptsOnAccount < 2 ? .nextAccount : .surface, penalty: .none)
            default:
                return Verdict(next: .surface, penalty: .none)
            }
        }
    }

    /// The cooldown that a rate or quota refusal asks for; nil when it is none.
    static func limit(_ refusal: UpstreamRefusal, now: WallTime) -> Verdict.Penalty? {
        let isQuota = quotaCodes.contains(refusal.code)
        guard refusal.status == 429 || rateCodes.contains(refusal.code) || isQuota else { return nil }
        var wait = isQuota ? quotaCooldownMilliseconds : rateCooldownMilliseconds
        // Whatever number an upstream sends, the sum stays in range.
        if let at = refusal.resetsAt, at > now.seconds {
            wait = Int(min(at - now.seconds, cooldownSecondsMax)) * 1000 - Int(now.milliseconds % 1000)
        } else if let seconds = refusal.resetsInSeconds, seconds > 0 {
            wait = Int(min(seconds, cooldownSecondsMax)) * 1000
        } else if let seconds = refusal.retryAfterSeconds, seconds >= 0 {
            wait = max(1, min(seconds, Int(cooldownSecondsMax))) * 1000
        } else if let milliseconds = delay(inMessage: refusal.message) {
            wait = milliseconds
        }
        return .limited(milliseconds: min(wait, Int(cooldownSecondsMax) * 1000))
    }

    /// "try again in 6m0s", "1.5s", "500ms", "1h2m3s": milliseconds.
    static func delay(inMessage message: String) -> Int? {
        let text = Array(message.lowercased().utf8)
        let mark = Array("try again in ".utf8)
        guard text.count > mark.count,
            let start = (0...(text.count - mark.count)).first(where: { text[$0..<($0 + mark.count)].elementsEqual(mark) })
        else { return nil }
        var total = 0.0
        var at = start + mark.count
        var found = false
        while at < text.count {
            let from = at
            while at < text.count, text[at] == UInt8(ascii: ".") || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(text[at]) { at += 1 }
            guard at > from, let number = Double(String(decoding: text[from..<at], as: UTF8.self)) else { break }
            let unitStart = at
            while at < text.count, (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(text[at]) { at += 1 }
            switch String(decoding: text[unitStart..<at], as: UTF8.self) {
            case "ms": total += min(number, 1e12)
            case "s": total += min(number, 1e9) * 1000
            case "m": total += min(number, 1e8) * 60_000
            case "h": total += min(number, 1e6) * 3_600_000
            default: return found ? Int(total) : nil
            }
            found = true
        }
        return found ? Int(total) : nil
    }
}
