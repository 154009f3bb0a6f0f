import DaemonHarness
import FakeUpstream
import Foundation
import Testing

/// Real processes, one test at a time: the machine that runs them has two cores.
@Suite(.serialized) enum Integration {}

/// A running server whose accounts all live on one scripted upstream. Account `a` has the key `sk-up-a`.
struct Stage {
    let upstream: FakeUpstream
    let daemon: Daemon

    init(_ accounts: String..., workers: Int = 1, on database: Database = .sqlite, environment: [String: String] = [:]) throws {
        upstream = try FakeUpstream()
        daemon = try Daemon(environment, on: database)
        for name in accounts { try daemon.addAccount(name, baseURL: upstream.baseURL, key: Self.key(name)) }
        try daemon.start(workers: workers)
    }

    /// Another server beside one that uses the same upstream.
    init(_ upstream: FakeUpstream, _ daemon: Daemon) { (self.upstream, self.daemon) = (upstream, daemon) }

    static func key(_ name: String) -> String { "sk-up-\(name)" }

    func script(_ account: String, _ behaviours: Behaviour...) { for b in behaviours { upstream.script(Self.key(account), b) } }
    func always(_ account: String, _ behaviour: Behaviour) { upstream.always(Self.key(account), behaviour) }
    /// POSTs that came with this account's key.
    func calls(_ account: String) -> Int { upstream.calls(Self.key(account)) }
    func requests(_ account: String) -> [RecordedRequest] { upstream.requests(Self.key(account)).filter { $0.method == "POST" } }

    /// One streamed Responses turn under this request id.
    func turn(_ id: String = "req-1", path: String = "/v1/responses", stream: Bool = true, seconds: Double = 20) throws -> Answer {
        try daemon.post(path, Self.body(stream: stream), headers: [("X-Request-Id", id)], seconds: seconds)
    }

    static func body(stream: Bool = true, model: String = "gpt-5.4", more: String = "") -> String {
        "{\"model\":\"\(model)\",\"input\":\"hi\",\"stream\":\(stream)\(more)}"
    }
    static func chat(stream: Bool, more: String = "") -> String {
        "{\"model\":\"gpt-5.4\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":\(stream)\(more)}"
    }

    /// The value of a metric's line, `name{labels}`.
    func metric(_ name: String) throws -> Double? {
        let text = try daemon.get("/metrics").text
        return text.split(separator: "\n").first { $0.hasPrefix(name + " ") }.flatMap { Double($0.split(separator: " ").last!) }
    }

    /// What `/health/ready` says: the status of the answer, its word for everything and that for the database.
    func health() throws -> (code: Int, status: String, database: String) {
        let answer = try daemon.get("/health/ready", seconds: 5)
        return (
            answer.status, answer.json["status"] as? String ?? "", (answer.json["checks"] as? [String: Any])?["database"] as? String ?? ""
        )
    }

    func isAvailable(_ account: String) throws -> Bool { try metric("codex_lb_account_available{account=\"\(account)\"}") == 1 }
}

extension Daemon {
    /// `db restore` of a server that has just stopped. A process of PostgreSQL that worked for it, or for a command, may be there a moment
    /// longer, and a restore is refused meanwhile.
    func restore(_ file: String, _ options: String...) throws -> CommandResult {
        var result = try run(["db", "restore", file] + options, seconds: 60)
        try eventually(10, every: 0.2) {
            guard !result.isGood, result.errors.contains("stop every instance first") else { return true }
            result = try run(["db", "restore", file] + options, seconds: 60)
            return false
        }
        return result
    }
}

extension Answer {
    var types: [String] { events.map(\.type) }
    /// The error code of the one `response.failed`.
    var failedCode: String? {
        let failed = events.filter { $0.type == "response.failed" }
        guard failed.count == 1 else { return nil }
        return ((failed[0].json["response"] as? [String: Any])?["error"] as? [String: Any])?["code"] as? String
    }
}

extension Child.Exit {
    /// A start that was refused: 1, or 78 where only an operator can mend it.
    var isRefusal: Bool { self == .code(1) || self == .code(78) }
}

/// A number of kilobytes in what the kernel tells of a process (`proc_pid_status(5)`): `VmHWM` is the peak, `VmRSS` what is there now. 0 if the process is gone.
func statusKilobytes(_ pid: Int32, _ name: String) -> Int {
    let status = String(decoding: FileManager.default.contents(atPath: "/proc/\(pid)/status") ?? Data(), as: UTF8.self)
    let line = status.split(separator: "\n").first { $0.hasPrefix(name + ":") } ?? ""
    return Int(line.filter(\.isNumber)) ?? 0
}
