import ArgumentParser
import ControlWire
import Settings
import Vocabulary

/// What every order takes, and how its end is told.
struct OrderOptions: ParsableArguments {
    @OptionGroup var data: DataOptions
    @Flag(name: .long, help: "One JSON object; \"error\" is null where it worked.") var json = false

    /// Carries an order out. Exit code 1 with the reason when it is refused or fails.
    func obey(waitMilliseconds: Int = Limits.controlAnswerMilliseconds, _ fill: (inout FleetOrder) -> Void, _ said: (FleetReply) -> String)
        throws
    {
        let client = try Ctl.connect(data.controlSettings())
        client.setPatience(milliseconds: waitMilliseconds)
        var order = FleetOrder()
        fill(&order)
        var frame = Frame()
        frame.fleetOrder = order
        guard case .fleetReply(let reply)? = try client.ask(frame).body else {
            complain("the server gave an answer this build does not know")
            throw ExitCode(1)
        }
        if case .stop = order.body { try client.waitEnd() }
        if json {
            print(
                JSONText.object([
                    ("error", .optional(reply.error.isEmpty ? nil : reply.error)), ("generation", .int(Int64(reply.generation))),
                    ("version", .optional(reply.version.isEmpty ? nil : reply.version)),
                    ("workers", .int(Int64(reply.workers))), ("milliseconds", .int(Int64(reply.milliseconds))),
                    ("notes", .raw(JSONText.array(reply.notes.map { $0.jsonQuoted }))),
                ]))
        } else {
            for note in reply.notes { complain(note) }
            if reply.error.isEmpty { print(said(reply)) } else { complain(reply.error) }
        }
        guard reply.error.isEmpty else { throw ExitCode(1) }
    }
}

extension Ctl {
    struct Reload: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Read the settings anew and change over to them.",
            discussion:
                "Comes back when the new workers serve, or with the reason why the old ones still do (exit code 1). Open turns finish where they are."
        )
        @OptionGroup var order: OrderOptions
        func run() throws {
            try order.obey(waitMilliseconds: Limits.reloadAnswerMilliseconds, { $0.reload = ReloadOrder() }) {
                "generation \($0.generation) serves with \($0.workers) workers after \($0.milliseconds) ms"
            }
        }
    }

    struct Upgrade: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Change over to the program that is now where the server's was.",
            discussion:
                "It is asked first whether it can take over. Comes back when it serves, or with the reason why the old one still does (exit code 1)."
        )
        @OptionGroup var order: OrderOptions
        func run() throws {
            try order.obey(waitMilliseconds: Limits.reloadAnswerMilliseconds, { $0.upgrade = UpgradeOrder() }) {
                "codex-lb \($0.version) serves as generation \($0.generation) with \($0.workers) workers after \($0.milliseconds) ms"
            }
        }
    }

    struct Scale: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Have so many workers.", discussion: "Until the next reload, which takes the number from the settings.")
        @Argument(help: "1 to 64.") var workers: Int
        @OptionGroup var order: OrderOptions

        func validate() throws {
            guard (1...Limits.workersMax).contains(workers) else {
                throw ValidationError("\(workers) workers; give 1 to \(Limits.workersMax)")
            }
        }
        func run() throws {
            try order.obey({ $0.scale.workers = UInt32(workers) }) { "there will be \($0.workers) worker\($0.workers == 1 ? "" : "s")" }
        }
    }

    struct Drain: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Take all workers out of service, or have one replaced.",
            discussion:
                "Without --worker open turns finish, nobody follows, and further clients wait at the listeners until ctl scale or ctl reload. With it a fresh worker takes the place of that one."
        )
        @Option(name: .long, help: "The number of one worker, as ctl status tells it.") var worker: UInt32?
        @OptionGroup var order: OrderOptions
        func run() throws {
            try order.obey({
                $0.drain = DrainOrder()
                if let worker { $0.drain.worker = worker }
            }) { _ in
                worker.map { "worker.\($0) leaves as soon as another is ready" } ?? "the workers finish; clients wait at the listeners"
            }
        }
    }

    struct Stop: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Stop the server: open turns finish, then this command comes back.")
        @OptionGroup var order: OrderOptions
        func run() throws {
            try order.obey({ $0.stop = StopOrder() }) { _ in "the server has stopped" }
        }
    }

    struct LogLevel: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "log-level", abstract: "Log more or less.",
            discussion: "Until the next reload, which takes the level from the settings.")
        @Argument(help: "trace, debug, info, notice, warning, error or critical.") var level: String
        @OptionGroup var order: OrderOptions

        func validate() throws {
            guard Settings.logLevels.contains(level) else { throw ValidationError("\"\(level)\"; give \(Settings.logLevelNames)") }
        }
        func run() throws {
            try order.obey({ $0.log.level = level }) { _ in "the level is \(level)" }
        }
    }
}
