public import Vocabulary

/// How long an upstream asks to be left alone, in the ways in which upstreams say it (docs/failover.md lists them). Pure; no text and no
/// number from outside makes it trap, and none makes it longer than `secondsMax`.
public enum Wait: Sendable, Equatable {
    case until(WallTime)
    case milliseconds(Int)

    static let secondsMax: Int64 = 366 * 86_400
    public static var millisecondsMax: Int64 { secondsMax * 1000 }

    /// From `now`; nil when it is over already: then it says nothing.
    public func milliseconds(from now: WallTime) -> Int? {
        let (most, left): (Int64, Int64) =
            switch self {
            case .until(let time): (Self.secondsMax * 1000, time.milliseconds.subtractingReportingOverflow(now.milliseconds).partialValue)
            case .milliseconds(let span): (Self.secondsMax * 1000, Int64(span))
            }
        return left > 0 ? Int(min(left, most)) : nil
    }

    /// A span; nil of what is no time to wait.
    static func seconds(_ seconds: Double) -> Wait? {
        guard seconds >= 0 else { return nil }  // also refuses what is no number
        return .milliseconds(Int((min(seconds, Double(secondsMax)) * 1000).rounded(.up)))
    }

    /// Since 1970, in seconds or, beyond the year 5138 when read as seconds, in milliseconds.
    static func epoch(_ number: Double) -> Wait? {
        guard number > 0 else { return nil }
        let milliseconds = number >= 1e11 ? number : number * 1000
        return .until(WallTime(milliseconds: Int64(min(milliseconds, 9e15))))
    }

    /// The value of `Retry-After`: seconds, with a fraction where upstreams send one, or a date in one of the three forms of RFC 9110 §5.6.7.
    public static func retryAfter(_ value: String) -> Wait? {
        // Some quote it, some write a unit.
        var text = value[...]
        if text.utf8.count >= 2, text.hasPrefix("\""), text.hasSuffix("\"") { text = text.dropFirst().dropLast() }
        guard text.utf8.first.map({ $0 >= 0x30 && $0 <= 0x39 }) == true else { return date(String(text)) }
        if let number = Double(text) { return seconds(number) }
        return span(Array(text.utf8)[...]) ?? rfc3339(String(text)) ?? date(String(text))
    }

    /// The value of `retry-after-ms`.
    public static func retryAfterMilliseconds(_ value: String) -> Wait? { Double(value).flatMap { seconds($0 / 1000) } }

    /// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
    static func date(_ text: String) -> Wait? {
        guard text.utf8.count < 64 else { return nil }
        let words = text.split { $0 == " " || $0 == "," || $0 == "-" }
        let (day, month, year, time): (Substring, Substring, Substring, Substring)
        if words.count == 6, ["GMT", "UTC", "+0000", "0000"].contains(words[5]) {
            (day, month, year, time) = (words[1], words[2], words[3], words[4])
        } else if words.count == 5 {
            (day, month, year, time) = (words[2], words[1], words[4], words[3])
        } else {
            return nil
        }
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
        let clock = time.split(separator: ":").compactMap { Int64($0) }
        guard let d = Int64(day), (1...31).contains(d), let m = months.firstIndex(of: String(month)), var y = Int64(year),
            clock.count == 3, (0...23).contains(clock[0]), (0...59).contains(clock[1]), (0...60).contains(clock[2])
        else { return nil }
        if year.utf8.count == 2 { y += y < 70 ? 2000 : 1900 }
        guard (1970...9999).contains(y) else { return nil }
        return .until(WallTime(milliseconds: milliseconds(y, Int64(m) + 1, d, clock[0], clock[1], clock[2])))
    }

