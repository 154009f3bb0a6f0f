import Testing
import Vocabulary

@testable import HTTPWire

private let start = Instant(nanoseconds: 1_000_000_000)
private let times = ServerMachine.Times(idle: 75_000, head: 10_000, bodyProgress: 10_000)

/// Plays the socket's owner: feeds bytes as they come, answers each request at once or later, notes what it was asked.
private struct Owner {
    var machine = ServerMachine(times, now: start)
    /// `path:body` of each whole request, in order.
    var requests: [String] = []
    private var path = ""
    private var body: [UInt8] = []
    private var awaited = 0
    var answersAtOnce = true
    var isUnread = false
    var isDraining = false
    var fault: WireError?
    var isLingering: Bool { machine.phase == .lingering }

    mutating func receive(_ bytes: [UInt8]) {
        if machine.readsNow(isUnread: isUnread) {
            advance(bytes)
        } else {
            machine.keep(bytes.span.bytes, start)
            advanceInput()
        }
    }

    mutating func advanceInput() {
        guard machine.phase != .answering, machine.phase != .lingering, !machine.input.isEmpty, !isUnread else { return }
        advance(machine.takeInput())
    }

    private mutating func advance(_ bytes: [UInt8]) {
        var offset = 0
        do throws(WireError) {
            while let event = try machine.next(bytes.span.bytes, &offset, isUnread: isUnread, start) {
                switch event {
                case .request(let head):
                    (path, body) = (head.target, [])
                    if head.framing == .none || head.framing == .length(0) { whole() } else { machine.takeBody(head.framing, start) }
                case .data(let range): body += bytes[range]
                case .whole: whole()
                }
            }
        } catch {
            fault = error
            machine.refused()
            _ = machine.linger(queuedBytes: 0, start)
        }
        machine.putBack(bytes.span.bytes.extracting(droppingFirst: offset))
    }

    private mutating func whole() {
        requests.append("\(path):\(String(decoding: body, as: UTF8.self))")
        awaited += 1
        if answersAtOnce { answer() }
    }

    /// Ends the answer that is due.
    mutating func answer() {
        guard awaited > 0 else { return }
        awaited -= 1
        machine.answerBegins(hasLength: true, isDraining: isDraining, hasUnread: false)
        if !machine.answerEnded(isDraining: isDraining, hasUnread: false, start) { _ = machine.linger(queuedBytes: 0, start) }
    }
}

/// Goal: what a client asked is decided by its bytes alone, and a connection ends neither too early nor never.
@Suite struct ServerMachineTests {
    private static let pipelines: [(String, [String])] = [
        ("GET /a HTTP/1.1\r\nHost: h\r\n\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n", ["/a:", "/b:"]),
        (
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
                + "POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\n\r\n"
                + "GET /c HTTP/1.1\r\nHost: h\r\n\r\n", ["/a:hello", "/b:abcde", "/c:"]
        ),
        ("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: h\r\n\r\n", ["/a:"]),
        ("GET /a HTTP/1.0\r\n\r\nGET /never HTTP/1.0\r\n\r\n", ["/a:"]),
    ]

    @Test("However the bytes come and whenever the answers are given, the requests are the same and in order")
    func cuts() {
        for (text, expected) in Self.pipelines {
            let bytes = Array(text.utf8)
            for first in 0...bytes.count {
                for answersAtOnce in [true, false] {
                    var owner = Owner()
                    owner.answersAtOnce = answersAtOnce
                    owner.receive(Array(bytes[..<first]))
                    owner.receive(Array(bytes[first...]))
                    for _ in 0..<4 {
                        owner.answer()
                        owner.advanceInput()
                    }
                    #expect(owner.requests == expected && owner.fault == nil, "cut at \(first), at once: \(answersAtOnce)")
                }
            }
            var owner = Owner()
            for byte in bytes { owner.receive([byte]) }
            #expect(owner.requests == expected, "byte by byte")
        }
    }

    @Test("A client that has not taken its answers gets no further request read, and the next ones once it has")
    func unread() {
        var owner = Owner()
        owner.isUnread = true
        owner.receive(Array("GET /a HTTP/1.1\r\nHost: h\r\n\r\n".utf8))
        #expect(owner.requests.isEmpty && owner.machine.input.count > 0)
        owner.isUnread = false
        owner.advanceInput()
        #expect(owner.requests == ["/a:"] && owner.machine.input.isEmpty)
        owner.answersAtOnce = false
        owner.receive(Array("GET /b HTTP/1.1\r\nHost: h\r\n\r\n".utf8))
        owner.receive(Array(repeating: 0x41, count: Limits.pipelinedBytesMax + 1))
        #expect(owner.machine.isFull)
    }

