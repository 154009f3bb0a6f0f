import HTTPWire
import Metering
import Testing
import Vocabulary

@testable import Exchange

/// Plays everybody around one turn: accounts, upstreams, the client and time, by a seed. Notes what the client gets and checks each action
/// against what a client, an operator and an accountant may expect; knows nothing of how the machine decides.
private struct World {
    var random: SplitMix
    let seed: UInt64
    let route: Route
    var machine: TurnMachine
    var now = Instant(nanoseconds: 1_000_000_000)

    // What the network does
    var isOpen = false
    /// Bytes of the present answer that have not come yet; its end is a failure unless `endsWell`.
    var script: [UInt8] = []
    var hasHead = false
    var endsWell = true
    var status = 200
    var sends = 0
    var attemptOfAnswer = 0

    // What the client has
    var isClientThere = true
    var out: [UInt8] = []
    var sent: [UInt8] = []
    var head: String?
    var isEnded = false

    var isRenewing = false

    // What must come once
    var outcome: TurnOutcome?
    var isOver = false
    var selected: [Int64] = []
    var problems: [String] = []
    var log: [String] = []

    static let accounts = 4

    init(seed: UInt64) throws {
        var random = SplitMix(state: seed)
        let route: Route = [.responses, .codexResponses, .chatCompletions][Int(random.next() % 3)]
        let wantsStream = route == .codexResponses || random.next() % 3 > 0
        let ask = try TurnRequest(Array("{\"model\":\"m\",\"stream\":\(wantsStream),\"input\":\"x\"}".utf8), route: route)
        machine = TurnMachine(
            ask, requestID: "req_1", requestBytes: 400, .init(firstByte: 5_000, holdBack: 300, upstreamIdle: 3_000),
            wall: WallTime(milliseconds: 1_800_000_000_000), now: now, seed: seed)
        (self.seed, self.random, self.route) = (seed, random, route)
    }

    mutating func pick<T>(_ of: [T]) -> T { of[Int(random.next() % UInt64(of.count))] }

    mutating func expect(_ isTrue: Bool, _ what: String) { if !isTrue { problems.append(what) } }

    // MARK: Performing

    mutating func perform(_ actions: [TurnAction]) {
        for (place, action) in actions.enumerated() {
            log.append("\(action)".prefix(60).description)
            expect(!isOver, "an action behind the last one")
            switch action {
            case .select:
                expect(head == nil && outcome == nil && !isOpen, "another account behind bytes, the record or an open connection")
                expect(place == actions.count - 1, "what brings events comes last")
                let left = (1...Int64(Self.accounts)).filter { !machine.tried.contains($0) }
                if left.isEmpty || random.next() % 16 == 0 {
                    let error = ProxyError(
                        status: 503, code: "no_accounts", type: "server_error", message: "none", origin: .ourselves)
                    perform(machine.noAccount(error, inStream: random.next() % 2 == 0, now))
                } else {
                    let id = pick(left)
                    expect(!selected.contains(id), "an account twice")
                    selected.append(id)
                    perform(
                        machine.accountSelected(
                            id, isChatGPT: route != .chatCompletions || random.next() % 2 == 0,
                            isOnly: random.next() % 8 == 0, isGuess: random.next() % 8 == 0, mayRenew: random.next() % 2 == 0))
                }
            case .modelRefused:
                let error = ProxyError(
                    status: 404, code: "model_not_found", type: "invalid_request_error", message: "no", origin: .downstream)
                perform(machine.noAccount(error, inStream: false, saysMore: true, now))
            case .send(let fresh):
                expect(head == nil && outcome == nil && !isOpen, "a request behind bytes, the record or on an open connection")
                expect(place == actions.count - 1, "what brings events comes last")
                send(isAgain: fresh)
            case .renewCredentials:
                expect(head == nil && outcome == nil && !isOpen, "credentials behind bytes, the record or on an open connection")
                expect(place == actions.count - 1, "what brings events comes last")
                if random.next() % 2 == 0 { renewed() } else { isRenewing = true }
            case .tryAgain, .penalise, .learnQuota, .logRefused, .giveUpRequest: break
            case .closeUpstream: isOpen = false
            case .begin:
                expect(head == nil, "two answers begin")
                expect(isOpen || hasHead, "an answer without an upstream")
                head = "upstream \(attemptOfAnswer)"
            case .record(let outcome):
                expect(self.outcome == nil, "two records")
                expect(!isEnded, "the record behind the answer's end")
                self.outcome = outcome
                expect(isClientThere || outcome.status == 499, "status \(outcome.status) of a client that left")
            case .flush: flush()
            case .passRefusal, .respond:
                expect(head == nil && isClientThere && !isEnded, "an error behind an answer")
                expect(outcome != nil, "an error before its record")
                head = "error"
                (isEnded, out) = (true, [])
            case .end:
                expect(head != nil && isClientThere && !isEnded, "an end without an answer")
                expect(outcome != nil, "the last byte before the record")
                flush()
                isEnded = true
            case .abort:
                expect(isClientThere && !isEnded, "cut twice")
                isEnded = true
            case .awaitUsage:
                expect(!isClientThere && isOpen, "usage awaited of nobody")
            case .over:
                expect(place == actions.count - 1, "behind the last action there is one more")
                expect(outcome != nil, "over without a record")
                expect(isEnded || !isClientThere, "over, and the client waits")
                expect(!isOpen, "over, and a connection is open")
                isOver = true
            }
        }
    }

