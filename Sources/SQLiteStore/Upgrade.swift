internal import Schema
internal import Store
internal import Vocabulary

extension Connection {
    /// Applies the revisions that are missing, each with its row of the ledger in one transaction. Returns their ids.
    func upgrade(_ revisions: [Revision], appVersion: String, now: WallTime) throws(StoreError) -> [String] {
        let known = try checkHistory(revisions)
        var applied: [String] = []
        for revision in revisions.dropFirst(known) {
            let start = Clock.now
            try transaction { () throws(StoreError) in
                for statement in revision.statements[.sqlite] ?? [] { try execute(statement) }
                try run(
                    "INSERT INTO revision_history (id, name, checksum, applied_at_ms, duration_ms, app_version) VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        .text(revision.id), .text(revision.name), .text(revision.checksum(.sqlite)), .int(now.milliseconds),
                        .int(Int64(Clock.now.milliseconds(since: start))), .text(appVersion),
                    ])
                try execute("PRAGMA application_id = \(Schema.applicationID)")
                try execute("PRAGMA user_version = \(revision.number)")
            }
            applied.append(revision.id)
        }
        return applied
    }

    /// How many of `revisions` are applied. Throws when the ledger holds one that is unknown or not as it is known.
    func checkHistory(_ revisions: [Revision]) throws(StoreError) -> Int {
        guard try int("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'revision_history'") == 1 else { return 0 }
        let ledger = try rows("SELECT id, checksum FROM revision_history ORDER BY id") { (id: $0.text(0), checksum: $0.text(1)) }
        for (i, entry) in ledger.enumerated() {
            guard i < revisions.count, revisions[i].id == entry.id else {
                throw StoreError(
                    .newer,
                    "database \(path) has revision \(entry.id), this codex-lb knows \(revisions.last?.id ?? "none"); run the newer codex-lb that made it, or restore a backup"
                )
            }
            guard revisions[i].checksum(.sqlite) == entry.checksum else {
                throw StoreError(
                    .changed,
                    "database \(path): revision \(entry.id) was applied as \(entry.checksum), this codex-lb has it as \(revisions[i].checksum(.sqlite)); use the codex-lb that made the database, or restore a backup"
                )
            }
        }
        return ledger.count
    }
}
