import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Where log lines go must not matter to whoever waits for an answer.
    @Suite struct Logging {
        /// A server whose stderr goes to this descriptor, serving on `unix:` in its directory.
        private static func serve(_ stderr: String, in daemon: Daemon) throws -> (Child, String) {
            let path = daemon.directory + "/http.sock"
            let child = try Child(
                "/bin/sh", ["-c", "exec \"$0\" serve --workers 1 --listen unix:\(path) \(stderr)", Daemon.binary],
                environment: daemon.environment, errors: daemon.directory + "/log")
            #expect(
                eventually(10) { child.poll() != nil || (try? HTTPConnection(unix: path)) != nil }, "it does not start")
            return (child, path)
        }

        private static func get(_ path: String, _ target: String, body: String? = nil, seconds: Double = 5) throws -> Answer {
            let connection = try HTTPConnection(unix: path)
            defer { connection.close() }
            try connection.send(body == nil ? "GET" : "POST", target, body: body.map { Array($0.utf8) })
            return try connection.answer(seconds)
        }

        /// A pipe that nobody reads: 3,000 refused requests later health, metrics, ctl and SIGTERM work, and whoever reads at last hears
        /// how much is missing.
        @Test func nobodyReads() throws {
            let daemon = try Daemon()
            let fifo = daemon.directory + "/err"
            try #require(mkfifo(fifo, 0o600) == 0)
            let reader = open(fifo, O_RDONLY | O_NONBLOCK)
            defer { close(reader) }
            // The pipe is full before the server's first line.
            let writer = open(fifo, O_WRONLY | O_NONBLOCK)
            while write(writer, "x", 1) == 1 {}
            defer { close(writer) }
            let (child, path) = try Self.serve("2>>\(fifo)", in: daemon)
            defer { child.signal(SIGKILL) }
            for _ in 0..<3_000 { #expect(try Self.get(path, "/v1/responses", body: "{}").status == 400) }
            #expect(try Self.get(path, "/health/live").status == 200)
            #expect(try daemon.run("ctl", "status").isGood)
            #expect(try Self.get(path, "/metrics").text.contains("codex_lb_log_lines_dropped_total"))
            child.signal(SIGTERM)
            #expect(child.wait(10) == .code(0))
        }

        /// Where stderr is closed, full or without a reader, the server starts, serves, and no line lands in another file.
        @Test(arguments: ["2>&-", "2>/dev/full", "2>&1 | true", "0<&- 1>&- 2>&-"]) func noStderr(_ redirection: String) throws {
            let daemon = try Daemon()
            let (child, path) = try Self.serve(redirection, in: daemon)
            defer { child.signal(SIGKILL) }
            for _ in 0..<50 { #expect(try Self.get(path, "/v1/responses", body: "{}").status == 400) }
            #expect(try Self.get(path, "/health/live").status == 200)
            #expect(try daemon.run("accounts", "add", "a", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "k\n").isGood)
            let pid = try #require(
                daemon.run("ctl", "status", "--json").output.firstMatch(of: /"pid":(\d+)/).flatMap { Int32($0.output.1) })
            kill(pid, SIGTERM)
            #expect(eventually(10) { !Daemon.isAlive(pid) })
        }

        /// What a log's lines say of refused turns: code and count of each.
        private static func refusals(_ daemon: Daemon) -> [(code: String, count: Int)] {
            daemon.log.split(separator: "\n").filter { $0.contains(" proxy_error_response ") }.map { line in
                (
                    line.firstMatch(of: /\bcode=(\S+)/).map { String($0.output.1) } ?? "",
                    line.firstMatch(of: /\bcount=(\d+)/).flatMap { Int($0.output.1) } ?? 0
                )
            }
        }

        /// One client can't fill the log: thousands of refusals are one line a second for each error code, the first at once, and the counts
        /// are all of them; the last sum needs no further refusal to come out.
        @Test func refusalsAreCounted() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let start = Date()
            var sent: [String: Int] = [:]
            for n in 0..<4_000 {
                // Three kinds at once, of different frequency: bad JSON, no model, an upstream's refusal of a turn.
                let kind = n % 100 == 99 ? "teapot" : n % 3 == 0 ? "model" : "json"
                if kind == "teapot" { stage.script("a", .status(400, #"{"error":{"message":"m","type":"t","code":"teapot"}}"#)) }
                try connection.post("/v1/responses", kind == "teapot" ? Stage.body() : kind == "model" ? "{}" : "{")
                let answer = try connection.answer()
                #expect(answer.status == 400)
                sent[((answer.json["error"] as? [String: Any])?["code"] as? String) ?? "", default: 0] += 1
                if n == 0 { #expect(stage.daemon.waitLog(" count=1 ", seconds: 1)) }
            }
            let seconds = Int(Date().timeIntervalSince(start)) + 1
            #expect(sent.count >= 2 && sent["teapot"] == 40, "\(sent)")
            func told() -> [String: Int] { Dictionary(Self.refusals(stage.daemon).map { ($0.code, $0.count) }, uniquingKeysWith: +) }
            #expect(eventually(2) { told() == sent }, "\(told()) of \(sent)")
            for code in sent.keys {
                let lines = Self.refusals(stage.daemon).count { $0.code == code }
                #expect(lines <= seconds + 1, "\(lines) lines of \(code) in \(seconds) s")
            }
        }

        /// An upstream that has another code for each refusal is counted too, in no more lines than codes are kept for.
        @Test func codesWithoutEnd() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            let start = Date()
            for n in 0..<400 {
                stage.script("a", .status(400, #"{"error":{"message":"m","type":"t","code":"code_\#(n)"}}"#))
                try connection.post("/v1/responses", Stage.body())
                #expect(try connection.answer().status == 400)
            }
            let seconds = Int(Date().timeIntervalSince(start)) + 1
            #expect(eventually(2) { Self.refusals(stage.daemon).reduce(0) { $0 + $1.count } == 400 })
            let lines = Self.refusals(stage.daemon)
            #expect(lines.count <= 129 * (seconds + 1), "\(lines.count) lines in \(seconds) s")
            if seconds == 1 { #expect(lines.contains { $0.code == "other" && $0.count > 100 }) }
        }

        /// A stop tells the sum that was not due yet.
        @Test func refusalsAreToldAtTheStop() throws {
            let stage = try Stage("a")
            let connection = try stage.daemon.connect()
            for _ in 0..<50 {
                try connection.post("/v1/responses", "{}")
                #expect(try connection.answer().status == 400)
            }
            connection.close()
            #expect(stage.daemon.stop() == .code(0))
            #expect(Self.refusals(stage.daemon).reduce(0) { $0 + $1.count } == 50, "\(stage.daemon.log)")
        }
    }
}
