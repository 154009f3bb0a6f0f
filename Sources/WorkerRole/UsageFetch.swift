import HTTPWire
import Upstream
import Vocabulary

/// The question for a login's figures.
enum UsageFetch {
    static func make(_ pool: UpstreamPool, _ account: RoutedAccount) -> Fetch {
        var fields = account.credentials + [(name: "Accept", value: "application/json")]
        if let id = account.chatGPTAccountID { fields.append(("chatgpt-account-id", id)) }
        return Fetch(
            pool, .init(.get, account.origin, account.target("/wham/usage"), fields: fields), bytesMax: Limits.usageAnswerBytesMax,
            milliseconds: Limits.usageAnswerMilliseconds)
    }
}
