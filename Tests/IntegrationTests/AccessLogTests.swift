import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// One line per request, whatever becomes of it.
    @Suite struct AccessLogs {
        /// A server whose access log is a file, as JSON.
        private static func stage(_ more: [String: String] = [:], workers: Int = 1) throws -> (Stage, String) {
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_LOG_FORMAT": "json"].merging(more) { $1 })
            let path = daemon.directory + "/access.log"
            daemon.environment["CODEX_LB_ACCESS_LOG"] = daemon.environment["CODEX_LB_ACCESS_LOG"] ?? path
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            try daemon.start(workers: workers)
            return (Stage(upstream, daemon), path)
        }

        /// Those that are whole: the last one may be on its way.
        private static func lines(_ path: String) throws -> [[String: Any]] {
            let text = procText(path)
            return try text[..<(text.lastIndex(of: "\n") ?? text.startIndex)].split(separator: "\n").map {
                try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [String: Any], "\($0)")
            }
        }

        /// The line of the request with this id, waited for; there is only one.
        private static func line(_ id: String, _ path: String) throws -> [String: Any] {
            var found: [[String: Any]] = []
            try eventually(5) {
                found = try lines(path).filter { $0["request_id"] as? String == id }
                return !found.isEmpty
            }
            #expect(found.count == 1, "\(id): \(found)")
            return found.first ?? [:]
        }

        /// A turn's line says what its record says, and what its client got.
        @Test func turns() throws {
            let (stage, path) = try Self.stage()
            let key = try stage.daemon.createKey("team-a")
            let bearer = ("Authorization", "Bearer \(key)")
            #expect(try eventually(5) { try stage.daemon.get("/v1/models").status == 401 })
            let body = Stage.body()
            let answer = try stage.daemon.post("/v1/responses", body, headers: [("X-Request-Id", "turn-1"), bearer])
            #expect(answer.types.last == "response.completed")
            let line = try Self.line("turn-1", path)
            #expect(
                line["message"] as? String == "request" && line["role"] as? String == "worker.0" && line["client"] as? String == "127.0.0.1"
            )
            #expect(line["key"] as? String == "team-a" && line["account"] as? String == "a" && line["model"] as? String == "gpt-5.4")
            #expect(line["method"] as? String == "POST" && line["route"] as? String == "/v1/responses" && line["status"] as? Int == 200)
            #expect(line["input_tokens"] as? Int == 100 && line["output_tokens"] as? Int == 20 && line["attempts"] as? Int == 1)
            #expect(line["bytes_in"] as? Int == body.utf8.count && line["bytes_out"] as? Int == answer.body.count && line["code"] == nil)
            let (first, whole) = (try #require(line["first_byte_ms"] as? Int), try #require(line["ms"] as? Int))
            #expect(first <= whole && whole < 10_000)
            #expect(!procText(path).contains(key))

            stage.script("a", .status(400, #"{"error":{"message":"m","type":"t","code":"teapot"}}"#))
            #expect(try stage.daemon.post("/v1/responses", body, headers: [("X-Request-Id", "turn-2"), bearer]).status == 400)
            let refused = try Self.line("turn-2", path)
            #expect(refused["status"] as? Int == 400 && refused["code"] as? String == "teapot" && refused["account"] as? String == "a")
        }

        /// What is answered here, refused or unreadable has its line too; no line has a query.
        @Test func otherRequests() throws {
            let (stage, path) = try Self.stage()
            let connection = try stage.daemon.connect()
            let requests: [(method: String, path: String, status: Int, code: String?)] = [
                ("GET", "/health/live", 200, nil), ("GET", "/nothing/here?secret=1", 404, "not_found"),
                ("DELETE", "/v1/responses", 405, "method_not_allowed"), ("OPTIONS", "/v1/responses", 204, nil),
                ("GET", "/metrics", 200, nil),
                ("HEAD", "/v1/models", 200, nil), ("GET", "/v1/usage", 200, nil),
            ]
            for (i, request) in requests.enumerated() {
                try connection.send(request.method, request.path, body: nil, headers: [("X-Request-Id", "r-\(i)")])
                // The harness knows no answer without the body that its head tells of.
                _ = request.method == "HEAD" ? try connection.head() : try connection.answer()
                let line = try Self.line("r-\(i)", path)
                #expect(line["status"] as? Int == request.status && line["code"] as? String == request.code, "\(line)")
                #expect(
                    line["route"] as? String == String(request.path.prefix { $0 != "?" }) && line["method"] as? String == request.method)
                #expect(line["bytes_in"] as? Int == 0 && line["account"] == nil && line["attempts"] == nil && line["input_tokens"] == nil)
            }
            #expect(try Self.line("r-5", path)["bytes_out"] as? Int == 0)

            let broken = try stage.daemon.connect()
            try broken.send("NONSENSE\r\n\r\n")
            #expect(try broken.answer().status == 400)
            let bad = try stage.daemon.connect()
            try bad.post("/v1/responses", "{", headers: [("X-Request-Id", "bad-json")])
            #expect(try bad.answer().status == 400)
            #expect(try Self.line("bad-json", path)["bytes_in"] as? Int == 1)
            #expect(try eventually(5) { try Self.lines(path).contains { $0["status"] as? Int == 400 && $0["method"] == nil } })
            #expect(try Self.lines(path).count == requests.count + 2)
            #expect(!procText(path).contains("secret"))
        }

        /// A client that leaves: before its body is whole, before its answer, in the middle of it.
        @Test func clientsThatLeave() throws {
            let (stage, path) = try Self.stage()
            let early = try stage.daemon.connect()
            try early.send(HTTPConnection.head("POST", "/v1/responses", bodyCount: 100, headers: [("X-Request-Id", "early")]) + "{")
            #expect(eventually(5) { (try? stage.metric("codex_lb_open_connections")) ?? 0 >= 2 })
            early.reset()
            let line = try Self.line("early", path)
            #expect(line["status"] as? Int == nil || line["status"] as? Int == 408, "\(line)")
            #expect(line["code"] as? String == "client_gone" && line["bytes_in"] as? Int == 1)

            stage.always("a", .stall([Canned.created(), Canned.delta("x")], Gate(), []))
            let middle = try stage.daemon.connect()
            try middle.post("/v1/responses", Stage.body(), headers: [("X-Request-Id", "middle")])
            #expect(try middle.head().status == 200)
            _ = try middle.event()
            middle.close()
            let cut = try Self.line("middle", path)
            #expect(cut["status"] as? Int == 200 && cut["account"] as? String == "a" && cut["code"] as? String != nil, "\(cut)")
            #expect(try #require(cut["bytes_out"] as? Int) > 0 && cut["output_tokens"] as? Int != nil)
            // It is there when the record is, and once.
            _ = try stage.daemon.record("middle")
            #expect(try Self.lines(path).count { $0["request_id"] as? String == "middle" } == 1)
        }

        /// Whose address a line has: the peer's, that of a PROXY header, that of a trusted proxy's field; of nobody else's field.
        @Test func clients() throws {
            let (stage, path) = try Self.stage(["CODEX_LB_TRUSTED_PROXIES": "127.0.0.0/8,10.0.0.0/8"])
            func client(_ id: String, _ headers: (String, String)...) throws -> String? {
                _ = try stage.daemon.get("/health/live", headers: headers + [("X-Request-Id", id)])
                return try Self.line(id, path)["client"] as? String
            }
            #expect(try client("peer") == "127.0.0.1")
            #expect(try client("field", ("X-Forwarded-For", "1.1.1.1, 203.0.113.5, 10.0.0.9")) == "203.0.113.5")
            #expect(try client("rfc", ("Forwarded", "for=\"[2001:db8::7]:80\"")) == "2001:db8::7")

            let (plain, other) = try Self.stage()
            _ = try plain.daemon.get("/health/live", headers: [("X-Forwarded-For", "203.0.113.5"), ("X-Request-Id", "forged")])
            #expect(try Self.line("forged", other)["client"] as? String == "127.0.0.1")

            let daemon = try Daemon(["CODEX_LB_TRUSTED_PROXIES": "unix", "CODEX_LB_LOG_FORMAT": "json"])
            let log = daemon.directory + "/access.log"
            daemon.environment["CODEX_LB_ACCESS_LOG"] = log
            let socket = daemon.directory + "/h.sock"
            try daemon.start(listen: "unix:\(socket),proxy")
            for (i, (header, shown)) in [("PROXY TCP6 2001:db8::1 ::1 1 2\r\n", "2001:db8::1"), ("PROXY UNKNOWN\r\n", "unix")].enumerated()
            {
                let connection = try HTTPConnection(unix: socket)
                try connection.send(
                    header + HTTPConnection.head("GET", "/health/live", bodyCount: nil, headers: [("X-Request-Id", "p\(i)")]))
                #expect(try connection.answer().status == 200)
                #expect(try Self.line("p\(i)", log)["client"] as? String == shown)
            }
        }

        /// SIGUSR1 opens the file by its name again: what was moved away stays as it is, and no line is missing.
        @Test func rotation() throws {
            let (stage, path) = try Self.stage(workers: 2)
            func send(_ ids: Range<Int>) throws {
                for i in ids { #expect(try stage.daemon.get("/health/live", headers: [("X-Request-Id", "n-\(i)")]).status == 200) }
            }
            try send(0..<20)
            #expect(try eventually(5) { try Self.lines(path).count == 20 })
            #expect(rename(path, path + ".1") == 0)
            stage.daemon.child?.signal(SIGUSR1)
            #expect(eventually(5) { access(path, F_OK) == 0 })
            // Each worker opens it in its own time; what comes meanwhile is in one file or the other.
            try send(20..<60)
            #expect(try eventually(5) { try Self.lines(path).count + Self.lines(path + ".1").count == 60 })
            #expect(
                try eventually(5) {
                    try send(60..<61)
                    return try Self.lines(path).contains { $0["request_id"] as? String == "n-60" }
                })
            // Mode 0640; other tests of this process may have narrowed what a child inherits.
            let mode = try #require(try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int)
            #expect(mode & 0o027 == 0 && mode & 0o600 == 0o600)
        }

        /// Nobody reads the pipe that the lines go to: every request is answered all the same, and the lines that are lost are counted.
        @Test func nobodyReads() throws {
            let daemon = try Daemon()
            let fifo = daemon.directory + "/access"
            try #require(mkfifo(fifo, 0o600) == 0)
            let end = open(fifo, O_RDWR | O_NONBLOCK)
            defer { close(end) }
            while write(end, "x", 1) == 1 {}
            daemon.environment["CODEX_LB_ACCESS_LOG"] = fifo
            try daemon.start()
            let connection = try daemon.connect()
            for _ in 0..<3_000 {
                try connection.send("GET", "/health/live", body: nil)
                #expect(try connection.answer(5).status == 200)
            }
            let stage = Stage(try FakeUpstream(), daemon)
            #expect(try eventually(5) { try stage.metric("codex_lb_log_lines_dropped_total") ?? 0 > 0 })
            #expect(daemon.stop() == .code(0))
        }

        /// Off, there is no line; `stderr`, as logfmt, they stand among the others. A reload changes it.
        @Test func places() throws {
            let daemon = try Daemon()
            daemon.workingDirectory = daemon.directory
            try daemon.start()
            _ = try daemon.get("/health/live", headers: [("X-Request-Id", "silent")])
            try Data("CODEX_LB_ACCESS_LOG=stderr\n".utf8).write(to: URL(fileURLWithPath: daemon.directory + "/.env"))
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(
                try eventually(5) {
                    _ = try daemon.get("/health/live", headers: [("X-Request-Id", "told")])
                    return daemon.log.contains(
                        "INFO worker.0 request request_id=told client=127.0.0.1 method=GET route=/health/live status=200 ms=")
                })
            #expect(!daemon.log.contains("silent"))
            // What can't be written is told before anything changes.
            try Data("CODEX_LB_ACCESS_LOG=\(daemon.directory)\n".utf8).write(to: URL(fileURLWithPath: daemon.directory + "/.env"))
            let reload = try daemon.run("ctl", "reload")
            #expect(reload.isGood || reload.errors.contains("CODEX_LB_ACCESS_LOG"))
            #expect(!reload.isGood || daemon.waitLog("access lines go to standard error"))
        }
    }
}
