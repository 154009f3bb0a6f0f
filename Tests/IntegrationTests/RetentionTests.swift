import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Usage records are kept as long as the operator wants, and no longer.
    @Suite struct Retention {
        /// `count` copies of the newest record, as of turns so many days ago.
        private func age(_ bare: BareDatabase, _ database: Database, count: Int, days: Int) throws {
            let columns =
                "route, transport, key_id, account_id, request_id, model_asked, model_served, status, error_code, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_microdollars, first_byte_ms, duration_ms, attempts, request_bytes, response_bytes"
            let time = Int(Date().timeIntervalSince1970 * 1000) - days * 86_400_000
            // UUIDv7: 48 bits of milliseconds, the version, and the number.
            let hex = String(repeating: "0", count: 12 - String(time, radix: 16).count) + String(time, radix: 16) + "7000"
            let id =
                database == .sqlite
                ? "CAST(x'\(hex)' || CAST(printf('%08d', i) AS BLOB) AS BLOB)" : "decode('\(hex)' || lpad(to_hex(i), 16, '0'), 'hex')"
            try bare.sql(
                """
                WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < \(count))
                INSERT INTO usage_records (id, time_ms, \(columns))
                SELECT \(id), \(time), \(columns) FROM n, (SELECT * FROM usage_records ORDER BY id DESC LIMIT 1) AS one
                """)
        }

        @Test(arguments: Database.both) func oldRecordsGo(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            for i in 0..<3 { _ = try stage.turn("new-\(i)") }
            try stage.expectOneRecord(of: ["new-0", "new-1", "new-2"])
            #expect(stage.daemon.stop() == .code(0))
            let bare = BareDatabase(of: stage.daemon)
            func count() throws -> Int { Int(try bare.sql("SELECT count(*) FROM usage_records")) ?? -1 }
            try age(bare, database, count: 2_500, days: 400)
            try age(bare, database, count: 1, days: 3)
            // Nothing goes unless somebody wants it.
            let refused = try stage.daemon.run("db", "prune")
            #expect(refused.exit == .code(2) && refused.errors.contains("CODEX_LB_USAGE_RETENTION_DAYS"), "\(refused)")
            #expect(try stage.daemon.run("db", "prune", "--days", "0").exit == .code(2))
            let nothing = try stage.daemon.run("db", "prune", "--days", "36500")
            #expect(nothing.isGood && nothing.output.hasPrefix("deleted 0 "), "\(nothing)")
            #expect(try count() == 2_504)
            // A server does it by itself, beside turns.
            stage.daemon.environment["CODEX_LB_USAGE_RETENTION_DAYS"] = "30"
            try stage.daemon.start()
            _ = try stage.turn("meanwhile")
            #expect(stage.daemon.waitLog("deleted 2500 usage records of turns before "))
            #expect(stage.daemon.waitLog("of turns before"))
            #expect(try stage.daemon.record("meanwhile")["status"] as? Int == 200)
            #expect(try count() == 5)
            // By hand, through the server's writer.
            try age(bare, database, count: 10, days: 20)
            let pruned = try stage.daemon.run("db", "prune", "--days", "10")
            #expect(pruned.isGood && pruned.output.hasPrefix("deleted 10 "), "\(pruned)")
            #expect(try stage.daemon.run("db", "check").isGood)
            let audit = try stage.daemon.run("audit")
            #expect(audit.output.contains("usage.prune"), "\(audit.output)")
        }

        /// A clock that has jumped ahead makes all that is old look old enough: the server deletes nothing then, and says so.
        @Test func wrongClock() throws {
            let stage = try Stage("a")
            _ = try stage.turn("one")
            try stage.expectOneRecord(of: ["one"])
            #expect(stage.daemon.stop() == .code(0))
            let bare = BareDatabase(of: stage.daemon)
            try age(bare, .sqlite, count: 10, days: 200)
            stage.daemon.environment["CODEX_LB_USAGE_RETENTION_DAYS"] = "30"
            try stage.daemon.start()
            #expect(stage.daemon.waitLog("is the clock right?"))
            #expect(stage.daemon.waitLog("old usage records could not be deleted"))
            #expect(try bare.sql("SELECT count(*) FROM usage_records") == "11")
            let pruned = try stage.daemon.run("db", "prune", "--days", "30")
            #expect(pruned.isGood && pruned.output.hasPrefix("deleted 10 "), "\(pruned)")
        }

        /// What the source has deleted between two runs of a copy is no difference.
        @Test func prunedBetweenCopies() throws {
            let stage = try Stage("a")
            _ = try stage.turn("one")
            try stage.expectOneRecord(of: ["one"])
            #expect(stage.daemon.stop() == .code(0))
            try age(BareDatabase(of: stage.daemon), .sqlite, count: 10, days: 200)
            let target = try BareDatabase(.postgresql, stage.daemon)
            for round in 0..<2 {
                let copy = try stage.daemon.run("db", "copy", "--to", target.url, seconds: 60)
                #expect(copy.isGood, "\(round): \(copy)")
                #expect(try stage.daemon.run("db", "prune", "--days", "30").isGood)
            }
            #expect(try target.sql("SELECT count(*) FROM usage_records") == "11")
        }
    }
}
