public import Vocabulary

/// One turn: from the admitted request to the last byte of its answer. Decides; the role performs.
///
/// ```
///            ┌────────────── another account ─────────────┐
///            ▼                                             │
/// admitted ─▶ selected ─▶ dispatched ─▶ accepted ─▶ visible ─▶ finished
///                 ▲            │                               ▲
///                 └─ again ────┘        anything ──────────────┘
/// ```
/// Before `visible` another account may be tried; from `visible` on never: a client must not see two answers mixed.
public struct Exchange: Sendable {
    public enum State: String, Sendable {
        /// Waits for an account. Can transition to: `selected`, `finished`.
        case admitted
        /// Has an account, gets a connection. Can transition to: `dispatched`, `admitted`, `finished`.
        case selected
        /// The request is on its way or sent. Can transition to: `accepted`, `selected`, `admitted`, `finished`.
        case dispatched
        /// A success status arrived, the client has seen nothing. Can transition to: `visible`, `admitted`, `finished`.
        case accepted
        /// The client has seen bytes of this answer. Can transition to: `finished`.
        case visible
        /// Over. Final.
        case finished
    }

    /// What the role does next.
    public enum Action: Sendable, Equatable {
        /// Choose an account, without those of `tried`.
        case select
        /// Send the request to the chosen account after this many milliseconds.
        case dispatch(afterMilliseconds: Int)
        /// Give the client this failure.
        case surface(Failure)
    }

    public private(set) var state = State.admitted
    /// Accounts that were tried, in order.
    public private(set) var tried: [Int64] = []
    /// Upstream requests so far.
    public private(set) var attempts = 0
    private var attemptsOnAccount = 0
    /// The newest failure: what a client gets when no account is left.
    public private(set) var lastFailure: Failure?
    private var mayRetryStale = true

    public init() {}

    private mutating func move(_ to: State, from allowed: State...) {
        precondition(allowed.contains(state), "illegal transition: state=\(state) to=\(to)")
        state = to
    }

    public mutating func accountSelected(_ id: Int64) {
        move(.selected, from: .admitted)
        tried.append(id)
        attemptsOnAccount = 0
    }

    /// The request goes out on a connection.
    public mutating func requestDispatched() {
        move(.dispatched, from: .selected)
        attempts += 1
        attemptsOnAccount += 1
        mayRetryStale = true
    }

    /// A kept connection had ended before anything of the request was read: once more on a fresh one, not counted.
    public mutating func staleConnectionFound() -> Bool {
        guard state == .dispatched, mayRetryStale else { return false }
        mayRetryStale = false
        return true
    }

    /// The account's credentials are renewed before the request goes out again; not an attempt of its own.
    public mutating func renewalAwaited() { move(.selected, from: .dispatched) }

    public mutating func responseAccepted() { move(.accepted, from: .dispatched) }

    public mutating func becameVisible() { move(.visible, from: .accepted) }

    /// The attempt failed while the client has seen nothing. `mayMove`: another account can go on with the conversation. `isDenied`: that
    /// this one can was a guess, and its upstream says no.
    public mutating func attemptFailed(
        _ failure: Failure, now: WallTime, jitter: Double, model: String = "", mayMove: Bool = true, isDenied: Bool = false
    ) -> (action: Action, penalty: Verdict.Penalty) {
        precondition(
            state == .selected || state == .dispatched || state == .accepted, "illegal transition: state=\(state) event=attemptFailed")
        lastFailure = failure
        var verdict = FailoverTable.verdict(failure, attemptsOnAccount: max(1, attemptsOnAccount), now: now, jitter: jitter, model: model)
        if isDenied { verdict.next = .nextAccount }
        switch verdict.next {
        case .nextAccount where !mayMove: return (.surface(failure), verdict.penalty)
        case .surface:
            return (.surface(failure), verdict.penalty)
        case .sameAccount(let wait):
            state = .selected
            return (.dispatch(afterMilliseconds: wait), verdict.penalty)
        case .nextAccount:
            guard tried.count < Limits.accountAttemptsMax else { return (.surface(failure), verdict.penalty) }
            state = .admitted
            return (.select, verdict.penalty)
        }
    }

    public mutating func finished() { state = .finished }
    public var isFinished: Bool { state == .finished }
    /// The client has seen nothing of an upstream's answer.
    public var isInvisible: Bool { state != .visible && state != .finished }
}
