public import Settings
public import Store
internal import Vocabulary

/// The right to do a background job on a database that several instances share: a row with an epoch that grows with each holder. Times are the
/// server's. A holder that was too slow finds out before it does anything that lasts, because its epoch is not the row's any more.
public final class PostgresLease: @unchecked Sendable {  // one caller at a time
    private let connection: PostgresConnection
    private let name: String
    public let epoch: Int64
    /// When the job was last done, by the server's clock; 0: never.
    public let doneMilliseconds: Int64
    /// The server's time when the lease was taken.
    public let takenMilliseconds: Int64

    /// A holder that is not heard of for this long has lost it.
    public static let lifetimeMilliseconds: Int64 = 60_000
    private static let now = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"

    private init(_ connection: PostgresConnection, _ name: String, epoch: Int64, done: Int64, taken: Int64) {
        (self.connection, self.name, self.epoch) = (connection, name, epoch)
        (doneMilliseconds, takenMilliseconds) = (done, taken)
    }

    /// Nil while somebody else holds it. `holder` is for people to read.
    public static func take(_ url: PostgresURL, _ name: String, holder: String) throws(StoreError) -> PostgresLease? {
        let connection = try PostgresConnection(PostgresTarget(url))
        let rows = try connection.rows(
            """
            INSERT INTO leases (name, holder, epoch, expires_at_ms, done_at_ms) VALUES ($1, $2, 1, \(now) + $3, 0)
            ON CONFLICT (name) DO UPDATE SET holder = $2, epoch = leases.epoch + 1, expires_at_ms = \(now) + $3
              WHERE leases.expires_at_ms < \(now)
            RETURNING epoch, done_at_ms, \(now)
            """, [.text(name), .text(holder), .int(lifetimeMilliseconds)]
        ) { ($0.int(0), $0.int(1), $0.int(2)) }
        guard let (epoch, done, taken) = rows.first else {
            connection.close()
            return nil
        }
        return PostgresLease(connection, name, epoch: epoch, done: done, taken: taken)
    }

    /// Keeps it; false when it is lost.
    public func renew() throws(StoreError) -> Bool {
        try connection.change(
            "UPDATE leases SET expires_at_ms = \(Self.now) + $1 WHERE name = $2 AND epoch = $3 AND expires_at_ms >= \(Self.now)",
            [.int(Self.lifetimeMilliseconds), .text(name), .int(epoch)]) == 1
    }

    /// Gives it back. `isDone`: the job was done. False when it was lost before: what was made must not be used.
    public func release(isDone: Bool) throws(StoreError) -> Bool {
        defer { connection.close() }
        return try connection.change(
            """
            UPDATE leases SET expires_at_ms = 0\(isDone ? ", done_at_ms = \(Self.now)" : "") WHERE name = $1 AND epoch = $2
              AND expires_at_ms >= \(Self.now)
            """, [.text(name), .int(epoch)]) == 1
    }
}
