import ArgumentParser
import Vocabulary

/// The address of an upstream as an operator gives it.
enum BaseURL {
    /// Ends of addresses that belong to one request, which is added to a base URL.
    private static let requestPaths = ["/chat/completions", "/responses", "/completions", "/embeddings", "/models"]

    /// `http(s)://HOST[:PORT][/PATH]` without a slash at its end. What can't work is refused: it would be every turn's failure.
    /// `listen`: where this instance serves, for an upstream that is ourselves would be asked for ever.
    static func checked(_ url: String, _ kind: Account.Kind, listen: [String]) throws -> String {
        let example = kind == .apiKey ? "https://api.openai.com/v1" : "https://chatgpt.com/backend-api"
        func refuse(_ why: String) -> ExitCode {
            complain("base URL \"\(url)\": \(why), for example \(example)")
            return ExitCode(2)
        }
        var text = url
        while text.hasSuffix("/") { text.removeLast() }
        let rest = text.hasPrefix("https://") ? text.dropFirst(8) : text.hasPrefix("http://") ? text.dropFirst(7) : ""
        let authority = rest.prefix { $0 != "/" }
        let path = rest.dropFirst(authority.count)
        var (host, port) = (authority, Substring(text.hasPrefix("https://") ? "443" : "80"))
        if let colon = authority.lastIndex(of: ":"), !authority.hasSuffix("]") {
            (host, port) = (authority[..<colon], authority[authority.index(after: colon)...])
        }
        guard !host.isEmpty, !rest.contains("@"), !rest.contains("?"), !rest.contains("#"),
            rest.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }), !host.contains(":") || host.hasPrefix("[")
        else { throw refuse("expected https://HOST[:PORT][/PATH]") }
        guard let number = UInt16(port), number > 0 else { throw refuse("\"\(port)\" is no port from 1 to 65535") }
        let name = host.lowercased()
        guard name != "0.0.0.0", name != "[::]" else {
            throw refuse("\(host) is where to listen, nobody can be reached there; give a host")
        }
        if let end = requestPaths.first(where: { path.lowercased().hasSuffix($0) }) {
            throw refuse("\"\(end)\" is added for each request; give what stands before it")
        }
        if name == "api.openai.com", path != "/v1" { throw refuse("OpenAI's API is at /v1 of this host") }
        if name == "chatgpt.com" || name == "chat.openai.com" {
            guard kind == .chatGPT else {
                throw refuse("ChatGPT takes logins, not API keys: codex-lb accounts import; an API key's base URL is another")
            }
            guard path == "/backend-api" else { throw refuse("ChatGPT's backend is at /backend-api of this host") }
        }
        let isLoopback = name == "localhost" || name.hasPrefix("127.") || name == "[::1]"
        if isLoopback, listen.contains(where: { $0.split(separator: ":").last.flatMap { UInt16($0) } == number }) {
            throw refuse("port \(number) of this host is where codex-lb itself listens")
        }
        return text
    }
}
