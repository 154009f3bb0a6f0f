import Testing
import Vocabulary

@testable import Upstream

/// What is said to a proxy, byte for byte as RFC 1928, RFC 1929 and RFC 9110 §9.3.6 have it, however its answers are cut.
@Suite struct TunnelTests {
    private static func tunnel(_ url: String, to host: String = "api.example", port: UInt16 = 443) throws -> Tunnel {
        Tunnel(through: try #require(EgressProxy(url)), to: host, port: port)
    }

    /// Gives it the answers one after the other, each in pieces of `size`; what it says to each.
    private func talk(_ tunnel: Tunnel, _ answers: [[UInt8]], pieces size: Int) throws -> [Tunnel.Step] {
        var tunnel = tunnel
        var steps: [Tunnel.Step] = []
        for answer in answers {
            var step = Tunnel.Step.wait
            for start in stride(from: 0, to: answer.count, by: size) {
                #expect(step == .wait, "it goes on before the answer is whole")
                step = try tunnel.feed(Array(answer[start..<min(answer.count, start + size)]).span.bytes)
            }
            steps.append(step)
        }
        return steps
    }

    @Test(arguments: [1, 2, 3, 1000]) func socks(_ size: Int) throws {
        let open: [UInt8] = [5, 0, 0, 1, 127, 0, 0, 1, 0x1F, 0x90]
        let name: [UInt8] = [5, 1, 0, 3, 11] + Array("api.example".utf8) + [1, 0xBB]
        let plain = try Self.tunnel("socks5h://p")
        #expect(plain.opening == [5, 1, 0])
        #expect(try talk(plain, [[5, 0], open], pieces: size) == [.say(name), .open])
        // With credentials, and a proxy that wants none after all.
        let known = try Self.tunnel("socks5h://user:pw@p")
        #expect(known.opening == [5, 2, 0, 2])
        let login: [UInt8] = [1, 4] + Array("user".utf8) + [2] + Array("pw".utf8)
        #expect(try talk(known, [[5, 2], [1, 0], open], pieces: size) == [.say(login), .say(name), .open])
        #expect(try talk(known, [[5, 0], open], pieces: size) == [.say(name), .open])
        // Addresses go as addresses; the proxy may answer with any kind.
        let v4 = try Self.tunnel("socks5://p", to: "192.0.2.7", port: 80)
        let longName: [UInt8] = [5, 0, 0, 3, 255] + Array(repeating: 97, count: 255) + [0, 1]
        #expect(try talk(v4, [[5, 0], longName], pieces: size) == [.say([5, 1, 0, 1, 192, 0, 2, 7, 0, 80]), .open])
        let v6 = try Self.tunnel("socks5://p", to: "2001:db8::7", port: 8080)
        let request: [UInt8] = [5, 1, 0, 4, 0x20, 1, 0xD, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0x1F, 0x90]
        #expect(try talk(v6, [[5, 0], [5, 0, 0, 4] + Array(repeating: 9, count: 18)], pieces: size) == [.say(request), .open])
    }

    @Test(arguments: [1, 7, 1000]) func connect(_ size: Int) throws {
        let tunnel = try Self.tunnel("http://Aladdin:open%20sesame@p")
        // The credentials of RFC 7617 §2.
        #expect(
            String(decoding: tunnel.opening, as: UTF8.self)
                == "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        )
        #expect(try talk(tunnel, [Array("HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n".utf8)], pieces: size) == [.open])
        let v6 = try Self.tunnel("https://p", to: "2001:db8::7", port: 8080)
        #expect(String(decoding: v6.opening, as: UTF8.self) == "CONNECT [2001:db8::7]:8080 HTTP/1.1\r\nHost: [2001:db8::7]:8080\r\n\r\n")
    }

    @Test(
        arguments: [
            ("socks5h://p", [[4, 0]], "SOCKS 5"), ("socks5h://p", [[5, 0xFF]], "wants a user"), ("socks5h://p", [[5, 2]], "wants a user"),
            ("socks5h://u:x@p", [[5, 0xFF]], "none of the ways"), ("socks5h://u:x@p", [[5, 2], [1, 1]], "refuses the user"),
            ("socks5h://u:x@p", [[5, 2, 0]], "nobody asked for"), ("socks5h://p", [[5, 0], [5, 5]], "connection refused"),
            ("socks5h://p", [[5, 0], [5, 99]], "code 99"), ("socks5h://p", [[5, 0], [5, 0, 0, 2, 0]], "kind 2"),
            ("socks5h://p", [[5, 0], [5, 0, 0, 1, 0, 0, 0, 0, 0, 0, 72]], "nobody asked for"),
            ("http://p", [Array("HTTP/1.1 407 No\r\n\r\n".utf8)], "407"), ("http://p", [Array("SSH-2.0-x\r\n\r\n".utf8)], "no HTTP"),
            ("http://p", [Array("HTTP/1.1 200 OK\r\n\r\nHTTP".utf8)], "nobody asked for"),
            ("http://p", [Array("HTTP/1.1 200 OK\r\nX: ".utf8) + Array(repeating: 97, count: 17_000)], "more than"),
        ] as [(String, [[UInt8]], String)])
    func refused(_ url: String, _ answers: [[UInt8]], _ words: String) throws {
        var tunnel = try Self.tunnel(url)
        let error = #expect(throws: TunnelError.self) {
            for answer in answers { _ = try tunnel.feed(answer.span.bytes) }
        }
        let reason = error?.reason ?? ""
        #expect(reason.contains(words) && !reason.contains("x@"), "\(reason)")
    }
}
