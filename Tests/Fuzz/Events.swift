/// Events are the same however the stream is cut, and no byte is lost or made up.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(step: Int) -> (events: [[UInt8]], held: [UInt8], end: String) {
        var splitter = EventSplitter(eventBytesMax: 4096)
        var events: [[UInt8]] = []
        var at = 0
        while at < count {
            let end = min(count, at + step)
            let piece = input.span.bytes.extracting(at..<end)
            var offset = 0
            do {
                while let next = try splitter.next(piece, &offset) {
                    let bytes = if case .here(let place) = next { piece.array(place) } else { splitter.takeHeld() }
                    events.append(bytes)
                    let event = bytes.span.bytes
                    if let one = EventFields.data(of: event) { precondition(event.array(one) == EventFields.joinedData(of: event)) }
                    _ = EventFields.name(of: event)
                    _ = EventFields.isComment(event)
                }
            } catch { return (events, [], "\(error)") }
            at = end
        }
        return (events, splitter.held, "")
    }
    let (whole, single) = (read(step: max(1, count)), read(step: 1))
    precondition(whole == single)
    if whole.end.isEmpty { precondition(Array(whole.events.joined()) + whole.held == input) }
    return 0
}
