public import Store
public import Vocabulary

/// How much there is in SQLite's log (`-wal`), which a checkpoint moves into the database unless a reader still needs it.
public struct LogState: Sendable, Equatable {
    /// Of what was written since the log was begun anew; the file may be longer.
    public var bytes: Int
    /// Since when some of it can't be moved; nil when all could be.
    public var heldSince: Instant?

    /// As the session's last commit left it. A log beyond `Limits.logBytesMax` is looked at again: the reader may have gone with no commit
    /// since. Nil when the database is another one, or nothing was written yet.
    public static func of(_ session: StoreSession) -> LogState? {
        guard let connection = session.connection as? Connection else { return nil }
        if connection.log?.isBeyondLimit == true { connection.checkpoint() }
        return connection.log
    }

    /// A reader makes it grow without end.
    public var isBeyondLimit: Bool { heldSince != nil && bytes > Limits.logBytesMax }
}
