public import Logging
public import Vocabulary

/// What the access log says of one request. Fields that a request does not have are left out.
public struct AccessLine: Sendable {
    /// When its answer was over.
    public var time = WallTime(milliseconds: 0)
    public var requestID = ""
    /// An address, or `unix`.
    public var client = ""
    /// The name of the client's key.
    public var key = ""
    public var method = ""
    /// One of ours, else the path that was asked for.
    public var route = ""
    public var account = ""
    public var model = ""
    public var status: Int?
    /// Empty when all is well.
    public var code = ""
    public var inputTokens, outputTokens: Int64?
    public var milliseconds = 0
    public var firstByteMilliseconds: Int?
    /// Of bodies.
    public var bytesIn = 0
    public var bytesOut = 0
    /// Requests to upstreams.
    public var attempts: Int?

    public init() {}

    private enum Value {
        case text(String)
        case number(Int64)
    }

    private var fields: [(String, Value)] {
        func number(_ value: Int?) -> Value? { value.map { .number(Int64($0)) } }
        func text(_ value: String) -> Value? { value.isEmpty ? nil : .text(value) }
        let all: [(String, Value?)] = [
            ("request_id", text(requestID)), ("client", text(client)), ("key", text(key)), ("method", text(method)), ("route", text(route)),
            ("account", text(account)), ("model", text(model)), ("status", number(status)), ("code", text(code)),
            ("input_tokens", inputTokens.map { .number($0) }), ("output_tokens", outputTokens.map { .number($0) }),
            ("ms", number(milliseconds)), ("first_byte_ms", number(firstByteMilliseconds)), ("bytes_in", number(bytesIn)),
            ("bytes_out", number(bytesOut)), ("attempts", number(attempts)),
        ]
        return all.compactMap { name, value in value.map { (name, $0) } }
    }

    /// One line, its end included. In the form of the log's other lines, so that both may share a file.
    func text(role: String, _ format: LineLogHandler.Format, hasPriority: Bool) -> String {
        var out = hasPriority ? "<\(LineLogHandler.priority(.info))>" : ""
        switch format {
        case .logfmt:
            if !hasPriority { out += time.rfc3339 + " " }
            out += "INFO \(role) \(AccessLog.message)"
            for (name, value) in fields {
                switch value {
                case .text(let text): out += " \(name)=\(LineLogHandler.logfmtValue(text))"
                case .number(let number): out += " \(name)=\(number)"
                }
            }
        case .json:
            out += "{\"time\":\"\(time.rfc3339)\",\"level\":\"info\",\"role\":\"\(role)\",\"message\":\"\(AccessLog.message)\""
            for (name, value) in fields {
                switch value {
                case .text(let text): out += ",\"\(name)\":\(text.jsonQuoted)"
                case .number(let number): out += ",\"\(name)\":\(number)"
                }
            }
            out += "}"
        }
        return out + "\n"
    }
}

/// One line per request, to stderr or a file of its own, through a `LogSink`: no request waits for its line, and lines that nobody takes are
/// dropped and counted.
public final class AccessLog {
    static let message = "request"

    private let role: String
    private let format: LineLogHandler.Format
    private let hasPriority: Bool
    private let sink: LogSink

    /// `file` nil: where the log's other lines go. A file that can't be opened is told in `log`, and lines go there too.
    public init(file: String?, role: String, json: Bool, journal: Bool, _ log: Logger) {
        (self.role, format) = (role, json ? .json : .logfmt)
        guard let file else {
            (sink, hasPriority) = (.standard, journal)
            return
        }
        let own = LogSink()
        if let problem = own?.open(file) ?? (own == nil ? "no descriptor is free" : nil) {
            log.error("\(problem); access lines go to standard error")
            (sink, hasPriority) = (.standard, journal)
        } else {
            (sink, hasPriority) = (own!, false)
            let handler = LineLogHandler(role: role, format: format, hasPriority: false)
            sink.setFormat { handler.line(Clock.wall, $0, $1, $2) }
        }
    }

    public func write(_ line: AccessLine) { sink.write(line.text(role: role, format, hasPriority: hasPriority)) }

    /// It has a file of its own.
    private var isOwn: Bool { sink !== LogSink.standard }

    /// Opens its file by its name again.
    public func reopen(_ log: Logger) {
        guard isOwn, let problem = sink.reopen() else { return }
        log.error("\(problem); access lines go on to the file that was open")
    }

    /// Tells `count` of the lines that its file did not take beyond the `known` ones, and gives their number.
    public func dropped(since known: Int, _ count: (Int) -> Void) -> Int { isOwn ? sink.dropped(since: known, count) : 0 }

    /// For the end of the process.
    public func flush(milliseconds: Int) { if isOwn { sink.flush(milliseconds: milliseconds) } }
}
