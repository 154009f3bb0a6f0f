import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// The units, and what the server and its manager say to each other (sd_notify(3), sd_listen_fds(3)); the tests play the manager.
    @Suite struct Systemd {
        private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().path
        private static let services = ["codex-lb.service", "codex-lb@2460.service", "codex-lb-backup.service"]

        /// The units where `systemd-analyze` finds what they start, the templates as one instance of them.
        private static func units(_ daemon: Daemon) throws -> [String] {
            let units = daemon.directory + "/units"
            try FileManager.default.createDirectory(atPath: units, withIntermediateDirectories: true)
            return try FileManager.default.contentsOfDirectory(atPath: root + "/systemd").filter {
                ["service", "socket", "timer"].contains(($0 as NSString).pathExtension)
            }.sorted().map { name in
                let text = procText("\(root)/systemd/\(name)").replacing("/usr/local/bin/codex-lb", with: Daemon.binary)
                let file = "\(units)/\(name.replacing("@.", with: "@2460."))"
                try Data(text.replacing("%i", with: "2460").utf8).write(to: URL(fileURLWithPath: file))
                return file
            }
        }

        /// systemd has nothing to say against any unit, and services are as closed as their work allows.
        @Test(.enabled(if: access("/usr/bin/systemd-analyze", X_OK) == 0, "there is no systemd-analyze")) func units() throws {
            let daemon = try Daemon()
            let units = try Self.units(daemon)
            #expect(units.count == 7)
            let verify = try Child.capture("/usr/bin/systemd-analyze", ["verify", "--man=no"] + units)
            #expect(verify.isGood && verify.errors.isEmpty && verify.output.isEmpty, "\(verify)")
            for name in Self.services {
                let security = try Child.capture(
                    "/usr/bin/systemd-analyze", ["security", "--offline=true", "--no-pager", "\(daemon.directory)/units/\(name)"])
                let level = security.output.firstMatch(of: /Overall exposure level for \S+ ([0-9.]+)/).flatMap { Double($0.output.1) }
                #expect(level.map { $0 <= 1.2 } ?? false, "\(name): \(security)")
            }
        }

        /// The unit and its template say the same but for names.
        @Test func templateIsTheUnit() {
            func settings(_ name: String) -> [String] {
                procText("\(Self.root)/systemd/\(name)").replacing("codex-lb-%i", with: "codex-lb").replacing("@%i", with: "")
                    .replacing("/%i.env", with: "/codex-lb.env").replacing(":codex-lb.encryption-key", with: "")
                    .replacing("Credential=codex-lb.encryption-key:", with: "Credential=")
                    .split(separator: "\n").filter { !$0.hasPrefix("#") && !$0.hasPrefix("Description=") }.map(String.init)
            }
            #expect(settings("codex-lb@.service") == settings("codex-lb.service"))
        }

        /// While its loop turns the supervisor says so twice as often as it must; one that stands still does not.
        @Test func watchdog() throws {
            let daemon = try Daemon()
            let manager = try NotifySocket(daemon.directory + "/notify")
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            daemon.environment["WATCHDOG_USEC"] = "600000"
            try daemon.start()
            func beats() -> Int { manager.text.matches(of: /(?m)^WATCHDOG=1$/).count }
            manager.forget()
            let start = Date()
            #expect(eventually(5) { beats() >= 5 })
            let seconds = Date().timeIntervalSince(start)
            #expect((0.9...3).contains(seconds), "5 in \(seconds) s")
            daemon.child?.signal(SIGSTOP)
            defer { daemon.child?.signal(SIGCONT) }
            #expect(eventually(5) { procText("/proc/\(daemon.supervisorPID)/stat").contains(") T ") })
            manager.forget()
            #expect(!eventually(1) { beats() > 0 })
        }

        /// The manager can tell whose a message is only while the sender lives: at its end the supervisor waits until all is heard.
        @Test func lastWordIsHeard() throws {
            let daemon = try Daemon()
            let manager = try NotifySocket(daemon.directory + "/notify")
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            try daemon.start()
            daemon.child?.signal(SIGTERM)
            #expect(eventually(10) { manager.text.contains("STOPPING=1") && manager.barrier != nil })
            // Signals, such as those of children that end, do not end the wait.
            daemon.child?.signal(SIGCHLD)
            #expect(!eventually(0.1) { !Daemon.isAlive(daemon.supervisorPID) })
            close(try #require(manager.barrier))
            manager.barrier = nil
            #expect(daemon.child?.wait(5) == .code(0))
        }

        /// A manager that does not read for a while holds up nothing: what it was told is there when it looks, in order. One that never does
        /// costs a stop half a second.
        @Test func managerDoesNotListen() throws {
            let daemon = try Daemon()
            let manager = try NotifySocket(daemon.directory + "/notify")
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            try daemon.start()
            #expect(eventually(5) { manager.text.contains("READY=1") })
            manager.forget()
            // Two messages each; the kernel's queue has room for 11 (unix(7), max_dgram_qlen).
            for _ in 0..<10 { #expect(try daemon.run("ctl", "reload").isGood) }
            #expect(try daemon.get("/health/live").status == 200)
            #expect(try daemon.run("ctl", "status").isGood)
            func told(_ text: String) -> Int { manager.text.components(separatedBy: text).count - 1 }
            #expect(eventually(5) { told("RELOADING=1") == 10 && told("READY=1") == 10 }, "\(manager.text)")
            let order = manager.text.matches(of: /RELOADING=1|READY=1/).map { String($0.output) }
            #expect(order == (0..<10).flatMap { _ in ["RELOADING=1", "READY=1"] })
            for _ in 0..<10 { #expect(try daemon.run("ctl", "reload").isGood) }
            #expect(try daemon.run("ctl", "upgrade").isGood)
            let start = Date()
            #expect(daemon.stop() == .code(0))
            #expect(Date().timeIntervalSince(start) < 5)
        }

        /// What `systemctl status` shows says that the last reload failed, until one succeeds.
        @Test func failedReloadIsShown() throws {
            let daemon = try Daemon()
            let manager = try NotifySocket(daemon.directory + "/notify")
            let file = daemon.directory + "/settings.env"
            func write(_ text: String) throws { try Data(text.utf8).write(to: URL(fileURLWithPath: file)) }
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            daemon.environment["CODEX_LB_SETTINGS_FILE"] = file
            try write("CODEX_LB_STICKINESS=true\n")
            try daemon.start()
            func shown() -> Substring { manager.text.split(separator: "\n").last { $0.hasPrefix("STATUS=") } ?? "" }
            try write("CODEX_LB_STICKINESS=perhaps\n")
            #expect(try !daemon.run("ctl", "reload").isGood)
            #expect(
                eventually(5) {
                    let text = shown()
                    return text.hasPrefix("STATUS=serving on ") && text.contains("the last reload failed: ") && text.contains("perhaps")
                }, "\(shown())")
            try write("CODEX_LB_STICKINESS=false\n")
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(eventually(5) { shown().hasPrefix("STATUS=serving on ") && !shown().contains("failed") })
        }

        /// Another process's watchdog is none of ours, and without one nothing is said.
        @Test func noWatchdog() throws {
            let daemon = try Daemon()
            let manager = try NotifySocket(daemon.directory + "/notify")
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            daemon.environment["WATCHDOG_USEC"] = "100000"
            daemon.environment["WATCHDOG_PID"] = "1"
            try daemon.start()
            #expect(!eventually(0.5) { manager.text.contains("WATCHDOG=1") })
        }

        /// A supervisor that is killed leaves its sockets with the manager: no client is refused until the next one, which takes them
        /// back, serves; at an orderly stop the manager need not keep them.
        @Test func socketsOutliveTheSupervisor() throws {
            let upstream = try FakeUpstream()
            let daemon = try Daemon()
            let path = daemon.directory + "/http.sock"
            daemon.environment["CODEX_LB_LISTEN"] = "127.0.0.1:0,unix:\(path)"
            let manager = try NotifySocket(daemon.directory + "/notify")
            daemon.environment["NOTIFY_SOCKET"] = manager.path
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            try daemon.start(listen: nil)
            _ = manager.text
            let names = ["bound=127.0.0.1;0", "bound=unix;\(path)"]
            #expect(manager.kept.keys.sorted() == names)
            let address = daemon.address

            for _ in 0..<3 {
                let orphans = daemon.fleetPIDs()
                daemon.child?.signal(SIGKILL)
                #expect(daemon.child?.wait(5) == .signal(SIGKILL))
                // They end within the drain time; until then and after it whoever comes waits.
                let early = try HTTPConnection(address)
                try early.send("GET", "/health/live", body: nil)
                let held = names.compactMap { manager.kept[$0] }
                try #require(held.count == 2)
                try daemon.launch(passing: held, names: names.joined(separator: ":"))
                let late = try HTTPConnection(address)
                try late.send("GET", "/health/live", body: nil)
                try daemon.waitReady()
                #expect(daemon.address == address)
                #expect(try early.answer(10).status == 200 && late.answer(10).status == 200)
                let local = try HTTPConnection(unix: path)
                try local.send("GET", "/health/live", body: nil)
                #expect(try local.answer(10).status == 200)
                #expect(eventually(15) { !orphans.contains { Daemon.isAlive($0) } })
            }
            #expect(daemon.stop() == .code(0))
            _ = manager.text
            #expect(manager.kept.isEmpty && access(path, F_OK) != 0)
        }

        /// One that is kept for an address which the settings no longer have is given up.
        @Test func aKeptSocketThatNobodyWants() throws {
            let first = try Daemon()
            let manager = try NotifySocket(first.directory + "/notify")
            first.environment["NOTIFY_SOCKET"] = manager.path
            try first.start()
            _ = manager.text
            let held = try #require(manager.kept["bound=127.0.0.1;0"])
            let address = first.address
            first.endAll()
            first.environment["CODEX_LB_LISTEN"] = "unix:\(first.directory)/http.sock"
            try first.launch(passing: [held], names: "bound=127.0.0.1;0")
            try first.waitReady()
            _ = manager.text
            #expect(manager.kept.keys.sorted() == ["bound=unix;\(first.directory)/http.sock"])
            #expect(eventually(5) { (try? HTTPConnection(address)) == nil })
        }

        /// What is no listening socket is told at once.
        @Test func noListeningSocket() throws {
            let daemon = try Daemon()
            let file = open(daemon.directory, O_RDONLY)
            defer { close(file) }
            try daemon.launch(passing: [file], names: "http")
            #expect(daemon.child?.wait(10) == .code(1))
            #expect(daemon.log.contains("http, is no listening stream socket"), "\(daemon.log)")
        }

        /// The encryption key comes as a credential: readable by an access list as systemd makes it, and never copied. A setting that names
        /// a key file wins; a credential that everybody can read is refused.
        @Test func credential() throws {
            let daemon = try Daemon()
            let upstream = try FakeUpstream()
            let place = daemon.directory + "/credentials"
            try FileManager.default.createDirectory(atPath: place, withIntermediateDirectories: true)
            let key = place + "/codex-lb.encryption-key"
            try Data(("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n").utf8).write(to: URL(fileURLWithPath: key))
            chmod(key, 0o440)
            daemon.environment["CREDENTIALS_DIRECTORY"] = place
            #expect(try daemon.run("config", "show", "CODEX_LB_ENCRYPTION_KEY_FILE").output == key + "\n")
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            try daemon.start()
            #expect(try daemon.post("/v1/responses", Stage.body()).status == 200)
            #expect(daemon.stop() == .code(0))
            #expect(access(daemon.data + "/encryption.key", F_OK) != 0)

            let own = daemon.directory + "/own.key"
            let shown = try daemon.run("config", "show", "CODEX_LB_ENCRYPTION_KEY_FILE", environment: ["CODEX_LB_ENCRYPTION_KEY_FILE": own])
            #expect(shown.output == own + "\n")

            chmod(key, 0o444)
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true && daemon.log.contains("can be read by others"), "\(daemon.log)")
        }
    }
}
