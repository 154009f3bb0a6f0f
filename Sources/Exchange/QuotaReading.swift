public import HTTPWire
public import Vocabulary

/// What an upstream says of one of an account's quota windows.
public struct QuotaWindow: Sendable, Equatable {
    /// 0 … 1000: thousandths of the window that are used up.
    public var usedPermille: Int
    /// When it begins anew.
    public var resetsAt: WallTime
}

/// The quotas in the head of a ChatGPT upstream's answer (`x-codex-primary-used-percent` and its like; every answer has them, refusals too).
public struct QuotaReading: Sendable, Equatable {
    /// Mostly five hours.
    public var primary: QuotaWindow?
    /// Mostly a week.
    public var secondary: QuotaWindow?

    /// Nil where nothing usable is said. Numbers come from outside: what is no number, or no time within a year, says nothing.
    public init?(_ fields: HeaderFields, now: WallTime) {
        primary = Self.window(fields, "primary", now)
        secondary = Self.window(fields, "secondary", now)
        if primary == nil, secondary == nil { return nil }
    }

    private static func window(_ fields: HeaderFields, _ name: String, _ now: WallTime) -> QuotaWindow? {
        func number(_ what: String) -> Double? {
            fields.first(named: "x-codex-\(name)-\(what)").flatMap { Double($0) }.flatMap { $0.isFinite ? $0 : nil }
        }
        guard let used = number("used-percent") else { return nil }
        let year = 366.0 * 86_400
        let wait: Double
        if let seconds = number("reset-after-seconds") {
            wait = seconds
        } else if let at = number("reset-at") {
            wait = at - Double(now.seconds)
        } else {
            return nil
        }
        guard wait > 0, wait <= year else { return nil }
        return QuotaWindow(
            usedPermille: Int(min(max(used, 0), 100) * 10), resetsAt: WallTime(milliseconds: now.milliseconds + Int64(wait * 1000)))
    }
}