    mutating func renewed() {
        isRenewing = false
        perform(machine.credentialsRenewed(random.next() % 2 == 0, now))
    }

    mutating func flush() {
        expect(head != nil || out.isEmpty, "bytes before the head")
        sent += out
        out = []
    }

    mutating func send(isAgain: Bool) {
        if random.next() % 6 == 0 {
            let failures: [Failure] = [.notConnected("x"), .untrusted("x"), .exhausted("x")]
            return perform(machine.connectFailed(pick(failures), now))
        }
        if random.next() % 40 == 0 {
            let error = ProxyError(status: 400, code: "bad", type: "invalid_request_error", message: "m", origin: .downstream)
            return perform(machine.requestUnsendable(error, now))
        }
        sends += isAgain ? 0 : 1
        machine.requestSent(isAgain: isAgain)
        attemptOfAnswer += 1
        (isOpen, hasHead, endsWell) = (true, false, random.next() % 5 > 0)
        status = pick([200, 200, 200, 200, 429, 500, 401, 400])
        script = answer()
    }

    /// What an upstream may say, marked with the attempt, so that two answers that mix are seen.
    mutating func answer() -> [UInt8] {
        let mark = "attempt\(attemptOfAnswer)"
        func event(_ type: String, _ rest: String) -> String { "event: \(type)\ndata: {\"type\":\"\(type)\",\(rest)}\n\n" }
        let usage = "\"usage\":{\"input_tokens\":11,\"output_tokens\":7}"
        var text = ""
        if status != 200 {
            text = "{\"error\":{\"code\":\"\(pick(["rate_limit_exceeded", "server_error", "invalid_prompt"]))\",\"message\":\"\(mark)\"}}"
        } else if random.next() % 8 == 0 {
            text = pick(["<html>\(mark)", "", "   ", "{\"id\":\"\(mark)\",\(usage),\"output\":[]}", "{\"id\":", "\u{1}\u{2}"])
        } else {
            text = event("response.created", "\"response\":{\"id\":\"\(mark)\"}")
            for i in 0..<Int(random.next() % 6) { text += event("response.output_text.delta", "\"delta\":\"\(mark) \(i)\"") }
            text += pick([
                event("response.completed", "\"response\":{\"id\":\"\(mark)\",\(usage)}"),
                event("response.failed", "\"response\":{\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"\(mark)\"}}"),
                event("error", "\"code\":\"server_error\",\"message\":\"\(mark)\""), ": nothing\n\n", "",
            ])
        }
        return Array(text.utf8)
    }

    // MARK: Events

