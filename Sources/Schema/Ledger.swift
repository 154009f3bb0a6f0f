/// What `revision_history` says, next to what this program knows.
public struct Ledger: Sendable, Equatable {
    public struct Entry: Sendable, Equatable {
        public var id: String
        public var name: String
        public var checksum: String
        public init(id: String, name: String, checksum: String) { (self.id, self.name, self.checksum) = (id, name, checksum) }
    }

    /// Why this program must not touch the database. Each is another situation and wants another way out.
    public enum Refusal: Error, Sendable, Equatable {
        /// It has everything we know and more.
        case newer(String)
        /// A revision before the newest applied one was never applied.
        case missing(String)
        /// One number, two different revisions: the database comes from another line of development.
        case diverged(String, theirs: String, ours: String)
        /// Same revision, other statements.
        case changed(String, theirs: String, ours: String)
    }

    /// How many of `revisions`, oldest first, are applied. `applied` is in the order of ids.
    public static func judge(_ applied: [Entry], _ revisions: [Revision], _ dialect: Dialect) throws(Refusal) -> Int {
        for (i, revision) in revisions.enumerated() {
            guard i < applied.count else { return i }
            let entry = applied[i]
            guard entry.id == revision.id else {
                throw entry.id > revision.id ? .missing(revision.id) : .diverged(entry.id, theirs: entry.name, ours: "none")
            }
            guard entry.name == revision.name else { throw .diverged(entry.id, theirs: entry.name, ours: revision.name) }
            let ours = revision.checksum(dialect)
            guard entry.checksum == ours else { throw .changed(entry.id, theirs: entry.checksum, ours: ours) }
        }
        guard applied.count == revisions.count else { throw .newer(applied[applied.count - 1].id) }
        return revisions.count
    }
}
