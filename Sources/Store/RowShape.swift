internal import Schema
internal import Vocabulary

/// What a row of a table must be so that the store can read it back. The database's own types do not say it all, and in a damaged SQLite
/// file not even they hold.
struct RowShape: Sendable {
    enum Kind: String, Sendable { case number, text, bytes, any }
    struct Column: Sendable {
        var name: String
        var kind: Kind
        var mayBeNull = false
    }

    let table: String
    let columns: [Column]
    private let rule: @Sendable ([StoredValue]) -> String?

    private init(_ table: String, _ columns: [Column], rule: @escaping @Sendable ([StoredValue]) -> String? = { _ in nil }) {
        (self.table, self.columns, self.rule) = (table, columns, rule)
    }

    /// The tables that the first `revision` revisions make.
    static func all(revision: Int) -> [RowShape] {
        [accounts(revision: revision), clientKeys, settings, state, revisionHistory] + (revision >= 2 ? [leases] : [])
            + (revision >= Schema.factsRevision ? [accountFacts] : []) + (revision >= Schema.auditRevision ? [audit] : [])
            + [usage(revision: revision)]
    }

    var columnList: String { columns.map(\.name).joined(separator: ", ") }

    /// Why the row can't be read, for an operator; nil when it can. One value per column.
    func fault(_ values: [StoredValue]) -> String? {
        for (column, value) in zip(columns, values) {
            switch (value, column.kind) {
            case (.null, _) where column.mayBeNull: continue
            case (.null, _): return "\(column.name) is NULL"
            case (.brokenText, _): return "\(column.name) is a text that is not UTF-8: \(value.shown)"
            case (.int, .number), (.text, .text), (.blob, .bytes), (_, .any): continue
            default: return "\(column.name) is \(value.shown), expected a \(column.kind == .bytes ? "blob" : column.kind.rawValue)"
            }
        }
        return rule(values)
    }

    /// The row's key, which is its first column, as commands and messages write it.
    func key(_ values: [StoredValue]) -> String {
        guard let first = values.first else { return "?" }
        switch first {
        case .blob(let bytes): return RecordID(bytes: bytes)?.description ?? first.shown
        case .int(let n): return String(n)
        case .text(let text): return text.printable
        default: return first.shown
        }
    }

    // MARK: The tables

    static func accounts(revision: Int) -> RowShape { revision >= Schema.optionsRevision ? accountsWithOptions : accountsWithoutOptions }

    private static let accountsWithoutOptions = RowShape("accounts", accountColumns, rule: accountFault)
    private static let accountsWithOptions = RowShape(
        "accounts",
        accountColumns + [
            Column(name: "policy", kind: .text), Column(name: "weight", kind: .number),
            Column(name: "streams_max", kind: .number, mayBeNull: true), Column(name: "models", kind: .text, mayBeNull: true),
            Column(name: "is_overflow", kind: .number),
        ]
    ) { values in
        if let fault = accountFault(values) { return fault }
        guard case .text(let policy) = values[10], case .int(let weight) = values[11] else { return nil }
        var streamsMax: Int64?
        if case .int(let n) = values[12] { streamsMax = n }
        return Account.Options.fault(policy: policy, weight: weight, streamsMax: streamsMax) ?? modelsFault(values[13])
    }

    private static let accountColumns =
        [
            Column(name: "id", kind: .number), Column(name: "slot", kind: .number, mayBeNull: true), Column(name: "name", kind: .text),
            Column(name: "kind", kind: .text), Column(name: "state", kind: .text), Column(name: "base_url", kind: .text),
            Column(name: "credentials", kind: .bytes), Column(name: "created_at_ms", kind: .number),
            Column(name: "changed_at_ms", kind: .number), Column(name: "removed_at_ms", kind: .number, mayBeNull: true),
        ]

    private static let accountFault: @Sendable ([StoredValue]) -> String? = { values in
        if case .int(let slot) = values[1], !(0..<Int64(Limits.accountsMax)).contains(slot) {
            return "slot is \(slot), expected 0 to \(Limits.accountsMax - 1)"
        }
        if case .text(let kind) = values[3], Account.Kind(rawValue: kind) == nil { return "kind is \(values[3].shown)" }
        if case .text(let state) = values[4], Account.State(rawValue: state) == nil { return "state is \(values[4].shown)" }
        return nil
    }

