import ArgumentParser
import Vocabulary

/// The address of an upstream as an operator gives it.
enum BaseURL {
    /// Ends of addresses that belong to one request, which is added to a base URL.
    private static let requestPaths = ["/chat/completions", "/chat", "/responses", "/completions", "/embeddings", "/models"]

    private static func isAlphanumeric(_ c: UInt8) -> Bool { (48...57).contains(c) || (65...90).contains(c & 0xDF) }
    private static func isHex(_ c: UInt8) -> Bool { (48...57).contains(c) || (65...70).contains(c & 0xDF) }

    /// `http(s)://HOST[:PORT][/PATH][?QUERY]` without a slash at its path's end. What can't work is refused: it would be every turn's failure.
    /// `listen`: where this instance serves, for an upstream that is ourselves would be asked for ever.
    static func checked(_ url: String, _ kind: Account.Kind, listen: [String]) throws -> String {
        let example = kind == .apiKey ? "https://api.openai.com/v1" : "https://chatgpt.com/backend-api"
        func refuse(_ why: String) -> ExitCode {
            complain("base URL \"\(url)\": \(why), for example \(example)")
            return ExitCode(2)
        }
        var text = String(url.prefix { $0 != "?" })
        let query = url.dropFirst(text.count)
        while text.hasSuffix("/") { text.removeLast() }
        let rest = text.hasPrefix("https://") ? text.dropFirst(8) : text.hasPrefix("http://") ? text.dropFirst(7) : ""
        let authority = rest.prefix { $0 != "/" }
        let path = rest.dropFirst(authority.count)
        var (host, port) = (authority, Substring(text.hasPrefix("https://") ? "443" : "80"))
        if let colon = authority.lastIndex(of: ":"), !authority.hasSuffix("]") {
            (host, port) = (authority[..<colon], authority[authority.index(after: colon)...])
        }
        guard !host.isEmpty, !rest.contains("@"), !url.contains("#"), query != "?",
            (rest + query).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }), !host.contains(":") || host.hasPrefix("[")
        else { throw refuse("expected https://HOST[:PORT][/PATH]") }
        let isAddress =
            host.hasPrefix("[") && host.hasSuffix("]") && host.dropFirst().dropLast().utf8.allSatisfy { isHex($0) || $0 == 58 || $0 == 46 }
        let isName =
            host.utf8.allSatisfy { isAlphanumeric($0) || $0 == 45 || $0 == 46 || $0 == 95 } && host.utf8.contains { isAlphanumeric($0) }
        guard isAddress || isName else { throw refuse("\"\(host)\" is no host") }
        let octets = host.split(separator: ".", omittingEmptySubsequences: false)
        if host.utf8.allSatisfy({ (48...57).contains($0) || $0 == 46 }), octets.count != 4 || !octets.allSatisfy({ UInt8($0) != nil }) {
            throw refuse("\"\(host)\" is no IPv4 address")
        }
        guard let number = port.utf8.allSatisfy({ (48...57).contains($0) }) ? UInt16(port) : nil, number > 0 else {
            throw refuse("\"\(port)\" is no port from 1 to 65535")
        }
        var name = host.lowercased()
        while name.hasSuffix(".") { name.removeLast() }
        let isNowhere = name == "0.0.0.0" || name.hasPrefix("[") && !name.contains { $0 != "0" && $0 != ":" && $0 != "[" && $0 != "]" }
        guard !isNowhere else {
            throw refuse("\(host) is where to listen, nobody can be reached there; give a host")
        }
        if let end = requestPaths.first(where: { path.lowercased().hasSuffix($0) }) {
            throw refuse("\"\(end)\" is added for each request; give what stands before it")
        }
        let isPublic = ["api.openai.com", "chatgpt.com", "www.chatgpt.com", "chat.openai.com"].contains(name)
        if isPublic, text.hasPrefix("http://") { throw refuse("a key would go there for everybody to read; give https://") }
        if name == "api.openai.com", path != "/v1" { throw refuse("OpenAI's API is at /v1 of this host") }
        if isPublic, name != "api.openai.com" {
            guard kind == .chatGPT else {
                throw refuse("ChatGPT takes logins, not API keys: codex-lb accounts import; an API key's base URL is another")
            }
            guard path == "/backend-api" else { throw refuse("ChatGPT's backend is at /backend-api of this host") }
        }
        let isLoopback = name == "localhost" || name.hasPrefix("127.") || name == "[::1]" || name.hasPrefix("[::ffff:127.")
        if isLoopback, listen.contains(where: { $0.split(separator: ":").last.flatMap { UInt16($0) } == number }) {
            throw refuse("port \(number) of this host is where codex-lb itself listens")
        }
        guard query.isEmpty || kind == .apiKey else { throw refuse("ChatGPT's backend takes no query of an account's") }
        return text + query
    }
}