    mutating func step() throws {
        if isRenewing, random.next() % 4 == 0 { return renewed() }
        switch random.next() % 20 {
        case 0..<11: try network()
        case 11..<16:
            now = now.adding(milliseconds: Int(random.next() % 1_500))
            perform(machine.timePassed(now, into: &out))
        case 16:
            now = now.adding(milliseconds: Int(random.next() % 30_000))
            perform(machine.timePassed(now, into: &out))
        case 17 where isOpen && random.next() % 8 == 0: perform(machine.uploadStalled(now))
        case 18 where isClientThere && !isEnded && random.next() % 8 == 0:
            isClientThere = false
            perform(machine.clientLeft(now))
        case 19 where random.next() % 12 == 0:
            perform(machine.cut(now, into: &out))
        default: if random.next() % 3 == 0 { machine.clientStalled() } else { machine.clientDrained(now) }
        }
    }

    mutating func network() throws {
        guard isOpen else { return }
        if random.next() % 25 == 0 {
            isOpen = false
            let progress: UpstreamProgress = hasHead ? .answered : pick([.unread, .sent])
            return perform(machine.upstreamFailed("x", progress, now, into: &out))
        }
        guard hasHead else {
            machine.requestTaken(now)
            if random.next() % 4 == 0 { return }  // it takes its time
            hasHead = true
            var head = Array("HTTP/1.1 \(status) OK\r\nContent-Type: ".utf8)
            head += "\(script.first == 0x7B ? "application/json" : "text/event-stream")\r\n\r\n".utf8
            var scanned = 0
            let parsed = try #require(try ResponseHead.parse(head.span.bytes, scanned: &scanned))
            return machine.responded(parsed.head, now)
        }
        if script.isEmpty {
            isOpen = false
            perform(
                endsWell
                    ? machine.answerEnded(now, into: &out) : machine.upstreamFailed("x", .answered, now, into: &out))
        } else {
            let count = min(script.count, 1 + Int(random.next() % 200))
            let piece = Array(script[..<count])
            script.removeFirst(count)
            perform(machine.received(piece.span.bytes, now, into: &out))
            if machine.mayFlush, !isOver { flush() }
        }
    }
}

/// Goal: failover, hold-back, the record before the last byte, drain and the client's leaving, in every order, without a socket.
@Suite struct TurnMachineTests {
    @Test("Whatever happens in whatever order, there is one answer, one record before its end, and an end")
    func simulation() throws {
        var ends: [String: Int] = [:]
        for seed in 1...20_000 as ClosedRange<UInt64> {
            var world = try World(seed: seed)
            world.perform(world.machine.start())
            var steps = 0
            while !world.isOver, world.problems.isEmpty, steps < 2_000 {
                steps += 1
                try world.step()
            }
            world.expect(world.isOver, "it does not end")
            world.expect(world.machine.isFinished, "over, and not finished")
            let outcome = world.outcome
            world.expect(outcome?.attempts == world.sends, "attempts: \(outcome?.attempts ?? -1) of \(world.sends)")
            // All that the client got is of one attempt.
            let text = String(decoding: world.sent, as: UTF8.self)
            for other in 1..<max(1, world.attemptOfAnswer) {
                world.expect(!text.contains("attempt\(other) "), "bytes of attempt \(other) before \(world.attemptOfAnswer)")
            }
            if outcome?.errorCode.isEmpty == true, world.isClientThere {
                world.expect(world.isEnded && world.head?.hasPrefix("upstream") == true, "good without an answer")
            }
            // Nothing that happens afterwards brings anything.
            world.perform(world.machine.timePassed(.never, into: &world.out))
            world.perform(world.machine.clientLeft(world.now))
            world.perform(world.machine.cut(world.now, into: &world.out))
            guard world.problems.isEmpty else {
                Issue.record("seed \(seed): \(world.problems) after \(world.log.suffix(12))")
                return
            }
            ends[outcome.map { $0.errorCode.isEmpty ? "good" : $0.errorCode } ?? "none", default: 0] += 1
        }
        // The simulation reaches what it is meant to reach.
        for code in [
            "good", "client_disconnected", "proxy_unavailable", "rate_limit_exceeded", "upstream_unavailable", "stream_idle_timeout",
        ] {
            #expect(ends[code, default: 0] > 20, "\(code): \(ends)")
        }
    }

