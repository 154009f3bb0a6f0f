import Testing
import Vocabulary

@testable import Admission

@Suite struct LoginAgeTests {
    /// Base64url of `claims`, by the alphabet of RFC 4648 §5.
    private func token(_ claims: String) -> String {
        let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
        let bits = claims.utf8.flatMap { byte in (0..<8).map { byte >> (7 - $0) & 1 } }
        var text = ""
        for start in stride(from: 0, to: bits.count, by: 6) {
            let six = (0..<6).map { start + $0 < bits.count ? bits[start + $0] : 0 }
            text.append(alphabet[Int(six.reduce(0) { $0 << 1 | $1 })])
        }
        return "e30.\(text).sig"
    }
    private func account(_ bearer: String, refresh: String? = "r", kind: Account.Kind = .chatGPT) -> Account {
        Account(
            id: 1, slot: 0, name: "a", kind: kind, state: .active, baseURL: "https://x",
            credentials: .init(bearer: bearer, refreshToken: refresh),
            createdAt: WallTime(milliseconds: 0), changedAt: WallTime(milliseconds: 1_000_000_000))
    }
    private let week: Int64 = 8 * 24 * 3_600_000

    @Test("Half of its life, at most eight days, from when it was made")
    func renewal() {
        func at(_ claims: String) -> Int64? { LoginAge.renewal(of: account(token(claims)))?.milliseconds }
        #expect(at("{\"iat\":1000,\"exp\":5000}") == 3_000_000)
        #expect(at("{\"iat\":1000,\"exp\":\(1000 + 20 * 86_400)}") == 1_000_000 + week)
        #expect(at("{\"exp\":1000500}") == 1_000_250_000, "made when the account changed last")
        for claims in ["{}", "{\"iat\":9,\"exp\":\"x\"}", "{\"iat\":9,\"exp\":1e30}", "{\"iat\":50,\"exp\":7}", "[]", "nonsense"] {
            let made: Int64 = claims.contains("\"iat\":9") ? 9_000 : claims.contains("\"iat\":50") ? 50_000 : 1_000_000_000
            #expect(at(claims) == made + week, "\(claims)")
        }
        #expect(LoginAge.renewal(of: account("opaque"))?.milliseconds == 1_000_000_000 + week)
        #expect(LoginAge.renewal(of: account("opaque", refresh: nil)) == nil && LoginAge.renewal(of: account("opaque", refresh: "")) == nil)
        #expect(LoginAge.renewal(of: account("sk", kind: .apiKey)) == nil)
        // Times of a damaged row end no process.
        for time in [Int64.min, -1, .max] {
            var damaged = account(token("{\"exp\":5000}"))
            damaged.changedAt = WallTime(milliseconds: time)
            #expect(LoginAge.renewal(of: damaged) != nil)
            #expect(WallTime(milliseconds: 5).after(WallTime(milliseconds: time)).milliseconds >= 5)
        }
    }

    private static let old = Account.Credentials(bearer: "a0", refreshToken: "r0", idToken: "i0", chatGPTAccountID: "w")

    @Test(
        "What the issuer's answers mean",
        arguments: [
            (200, "{\"access_token\":\"a\",\"refresh_token\":\"r\",\"id_token\":\"i\"}", "renewed a r i"),
            (200, "{\"access_token\":\"a\",\"token_type\":\"bearer\"}", "renewed a r0 i0"),  // RFC 6749 §6: the old refresh token goes on
            (200, "{\"access_token\":\"\"}", "failed"), (200, "{}", "failed"), (200, "<html>", "failed"), (200, "", "failed"),
            (200, "{\"access_token\":\"a\\r\\nX: y\"}", "failed"),
            (400, "{\"error\":\"invalid_grant\",\"error_description\":\"x\"}", "refused invalid_grant"),
            (401, "{\"error\":{\"code\":\"refresh_token_reused\",\"message\":\"x\"}}", "refused refresh_token_reused"),
            (401, "{\"error\":{\"type\":\"token_expired\"}}", "refused token_expired"),
            (401, "{\"code\":\"app_session_terminated\"}", "refused app_session_terminated"),
            (400, "{\"error\":\"invalid_request\"}", "failed"), (401, "", "failed"), (403, "<html>blocked", "failed"),
            (429, "{\"error\":\"slow_down\"}", "failed"),
            (500, "{\"error\":\"invalid_grant\"}", "failed"), (503, "", "failed"),
        ])
    func answers(_ status: Int, _ body: String, _ expected: String) {
        let told: String
        switch Renewal(status: status, body: Array(body.utf8), old: Self.old) {
        case .renewed(let new):
            #expect(new.chatGPTAccountID == "w")
            told = "renewed \(new.bearer) \(new.refreshToken ?? "") \(new.idToken ?? "")"
        case .refused(let code): told = "refused \(code)"
        case .failed: told = "failed"
        }
        #expect(told == expected)
    }

    @Test("A refresh token is quoted as JSON has it")
    func request() {
        let body = String(decoding: RenewalRequest.body(clientID: "app", refreshToken: "a\"b\\"), as: UTF8.self)
        #expect(
            body
                == "{\"client_id\":\"app\",\"grant_type\":\"refresh_token\",\"refresh_token\":\"a\\\"b\\\\\",\"scope\":\"openid profile email\"}"
        )
    }
}
