import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Usage records are kept as long as the operator wants, and no longer.
    @Suite struct Retention {
        /// `count` copies of a record, made in April 2022.
        private func age(_ bare: BareDatabase, _ database: Database, count: Int) throws {
            let columns =
                "route, transport, key_id, account_id, request_id, model_asked, model_served, status, error_code, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_microdollars, first_byte_ms, duration_ms, attempts, request_bytes, response_bytes"
            let id =
                database == .sqlite
                ? "CAST(x'0180000000007000' || CAST(printf('%08d', i) AS BLOB) AS BLOB)"
                : "decode('0180000000007000' || lpad(to_hex(i), 16, '0'), 'hex')"
            try bare.sql(
                """
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < \(count))
                INSERT INTO usage_records (id, time_ms, \(columns))
                SELECT \(id), 1649267441664, \(columns) FROM n, (SELECT * FROM usage_records ORDER BY id DESC LIMIT 1) AS one
                """)
        }

        @Test(arguments: Database.both) func oldRecordsGo(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            for i in 0..<3 { _ = try stage.turn("new-\(i)") }
            try stage.expectOneRecord(of: ["new-0", "new-1", "new-2"])
            #expect(stage.daemon.stop() == .code(0))
            let bare = BareDatabase(of: stage.daemon)
            func count() throws -> Int { Int(try bare.sql("SELECT count(*) FROM usage_records")) ?? -1 }
            try age(bare, database, count: 2_500)
            // Nothing goes unless somebody wants it.
            let refused = try stage.daemon.run("db", "prune")
            #expect(refused.exit == .code(2) && refused.errors.contains("CODEX_LB_USAGE_RETENTION_DAYS"), "\(refused)")
            #expect(try stage.daemon.run("db", "prune", "--days", "0").exit == .code(2))
            let nothing = try stage.daemon.run("db", "prune", "--days", "36500")
            #expect(nothing.isGood && nothing.output.hasPrefix("deleted 0 "), "\(nothing)")
            #expect(try count() == 2_503)
            // A server does it by itself, beside turns.
            stage.daemon.environment["CODEX_LB_USAGE_RETENTION_DAYS"] = "30"
            try stage.daemon.start()
            _ = try stage.turn("meanwhile")
            #expect(stage.daemon.waitLog("deleted 2500 usage records of turns before "))
            try stage.expectOneRecord(of: ["new-0", "new-1", "new-2", "meanwhile"])
            #expect(try count() == 4)
            // By hand, through the server's writer.
            try age(bare, database, count: 10)
            let pruned = try stage.daemon.run("db", "prune", "--days", "1")
            #expect(pruned.isGood && pruned.output.hasPrefix("deleted 10 "), "\(pruned)")
            #expect(try stage.daemon.run("db", "check").isGood)
        }

        /// A clock that is years ahead deletes nothing: age counts from the newest record.
        @Test func wrongClock() throws {
            let stage = try Stage("a")
            _ = try stage.turn("one")
            try stage.expectOneRecord(of: ["one"])
            #expect(stage.daemon.stop() == .code(0))
            let bare = BareDatabase(of: stage.daemon)
            try age(bare, .sqlite, count: 10)
            try bare.sql("DELETE FROM usage_records WHERE time_ms > 1649267441664")
            let pruned = try stage.daemon.run("db", "prune", "--days", "30")
            #expect(pruned.isGood && pruned.output.hasPrefix("deleted 0 "), "\(pruned)")
        }
    }
}
