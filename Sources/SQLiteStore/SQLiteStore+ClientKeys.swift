internal import Sealing
public import Store
public import Vocabulary

extension SQLiteStore {
    public func createClientKey(
        _ name: String, models: [String]?, expiresAt: WallTime?, now: WallTime
    ) throws(StoreError) -> (key: ClientKey, plain: String) {
        try StoreName.check(name, of: "key")
        for model in models ?? [] {
            guard !model.isEmpty, model.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") })
            else {
                throw StoreError(.invalid, "model name \"\(model)\": expected visible ASCII without quotes and spaces")
            }
        }
        if let expiresAt, expiresAt <= now { throw StoreError(.invalid, "key \(name): \(expiresAt.rfc3339) is in the past") }
        let plain = "sk-clb-" + Base64URL.encode(SecureRandom.bytes(32))
        let digest = HMAC.sha256(key: try pepper(), message: Array(plain.utf8))
        let prefix = String(plain.prefix(11))
        let id = try change { () throws(StoreError) in
            guard try keys("WHERE revoked_at_ms IS NULL AND name = ?", [.text(name)]).isEmpty else {
                throw StoreError(.constraint, "there is a key \(name) already; revoke it first or choose another name")
            }
            try connection.run(
                "INSERT INTO client_keys (name, digest, prefix, models, expires_at_ms, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    .text(name), .blob(digest), .text(prefix),
                    SQLValue(models.map { "[" + $0.map { "\"\($0)\"" }.joined(separator: ",") + "]" }), SQLValue(expiresAt?.milliseconds),
                    .int(now.milliseconds),
                ])
            return connection.lastRowID
        }
        let key = ClientKey(
            id: id, name: name, digest: digest, prefix: prefix, models: models, expiresAt: expiresAt, revokedAt: nil, createdAt: now)
        return (key, plain)
    }

    public func revokeClientKey(_ name: String, now: WallTime) throws(StoreError) -> ClientKey {
        try change { () throws(StoreError) in
            guard var key = try keys("WHERE revoked_at_ms IS NULL AND name = ?", [.text(name)]).first else {
                throw StoreError(.notFound, "there is no valid key \"\(name)\"; codex-lb keys list shows them")
            }
            try connection.run("UPDATE client_keys SET revoked_at_ms = ? WHERE id = ?", [.int(now.milliseconds), .int(key.id)])
            key.revokedAt = now
            return key
        }
    }

    public func clientKeys() throws(StoreError) -> [ClientKey] { try keys("") }

    func keys(_ condition: String, _ values: [SQLValue] = []) throws(StoreError) -> [ClientKey] {
        try connection.rows(
            "SELECT id, name, digest, prefix, models, expires_at_ms, revoked_at_ms, created_at_ms FROM client_keys \(condition) ORDER BY id",
            values
        ) { row throws(StoreError) in
            var models: [String]?
            if let json = row.textOrNil(4) { models = try connection.rows("SELECT value FROM json_each(?)", [.text(json)]) { $0.text(0) } }
            return ClientKey(
                id: row.int(0), name: row.text(1), digest: row.blob(2), prefix: row.text(3), models: models,
                expiresAt: row.intOrNil(5).map { WallTime(milliseconds: $0) },
                revokedAt: row.intOrNil(6).map { WallTime(milliseconds: $0) },
                createdAt: WallTime(milliseconds: row.int(7)))
        }
    }
}
