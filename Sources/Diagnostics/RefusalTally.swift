public import Logging
internal import Vocabulary

extension Logger {
    /// A refused turn, told with its error code: the first of a code at once, those after it in one line a second whose `count` is their number.
    /// The other fields are those of the last one.
    public func refused(_ code: String, _ fields: @autoclosure () -> Metadata) {
        info("\(RefusalTally.message)", metadata: fields().merging([RefusalTally.codeField: "\(code)"]) { $1 })
    }
}

/// Decides when refused turns are told: at most one line per error code and second, and the counts of the lines are all refusals.
struct RefusalTally {
    /// Makes the line about `count` refusals with this code.
    typealias Line = (_ count: Int, _ code: String) -> String

    static let message = "proxy_error_response"
    static let codeField = "code"
    static let countField = "count"
    /// The codes of upstreams are theirs to choose, also how long they are; beyond so many at once the others are counted as one.
    static let codesMax = 128
    static let otherCodes = "other"
    private static let windowMilliseconds = 1_000

    private struct Window {
        var end: Instant
        var held = 0
        /// Of the last one that is held.
        var line: Line?
    }
    private var windows: [String: Window] = [:]

    /// What a refusal gives: a line now, or a sum that is due at `dueAt`.
    enum Verdict {
        case tell(String)
        case held(isFirst: Bool)
    }

    mutating func refused(_ told: String, now: Instant, _ line: @escaping Line) -> Verdict {
        var code = told.cut(utf8: Limits.recordCodeBytesMax)
        if windows[code] == nil, windows.count >= Self.codesMax {
            windows = windows.filter { $0.value.held > 0 || $0.value.end > now }
        }
        if windows[code] == nil, windows.count >= Self.codesMax { code = Self.otherCodes }
        guard var window = windows[code], window.held > 0 || window.end > now else {
            windows[code] = Window(end: now.adding(milliseconds: Self.windowMilliseconds))
            return .tell(line(1, code))
        }
        window.held += 1
        window.line = line
        windows[code] = window
        return .held(isFirst: window.held == 1)
    }

    /// When the next sum is due; nil when none is held.
    var dueAt: Instant? { windows.values.lazy.filter { $0.held > 0 }.map(\.end).min() }

    /// The sums that are due, oldest first. Each begins a second of its own.
    mutating func sums(now: Instant) -> [String] {
        let due = windows.filter { $0.value.held > 0 && $0.value.end <= now }.sorted { ($0.value.end, $0.key) < ($1.value.end, $1.key) }
        for (code, _) in due { windows[code] = Window(end: now.adding(milliseconds: Self.windowMilliseconds)) }
        return due.compactMap { code, window in window.line?(window.held, code) }
    }
}
