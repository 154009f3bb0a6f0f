import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Where clients come in, and what proxies in front may say of them.
    @Suite struct ClientListeners {
        /// Addresses that a server listens on, in the order of its settings.
        private static func addresses(_ daemon: Daemon) -> [String] {
            daemon.log.matches(of: /listening address=(\S+)/).map { String($0.output.1) }
        }

        private static let live = HTTPConnection.head("GET", "/health/live", bodyCount: nil)

        /// `unix:` addresses too.
        private static func connect(_ address: String) throws -> HTTPConnection {
            address.hasPrefix("unix:") ? try HTTPConnection(unix: String(address.dropFirst(5))) : try HTTPConnection(address)
        }

        /// IPv4, IPv6 and Unix-domain sockets side by side; a socket's file has its mode and group before anybody can connect.
        @Test func manyKinds() throws {
            let daemon = try Daemon()
            let path = daemon.directory + "/http.sock"
            let group = try #require(getgrgid(getegid() == 0 && getuid() == 0 ? 1 : getegid())).pointee
            let name = String(cString: group.gr_name)
            daemon.environment["CODEX_LB_LISTEN"] = "127.0.0.1:0, [::1]:0,unix:\(path),mode=0620,group=\(name) 127.0.0.2:0"
            try daemon.start(workers: 2, listen: nil)
            let addresses = Self.addresses(daemon)
            #expect(addresses.count == 4 && addresses[1].hasPrefix("[::1]:") && addresses[2] == "unix:" + path)
            for address in addresses where !address.hasPrefix("[") {
                let connection = try Self.connect(address)
                try connection.send(Self.live)
                #expect(try connection.answer().status == 200, "\(address)")
            }
            let v6 = try Child.capture("/usr/bin/curl", ["-sg", "http://\(addresses[1])/health/live"])
            #expect(v6.output.contains("ok"), "\(v6)")
            var info = stat()
            #expect(stat(path, &info) == 0 && info.st_mode & 0o777 == 0o620 && info.st_gid == group.gr_gid)
        }

        /// What can't be is told at the start, with exit code 2 where a setting is wrong.
        @Test(arguments: [
            ("127.0.0.1:0,mode=0600", "mode= is for Unix sockets"), ("unix:/tmp/x,mode=9", "mode= is for Unix sockets"),
            ("127.0.0.1:0,fast", "is no numeric address"), ("proxy,127.0.0.1:0", "belongs behind an address"),
            ("127.0.0.1:0,proxy", "CODEX_LB_TRUSTED_PROXIES"),
        ])
        func wrong(_ listen: String, _ reason: String) throws {
            let daemon = try Daemon(["CODEX_LB_LISTEN": listen])
            try daemon.launch(listen: nil)
            let exit = daemon.child?.wait(10)
            #expect(exit == .code(2) || reason == "is no numeric address" && exit == .code(2), "\(String(describing: exit))")
            #expect(daemon.log.contains(reason) || listen.hasSuffix("fast") && daemon.log.contains("listen address"), "\(daemon.log)")
        }

        private static let v2: [UInt8] =
            [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A, 0x21, 0x11, 0, 12]
            + [192, 0, 2, 7, 198, 51, 100, 1, 0xDC, 0x04, 0x01, 0xBB]

        /// Headers of both versions stand before the first request and only there; cut anywhere they are the same.
        @Test(arguments: ["127.0.0.1:0", "unix"]) func proxyHeader(_ kind: String) throws {
            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": kind == "unix" ? "unix" : "127.0.0.0/8"])
            try daemon.start(listen: (kind == "unix" ? "unix:\(daemon.directory)/h.sock" : kind) + ",proxy")
            #expect(daemon.log.contains("proxy_header=true"))
            for header in [Self.v2, Array("PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".utf8), Array("PROXY UNKNOWN\r\n".utf8)] {
                for cut in [0, 1, 5, 12, 15, header.count - 1, header.count, header.count + 3] {
                    let all = header + Array(Self.live.utf8)
                    let connection = try Self.connect(daemon.address)
                    try connection.send(Array(all[..<cut]))
                    if cut > 0, cut < header.count { #expect(connection.isSilent(0.01)) }
                    try connection.send(Array(all[cut...]))
                    #expect(try connection.answer().status == 200)
                    // Behind the first request a header is none.
                    try connection.send(Self.live)
                    #expect(try connection.answer().status == 200)
                    try connection.send(header + Array(Self.live.utf8))
                    #expect(try connection.answer().status == 400)
                }
            }
        }

        /// Without a good header nothing is answered: a plain request, a wrong header, silence, an end.
        @Test func noProxyHeader() throws {
            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": "127.0.0.1", "CODEX_LB_HEAD_TIMEOUT_SECONDS": "0.3"])
            try daemon.start(listen: "127.0.0.1:0,proxy")
            for bytes in [Self.live, "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n" + Self.live, "PROXY TCP4 19", ""] {
                let connection = try daemon.connect()
                if !bytes.isEmpty { try connection.send(bytes) }
                #expect(connection.waitEnd(5), "\(bytes)")
            }
            #expect(daemon.waitLog("it does not begin with a PROXY header") && daemon.waitLog("its PROXY header did not come in time"))
            func told() -> Int { daemon.log.components(separatedBy: "worker.0 connection ended").count - 1 }
            #expect(eventually(5) { told() == 4 }, "\(daemon.log)")
            // A client's own end is heeded at once: it leaves nothing to be told of when the time for a header is up.
            let ended = try daemon.connect()
            ended.shutdownWrite()
            #expect(ended.waitEnd(5))
            let last = try daemon.connect()
            #expect(last.waitEnd(5))
            #expect(eventually(5) { told() >= 5 } && told() == 5, "\(daemon.log)")
        }

        /// Networks that are not on the list are not listened to, whatever they send.
        @Test func untrustedProxy() throws {
            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": "10.0.0.0/8 ::1,unix"])
            try daemon.start(listen: "127.0.0.1:0,proxy")
            let connection = try daemon.connect()
            try? connection.send(Self.v2 + Array(Self.live.utf8))  // it may be closed already
            #expect(connection.waitEnd(5))
            #expect(daemon.waitLog("connection refused: not of a trusted proxy"))
        }

        /// A connection that has shown its header moves to the workers of the next generation without being asked for it again. The same
        /// address becomes one for PROXY headers, and back, by a reload.
        @Test func headersAndReloads() throws {
            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": "127.0.0.1"])
            daemon.workingDirectory = daemon.directory
            let port = try Ports.free()
            func write(_ options: String) throws {
                try Data("CODEX_LB_LISTEN=127.0.0.1:\(port)\(options)\n".utf8).write(to: URL(fileURLWithPath: daemon.directory + "/.env"))
            }
            func reload() throws {
                let result = try daemon.run("ctl", "reload")
                #expect(result.isGood, "\(result)")
            }
            try write(",proxy")
            try daemon.start(listen: nil)
            let connection = try daemon.connect()
            try connection.send(Self.v2 + Array(Self.live.utf8))
            #expect(try connection.answer().status == 200)
            let old = try #require(daemon.pid("worker"))
            try reload()
            #expect(eventually(10) { !Daemon.isAlive(old) }, "its only client has moved")
            try connection.send(Self.live)
            #expect(try connection.answer().status == 200)

            let between = try #require(daemon.pid("worker"))
            try write("")
            try reload()
            #expect(eventually(10) { !Daemon.isAlive(between) })
            #expect(try daemon.get("/health/live").status == 200)
            let last = try #require(daemon.pid("worker"))
            try write(",proxy")
            try reload()
            #expect(eventually(10) { !Daemon.isAlive(last) })
            let plain = try daemon.connect()
            try plain.send(Self.live)
            #expect(plain.waitEnd(5))
        }

        /// A peer that is known to be a proxy is no caller on this host: what comes through it needs a key, with and without fields that tell
        /// of it; other local callers need none as before.
        @Test func proxiesAreNotLocal() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_TRUSTED_PROXIES": "127.0.0.2/32"])
            #expect(try stage.turn("direct").status == 200)
            #expect(
                try stage.daemon.post("/v1/responses", Stage.body(), headers: [("X-Forwarded-For", "127.0.0.1")]).status == 401)
            let proxied = try Stage("a", environment: ["CODEX_LB_TRUSTED_PROXIES": "127.0.0.1/32"])
            #expect(try proxied.turn("proxied").status == 401)
            #expect(try proxied.daemon.get("/metrics").status == 401)
            #expect(
                try proxied.daemon.post("/v1/responses", Stage.body(), headers: [("X-Forwarded-For", "127.0.0.1")]).status == 401)
        }

        /// Socket units are told apart by their names: `proxy` begins with a header, `http` does not.
        @Test func socketUnits() throws {
            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": "127.0.0.1"])
            let (http, proxy) = (try PassedListener(), try PassedListener())
            try daemon.launch(passing: [http.descriptor, proxy.descriptor], names: "http:proxy")
            try daemon.waitReady()
            let plain = try HTTPConnection("127.0.0.1:\(http.port)")
            try plain.send(Self.live)
            #expect(try plain.answer().status == 200)
            let headed = try HTTPConnection("127.0.0.1:\(proxy.port)")
            try headed.send(Self.v2 + Array(Self.live.utf8))
            #expect(try headed.answer().status == 200)
            let headless = try HTTPConnection("127.0.0.1:\(proxy.port)")
            try headless.send(Self.live)
            #expect(headless.waitEnd(5))
            #expect(daemon.stop() == .code(0))

            daemon.environment["CODEX_LB_TRUSTED_PROXIES"] = nil
            try daemon.launch(passing: [proxy.descriptor], names: "proxy")
            #expect(daemon.child?.wait(10) == .code(1) && daemon.log.contains("needs CODEX_LB_TRUSTED_PROXIES"))
        }
    }
}
