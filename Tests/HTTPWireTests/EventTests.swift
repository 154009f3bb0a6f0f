import Testing

@testable import HTTPWire

func events(_ input: [UInt8], cuts: [Int], max: Int = 1 << 20) -> (events: [String], held: [UInt8], fault: WireError?) {
    var splitter = EventSplitter(eventBytesMax: max)
    var found: [String] = []
    var start = 0
    for cut in cuts + [input.count] {
        let piece = input.span.bytes.extracting(start..<cut)
        var offset = 0
        do throws(WireError) {
            while let event = try splitter.next(piece, &offset) {
                switch event {
                case .here(let place): found.append(text(piece.extracting(place)))
                case .held:
                    let whole = splitter.takeHeld()
                    found.append(text(whole.span.bytes))
                }
            }
        } catch {
            return (found, splitter.held, error)
        }
        start = cut
    }
    return (found, splitter.held, nil)
}

/// Goal: whole events, byte for byte, however the stream was cut.
@Suite struct EventTests {
    @Test func findsBordersOfEveryKind() {
        #expect(events(bytes("data: a\n\ndata: b\n\n"), cuts: []).events == ["data: a\n\n", "data: b\n\n"])
        #expect(events(bytes("data: a\r\n\r\ndata: b\r\n\r\n"), cuts: []).events == ["data: a\r\n\r\n", "data: b\r\n\r\n"])
        #expect(events(bytes("data: a\r\rdata: b\r\r"), cuts: []).events == ["data: a\r\r", "data: b\r\r"])
        #expect(
            events(bytes("data: a\n\r\ndata: b\r\n\ndata: c\n\rdata: d"), cuts: []).events == [
                "data: a\n\r\n", "data: b\r\n\n", "data: c\n\r",
            ])
        #expect(events(bytes("data: a\r\r\ndata: b\r\r"), cuts: []).events == ["data: a\r\r", "\ndata: b\r\r"])
        #expect(events(bytes("data: a\n\n\n\n: c\n\n"), cuts: []).events == ["data: a\n\n", "\n", "\n", ": c\n\n"])
        #expect(events(bytes("data: a\n\ndata: "), cuts: []).held == bytes("data: "))
    }

    @Test func isTheSameHoweverItIsCut() {
        var random = Seeded(state: 7)
        for _ in 0..<300 {
            let input = (0..<Int.random(in: 0...24, using: &random)).map { _ in
                [0x0A, 0x0D, 0x61, 0x3A].randomElement(using: &random)! as UInt8
            }
            let whole = events(input, cuts: [])
            #expect(bytes(whole.events.joined()) + whole.held == input)
            let single = events(input, cuts: Array(0..<input.count))
            #expect(single.events == whole.events && single.held == whole.held, "\(input)")
            for cut in 0..<max(1, input.count) {
                let two = events(input, cuts: [cut])
                #expect(two.events == whole.events && two.held == whole.held, "\(input) at \(cut)")
            }
        }
    }

    @Test func anEventHasALimit() {
        let input = bytes("data: 1\n\ndata: 23\n\n")
        #expect(events(input, cuts: [], max: 10).fault == nil)
        for cuts in [[], Array(0..<input.count)] {
            let result = events(input, cuts: cuts, max: 9)
            #expect(result.fault == WireError(502, "event larger than 9 bytes"))
            #expect(result.events == ["data: 1\n\n"])
        }
    }

    @Test func readsFields() {
        func fields(_ event: String) -> (data: String?, joined: String, name: String?, comment: Bool) {
            let input = bytes(event)
            let span = input.span.bytes
            return (
                EventFields.data(of: span).map { String(decoding: input[$0], as: UTF8.self) },
                String(decoding: EventFields.joinedData(of: span), as: UTF8.self),
                EventFields.name(of: span).map { String(decoding: input[$0], as: UTF8.self) }, EventFields.isComment(span)
            )
        }
        #expect(fields("event: x.y\ndata: {\"a\":1}\n\n") == ("{\"a\":1}", "{\"a\":1}", "x.y", false))
        #expect(fields("event:x\r\ndata:  a\r\nid: 3\r\n\r\n") == (" a", " a", "x", false))
        #expect(fields("data: a\rdata\rdata: b\r\r") == (nil, "a\n\nb", nil, false))
        #expect(fields("\ndata: [DONE]\n\n") == ("[DONE]", "[DONE]", nil, false))
        #expect(fields(": keepalive\n\n") == (nil, "", nil, true))
        #expect(fields("\n") == (nil, "", nil, false))
        #expect(fields("database: 1\nevents: 2\n\n") == (nil, "", nil, false))
    }
}
