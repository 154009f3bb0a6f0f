public import Store
internal import Vocabulary

/// Whose conversations are whose, told among the instances that share the database: the table `pins`, of which each instance reads what the
/// others have changed since it looked last.
public struct SharedPin: Sendable, Equatable {
    public var key: UInt64
    public var account: Int64
    /// Is remembered for so long yet.
    public var seconds: Int
    public init(key: UInt64, account: Int64, seconds: Int) { (self.key, self.account, self.seconds) = (key, account, seconds) }
}

extension PostgresPool {
    /// What others have told, and from where to ask on.
    public struct PinNews: Sendable, Equatable {
        /// Instances that serve from this database beside ours.
        public var others = 0
        public var pins: [SharedPin] = []
        /// A transaction's number: what those before it have written has been read.
        public var next = "0"
        /// There is more.
        public var isCut = false
    }

    /// Tells what this instance has learned; of two instances that tell of one key the last counts.
    public func tell(pins: [SharedPin], of instance: Int64, _ done: @escaping (Result<Void, StoreError>) -> Void) {
        // In the order of keys: two instances that tell of the same ones wait for each other instead of locking each other.
        let rows = pins.sorted { $0.key < $1.key }.map { pin -> [SQLValue] in
            [.int(Int64(bitPattern: pin.key)), .int(pin.account), .int(instance), .int(Int64(pin.seconds))]
        }
        let now = "CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)"
        let statement = PostgresStatement(
            """
            INSERT INTO pins (key, account_id, instance, expires_s)
            SELECT key, account_id, instance, seconds + \(now) FROM unnest($1, $2, $3, $4) AS n (key, account_id, instance, seconds)
            ON CONFLICT (key) DO UPDATE SET account_id = excluded.account_id, instance = excluded.instance, expires_s = excluded.expires_s,
              changed = pg_current_xact_id()
            """, columns: rows)
        run([statement], milliseconds: Self.statementMilliseconds) { answer in
            do throws(StoreError) {
                _ = try answer.get()
                done(.success(()))
            } catch { done(.failure(error)) }
        }
    }

    /// What other instances have told since `next`. A row has the number of the transaction that wrote it, and one is read when no
    /// transaction before it is open any more: none is passed over, whatever the order in which they end.
    public func pinNews(since next: String, of instance: Int64, named name: String, _ done: @escaping (Result<PinNews, StoreError>) -> Void)
    {
        let now = "CAST(extract(epoch FROM clock_timestamp()) AS BIGINT)"
        let query = Query<(others: Int64, end: String, pin: SharedPin?, changed: String)>(
            """
            SELECT s.others, CAST(s.horizon AS TEXT), p.key, p.account_id, p.expires_s - \(now), CAST(p.changed AS TEXT)
            FROM (
              SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon,
                (SELECT count(*) FROM leases WHERE name LIKE 'serving:%' AND name <> $1 AND expires_at_ms > \(now) * 1000) AS others
            ) s LEFT JOIN pins p ON p.changed >= CAST($2 AS xid8) AND p.changed < s.horizon AND p.instance <> $3
            ORDER BY p.changed LIMIT \(Limits.pinNewsMax)
            """, [.text("serving:" + name), .text(next), .int(instance)]
        ) { row in
            let key = row.intOrNil(2)
            return (
                row.int(0), row.text(1),
                key.map { SharedPin(key: UInt64(bitPattern: $0), account: row.int(3), seconds: Int(clamping: row.int(4))) },
                row.textOrNil(5) ?? ""
            )
        }
        rows(query) { result in
            do throws(StoreError) {
                let rows = try result.get()
                guard let first = rows.first else { throw StoreError(.corrupt, "the pins of other instances can't be read") }
                let isCut = rows.count == Limits.pinNewsMax
                // All that one transaction wrote comes at once, or again.
                done(
                    .success(
                        PinNews(
                            others: Int(clamping: first.others), pins: rows.compactMap(\.pin),
                            next: isCut ? rows[rows.count - 1].changed : first.end, isCut: isCut)))
            } catch { done(.failure(error)) }
        }
    }

    /// Keeps the newest `Limits.pinsMax`, as many as the instances remember.
    public func trimPins(_ done: @escaping (Result<Void, StoreError>) -> Void) {
        let statement = PostgresStatement(
            """
            DELETE FROM pins WHERE key IN (
              SELECT key FROM pins WHERE changed < (SELECT changed FROM pins ORDER BY changed DESC OFFSET \(Limits.pinsMax) LIMIT 1)
                OR expires_s < CAST(extract(epoch FROM clock_timestamp()) AS BIGINT) - 3600
              ORDER BY key FOR UPDATE SKIP LOCKED)
            """)
        run([statement], milliseconds: Self.statementMilliseconds) { answer in
            do throws(StoreError) {
                _ = try answer.get()
                done(.success(()))
            } catch { done(.failure(error)) }
        }
    }
}
