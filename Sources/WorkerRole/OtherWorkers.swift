import Platform
import Vocabulary

/// The workers that serve beside this one, as the scoreboard shows them.
struct OtherWorkers {
    private let scoreboard: Scoreboard
    private let own: Int
    /// Of each row: its heartbeat, and since when it stands still.
    private var beats: [Int: (count: Int, since: Instant)] = [:]
    /// Rows whose workers serve but whose loops do not turn.
    private var silent: Set<Int> = []

    init(_ scoreboard: Scoreboard, own: Int) { (self.scoreboard, self.own) = (scoreboard, own) }

    /// Looks at the heartbeats; to be called now and then.
    mutating func look(_ now: Instant) {
        var seen: [Int: (count: Int, since: Instant)] = [:]
        scoreboard.forEachReady { row in
            guard row != own else { return }
            let count = scoreboard.value(.heartbeat, worker: row)
            if let before = beats[row], before.count == count { seen[row] = before } else { seen[row] = (count, now) }
        }
        beats = seen
        silent = Set(seen.keys.filter { now.milliseconds(since: seen[$0]!.since) >= Limits.balanceSilentMilliseconds })
    }

    /// Connections per worker, this one included; one that has become ready a moment ago counts.
    func mean(own count: Int) -> Int {
        var (sum, workers) = (count, 1)
        scoreboard.forEachReady { row in
            guard row != own, !silent.contains(row) else { return }
            sum += scoreboard.value(.openConnections, worker: row)
            workers += 1
        }
        return sum / workers
    }
}
