internal import Vocabulary

/// Rows of the scoreboard, each with its journal. A process has one from its start until it is dead and its records are home.
struct RowPool: Sendable {
    private var taken = [Bool](repeating: false, count: Limits.rowsMax)

    /// The lowest free one: what is in use stays close together. Nil: all are in use.
    mutating func take() -> Int? {
        guard let row = taken.firstIndex(of: false) else { return nil }
        taken[row] = true
        return row
    }

    /// One that is in use already; false: it can't be.
    mutating func claim(_ row: Int) -> Bool {
        guard taken.indices.contains(row), !taken[row] else { return false }
        taken[row] = true
        return true
    }

    mutating func giveBack(_ row: Int) {
        precondition(taken[row], "row \(row) is given back twice")
        taken[row] = false
    }

    /// Rows below this one are or may be in use.
    var end: Int { (taken.lastIndex(of: true) ?? -1) + 1 }
    var count: Int { taken.count { $0 } }
}
