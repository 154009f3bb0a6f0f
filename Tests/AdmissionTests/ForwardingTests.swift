import Admission
import HTTPWire
import Testing
import Vocabulary

@Suite struct IPAddressTests {
    @Test(
        "Addresses are read as inet_pton(3) does and written as RFC 5952 says",
        arguments: [
            ("192.0.2.1", "192.0.2.1"), ("0.0.0.0", "0.0.0.0"), ("::ffff:192.0.2.1", "192.0.2.1"), ("::FFFF:c000:201", "192.0.2.1"),
            ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"), ("::", "::"), ("::1", "::1"), ("1::", "1::"),
            ("2001:db8:0:1:1:1:1:1", "2001:db8:0:1:1:1:1:1"),
            ("2001:0:0:1:0:0:0:1", "2001:0:0:1::1"), ("2001:db8:0:0:1:0:0:1", "2001:db8::1:0:0:1"), ("::1.2.3.4", "::102:304"),
            ("1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8"), ("1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:102:304"), ("1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"),
        ])
    func good(_ text: String, _ shown: String) { #expect(IPAddress(text)?.description == shown) }

    @Test(
        "Nothing else is one",
        arguments: [
            "", "1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1", "1.2.3.4 ", "1.2.3.-4", "a", ":", ":::", "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1::2::3", "::1%lo", "[::1]", "12345::", "g::", "1:2:3:4:5:6:7:1.2.3.4", "::1.2.3", "1.2.3.4::", "1:", ":1",
            "1:2:3:4:5:6:7:8::",
            "1::2:3:4:5:6:7:8", "localhost", "127.1",
        ])
    func bad(_ text: String) { #expect(IPAddress(text) == nil) }

    @Test("Networks match by their bits; IPv4 in IPv6 sockets is IPv4, and ::/0 is not everybody")
    func networks() throws {
        func contains(_ network: String, _ address: String) -> Bool { Network(network)!.contains(IPAddress(address)!) }
        #expect(contains("10.0.0.0/8", "10.255.1.2") && contains("10.0.0.0/8", "::ffff:10.1.2.3") && !contains("10.0.0.0/8", "11.0.0.0"))
        #expect(contains("0.0.0.0/0", "192.0.2.1") && !contains("0.0.0.0/0", "::1") && !contains("::/0", "192.0.2.1"))
        #expect(contains("2001:db8::/33", "2001:db8:7fff::") && !contains("2001:db8::/33", "2001:db8:8000::"))
        #expect(contains("2001:db8::8/125", "2001:db8::f") && !contains("2001:db8::8/125", "2001:db8::10"))
        #expect(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.2") && contains("::1", "::1"))
        #expect(Network("10.0.0.0/8")!.description == "10.0.0.0/8" && Network("fd00::/8")!.description == "fd00::/8")
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/08", "10.0.0.0/-1", "x/8", "/8", "", "10.0.0.0/8/8"] {
            #expect(Network(bad) == nil, "\(bad)")
        }
    }
}

@Suite struct ForwardingTests {
    private let trusted = TrustedProxies(networks: [Network("10.0.0.0/8")!, Network("::1")!], includesUnix: true)

    private func client(_ peer: String?, _ fields: String...) throws -> String? {
        let text = "GET / HTTP/1.1\r\nHost: a\r\n" + fields.map { $0 + "\r\n" }.joined() + "\r\n"
        let bytes = Array(text.utf8)
        var scanned = 0
        let head = try #require(try bytes.withUnsafeBytes { raw throws(WireError) in try RequestHead.parse(raw.bytes, scanned: &scanned) })
            .0
        return Forwarding.client(peer: peer.flatMap { IPAddress($0) }, head.fields, trusting: trusted)?.description
    }

    @Test("Who is no trusted proxy speaks for himself, whatever he writes")
    func untrusted() throws {
        #expect(try client("192.0.2.1", "X-Forwarded-For: 203.0.113.5", "Forwarded: for=203.0.113.6") == "192.0.2.1")
    }

    @Test("The list is read from its end, past trusted proxies, to the first that is none")
    func chain() throws {
        #expect(try client("10.0.0.1", "X-Forwarded-For: 203.0.113.5") == "203.0.113.5")
        #expect(try client("10.0.0.1", "X-Forwarded-For: 1.1.1.1, 203.0.113.5, 10.0.0.9") == "203.0.113.5")
        #expect(try client("10.0.0.1", "X-Forwarded-For: 1.1.1.1", "x-forwarded-for:203.0.113.5 ,10.0.0.9") == "203.0.113.5")
        #expect(try client("10.0.0.1", "X-Forwarded-For: 10.0.0.3, 10.0.0.2") == "10.0.0.3")
        #expect(try client("::1", "X-Forwarded-For: [2001:db8::7]:4711") == "2001:db8::7")
        #expect(try client(nil, "X-Forwarded-For: 203.0.113.5:80") == "203.0.113.5")
        #expect(try client("10.0.0.1") == "10.0.0.1")
        #expect(try client(nil) == nil)
    }

    @Test("What is no address ends the search with the proxy that wrote it")
    func nonsense() throws {
        #expect(try client("10.0.0.1", "X-Forwarded-For: 203.0.113.5, unknown") == "10.0.0.1")
        #expect(try client("10.0.0.1", "X-Forwarded-For: 203.0.113.5, , 10.0.0.2") == "10.0.0.2")
        #expect(try client("10.0.0.1", "X-Forwarded-For:") == "10.0.0.1")
        #expect(try client("10.0.0.1", "X-Forwarded-For: 1.2.3.4:x") == "10.0.0.1")
    }

    @Test("Forwarded (RFC 7239) where there is no X-Forwarded-For")
    func forwarded() throws {
        #expect(try client("10.0.0.1", #"Forwarded: for=1.1.1.1;proto=http, For="[2001:db8::7]:4711";by=10.0.0.9"#) == "2001:db8::7")
        #expect(try client("10.0.0.1", "Forwarded: for=203.0.113.5, for=_hidden") == "10.0.0.1")
        #expect(try client("10.0.0.1", "Forwarded: by=203.0.113.5") == "10.0.0.1")
        #expect(try client("10.0.0.1", "Forwarded: for=1.1.1.1", "X-Forwarded-For: 203.0.113.5") == "203.0.113.5")
    }
}
