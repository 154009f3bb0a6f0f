internal import CPostgres
internal import Schema
internal import Settings
internal import Store
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// A blocking connection: for the command line, migrations and tests. Every wait has a deadline.
final class PostgresConnection: SQLConnection, @unchecked Sendable {  // one caller at a time
    private let link: PostgresHandle
    let place: String
    let dialect = Dialect.postgresql
    private var isInTransaction = false
    private var storesChecksums = false
    /// How long one statement may take; nil: as long as it does. `waiting` is told after each second of a longer one.
    var statementMilliseconds: Int? = 30_000
    var waiting: (_ seconds: Int) -> Void = { _ in }

    private static let conflictTriesMax = 5

    /// Connects to the first host of the target that answers.
    init(_ target: PostgresTarget) throws(StoreError) {
        var errors: [StoreError] = []
        for host in target.url.hosts {
            do throws(StoreError) {
                link = try Self.connect(target, host)
                place = target.place(host)
                return
            } catch {
                errors.append(error)
            }
        }
        // Of several hosts the most telling failure decides, but all are told.
        let first = errors.first { !$0.mayBeRetried } ?? errors.first ?? StoreError(.invalid, "the URL has no host")
        throw StoreError(first.kind, errors.map(\.message).joined(separator: " | "))
    }

    private static func connect(_ target: PostgresTarget, _ host: PostgresURL.Host) throws(StoreError) -> PostgresHandle {
        let link = try PostgresHandle(target, host, address: nil)
        let deadline = Clock.now.adding(milliseconds: target.connectMilliseconds)
        var wants = PostgresHandle.Wants.writable
        while true {
            guard wait(link.socket, wants, until: deadline) else { throw link.connectTimedOut() }
            guard let next = try link.connectStep() else { return link }
            wants = next
        }
    }

    /// False when the deadline passed first.
    private static func wait(_ socket: Int32, _ wants: PostgresHandle.Wants, until deadline: Instant) -> Bool {
        while true {
            var entry = pollfd(fd: socket, events: Int16(wants == .readable ? POLLIN : POLLOUT), revents: 0)
            let now = Clock.now
            let left = deadline == .never ? 1000 : deadline.milliseconds(since: now)
            if now >= deadline { return false }
            let n = poll(&entry, 1, Int32(clamping: left + 1))
            if n > 0 { return true }
            if n < 0, errno != EINTR { return false }
            if n == 0, deadline == .never { return true }  // the caller looks again
        }
    }

    var host: PostgresURL.Host { link.host }

    private func ask(_ statement: PostgresStatement) throws(StoreError) -> PostgresResult {
        try link.send(statement)
        let start = Clock.now
        let deadline = statementMilliseconds.map { start.adding(milliseconds: $0) } ?? .never
        var told = 0
        var last: PostgresResult?
        while true {
            let isSent = try link.flush()
            while !link.isBusy {
                guard let result = link.next() else {
                    guard let last else { throw link.broken() }
                    if let error = last.error(place) { throw error }
                    return last
                }
                last = result
            }
            let second = Clock.now.adding(milliseconds: 1000)
            if !Self.wait(link.socket, isSent ? .readable : .writable, until: min(deadline, second)) {
                let now = Clock.now
                guard now < deadline else {
                    link.close()
                    throw link.broken(
                        "no answer within \((statementMilliseconds ?? 0) / 1000) s; whether the statement took effect is unknown")
                }
                if now.milliseconds(since: start) / 1000 > told {
                    told = now.milliseconds(since: start) / 1000
                    waiting(told)
                }
                continue
            }
            try link.receive()
        }
    }

    func rows<T>(_ sql: String, _ values: [SQLValue], _ row: (any SQLRow) throws(StoreError) -> T) throws(StoreError) -> [T] {
        try ask(PostgresStatement(sql, values)).rows(row)
    }

    func change(_ sql: String, _ values: [SQLValue]) throws(StoreError) -> Int { try ask(PostgresStatement(sql, values)).changes }

    func execute(_ sql: String) throws(StoreError) { _ = try ask(PostgresStatement(sql)) }

    /// Tried again as a whole when it got in the way of another one (40001, 40P01).
    func transaction<T>(readsOnly: Bool, _ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        precondition(!isInTransaction, "a transaction inside a transaction")
        for attempt in 1... {
            do throws(StoreError) {
                return try transactionOnce(readsOnly ? "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" : "BEGIN", body)
            } catch {
                guard error.kind == .conflict, attempt < Self.conflictTriesMax else { throw error }
                usleep(UInt32.random(in: 10_000...200_000))
            }
        }
        preconditionFailure("the loop above ends by itself")
    }

    private func transactionOnce<T>(_ begin: String, _ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        try execute(begin)
        isInTransaction = true
        defer { isInTransaction = false }
        do throws(StoreError) {
            let result = try body()
            try execute("COMMIT")
            return result
        } catch {
            // On a lost connection the server has rolled back already; the first error is the one that counts.
            _ = try? execute("ROLLBACK")  // see above
            throw error
        }
    }

    func append(_ records: [StoredRecord]) throws(StoreError) -> Int {
        try ask(PostgresStatement(inserting: records, withChecksums: hasChecksums())).changes
    }

    /// Whether the schema is one with checksums. Asked again until it is: another session may upgrade it, none takes them away.
    private func hasChecksums() throws(StoreError) -> Bool {
        if !storesChecksums {
            let sql = "SELECT 1 FROM pg_attribute WHERE attrelid = 'usage_records'::regclass AND attname = 'checksum' AND NOT attisdropped"
            storesChecksums = try !rows(sql, []) { $0.text(0) }.isEmpty
        }
        return storesChecksums
    }

    func hasTable(_ name: String) throws(StoreError) -> Bool {
        try rows("SELECT to_regclass($1) IS NOT NULL", [.text(name)]) { $0.text(0) }.first == "t"
    }

    func close() { link.close() }
}
