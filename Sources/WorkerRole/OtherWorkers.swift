import Platform
import Vocabulary

/// The workers that serve beside this one, as the scoreboard shows them.
struct OtherWorkers {
    private let scoreboard: Scoreboard
    private let own: Int
    /// Of each row: its heartbeat, and since when it stands still.
    private var beats: [Int: (count: Int, since: Instant)] = [:]
    /// Rows whose workers serve and whose loops turn.
    private var rows: [Int] = []

    init(_ scoreboard: Scoreboard, own: Int) { (self.scoreboard, self.own) = (scoreboard, own) }

    /// Looks who serves; to be called now and then.
    mutating func look(_ now: Instant) {
        let ready = scoreboard.readyRows().filter { $0 != own }
        var seen: [Int: (count: Int, since: Instant)] = [:]
        for row in ready {
            let count = scoreboard.value(.heartbeat, worker: row)
            if let before = beats[row], before.count == count { seen[row] = before } else { seen[row] = (count, now) }
        }
        beats = seen
        rows = ready.filter { now.milliseconds(since: seen[$0]!.since) < Limits.balanceSilentMilliseconds }
    }

    /// Connections per worker, this one included.
    func mean(own count: Int) -> Int {
        rows.reduce(count) { $0 + scoreboard.value(.openConnections, worker: $1) } / (rows.count + 1)
    }
}