    static let clientKeys = RowShape(
        "client_keys",
        [
            Column(name: "id", kind: .number), Column(name: "name", kind: .text), Column(name: "digest", kind: .bytes),
            Column(name: "prefix", kind: .text), Column(name: "models", kind: .text, mayBeNull: true),
            Column(name: "expires_at_ms", kind: .number, mayBeNull: true), Column(name: "revoked_at_ms", kind: .number, mayBeNull: true),
            Column(name: "created_at_ms", kind: .number),
        ]
    ) { values in
        if case .blob(let digest) = values[2], digest.count != 32 { return "digest has \(digest.count) bytes, expected 32" }
        return modelsFault(values[4])
    }

    private static func modelsFault(_ value: StoredValue) -> String? {
        guard case .text(let json) = value else { return nil }
        do throws(StoreError) {
            _ = try Queries.models(json)
            return nil
        } catch { return "models is \(value.shown), expected a list" }
    }

    static let settings = RowShape("settings", [Column(name: "key", kind: .text), Column(name: "value", kind: .text)])

    /// What stands in `value` is only advice: one that can't be read is as good as none.
    static let accountFacts = RowShape(
        "account_facts",
        [
            Column(name: "account_id", kind: .number), Column(name: "subject", kind: .text), Column(name: "at_ms", kind: .number),
            Column(name: "value", kind: .text),
        ])

    static let audit = RowShape(
        "audit",
        [
            Column(name: "id", kind: .number), Column(name: "at_ms", kind: .number), Column(name: "actor", kind: .text),
            Column(name: "action", kind: .text), Column(name: "subject", kind: .text), Column(name: "detail", kind: .text),
        ])

    private static let state = RowShape("state", [Column(name: "key", kind: .text), Column(name: "value", kind: .any)])

    private static let revisionHistory = RowShape(
        "revision_history",
        [
            Column(name: "id", kind: .text), Column(name: "name", kind: .text), Column(name: "checksum", kind: .text),
            Column(name: "applied_at_ms", kind: .number), Column(name: "duration_ms", kind: .number),
            Column(name: "app_version", kind: .text),
        ])

    private static let leases = RowShape(
        "leases",
        [
            Column(name: "name", kind: .text), Column(name: "holder", kind: .text), Column(name: "epoch", kind: .number),
            Column(name: "expires_at_ms", kind: .number), Column(name: "done_at_ms", kind: .number),
        ])

    static func usage(revision: Int) -> RowShape { revision >= Schema.checksumRevision ? usageWithChecksum : usageWithoutChecksum }

    private static let usageWithoutChecksum = RowShape("usage_records", usageColumns, rule: usageFault)
    private static let usageWithChecksum = RowShape(
        "usage_records", usageColumns + [Column(name: "checksum", kind: .number, mayBeNull: true)], rule: usageFault)

    private static let usageColumns = UsageRecord.columnNames.map { name in
        let texts: Set = ["route", "transport", "request_id", "model_asked", "model_served", "error_code"]
        let optional: Set = ["key_id", "account_id", "cost_microdollars", "first_byte_ms"]
        return Column(
            name: name, kind: name == "id" ? .bytes : texts.contains(name) ? .text : .number, mayBeNull: optional.contains(name))
    }

    private static let usageFault: @Sendable ([StoredValue]) -> String? = { values in
        if case .blob(let id) = values[0], RecordID(bytes: id) == nil { return "id has \(id.count) bytes, expected 16" }
        if case .text(let transport) = values[3], UsageRecord.Transport(rawValue: transport) == nil {
            return "transport is \(values[3].shown), expected http or websocket"
        }
        return nil
    }
}

extension StoredValue {
    /// For a message: short, in one line, with its kind to be seen.
    var shown: String {
        func hex(_ bytes: [UInt8]) -> String {
            "x'" + bytes.prefix(24).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined() + (bytes.count > 24 ? "…" : "") + "'"
        }
        switch self {
        case .null: return "NULL"
        case .int(let n): return "the number \(n)"
        case .real(let n): return "the number \(n)"
        case .text(let text): return "the text \"\(text.cut(utf8: 48).printable)\""
        case .brokenText(let bytes), .blob(let bytes): return hex(bytes)
        }
    }
}

extension RecordChecksum {
    init(_ values: some Collection<StoredValue>) {
        self.init()
        for value in values {
            switch value {
            case .null: addNull()
            case .int(let n): add(n)
            case .text(let text): add(text)
            case .blob(let bytes): add(bytes)
            // No record is stored with them, so whatever they count as, the row is not as it was.
            case .real, .brokenText: addNull()
            }
        }
    }
}
