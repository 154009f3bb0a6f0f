internal import Schema
internal import Vocabulary

/// Goes over to a new encryption key: every secret of the store is sealed anew in one transaction.
///
/// ```
/// makeKey ─▶ seal ─▶ commit ─▶ keepOld ─▶ takeNext ─▶ scrub
/// ```
/// Until the COMMIT the store belongs to `encryption.key`, after it to `encryption.key.new`, and both files are on disk by then: cut
/// anywhere, the next opening finds the key (`Vault.load`) and finishes the renaming. No server may use the store meanwhile.
public struct KeyRotation {
    public enum Step: Int, Sendable, CaseIterable {
        case makeKey, seal, commit, keepOld, takeNext, scrub
    }

    public struct Outcome: Sendable, Equatable {
        /// Fingerprints.
        public var before: String
        public var after: String
        public var accounts: Int
        /// The file of the key before, which opens backups made until now.
        public var kept: String?
        /// Why what was sealed with the old key may still lie in unused parts of the database's files; nil when nothing does.
        public var unscrubbed: String?
    }

    private let store: StoreSession
    private let keyPath: String
    private let author: Author?
    private let willDo: (Step) -> Void

    /// `willDo` is told of each step just before it.
    public init(_ store: StoreSession, keyPath: String, by author: Author? = nil, willDo: @escaping (Step) -> Void = { _ in }) {
        (self.store, self.keyPath, self.author, self.willDo) = (store, keyPath, author, willDo)
    }

    /// The session's own key is the old one afterwards: it is good for nothing but `close`.
    public func run() throws(StoreError) -> Outcome {
        let vault = try store.requireVault()
        willDo(.makeKey)
        var next = try Vault.next(keyPath: keyPath)
        if next.fingerprint == vault.fingerprint {
            // Since an earlier rotation nobody could put it in its place; this says why.
            try Vault.takeNext(keyPath: keyPath)
            next = try Vault.next(keyPath: keyPath)
        }
        let accounts = try store.change { () throws(StoreError) in try seal(vault, next) }
        willDo(.keepOld)
        let kept = try Vault.keepOld(keyPath: keyPath)
        willDo(.takeNext)
        try Vault.takeNext(keyPath: keyPath)
        willDo(.scrub)
        var outcome = Outcome(before: vault.fingerprint, after: next.fingerprint, accounts: accounts, kept: kept)
        do throws(StoreError) { try scrub() } catch { outcome.unscrubbed = error.message }
        return outcome
    }

    /// Returns how many accounts there are.
    private func seal(_ vault: Vault, _ next: Vault) throws(StoreError) -> Int {
        willDo(.seal)
        let connection = store.connection
        let changed = try connection.change(
            "UPDATE state SET value = $1 WHERE key = 'key_fingerprint' AND value = $2",
            [.text(next.fingerprint), .text(vault.fingerprint)])
        guard changed == 1 else {
            throw StoreError(.wrongKey, "the encryption key of \(store.place) was rotated just now; run this again")
        }
        guard let pepper = try connection.rows(Queries.pepper).first else {
            throw StoreError(.corrupt, "the database has no pepper for client keys; restore a backup")
        }
        try connection.change("UPDATE state SET value = $1 WHERE key = 'pepper'", [.text(try vault.move(pepper: pepper, to: next))])
        // A removed account's are empty.
        let rows = try connection.rows("SELECT id, credentials FROM accounts WHERE length(credentials) > 0", []) { ($0.int(0), $0.blob(1)) }
        for (id, sealed) in rows {
            try connection.change(
                "UPDATE accounts SET credentials = $1 WHERE id = $2", [.blob(try vault.move(sealed, account: id, to: next)), .int(id)])
        }
        try store.note(author, .rotateEncryptionKey, "", .newEncryptionKey)
        willDo(.commit)
        return rows.count
    }

    /// Rewrites the files in which rows of before may still lie.
    private func scrub() throws(StoreError) {
        switch store.connection.dialect {
        case .sqlite:
            try store.connection.execute("VACUUM")
            try store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        case .postgresql:
            for table in ["accounts", "state"] { try store.connection.execute("VACUUM FULL \(table)") }
        }
    }
}
