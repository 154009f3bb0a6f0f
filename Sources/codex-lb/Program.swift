import ArgumentParser
import ControlWire
import Diagnostics
import Logging
import Platform
import PostgresStore
import Schema
import Settings
import SupervisorRole
import Vocabulary
import WorkerRole
import WriterRole

#if canImport(Glibc)
    import Glibc
#endif

@main
struct CodexLB: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "codex-lb",
        abstract: "A load balancer for LLM accounts: clients speak the OpenAI and Codex APIs to one address.",
        discussion: """
            First steps:
              codex-lb accounts add main --key-file key.txt \\
                --base-url https://api.openai.com/v1
              codex-lb serve
              curl http://127.0.0.1:2455/v1/responses \\
                -d '{"model":"gpt-5.4","input":"Hello","stream":true}'
            Signals: codex-lb help signals
            """,
        version: "codex-lb \(Version.text)",
        subcommands: [
            Serve.self, Accounts.self, Keys.self, EncryptionKey.self, Requests.self, Audit.self, SettingsCommand.self, Ctl.self,
            Database.self,
            Config.self, Role.self,
            Demo.self,
            DemoUpstreamCommand.self,
        ])

    /// `help signals` is no command's help; `help nosuch` would show the general help and end well.
    private static func answerHelp() throws {
        let arguments = CommandLine.arguments.dropFirst()
        guard arguments.first == "help", let name = arguments.dropFirst().first, !name.hasPrefix("-") else { return }
        if name == "signals" {
            print(HelpSignals.text)
            throw ExitCode.success
        }
        guard !configuration.subcommands.contains(where: { $0._commandName == name }) else { return }
        throw ValidationError("there is no command \"\(name)\"")
    }

    /// Synchronous on purpose: the main thread runs the loop.
    static func main() {
        signal(SIGPIPE, SIG_IGN)
        Descriptor.fillStandard()
        // The environment may hold a database's password, and every process of ours opens or inherits secrets.
        Process.forbidDumps()
        var isServer = Environment.current[Heritage.serverVariable] != nil
        var status: Int32 = 0
        do {
            try answerHelp()
            var command = try parseAsRoot()
            isServer = isServer || command is Serve
            try command.run()
        } catch let code as ExitCode {
            status = code.rawValue
        } catch {
            // Usage errors are 2, as everywhere; help and version are 0.
            let code = exitCode(for: error)
            let text = fullMessage(for: error)
            if code == .success { print(text) } else { LogSink.standard.write(text + "\n") }
            status = code == .success ? 0 : code == .validationFailure ? 2 : 1
        }
        let code = Process.flushOutput()
        if code != 0, status == 0, !isServer {
            complain("writing to standard output: \(String(cString: strerror(code)))")
            status = 1
        }
        LogSink.standard.flush(milliseconds: isServer ? Limits.logFlushMilliseconds : Limits.commandFlushMilliseconds)
        Glibc.exit(status)
    }
}

/// Where the data of an instance is; every command that touches it takes this.
struct DataOptions: ParsableArguments {
    @Option(name: .customLong("data-dir"), help: "Data directory (default: $CODEX_LB_DATA_DIR, $STATE_DIRECTORY or ~/.codex-lb).")
    var dataDirectory: String?

    var flags: Settings.Flags {
        var flags = Settings.Flags()
        flags.dataDirectory = dataDirectory
        return flags
    }

    func settings() throws -> Settings { try loadSettings(flags) }

