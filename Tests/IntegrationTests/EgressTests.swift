import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// docs/upstreams.md: an account may have a proxy of its own, and is never reached without it.
    @Suite struct Egress {
        /// Proxies of Tests/Support/proxies.py, with the certificate of an https upstream.
        final class Proxies {
            let child: Child
            private let path: String
            private(set) var ports: [String: String] = [:]

            init(_ upstream: TLS.SecureUpstream) throws {
                path = upstream.directory + "/proxies"
                let script =
                    URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().path + "/Support/proxies.py"
                child = try Child(
                    "/usr/bin/python3", [script, upstream.certificate, upstream.directory + "/key.pem", path],
                    environment: ["PATH": "/usr/bin:/bin"], errors: path + ".errors")
                guard eventually(10, { lines.count == 1 }) else { throw HarnessError("proxies.py: \(lines)") }
                let numbers = lines[0].split(separator: " ").map(String.init)
                ports = ["http": numbers[0], "https": numbers[1], "socks5": numbers[2], "socks5h": numbers[2]]
            }
            deinit {
                child.signal(9)
                _ = child.wait(5)
            }

            private var lines: [String] {
                String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self).split(separator: "\n").map(
                    String.init)
            }
            /// `KIND HOST:PORT USER:PASSWORD` of each connection that was asked for.
            var asked: [String] { Array(lines.dropFirst()) }
            func url(_ scheme: String, credentials: String = "") -> String { "\(scheme)://\(credentials)localhost:\(ports[scheme] ?? "")" }
        }

        private func set(_ daemon: Daemon, _ account: String, proxy: String) throws {
            let result = try daemon.run("accounts", "set", account, "--proxy", "@-", input: proxy + "\n")
            #expect(result.isGood, "\(result)")
        }

        private func post(_ daemon: Daemon) throws -> Answer { try daemon.post("/v1/responses", Stage.body(stream: false)) }

        /// Each kind of proxy, with credentials and without, to an upstream behind TLS and to a plain one. A name that only the proxy knows is
        /// resolved there; where it is to be resolved here, the proxy gets an address. The proxies speak as curl does.
        @Test(arguments: ["http", "https", "socks5", "socks5h"]) func eachKind(_ scheme: String) throws {
            let upstream = try TLS.SecureUpstream()
            let proxies = try Proxies(upstream)
            let plain = try FakeUpstream()
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate])
            let host = scheme == "socks5" ? "127.0.0.1" : "upstream.test"
            let name = scheme == "socks5" ? "localhost" : host
            let kind = scheme.hasPrefix("socks") ? "socks" : scheme
            try daemon.addAccount("secure", baseURL: "https://\(name):\(upstream.port)/v1", key: "sk-up-a")
            try daemon.addAccount("plain", baseURL: "http://\(name):\(plain.port)/v1", key: "sk-up-b")
            try daemon.run("accounts", "pause", "plain")
            for (credentials, seen) in [("", "-"), ("user:p%40ss@", "user:p@ss")] {
                for account in ["secure", "plain"] { try set(daemon, account, proxy: proxies.url(scheme, credentials: credentials)) }
                if daemon.child == nil { try daemon.start(workers: 1) }
                let before = proxies.asked.count
                #expect(eventually(10) { (try? post(daemon).json["id"] as? String) == "resp_tls" }, "\(daemon.log.suffix(1500))")
                #expect(proxies.asked.dropFirst(before).contains("\(kind) \(host):\(upstream.port) \(seen)"), "\(proxies.asked)")
                let calls = plain.calls("sk-up-b")
                try daemon.run("accounts", "pause", "secure")
                try daemon.run("accounts", "resume", "plain")
                #expect(eventually(10) { (try? post(daemon).status) == 200 && plain.calls("sk-up-b") > calls })
                #expect(proxies.asked.contains("\(kind) \(host):\(plain.port) \(seen)"), "\(proxies.asked)")
                try daemon.run("accounts", "pause", "plain")
                try daemon.run("accounts", "resume", "secure")
            }
            // A connection that is kept is kept for its proxy.
            #expect(Set(proxies.asked.map { $0.split(separator: " ")[2] }) == ["-", "user:p@ss"])
            let curl = try Child(
                "/usr/bin/curl",
                [
                    "-s", "--max-time", "10", "--proxy-cacert", upstream.certificate, "--cacert", upstream.certificate, "--proxy",
                    proxies.url(scheme, credentials: "user:p%40ss@"), "https://\(name):\(upstream.port)/v1/responses", "-d", "{}",
                ], environment: ["PATH": "/usr/bin:/bin"])
            #expect(curl.wait(15) == .code(0), "curl does not get through these proxies")
        }

        /// A proxy that is down, refuses the password, or can't reach the upstream: the next account serves, and the upstream, which could be
        /// reached without it, hears nothing.
        @Test func neverGoneAround() throws {
            let upstream = try TLS.SecureUpstream()
            let proxies = try Proxies(upstream)
            let (direct, other) = (try FakeUpstream(), try FakeUpstream())
            let daemon = try Daemon(["SSL_CERT_FILE": upstream.certificate])
            try daemon.addAccount("a", baseURL: direct.baseURL, key: "sk-up-a")
            try daemon.addAccount("b", baseURL: other.baseURL, key: "sk-up-b")
            try daemon.run("settings", "set", "routing.strategy", "least_inflight")
            try set(daemon, "a", proxy: "http://127.0.0.1:1")
            try daemon.start(workers: 1)
            let bad = [
                "http://127.0.0.1:1", proxies.url("http", credentials: "user:wrong@"), proxies.url("socks5h", credentials: "user:wrong@"),
                "https://127.0.0.1:\(proxies.ports["https"] ?? "")",
            ]
            for (number, proxy) in bad.enumerated() {
                try set(daemon, "a", proxy: proxy)
                #expect(
                    eventually(10) { (try? post(daemon).status) == 200 && log(daemon, "account cools down account=a") > number },
                    "\(proxy): \(daemon.log.suffix(1000))")
            }
            #expect(direct.calls("sk-up-a") == 0)
            #expect(!daemon.wholeLog.contains("wrong"), "the password is in the log")
            // Alone it fails, and says what is wrong.
            try daemon.run("accounts", "pause", "b")
            try set(daemon, "a", proxy: bad[1])
            let failed = try eventually(5, every: 0.1) { try post(daemon).text.contains("407") }
            #expect(failed, "\(daemon.log.suffix(1000))")
            // Taken away it is reached directly.
            #expect(try daemon.run("accounts", "set", "a", "--no-proxy").isGood)
            #expect(eventually(10) { (try? post(daemon).status) == 200 })
            #expect(direct.calls("sk-up-a") >= 1)
        }

        private func log(_ daemon: Daemon, _ words: String) -> Int { daemon.wholeLog.components(separatedBy: words).count - 1 }

        /// The credentials of a proxy are sealed at rest and shown nowhere; what is no proxy is refused with what is expected, and nothing of it
        /// is told.
        @Test(arguments: Database.both) func keptSecret(_ database: Database) throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(on: database)
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: "sk-up-a")
            for bad in ["socks4://user:hush-hush@h:1", "http://user:hush-hush@h:0", "user:hush-hush@h"] {
                let refused = try daemon.run("accounts", "set", "a", "--proxy", "@-", input: bad + "\n")
                #expect(refused.exit == .code(2) && refused.errors.contains("socks5h"), "\(refused)")
                #expect(!refused.errors.contains("hush-hush"))
            }
            try set(daemon, "a", proxy: "socks5h://user:hush-hush@127.0.0.1:9")
            for json in [[], ["--json"]] {
                let list = try daemon.run(["accounts", "list"] + json)
                #expect(list.isGood && !list.output.contains("hush-hush"))
            }
            #expect(try daemon.run("accounts", "list", "--json").output.contains("socks5h://127.0.0.1:9"))
            if database == .sqlite {
                let bytes = try Data(contentsOf: URL(fileURLWithPath: daemon.data + "/store.db"))
                #expect(bytes.range(of: Data("hush-hush".utf8)) == nil)
            }
        }

        /// An issuer and an upstream of logins, and proxies that lead there.
        private struct LoginGround {
            let secure: TLS.SecureUpstream
            let proxies: Proxies
            let upstream: FakeUpstream
            let issuer: FakeIssuer
            let daemon: Daemon

            init() throws {
                secure = try TLS.SecureUpstream()
                proxies = try Proxies(secure)
                upstream = try FakeUpstream()
                issuer = FakeIssuer(on: upstream)
                daemon = try Daemon(["CODEX_LB_AUTH_BASE_URL": "http://\(upstream.host)"])
            }

            /// What Codex would have of this login.
            func file(isGood: Bool = true) throws -> String {
                let path = daemon.directory + "/auth.json"
                try Data(issuer.login("me", isGood: isGood).utf8).write(to: URL(fileURLWithPath: path))
                return path
            }

            func rows() throws -> [[String: Any]] { try daemon.run("accounts", "list", "--json").jsonList }
        }

        /// A login is made through the proxy that is given for it, and made anew through the one that its account has.
        @Test func loggedInThroughIt() throws {
            let ground = try LoginGround()
            let (proxies, upstream, issuer, daemon) = (ground.proxies, ground.upstream, ground.issuer, ground.daemon)
            for more in [["--proxy", proxies.url("socks5h", credentials: "user:p%40ss@"), "--base-url", upstream.chatGPTBaseURL], []] {
                issuer.enableDevices(upstream, name: "me@example.com", pending: 1)
                let (asked, requests) = (proxies.asked.count, upstream.requests.count)
                let login = try daemon.run(["accounts", "login", "me"] + more, seconds: 30)
                #expect(login.isGood, "\(login)")
                // Each request has a connection of its own.
                #expect(proxies.asked.count - asked == upstream.requests.count - requests && proxies.asked.count > asked)
            }
            #expect(Set(proxies.asked) == ["socks 127.0.0.1:\(upstream.port) user:p@ss"], "\(proxies.asked)")
        }

        /// Imported into a running server: its first question already, for its figures, goes through the proxy that the import names.
        @Test func importedThroughIt() throws {
            let ground = try LoginGround()
            let (proxies, upstream, daemon) = (ground.proxies, ground.upstream, ground.daemon)
            let file = try ground.file()
            try daemon.start(workers: 1)
            let options = ["--proxy", proxies.url("socks5h"), "--weight", "40", "--policy", "preserve"]
            let made = try daemon.run(["accounts", "import", file, "--base-url", upstream.chatGPTBaseURL] + options)
            #expect(made.isGood, "\(made)")
            #expect(eventually(10) { !upstream.requests.isEmpty })
            #expect(proxies.asked.count == upstream.requests.count && Set(proxies.asked) == ["socks 127.0.0.1:\(upstream.port) -"])
            let row = try ground.rows().first ?? [:]
            #expect(row["weight"] as? Int == 40 && row["policy"] as? String == "preserve", "\(row)")
        }

        /// A login is renewed through its account's proxy: the issuer sees one address of it.
        @Test func renewedThroughIt() throws {
            let ground = try LoginGround()
            let (proxies, upstream, issuer, daemon) = (ground.proxies, ground.upstream, ground.issuer, ground.daemon)
            let file = try ground.file(isGood: false)
            #expect(try daemon.run("accounts", "import", file, "--base-url", upstream.chatGPTBaseURL).isGood)
            try set(daemon, try #require(ground.rows().first?["name"] as? String), proxy: proxies.url("socks5h"))
            try daemon.start(workers: 1)
            #expect(try post(daemon).status == 200)
            #expect(issuer.refreshes == 1)
            #expect(proxies.asked.count >= 2 && Set(proxies.asked) == ["socks 127.0.0.1:\(upstream.port) -"], "\(proxies.asked)")
        }
    }
}
