public import Logging
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
    public var logLevel: Logger.Level
    public var metadata: Logger.Metadata = [:]

    public init(role: String, format: Format, hasPriority: Bool, level: Logger.Level) {
        (self.role, self.format, self.hasPriority, self.logLevel) = (role, format, hasPriority, level)
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
            out += "{\"time\":\"\(time.rfc3339)\",\"level\":\"\(level.rawValue)\",\"role\":\"\(role)\",\"message\":\(Self.json(message))"
            for (key, value) in fields { out += ",\(Self.json(key)):\(Self.json(value))" }
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
        value.isEmpty || value.unicodeScalars.contains { $0 == " " || $0 == "\"" || $0 == "=" || !$0.isPlain } ? json(value) : value
    }

    static func json(_ text: String) -> String {
        var out = "\""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case _ where !scalar.isPlain: out += scalar.escaped
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }
}

public enum Logs {
    /// The logger of a process. Call once, at start.
    public static func make(role: String, json: Bool, journal: Bool, level: String) -> Logger {
        let handler = LineLogHandler(
            role: role, format: json ? .json : .logfmt, hasPriority: journal, level: Logger.Level(rawValue: level) ?? .info)
        LogSink.standard.setFormat { handler.line(Clock.wall, $0, $1, $2) }
        return Logger(label: role) { _ in handler }
    }
}
