import Bytes

/// Finds the borders of server-sent events, so that whole events are passed on byte for byte.
///
/// An event ends with its blank line, whatever mix of LF, CRLF and CR ends the lines. Whether a CR is the whole line end or half of it
/// shows only in the next byte: behind a line that ended with LF or CRLF the blank line's CR waits for that byte; behind a line that ended
/// with CR alone it doesn't, and should an LF follow after all, it is passed on at the front of the next event, where it means nothing.
public struct EventSplitter: Sendable {
    /// What the last byte was.
    private enum Place: Sendable {
        /// Inside a line.
        case line
        /// At the start of a line, behind an LF.
        case start
        /// Behind a CR that ended a line with something in it.
        case carriage
        /// Behind a CR that ended the blank line, and the line before had ended with an LF: the event waits for an LF.
        case blankCarriage
        /// Between events, behind a CR.
        case borderCarriage
        /// Between events.
        case border
    }

    /// Where a whole event lies, its blank line included.
    public enum Event: Equatable, Sendable {
        /// In the bytes that were given.
        case here(Range<Int>)
        /// Its beginning came earlier: `takeHeld()` has all of it.
        case held
    }

    private let eventBytesMax: Int
    /// A CR has come, so that lines may end with it: then there is no short way.
    private var hasCarriage = false
    private var place = Place.border
    /// Of an event that lies in the given bytes, has no CR, and no more than two lines: where the last one starts.
    public private(set) var lastLine: Int?
    /// The bytes of an event that is not whole, or is and waits for `takeHeld()`.
    public private(set) var held: [UInt8] = []

    public init(eventBytesMax: Int) { self.eventBytesMax = eventBytesMax }

    /// The next event of `bytes` from `offset` on, which is moved behind it. Nil: no further one ends here; what has begun is copied. After an
    /// error the stream can't be split further.
    @inline(__always)
    public mutating func next(_ bytes: RawSpan, _ offset: inout Int) throws(WireError) -> Event? {
        let start = offset
        let count = bytes.byteCount
        lastLine = nil
        if place == .border, held.isEmpty, !hasCarriage, start < count, bytes[start] > Ascii.cr, let end = blankLine(bytes, start) {
            return try event(bytes, start, end, &offset)
        }
        var i = start
        while i < count {
            if place == .line {
                guard let found = bytes.lineBreak(from: i, to: count) else { break }
                i = found
            }
            let c = bytes[i]
            if c == Ascii.cr { hasCarriage = true }
            var ends = false
            switch (place, c) {
            case (.line, 0x0A): place = .start
            case (.line, _): place = .carriage
            case (.start, 0x0A): ends = true
            case (.start, 0x0D): place = .blankCarriage
            case (.start, _): place = .line
            case (.carriage, 0x0A): place = .start
            case (.carriage, 0x0D):
                ends = true
                place = .borderCarriage
            case (.carriage, _): place = .line
            case (.blankCarriage, 0x0A): ends = true
            case (.blankCarriage, _):
                // The CR was the whole blank line; this byte belongs to the next event.
                place = .border
                return try event(bytes, start, i, &offset)
            case (.borderCarriage, 0x0A): place = .border
            case (.border, 0x0A): ends = true
            case (.border, 0x0D): place = .blankCarriage
            case (.borderCarriage, 0x0D): ends = true
            case (.border, _), (.borderCarriage, _): place = .line
            }
            i += 1
            if ends {
                if place != .borderCarriage { place = .border }
                return try event(bytes, start, i, &offset)
            }
        }
        offset = count
        if start < count {
            try check(held.count + count - start)
            held.append(bytes.extracting(start..<count))
        }
        return nil
    }

    /// Behind the LF LF that ends the event which starts at `start`, when it has no CR.
    private mutating func blankLine(_ bytes: RawSpan, _ start: Int) -> Int? {
        let count = bytes.byteCount
        var (line, lines) = (start, 1)
        while let lf = bytes.first(Ascii.lf, from: line, to: count), lf + 1 < count {
            if bytes[lf + 1] == Ascii.lf {
                hasCarriage = bytes.first(Ascii.cr, from: start, to: lf) != nil
                if hasCarriage { return nil }
                if lines <= 2 { lastLine = line }
                return lf + 2
            }
            (line, lines) = (lf + 1, lines + 1)
        }
        return nil
    }

    /// The event that `next` told to be held.
    public mutating func takeHeld() -> [UInt8] {
        defer { held = [] }
        return held
    }

    private mutating func event(_ bytes: RawSpan, _ start: Int, _ end: Int, _ offset: inout Int) throws(WireError) -> Event {
        try check(held.count + end - start)
        offset = end
        if held.isEmpty { return .here(start..<end) }
        held.append(bytes.extracting(start..<end))
        return .held
    }

    private func check(_ count: Int) throws(WireError) {
        if count > eventBytesMax { throw WireError(502, "event larger than \(eventBytesMax) bytes") }
    }
}
