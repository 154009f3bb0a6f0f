import Foundation

/// The issuer of ChatGPT logins on a fake upstream: `/oauth/token` gives new tokens for a refresh token, once. One that is used again is refused,
/// as OpenAI does it, and counted.
public final class FakeIssuer: @unchecked Sendable {  // every access holds `lock`
    private let lock = NSLock()
    private var valid: Set<String> = []
    private var refreshTokens: Set<String> = []
    private var counts = (refreshes: 0, reuses: 0)
    private var answer: Behaviour?
    private var lifeSeconds: Double = 3_600

    /// Turns of the upstream's ChatGPT accounts are answered for tokens that this issuer has given, and with 401 for others.
    public init(on upstream: FakeUpstream) {
        upstream.always(path: "/oauth/token", .chosen { [weak self] in self?.refresh($0) ?? .close })
        upstream.always(
            path: "/backend-api/codex/responses",
            .chosen { [weak self] request in
                self?.read { $0.valid.contains(request.bearer) } ?? false ? .ok : .error(401, code: "token_expired")
            })
    }

    private func read<T>(_ body: (FakeIssuer) -> T) -> T {
        lock.lock()
        defer { lock.unlock() }
        return body(self)
    }

    /// Refreshes that gave new tokens.
    public var refreshes: Int { read { $0.counts.refreshes } }
    /// Tries with a token that had been used.
    public var reuses: Int { read { $0.counts.reuses } }
    /// What every refresh gets from now on; nil: new tokens.
    public func always(_ answer: Behaviour?) { read { $0.answer = answer } }

    /// A login as Codex keeps it, whose access token ends so many seconds from now and was made `ageSeconds` ago.
    public func login(_ name: String, ageSeconds: Double = 0, lifeSeconds: Double = 3_600, isGood: Bool = true) -> String {
        let (access, refresh) = (Self.token(name, age: ageSeconds, life: lifeSeconds), "r-\(UUID().uuidString)")
        read {
            if isGood { $0.valid.insert(access) }
            $0.refreshTokens.insert(refresh)
        }
        let id = Self.jwt(
            "{\"email\":\"\(name)\",\"https://api.openai.com/auth\":{\"chatgpt_account_id\":\"w-\(name)\",\"chatgpt_user_id\":\"p-\(name)\"}}")
        return
            "{\"tokens\":{\"access_token\":\"\(access)\",\"refresh_token\":\"\(refresh)\",\"id_token\":\"\(id)\",\"account_id\":\"w-\(name)\"}}"
    }

    private static func jwt(_ claims: String) -> String {
        let middle = Data(claims.utf8).base64EncodedString().replacingOccurrences(of: "=", with: "").replacingOccurrences(of: "+", with: "-")
            .replacingOccurrences(of: "/", with: "_")
        return "eyJhbGciOiJub25lIn0.\(middle).c2ln"
    }

    private static func token(_ name: String, age: Double, life: Double) -> String {
        let now = Date().timeIntervalSince1970
        return jwt("{\"jti\":\"\(UUID().uuidString)\",\"sub\":\"\(name)\",\"iat\":\(Int(now - age)),\"exp\":\(Int(now + life))}")
    }

    private func refresh(_ request: RecordedRequest) -> Behaviour {
        read { me in
            if let answer = me.answer { return answer }
            let token = request.json["refresh_token"] as? String ?? ""
            guard request.json["grant_type"] as? String == "refresh_token", me.refreshTokens.remove(token) != nil else {
                me.counts.reuses += 1
                return .error(401, code: "refresh_token_reused")
            }
            me.counts.refreshes += 1
            let (access, next) = (Self.token("renewed", age: 0, life: me.lifeSeconds), "r-\(UUID().uuidString)")
            me.valid = [access]
            me.refreshTokens.insert(next)
            return .status(200, "{\"access_token\":\"\(access)\",\"refresh_token\":\"\(next)\",\"id_token\":\"\(access)\"}")
        }
    }
}
