import Bytes
internal import JSONWire
internal import Sealing
public import Vocabulary

/// Whose a ChatGPT login is: the person and the workspace, as its id token has them. The claims are read, not verified: the upstream does that.
public struct LoginIdentity: Sendable, Equatable {
    /// The value of `chatgpt-account-id`.
    public var workspace: String
    /// The user's id, or what comes nearest to it.
    public var person: String

    public init(_ credentials: Account.Credentials) {
        let claims = Self.claims(credentials.idToken ?? "")
        workspace = credentials.chatGPTAccountID ?? Self.workspace(claims) ?? ""
        let auth = claims?["https://api.openai.com/auth"]
        person =
            [auth?["chatgpt_user_id"], auth?["user_id"], claims?["sub"], claims?["email"]].lazy.compactMap { $0?.stringValue }
            .first { !$0.isEmpty } ?? ""
    }

    /// Somebody of whom nothing is known is nobody's double.
    public func isSame(as other: LoginIdentity) -> Bool { !person.isEmpty && self == other }

    /// The same of another login's credentials, whose token is read only where its workspace is this one's or stands in it.
    func isOf(_ credentials: Account.Credentials) -> Bool {
        credentials.chatGPTAccountID ?? workspace == workspace && isSame(as: LoginIdentity(credentials))
    }

    /// The e-mail address of an id token and the workspace it belongs to.
    public static func facts(ofToken token: String) -> (email: String?, workspace: String?) {
        let claims = claims(token)
        return (claims?["email"]?.stringValue, workspace(claims))
    }

    /// The plan that an id token names.
    public static func plan(ofToken token: String) -> Plan? {
        claims(token)?["https://api.openai.com/auth"]?["chatgpt_plan_type"]?.stringValue.flatMap { Plan(named: $0) }
    }

    private static func workspace(_ claims: JSONValue?) -> String? {
        claims?["https://api.openai.com/auth"]?["chatgpt_account_id"]?.stringValue.flatMap { $0.isEmpty ? nil : $0 }
    }

    /// The middle part of a JSON Web Token (RFC 7519 §3); nil when it isn't one.
    private static func claims(_ token: String) -> JSONValue? {
        let parts = token.utf8.split(separator: UInt8(ascii: "."), maxSplits: 2, omittingEmptySubsequences: false)
        guard parts.count >= 2, let bytes = Base64.url.decode(Substring(parts[1])) else { return nil }
        return try? JSONValue(parsing: bytes.span.bytes)  // a token without readable claims just tells nothing
    }
}
