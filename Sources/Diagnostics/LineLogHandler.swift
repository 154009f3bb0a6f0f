public import Logging
internal import Synchronization
internal import Vocabulary

/// Writes each event as one line to stderr, logfmt or JSON, through `LogSink`: whoever logs never waits.
///
/// logfmt: `2026-11-23T10:00:00.123Z INFO worker.0 turn failed request_id=… code=…`
public struct LineLogHandler: LogHandler {
    public enum Format: Sendable { case logfmt, json }

    /// `supervisor`, `writer`, `worker.3`.
    let role: String
    let format: Format
    /// Lines start with `<N>` (sd-daemon(3)), so that the journal knows their priority.
    let hasPriority: Bool
    /// One for the whole process: an operator may change it at any time.
    public var logLevel: Logger.Level {
        get { Logs.level }
        set { Logs.level = newValue }
    }
    public var metadata: Logger.Metadata = [:]

    public init(role: String, format: Format, hasPriority: Bool) {
        (self.role, self.format, self.hasPriority) = (role, format, hasPriority)
    }

    public subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    public func log(event: LogEvent) {
        let message = "\(event.message)"
        if message == RefusalTally.message {
            return LogSink.standard.write(refusal: event.metadata.flatMap { $0[RefusalTally.codeField] }.map { "\($0)" } ?? "") {
                count, code in
                line(event, message, [RefusalTally.codeField: "\(code)", RefusalTally.countField: "\(count)"])
            }
        }
        LogSink.standard.write(message, event.level) { line(event, message, [:]) }
    }

    /// The line of an event, as of now; `more` wins over its fields.
    private func line(_ event: LogEvent, _ message: String, _ more: Logger.Metadata) -> String {
        let own = (event.metadata ?? [:]).merging(more) { $1 }
        var fields = metadata.map { ($0.key, "\($0.value)") }
        for (key, value) in own { fields.append((key, "\(value)")) }
        fields.sort { $0.0 < $1.0 }
        return line(Clock.wall, event.level, message, fields)
    }

    func line(_ time: WallTime, _ level: Logger.Level, _ message: String, _ fields: [(String, String)]) -> String {
        var out = hasPriority ? "<\(Self.priority(level))>" : ""
        switch format {
        case .logfmt:
            if !hasPriority { out += time.rfc3339 + " " }
            out += "\(level.rawValue.uppercased()) \(role) \(Self.oneLine(message))"
            for (key, value) in fields { out += " \(key)=\(Self.logfmtValue(value))" }
        case .json:
            out += "{\"time\":\"\(time.rfc3339)\",\"level\":\"\(level.rawValue)\",\"role\":\"\(role)\",\"message\":\(message.jsonQuoted)"
            for (key, value) in fields { out += ",\(key.jsonQuoted):\(value.jsonQuoted)" }
            out += "}"
        }
        return out + "\n"
    }

    static func priority(_ level: Logger.Level) -> Int {
        switch level {
        case .critical: 2
        case .error: 3
        case .warning: 4
        case .notice: 5
        case .info: 6
        case .debug, .trace: 7
        }
    }

    /// An event is one line, whoever chose its text.
    static func oneLine(_ text: String) -> String { text.printable }

    static func logfmtValue(_ value: String) -> String {
        value.isEmpty || value.unicodeScalars.contains { $0 == " " || $0 == "\"" || $0 == "=" || !$0.isPlain } ? value.jsonQuoted : value
    }
}

public enum Logs {
    private static let levelNumber = Atomic<Int>(Logger.Level.allCases.firstIndex(of: .info)!)
    /// Of all loggers of this process.
    public static var level: Logger.Level {
        get { Logger.Level.allCases[levelNumber.load(ordering: .relaxed)] }
        set { levelNumber.store(Logger.Level.allCases.firstIndex(of: newValue)!, ordering: .relaxed) }
    }
    /// What the supervisor says to its children: a level, if one is named, and whether to open the log file anew.
    public static func obey(_ level: String, reopens: Bool, _ log: Logger) {
        if !level.isEmpty { setLevel(level) }
        guard reopens, let problem = LogSink.standard.reopen() else { return }
        log.error("\(problem); lines go on to the file that was open")
    }

    /// By its name; an unknown one changes nothing.
    public static func setLevel(_ name: String) { if let level = Logger.Level(rawValue: name) { self.level = level } }

    /// The logger of a process. Call at its start; after a reload the supervisor takes another.
    public static func make(role: String, json: Bool, journal: Bool, level: String) -> Logger {
        self.level = Logger.Level(rawValue: level) ?? .info
        let handler = LineLogHandler(role: role, format: json ? .json : .logfmt, hasPriority: journal)
        LogSink.standard.setFormat { handler.line(Clock.wall, $0, $1, $2) }
        return Logger(label: role) { _ in handler }
    }
}
