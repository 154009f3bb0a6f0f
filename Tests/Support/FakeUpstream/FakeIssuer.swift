import Foundation

/// The issuer of ChatGPT logins on a fake upstream: `/oauth/token` gives new tokens for a refresh token, once. One that is used again is refused,
/// as OpenAI does it, and counted.
public final class FakeIssuer: @unchecked Sendable {  // every access holds `lock`
    private let lock = NSLock()
    private var valid: Set<String> = []
    private var refreshTokens: Set<String> = []
    private var counts = (refreshes: 0, reuses: 0)
    private var answer: Behaviour?
    private var gate: Gate?
    private var lifeSeconds: Double = 3_600
    private var device = (name: "", pending: 0)
    private var browser: String?
    private var sentVerifier: String?

    /// Turns of the upstream's ChatGPT accounts are answered for tokens that this issuer has given, and with 401 for others.
    public init(on upstream: FakeUpstream) {
        upstream.always(path: "/oauth/token", .chosen { [weak self] in self?.refresh($0) ?? .close })
        upstream.always(
            path: "/backend-api/codex/responses",
            .chosen { [weak self] request in
                self?.read { $0.valid.contains(request.bearer) } ?? false ? .ok : .error(401, code: "token_expired")
            })
    }

    /// New tokens are made, and their answer waits for this.
    public func hold(_ gate: Gate) { read { $0.gate = gate } }

    /// Device codes: the first `pending` polls find nobody; then the code is entered, and may be changed for tokens once.
    public func enableDevices(_ upstream: FakeUpstream, name: String, pending: Int) {
        read { $0.device = (name, pending) }
        upstream.always(
            path: "/api/accounts/deviceauth/usercode",
            .chosen { request in
                request.json["client_id"] is String
                    ? .status(200, "{\"device_auth_id\":\"d-1\",\"usercode\":\"ABCD-EFGH\",\"interval\":\"1\",\"expires_in\":60}")
                    : .error(400, code: "x")
            })
        upstream.always(
            path: "/api/accounts/deviceauth/token",
            .chosen { [weak self] request in
                self?.read { me in
                    guard request.json["device_auth_id"] as? String == "d-1", request.json["user_code"] as? String == "ABCD-EFGH" else {
                        return .error(400, code: "x")
                    }
                    me.device.pending -= 1
                    if me.device.pending >= 0 { return .status(403, "{\"error\":\"authorization_pending\"}") }
                    return .status(200, "{\"authorization_code\":\"c/1+2\",\"code_verifier\":\"v=\"}")
                } ?? .close
            })
    }

    /// A browser that comes back with the code `b/1` gets this login.
    public func enableBrowser(name: String) { read { $0.browser = name } }
    /// What came with that code.
    public var verifier: String? { read { $0.sentVerifier } }
    /// Tokens that were given are good no more.
    public func expire() { read { $0.valid = [] } }

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
    public func login(
        _ name: String, ageSeconds: Double = 0, lifeSeconds: Double = 3_600, isGood: Bool = true, workspace: String? = nil
    ) -> String {
        let (access, refresh) = (Self.token(name, age: ageSeconds, life: lifeSeconds), "r-\(UUID().uuidString)")
        read {
            if isGood { $0.valid.insert(access) }
            $0.refreshTokens.insert(refresh)
        }
        let (id, workspace) = (Self.identity(name), workspace ?? "w-\(name)")
        return
            "{\"tokens\":{\"access_token\":\"\(access)\",\"refresh_token\":\"\(refresh)\",\"id_token\":\"\(id)\",\"account_id\":\"\(workspace)\"}}"
    }

    private static func identity(_ name: String) -> String {
        jwt(
            "{\"email\":\"\(name)\",\"https://api.openai.com/auth\":{\"chatgpt_account_id\":\"w-\(name)\",\"chatgpt_user_id\":\"p-\(name)\"}}"
        )
    }

    private static func jwt(_ claims: String) -> String {
        let middle = Data(claims.utf8).base64EncodedString().replacingOccurrences(of: "=", with: "").replacingOccurrences(
            of: "+", with: "-"
        )
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
            if request.header("content-type") == "application/x-www-form-urlencoded" {
                if let name = me.browser, request.text.contains("&code=b%2F1&"),
                    request.text.contains("&redirect_uri=http%3A%2F%2Flocalhost%3A"), request.text.hasSuffix("%2Fauth%2Fcallback")
                {
                    me.sentVerifier = request.text.components(separatedBy: "&code_verifier=").last.map { String($0.prefix { $0 != "&" }) }
                    return me.tokens(name)
                }
                // RFC 6749 §4.1.3, with the characters that a form must not carry as they are.
                guard request.text.contains("grant_type=authorization_code&"), request.text.contains("&code=c%2F1%2B2&code_verifier=v%3D&"),
                    request.text.hasSuffix("%2Fdeviceauth%2Fcallback")
                else { return .error(400, code: "invalid_grant") }
                return me.tokens(me.device.name)
            }
            let token = request.json["refresh_token"] as? String ?? ""
            guard request.json["grant_type"] as? String == "refresh_token", me.refreshTokens.remove(token) != nil else {
                me.counts.reuses += 1
                return .error(401, code: "refresh_token_reused")
            }
            me.counts.refreshes += 1
            let (access, next) = (Self.token("renewed", age: 0, life: me.lifeSeconds), "r-\(UUID().uuidString)")
            me.valid = [access]
            me.refreshTokens.insert(next)
            let tokens = Behaviour.status(200, "{\"access_token\":\"\(access)\",\"refresh_token\":\"\(next)\",\"id_token\":\"\(access)\"}")
            return me.gate.map { gate in Behaviour { [.gate(gate)] + tokens.steps($0) } } ?? tokens
        }
    }

    /// Of a login that was made just now; under `lock`.
    private func tokens(_ name: String) -> Behaviour {
        let (access, next) = (Self.token(name, age: 0, life: lifeSeconds), "r-\(UUID().uuidString)")
        valid.insert(access)
        refreshTokens.insert(next)
        return .status(200, "{\"access_token\":\"\(access)\",\"refresh_token\":\"\(next)\",\"id_token\":\"\(Self.identity(name))\"}")
    }
}
