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

        func run() throws {
            let settings = try data.settings()
            let client = try Ctl.connect(settings)
            var frame = Frame()
            frame.statusRequest = StatusRequest()
            guard case .statusReply(let status)? = try client.ask(frame).body else {
                complain("the server gave an answer this build does not know")
                throw ExitCode(1)
            }
            if json { print(Self.json(status)) } else { Self.table(status) }
        }

        static func table(_ status: StatusReply) {
            print(
                "supervisor \(status.supervisorPid)  codex-lb \(status.version)  \(status.state)  generation \(status.generation)  up \(seconds(status.ageMs))"
            )
            print("listening  \(status.listeners.joined(separator: " "))")
            print("data       \(status.dataDirectory)")
            print("database   \(status.database)\(status.revision.isEmpty ? "" : "  revision \(status.revision)")")
            if status.workers == 0 { print("DRAINED    no worker serves; clients wait until: codex-lb ctl scale N, or ctl reload") }
            if !status.reloadProblem.isEmpty { print("RELOAD     the last one failed: \(status.reloadProblem.printable)") }
            if !status.databaseProblem.isEmpty { print("PROBLEM    \(status.databaseProblem)") }
            printTable(
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
                ("listeners", .raw("[" + status.listeners.map { JSONText.quoted($0) }.joined(separator: ",") + "]")),
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

/// JSON for `--json` outputs: flat objects in a fixed order of keys.
enum JSONText {
    enum Value {
        case string(String), int(Int64), bool(Bool), null, raw(String)
        static func optional(_ text: String?) -> Value { text.map { .string($0) } ?? .null }
        static func optional(_ number: Int64?) -> Value { number.map { .int($0) } ?? .null }
    }

    static func object(_ members: [(String, Value)]) -> String {
        "{"
            + members.map { name, value in
                let text =
                    switch value {
                    case .string(let s): quoted(s)
                    case .int(let n): String(n)
                    case .bool(let b): b ? "true" : "false"
                    case .null: "null"
                    case .raw(let r): r
                    }
                return quoted(name) + ":" + text
            }.joined(separator: ",") + "}"
    }

    /// Of members that are JSON already.
    static func array(_ members: [String]) -> String { "[" + members.joined(separator: ",") + "]" }

    static func quoted(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case _ where !scalar.isPlain: out += scalar.escaped
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }
}

/// Columns as wide as their longest cell. What clients and upstreams wrote must not command the terminal.
func printTable(_ titles: [String], _ rows: [[String]]) {
    for line in tableLines(titles, rows) { print(line) }
}

func tableLines(_ titles: [String], _ rows: [[String]]) -> [String] {
    let rows = rows.map { row in row.map(\.printable) }
    let widths = titles.indices.map { i in ([titles] + rows).map { $0[i].count }.max() ?? 0 }
    return ([titles] + rows).map { row in
        var line = ""
        for (i, cell) in row.enumerated() {
            line += i == row.count - 1 ? cell : cell + String(repeating: " ", count: widths[i] - cell.count + 2)
        }
        return line
    }
}
