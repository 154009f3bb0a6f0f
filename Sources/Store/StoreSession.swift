internal import Bytes
public import ControlWire
internal import Schema
internal import Sealing
internal import Settings
public import Vocabulary

public struct NewAccount: Sendable, Equatable {
    public var name: String
    public var kind: Account.Kind
    public var baseURL: String
    public var credentials: Account.Credentials
    /// What becomes of an account that is there already.
    public enum Known: Sendable, Equatable {
        /// It stays: the new one is refused.
        case refused
        /// A login gets the new credentials when it is the same person's in the same workspace; without `byName` whatever it is called.
        case renewed(byName: Bool)
        /// The account of this name gets them, whoever's it was.
        case replaced
    }
    public var known: Known
    /// Its options; those of an account that is there stay where this says nothing.
    public var change: AccountChange
    public init(
        name: String, kind: Account.Kind, baseURL: String, credentials: Account.Credentials, known: Known = .refused,
        change: AccountChange = AccountChange()
    ) {
        (self.name, self.kind, self.baseURL, self.credentials, self.known) = (name, kind, baseURL, credentials, known)
        self.change = change
    }
}

/// A usage record with the names of its key and account; empty when it has none.
public struct UsageListing: Sendable, Equatable {
    public var record: UsageRecord
    public var key: String
    public var account: String
    public init(record: UsageRecord, key: String, account: String) { (self.record, self.key, self.account) = (record, key, account) }
}

/// An open store: the operations of the domain over one blocking connection, whatever database is behind it. Each call that changes
/// something is one durable transaction. One caller at a time.
public final class StoreSession: @unchecked Sendable {  // one caller at a time: its contract
    package let connection: any SQLConnection
    /// The revision of the schema when it was opened: `0001`.
    public let revision: String
    /// The revisions that opening it applied.
    public let applied: [String]
    /// The copy that was made before the upgrade.
    public let backup: String?
    package let vault: Vault?
    /// What must live as long as the session: the writer's lock.
    private var held: AnyObject?

    package init(
        _ connection: any SQLConnection, vault: Vault?, revision: String, applied: [String] = [], backup: String? = nil,
        holding held: AnyObject? = nil
    ) {
        (self.connection, self.vault, self.revision, self.applied) = (connection, vault, revision, applied)
        (self.backup, self.held) = (backup, held)
    }

    var number: Int { Int(revision) ?? 0 }

    /// How messages name the database.
    public var place: String { connection.place }

    public func rows<T>(_ query: Query<T>) throws(StoreError) -> [T] { try connection.rows(query) }

    // MARK: Usage

    /// Stores the records; those whose id is known already are left alone. Returns how many were new.
    public func append(_ records: [UsageRecord]) throws(StoreError) -> Int {
        records.isEmpty ? 0 : try connection.append(records.map { StoredRecord(sealing: $0) })
    }

    /// The same; where the store refuses the whole for what is in it, one by one: `refused` are those that can't be stored as they are.
    public func appendWhatFits(_ records: JournalRows) throws(StoreError) -> (new: Int, refused: [[UInt8]]) {
        guard !records.rows.isEmpty else { return (0, []) }
        do throws(StoreError) { return (try connection.append(records, records.rows.indices), []) } catch {
            guard !error.mayBeRetried else { throw error }
        }
        var (new, refused): (Int, [[UInt8]]) = (0, [])
        for index in records.rows.indices {
            do throws(StoreError) { new += try connection.append(records, index..<index + 1) } catch {
                guard !error.mayBeRetried else { throw error }
                refused.append(records.journalBytes(index))
            }
        }
        return (new, refused)
    }

    /// The newest records, newest first.
    public func usage(last count: Int) throws(StoreError) -> [UsageListing] { try connection.rows(Queries.usage(last: count)) }

    /// Deletes the oldest records of turns that began before `time`, `limit` of them at most; returns how many.
    public func pruneUsage(before time: WallTime, limit: Int, by author: Author? = nil) throws(StoreError) -> Int {
        let first = Self.firstRecord(of: time)
        // Nothing that workers know of changes by it.
        return try connection.transaction { () throws(StoreError) in
            let count = try connection.change(
                "DELETE FROM usage_records WHERE id IN (SELECT id FROM usage_records WHERE id < $1 ORDER BY id LIMIT $2)",
                [.blob(first.bytes), .int(Int64(limit))])
            if count > 0 { try note(author, .pruneUsage, "usage_records", AuditDetail(pruned: time)) }
            return count
        }
    }

