public import Schema
public import Vocabulary

/// A row of the ledger.
public struct AppliedRevision: Sendable, Equatable {
    public var id: String
    public var name: String
    public var checksum: String
    public var appliedAt: WallTime
    public var durationMilliseconds: Int64
    public var appVersion: String
}

/// Brings a database's schema to a revision: each one with its row of the ledger in one transaction, so that there is no state between two
/// revisions, whenever the process is killed. Who calls it holds the right to migrate.
public struct Migrator {
    private let connection: any SQLConnection
    private let revisions: [Revision]
    /// Told of each statement just before it runs: revision, statement number from 1, statements in all.
    public var willRun: (_ revision: Revision, _ statement: Int, _ count: Int) -> Void = { _, _, _ in }
    /// Runs inside each revision's transaction, at its beginning: the place for a lock.
    public var willBegin: () throws(StoreError) -> Void = { () throws(StoreError) in }
    /// Runs inside each revision's transaction, at its end.
    public var willCommit: (_ revision: Revision) throws(StoreError) -> Void = { _ throws(StoreError) in }

    public init(_ connection: any SQLConnection, _ revisions: [Revision] = Schema.revisions) {
        (self.connection, self.revisions) = (connection, revisions)
    }

    /// The ledger's rows, oldest first; empty when there is none yet.
    public static func history(_ connection: any SQLConnection) throws(StoreError) -> [AppliedRevision] {
        guard try connection.hasTable("revision_history") else { return [] }
        return try connection.rows(
            "SELECT id, name, checksum, applied_at_ms, duration_ms, app_version FROM revision_history ORDER BY id", []
        ) {
            AppliedRevision(
                id: $0.text(0), name: $0.text(1), checksum: $0.text(2), appliedAt: WallTime(milliseconds: $0.int(3)),
                durationMilliseconds: $0.int(4), appVersion: $0.text(5))
        }
    }

    /// How many revisions are applied; throws when the ledger holds what this program does not know.
    public func applied() throws(StoreError) -> Int {
        let entries = try Self.history(connection).map { Ledger.Entry(id: $0.id, name: $0.name, checksum: $0.checksum) }
        do throws(Ledger.Refusal) {
            return try Ledger.judge(entries, revisions, connection.dialect)
        } catch {
            throw StoreError(refusal: error, place: connection.place, head: revisions.last?.id ?? "none")
        }
    }

    /// Applies what is missing up to the revision number `target` (all when nil). Returns the ids.
    public func apply(upTo target: Int? = nil, appVersion: String, now: WallTime) throws(StoreError) -> [String] {
        var done: [String] = []
        for place in try applied()..<revisions.count where revisions[place].number <= target ?? .max {
            let revision = revisions[place]
            do throws(StoreError) {
                if try apply(revision, at: place, appVersion: appVersion, now: now) { done.append(revision.id) }
            } catch {
                throw StoreError(error.kind, "revision \(revision.id) (\(revision.name)) of \(connection.place) failed: \(error.message)")
            }
        }
        return done
    }

    /// False when another migrator was faster.
    private func apply(_ revision: Revision, at place: Int, appVersion: String, now: WallTime) throws(StoreError) -> Bool {
        let start = Clock.now
        let statements = revision.statements[connection.dialect] ?? []
        return try connection.transaction { () throws(StoreError) in
            try willBegin()
            guard try applied() == place else { return false }
            for (i, statement) in statements.enumerated() {
                willRun(revision, i + 1, statements.count)
                do throws(StoreError) { try connection.execute(statement) } catch {
                    let first = statement.split(separator: "\n").first.map(String.init) ?? ""
                    throw StoreError(error.kind, "statement \(i + 1) of \(statements.count), \(first): \(error.message)")
                }
            }
            try connection.change(
                """
                INSERT INTO revision_history (id, name, checksum, applied_at_ms, duration_ms, app_version)
                VALUES ($1, $2, $3, $4, $5, $6)
                """,
                [
                    .text(revision.id), .text(revision.name), .text(revision.checksum(connection.dialect)), .int(now.milliseconds),
                    .int(Int64(Clock.now.milliseconds(since: start))), .text(appVersion),
                ])
            try willCommit(revision)
            return true
        }
    }
}

extension StoreError {
    init(refusal: Ledger.Refusal, place: String, head: String) {
        switch refusal {
        case .newer(let id):
            self.init(
                .newer,
                "\(place) has revision \(id), this codex-lb knows \(head): run the newer codex-lb that made it, or restore a backup")
        case .missing(let id):
            self.init(
                .missingRevision,
                "\(place) has later revisions but lacks \(id) in revision_history: restore a backup (codex-lb db backups lists them)")
        case .diverged(let id, let theirs, let ours):
            self.init(
                .diverged,
                "\(place) has another revision \(id) (\"\(theirs)\") than this codex-lb (\"\(ours)\"): use the codex-lb that made it, or restore a backup"
            )
        case .changed(let id, let theirs, let ours):
            self.init(
                .changed,
                "\(place): revision \(id) was applied with checksum \(theirs), this codex-lb has it with \(ours): use the codex-lb that made it, or restore a backup"
            )
        }
    }
}