    /// `2026-11-25T08:30:00Z`, with a fraction, or with an offset.
    static func rfc3339(_ text: String) -> Wait? {
        let parts = text.utf8.count < 64 ? text.split(whereSeparator: { $0 == "T" || $0 == "t" || $0 == " " }) : []
        guard parts.count == 2 else { return nil }
        let day = parts[0].split(separator: "-").compactMap { Int64($0) }
        var (time, offset): (Substring, Int64) = (parts[1], 0)
        if let sign = time.lastIndex(where: { $0 == "+" || $0 == "-" }) {
            let zone = time[time.index(after: sign)...].split(separator: ":").compactMap { Int64($0) }
            guard zone.count == 2, zone[0] < 24, zone[1] < 60 else { return nil }
            offset = (zone[0] * 60 + zone[1]) * (time[sign] == "+" ? 60 : -60)
            time = time[..<sign]
        } else if time.hasSuffix("Z") || time.hasSuffix("z") {
            time = time.dropLast()
        } else {
            return nil
        }
        let clock = time.prefix { $0 != "." }.split(separator: ":").compactMap { Int64($0) }
        guard day.count == 3, (1970...9999).contains(day[0]), (1...12).contains(day[1]), (1...31).contains(day[2]), clock.count == 3,
            (0...23).contains(clock[0]), (0...59).contains(clock[1]), (0...60).contains(clock[2])
        else { return nil }
        return .until(WallTime(milliseconds: milliseconds(day[0], day[1], day[2], clock[0], clock[1], clock[2]) - offset * 1000))
    }

    /// Since 1970, UTC; `month` from 1.
    private static func milliseconds(_ y: Int64, _ month: Int64, _ d: Int64, _ hour: Int64, _ minute: Int64, _ second: Int64) -> Int64 {
        let m = month - 1
        // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil.
        let (shiftedYear, shiftedMonth) = m < 2 ? (y - 1, m + 10) : (y, m - 2)
        let era = shiftedYear / 400
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * shiftedMonth + 2) / 5 + d - 1
        let days = era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
        return (days * 86_400 + hour * 3600 + minute * 60 + second) * 1000
    }

    /// "try again in 6m0s", "Please retry in 95.5s", "Try again in 20 seconds", "1h 2m", "500ms".
    public static func message(_ message: String) -> Wait? {
        let text = Array(message.utf8.prefix(16 * 1024)).map { $0 >= 0x41 && $0 <= 0x5A ? $0 | 0x20 : $0 }
        for mark in [
            "try again in ", "try again after ", "retry in ", "retry after ", "available in ", "resets in ", "resets after ", "reset in ",
            "reset after ", "please wait ", "wait ",
        ] {
            let mark = Array(mark.utf8)
            var at = 0
            while at + mark.count < text.count {
                if text[at] == mark[0], text[at..<at + mark.count].elementsEqual(mark), let found = span(text[(at + mark.count)...]) {
                    return found
                }
                at += 1
            }
        }
        return nil
    }

    /// `95s`, `1h2m3.5s`, `20 seconds`: numbers with units up to the first word that is none.
    static func span(_ text: ArraySlice<UInt8>) -> Wait? {
        var (rest, total, found) = (text, 0.0, false)
        for word in ["about ", "approximately ", "another "] where rest.starts(with: word.utf8) { rest = rest.dropFirst(word.utf8.count) }
        while true {
            rest = rest.drop { $0 == 0x20 || $0 == 0x2C }
            if found, rest.starts(with: "and ".utf8) { rest = rest.dropFirst(4) }
            let digits = rest.prefix { $0 == 0x2E || $0 >= 0x30 && $0 <= 0x39 }
            guard !digits.isEmpty, digits.count <= 32, let number = Double(String(decoding: digits, as: UTF8.self)) else { break }
            rest = rest.dropFirst(digits.count).drop { $0 == 0x20 }
            let unit = rest.prefix { $0 >= 0x61 && $0 <= 0x7A }
            let factor: Double? =
                switch String(decoding: unit, as: UTF8.self) {
                case "ms", "millisecond", "milliseconds": 0.001
                case "s", "sec", "secs", "second", "seconds": 1
                case "m", "min", "mins", "minute", "minutes": 60
                case "h", "hr", "hrs", "hour", "hours": 3600
                case "d", "day", "days": 86_400
                case "w", "week", "weeks": 604_800
                default: nil
                }
            guard let factor else { break }
            total += number * factor  // a sum of numbers of 32 digits has no end that traps
            found = true
            rest = rest.dropFirst(unit.count)
        }
        return found ? seconds(total) : nil
    }
}
