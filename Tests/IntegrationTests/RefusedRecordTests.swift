import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Goal: a record that the database refuses for what it is holds up no other, and is neither lost nor forgotten.
    @Suite struct RefusedRecords {
        @Test(arguments: Database.both, [true, false]) func keptAndTriedAgain(_ kind: Database, _ isRunning: Bool) throws {
            let stage = try Stage("a", on: kind)
            let bare = BareDatabase(of: stage.daemon)
            let isSQLite = kind == .sqlite
            try bare.sql(
                isSQLite
                    ? "CREATE TRIGGER no_bad BEFORE INSERT ON usage_records WHEN NEW.model_asked = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
                    : "ALTER TABLE usage_records ADD CONSTRAINT no_bad CHECK (model_asked <> 'bad')")
            func turn(_ id: String, _ model: String = "gpt-5.4") throws {
                #expect(
                    try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: model), headers: [("X-Request-Id", id)]).status
                        == 200)
            }
            try turn("before")
            try turn("refused", "bad")
            try turn("after")
            for id in ["before", "after"] { #expect(try stage.daemon.record(id, seconds: 15)["status"] as? Int == 200) }
            #expect(try eventually(10) { try stage.metric("codex_lb_usage_records_refused") == 1 })
            let health = try stage.daemon.get("/health/ready")
            #expect(health.status == 200 && health.json["status"] as? String == "degraded")
            #expect((health.json["records"] as? [String: Any])?["refused"] as? Int == 1)
            let list = try stage.daemon.run("db", "spool", "list", "--json")
            let rows = try JSONSerialization.jsonObject(with: Data(list.output.utf8)) as? [[String: Any]] ?? []
            #expect(rows.count == 1 && rows[0]["kind"] as? String == "refused" && rows[0]["records"] as? Int == 1, "\(list.output)")

            // Tried again while nothing has changed it is refused again, and kept again.
            #expect(try stage.daemon.run("db", "spool", "retry").isGood)
            #expect(try eventually(15) { try stage.daemon.run("db", "spool", "list").output.contains("refused") })
            try bare.sql(isSQLite ? "DROP TRIGGER no_bad" : "ALTER TABLE usage_records DROP CONSTRAINT no_bad")
            if !isRunning { #expect(stage.daemon.stop() == .code(0)) }
            #expect(try stage.daemon.run("db", "spool", "retry").isGood)
            #expect(try stage.daemon.record("refused", seconds: 20)["status"] as? Int == 200)
            if isRunning { #expect(try eventually(5) { try stage.daemon.get("/health/ready").json["status"] as? String == "ok" }) }
            // The record is in the database a moment before its file is gone.
            #expect(try eventually(5) { try stage.daemon.run("db", "spool", "list").output.contains("no file of records") })
            #expect(try stage.daemon.records().count == 3)
        }
    }
}
