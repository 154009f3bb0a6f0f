public import Vocabulary

/// What a turn waits for and until when. Whoever performs the turn tells what happened, and asks at each sweep what is due.
///
/// | waits for | from | until | `Due` |
/// |---|---|---|---|
/// | the next attempt | a failure that is tried again | its wait is over | `attempt` |
/// | an answer | the request taken by the upstream | `firstByte` | `noAnswer` |
/// | the body of an error | its head | `Limits.errorBodyMilliseconds` | `refusalCut` |
/// | something to tell | a success head | `holdBack`, where the client wants a stream | `tellSilence` |
/// | more of the answer | the last byte of it | `upstreamIdle`, unless the client is slow | `silent` |
/// | the body's end | the answer's end | `Limits.afterTerminalMilliseconds` | `endMissing` |
/// | the usage | the client's leaving | `Limits.usageAfterClientMilliseconds` | `usageMissing` |
public struct TurnDeadlines: Sendable {
    public enum Due: Sendable, Equatable {
        case attempt, noAnswer, refusalCut, tellSilence, silent, endMissing, usageMissing
    }

    /// Milliseconds.
    public struct Times: Sendable {
        public var firstByte, holdBack, upstreamIdle: Int
        public init(firstByte: Int, holdBack: Int, upstreamIdle: Int) {
            (self.firstByte, self.holdBack, self.upstreamIdle) = (firstByte, holdBack, upstreamIdle)
        }
    }

    private let times: Times
    private var attemptBy = Instant.never
    private var answerBy = Instant.never
    private var refusalBy = Instant.never
    private var tellBy = Instant.never
    private var heardAt = Instant.never
    private var endBy = Instant.never
    private var usageBy = Instant.never
    /// The client takes no more for now, so nothing is expected of the upstream.
    public private(set) var isPaused = false

    public init(_ times: Times) { self.times = times }

    public mutating func attemptScheduled(_ now: Instant, afterMilliseconds: Int) {
        attemptBy = now.adding(milliseconds: afterMilliseconds)
    }

    public mutating func requestTaken(_ now: Instant) { answerBy = now.adding(milliseconds: times.firstByte) }

    /// The head of an answer has come.
    public mutating func responded(_ now: Instant, isRefusal: Bool, wantsStream: Bool) {
        answerBy = .never
        heardAt = now
        if isRefusal {
            refusalBy = now.adding(milliseconds: Limits.errorBodyMilliseconds)
        } else if wantsStream {
            tellBy = now.adding(milliseconds: times.holdBack)
        }
    }

    public mutating func heard(_ now: Instant) { heardAt = now }

    /// The client sees this answer.
    public mutating func becameVisible() { tellBy = .never }

    /// The answer is whole; only the end of its body is awaited.
    public mutating func completed(_ now: Instant) { endBy = now.adding(milliseconds: Limits.afterTerminalMilliseconds) }

    public mutating func clientLeft(_ now: Instant) { usageBy = now.adding(milliseconds: Limits.usageAfterClientMilliseconds) }

    public mutating func paused() { isPaused = true }

    public mutating func resumed(_ now: Instant) { (isPaused, heardAt) = (false, now) }

    /// The attempt is given up: what was awaited of its upstream is not any more.
    public mutating func attemptEnded() {
        (answerBy, refusalBy, tellBy, heardAt, endBy, isPaused) = (.never, .never, .never, .never, .never, false)
    }

    /// What is due, the most pressing first; each but `silent` and `endMissing` is told once.
    public mutating func due(_ now: Instant) -> Due? {
        func isOver(_ deadline: inout Instant) -> Bool {
            guard now >= deadline else { return false }
            deadline = .never
            return true
        }
        if isOver(&attemptBy) { return .attempt }
        if isOver(&answerBy) { return .noAnswer }
        if isOver(&usageBy) { return .usageMissing }
        if isOver(&refusalBy) { return .refusalCut }
        if isOver(&tellBy) { return .tellSilence }
        guard !isPaused else { return nil }
        if now >= endBy { return .endMissing }
        // A refusal has its own deadline.
        if heardAt != .never, refusalBy == .never, now >= heardAt.adding(milliseconds: times.upstreamIdle) { return .silent }
        return nil
    }
}