    /// For who only talks to the server: where that is counts. What is wrong with other settings it says itself, when it is to use them.
    func controlSettings() throws -> Settings {
        let environment = try gatherEnvironment()
        if let good = try? settingsOf(environment, flags) { return good }  // see above
        let places = ["HOME", "PWD", "CODEX_LB_DATA_DIR", "CODEX_LB_RUNTIME_DIR", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"]
        do { return try settingsOf(environment.filter { places.contains($0.key) }, flags) } catch {
            complain("\(error)")
            throw ExitCode(2)
        }
    }
}

func loadSettings(_ flags: Settings.Flags = Settings.Flags(), databaseURL: String? = nil) throws -> Settings {
    var environment = try gatherEnvironment()
    if let databaseURL { environment["CODEX_LB_DATABASE_URL"] = databaseURL }
    do {
        return try settingsOf(environment, flags)
    } catch {
        let isFlag = databaseURL != nil && error.name == "CODEX_LB_DATABASE_URL"
        complain(isFlag ? "\(error)".replacing("CODEX_LB_DATABASE_URL", with: "--url", maxReplacements: 1) : "\(error)")
        throw ExitCode(2)
    }
}

/// What a whole environment amounts to.
func settingsOf(_ environment: [String: String], _ flags: Settings.Flags) throws(SettingsError) -> Settings {
    var settings = try Settings(environment: environment, flags: flags, processors: Processors.allowed)
    if let path = settings.database.sqlitePath { settings.database.url = .sqlite(path: realPath(path)) }
    return settings
}

/// Where a file really is: its lock, log and copies stand beside it, whatever names lead there. Of one that is not there yet its directory's.
func realPath(_ path: String) -> String {
    func resolved(_ path: String) -> String? {
        guard let found = realpath(path, nil) else { return nil }
        defer { free(found) }
        return String(cString: found)
    }
    if let real = resolved(path) { return real }
    guard let slash = path.lastIndex(of: "/"), slash > path.startIndex, let directory = resolved(String(path[..<slash])) else {
        return path
    }
    return (directory == "/" ? "" : directory) + path[slash...]
}

/// A line for whoever runs the command; of a server's child it is one of the server's log.
func complain(_ words: String) {
    // Names in it may come from a file of somebody else's.
    let text = words.split(separator: "\n", omittingEmptySubsequences: false).map { String($0).printable }.joined(separator: "\n")
    let environment = Environment.current
    guard environment[Heritage.serverVariable] != nil,
        let settings = try? Settings(environment: environment, processors: 1)  // what is wrong with them is what is being told
    else { return LogSink.standard.write("codex-lb: \(text)\n") }
    // Whatever level is set: these lines say what was done to the database, or why it can't be served from.
    let log = makeLog("database", settings)
    log.log(level: max(.notice, log.logLevel), "\(text)")
}

/// Lines go to systemd's journal, which knows their priority by a prefix.
private func writesJournal(_ settings: Settings) -> Bool { settings.journalStream.map { $0 == Descriptor.identity(2) } ?? false }

/// A line for whoever waits for a command to go on.
func tell(_ text: String) { LogSink.standard.write(text + "\n") }

func makeLog(_ role: String, _ settings: Settings) -> Logger {
    let toJournal = writesJournal(settings)
    let log = Logs.make(role: role, json: settings.logFormat == .json, journal: toJournal, level: settings.logLevel)
    if let file = settings.logFile, let problem = LogSink.standard.open(file) { log.error("\(problem); lines go to standard error") }
    return log
}

private func makeAccessLog(_ role: String, _ settings: Settings, _ log: Logger) -> AccessLog? {
    var path: String?
    switch settings.accessLog {
    case .off: return nil
    case .stderr: break
    case .file(let file): path = file
    }
    return AccessLog(file: path, role: role, json: settings.logFormat == .json, journal: writesJournal(settings), log)
}

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Run the proxy: supervisor, writer and workers.")

    @Option(
        name: .long,
        help:
            "ADDRESS:PORT, [V6]:PORT or unix:/PATH, then ,proxy for the PROXY protocol, ,mode=0660 ,group=NAME for a Unix socket; may be given several times (default: 127.0.0.1:2455)."
    )
    var listen: [String] = []

    @Option(name: .long, help: "Proxy workers, 1 to 64, or auto: one for each CPU that this process may use (the default).")
    var workers: String?

    @OptionGroup var data: DataOptions

    @Flag(name: .customLong("report-settings"), help: .hidden) var reportsSettings = false

    func run() throws {
        var flags = Settings.Flags()
        flags.listen = listen
        flags.workers = workers
        flags.dataDirectory = data.dataDirectory
        let succession = try received()
        let started = Environment.current
        if reportsSettings { return try report(try loadSettings(flags), rehearses: succession != nil) }
        if let succession { return try goOn(succession, started, flags) }
        let settings = try loadSettings(flags)
        let log = makeLog("supervisor", settings)
        for (name, nearest) in settings.unknown(in: try gatherEnvironment()) {
            log.warning("no such setting: it does nothing", metadata: ["name": "\(name)", "nearest": "\(nearest)"])
        }
        try checkAddresses(settings)
        let environment = try gatherEnvironment()
        throw ExitCode(SupervisorRole.run(settings: settings, environment: environment, source: source(started, flags), log: log))
    }

