import HTTPWire
import JSONWire
import Vocabulary

/// ChatGPT logins of the demo: what they may use, and their issuer. Access tokens are `demo-NAME-N`; whoever is named `small` has a quota of
/// `smallTurns` turns, the others none to speak of.
struct DemoLogins {
    struct Answer {
        var status: Int
        var json: String
    }

    static let smallTurns = 3
    static let resetSeconds = 3_600

    private var turns: [String: Int] = [:]
    private var usedRefreshTokens: Set<String> = []
    private var lastToken = 0
    private var polls = 0
    /// Names, tokens and polls come from outside: no more of them are remembered.
    private static let remembered = 1_000

    /// The name in `Bearer demo-NAME-N`; nil of any other.
    static func name(_ authorization: String?) -> String? {
        guard let authorization, authorization.hasPrefix("Bearer demo-") else { return nil }
        let name = authorization.dropFirst(12).prefix { $0 != "-" }
        return name.isEmpty || name.utf8.count > 64 ? nil : String(name)
    }

    private func usedPercent(_ name: String) -> Int {
        let turns = turns[name] ?? 0
        return name == "small" ? min(100, turns * 100 / Self.smallTurns) : min(99, turns)
    }

    /// A turn is asked for; nil: it may begin.
    mutating func turn(_ name: String) -> Answer? {
        guard usedPercent(name) < 100 else {
            return Answer(
                status: 429,
                json:
                    "{\"error\":{\"message\":\"The usage limit has been reached\",\"type\":\"usage_limit_reached\",\"code\":\"usage_limit_reached\",\"param\":null,\"resets_in_seconds\":\(Self.resetSeconds)}}"
            )
        }
        if turns.count < Self.remembered || turns[name] != nil { turns[name, default: 0] += 1 }
        return nil
    }

    func quotaFields(_ name: String, into out: inout [UInt8]) {
        HeadWriter.field("x-codex-primary-used-percent", usedPercent(name), into: &out)
        HeadWriter.field("x-codex-primary-window-minutes", 300, into: &out)
        HeadWriter.field("x-codex-primary-reset-after-seconds", Self.resetSeconds, into: &out)
    }

    func usage(_ name: String) -> Answer {
        Answer(
            status: 200,
            json:
                "{\"plan_type\":\"\(name == "small" ? "plus" : "pro")\",\"rate_limit\":{\"primary_window\":{\"used_percent\":\(usedPercent(name)),\"limit_window_seconds\":18000,\"reset_after_seconds\":\(Self.resetSeconds)},\"secondary_window\":{\"used_percent\":\(usedPercent(name) / 10),\"limit_window_seconds\":604800,\"reset_after_seconds\":500000}}}"
        )
    }

    // MARK: The issuer

    mutating func deviceCode() -> Answer {
        polls = 0
        return Answer(status: 200, json: "{\"device_auth_id\":\"demo\",\"user_code\":\"DEMO-CODE\",\"interval\":\"1\",\"expires_in\":900}")
    }

    /// Nobody enters the code: it is taken as entered at the second look.
    mutating func devicePoll() -> Answer {
        polls += 1
        return polls < 2
            ? Answer(status: 403, json: "{\"error\":\"authorization_pending\"}")
            : Answer(status: 200, json: "{\"authorization_code\":\"demo-code\",\"code_verifier\":\"demo\"}")
    }

    /// A refresh token works once, as OpenAI's do.
    mutating func token(_ body: RawSpan) -> Answer {
        guard let place = JSONScan.find(body, "refresh_token"), let token = JSONScan.string(body, place) else {
            return tokens("guest")  // a code of the browser, or of the device
        }
        guard token.hasPrefix("demo-refresh-"), usedRefreshTokens.insert(token).inserted else {
            return Answer(
                status: 401, json: "{\"error\":{\"message\":\"The refresh token was used\",\"code\":\"refresh_token_reused\"}}")
        }
        if usedRefreshTokens.count > Self.remembered { usedRefreshTokens = [token] }
        return tokens(String(token.dropFirst(13).prefix { $0 != "-" }.prefix(64)))
    }

    private mutating func tokens(_ name: String) -> Answer {
        lastToken += 1
        return Answer(
            status: 200,
            json:
                "{\"access_token\":\"demo-\(name)-\(lastToken)\",\"refresh_token\":\"demo-refresh-\(name)-\(lastToken)\",\"id_token\":\"\(DemoUpstream.idToken(name))\"}"
        )
    }
}
