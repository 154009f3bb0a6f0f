/// What counted against an account last, in one word that all processes can read: when, how, with which status and code.
public struct Trouble: Sendable, Equatable, CustomStringConvertible {
    public enum Kind: UInt8, Sendable, CaseIterable {
        /// No connection.
        case unreachable
        /// Its certificate is not trusted.
        case untrusted
        /// No answer in time.
        case silent
        /// The connection was lost.
        case broken
        /// Its upstream's own word.
        case refused
        /// A quota window is used up, as its upstream's figures say.
        case exhausted
        /// Its issuer's word on a refresh.
        case issuer
    }

    public var at: WallTime
    public var kind: Kind
    /// Of the answer; 0 where there was none.
    public var status: Int
    /// One of `codes`; else empty.
    public var code: String

    public init(at: WallTime, _ kind: Kind, status: Int = 0, code: String = "") {
        (self.at, self.kind) = (at, kind)
        self.status = (0..<1024).contains(status) ? status : 0
        self.code = Self.numbers[code] == nil ? "" : code
    }

    public var description: String {
        switch kind {
        case .unreachable: "no connection"
        case .untrusted: "certificate not trusted"
        case .silent: "no answer in time"
        case .broken: "connection lost"
        case .exhausted: "quota used up"
        case .refused, .issuer:
            (kind == .issuer ? "issuer: " : "") + [status == 0 ? "" : String(status), code].filter { !$0.isEmpty }.joined(separator: " ")
        }
    }

    // 42 bits of milliseconds, 4 of the kind and one more, 10 of the status, 8 of the code.
    public var word: UInt64 {
        let time = UInt64(clamping: at.milliseconds) & (1 << 42 - 1)
        return time << 22 | UInt64(kind.rawValue + 1) << 18 | UInt64(status) << 8 | UInt64(Self.numbers[code] ?? 0)
    }
    public init?(word: UInt64) {
        guard let kind = Kind(rawValue: UInt8(truncatingIfNeeded: word >> 18 & 15) &- 1) else { return nil }
        let number = Int(word & 0xFF)
        self.init(
            at: WallTime(milliseconds: Int64(word >> 22)), kind, status: Int(word >> 8 & 0x3FF),
            code: number > 0 && number <= Self.codes.count ? Self.codes[number - 1] : "")
    }

    /// Codes that a word can hold. What stands in memory lives as long as its layout; elsewhere codes are written out.
    public static let codes = [
        "account_auth_invalidated", "account_deactivated", "account_deleted", "account_session_expired", "account_suspended",
        "app_session_terminated", "authentication_error", "bad_gateway", "billing_hard_limit_reached", "billing_not_active",
        "deactivated_workspace", "insufficient_balance", "insufficient_credits", "insufficient_quota", "invalid_api_key",
        "invalid_authentication", "invalid_client", "invalid_grant", "model_cooldown", "model_limit_reached", "model_rate_limit_exceeded",
        "overloaded_error", "payment_required", "quota_exceeded", "rate_limit_error", "rate_limit_exceeded", "rate_limit_reached",
        "refresh_token_expired", "refresh_token_invalidated", "refresh_token_reused", "server_error", "server_is_overloaded",
        "token_expired", "token_invalidated", "token_revoked", "too_many_requests", "unauthorized_client", "upstream_error",
        "usage_limit_reached", "usage_not_included", "RESOURCE_EXHAUSTED",
    ]
    private static let numbers = Dictionary(uniqueKeysWithValues: codes.enumerated().map { ($1, UInt8($0 + 1)) })
}
