#if canImport(Glibc)
    import Glibc
#endif

/// A point on the monotonic clock, in nanoseconds. Shared by every process of the host (CLOCK_MONOTONIC), meaningless on another.
@frozen public struct Instant: Comparable, Hashable, Sendable {
    public var nanoseconds: UInt64
    @inlinable public init(nanoseconds: UInt64) { self.nanoseconds = nanoseconds }
    @inlinable public static func < (a: Instant, b: Instant) -> Bool { a.nanoseconds < b.nanoseconds }
    /// A moment no clock reaches: the deadline of what has none.
    public static let never = Instant(nanoseconds: .max)

    /// This instant plus `milliseconds`; saturates at `never`.
    @inlinable public func adding(milliseconds: Int) -> Instant {
        let (wait, isLong) = UInt64(max(0, milliseconds)).multipliedReportingOverflow(by: 1_000_000)
        let (sum, overflow) = nanoseconds.addingReportingOverflow(wait)
        return isLong || overflow ? .never : Instant(nanoseconds: sum)
    }

    /// Whole milliseconds from `earlier` to this instant; 0 if it lies before.
    @inlinable public func milliseconds(since earlier: Instant) -> Int {
        nanoseconds <= earlier.nanoseconds ? 0 : Int((nanoseconds - earlier.nanoseconds) / 1_000_000)
    }
}

/// A moment of the calendar in milliseconds since 1970-01-01T00:00:00Z: what is stored and what other hosts understand.
@frozen public struct WallTime: Comparable, Hashable, Sendable {
    public var milliseconds: Int64
    @inlinable public init(milliseconds: Int64) { self.milliseconds = milliseconds }
    @inlinable public static func < (a: WallTime, b: WallTime) -> Bool { a.milliseconds < b.milliseconds }
    public var seconds: Int64 { milliseconds / 1000 }

    /// Stops at the ends of its range.
    public func adding(milliseconds more: Int64) -> WallTime {
        let (sum, over) = milliseconds.addingReportingOverflow(more)
        return WallTime(milliseconds: over ? more < 0 ? .min : .max : sum)
    }

    /// This one, or the next after `before`: for what is told apart by its times, whatever the clock does.
    public func after(_ before: WallTime) -> WallTime { max(self, before.adding(milliseconds: 1)) }

    /// RFC 3339 in UTC with milliseconds: `2026-11-23T10:05:00.123Z`.
    public var rfc3339: String {
        let t = calendar
        return
            "\(Self.pad(t.year, 4))-\(Self.pad(t.month, 2))-\(Self.pad(t.day, 2))T\(Self.pad(t.hour, 2)):\(Self.pad(t.minute, 2)):\(Self.pad(t.second, 2)).\(Self.pad(t.millisecond, 3))Z"
    }

    /// RFC 9110 §5.6.7, the one form that is sent: `Mon, 23 Nov 2026 10:05:00 GMT`.
    public var httpDate: String {
        let t = calendar
        let day = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"][Int(t.weekday)]
        let month = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][Int(t.month - 1)]
        return
            "\(day), \(Self.pad(t.day, 2)) \(month) \(Self.pad(t.year, 4)) \(Self.pad(t.hour, 2)):\(Self.pad(t.minute, 2)):\(Self.pad(t.second, 2)) GMT"
    }

    private static func pad(_ n: Int64, _ width: Int) -> String {
        let s = String(n)
        return String(repeating: "0", count: max(0, width - s.utf8.count)) + s
    }

    private struct Calendar { var year, month, day, weekday, hour, minute, second, millisecond: Int64 }

    private var calendar: Calendar {
        let (days, msOfDay) = milliseconds.quotientAndRemainder(dividingBy: 86_400_000)
        var z = days
        var ms = msOfDay
        if ms < 0 { (z, ms) = (z - 1, ms + 86_400_000) }
        let weekday = ((z + 4) % 7 + 7) % 7  // 1970-01-01 was a Thursday
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": civil_from_days.
        z += 719_468
        let era = (z >= 0 ? z : z - 146_096) / 146_097
        let dayOfEra = z - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        let day = dayOfYear - (153 * shifted + 2) / 5 + 1
        let month = shifted < 10 ? shifted + 3 : shifted - 9
        let year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        return Calendar(
            year: year, month: month, day: day, weekday: weekday, hour: ms / 3_600_000, minute: ms / 60_000 % 60, second: ms / 1000 % 60,
            millisecond: ms % 1000)
    }
}

/// The only reader of the system's clocks. Roles call it; decisions get the time as an argument.
public enum Clock {
    public static var now: Instant {
        var t = timespec()
        clock_gettime(CLOCK_MONOTONIC, &t)
        return Instant(nanoseconds: UInt64(t.tv_sec) * 1_000_000_000 + UInt64(t.tv_nsec))
    }

    public static var wall: WallTime {
        var t = timespec()
        clock_gettime(CLOCK_REALTIME, &t)
        return WallTime(milliseconds: Int64(t.tv_sec) * 1000 + Int64(t.tv_nsec) / 1_000_000)
    }
}
