import Bytes

/// Reads the fields of one event as `EventSplitter` gives it (WHATWG HTML §9.2.6).
public struct EventFields {
    /// The payload when there is exactly one data line, which is the usual case; without `data:`, one space and the line end.
    public static func data(of event: RawSpan) -> Range<Int>? {
        if let usual = usualData(event) { return usual }
        var found: Range<Int>?
        var several = false
        forEachLine(event) { line in
            guard let value = value(event, line, "data") else { return true }
            several = found != nil
            found = value
            return !several
        }
        return several ? nil : found
    }

    /// Of an event in its usual form, one line of data behind one with a name or none; nil of any other.
    private static func usualData(_ event: RawSpan) -> Range<Int>? {
        let count = event.byteCount
        var start = 0
        if event.hasPrefix("event: ") {
            guard let end = event.first(Ascii.lf, from: 0, to: count) else { return nil }
            start = end + 1
        }
        guard event.hasPrefix("data: ", at: start), let end = event.first(Ascii.lf, from: start, to: count), end + 2 == count,
            event[end + 1] == Ascii.lf, event.first(Ascii.cr, from: 0, to: end) == nil
        else { return nil }
        return start + 6..<end
    }

    /// Several data lines joined by LF; empty without one.
    public static func joinedData(of event: RawSpan) -> [UInt8] {
        var out: [UInt8] = []
        var first = true
        forEachLine(event) { line in
            if let value = value(event, line, "data") {
                if !first { out.append(0x0A) }
                first = false
                out.append(event.extracting(value))
            }
            return true
        }
        return out
    }

    /// The value of the last `event:` line.
    public static func name(of event: RawSpan) -> Range<Int>? {
        var found: Range<Int>?
        forEachLine(event) { line in
            if let value = value(event, line, "event") { found = value }
            return true
        }
        return found
    }

    /// Whether it has comment lines and nothing else.
    public static func isComment(_ event: RawSpan) -> Bool {
        var (comments, others) = (0, 0)
        forEachLine(event) { line in
            if line.isEmpty { return true }
            if event[line.lowerBound] == UInt8(ascii: ":") { comments += 1 } else { others += 1 }
            return others == 0
        }
        return comments > 0 && others == 0
    }

    private static func forEachLine(_ event: RawSpan, _ body: (Range<Int>) -> Bool) {
        var start = 0
        let count = event.byteCount
        while start < count {
            let end = event.lineBreak(from: start, to: count) ?? count
            guard body(start..<end) else { return }
            start = end + 1
            if start < count, event[end] == 0x0D, event[start] == 0x0A { start += 1 }
        }
    }

    private static func value(_ event: RawSpan, _ line: Range<Int>, _ name: StaticString) -> Range<Int>? {
        let nameEnd = line.lowerBound + name.utf8CodeUnitCount
        guard nameEnd <= line.upperBound, event.extracting(line.lowerBound..<nameEnd).equals(name) else { return nil }
        if nameEnd == line.upperBound { return nameEnd..<nameEnd }
        guard event[nameEnd] == UInt8(ascii: ":") else { return nil }
        let start = nameEnd + 1
        return (start < line.upperBound && event[start] == 0x20 ? start + 1 : start)..<line.upperBound
    }
}
