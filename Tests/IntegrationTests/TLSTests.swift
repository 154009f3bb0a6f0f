import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Upstreams over https, directly and through a proxy.
    @Suite struct TLS {
        /// The https server of Tests/Support/tls_upstream.py with a certificate of its own for `localhost` and `upstream.test`.
        final class SecureUpstream {
            let directory: String
            let child: Child
            private(set) var port = ""
            private(set) var proxyPort = ""
            private(set) var earlyPort = ""
            var certificate: String { directory + "/cert.pem" }

            init(names: String = "DNS:localhost,DNS:upstream.test,DNS:refused.test") throws {
                directory = "/tmp/clbtls." + UUID().uuidString.prefix(8)
                try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
                let openssl = try Child(
                    "/usr/bin/openssl",
                    [
                        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj",
                        "/CN=codex-lb test",
                        "-addext", "subjectAltName=\(names)", "-keyout", directory + "/key.pem", "-out", directory + "/cert.pem",
                    ], environment: ["PATH": "/usr/bin:/bin", "HOME": directory])
                guard openssl.wait() == .code(0) else { throw HarnessError("openssl req") }
                let script =
                    URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().path
                    + "/Support/tls_upstream.py"
                child = try Child(
                    "/usr/bin/python3", [script, directory + "/cert.pem", directory + "/key.pem", directory + "/events"],
                    environment: ["PATH": "/usr/bin:/bin"], errors: directory + "/errors")
                guard eventually(10, { events.contains("\n") }) else { throw HarnessError("tls_upstream.py: \(events)") }
                let ports = events.split(separator: "\n")[0].split(separator: " ")
                (port, proxyPort, earlyPort) = (String(ports[0]), String(ports[1]), String(ports[2]))
            }

            deinit {
                child.signal(9)
                _ = child.wait(5)
                try? FileManager.default.removeItem(atPath: directory)  // a leftover in /tmp is no failure
            }

            var events: String { String(decoding: FileManager.default.contents(atPath: directory + "/events") ?? Data(), as: UTF8.self) }
            func lines(_ kind: String) -> [String] {
                events.split(separator: "\n").map(String.init).filter { $0.hasPrefix(kind + " ") || $0 == kind }
            }
        }

        private func daemon(_ upstream: SecureUpstream, host: String = "localhost", trust: Bool = true, _ more: [String: String] = [:])
            throws -> Daemon
        {
            let daemon = try Daemon((trust ? ["SSL_CERT_FILE": upstream.certificate] : [:]).merging(more) { $1 })
            try daemon.addAccount("a", baseURL: "https://\(host):\(upstream.port)/v1", key: "sk-up-a")
            return try daemon.start()
        }

        private func post(_ daemon: Daemon) throws -> Answer {
            try daemon.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "tls")])
        }

        /// An answer that comes as a second record of the same packet is nobody's.
        @Test func recordBehindAnAnswer() throws {
            let upstream = try SecureUpstream()
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate])
            try daemon.addAccount("a", baseURL: "https://localhost:\(upstream.port)/v1", key: "poison")
            try daemon.start()
            let client = try daemon.connect()
            for i in 0..<20 {
                try client.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", "own-\(i)")])
                let answer = try client.answer()
                #expect(answer.status == 200 && answer.json["id"] as? String == "own-\(i)")
            }
        }

        /// An answer that comes in the packet of the handshake's last message, before anything was asked, is nobody's.
        @Test func recordBeforeTheRequest() throws {
            let upstream = try SecureUpstream()
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate])
            try daemon.addAccount("a", baseURL: "https://localhost:\(upstream.earlyPort)/v1", key: "sk-up-a")
            try daemon.start()
            let answer = try post(daemon)
            #expect(answer.status == 502 && !answer.text.contains("poison"), "\(answer.text)")
            #expect(upstream.lines("request").isEmpty)
        }

        /// What one read brings is more than the client takes at once, and the upstream's end comes with it: all of it is passed on.
        @Test func endBehindWhatWaits() throws {
            let upstream = try SecureUpstream()
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate])
            try daemon.addAccount("a", baseURL: "https://localhost:\(upstream.port)/v1", key: "packed")
            try daemon.start()
            let client = try HTTPConnection(daemon.address, receiveBuffer: 16384)
            try client.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "packed")])
            #expect(try client.head().status == 200)
            let text = String(decoding: try client.body(30), as: UTF8.self)
            #expect(text.components(separatedBy: "output_text.delta").count == 301 && text.contains("response.completed"))
            #expect(try daemon.record("packed")["input_tokens"] as? Int == 1)
        }

        /// A large upload is held once, not in each layer: it goes through TLS in pieces.
        @Test func largeUpload() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(upstream)
            let worker = try #require(daemon.pid("worker"))
            func peak() -> Int { statusKilobytes(worker, "VmHWM") }
            #expect(try post(daemon).status == 200)
            let before = peak()
            let megabytes = 24
            let body = "{\"model\":\"gpt-5.4\",\"input\":\"\(String(repeating: "x", count: megabytes << 20))\"}"
            #expect(try daemon.post("/v1/responses", body, seconds: 60).status == 200)
            #expect(before > 0 && peak() - before < 2 * megabytes * 1024, "KiB")
        }

        /// A trusted certificate: TLS 1.2 or newer, the name in SNI, and the second connection resumes the session of the first.
        @Test func trusted() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(upstream)
            for _ in 0..<3 { #expect(try post(daemon).json["id"] as? String == "resp_tls") }
            let requests = upstream.lines("request")
            #expect(requests.count == 3)
            #expect(requests.allSatisfy { $0.hasPrefix("request TLSv1.3 localhost ") || $0.hasPrefix("request TLSv1.2 localhost ") })
            #expect(requests.last?.hasSuffix(" True") == true, "no session was resumed: \(requests)")
        }

        /// A certificate nobody vouches for: 502, nothing is sent, and the message says why.
        @Test func untrusted() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(upstream, trust: false)
            let answer = try post(daemon)
            #expect(answer.status == 502)
            #expect(answer.errorCode == "upstream_unavailable")
            #expect((answer.error["message"] as? String)?.lowercased().contains("certificate") == true, "\(answer.text)")
            #expect(upstream.lines("request").isEmpty)
        }

        /// A certificate for another name is no certificate.
        @Test func wrongName() throws {
            let upstream = try SecureUpstream(names: "DNS:somewhere.else")
            let daemon = try daemon(upstream)
            #expect(try post(daemon).status == 502)
            #expect(upstream.lines("request").isEmpty)
        }

        /// A certificate that does not name the address it is reached by is refused too.
        @Test func wrongAddress() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(upstream, host: "127.0.0.1")
            #expect(try post(daemon).status == 502)
            let named = try SecureUpstream(names: "IP:127.0.0.1")
            let second = try self.daemon(named, host: "127.0.0.1")
            #expect(try post(second).status == 200)
        }

        /// A plain server where https was expected is a 502, soon.
        @Test func notTLS() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: "https://localhost:\(upstream.port)/v1", key: "sk-up-a")
            try daemon.start()
            #expect(try post(daemon).status == 502)
        }

        /// With HTTPS_PROXY the upstream is reached through CONNECT, with the proxy's credentials and its name still in SNI.
        @Test func throughProxy() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(upstream, host: "upstream.test", ["HTTPS_PROXY": "http://user:p%40ss@127.0.0.1:\(upstream.proxyPort)"])
            #expect(try post(daemon).json["id"] as? String == "resp_tls")
            #expect(upstream.lines("connect") == ["connect upstream.test:\(upstream.port) Basic dXNlcjpwQHNz"])
            #expect(upstream.lines("request").first?.contains(" upstream.test ") == true)
            #expect(!daemon.wholeLog.contains("p%40ss") && !daemon.wholeLog.contains("p@ss") && !daemon.wholeLog.contains("dXNlcjpwQHNz"))
        }

        /// A proxy that refuses is no connection: the next account is asked.
        @Test func proxyRefuses() throws {
            let upstream = try SecureUpstream()
            let plain = try FakeUpstream()
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate, "HTTPS_PROXY": "http://127.0.0.1:\(upstream.proxyPort)"])
            try daemon.addAccount("a", baseURL: "https://refused.test:\(upstream.port)/v1", key: "sk-up-a")
            try daemon.addAccount("b", baseURL: plain.baseURL, key: "sk-up-b")
            try daemon.start()
            #expect(try post(daemon).status == 200)
            #expect(plain.calls("sk-up-b") == 1)
            #expect(upstream.lines("connect").count == 1)
        }

        /// NO_PROXY hosts are reached directly.
        @Test func withoutProxy() throws {
            let upstream = try SecureUpstream()
            let daemon = try daemon(
                upstream, host: "upstream.test",
                ["HTTPS_PROXY": "http://127.0.0.1:\(upstream.proxyPort)", "NO_PROXY": "other.example,.test"])
            #expect(try post(daemon).status == 502, "upstream.test resolves nowhere but at the proxy")
            #expect(upstream.lines("connect").isEmpty)
        }
    }
}
