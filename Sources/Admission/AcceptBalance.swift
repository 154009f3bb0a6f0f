public import Vocabulary

/// Whether a worker leaves new connections to the others for a moment, because it has far more than they.
///
/// All workers wait at the same sockets, and whoever wakes first takes what is there: often the same one. What a worker has taken it keeps for
/// as long as the client likes, with streams for minutes. So one that is ahead of the mean stops listening until it is not, and the
/// kernel's backlog goes to the others. It stops for a moment only, whatever the numbers say: they are other processes', which may stand
/// still.
public struct AcceptBalance: Sendable {
    /// Until when it is ahead by its own numbers; nil: it listens.
    private var pausedUntil: Instant?
    /// It listens until then even when it is ahead.
    private var freeUntil = Instant(nanoseconds: 0)

    public init() {}

    public var isPaused: Bool { pausedUntil != nil }

    /// Whether `own` connections are far above the mean: by an eighth and by `Limits.balanceSlack`.
    public static func isAhead(own: Int, mean: Int) -> Bool { own > mean + max(Limits.balanceSlack, mean / 8) }

    /// A connection was accepted, or time has passed. `mean`: connections per worker that serves, this one included. True: it listens no
    /// more, or again; what of both `isPaused` tells.
    public mutating func counted(own: Int, mean: Int, now: Instant) -> Bool {
        let isAhead = Self.isAhead(own: own, mean: mean)
        if let until = pausedUntil {
            guard !isAhead || now >= until else { return false }
            pausedUntil = nil
            if isAhead { freeUntil = now.adding(milliseconds: Limits.balanceFreeMilliseconds) }
            return true
        }
        guard isAhead, now >= freeUntil else { return false }
        pausedUntil = now.adding(milliseconds: Limits.balancePauseMilliseconds)
        return true
    }
}
