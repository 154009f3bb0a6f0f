import Vocabulary

/// Whether records that wait are committed at once or wait for more. A commit costs the same for one record and for many.
///
/// Who comes after a pause is not kept waiting. Within `batchMilliseconds` of the last commit others may follow, and are waited for once:
///
///     at once ──▶ wait, from the first record on
///        ▲          │ another one came in the second half, or the group is full: wait again next time
///        └──────────┘ none came: all senders wait for us. At once for so many commits, twice as many each time
///
/// Senders that never wait for an acknowledgement get their records committed in groups so, and those that do lose no time.
struct CommitPace {
    enum Action: Equatable {
        case commit
        /// Call `waitEnded` then, and commit.
        case wait(milliseconds: Int)
        case goOnWaiting
    }

    static let atOnceMin = 4
    static let atOnceMax = 1024

    private var endedAt: Instant?
    /// While waiting.
    private var wait: (began: Instant, lastArrival: Instant)?
    /// Commits still to begin at once, and how many that will be after the next wait in vain.
    private var atOnce = 0
    private var atOnceNext = atOnceMin

    /// Records came, or are there after a commit. Not called while one is on its way.
    mutating func recordsWait(isFull: Bool, now: Instant) -> Action {
        if isFull {
            if wait != nil { waited(inVain: false) }
            return .commit
        }
        if wait != nil {
            wait?.lastArrival = now
            return .goOnWaiting
        }
        guard let endedAt, now.milliseconds(since: endedAt) < Limits.batchMilliseconds else { return .commit }
        if atOnce > 0 {
            atOnce -= 1
            return .commit
        }
        wait = (now, now)
        return .wait(milliseconds: Limits.batchMilliseconds)
    }

    mutating func waitEnded(now: Instant) {
        guard let wait else { return }
        waited(inVain: (wait.lastArrival.nanoseconds - wait.began.nanoseconds) * 2 < now.nanoseconds - wait.began.nanoseconds)
    }

    mutating func commitEnded(now: Instant) { endedAt = now }

    private mutating func waited(inVain: Bool) {
        wait = nil
        guard inVain else {
            atOnceNext = Self.atOnceMin
            return
        }
        atOnce = atOnceNext
        atOnceNext = min(Self.atOnceMax, atOnceNext * 2)
    }
}
