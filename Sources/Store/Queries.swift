internal import JSONWire
internal import Schema
public import Vocabulary

/// An account's row with its credentials still sealed.
public struct SealedAccount: Sendable {
    public var account: Account
    public var sealed: [UInt8]
}

/// What is read from the store, in the SQL of both dialects.
public enum Queries {
    public static let version = Query<Int64>("SELECT CAST(value AS BIGINT) FROM state WHERE key = 'snapshot_version'") { $0.int(0) }
    /// Of the schema; one row.
    public static let revision = Query<String>("SELECT coalesce(max(id), '') FROM revision_history") { $0.text(0) }
    public static let keyFingerprint = Query<String>("SELECT value FROM state WHERE key = 'key_fingerprint'") { $0.text(0) }
    public static let settings = Query<(String, String)>("SELECT key, value FROM settings ORDER BY key") { ($0.text(0), $0.text(1)) }
    /// Sealed; as base64url where the column holds text.
    public static let pepper = Query<[UInt8]>("SELECT value FROM state WHERE key = 'pepper'") { $0.blob(0) }

    /// Accounts that were not removed, by name; one of them when `name` is given. `revision`: of the schema, which may be an older one.
    public static func accounts(named name: String? = nil, revision: Int) -> Query<SealedAccount> {
        let hasOptions = revision >= Schema.optionsRevision
        return Query(
            """
            SELECT id, slot, name, kind, state, base_url, created_at_ms, credentials, changed_at_ms
              \(hasOptions ? ", policy, weight, streams_max, models, is_overflow" : "") FROM accounts
            WHERE removed_at_ms IS NULL AND (CAST($1 AS TEXT) IS NULL OR name = $1) ORDER BY name
            """, [SQLValue(name)]
        ) { row throws(StoreError) in
            let name = row.text(2)
            guard let kind = Account.Kind(rawValue: row.text(3)), let state = Account.State(rawValue: row.text(4)) else {
                throw StoreError(
                    .corrupt,
                    "the account \(name) has kind \"\(row.text(3))\" and state \"\(row.text(4))\" in the database; restore a backup")
            }
            guard let slot = Int(exactly: row.int(1)), (0..<Limits.accountsMax).contains(slot) else {
                throw StoreError(.corrupt, "the account \(name) has slot \(row.int(1)) in the database; restore a backup")
            }
            var account = Account(
                id: row.int(0), slot: slot, name: name, kind: kind, state: state, baseURL: row.text(5),
                credentials: Account.Credentials(bearer: ""), createdAt: WallTime(milliseconds: row.int(6)),
                changedAt: WallTime(milliseconds: row.int(8)))
            if hasOptions {
                account.options = try Account.Options(
                    name: name, policy: row.text(9), weight: row.int(10), streamsMax: row.intOrNil(11), models: row.textOrNil(12),
                    isOverflow: row.int(13))
            }
            return SealedAccount(account: account, sealed: row.blob(7))
        }
    }

    /// Client keys, oldest first.
    public static func clientKeys(validOnly: Bool, named name: String? = nil) -> Query<ClientKey> {
        Query(
            """
            SELECT id, name, digest, prefix, models, expires_at_ms, revoked_at_ms, created_at_ms FROM client_keys
            WHERE (CAST($1 AS TEXT) IS NULL OR name = $1)\(validOnly ? " AND revoked_at_ms IS NULL" : "") ORDER BY id
            """, [SQLValue(name)]
        ) { row throws(StoreError) in
            ClientKey(
                id: row.int(0), name: row.text(1), digest: row.blob(2), prefix: row.text(3),
                models: try row.textOrNil(4).map { json throws(StoreError) in try models(json) },
                expiresAt: row.intOrNil(5).map { WallTime(milliseconds: $0) },
                revokedAt: row.intOrNil(6).map { WallTime(milliseconds: $0) },
                createdAt: WallTime(milliseconds: row.int(7)))
        }
    }

    static func models(_ json: String) throws(StoreError) -> [String] {
        do throws(JSONError) {
            let value = try JSONValue(parsing: Array(json.utf8).span.bytes)
            return (value.arrayValue ?? []).compactMap(\.stringValue)
        } catch {
            throw StoreError(.corrupt, "a model list can't be read: \(error.reason); restore a backup")
        }
    }

    // MARK: Usage

    static let usageColumns = [
        "id", "time_ms", "route", "transport", "key_id", "account_id", "request_id", "model_asked", "model_served", "status", "error_code",
        "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_microdollars", "first_byte_ms", "duration_ms",
        "attempts", "request_bytes", "response_bytes",
    ]

