public import Store
public import Vocabulary

extension SQLiteStore {
    private static let columns = [
        "id", "time_ms", "route", "transport", "key_id", "account_id", "request_id", "model_asked", "model_served", "status", "error_code",
        "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost_microdollars", "first_byte_ms", "duration_ms",
        "attempts", "request_bytes", "response_bytes",
    ]
    private static let insert =
        "INSERT INTO usage_records (\(columns.joined(separator: ", "))) VALUES (\(columns.map { _ in "?" }.joined(separator: ", "))) ON CONFLICT (id) DO NOTHING"
    private static let newest = """
        SELECT \(columns.map { "u." + $0 }.joined(separator: ", ")), k.name, a.name FROM usage_records u
        LEFT JOIN client_keys k ON k.id = u.key_id LEFT JOIN accounts a ON a.id = u.account_id ORDER BY u.id DESC LIMIT ?
        """

    public func append(_ records: [UsageRecord]) throws(StoreError) -> Int {
        guard !records.isEmpty else { return 0 }
        return try connection.transaction { () throws(StoreError) in
            let statement = try connection.statement(Self.insert)
            var inserted = 0
            for r in records {
                try statement.run([
                    .blob(r.id.bytes), .int(r.time.milliseconds), .text(r.route), .text(r.transport.rawValue), SQLValue(r.keyID),
                    SQLValue(r.accountID), .text(r.requestID), .text(r.modelAsked), .text(r.modelServed), .int(Int64(r.status)),
                    .text(r.errorCode), .int(r.inputTokens), .int(r.cachedInputTokens), .int(r.outputTokens), .int(r.reasoningTokens),
                    SQLValue(r.costMicrodollars), SQLValue(r.firstByteMilliseconds), .int(r.durationMilliseconds), .int(Int64(r.attempts)),
                    .int(r.requestBytes), .int(r.responseBytes),
                ])
                inserted += connection.changes
            }
            return inserted
        }
    }

    public func usage(last count: Int) throws(StoreError) -> [UsageListing] {
        try connection.rows(Self.newest, [.int(Int64(max(0, count)))]) { row throws(StoreError) in
            guard let id = RecordID(bytes: row.blob(0)), let transport = UsageRecord.Transport(rawValue: row.text(3)) else {
                throw StoreError(.corrupt, "database \(path): a usage record has an id or a transport that can't be read; restore a backup")
            }
            var r = UsageRecord(id: id, time: WallTime(milliseconds: row.int(1)), route: row.text(2), requestID: row.text(6))
            (r.transport, r.keyID, r.accountID) = (transport, row.intOrNil(4), row.intOrNil(5))
            (r.modelAsked, r.modelServed, r.status, r.errorCode) = (row.text(7), row.text(8), Int(row.int(9)), row.text(10))
            (r.inputTokens, r.cachedInputTokens, r.outputTokens, r.reasoningTokens) = (row.int(11), row.int(12), row.int(13), row.int(14))
            (r.costMicrodollars, r.firstByteMilliseconds) = (row.intOrNil(15), row.intOrNil(16))
            (r.durationMilliseconds, r.attempts, r.requestBytes, r.responseBytes) = (
                row.int(17), Int(row.int(18)), row.int(19), row.int(20)
            )
            return UsageListing(record: r, key: row.text(21), account: row.text(22))
        }
    }
}
