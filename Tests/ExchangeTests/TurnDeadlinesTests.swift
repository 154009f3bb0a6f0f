import Testing
import Vocabulary

@testable import Exchange

/// Goal: every wait of a turn ends, at its time and not before, whatever the others do.
@Suite struct TurnDeadlinesTests {
    private static let times = TurnDeadlines.Times(firstByte: 10_000, holdBack: 2_000, upstreamIdle: 30_000)
    private func at(_ milliseconds: Int) -> Instant { Instant(nanoseconds: 1_000_000_000).adding(milliseconds: milliseconds) }

    @Test("Nothing is due of a turn that waits for nothing")
    func nothing() {
        var deadlines = TurnDeadlines(Self.times)
        #expect(deadlines.due(at(1_000_000_000)) == nil)
    }

    @Test("An answer that does not begin is given up once")
    func noAnswer() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.requestTaken(at(0))
        #expect(deadlines.due(at(9_999)) == nil)
        #expect(deadlines.due(at(10_000)) == .noAnswer)
        #expect(deadlines.due(at(10_001)) == nil)
    }

    @Test("Silence behind a success head is told to a client that wants a stream, then the upstream's silence ends it")
    func silence() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.requestTaken(at(0))
        deadlines.responded(at(100), isRefusal: false, wantsStream: true)
        #expect(deadlines.due(at(2_099)) == nil)
        #expect(deadlines.due(at(2_100)) == .tellSilence)
        deadlines.becameVisible()
        deadlines.heard(at(5_000))
        #expect(deadlines.due(at(34_999)) == nil)
        #expect(deadlines.due(at(35_000)) == .silent)
    }

    @Test("A client that wants no stream is told nothing before the end")
    func noStream() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.responded(at(0), isRefusal: false, wantsStream: false)
        #expect(deadlines.due(at(29_999)) == nil)
        #expect(deadlines.due(at(30_000)) == .silent)
    }

    @Test("A slow client's pause is not the upstream's silence")
    func pause() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.responded(at(0), isRefusal: false, wantsStream: false)
        deadlines.paused()
        deadlines.completed(at(10))
        #expect(deadlines.due(at(100_000)) == nil)
        deadlines.resumed(at(100_000))
        #expect(deadlines.due(at(100_001)) == .endMissing)
    }

    @Test("An error's body has its own end; a new attempt owes nothing to the last one")
    func refusal() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.responded(at(0), isRefusal: true, wantsStream: true)
        #expect(deadlines.due(at(Limits.errorBodyMilliseconds - 1)) == nil)
        #expect(deadlines.due(at(Limits.errorBodyMilliseconds)) == .refusalCut)
        deadlines.attemptEnded()
        deadlines.attemptScheduled(at(Limits.errorBodyMilliseconds), afterMilliseconds: 200)
        #expect(deadlines.due(at(Limits.errorBodyMilliseconds + 199)) == nil)
        #expect(deadlines.due(at(Limits.errorBodyMilliseconds + 200)) == .attempt)
        #expect(deadlines.due(at(1_000_000)) == nil)
    }

    @Test("Of a client that has left the usage is awaited for a while")
    func left() {
        var deadlines = TurnDeadlines(Self.times)
        deadlines.responded(at(0), isRefusal: false, wantsStream: true)
        deadlines.clientLeft(at(0))
        var told: [TurnDeadlines.Due] = []
        for now in stride(from: 0, through: Limits.usageAfterClientMilliseconds, by: 50) {
            deadlines.heard(at(now))
            if let due = deadlines.due(at(now)) { told.append(due) }
        }
        #expect(told.last == .usageMissing)
    }

    /// The model: each wait on its own, as the table in TurnDeadlines has it.
    @Test("Over random histories what is due is what the table says", arguments: 1...200)
    func histories(_ seed: UInt64) {
        var random = SplitMix(state: seed)
        var deadlines = TurnDeadlines(Self.times)
        var now = 0
        var (attempt, answer, refusal, tell, heard, end, usage): (Int?, Int?, Int?, Int?, Int?, Int?, Int?)
        var isPaused = false
        for _ in 0..<200 {
            now += Int.random(in: 0...4_000, using: &random)
            switch Int.random(in: 0...10, using: &random) {
            case 0:
                deadlines.attemptScheduled(at(now), afterMilliseconds: 500)
                attempt = now + 500
            case 1:
                deadlines.requestTaken(at(now))
                answer = now + 10_000
            case 2:
                let (isRefusal, wantsStream) = (Bool.random(using: &random), Bool.random(using: &random))
                deadlines.responded(at(now), isRefusal: isRefusal, wantsStream: wantsStream)
                (answer, heard) = (nil, now)
                if isRefusal { refusal = now + Limits.errorBodyMilliseconds } else if wantsStream { tell = now + 2_000 }
            case 3...5:
                deadlines.heard(at(now))
                heard = now
            case 6:
                deadlines.becameVisible()
                tell = nil
            case 7:
                deadlines.completed(at(now))
                end = now + Limits.afterTerminalMilliseconds
            case 8:
                if isPaused { deadlines.resumed(at(now)) } else { deadlines.paused() }
                isPaused.toggle()
                if !isPaused { heard = now }
            case 9:
                deadlines.clientLeft(at(now))
                usage = now + Limits.usageAfterClientMilliseconds
            default:
                deadlines.attemptEnded()
                (answer, refusal, tell, heard, end, isPaused) = (nil, nil, nil, nil, nil, false)
            }
            var wanted: TurnDeadlines.Due?
            func isOver(_ by: Int?) -> Bool { by.map { now >= $0 } ?? false }
            if isOver(attempt) {
                (wanted, attempt) = (.attempt, nil)
            } else if isOver(answer) {
                (wanted, answer) = (.noAnswer, nil)
            } else if isOver(usage) {
                (wanted, usage) = (.usageMissing, nil)
            } else if isOver(refusal) {
                (wanted, refusal) = (.refusalCut, nil)
            } else if isOver(tell) {
                (wanted, tell) = (.tellSilence, nil)
            } else if !isPaused, isOver(end) {
                wanted = .endMissing
            } else if !isPaused, refusal == nil, isOver(heard.map { $0 + 30_000 }) {
                wanted = .silent
            }
            #expect(deadlines.due(at(now)) == wanted, "seed \(seed) at \(now)")
        }
    }
}
