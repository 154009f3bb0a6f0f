internal import JSONWire
internal import Schema
public import Vocabulary

/// Whose change it is, and when it was ordered.
public struct Author: Sendable, Equatable {
    public var actor: String
    public var at: WallTime
    public init(_ actor: String, at: WallTime) { (self.actor, self.at) = (actor, at) }
}

/// What operators do; named after their commands.
enum AuditAction: String {
    case addAccount = "accounts.add"
    /// A login got new credentials.
    case renewAccount = "accounts.renew"
    case replaceAccount = "accounts.replace"
    case setAccount = "accounts.set"
    case pauseAccount = "accounts.pause"
    case resumeAccount = "accounts.resume"
    /// It is given a state that only upstreams and issuers give.
    case takeAccountOut = "accounts.out"
    case removeAccount = "accounts.remove"
    case createKey = "keys.create"
    case revokeKey = "keys.revoke"
    case rotateEncryptionKey = "key.rotate"
    case pruneUsage = "usage.prune"
    case set = "settings.set"
    case unset = "settings.unset"

    init(_ state: Account.State) {
        self =
            switch state {
            case .active: .resumeAccount
            case .paused: .pauseAccount
            case .reauthRequired, .deactivated: .takeAccountOut
            }
    }
}

/// A change of an operator, as the store keeps it.
public struct AuditEntry: Sendable, Equatable {
    public var id: Int64
    public var at: WallTime
    public var actor: String
    public var action: String
    /// The name of the account, key or setting; empty where there is none.
    public var subject: String
    /// A JSON object: of each field that changed `{"old":…,"new":…}`, of what is secret `"set"`, `"changed"` or `"removed"`.
    public var detail: String
}

extension StoreSession {
    /// The schema has a place for what operators change.
    public var hasAudit: Bool { number >= Schema.auditRevision }

    /// What operators have changed, newest first.
    public func audit(last count: Int) throws(StoreError) -> [AuditEntry] {
        guard hasAudit else {
            throw StoreError(
                .older,
                "\(place) has revision \(revision), changes are noted from \(Schema.name(Schema.auditRevision)) on; run: codex-lb db upgrade"
            )
        }
        return try connection.rows(Queries.audit(last: count))
    }

    /// Part of a `change`, whose version makes others wait, so that ids have no gaps. A detail without a field is no change.
    func note(_ author: Author?, _ action: AuditAction, _ subject: String, _ detail: AuditDetail) throws(StoreError) {
        guard hasAudit, let author, !detail.isEmpty else { return }
        let id = try connection.rows(
            """
            INSERT INTO audit (id, at_ms, actor, action, subject, detail)
            SELECT coalesce(max(id), 0) + 1, CAST($1 AS BIGINT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS TEXT)
            FROM audit WHERE id < \(Int64.max) RETURNING id
            """,
            [
                .int(author.at.milliseconds), .text(author.actor.forAudit), .text(action.rawValue), .text(subject.forAudit),
                .text(detail.text),
            ]
        ) { $0.int(0) }
        guard let id = id.first, id > Int64(Limits.auditRowsMax) else { return }
        // By their number: ids that somebody else wrote may have gaps.
        try connection.change(
            "DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET $1)", [.int(Int64(Limits.auditRowsMax))])
    }
}

extension Queries {
    static func audit(last count: Int) -> Query<AuditEntry> {
        Query(
            "SELECT id, at_ms, actor, action, subject, detail FROM audit ORDER BY id DESC LIMIT $1", [.int(Int64(max(0, count)))]
        ) { row in
            AuditEntry(
                id: row.int(0), at: WallTime(milliseconds: row.int(1)), actor: row.text(2), action: row.text(3), subject: row.text(4),
                detail: row.text(5))
        }
    }
}

/// What a change was: of each field what it is and what it was before, of a secret only that it is another one.
struct AuditDetail {
    private var members = JSONMembers()

    var isEmpty: Bool { members.isEmpty }
    var text: String { String(decoding: JSONValue.object(members).serialized(), as: UTF8.self) }

    private init() {}

    /// Nil where there is no account, before it is added and after it is removed; credentials count where both have theirs.
    init(from old: Account?, to new: Account?) {
        add("kind", .text(old?.kind.rawValue), .text(new?.kind.rawValue))
        add("base_url", .text(old.map { Self.shown($0.baseURL) }), .text(new.map { Self.shown($0.baseURL) }))
        addSecret("base_url_query", old.flatMap { Self.query($0.baseURL) }, new.flatMap { Self.query($0.baseURL) })
        add("state", .text(old?.state.rawValue), .text(new?.state.rawValue))
        addOptions(from: old?.options, to: new?.options)
        addCredentials(from: old?.credentials, to: new?.credentials)
    }

