internal import Sealing
public import Store
public import Vocabulary

extension SQLiteStore {
    public func addAccount(_ new: NewAccount, now: WallTime) throws(StoreError) -> Account {
        try StoreName.check(new.name, of: "account")
        var base = new.baseURL
        while base.hasSuffix("/") { base.removeLast() }
        guard base.hasPrefix("https://") || base.hasPrefix("http://"), base.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw StoreError(.invalid, "base URL \"\(new.baseURL)\": expected http:// or https://, for example https://api.openai.com/v1")
        }
        guard !new.credentials.bearer.isEmpty else { throw StoreError(.invalid, "account \(new.name): the key is empty") }
        // It becomes a header field: a line break in it would make another one.
        guard (new.credentials.bearer + (new.credentials.chatGPTAccountID ?? "")).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
            throw StoreError(.invalid, "account \(new.name): the key has characters that no key has (spaces, line breaks or not ASCII)")
        }
        let key = try requireKey()
        return try change { () throws(StoreError) in
            guard try liveAccount(new.name) == nil else { throw StoreError(.constraint, "there is an account \(new.name) already") }
            let taken = Set(try connection.rows("SELECT slot FROM accounts WHERE slot IS NOT NULL") { Int($0.int(0)) })
            guard let slot = (0..<Limits.accountsMax).first(where: { !taken.contains($0) }) else {
                throw StoreError(.constraint, "there are \(Limits.accountsMax) accounts already, the most there can be; remove one first")
            }
            try connection.run(
                """
                INSERT INTO accounts (slot, name, kind, state, base_url, credentials, created_at_ms, changed_at_ms)
                VALUES (?, ?, ?, ?, ?, x'', ?, ?)
                """,
                [
                    .int(Int64(slot)), .text(new.name), .text(new.kind.rawValue), .text(Account.State.active.rawValue), .text(base),
                    .int(now.milliseconds), .int(now.milliseconds),
                ])
            // The seal is bound to the row, whose number is known only now.
            let id = connection.lastRowID
            let sealed = try Self.sealing { () throws(SealingError) in
                try key.seal(new.credentials.packed, context: Self.credentialsContext(id))
            }
            try connection.run("UPDATE accounts SET credentials = ? WHERE id = ?", [.blob(sealed), .int(id)])
            return Account(
                id: id, slot: slot, name: new.name, kind: new.kind, state: .active, baseURL: base, credentials: new.credentials,
                createdAt: now)
        }
    }

    public func setAccountState(_ name: String, _ state: Account.State, now: WallTime) throws(StoreError) -> Account {
        try change { () throws(StoreError) in
            var account = try existingAccount(name)
            account.state = state
            try connection.run(
                "UPDATE accounts SET state = ?, changed_at_ms = ? WHERE id = ?",
                [.text(state.rawValue), .int(now.milliseconds), .int(account.id)])
            return account
        }
    }

    public func removeAccount(_ name: String, now: WallTime) throws(StoreError) -> Account {
        try change { () throws(StoreError) in
            let account = try existingAccount(name)
            try connection.run(
                "UPDATE accounts SET slot = NULL, credentials = x'', removed_at_ms = ?1, changed_at_ms = ?1 WHERE id = ?2",
                [.int(now.milliseconds), .int(account.id)])
            return account
        }
    }

    public func accounts() throws(StoreError) -> [Account] { try accounts(withCredentials: false) }

    private func liveAccount(_ name: String) throws(StoreError) -> Account? {
        try accounts(withCredentials: false, named: name).first
    }

    private func existingAccount(_ name: String) throws(StoreError) -> Account {
        guard let account = try liveAccount(name) else {
            throw StoreError(.notFound, "there is no account \"\(name)\"; codex-lb accounts list shows them")
        }
        return account
    }

    func accounts(withCredentials: Bool, named name: String? = nil) throws(StoreError) -> [Account] {
        let key = withCredentials ? try requireKey() : nil
        return try connection.rows(
            """
            SELECT id, slot, name, kind, state, base_url, created_at_ms, credentials FROM accounts
            WHERE removed_at_ms IS NULL AND (?1 IS NULL OR name = ?1) ORDER BY name
            """, [SQLValue(name)]
        ) { row throws(StoreError) in
            let (id, name) = (row.int(0), row.text(2))
            guard let kind = Account.Kind(rawValue: row.text(3)), let state = Account.State(rawValue: row.text(4)) else {
                throw StoreError(
                    .corrupt, "database \(path): account \(name) has kind \"\(row.text(3))\" and state \"\(row.text(4))\"; restore a backup"
                )
            }
            var credentials = Account.Credentials(bearer: "")
            if let key {
                let sealed = row.blob(7)
                let packed = try Self.sealing { () throws(SealingError) in try key.open(sealed, context: Self.credentialsContext(id)) }
                guard let unpacked = Account.Credentials(packed: packed) else {
                    throw StoreError(.corrupt, "database \(path): the credentials of account \(name) can't be read; restore a backup")
                }
                credentials = unpacked
            }
            return Account(
                id: id, slot: Int(row.int(1)), name: name, kind: kind, state: state, baseURL: row.text(5), credentials: credentials,
                createdAt: WallTime(milliseconds: row.int(6)))
        }
    }
}

/// The plain text inside the seal: four fields, each a byte that says whether it is there, a 4-byte big-endian length, UTF-8.
extension Account.Credentials {
    var packed: [UInt8] {
        var out: [UInt8] = []
        for field in [bearer, refreshToken, idToken, chatGPTAccountID] {
            let bytes = Array((field ?? "").utf8)
            out.append(field == nil ? 0 : 1)
            for shift in [24, 16, 8, 0] { out.append(UInt8(truncatingIfNeeded: bytes.count >> shift)) }
            out += bytes
        }
        return out
    }

    init?(packed: [UInt8]) {
        var fields: [String?] = []
        var rest = packed[...]
        while rest.count >= 5, fields.count < 4 {
            let isThere = rest.removeFirst() == 1
            let count = rest.prefix(4).reduce(0) { $0 << 8 | Int($1) }
            rest.removeFirst(4)
            guard rest.count >= count else { return nil }
            fields.append(isThere ? String(decoding: rest.prefix(count), as: UTF8.self) : nil)
            rest.removeFirst(count)
        }
        guard fields.count == 4, rest.isEmpty, let bearer = fields[0] else { return nil }
        self.init(bearer: bearer, refreshToken: fields[1], idToken: fields[2], chatGPTAccountID: fields[3])
    }
}
