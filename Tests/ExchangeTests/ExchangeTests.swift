import Testing
import Vocabulary

@testable import Exchange

private let now = WallTime(milliseconds: 1_800_000_000_000)

@Suite struct ExchangeTests {
    @Test("A turn without faults goes through its states once")
    func straight() {
        var turn = Exchange()
        #expect(turn.state == .admitted)
        turn.accountSelected(1)
        turn.requestDispatched()
        turn.responseAccepted()
        #expect(turn.isInvisible)
        turn.becameVisible()
        #expect(!turn.isInvisible)
        turn.finished()
        #expect(turn.isFinished && turn.attempts == 1 && turn.tried == [1])
    }

    @Test("Three accounts are tried and no more; the client gets the last failure")
    func threeAccounts() {
        var turn = Exchange()
        for id in 1...3 as ClosedRange<Int64> {
            turn.accountSelected(id)
            turn.requestDispatched()
            let failure = Failure.refused(UpstreamRefusal(status: 429, code: "c\(id)"))
            let (action, _) = turn.attemptFailed(failure, now: now, jitter: 0)
            #expect(action == (id < 3 ? .select : .surface(failure)))
        }
        #expect(turn.tried == [1, 2, 3])
    }

    @Test("A retry on the same account keeps it and counts the request")
    func sameAccount() {
        var turn = Exchange()
        turn.accountSelected(9)
        turn.requestDispatched()
        let (action, penalty) = turn.attemptFailed(.refused(UpstreamRefusal(status: 500)), now: now, jitter: 1)
        #expect(action == .dispatch(afterMilliseconds: 220) && penalty == .none && turn.state == .selected)
        turn.requestDispatched()
        #expect(turn.attempts == 2 && turn.tried == [9])
    }

    @Test("A stale connection is replaced once per attempt and not counted")
    func stale() {
        var turn = Exchange()
        turn.accountSelected(1)
        turn.requestDispatched()
        let (first, second) = (turn.staleConnectionFound(), turn.staleConnectionFound())
        #expect(first && !second && turn.attempts == 1)
    }

    @Test("Whatever upstreams do, a turn ends, sends at most nine requests, and never leaves an answer the client has begun to see")
    func simulation() {
        for seed in 1...5_000 as ClosedRange<UInt64> {
            var random = SplitMix(state: seed)
            var turn = Exchange()
            var wasVisible = false
            var steps = 0
            var nextAccount: Int64 = 1
            loop: while !turn.isFinished {
                steps += 1
                guard steps < 200 else {
                    Issue.record("seed \(seed): does not end")
                    break
                }
                switch turn.state {
                case .admitted:
                    if wasVisible { Issue.record("seed \(seed): another account after the client saw bytes") }
                    turn.accountSelected(nextAccount)
                    nextAccount += 1
                case .selected:
                    if random.next() % 5 == 0 { fail(.notConnected("x")) } else { turn.requestDispatched() }
                case .dispatched:
                    switch random.next() % 8 {
                    case 0: fail(.refused(UpstreamRefusal(status: [400, 401, 429, 500, 500, 502, 503][Int(random.next() % 7)])))
                    case 1: fail(.timedOut)
                    case 2: if !turn.staleConnectionFound() { fail(.broken("x")) }
                    default: turn.responseAccepted()
                    }
                case .accepted:
                    let codes = ["rate_limit_exceeded", "server_error", "token_expired"]
                    if random.next() % 3 == 0 {
                        fail(.failedEvent(UpstreamRefusal(status: 200, code: codes[Int(random.next() % 3)])))
                    } else {
                        turn.becameVisible()
                        wasVisible = true
                    }
                case .visible: turn.finished()
                case .finished: break loop
                }
            }
            #expect(turn.attempts <= Limits.accountAttemptsMax * Limits.sameAccountAttemptsMax, "seed \(seed)")
            #expect(turn.tried.count <= Limits.accountAttemptsMax, "seed \(seed)")
            #expect(Set(turn.tried).count == turn.tried.count, "seed \(seed)")

            func fail(_ failure: Failure) {
                if case .surface = turn.attemptFailed(failure, now: now, jitter: 0).action { turn.finished() }
            }
        }
    }

    @Test("Each transition that is not in the table traps with both names", arguments: Step.illegal)
    func illegalTransitions(_ step: Step) async {
        let result = await #expect(processExitsWith: .failure, observing: [\.standardErrorContent]) {
            [state = step.state as String, event = step.event as String] in
            var turn = try #require(Step.turn(in: state))
            Step.events[event]!(&turn)
        }
        let text = String(decoding: result?.standardErrorContent ?? [], as: UTF8.self)
        let names = Step.targets[step.event].map { "to=\($0)" } ?? "event=\(step.event)"
        #expect(text.contains("illegal transition: state=\(step.state) \(names)"), "\(text)")
    }

    @Test("The legal ones do not", arguments: Step.legal)
    func legalTransitions(_ step: Step) throws {
        var turn = try #require(Step.turn(in: step.state))
        Step.events[step.event]!(&turn)
        if let target = Step.targets[step.event] { #expect(turn.state.rawValue == target) }
    }
}

/// An event that finds a turn in a state.
struct Step: Sendable, CustomTestStringConvertible {
    var state: String
    var event: String
    var testDescription: String { "\(event) in \(state)" }

    static let states = ["admitted", "selected", "dispatched", "accepted", "visible", "finished"]
    /// Where an event leads that leads to one state alone.
    static let targets = [
        "accountSelected": "selected", "requestDispatched": "dispatched", "responseAccepted": "accepted", "becameVisible": "visible",
    ]
    static let events: [String: @Sendable (inout Exchange) -> Void] = [
        "accountSelected": { $0.accountSelected(7) }, "requestDispatched": { $0.requestDispatched() },
        "responseAccepted": { $0.responseAccepted() }, "becameVisible": { $0.becameVisible() },
        "attemptFailed": { _ = $0.attemptFailed(.timedOut, now: now, jitter: 0) },
    ]
    /// As the table of docs/states.md has it; `finished` comes from anywhere.
    private static let allowed = [
        "accountSelected": ["admitted"], "requestDispatched": ["selected"], "responseAccepted": ["dispatched"],
        "becameVisible": ["accepted"], "attemptFailed": ["selected", "dispatched", "accepted"],
    ]
    private static let all = states.flatMap { state in events.keys.sorted().map { Step(state: state, event: $0) } }
    static let legal = all.filter { allowed[$0.event]!.contains($0.state) }
    static let illegal = all.filter { !allowed[$0.event]!.contains($0.state) }

    /// A turn that went straight to this state.
    static func turn(in state: String) -> Exchange? {
        var turn = Exchange()
        let way: [(inout Exchange) -> Void] = [
            { $0.accountSelected(1) }, { $0.requestDispatched() }, { $0.responseAccepted() }, { $0.becameVisible() }, { $0.finished() },
        ]
        for step in way {
            if turn.state.rawValue == state { return turn }
            step(&turn)
        }
        return turn.state.rawValue == state ? turn : nil
    }
}

/// SplitMix64: a seed replays the same turns on any machine.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