    /// What is not there is told where the other is not as options are by themselves.
    private mutating func addOptions(from old: Account.Options?, to new: Account.Options?) {
        let (before, after) = (old ?? Account.Options(), new ?? Account.Options())
        func value(_ options: Account.Options?, _ value: (Account.Options) -> JSONValue) -> JSONValue { options.map(value) ?? .null }
        if before.policy != after.policy {
            put("policy", value(old) { .text($0.policy.rawValue) }, value(new) { .text($0.policy.rawValue) })
        }
        if before.weight != after.weight { put("weight", value(old) { .number($0.weight) }, value(new) { .number($0.weight) }) }
        add("streams_max", .number(before.streamsMax), .number(after.streamsMax))
        if before.models != after.models { put("models", .list(before.models), .list(after.models)) }
        if before.isOverflow != after.isOverflow {
            put("overflow", value(old) { .bool($0.isOverflow) }, value(new) { .bool($0.isOverflow) })
        }
    }

    private mutating func addCredentials(from old: Account.Credentials?, to new: Account.Credentials?) {
        if let new, old?.hasTokens(of: new) != true || old?.chatGPTAccountID != new.chatGPTAccountID {
            say("credentials", old == nil ? "set" : "changed")
        } else if new == nil {
            say("credentials", "removed")
        }
        guard let new else { return }
        let names = (old?.headers.map(\.name) ?? [], new.headers.map(\.name))
        if names.0 != names.1 { put("headers", .list(names.0), .list(names.1)) }
        let before = Dictionary(old?.headers.map { ($0.name, $0.value) } ?? [], uniquingKeysWith: { _, last in last })
        let isOther = new.headers.contains { before[$0.name] ?? $0.value != $0.value }
        if isOther { say("header_values", "changed") }
        add("proxy", .text(old?.proxy?.description), .text(new.proxy?.description))
        addSecret("proxy_credentials", old?.proxy?.secret, new.proxy?.secret)
    }

    /// Of a setting; nil: it is not set.
    init(setting old: String?, to new: String?) {
        if old != new { put("value", .text(old), .text(new)) }
    }

    /// Records of turns before that time are deleted.
    init(pruned before: WallTime) { put("before", .null, .text(before.rfc3339)) }

    init(newKey models: [String]?, expiresAt: WallTime?) {
        add("state", .null, "active")
        if let models { put("models", .null, .list(models)) }
        add("expires_at", .null, .text(expiresAt?.rfc3339))
    }

    /// Not even the old one's fingerprint: nothing of it may be found in the database.
    static var newEncryptionKey: AuditDetail {
        var detail = AuditDetail()
        detail.say("encryption_key", "changed")
        return detail
    }

    static var revokedKey: AuditDetail {
        var detail = AuditDetail()
        detail.add("state", "active", "revoked")
        return detail
    }

    /// What was held against an account is over.
    mutating func cleared(_ field: String) { say(field, "cleared") }

    private mutating func add(_ field: String, _ old: JSONValue, _ new: JSONValue) { if old != new { put(field, old, new) } }

    private mutating func addSecret(_ field: String, _ old: String?, _ new: String?) {
        if old != new { say(field, old == nil ? "set" : new == nil ? "removed" : "changed") }
    }

    private mutating func put(_ field: String, _ old: JSONValue, _ new: JSONValue) {
        members.members.append(.init(key: field, value: ["old": old, "new": new]))
    }

    private mutating func say(_ field: String, _ what: String) { members.members.append(.init(key: field, value: .string(what))) }

    /// Without a query and a user, which may hold secrets.
    private static func shown(_ url: String) -> String {
        let rest = url.prefix { $0 != "?" }
        guard let scheme = rest.firstRange(of: "://") else { return String(rest) }
        let (authority, path) = { text in (text.prefix { $0 != "/" }, text.drop { $0 != "/" }) }(rest[scheme.upperBound...])
        let host = authority.lastIndex(of: "@").map { authority[authority.index(after: $0)...] } ?? authority
        return String(rest[..<scheme.upperBound] + host + path)
    }

    private static func query(_ url: String) -> String? {
        let query = url.drop { $0 != "?" }
        return query.isEmpty ? nil : String(query)
    }
}

extension EgressProxy {
    fileprivate var secret: String? { user.isEmpty ? nil : "\(user):\(password)" }
}

extension JSONValue {
    fileprivate static func text(_ text: String?) -> JSONValue { text.map { .string($0.forAudit) } ?? .null }
    fileprivate static func number(_ number: Int?) -> JSONValue { number.map { .int(Int64($0)) } ?? .null }
    fileprivate static func list(_ texts: [String]?) -> JSONValue {
        guard let texts else { return .null }
        var out = texts.prefix(Limits.auditListMax).map { JSONValue.text($0) }
        if texts.count > Limits.auditListMax { out.append(.string("and \(texts.count - Limits.auditListMax) more")) }
        return .array(out)
    }
}

extension String {
    fileprivate var forAudit: String {
        let text = printable
        return text.utf8.count > Limits.auditTextBytesMax ? text.cut(utf8: Limits.auditTextBytesMax - 3) + "…" : text
    }
}