    @Test("A worker that drains answers what was pipelined, and closes behind the last of it")
    func drain() {
        var owner = Owner()
        owner.answersAtOnce = false
        let request = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
        owner.receive(Array((request + request).utf8))
        owner.isDraining = true
        #expect(owner.machine.drained(idleToo: true, queuedBytes: 0, hasUnread: false) == .none)
        owner.answer()
        #expect(owner.machine.phase == .idle && owner.machine.drained(idleToo: true, queuedBytes: 0, hasUnread: false) == .none)
        owner.advanceInput()
        #expect(owner.machine.phase == .answering && owner.machine.keepsAlive)
        owner.answer()
        #expect(owner.isLingering && !owner.machine.keepsAlive)
        // One that was never used waits for its first request; used and idle it goes at once.
        var new = Owner()
        #expect(new.machine.drained(idleToo: false, queuedBytes: 0, hasUnread: false) == .none)
        #expect(new.machine.drained(idleToo: true, queuedBytes: 0, hasUnread: false) == .close)
        new.receive(Array(request.utf8))
        #expect(new.machine.drained(idleToo: false, queuedBytes: 0, hasUnread: true) == .none)
        #expect(new.machine.drained(idleToo: false, queuedBytes: 0, hasUnread: false) == .close)
        #expect(new.machine.drained(idleToo: false, queuedBytes: 7, hasUnread: false) == .linger)
    }

    @Test("A half-closed client is answered, then its connection ends; half a request ends it at once")
    func halfClosed() {
        var owner = Owner()
        owner.answersAtOnce = false
        owner.receive(Array("GET /a HTTP/1.1\r\nHost: h\r\n\r\n".utf8))
        let waits = owner.machine.peerEnded(queuedBytes: 0, isUnread: false, start)
        #expect(waits == .none)
        let atOnce = owner.machine.probes(start)
        #expect(!atOnce)
        let probes = (1...5).map { owner.machine.probes(start.adding(milliseconds: $0 * Limits.clientProbeMilliseconds)) }
        #expect(probes == [true, true, false, false, false])
        owner.answer()
        #expect(owner.machine.isAtEnd(isUnread: false))
        var half = Owner()
        half.receive(Array("GET /a HT".utf8))
        let ending = half.machine.peerEnded(queuedBytes: 0, isUnread: false, start)
        #expect(ending == .linger)
    }

    @Test("Deadlines: idle, a head, a body without progress, lingering")
    func deadlines() {
        func due(_ text: String, _ milliseconds: Int, queued: Int = 0) -> ServerMachine.Due? {
            var owner = Owner()
            owner.answersAtOnce = false
            owner.receive(Array(text.utf8))
            return owner.machine.due(queuedBytes: queued, start.adding(milliseconds: milliseconds))
        }
        #expect(due("", 74_999) == nil && due("", 75_000) == .close && due("", 75_000, queued: 1) == nil)
        #expect(due("GET", 9_999) == nil)
        guard case .refuse(let slow)? = due("GET", 10_000) else { return #expect(Bool(false)) }
        #expect(slow.status == 408)
        let upload = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"
        #expect(due(upload, 9_999) == nil && due(upload + String(repeating: "x", count: Limits.bodyProgressBytes), 10_000) == nil)
        guard case .refuse(let stuck)? = due(upload + "x", 10_000) else { return #expect(Bool(false)) }
        #expect(stuck.status == 408)
        #expect(due("GET /a HTTP/1.1\r\nHost: h\r\n\r\n", 10_000_000) == nil)
        var owner = Owner()
        owner.receive(Array("GET /a HTTP/1.0\r\n\r\n".utf8))
        #expect(owner.isLingering)
        // Whoever goes on sending gets longer, but not for ever.
        var now = start
        for _ in 0..<40 {
            let due = owner.machine.due(queuedBytes: 0, now)
            #expect(due == nil || now >= start.adding(milliseconds: Limits.lingerMillisecondsMax))
            owner.machine.keep([0x41].span.bytes, now)
            now = now.adding(milliseconds: 1_000)
        }
        let last = owner.machine.due(queuedBytes: 0, now)
        #expect(last == .close)
    }

    @Test("Each change of phase that is not in the table traps with both names")
    func illegal() async {
        let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
            var machine = ServerMachine(.init(idle: 1, head: 1, bodyProgress: 1), now: Instant(nanoseconds: 1))
            machine.takeBody(.length(1), Instant(nanoseconds: 1))
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        #expect(text.contains("illegal transition: phase=idle to=body"))
    }
}
