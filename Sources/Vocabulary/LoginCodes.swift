/// What upstreams and the issuer of logins call a login that no time and no second try mends.
public enum LoginCodes {
    public static let dead: Set<String> = closed.union([
        "token_invalidated", "token_expired", "token_revoked", "app_session_terminated", "account_session_expired",
        "account_auth_invalidated", "refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated", "invalid_grant",
    ])
    /// The person's or the workspace's account is closed: no new login to it mends that.
    public static let closed: Set<String> = ["account_deactivated", "account_suspended", "account_deleted", "deactivated_workspace"]
}
