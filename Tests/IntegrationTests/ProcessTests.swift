import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Starting, stopping, dying.
    @Suite struct Processes {
        /// SIGTERM: nobody new, the open stream to its end, exit 0, and no process is left.
        @Test(arguments: Database.both) func gracefulStop(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let gate = Gate()
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], gate, [Canned.completed()]))
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "open")])
            #expect(try connection.head().status == 200)
            _ = try connection.event()
            _ = try connection.event()
            let children = stage.daemon.fleetPIDs()
            #expect(children.count == stage.daemon.fleetSize(workers: 2))
            stage.daemon.child?.signal(SIGTERM)
            #expect(stage.daemon.waitLog("stopping"))
            #expect(eventually(5) { (try? stage.daemon.connect()) == nil || stage.daemon.status()?["state"] as? String != "serving" })
            #expect(stage.daemon.child?.poll() == nil, "it waits for the open turn")
            gate.open()
            #expect(try connection.event()?.type == "response.completed")
            #expect(try connection.event() == nil)
            #expect(connection.waitEnd(5))
            #expect(stage.daemon.child?.wait(10) == .code(0))
            #expect(children.allSatisfy { !Daemon.isAlive($0) })
            #expect(try stage.daemon.record("open")["status"] as? Int == 200)
        }

        /// The drain has an end: an open stream is cut with an event that says so, its turn is recorded, and the exit is still 0.
        @Test(arguments: Database.both) func drainDeadline(_ database: Database) throws {
            let stage = try Stage("a", on: database, environment: ["CODEX_LB_SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "0.5"])
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], Gate(), []))
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "cut")])
            #expect(try connection.head().status == 200)
            _ = try connection.event()
            _ = try connection.event()
            stage.daemon.child?.signal(SIGTERM)
            #expect(try connection.event()?.type == "response.failed")
            #expect(stage.daemon.child?.wait(10) == .code(0))
            #expect(try stage.daemon.record("cut")["error_code"] as? String == "proxy_unavailable")
        }

        /// No process of ours may be dumped or read by others of its user: environments and memories hold passwords and keys. Linux shows it
        /// by giving what is under /proc/PID to root (proc(5), prctl(2) PR_SET_DUMPABLE).
        @Test func notDumpable() throws {
            let daemon = try Daemon()
            var binary = Daemon.binary
            if geteuid() == 0 {
                daemon.runner = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
                // The clone may be where other users can't come, in /root for example.
                binary = daemon.directory + "/codex-lb"
                try FileManager.default.copyItem(atPath: Daemon.binary, toPath: binary)
                chmod(binary, 0o755)
                chown(daemon.directory, 65_534, 65_534)
                daemon.binary = binary
            }
            func owner(_ pid: Int32, _ file: String) -> UInt32? {
                var info = stat()
                return stat("/proc/\(pid)/\(file)", &info) == 0 ? info.st_uid : nil
            }
            func begin(_ command: [String]) throws -> Child {
                let whole = daemon.runner + command
                return try Child(
                    whole[0], Array(whole.dropFirst()), environment: daemon.environment, errors: daemon.directory + "/command")
            }
            // Any other process of that user belongs to it, or this test would prove nothing.
            let sleep = try begin(["/bin/sleep", "60"])
            #expect(eventually(5) { owner(sleep.pid, "environ") == (geteuid() == 0 ? 65_534 : geteuid()) })

            // There is no database yet: it waits.
            let command = try begin([binary, "db", "wait", "--timeout", "60"])
            #expect(eventually(5) { procText(daemon.directory + "/command").contains("waiting for") })
            for file in ["environ", "mem", "maps"] { #expect(owner(command.pid, file) == 0, "a command: \(file)") }
            try daemon.start(workers: 2)
            let fleet = daemon.fleetPIDs()
            #expect(fleet.count == 3)
            for pid in [daemon.supervisorPID] + fleet {
                for file in ["environ", "mem", "maps"] { #expect(owner(pid, file) == 0, "\(procText("/proc/\(pid)/comm")): \(file)") }
            }
        }

        /// An idle keep-alive connection does not hold up the stop.
        @Test func idleConnectionsDoNotHold() throws {
            let stage = try Stage("a")
            let idle = try stage.daemon.connect()
            try idle.post("/v1/responses", Stage.body())
            _ = try idle.answer()
            let start = Date()
            #expect(stage.daemon.stop() == .code(0))
            #expect(Date().timeIntervalSince(start) < 3)
            #expect(idle.waitEnd(1))
        }

        /// A second signal ends at once, whatever is open.
        @Test func secondSignal() throws {
            let stage = try Stage("a")
            stage.always("a", .stall([Canned.created(), Canned.delta("x")], Gate(), []))
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.head().status == 200)
            let children = stage.daemon.childPIDs()
            stage.daemon.child?.signal(SIGTERM)
            #expect(stage.daemon.waitLog("stopping"))
            stage.daemon.child?.signal(SIGTERM)
            let start = Date()
            #expect(stage.daemon.child?.wait(5) != nil)
            #expect(Date().timeIntervalSince(start) < 2)
            #expect(eventually(2) { children.allSatisfy { !Daemon.isAlive($0) } })
        }

        /// SIGINT is SIGTERM.
        @Test func interrupt() throws {
            let stage = try Stage("a")
            stage.daemon.child?.signal(SIGINT)
            #expect(stage.daemon.child?.wait(10) == .code(0))
        }

        /// kill -9 of the supervisor: its children end by themselves, and a new start finds everything in order.
        @Test(arguments: Database.allCases) func supervisorKilled(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            _ = try stage.turn("before")
            _ = try stage.daemon.record("before")
            let children = stage.daemon.fleetPIDs()
            #expect(children.count == stage.daemon.fleetSize(workers: 2))
            stage.daemon.child?.signal(SIGKILL)
            #expect(stage.daemon.child?.wait(5) == .signal(SIGKILL))
            #expect(eventually(10) { children.allSatisfy { !Daemon.isAlive($0) } }, "children outlive their supervisor")
            try stage.daemon.start()
            #expect(try stage.turn("after").types.last == "response.completed")
            _ = try stage.daemon.record("after")
            #expect(try stage.daemon.records().count == 2)
        }

        /// A worker that dies is replaced, and `ctl status` tells it.
        @Test(arguments: Database.both) func workerIsReplaced(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let old = try #require(stage.daemon.killRole("worker", 1))
            #expect(eventually(5) { stage.daemon.pid("worker", 1).map { $0 != old } ?? false })
            let children = try #require(stage.daemon.status()?["children"] as? [[String: Any]])
            #expect(children.count == stage.daemon.fleetSize(workers: 2))
            let worker = children.first { $0["role"] as? String == "worker" && $0["slot"] as? Int == 1 }
            #expect(worker?["restarts"] as? Int == 1)
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.daemon.waitLog("signal 9"))
        }

        /// A worker that hangs is ended and replaced.
        @Test func workerHangs() throws {
            let stage = try Stage("a")
            let old = try #require(stage.daemon.pid("worker"))
            kill(old, SIGSTOP)
            #expect(eventually(20) { stage.daemon.pid("worker").map { $0 != old } ?? false })
        }

        /// `ctl status --json` has the fields that tools rely on.
        @Test func status() throws {
            let stage = try Stage("a", workers: 2)
            let status = try #require(stage.daemon.status())
            #expect(status["pid"] as? Int == Int(stage.daemon.supervisorPID))
            #expect(status["data_directory"] as? String == stage.daemon.data)
            #expect((status["listeners"] as? [String])?.first == stage.daemon.address)
            let children = try #require(status["children"] as? [[String: Any]])
            #expect(Set(children.compactMap { $0["pid"] as? Int }.map { Int32($0) }) == Set(stage.daemon.fleetPIDs()))
            for child in children {
                for key in ["pid", "role", "slot", "generation", "state", "age_ms", "restarts", "connections"] {
                    #expect(child[key] != nil, "\(key)")
                }
            }
            #expect(try stage.daemon.run("ctl", "status").output.contains("worker.1"))
        }

        /// A child has nothing but its heritage and what it opened itself: no descriptor of whoever started the server, none of its siblings'.
        @Test(.enabled(if: getuid() == 0, "the kernel shows the descriptors of processes that can't be dumped to root only"))
        func heritage() throws {
            // Our own marker, inheritable on purpose: the supervisor gets it, children must not.
            let marker = "/tmp/clbt-marker-\(getpid())"
            let fd = open(marker, O_RDWR | O_CREAT, 0o600)
            defer {
                close(fd)
                unlink(marker)
            }
            try #require(fd >= 0)
            let low = fcntl(fd, F_DUPFD, 20)
            defer { close(low) }
            let stage = try Stage("a", workers: 2)
            #expect(
                Self.descriptors(stage.daemon.supervisorPID).values.contains { $0.contains("clbt-marker") },
                "the marker is not there to be inherited")
            for pid in stage.daemon.fleetPIDs() {
                let links = Self.descriptors(pid)
                #expect(!links.values.contains { $0.contains("clbt-marker") }, "child \(pid) has the starter's file: \(links)")
                for (number, target) in links {
                    let isKnown =
                        target.hasPrefix("socket:") || target.hasPrefix("anon_inode:") || target.hasPrefix("pipe:")
                        || target.hasPrefix("/memfd:")
                        || target.hasPrefix("/dev/null") || target.hasPrefix("/dev/urandom") || target.hasPrefix(stage.daemon.directory)
                    #expect(isKnown, "child \(pid) has \(number) → \(target)")
                }
            }
            let role = { (name: String) in try #require(stage.daemon.pid(name)) }
            let (writer, worker) = (Self.descriptors(try role("writer")), Self.descriptors(try role("worker")))
            #expect(writer.values.count { $0.contains("codex-lb:journal") } == 0, "the writer has a journal")
            #expect(worker.values.count { $0.contains("codex-lb:journal") } == 1, "a worker has its own journal only")
            #expect(!worker.values.contains { $0.contains("store.db") }, "a worker has the database open")
            #expect(!worker.values.contains { $0.contains("encryption.key") })
            let port = stage.daemon.address.split(separator: ":").last!
            #expect(Self.listening(writer, port: UInt16(port)!) == 0, "the writer has the listener")
            // The kernel's table is read in pieces while it changes: an entry may be missed.
            let isListening = eventually(5) { Self.listening(worker, port: UInt16(port)!) >= 1 }
            let table = procText("/proc/net/tcp").split(separator: "\n").filter { $0.contains(" 0A ") }
            #expect(isListening, "port \(port), worker \(worker), table \(table)")
        }

        private static func descriptors(_ pid: Int32) -> [Int: String] {
            var out: [Int: String] = [:]
            for name in (try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(pid)/fd")) ?? [] {  // gone: none
                if let target = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(pid)/fd/\(name)") {
                    out[Int(name) ?? -1] = target
                }
            }
            return out
        }

        /// How many of the sockets listen on this port.
        private static func listening(_ links: [Int: String], port: UInt16) -> Int {
            let text = procText("/proc/net/tcp")
            let hex = String(format: ":%04X", port)
            let inodes = Set(
                text.split(separator: "\n").dropFirst().compactMap { line -> String? in
                    let parts = line.split(separator: " ")
                    return parts.count > 9 && parts[1].hasSuffix(hex) && parts[3] == "0A" ? "socket:[\(parts[9])]" : nil
                })
            return links.values.count { inodes.contains($0) }
        }

        /// No key, token or client key is in any log or file of the data directory in the clear.
        @Test func noSecrets() throws {
            let secret = "sk-up-\(UUID().uuidString)"
            let token = "eyJ-\(UUID().uuidString)"
            let stage = try Stage(environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            try stage.daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: secret)
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: token, accountID: "acc")
            let clientKey = try stage.daemon.createKey("laptop")
            let wrong = "sk-clb-wrong-\(UUID().uuidString)"
            stage.upstream.script(
                secret, .error(401, code: "invalid_api_key", message: "Incorrect API key"), .error(500, code: "x"), .close, .cut(after: []))
            stage.upstream.script(token, .error(429, code: "usage_limit_reached"), .reset)
            #expect(try eventually(2) { try stage.metric("codex_lb_account_available{account=\"live\"}") == 1 })
            for i in 0..<8 {
                for key in [clientKey, wrong] {
                    _ = try? stage.daemon.post(
                        "/v1/responses", Stage.body(),
                        headers: [("X-Forwarded-For", "192.0.2.1"), ("Authorization", "Bearer \(key)"), ("X-Request-Id", "s-\(i)")])
                }
            }
            _ = try stage.daemon.get("/v1/models")
            _ = stage.daemon.killRole("writer")
            #expect(eventually(5) { stage.daemon.pid("writer") != nil })
            _ = try? stage.turn("last")
            #expect(stage.daemon.stop() == .code(0))
            try stage.daemon.start()
            #expect(stage.daemon.stop() == .code(0))
            let secrets = [secret, token, "refresh-\(token)", clientKey, wrong]
            var files = 0
            for case let path as String in FileManager.default.enumerator(atPath: stage.daemon.directory) ?? .init() {
                guard let bytes = FileManager.default.contents(atPath: stage.daemon.directory + "/" + path) else { continue }
                files += 1
                for secret in secrets { #expect(bytes.range(of: Data(secret.utf8)) == nil, "\(path) has a secret in it") }
            }
            #expect(files >= 3)
            #expect(!stage.daemon.wholeLog.isEmpty)
        }

        /// Files that hold secrets are for their owner only.
        @Test func fileModes() throws {
            let stage = try Stage("a")
            for (path, mode) in [("/encryption.key", 0o600), ("/store.db", 0o600), ("", 0o700), ("/run/control.sock", 0o600)] {
                var info = stat()
                #expect(stat(stage.daemon.data + path, &info) == 0)
                #expect(info.st_mode & 0o777 == mode_t(mode), "\(path): \(String(info.st_mode & 0o777, radix: 8))")
            }
        }

        /// The store of the Python codex-lb, or of anything else, is refused with a line that says what it is, and is not touched.
        @Test func foreignDatabase() throws {
            let daemon = try Daemon()
            try FileManager.default.createDirectory(
                atPath: daemon.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            let file = daemon.data + "/store.db"
            let sqlite = try Child(
                "/usr/bin/sqlite3",
                [
                    file,
                    "CREATE TABLE alembic_version(version_num TEXT); INSERT INTO alembic_version VALUES('abc'); CREATE TABLE accounts(id TEXT);",
                ],
                environment: [:])
            try #require(sqlite.wait() == .code(0))
            let before = try Data(contentsOf: URL(fileURLWithPath: file))
            try daemon.launch()
            #expect(daemon.child?.wait(10)?.isRefusal == true)
            #expect(daemon.log.contains("store.db"), "\(daemon.log)")
            #expect(daemon.log.lowercased().contains("python") || daemon.log.contains("alembic"), "\(daemon.log)")
            #expect(try Data(contentsOf: URL(fileURLWithPath: file)) == before)
            let add = try daemon.run("accounts", "add", "a", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "x\n")
            #expect(add.exit == .code(1) && !add.errors.isEmpty)
            #expect(try Data(contentsOf: URL(fileURLWithPath: file)) == before)
            let names = try FileManager.default.contentsOfDirectory(atPath: daemon.data)
            #expect(!names.contains { $0.hasPrefix("store.db-") }, "\(names)")
        }

        /// A file that is no database is refused too, untouched.
        @Test func noDatabase() throws {
            let daemon = try Daemon()
            try FileManager.default.createDirectory(
                atPath: daemon.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            let file = daemon.data + "/store.db"
            let before = Data("Dear diary, this is no database at all. ".utf8) + Data(repeating: 0x41, count: 5000)
            try before.write(to: URL(fileURLWithPath: file))
            try daemon.launch()
            #expect(daemon.child?.wait(10)?.isRefusal == true)
            #expect(daemon.log.contains("store.db"), "\(daemon.log)")
            #expect(try Data(contentsOf: URL(fileURLWithPath: file)) == before)
        }

        /// Another encryption key than the store's stops the start with a line that says so.
        @Test func wrongKey() throws {
            let stage = try Stage("a")
            #expect(stage.daemon.stop() == .code(0))
            let file = stage.daemon.data + "/encryption.key"
            let other = try Daemon()
            try other.addAccount("x", baseURL: "http://127.0.0.1:1", key: "x")
            let key = try Data(contentsOf: URL(fileURLWithPath: other.data + "/encryption.key"))
            try key.write(to: URL(fileURLWithPath: file))
            chmod(file, 0o600)
            try stage.daemon.launch()
            #expect(stage.daemon.child?.wait(15)?.isRefusal == true)
            #expect(stage.daemon.log.contains("encryption.key"), "\(stage.daemon.log)")
            #expect(!stage.daemon.log.contains(" supervisor ready "))
        }

        /// A missing key file is not silently replaced when there are credentials sealed with it.
        @Test func missingKey() throws {
            let stage = try Stage("a")
            #expect(stage.daemon.stop() == .code(0))
            unlink(stage.daemon.data + "/encryption.key")
            try stage.daemon.launch()
            #expect(stage.daemon.child?.wait(15)?.isRefusal == true)
            #expect(stage.daemon.log.contains("encryption.key"), "\(stage.daemon.log)")
        }

        /// A port in use: one line with the address, exit 1.
        @Test func portInUse() throws {
            let stage = try Stage("a")
            let second = try Daemon()
            try second.launch(listen: stage.daemon.address)
            #expect(second.child?.wait(10)?.isRefusal == true)
            #expect(second.log.contains(stage.daemon.address) && second.log.contains("--listen"), "\(second.log)")
            #expect(try stage.turn().status == 200)
        }

        /// A second server on the same data directory is refused and the first goes on.
        @Test func secondServer() throws {
            let stage = try Stage("a")
            let second = try Child(
                Daemon.binary, ["serve", "--listen", "127.0.0.1:0", "--workers", "1"], environment: stage.daemon.environment,
                errors: stage.daemon.directory + "/second")
            #expect(second.wait(10) == .code(1))
            let text = String(decoding: FileManager.default.contents(atPath: stage.daemon.directory + "/second") ?? Data(), as: UTF8.self)
            #expect(text.contains("Another codex-lb"), "\(text)")
            #expect(try stage.turn().status == 200)
            #expect(stage.daemon.status() != nil)
        }

        /// Settings that can't be used stop the start with exit 2 and the name of the setting.
        @Test(arguments: [
            ("CODEX_LB_WORKERS", "many"), ("CODEX_LB_WORKERS", "0"), ("CODEX_LB_IDLE_TIMEOUT_SECONDS", "-1"),
            ("CODEX_LB_LOG_FORMAT", "xml"),
            ("CODEX_LB_LOG_LEVEL", "loud"), ("CODEX_LB_DATABASE_URL", "mysql://x"), ("PORT", "99999"),
        ]) func badSettings(_ name: String, _ value: String) throws {
            let daemon = try Daemon([name: value])
            let result = try daemon.run(["serve"])
            #expect(result.exit == .code(2), "\(result)")
            #expect(result.errors.contains(name), "\(result.errors)")
        }

        /// Logs as JSON are one object per line, with the request's id on the lines of a turn.
        @Test func jsonLog() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_LOG_FORMAT": "json"])
            _ = try stage.turn("logged")
            #expect(stage.daemon.stop() == .code(0))
            var sawTurn = false
            for line in stage.daemon.log.split(separator: "\n") {
                let object = try? JSONSerialization.jsonObject(with: Data(line.utf8)) as? [String: Any]
                #expect(object?["level"] is String && object?["message"] is String, "\(line)")
                if object?["request_id"] as? String == "logged" { sawTurn = true }
            }
            #expect(sawTurn)
        }

        /// An account added while the server runs is used within a second, a removed one no more.
        @Test(arguments: Database.allCases) func changesTakeEffect(_ database: Database) throws {
            let stage = try Stage(on: database)
            #expect(try stage.turn(stream: false).status == 503)
            try stage.daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: "sk-up-a")
            #expect(try eventually(bound(1, debug: 3)) { try stage.turn(stream: false).status == 200 })
            #expect(try stage.daemon.run("accounts", "remove", "a").isGood)
            #expect(try eventually(bound(1, debug: 3)) { try stage.turn(stream: false).status == 503 })
        }

        /// /health and /metrics tell what happened, summed over the workers.
        @Test(arguments: Database.both) func metricsAndHealth(_ database: Database) throws {
            let stage = try Stage("a", "b", workers: 2, on: database)
            stage.always("b", .error(429, code: "usage_limit_reached", more: "\"resets_in_seconds\":600"))
            for i in 0..<4 { _ = try stage.turn("req-\(i)") }
            let live = try stage.daemon.get("/health/live")
            #expect(live.status == 200 && live.json["status"] as? String == "ok")
            let ready = try stage.daemon.get("/health/ready")
            #expect(ready.status == 200 && ready.json["status"] as? String == "ok")
            let accounts = ready.json["accounts"] as? [String: Any]
            #expect(accounts?["configured"] as? Int == 2 && accounts?["active"] as? Int == 2 && accounts?["limited"] as? Int == 1)
            let answer = try stage.daemon.get("/metrics")
            #expect(answer.header("content-type")?.hasPrefix("text/plain; version=0.0.4") == true)
            #expect(try stage.metric("codex_lb_workers_ready") == 2)
            #expect(try stage.metric("codex_lb_turns_total") == 4)
            #expect(try stage.metric("codex_lb_turns_open") == 0)
            #expect(try stage.metric("codex_lb_failovers_total") == 1)
            #expect(try stage.metric("codex_lb_input_tokens_total") == 400)
            #expect(try stage.metric("codex_lb_output_tokens_total") == 80)
            #expect(try stage.metric("codex_lb_account_available{account=\"b\"}") == 0)
            #expect(try stage.metric("codex_lb_account_in_flight{account=\"a\"}") == 0)
            #expect(try stage.metric("codex_lb_first_byte_seconds_count") == 4)
            #expect(try eventually(3) { try stage.metric("codex_lb_usage_records_acknowledged_total") == 4 })
            for line in answer.text.split(separator: "\n") where !line.hasPrefix("#") {
                #expect(Double(line.split(separator: " ").last!) != nil, "\(line)")
            }
        }

        /// Ready is 503 without an account that could serve.
        @Test func notReady() throws {
            let stage = try Stage()
            let ready = try stage.daemon.get("/health/ready")
            #expect(ready.status == 503 && ready.json["status"] as? String == "unavailable")
            #expect(try stage.daemon.get("/health/live").status == 200)
        }
    }
}
