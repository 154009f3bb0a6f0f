import ArgumentParser
import ControlWire
import Settings
import Vocabulary

/// Talks to the running supervisor.
struct Ctl: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ctl", abstract: "Ask the running server, and tell it what to do.",
        subcommands: [Status.self, Reload.self, Scale.self, Drain.self, Upgrade.self, Stop.self, LogLevel.self])

    static func connect(_ settings: Settings) throws -> ControlClient {
        if let client = try ControlClient.connect(settings) { return client }
        complain("no server runs on \(settings.dataDirectory); start one with: codex-lb serve")
        throw ExitCode(1)
    }

    struct Status: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Show the supervisor and its children.")
        @OptionGroup var data: DataOptions
        @Flag(name: .long, help: "One JSON object.") var json = false
        @OptionGroup var live: LiveTable

        func validate() throws { try live.check(json: json) }

        func run() throws {
            let settings = try data.controlSettings()
            if json { return print(Self.json(try Self.status(settings))) }
            try live.show { Self.lines(try Self.status(settings)) }
        }

        private static func status(_ settings: Settings) throws -> StatusReply {
            let client = try Ctl.connect(settings)
            var frame = Frame()
            frame.statusRequest = StatusRequest()
            guard case .statusReply(let status)? = try client.ask(frame).body else {
                complain("the server gave an answer this build does not know")
                throw ExitCode(1)
            }
            return status
        }

        private static func lines(_ status: StatusReply) -> [String] {
            var lines = [
                "supervisor \(status.supervisorPid)  codex-lb \(status.version)  \(status.state)  generation \(status.generation)  up \(seconds(status.ageMs))",
                "listening  \(status.listeners.joined(separator: " "))",
                "data       \(status.dataDirectory)",
                "database   \(status.database)\(status.revision.isEmpty ? "" : "  revision \(status.revision)")",
            ]
            if status.workers == 0 { lines.append("DRAINED    no worker serves; clients wait until: codex-lb ctl scale N, or ctl reload") }
            if !status.reloadProblem.isEmpty { lines.append("RELOAD     the last one failed: \(status.reloadProblem.printable)") }
            if !status.databaseProblem.isEmpty { lines.append("PROBLEM    \(status.databaseProblem.printable)") }
            return lines
                + tableLines(
                    ["PID", "ROLE", "GENERATION", "STATE", "AGE", "RESTARTS", "CONNECTIONS"],
                    status.children.map { child in
                        [
                            child.pid == 0 ? "-" : String(child.pid), child.role == "worker" ? "worker.\(child.slot)" : child.role,
                            child.role == "worker" ? String(child.generation) : "-", child.state,
                            seconds(child.ageMs), String(child.restarts), child.role == "worker" ? String(child.connections) : "-",
                        ]
                    })
        }

        static func seconds(_ milliseconds: UInt64) -> String {
            let s = milliseconds / 1000
            return s < 60 ? "\(s)s" : s < 3600 ? "\(s / 60)m\(s % 60)s" : "\(s / 3600)h\(s / 60 % 60)m"
        }

        static func json(_ status: StatusReply) -> String {
            let children = status.children.map { child in
                JSONText.object([
                    ("pid", .int(child.pid)), ("role", .string(child.role)), ("slot", .int(Int64(child.slot))),
                    ("generation", .int(Int64(child.generation))), ("state", .string(child.state)), ("age_ms", .int(Int64(child.ageMs))),
                    ("restarts", .int(Int64(child.restarts))), ("connections", .int(Int64(child.connections))),
                ])
            }
            return JSONText.object([
                ("pid", .int(status.supervisorPid)), ("version", .string(status.version)), ("state", .string(status.state)),
                ("generation", .int(Int64(status.generation))), ("age_ms", .int(Int64(status.ageMs))),
                ("listeners", .raw("[" + status.listeners.map { $0.jsonQuoted }.joined(separator: ",") + "]")),
                ("data_directory", .string(status.dataDirectory)),
                ("database", .string(status.database)), ("revision", .string(status.revision)),
                ("database_problem", .optional(status.databaseProblem.isEmpty ? nil : status.databaseProblem)),
                ("workers", .int(Int64(status.workers))),
                ("reload_problem", .optional(status.reloadProblem.isEmpty ? nil : status.reloadProblem)),
                ("children", .raw("[" + children.joined(separator: ",") + "]")),
            ])
        }
    }
}
