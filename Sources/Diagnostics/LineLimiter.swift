import Logging
internal import Vocabulary

/// Decides which lines are written: so many of one kind per second; the rest are counted, and one line tells how many there were.
///
/// A kind is the message without its metadata: what a client can repeat at will differs in those only.
struct LineLimiter {
    /// Lines left out in one second.
    struct Summary: Equatable {
        var kind: String
        var level: Logger.Level
        var count: Int
    }

    private struct Window {
        var level: Logger.Level
        var end: Instant
        var count = 0
        var leftOut = 0
    }
    private var windows: [String: Window] = [:]
    private let linesMax: Int
    private static let windowMilliseconds = 1_000
    /// Further kinds share one window.
    static let kindsMax = 128

    init(linesMax: Int = Limits.logLinesPerSecondMax) { self.linesMax = linesMax }

    /// Whether this line is to be written; else it is counted.
    mutating func admits(_ kind: String, _ level: Logger.Level, now: Instant) -> Bool {
        // What is critical names what would be lost with it.
        if level == .critical { return true }
        let kind = windows[kind] != nil || windows.count < Self.kindsMax ? kind : ""
        var window = windows[kind] ?? Window(level: level, end: now.adding(milliseconds: Self.windowMilliseconds))
        defer { windows[kind] = window }
        // An old window without losses begins anew; one with losses waits for its summary.
        if now >= window.end, window.leftOut == 0 {
            window = Window(level: level, end: now.adding(milliseconds: Self.windowMilliseconds))
        }
        window.count += 1
        if window.count <= linesMax { return true }
        window.leftOut += 1
        return false
    }

    /// When the next summary is due; nil when nothing was left out.
    var dueAt: Instant? { windows.values.lazy.filter { $0.leftOut > 0 }.map(\.end).min() }

    /// Summaries of the windows that are over, oldest first.
    mutating func summaries(now: Instant) -> [Summary] {
        let over = windows.filter { $0.value.end <= now }
        for kind in over.keys { windows[kind] = nil }
        return over.filter { $0.value.leftOut > 0 }.sorted { ($0.value.end, $0.key) < ($1.value.end, $1.key) }.map {
            Summary(kind: $0.key, level: $0.value.level, count: $0.value.leftOut)
        }
    }
}
