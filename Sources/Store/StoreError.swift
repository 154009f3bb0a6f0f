/// Why the store could not do something: a kind to decide by and one line that says what, where and what to do.
public struct StoreError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: String, Sendable {
        /// Someone else holds a lock; may be tried again.
        case busy
        /// No space left; may be tried again.
        case full
        /// The system failed to read or write; may be tried again.
        case io
        /// The server can't be reached, went away or is going away; may be tried again.
        case unreachable
        /// The server takes no further connection; may be tried again.
        case exhausted
        /// No connection of our own pool became free in time; may be tried again.
        case poolTimeout
        /// Transactions got in each other's way; may be tried again.
        case conflict
        case readOnly
        case corrupt
        /// A database that is not ours. It was not touched.
        case foreign
        /// Made by a newer codex-lb.
        case newer
        /// An applied revision is not the one this program knows.
        case changed
        /// The ledger lacks a revision before the newest one it has.
        case missingRevision
        /// The ledger and this program have different revisions under one number.
        case diverged
        /// Older than this program needs, and opened without the right to upgrade.
        case older
        case wrongKey
        /// The server refused the login: user, password, database or TLS.
        case refused
        /// The name is taken, or the values contradict each other.
        case constraint
        case notFound
        /// A value that can't be stored.
        case invalid
        case missing
        case other
    }
    public var kind: Kind
    public var message: String
    public init(_ kind: Kind, _ message: String) { (self.kind, self.message) = (kind, message) }
    public var description: String { message }
    /// Whether the same call may work later without anyone changing its arguments.
    public var mayBeRetried: Bool {
        switch kind {
        case .busy, .full, .io, .unreachable, .exhausted, .poolTimeout, .conflict, .readOnly, .corrupt, .other: true
        case .foreign, .newer, .changed, .missingRevision, .diverged, .older, .wrongKey, .refused, .constraint, .notFound, .invalid,
            .missing:
            false
        }
    }
    /// Whether starting again would meet the same: only an operator can change it.
    public var needsOperator: Bool {
        switch kind {
        case .corrupt, .foreign, .newer, .changed, .missingRevision, .diverged, .older, .wrongKey, .constraint, .invalid, .missing, .other:
            true
        case .busy, .full, .io, .unreachable, .refused, .exhausted, .poolTimeout, .conflict, .readOnly, .notFound: false
        }
    }
    /// Whether the database itself stands in the way of this schema: nobody but an operator can change that.
    public var isSchemaRefusal: Bool {
        switch kind {
        case .newer, .changed, .missingRevision, .diverged, .foreign: true
        default: false
        }
    }
}
