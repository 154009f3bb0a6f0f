internal import Bytes
internal import JSONWire
public import Vocabulary

/// When a ChatGPT login's tokens are to be renewed: long before they end, so that a turn rarely has to wait for it.
public enum LoginAge {
    /// Half of the access token's life, as its claims `iat` and `exp` have it, but no later than `Limits.loginAgeSeconds` after it was made. A
    /// token that says nothing is as old as the account's last change. Nil: there is nothing to renew it with.
    public static func renewal(of account: Account) -> WallTime? {
        guard account.kind == .chatGPT, let token = account.credentials.refreshToken, !token.isEmpty else { return nil }
        let claims = claims(account.credentials.bearer)
        let made = max(claims.issued ?? account.changedAt, WallTime(milliseconds: 0))
        let latest = made.adding(milliseconds: Int64(Limits.loginAgeSeconds) * 1000)
        guard let end = claims.expires, end > made else { return latest }
        return min(latest, WallTime(milliseconds: made.milliseconds + (end.milliseconds - made.milliseconds) / 2))
    }

    /// Of a JSON Web Token (RFC 7519 §4.1.4, §4.1.6); read, not verified: the upstream does that.
    static func claims(_ token: String) -> (issued: WallTime?, expires: WallTime?) {
        let parts = token.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count == 3, let bytes = Base64.url.decode(parts[1]) else { return (nil, nil) }
        let json = bytes.span.bytes
        func time(_ name: StaticString) -> WallTime? {
            guard let place = JSONScan.find(json, name), let seconds = JSONScan.int(json, place), (1...99_999_999_999).contains(seconds)
            else {
                return nil
            }
            return WallTime(milliseconds: seconds * 1000)
        }
        return (time("iat"), time("exp"))
    }
}

/// What the issuer's answer to a refresh says.
public enum Renewal: Sendable, Equatable {
    case renewed(Account.Credentials)
    /// No time and no second try mends it: somebody must log in again.
    case refused(String)
    /// Worth another try later.
    case failed(String)

    /// Beside those of logins: the issuer does not know us, or does not let us.
    private static let clientCodes: Set<String> = ["invalid_client", "unauthorized_client"]

    /// Reads an answer of `/oauth/token` (RFC 6749 §5). What it leaves out stays as it was (§6).
    public init(status: Int, body: [UInt8], old: Account.Credentials) {
        let json = body.span.bytes
        func text(_ path: StaticString...) -> String? {
            var place: Range<Int>? = nil
            for name in path {
                guard let next = place.map({ JSONScan.find(json, in: $0, name) }) ?? JSONScan.find(json, name) else { return nil }
                place = next
            }
            return place.flatMap { JSONScan.string(json, $0) }.flatMap { $0.isEmpty ? nil : $0 }
        }
        if status == 200, let access = text("access_token") {
            var new = old
            new.bearer = access
            new.refreshToken = text("refresh_token") ?? old.refreshToken
            new.idToken = text("id_token") ?? old.idToken
            guard (new.bearer + (new.refreshToken ?? "") + (new.idToken ?? "")).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
                self = .failed("its answer has tokens with characters that no token has")
                return
            }
            self = .renewed(new)
            return
        }
        // OpenAI's issuer puts the code into an object, OAuth (RFC 6749 §5.2) says it at the top.
        let code = text("error", "code") ?? text("error", "type") ?? text("error") ?? text("code") ?? ""
        if (400..<500).contains(status), LoginCodes.dead.contains(code) || Self.clientCodes.contains(code) {
            self = .refused(code)
        } else {
            self = .failed(status == 200 ? "its answer has no access token" : "status \(status)\(code.isEmpty ? "" : " \(code)")")
        }
    }
}

/// What is sent to the issuer, in the form that Codex's own client sends it.
public enum RenewalRequest {
    public static func body(clientID: String, refreshToken: String) -> [UInt8] {
        var out = Array("{\"client_id\":".utf8)
        JSONWriter.string(clientID, into: &out)
        out += ",\"grant_type\":\"refresh_token\",\"refresh_token\":".utf8
        JSONWriter.string(refreshToken, into: &out)
        out += ",\"scope\":\"openid profile email\"}".utf8
        return out
    }
}