    /// Whether a turn was recorded from `time` on and before `end`.
    public func hasUsage(from time: WallTime, before end: WallTime) throws(StoreError) -> Bool {
        try !connection.rows(
            "SELECT 1 FROM usage_records WHERE id >= $1 AND id < $2 LIMIT 1",
            [.blob(Self.firstRecord(of: time).bytes), .blob(Self.firstRecord(of: end).bytes)]
        ) { _ in true }.isEmpty
    }

    /// Ids sort by time (RFC 9562 §5.7): this is the first one that a turn of that moment could have.
    private static func firstRecord(of time: WallTime) -> RecordID {
        RecordID(high: UInt64(bitPattern: max(0, time.milliseconds)) << 16, low: 0)
    }

    // MARK: Accounts

    public func addAccount(_ new: NewAccount, now: WallTime) throws(StoreError) -> Account { try putAccount(new, now: now).account }

    /// Adds an account, or gives one that is there new credentials (`renewed`), as `new.known` says.
    public func putAccount(
        _ new: NewAccount, now: WallTime, by author: Author? = nil
    ) throws(StoreError) -> (account: Account, renewed: Bool) {
        try StoreName.check(new.name, of: "account")
        // Of a login without one: as its account has it, else ChatGPT's own.
        var base = new.baseURL.isEmpty && new.kind == .chatGPT ? "https://chatgpt.com/backend-api" : new.baseURL
        while base.hasSuffix("/") { base.removeLast() }
        guard base.hasPrefix("https://") || base.hasPrefix("http://"), base.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw StoreError(.invalid, "base URL \"\(new.baseURL)\": expected http:// or https://, for example https://api.openai.com/v1")
        }
        try checkChange(new.change)
        guard !new.credentials.bearer.isEmpty || new.kind == .apiKey && new.change.headers?.isEmpty == false else {
            throw StoreError(.invalid, "account \(new.name): the key is empty")
        }
        // It becomes a header field: a line break in it would make another one.
        guard (new.credentials.bearer + (new.credentials.chatGPTAccountID ?? "")).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw StoreError(.invalid, "account \(new.name): the key has characters that no key has (spaces, line breaks or not ASCII)")
        }
        let vault = try requireVault()
        return try change { () throws(StoreError) in
            guard try connection.rows(Queries.keyFingerprint).first == vault.fingerprint else {
                throw StoreError(.wrongKey, "the encryption key of \(place) was rotated just now; run this again")
            }
            var credentials = new.change.credentials(from: new.credentials)
            if var account = try known(new, vault) {
                account.credentials = try sealedCredentials(account.name, vault)
                let before = account
                credentials = new.change.credentials(from: account.credentials).withTokens(of: new.credentials)
                account.options = new.change.options(from: account.options)
                if new.baseURL.isEmpty, account.kind == new.kind { base = account.baseURL }
                // What one upstream was given may be its secret: it does not go to another one unasked.
                if new.change.headers == nil, Self.place(base) != Self.place(account.baseURL) { credentials.headers = [] }
                // A pause is the operator's.
                let state = account.state == .paused ? Account.State.paused : .active
                (account.kind, account.state, account.baseURL) = (new.kind, state, base)
                (account.credentials, account.changedAt) = (credentials, now.after(account.changedAt))
                try connection.change(
                    "UPDATE accounts SET kind = $1, state = $2, base_url = $3, credentials = $4, changed_at_ms = $5 WHERE id = $6",
                    [
                        .text(new.kind.rawValue), .text(state.rawValue), .text(base),
                        .blob(try vault.seal(credentials, account: account.id)), .int(account.changedAt.milliseconds), .int(account.id),
                    ])
                try forgive(account: account.id, now: now, health: true)
                try store(account.options, of: account.id)
                let action = new.known == .replaced ? AuditAction.replaceAccount : .renewAccount
                try note(author, action, account.name, AuditDetail(from: before, to: account))
                return (account, true)
            }
            let taken = Set(try connection.rows("SELECT slot FROM accounts WHERE slot IS NOT NULL", []) { Int($0.int(0)) })
            guard let slot = (0..<Limits.accountsMax).first(where: { !taken.contains($0) }) else {
                throw StoreError(.constraint, "there are \(Limits.accountsMax) accounts already, the most there can be; remove one first")
            }
            let made = try connection.rows(
                """
                INSERT INTO accounts (slot, name, kind, state, base_url, credentials, created_at_ms, changed_at_ms)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $7) RETURNING id
                """,
                [
                    .int(Int64(slot)), .text(new.name), .text(new.kind.rawValue), .text(Account.State.active.rawValue), .text(base),
                    .blob([]), .int(now.milliseconds),
                ]
            ) { $0.int(0) }
            guard let id = made.first else { throw StoreError(.other, "\(place) gave no id for the account \(new.name)") }
            // The seal is bound to the row, whose number is known only now.
            let sealed = try vault.seal(credentials, account: id)
            try connection.change("UPDATE accounts SET credentials = $1 WHERE id = $2", [.blob(sealed), .int(id)])
            var account = Account(
                id: id, slot: slot, name: new.name, kind: new.kind, state: .active, baseURL: base, credentials: credentials,
                createdAt: now, changedAt: now)
            account.options = new.change.options(from: account.options)
            try store(account.options, of: id)
            try note(author, .addAccount, account.name, AuditDetail(from: nil, to: account))
            return (account, false)
        }
    }

    // MARK: What operators set

    /// Changes an account's options, and the fields that go with its requests. Options say nothing of its state: it is not seen as changed.
    public func setAccount(
        _ name: String, _ new: AccountChange, now: WallTime, by author: Author? = nil
    ) throws(StoreError) -> Account {
        guard !new.isNothing else { throw StoreError(.invalid, "account \(name): nothing to change is given") }
        try checkChange(new)
        let vault = try requireVault()
        return try change { () throws(StoreError) in
            var account = try existingAccount(name)
            account.credentials = try sealedCredentials(name, vault)
            let before = account
            account.options = new.options(from: account.options)
            try store(account.options, of: account.id)
            account.credentials = new.credentials(from: account.credentials)
            try note(author, .setAccount, name, AuditDetail(from: before, to: account))
            guard new.headers != nil || new.proxy != nil else { return account }
            let credentials = account.credentials
            guard !credentials.bearer.isEmpty || !credentials.headers.isEmpty else {
                throw StoreError(.invalid, "account \(name) has no key but in its headers; it needs one of them")
            }
            account.changedAt = now.after(account.changedAt)
            try connection.change(
                "UPDATE accounts SET credentials = $1, changed_at_ms = $2 WHERE id = $3",
                [.blob(try vault.seal(credentials, account: account.id)), .int(account.changedAt.milliseconds), .int(account.id)])
            return account
        }
    }

    /// Scheme, host and port of a base URL.
    private static func place(_ url: String) -> Substring {
        var slashes = 0
        return url.prefix {
            if $0 == "/" { slashes += 1 }
            return slashes < 3 && $0 != "?"
        }
    }

    private func checkChange(_ change: AccountChange) throws(StoreError) {
        try change.check()
        guard change.isNothing || number >= Schema.optionsRevision else {
            throw StoreError(
                .older,
                "\(place) has revision \(revision), accounts have options from \(Schema.name(Schema.optionsRevision)) on; run: codex-lb db upgrade"
            )
        }
    }

    private func sealedCredentials(_ name: String, _ vault: Vault) throws(StoreError) -> Account.Credentials {
        guard let entry = try connection.rows(Queries.accounts(named: name, revision: number)).first else { return .init(bearer: "") }
        return try vault.credentials(of: entry)
    }

    private func store(_ options: Account.Options, of id: Int64) throws(StoreError) {
        guard number >= Schema.optionsRevision else { return }
        try connection.change(
            "UPDATE accounts SET policy = $1, weight = $2, streams_max = $3, models = $4, is_overflow = $5 WHERE id = $6",
            [
                .text(options.policy.rawValue), .int(Int64(options.weight)), SQLValue(options.streamsMax.map { Int64($0) }),
                SQLValue(options.modelsJSON), .int(options.isOverflow ? 1 : 0), .int(id),
            ])
    }

    /// What is set, by name.
    public func settings() throws(StoreError) -> [(String, String)] { try connection.rows(Queries.settings) }

    /// Sets a setting for all instances.
    public func set(_ name: String, to value: String, by author: Author? = nil) throws(StoreError) {
        try change { () throws(StoreError) in
            let stored = Dictionary(try settings(), uniquingKeysWith: { _, new in new })
            if let problem = StoredSettings.problem(name, value, among: stored) { throw StoreError(.invalid, problem) }
            if name == "routing.single_account" { _ = try existingAccount(value) }
            guard stored[name] != nil || stored.count < Limits.settingsMax else {
                throw StoreError(.constraint, "there are \(Limits.settingsMax) settings already, the most there can be; unset one first")
            }
            try connection.change(
                "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                [.text(name), .text(value)])
            try note(author, .set, name, AuditDetail(setting: stored[name], to: value))
        }
    }

    /// The setting is as if it had never been set; false when it was not. One that a newer build has stored can be unset too.
    public func unset(_ name: String, by author: Author? = nil) throws(StoreError) -> Bool {
        try change { () throws(StoreError) in
            let value = try settings().first { $0.0 == name }?.1
            guard value != nil || StoredSettings.setting(name) != nil else { throw StoreError(.invalid, StoredSettings.unknown(name)) }
            try connection.change("DELETE FROM settings WHERE key = $1", [.text(name)])
            try note(author, .unset, name, AuditDetail(setting: value, to: nil))
            return value != nil
        }
    }

    /// The account that `new` gives new credentials; nil when it is a new one.
    private func known(_ new: NewAccount, _ vault: Vault) throws(StoreError) -> Account? {
        let named = try connection.rows(Queries.accounts(named: new.name, revision: number)).first
        switch new.known {
        case .refused:
            if let named {
                throw StoreError(
                    .constraint, "there is an account \(named.account.name) already; give --replace to change its key and base URL")
            }
            return nil
        case .replaced:
            return named?.account
        case .renewed(let byName):
            let identity = LoginIdentity(new.credentials)
            var same: Account?
            for entry in try connection.rows(Queries.accounts(revision: number)) where entry.account.kind == .chatGPT {
                guard identity.isOf(try vault.credentials(of: entry)) else { continue }
                if same == nil || entry.account.name == new.name { same = entry.account }
            }
            if let same, !byName || same.name == new.name { return same }
            if let same {
                throw StoreError(
                    .constraint,
                    "this login is the account \(same.name) already; leave --name out to renew it, or remove it first: codex-lb accounts remove \(same.name)"
                )
            }
            if let named {
                throw StoreError(
                    .constraint,
                    "the account \(named.account.name) is another login (another person's, or of another workspace); give this one a name of its own with --name, or --replace to put it in that one's place"
                )
            }
            return nil
        }
    }

    public func setAccountState(
        _ name: String, _ state: Account.State, now: WallTime, by author: Author? = nil
    ) throws(StoreError) -> Account {
        try change { () throws(StoreError) in
            var account = try existingAccount(name)
            let before = account
            (account.state, account.changedAt) = (state, now.after(account.changedAt))
            try connection.change(
                "UPDATE accounts SET state = $1, changed_at_ms = $2 WHERE id = $3",
                [.text(state.rawValue), .int(account.changedAt.milliseconds), .int(account.id)])
            var detail = AuditDetail(from: before, to: account)
            if author != nil, state == .active, try isHeldAgainst(account.id) { detail.cleared("health") }
            try note(author, AuditAction(state), name, detail)
            try forgive(account: account.id, now: now, health: state == .active)
            return account
        }
    }

    /// Takes an account out of routing for what its upstream or issuer said; false when it has changed since.
    public func takeOut(_ order: AccountRemoval, now: WallTime) throws(StoreError) -> Bool {
        let accounts = try connection.rows(Queries.accounts(revision: number)).map(\.account)
        guard accounts.contains(where: { $0.id == order.accountID && $0.state == .active && $0.changedAt == order.changedAt }) else {
            return false
        }
        return try change { () throws(StoreError) in
            let changed = try connection.change(
                """
                UPDATE accounts SET state = $1, changed_at_ms = $2
                WHERE id = $3 AND state = $4 AND changed_at_ms = $5 AND removed_at_ms IS NULL
                """,
                [
                    .text(order.state.rawValue), .int(now.after(order.changedAt).milliseconds), .int(order.accountID),
                    .text(Account.State.active.rawValue), .int(order.changedAt.milliseconds),
                ])
            guard changed == 1 else { return false }
            try keep([AccountFact(accountID: order.accountID, subject: .state, at: now, value: StateFact(reason: order.reason).value)], now)
            return true
        }
    }

    // MARK: Facts

    /// The schema has a place for what is learned of accounts.
    public var hasFacts: Bool { Int(revision) ?? 0 >= Schema.factsRevision }

    /// What is known of the accounts.
    public func facts() throws(StoreError) -> [AccountFact] {
        hasFacts ? try connection.rows(Queries.facts()).compactMap { $0 } : []
    }

    /// Keeps what was learned of accounts, each unless a later one is there. Makes no version: workers tell each other in memory.
    public func learn(_ facts: [AccountFact], now: WallTime) throws(StoreError) {
        guard hasFacts, !facts.isEmpty else { return }
        try connection.transaction { () throws(StoreError) in try keep(facts, now) }
    }

    private func keep(_ facts: [AccountFact], _ now: WallTime) throws(StoreError) {
        guard hasFacts else { return }
        for fact in facts { _ = try connection.rows(Queries.learn(fact, now: now)) }
    }

    /// An operator has changed the account: what was known against it is over.
    private func forgive(account id: Int64, now: WallTime, health: Bool) throws(StoreError) {
        try keep(
            (health ? [AccountFact.Subject.health, .state] : [.state]).map {
                AccountFact(accountID: id, subject: $0, at: now, value: StateFact.none)
            }, now)
    }

    /// What is stored of its health counts against it.
    private func isHeldAgainst(_ id: Int64) throws(StoreError) -> Bool {
        try facts().contains { fact in fact.accountID == id && HealthFact(fact).map { $0 != HealthFact() } ?? false }
    }

    /// New tokens for a login that was refreshed; false when the account has changed since `changedAt`, or is gone.
    public func renewLogin(account id: Int64, changedAt: WallTime, _ credentials: Account.Credentials, now: WallTime) throws(StoreError)
        -> Bool
    {
        let vault = try requireVault()
        return try change { () throws(StoreError) in
            try !connection.rows(
                """
                UPDATE accounts SET credentials = $1, changed_at_ms = $2
                WHERE id = $3 AND changed_at_ms = $4 AND removed_at_ms IS NULL RETURNING id
                """,
                [
                    .blob(try vault.seal(credentials, account: id)), .int(now.after(changedAt).milliseconds), .int(id),
                    .int(changedAt.milliseconds),
                ]
            ) { $0.int(0) }.isEmpty
        }
    }

    /// Frees name and slot and forgets the credentials; what it used stays on record.
    public func removeAccount(_ name: String, now: WallTime, by author: Author? = nil) throws(StoreError) -> Account {
        try change { () throws(StoreError) in
            let account = try existingAccount(name)
            try connection.change(
                "UPDATE accounts SET slot = NULL, credentials = $1, removed_at_ms = $2, changed_at_ms = $2 WHERE id = $3",
                [.blob([]), .int(now.milliseconds), .int(account.id)])
            if hasFacts { try connection.change("DELETE FROM account_facts WHERE account_id = $1", [.int(account.id)]) }
            try note(author, .removeAccount, name, AuditDetail(from: account, to: nil))
            return account
        }
    }

    /// By name, without credentials.
    /// With their credentials, where the key opens them.
    public func accounts() throws(StoreError) -> [Account] {
        try connection.rows(Queries.accounts(revision: number)).map { entry in
            var account = entry.account
            if let opened = try? vault?.credentials(of: entry) { account.credentials = opened }  // a list is shown all the same
            return account
        }
    }

    /// One with its credentials, for a session without the key.
    public func account(named name: String, keyPath: String) throws(StoreError) -> Account {
        guard let entry = try connection.rows(Queries.accounts(named: name, revision: number)).first else { throw unknownAccount(name) }
        let vault = try Vault.load(
            sealedWith: connection.rows(Queries.keyFingerprint).first ?? "", keyPath: keyPath, place: place)
        var account = entry.account
        account.credentials = try vault.credentials(of: entry)
        return account
    }

    private func unknownAccount(_ name: String) -> StoreError {
        StoreError(.notFound, "there is no account \"\(name)\"; codex-lb accounts list shows them")
    }

    private func liveAccount(_ name: String) throws(StoreError) -> Account? {
        try connection.rows(Queries.accounts(named: name, revision: number)).first?.account
    }

    private func existingAccount(_ name: String) throws(StoreError) -> Account {
        guard let account = try liveAccount(name) else { throw unknownAccount(name) }
        return account
    }

    // MARK: Client keys

    /// Makes a key; `plain` exists here and nowhere else.
    public func createClientKey(
        _ name: String, models: [String]?, expiresAt: WallTime?, now: WallTime, by author: Author? = nil
    ) throws(StoreError) -> (key: ClientKey, plain: String) {
        try StoreName.check(name, of: "key")
        for model in models ?? [] {
            guard !model.isEmpty, model.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") })
            else {
                throw StoreError(.invalid, "model name \"\(model)\": expected visible ASCII without quotes and spaces")
            }
        }
        if let expiresAt, expiresAt <= now { throw StoreError(.invalid, "key \(name): \(expiresAt.rfc3339) is in the past") }
        let plain = "sk-clb-" + Base64.url.encode(SecureRandom.bytes(32))
        let digest = HMAC.sha256(key: try pepper(), message: Array(plain.utf8))
        let prefix = String(plain.prefix(11))
        let id = try change { () throws(StoreError) in
            guard try connection.rows(Queries.clientKeys(validOnly: true, named: name)).isEmpty else {
                throw StoreError(.constraint, "there is a key \(name) already; revoke it first or choose another name")
            }
            let list = models.map { "[" + $0.map { "\"\($0)\"" }.joined(separator: ",") + "]" }
            try note(author, .createKey, name, AuditDetail(newKey: models, expiresAt: expiresAt))
            return try connection.rows(
                """
                INSERT INTO client_keys (name, digest, prefix, models, expires_at_ms, created_at_ms) VALUES ($1, $2, $3, $4, $5, $6)
                RETURNING id
                """,
                [
                    .text(name), .blob(digest), .text(prefix), SQLValue(list), SQLValue(expiresAt?.milliseconds), .int(now.milliseconds),
                ]
            ) { $0.int(0) }.first ?? 0
        }
        let key = ClientKey(
            id: id, name: name, digest: digest, prefix: prefix, models: models, expiresAt: expiresAt, revokedAt: nil, createdAt: now)
        return (key, plain)
    }

    public func revokeClientKey(_ name: String, now: WallTime, by author: Author? = nil) throws(StoreError) -> ClientKey {
        try change { () throws(StoreError) in
            guard var key = try connection.rows(Queries.clientKeys(validOnly: true, named: name)).first else {
                throw StoreError(.notFound, "there is no valid key \"\(name)\"; codex-lb keys list shows them")
            }
            try connection.change("UPDATE client_keys SET revoked_at_ms = $1 WHERE id = $2", [.int(now.milliseconds), .int(key.id)])
            key.revokedAt = now
            try note(author, .revokeKey, name, .revokedKey)
            return key
        }
    }

    /// Oldest first, revoked ones included.
    public func clientKeys() throws(StoreError) -> [ClientKey] { try connection.rows(Queries.clientKeys(validOnly: false)) }

    // MARK: Snapshot

    public func snapshot() throws(StoreError) -> Snapshot {
        let vault = try requireVault()
        return try connection.transaction(readsOnly: true) { () throws(StoreError) in
            try vault.snapshot(
                version: connection.rows(Queries.version).first, accounts: connection.rows(Queries.accounts(revision: number)),
                keys: connection.rows(Queries.clientKeys(validOnly: false)), pepper: connection.rows(Queries.pepper).first,
                settings: connection.rows(Queries.settings), facts: hasFacts ? connection.rows(Queries.facts()).compactMap { $0 } : [])
        }
    }

    /// A change that workers must see: the next version and `body` in one transaction. The version comes first: on a shared database
    /// its row is what makes changes wait for each other.
    func change<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        try connection.transaction { () throws(StoreError) in
            try connection.change(
                "UPDATE state SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE key = 'snapshot_version'", [])
            return try body()
        }
    }

    func requireVault() throws(StoreError) -> Vault {
        guard let vault else { throw StoreError(.readOnly, "\(place) is open for reading only, without its key") }
        return vault
    }

    private func pepper() throws(StoreError) -> [UInt8] {
        try requireVault().pepper(connection.rows(Queries.pepper).first)
    }

    // MARK: The end

    public func close() {
        connection.close()
        held = nil
    }
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
