public import Vocabulary

/// Why the store could not do something: a kind to decide by and one line that says what, where and what to do.
public struct StoreError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: String, Sendable {
        /// Someone else holds a lock; may be tried again.
        case busy
        /// No space left; may be tried again.
        case full
        /// The system failed to read or write; may be tried again.
        case io
        case readOnly
        case corrupt
        /// A file that is not ours. It was not touched.
        case foreign
        /// Made by a newer codex-lb.
        case newer
        /// An applied revision is not the one this program knows.
        case changed
        /// Older than this program needs, and opened without the right to upgrade.
        case older
        case wrongKey
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
        case .busy, .full, .io, .readOnly, .corrupt, .other: true
        case .foreign, .newer, .changed, .older, .wrongKey, .constraint, .notFound, .invalid, .missing: false
        }
    }
}

public struct NewAccount: Sendable, Equatable {
    public var name: String
    public var kind: Account.Kind
    public var baseURL: String
    public var credentials: Account.Credentials
    public init(name: String, kind: Account.Kind, baseURL: String, credentials: Account.Credentials) {
        (self.name, self.kind, self.baseURL, self.credentials) = (name, kind, baseURL, credentials)
    }
}

/// A usage record with the names of its key and account; empty when it has none.
public struct UsageListing: Sendable, Equatable {
    public var record: UsageRecord
    public var key: String
    public var account: String
    public init(record: UsageRecord, key: String, account: String) { (self.record, self.key, self.account) = (record, key, account) }
}

/// An open store: the operations of the domain, whatever database does them. Each call that changes something is one durable transaction.
/// Calls block; one caller at a time.
public protocol StoreSession: AnyObject, Sendable {
    /// The revision of the schema: `0001`.
    var revision: String { get }

    /// Stores the records; those whose id is known already are left alone. Returns how many were new.
    func append(_ records: [UsageRecord]) throws(StoreError) -> Int
    /// The newest records, newest first.
    func usage(last count: Int) throws(StoreError) -> [UsageListing]

    func snapshot() throws(StoreError) -> Snapshot

    func addAccount(_ account: NewAccount, now: WallTime) throws(StoreError) -> Account
    func setAccountState(_ name: String, _ state: Account.State, now: WallTime) throws(StoreError) -> Account
    /// Frees name and slot and forgets the credentials; what it used stays on record.
    func removeAccount(_ name: String, now: WallTime) throws(StoreError) -> Account
    /// By name, without credentials.
    func accounts() throws(StoreError) -> [Account]

    /// Makes a key; `plain` exists here and nowhere else.
    func createClientKey(
        _ name: String, models: [String]?, expiresAt: WallTime?, now: WallTime
    ) throws(StoreError) -> (key: ClientKey, plain: String)
    func revokeClientKey(_ name: String, now: WallTime) throws(StoreError) -> ClientKey
    /// Oldest first, revoked ones included.
    func clientKeys() throws(StoreError) -> [ClientKey]

    /// Moves what the log holds into the database proper, as far as readers allow.
    func checkpoint() throws(StoreError)
    func close()
}

/// Names that operators type: 1 to 64 of letters, digits, `.`, `_`, `-`, `@`, `+`.
public enum StoreName {
    public static func check(_ name: String, of what: String) throws(StoreError) {
        let allowed = name.utf8.allSatisfy { byte in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"): true
            case UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"), UInt8(ascii: "@"), UInt8(ascii: "+"): true
            default: false
            }
        }
        guard allowed, (1...64).contains(name.utf8.count), !name.hasPrefix("-") else {
            throw StoreError(.invalid, "\(what) name \"\(name)\": use 1 to 64 letters, digits or . _ - @ + and no - at the start")
        }
    }
}