    private func source(_ started: [String: String], _ flags: Settings.Flags) -> SettingsSource {
        SettingsSource(
            arguments: Array(CommandLine.arguments.dropFirst()) + ["--report-settings"], environment: started,
            settings: { environment throws(SettingsError) in try settingsOf(environment, flags) },
            logger: { makeLog("supervisor", $0) }, commandLine: CommandLine.arguments, build: build)
    }

    private var build: Build { Build(schema: Schema.head.id) }

    /// What another program of this process leaves us, or would leave.
    private func received() throws -> Succession? {
        do {
            guard let succession = try Succession.received() else { return nil }
            guard reportsSettings, !succession.isUsable else { return succession }
            complain("codex-lb \(Version.text) can't go on from the state that codex-lb \(succession.versionBefore) is in")
        } catch {
            complain("codex-lb \(Version.text) can't go on from where the server is: \(error)")
        }
        throw ExitCode(1)
    }

    /// In settings that this program has checked already: no file is read that might have changed since.
    private func goOn(_ succession: Succession, _ started: [String: String], _ flags: Settings.Flags) throws {
        let settings: Settings
        do { settings = try settingsOf(succession.environment, flags) } catch {
            complain("\(error)")
            throw ExitCode(2)
        }
        throw ExitCode(
            SupervisorRole.run(
                settings: settings, environment: succession.environment, source: source(started, flags), succeeding: succession,
                log: makeLog("supervisor", settings)))
    }

    private func checkAddresses(_ settings: Settings) throws {
        for address in settings.listen {
            guard case .failure(let error) = ListenerSpec.parse(address) else { continue }
            complain("\(error)")
            throw ExitCode(2)
        }
    }

    /// In the child of a server that reloads: all that can be known of the settings before anything is started with them. Then the whole
    /// environment that they are in, each `NAME=VALUE` with a NUL behind it.
    /// Who `rehearses` an upgrade says in front of it what it is.
    private func report(_ settings: Settings, rehearses: Bool) throws {
        try checkAddresses(settings)
        var files = [("CODEX_LB_LOG_FILE", settings.logFile)]
        if case .file(let path) = settings.accessLog { files.append(("CODEX_LB_ACCESS_LOG", path)) }
        for case (let name, let file?) in files where access(file, F_OK) == 0 && access(file, W_OK) != 0 {
            complain("\(name): \(file) can't be written: \(String(cString: strerror(errno)))")
            throw ExitCode(1)
        }
        if case .postgresql(let url) = settings.database.url {
            // libpq waits longer than an operator should for hosts that say nothing at all.
            let hosts = url.hosts.filter { !$0.isDirectory }
            let isAnswered = hosts.contains {
                Sockets.answers($0.name, port: $0.port, milliseconds: Limits.reloadConnectMilliseconds / hosts.count)
            }
            guard hosts.count < url.hosts.count || hosts.isEmpty || isAnswered else {
                complain("\(url): no host answers; check the addresses, the network and the firewall")
                throw ExitCode(1)
            }
            _ = try LocalStore.failing { try PostgresStore.server(url) }
        }
        if rehearses { print("\(Build.variable)=\(build.text)", terminator: "\0") }
        for (name, value) in try gatherEnvironment() { print("\(name)=\(value)", terminator: "\0") }
    }
}

/// What the supervisor starts. Not for people.
struct Role: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "role", abstract: "Run one process of the fleet.", shouldDisplay: false)

    @Argument(help: "worker or writer.") var name: String

    func run() throws {
        guard let heritage = Heritage.received() else {
            complain("role \(name) is started by codex-lb serve only")
            throw ExitCode(2)
        }
        // A terminal or a service manager signals every process of the group. Only the supervisor takes that as the order to stop:
        // it tells the others in their turn, and its death is the end of the control socket.
        for number in [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTTIN, SIGTTOU] { signal(number, SIG_IGN) }
        let settings = try loadSettings()
        switch name {
        case "worker":
            let role = "worker.\(heritage.slot)"
            let log = makeLog(role, settings)
            let accessLog = makeAccessLog(role, settings, log)
            let code = WorkerRole.run(heritage: heritage, settings: settings, log: log, accessLog: accessLog)
            accessLog?.flush(milliseconds: Limits.logFlushMilliseconds)
            throw ExitCode(code)
        case "writer": throw ExitCode(WriterRole.run(heritage: heritage, settings: settings, log: makeLog("writer", settings)))
        default:
            complain("no such role: \(name)")
            throw ExitCode(2)
        }
    }
}
