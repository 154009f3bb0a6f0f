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

    private let eventBytesMax: Int
    private var place = Place.border
    /// The unfinished event's bytes.
    public private(set) var held: [UInt8] = []

    public init(eventBytesMax: Int) { self.eventBytesMax = eventBytesMax }

    /// 0 at an event border.
    public var heldBytes: Int { held.count }

    /// Calls `event` with the bytes of each event that became complete, its blank line included. The bytes of an unfinished event are
    /// copied; an event that lies in `bytes` whole is not. After an error the stream can't be split further.
    public mutating func feed(_ bytes: RawSpan, _ event: (RawSpan) -> Void) throws(WireError) {
        var start = 0
        var i = 0
        let count = bytes.byteCount
        while i < count {
            if place == .line {
                guard let found = bytes.lineBreak(from: i, to: count) else { break }
                i = found
            }
            let c = bytes[i]
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
                try complete(bytes, start, i, event)
                start = i
                place = .border
                continue
            case (.borderCarriage, 0x0A): place = .border
            case (.border, 0x0A): ends = true
            case (.border, 0x0D): place = .blankCarriage
            case (.borderCarriage, 0x0D): ends = true
            case (.border, _), (.borderCarriage, _): place = .line
            }
            i += 1
            if ends {
                try complete(bytes, start, i, event)
                start = i
                if place != .borderCarriage { place = .border }
            }
        }
        if start < count {
            try check(held.count + count - start)
            held.append(bytes.extracting(start..<count))
        }
    }

    private mutating func complete(_ bytes: RawSpan, _ start: Int, _ end: Int, _ event: (RawSpan) -> Void) throws(WireError) {
        try check(held.count + end - start)
        if held.isEmpty {
            event(bytes.extracting(start..<end))
        } else {
            held.append(bytes.extracting(start..<end))
            event(held.span.bytes)
            held.removeAll(keepingCapacity: held.capacity <= 64 * 1024)
        }
    }

    private func check(_ count: Int) throws(WireError) {
        if count > eventBytesMax { throw WireError(502, "event larger than \(eventBytesMax) bytes") }
    }
}