    private func machine(_ route: Route = .responses) throws -> TurnMachine {
        let ask = try TurnRequest(Array("{\"model\":\"m\",\"stream\":true}".utf8), route: route)
        return TurnMachine(
            ask, requestID: "r", requestBytes: 4, .init(firstByte: 1000, holdBack: 300, upstreamIdle: 1000),
            wall: WallTime(milliseconds: 0), now: start, seed: 1)
    }
    private let start = Instant(nanoseconds: 5_000_000_000)
    private func head(_ status: Int) throws -> ResponseHead {
        var scanned = 0
        let bytes = Array("HTTP/1.1 \(status) X\r\nContent-Type: text/event-stream\r\n\r\n".utf8)
        return try ResponseHead.parse(bytes.span.bytes, scanned: &scanned)!.head
    }
    private func names(_ actions: [TurnAction]) -> [String] {
        actions.map { "\($0)".prefix { $0 != "(" }.description }
    }

    @Test("The record comes between the head and the end, and before what the terminal event's read brings goes out")
    func recordBeforeTheEnd() throws {
        var turn = try machine()
        var out: [UInt8] = []
        #expect(names(turn.start()) == ["select"])
        #expect(names(turn.accountSelected(7, isChatGPT: false)) == ["send"])
        turn.requestSent(isAgain: false)
        turn.requestTaken(start)
        turn.responded(try head(200), start)
        let text =
            "data: {\"type\":\"response.created\",\"response\":{\"id\":\"a\"}}\n\n"
            + "data: {\"type\":\"response.completed\",\"response\":{\"id\":\"a\",\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\n"
        let actions = turn.received(Array(text.utf8).span.bytes, start, into: &out)
        #expect(names(actions) == ["begin", "record"])
        guard case .record(let outcome)? = actions.last else { return }
        #expect(outcome.status == 200 && outcome.mark.isEmpty && outcome.findings.usage == TokenUsage(input: 3, output: 2))
        #expect(names(turn.answerEnded(start, into: &out)) == ["end", "over"])
        #expect(String(decoding: out, as: UTF8.self) == text)
    }

    @Test("An answer that tells nothing is held back; after the hold-back the client gets its head, and then no other account is asked")
    func holdBack() throws {
        var turn = try machine()
        var out: [UInt8] = []
        _ = turn.start()
        _ = turn.accountSelected(7, isChatGPT: false)
        turn.requestSent(isAgain: false)
        turn.responded(try head(200), start)
        #expect(turn.received(Array(": hello\n\n".utf8).span.bytes, start, into: &out).isEmpty && out.isEmpty)
        #expect(turn.timePassed(start.adding(milliseconds: 299), into: &out).isEmpty)
        #expect(names(turn.timePassed(start.adding(milliseconds: 300), into: &out)) == ["begin", "flush"])
        #expect(String(decoding: out, as: UTF8.self) == ": hello\n\n")
        #expect(names(turn.upstreamFailed("x", .answered, start, into: &out)) == ["closeUpstream", "record", "logRefused", "end", "over"])
    }

    @Test("A client that leaves is charged what its answer cost, if the upstream says so in time")
    func clientLeaves() throws {
        for tells in [true, false] {
            var turn = try machine()
            var out: [UInt8] = []
            _ = turn.start()
            _ = turn.accountSelected(7, isChatGPT: false)
            turn.requestSent(isAgain: false)
            turn.responded(try head(200), start)
            let delta = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n"
            _ = turn.received(Array(delta.utf8).span.bytes, start, into: &out)
            #expect(names(turn.clientLeft(start)) == ["awaitUsage"])
            let end = "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":2}}}\n\n"
            let actions =
                tells
                ? turn.received(Array(end.utf8).span.bytes, start, into: &out)
                : turn.timePassed(start.adding(milliseconds: Limits.usageAfterClientMilliseconds), into: &out)
            let outcomes = actions.compactMap { if case .record(let outcome) = $0 { outcome } else { nil } }
            #expect(outcomes.count == 1 && outcomes.first?.status == 499)
            #expect(outcomes.first?.mark == (tells ? "client_disconnected" : "client_disconnected_usage_estimated"))
            #expect(outcomes.first?.findings.usage == (tells ? TokenUsage(input: 3, output: 2) : TokenUsage(input: 1, output: 1)))
        }
    }
}