    /// The newest records, newest first.
    public static func usage(last count: Int) -> Query<UsageListing> {
        Query(
            """
            SELECT \(usageColumns.map { "u." + $0 }.joined(separator: ", ")), k.name, a.name FROM usage_records u
            LEFT JOIN client_keys k ON k.id = u.key_id LEFT JOIN accounts a ON a.id = u.account_id ORDER BY u.id DESC LIMIT $1
            """, [.int(Int64(max(0, count)))]
        ) { row throws(StoreError) in
            UsageListing(record: try UsageRecord(row: row), key: row.text(21), account: row.text(22))
        }
    }

    /// What a client key has used, of what is kept; of all requests when `key` is nil.
    public static func totals(ofKey key: Int64?) -> Query<UsageTotals> {
        // A sum of 64-bit numbers ends the statement when it overflows (SQLite) or does not fit what it is cast to (PostgreSQL), so each
        // number is added up in two halves; two thousand million records of the largest numbers are needed to fill one.
        let halves = ["input_tokens", "cached_input_tokens", "output_tokens", "cost_microdollars"].map {
            "CAST(coalesce(sum(\($0) / 4294967296), 0) AS BIGINT), CAST(coalesce(sum(\($0) % 4294967296), 0) AS BIGINT)"
        }
        return Query(
            "SELECT count(*), \(halves.joined(separator: ", ")) FROM usage_records\(key == nil ? "" : " WHERE key_id = $1")",
            key.map { [.int($0)] } ?? []
        ) { row in
            func sum(_ column: Int32) -> Int64 {
                let (high, over) = row.int(column).multipliedReportingOverflow(by: 4_294_967_296)
                if over { return row.int(column) < 0 ? .min : .max }
                return high.addingSaturated(row.int(column + 1))
            }
            return UsageTotals(
                requests: row.int(0), inputTokens: sum(1), cachedInputTokens: sum(3), outputTokens: sum(5), costMicrodollars: sum(7))
        }
    }
}

/// Sums over usage records.
public struct UsageTotals: Sendable, Equatable {
    public var requests: Int64
    public var inputTokens: Int64
    /// Part of `inputTokens`.
    public var cachedInputTokens: Int64
    public var outputTokens: Int64
    public var costMicrodollars: Int64
    /// Stops at the end of Int64.
    public var totalTokens: Int64 { inputTokens.addingSaturated(outputTokens) }
}

extension Int64 {
    /// The sum, or the end of the range on its side.
    func addingSaturated(_ other: Int64) -> Int64 {
        let (sum, over) = addingReportingOverflow(other)
        return over ? other < 0 ? .min : .max : sum
    }
}

extension UsageRecord {
    /// Columns as in `Queries.usageColumns`.
    init(row: any SQLRow) throws(StoreError) {
        guard let id = RecordID(bytes: row.blob(0)), let transport = Transport(rawValue: row.text(3)) else {
            throw StoreError(.corrupt, "a usage record has an id or a transport that can't be read; run: codex-lb db check")
        }
        self.init(id: id, time: WallTime(milliseconds: row.int(1)), route: row.text(2), requestID: row.text(6))
        (self.transport, keyID, accountID) = (transport, row.intOrNil(4), row.intOrNil(5))
        (modelAsked, modelServed, status, errorCode) = (row.text(7), row.text(8), Int(row.int(9)), row.text(10))
        (inputTokens, cachedInputTokens, outputTokens, reasoningTokens) = (row.int(11), row.int(12), row.int(13), row.int(14))
        (costMicrodollars, firstByteMilliseconds) = (row.intOrNil(15), row.intOrNil(16))
        (durationMilliseconds, attempts, requestBytes, responseBytes) = (row.int(17), Int(row.int(18)), row.int(19), row.int(20))
    }

    /// One value per column of `Queries.usageColumns`.
    public var columnValues: [SQLValue] {
        [
            .blob(id.bytes), .int(time.milliseconds), .text(route), .text(transport.rawValue), SQLValue(keyID), SQLValue(accountID),
            .text(requestID), .text(modelAsked), .text(modelServed), .int(Int64(status)), .text(errorCode), .int(inputTokens),
            .int(cachedInputTokens), .int(outputTokens), .int(reasoningTokens), SQLValue(costMicrodollars),
            SQLValue(firstByteMilliseconds), .int(durationMilliseconds), .int(Int64(attempts)), .int(requestBytes), .int(responseBytes),
        ]
    }

    /// Names of the columns of `columnValues`.
    public static var columnNames: [String] { Queries.usageColumns }
}
