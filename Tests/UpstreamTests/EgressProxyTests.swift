import Testing
import Vocabulary

/// What an operator may write, and what must be refused rather than guessed at.
@Suite struct EgressProxyTests {
    @Test(arguments: [
        ("http://proxy.example:3128", "http://proxy.example:3128", "", ""),
        ("HTTPS://Proxy.Example", "https://proxy.example:443", "", ""),
        ("socks5://10.0.0.1", "socks5://10.0.0.1:1080", "", ""),
        ("socks5h://u:p%40ss%3A@[2001:db8::1]:9050/", "socks5h://[2001:db8::1]:9050", "u", "p@ss:"),
        ("http://only@h", "http://h:80", "only", ""),
        ("http://u:a@b@h:1", "http://h:1", "u", "a@b"),
    ])
    func accepted(_ url: String, _ shown: String, _ user: String, _ password: String) throws {
        let proxy = try #require(EgressProxy(url))
        #expect(proxy.description == shown && proxy.user == user && proxy.password == password)
        if !password.isEmpty { #expect(!"\(proxy)".contains(password)) }
    }

    @Test(arguments: [
        "", "proxy:3128", "ftp://h", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:x", "http://h/path", "http://h?x",
        "http://h h", "http://[::1", "http://[h]:1", "http://::1:80", "http://%zz:p@h", "http://u:%4@h", "http://u%00:p@h", "http://@h",
        "http://:p@h", "http://u%3A:p@h", "http://\(String(repeating: "u", count: 256)):p@h", "http://u:p%FF@h", "http://h\r\n",
        "http://\(String(repeating: "h", count: 254))",
    ])
    func refused(_ url: String) { #expect(EgressProxy(url) == nil) }
}
