import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// A temporary data directory and the real `codex-lb` on it. Everything it starts it ends, by pid, at the latest in `deinit`.
public final class Daemon: @unchecked Sendable {  // used by one test; only `address` and `connect` from several threads
    public static let binary = reachable(built)

    private static let built: String = {
        if let path = ProcessInfo.processInfo.environment["CODEX_LB_TEST_BINARY"], !path.isEmpty { return path }
        var buffer = [CChar](repeating: 0, count: 4096)
        let n = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let runner = String(decoding: buffer[..<max(0, n)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let candidates =
            [runner, CommandLine.arguments.first ?? ""].map { ($0 as NSString).deletingLastPathComponent + "/codex-lb" }
            + CommandLine.arguments.compactMap { $0.contains(".xctest") ? ($0 as NSString).deletingLastPathComponent + "/codex-lb" : nil }
        return candidates.first { access($0, X_OK) == 0 } ?? candidates[0]
    }()

    /// Where other users can't get at the build (root's clone below /root): a copy in a directory that they can, for as long as the tests run.
    private static func reachable(_ path: String) -> String {
        guard geteuid() == 0 else { return path }
        var isHidden = false
        var place = (path as NSString).deletingLastPathComponent
        while place.count > 1 {
            var info = stat()
            if stat(place, &info) != 0 || info.st_mode & 0o001 == 0 { isHidden = true }
            place = (place as NSString).deletingLastPathComponent
        }
        guard isHidden else { return path }
        let copy = copyDirectory + "/codex-lb"
        try? FileManager.default.copyItem(atPath: path, toPath: copy)  // where it fails, the tests that need it say so
        chmod(copyDirectory, 0o755)
        atexit { try? FileManager.default.removeItem(atPath: Daemon.copyDirectory) }  // nobody is left to be told
        return access(copy, X_OK) == 0 ? copy : path
    }

    private static let copyDirectory: String = {
        var template = Array((NSTemporaryDirectory() + "/codex-lb-binary-XXXXXX").utf8CString)
        return mkdtemp(&template).map { String(cString: $0) } ?? "/nonexistent"
    }()

    public let directory: String
    public var data: String { directory + "/data" }
    public var environment: [String: String]
    /// Its database in the PostgreSQL cluster that tests share, if it has one there.
    public let databaseName: String?
    /// Where its processes start; nil: where the tests do.
    public var workingDirectory: String?
    /// A program that becomes the server or the command, with its arguments: `setpriv --reuid …`.
    public var runner: [String] = []
    /// The program that is run; another path to it where `runner` is somebody who can't reach the usual one.
    public var binary = Daemon.binary
    private let database: Database
    public private(set) var child: Child?
    /// `127.0.0.1:PORT`, once it serves.
    public private(set) var address = ""
    private var logStart = 0
    private var strays: Set<Int32> = []

    public init(_ extra: [String: String] = [:], on database: Database = .sqlite) throws {
        var template = Array("/tmp/clbt.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw HarnessError("no temporary directory") }
        directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        var environment = [
            "PATH": "/usr/bin:/bin", "HOME": directory, "CODEX_LB_DATA_DIR": directory + "/data", "CODEX_LB_LOG_LEVEL": "debug",
            // No test's login is shown to the world.
            "CODEX_LB_AUTH_BASE_URL": "http://127.0.0.1:1",
        ]
        for (name, value) in ProcessInfo.processInfo.environment where name.hasPrefix("LD_") || name.hasPrefix("SWIFT_BACKTRACE") {
            environment[name] = value
        }
        let place = try database.make()
        databaseName = place?.name
        self.database = database
        environment["CODEX_LB_DATABASE_URL"] = place?.url
        environment.merge(extra) { $1 }
        self.environment = environment
    }

    deinit {
        endAll()
        if let databaseName { database.giveBack(databaseName) }
        if ProcessInfo.processInfo.environment["CODEX_LB_TEST_KEEP"] == nil {
            try? FileManager.default.removeItem(atPath: directory)  // a leftover in /tmp is no failure
        }
    }

    /// Kills the supervisor and whatever of its children is left.
    public func endAll() {
        if let child {
            if child.poll() == nil { for pid in childPIDs() { strays.insert(pid) } }
            child.signal(SIGKILL)
            _ = child.wait(5)
            self.child = nil
        }
        for pid in strays where Self.isOurs(pid, data: data) { kill(pid, SIGKILL) }
        strays = []
    }

    /// Whether a pid still is a process of this instance: its environment names our data directory.
    private static func isOurs(_ pid: Int32, data: String) -> Bool {
        guard let environment = FileManager.default.contents(atPath: "/proc/\(pid)/environ") else { return false }
        return String(decoding: environment, as: UTF8.self).contains(data)
    }

    // MARK: The server

    /// Starts `serve` and waits until it is ready.
    @discardableResult
    public func start(
        _ arguments: [String] = [], workers: Int? = 1, listen: String? = "127.0.0.1:0", seconds: Double = 20
    ) throws -> Self {
        try launch(workers: workers, arguments, listen: listen)
        try waitReady(seconds)
        return self
    }

    /// Starts `serve` without waiting. What is nil is left to the settings.
    public func launch(workers: Int? = 1, _ arguments: [String] = [], listen: String? = "127.0.0.1:0") throws {
        logStart = logBytes.count
        let command =
            runner + [binary, "serve"] + (listen.map { ["--listen", $0] } ?? []) + (workers.map { ["--workers", String($0)] } ?? [])
            + arguments
        child = try Child(
            command[0], Array(command.dropFirst()), environment: environment, errors: directory + "/log", directory: workingDirectory)
    }

    /// Starts `serve` as systemd does, with listening sockets as descriptors 3 and up; `names` is `LISTEN_FDNAMES`.
    public func launch(passing descriptors: [Int32], names: String? = nil) throws {
        logStart = logBytes.count
        // Numbers that no copy of another one can overwrite.
        let high = descriptors.map { fcntl($0, F_DUPFD_CLOEXEC, 64) }
        defer { for descriptor in high { close(descriptor) } }
        var environment = environment
        environment["LISTEN_FDNAMES"] = names
        // LISTEN_PID must be the server's own pid: the shell knows it and becomes the server.
        child = try Child(
            "/bin/sh", ["-c", "LISTEN_PID=$$ LISTEN_FDS=\(high.count) exec \"$0\" serve --workers 1", Self.binary],
            environment: environment, errors: directory + "/log", passing: high)
    }

    public func waitReady(_ seconds: Double = 20) throws {
        let isUp = eventually(seconds) {
            child?.poll() != nil || log.contains(" supervisor ready ") || log.contains("\"message\":\"ready\"")
        }
        guard isUp, child?.poll() == nil else {
            throw HarnessError("codex-lb is not ready (\(child?.poll()?.description ?? "still starting")):\n\(log)")
        }
        guard let line = log.split(separator: "\n").first(where: { $0.contains("listening") && $0.contains("address") }),
            let range = line.range(of: "address=") ?? line.range(of: "\"address\":\"")
        else { throw HarnessError("no listening address in the log:\n\(log)") }
        address = String(line[range.upperBound...].prefix { $0 != " " && $0 != "\"" })
        for pid in childPIDs() { strays.insert(pid) }
    }

    /// SIGTERM, then the exit; nil when it did not come in time.
    @discardableResult
    public func stop(_ seconds: Double = 15) -> Child.Exit? {
        guard let child else { return nil }
        for pid in childPIDs() { strays.insert(pid) }
        child.signal(SIGTERM)
        return child.wait(seconds)
    }

    private var logBytes: Data { FileManager.default.contents(atPath: directory + "/log") ?? Data() }
    /// What was logged since the last start.
    public var log: String { String(decoding: logBytes.dropFirst(logStart), as: UTF8.self) }
    public var wholeLog: String { String(decoding: logBytes, as: UTF8.self) }

    @discardableResult
    public func waitLog(_ text: String, seconds: Double = 10) -> Bool { eventually(seconds) { log.contains(text) } }

    public var supervisorPID: Int32 { child?.pid ?? 0 }

    /// Children of the supervisor now, from /proc.
    public func childPIDs() -> [Int32] {
        guard let child, let text = FileManager.default.contents(atPath: "/proc/\(child.pid)/task/\(child.pid)/children") else { return [] }
        return String(decoding: text, as: UTF8.self).split(separator: " ").compactMap { Int32($0.filter { $0.isNumber }) }
    }

    /// Those that serve: without the jobs that the supervisor has done beside them.
    public func fleetPIDs() -> [Int32] { childPIDs().filter { procText("/proc/\($0)/cmdline").split(separator: "\0").contains("role") } }

    /// How many processes the fleet has beside the supervisor: PostgreSQL has no writer.
    public func fleetSize(workers: Int) -> Int {
        workers + (environment["CODEX_LB_DATABASE_URL"]?.hasPrefix("postgresql") ?? false ? 0 : 1)
    }

    /// A child by role and slot as `ctl status` tells it; nil when it isn't running.
    public func pid(_ role: String, _ slot: Int = 0) -> Int32? {
        guard let children = status()?["children"] as? [[String: Any]] else { return nil }
        for entry in children where entry["role"] as? String == role && (entry["slot"] as? Int ?? 0) == slot {
            if let pid = entry["pid"] as? Int, pid > 0 {
                strays.insert(Int32(pid))
                return Int32(pid)
            }
        }
        return nil
    }

    /// Ends a child with SIGKILL; its pid.
    @discardableResult
    public func killRole(_ role: String, _ slot: Int = 0) -> Int32? {
        guard let pid = pid(role, slot) else { return nil }
        kill(pid, SIGKILL)
        return pid
    }

    public static func isAlive(_ pid: Int32) -> Bool {
        guard let text = FileManager.default.contents(atPath: "/proc/\(pid)/stat") else { return false }
        return !String(decoding: text, as: UTF8.self).contains(") Z ")
    }

    // MARK: The command line

    /// Runs a command of the binary and waits for its end.
    @discardableResult
    public func run(_ arguments: String..., input: String? = nil, environment extra: [String: String] = [:], seconds: Double = 20) throws
        -> CommandResult
    {
        try run(arguments, input: input, environment: extra, seconds: seconds)
    }

    public func run(_ arguments: [String], input: String? = nil, environment extra: [String: String] = [:], seconds: Double = 20) throws
        -> CommandResult
    {
        let name = directory + "/" + UUID().uuidString
        defer { for end in ["in", "out", "err"] { unlink("\(name).\(end)") } }
        if let input { try Data(input.utf8).write(to: URL(fileURLWithPath: name + ".in")) }
        let command = runner + [binary] + arguments
        let child = try Child(
            command[0], Array(command.dropFirst()), environment: environment.merging(extra) { $1 },
            input: input == nil ? "/dev/null" : name + ".in", output: name + ".out", errors: name + ".err", directory: workingDirectory)
        guard let exit = child.wait(seconds) else { throw HarnessError("codex-lb \(arguments.joined(separator: " ")) did not end") }
        func text(_ end: String) -> String {
            String(decoding: FileManager.default.contents(atPath: "\(name).\(end)") ?? Data(), as: UTF8.self)
        }
        return CommandResult(exit: exit, output: text("out"), errors: text("err"))
    }

    private func must(_ result: CommandResult, _ what: String) throws -> CommandResult {
        guard result.isGood else { throw HarnessError("\(what): \(result.exit): \(result.errors)\(result.output)") }
        return result
    }

    public func addAccount(_ name: String, baseURL: String, key: String) throws {
        _ = try must(try run("accounts", "add", name, "--base-url", baseURL, "--key-file", "-", input: key + "\n"), "accounts add")
    }

    /// A ChatGPT login with this access token.
    public func importAccount(_ name: String, baseURL: String, token: String, accountID: String) throws {
        let claims = Data(
            "{\"email\":\"\(name)@example.com\",\"https://api.openai.com/auth\":{\"chatgpt_account_id\":\"\(accountID)\",\"chatgpt_plan_type\":\"plus\"}}"
                .utf8)
        let idToken = "eyJhbGciOiJub25lIn0." + claims.base64EncodedString().replacingOccurrences(of: "=", with: "") + "."
        let file = directory + "/auth.\(name).json"
        let json =
            "{\"tokens\":{\"access_token\":\"\(token)\",\"refresh_token\":\"refresh-\(token)\",\"id_token\":\"\(idToken)\",\"account_id\":\"\(accountID)\"}}"
        try Data(json.utf8).write(to: URL(fileURLWithPath: file))
        defer { unlink(file) }
        _ = try must(try run("accounts", "import", file, "--name", name, "--base-url", baseURL), "accounts import")
    }

    /// The plain key.
    public func createKey(_ name: String, _ options: String...) throws -> String {
        try must(try run(["keys", "create", name] + options), "keys create").output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    /// `ctl status --json`; nil when no server answers.
    public func status() -> [String: Any]? {
        guard let result = try? run("ctl", "status", "--json"), result.isGood else { return nil }  // not running is an answer
        return try? JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [String: Any]
    }

    /// Usage records, newest first.
    public func records(last: Int = 10_000) throws -> [[String: Any]] {
        let result = try must(try run("requests", "--last", String(last), "--json"), "requests")
        return try JSONSerialization.jsonObject(with: Data(result.output.utf8)) as? [[String: Any]] ?? []
    }

    /// The one record of a request id, waited for: records are committed within milliseconds of the answer, not before it.
    public func record(_ requestID: String, seconds: Double = 5) throws -> [String: Any] {
        var found: [[String: Any]] = []
        try eventually(seconds, every: 0.02) {
            found = try records().filter { $0["request_id"] as? String == requestID }
            return !found.isEmpty
        }
        guard found.count == 1 else { throw HarnessError("\(found.count) records of \(requestID)") }
        return found[0]
    }

    // MARK: HTTP

    public func connect() throws -> HTTPConnection { try HTTPConnection(address) }

    /// One request on a connection of its own, answered whole.
    public func send(
        _ method: String, _ path: String, body: String? = nil, headers: [(String, String)] = [], seconds: Double = 20
    ) throws -> Answer {
        let connection = try connect()
        defer { connection.close() }
        try connection.send(method, path, body: body.map { Array($0.utf8) }, headers: headers)
        return try connection.answer(seconds)
    }

    public func post(_ path: String, _ body: String, headers: [(String, String)] = [], seconds: Double = 20) throws -> Answer {
        try send("POST", path, body: body, headers: headers, seconds: seconds)
    }

    public func get(_ path: String, headers: [(String, String)] = [], seconds: Double = 20) throws -> Answer {
        try send("GET", path, headers: headers, seconds: seconds)
    }
}
