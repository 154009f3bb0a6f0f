import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Backups, their way back, and the way from one database to another.
    @Suite struct DatabaseCopies {
        private static func remote(_ key: String) -> [(String, String)] {
            [("X-Forwarded-For", "192.0.2.7"), ("Authorization", "Bearer \(key)")]
        }

        /// Many usage records, put in by the database's own tool.
        private func fill(_ database: BareDatabase, records: Int) throws {
            let columns =
                "id, time_ms, route, transport, key_id, account_id, request_id, model_asked, model_served, status, error_code, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_microdollars, first_byte_ms, duration_ms, attempts, request_bytes, response_bytes"
            let values =
                "1790000000000 + n, '/v1/responses', 'http', 1, 1, 'filled-' || n, 'gpt-5.4', 'gpt-5.4 ü', 200, '', 100, 40, 20, 5, CASE WHEN n % 7 = 0 THEN NULL ELSE 460 END, NULL, 12, 1, 50, 900"
            switch database.kind {
            case .sqlite:
                try database.sql(
                    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < \(records)) INSERT INTO usage_records (\(columns)) SELECT randomblob(16), \(values) FROM c"
                )
            default:
                try database.sql(
                    "INSERT INTO usage_records (\(columns)) SELECT decode(md5(n::text), 'hex'), \(values) FROM generate_series(1, \(records)) n"
                )
            }
        }

        /// Everything that a store holds, in an order of its own and the same text from both databases.
        private func contents(_ database: BareDatabase) throws -> String {
            func hex(_ column: String) -> String { database.kind == .sqlite ? "lower(hex(\(column)))" : "encode(\(column), 'hex')" }
            return try [
                "SELECT id, slot, name, kind, state, base_url, \(hex("credentials")), created_at_ms FROM accounts ORDER BY id",
                "SELECT id, name, \(hex("digest")), prefix, models, expires_at_ms, revoked_at_ms FROM client_keys ORDER BY id",
                "SELECT \(hex("id")), time_ms, request_id, key_id, account_id, model_served, cost_microdollars, first_byte_ms, response_bytes FROM usage_records ORDER BY id",
                "SELECT key, value FROM settings ORDER BY key",
            ].map { try database.sql($0) }.joined(separator: "\n--\n")
        }

        // MARK: Backups

        /// Made under load, listed and checked, put back: the database is what it was at the backup; what came after is kept aside.
        @Test(arguments: Database.both) func backUpAndRestore(_ kind: Database) throws {
            let stage = try Stage("a", on: kind, environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            let database = BareDatabase(of: stage.daemon)
            let key = try stage.daemon.createKey("laptop")
            for i in 0..<10 { _ = try stage.turn("before-\(i)") }
            try stage.expectOneRecord(of: (0..<10).map { "before-\($0)" })
            let before = try contents(database)
            let made = try stage.daemon.run("db", "backup", "--json")
            let file = try #require(made.json["path"] as? String, "\(made)")
            #expect(made.json["verified"] as? Bool == true)
            var info = stat()
            #expect(stat(file, &info) == 0 && info.st_mode & 0o777 == 0o600)
            #expect(try stage.daemon.run("db", "backups").output.contains(file))

            try stage.daemon.addAccount("b", baseURL: stage.upstream.baseURL, key: Stage.key("b"))
            _ = try stage.turn("after")
            try stage.expectOneRecord(of: ["after"])
            // Not under a running server.
            let refused = try stage.daemon.run("db", "restore", file)
            #expect(refused.exit == .code(1) && !refused.errors.isEmpty, "\(refused)")
            #expect(try stage.turn("still").types.last == "response.completed")
            #expect(stage.daemon.stop() == .code(0))

            let restored = try stage.daemon.restore(file, "--json")
            #expect(restored.isGood, "\(restored)")
            #expect(try contents(database) == before)
            #expect(try stage.daemon.run("db", "check").isGood)
            // What was there is kept: it can be put back in its turn.
            let kept = try #require(restored.json["kept"] as? String, "\(restored)")
            #expect(FileManager.default.fileExists(atPath: kept))
            try stage.daemon.start()
            #expect(try stage.daemon.get("/v1/usage", headers: Self.remote(key)).status == 200)
            #expect(try stage.daemon.records().count == 10)
            _ = try stage.turn("again")
            try stage.expectOneRecord(of: ["again"])
            #expect(try !stage.daemon.run("accounts", "list", "--json").output.contains("\"name\":\"b\""))
        }

        /// A file that is no backup is refused, and nothing is changed.
        @Test(arguments: Database.both) func restoreOfNonsense(_ kind: Database) throws {
            let daemon = try Daemon(on: kind)
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            let before = try contents(BareDatabase(of: daemon))
            let file = daemon.directory + "/nonsense"
            try Data(repeating: 0x41, count: 100_000).write(to: URL(fileURLWithPath: file))
            for path in [file, daemon.directory + "/nowhere"] {
                let result = try daemon.run("db", "restore", path)
                #expect(result.exit == .code(1) && result.errors.contains(path), "\(result)")
            }
            #expect(try contents(BareDatabase(of: daemon)) == before)
        }

        // MARK: Copies

        /// From SQLite to PostgreSQL and back: everything is the same, a second run adds nothing, and the instance serves on the other
        /// database with its accounts and keys.
        @Test func thereAndBack() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            let key = try stage.daemon.createKey("laptop", "--models", "gpt-5.4")
            _ = try stage.daemon.createKey("old")
            #expect(try stage.daemon.run("keys", "revoke", "old").isGood)
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "eyJ-token", accountID: "acc")
            #expect(try stage.daemon.run("accounts", "pause", "live").isGood)
            for i in 0..<5 { _ = try stage.turn("real-\(i)") }
            try stage.expectOneRecord(of: (0..<5).map { "real-\($0)" })
            #expect(stage.daemon.stop() == .code(0))
            let source = BareDatabase(of: stage.daemon)
            try fill(source, records: 5_000)
            let all = try contents(source)

            let target = try BareDatabase(.postgresql, stage.daemon)
            let first = try stage.daemon.run(["db", "copy", "--to", target.url, "--json"], seconds: 60)
            #expect(first.isGood, "\(first)")
            let rows = try #require(first.json["rows"] as? [String: Any])
            #expect(rows["usage_records"] as? Int == 5_005 && rows["accounts"] as? Int == 2 && rows["client_keys"] as? Int == 2, "\(rows)")
            #expect(try contents(target) == all)
            let second = try stage.daemon.run(["db", "copy", "--to", target.url], seconds: 60)
            #expect(second.isGood && second.errors.contains("0 usage records copied"), "\(second)")
            #expect(try contents(target) == all)
            #expect(!first.errors.contains(PostgresCluster.password) && !second.output.contains(PostgresCluster.password))

            stage.daemon.environment["CODEX_LB_DATABASE_URL"] = target.url
            try stage.daemon.start()
            #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).types.last == "response.completed")
            #expect(try stage.daemon.post("/v1/responses", Stage.body(model: "gpt-5.5"), headers: Self.remote(key)).status == 403)
            // New ids do not collide with those that came along.
            try stage.daemon.addAccount("new", baseURL: stage.upstream.baseURL, key: Stage.key("new"))
            _ = try stage.daemon.createKey("new")
            #expect(try eventually(5) { try stage.daemon.get("/v1/usage").json["request_count"] as? Int == 5_006 })
            #expect(stage.daemon.stop() == .code(0))

            let now = try contents(target)
            let back = try BareDatabase(.sqlite, stage.daemon)
            let third = try stage.daemon.run(["db", "copy", "--to", back.url], seconds: 60)
            #expect(third.isGood, "\(third)")
            #expect(try contents(back) == now)
            stage.daemon.environment["CODEX_LB_DATABASE_URL"] = back.url
            try stage.daemon.start()
            #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).types.last == "response.completed")
        }

        /// kill -9 in the middle of a copy: run again it completes, with nothing missing and nothing twice.
        @Test(arguments: Database.both) func killed(_ kind: Database) throws {
            let daemon = try Daemon(on: kind)
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            let source = BareDatabase(of: daemon)
            try fill(source, records: 40_000)
            let target = try BareDatabase(kind == .sqlite ? .postgresql : .sqlite, daemon)
            let copy = try Child(
                Daemon.binary, ["db", "copy", "--to", target.url], environment: daemon.environment, errors: daemon.directory + "/copy")
            let count = { Int((try? target.sql("SELECT count(*) FROM usage_records")) ?? "") ?? 0 }  // not there yet: none
            #expect(copy.stop { (1..<40_000).contains(count()) }, "\(procText(daemon.directory + "/copy"))")
            copy.signal(SIGKILL)
            #expect(copy.wait(5) == .signal(SIGKILL))
            let part = count()
            #expect(part > 0 && part < 40_000)
            let again = try daemon.run(["db", "copy", "--to", target.url], seconds: 60)
            #expect(again.isGood && again.output.contains("usage_records: 40000 rows in both"), "\(again)")
            #expect(try contents(target) == contents(source))
        }

        /// Into a database that holds another store's data: refused, and nothing is changed.
        @Test func intoAnother() throws {
            let (daemon, other) = (try Daemon(), try Daemon(on: .postgresql))
            for daemon in [daemon, other] { try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x") }
            let target = BareDatabase(of: other)
            let before = try contents(target)
            let result = try daemon.run("db", "copy", "--to", target.url)
            #expect(result.exit == .code(1) && result.errors.contains("encryption.key"), "\(result)")
            #expect(try contents(target) == before)
            // The same key, but a store of its own.
            try FileManager.default.removeItem(atPath: daemon.data + "/encryption.key")
            try FileManager.default.removeItem(atPath: daemon.data + "/store.db")
            try FileManager.default.copyItem(atPath: other.data + "/encryption.key", toPath: daemon.data + "/encryption.key")
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            let own = try daemon.run("db", "copy", "--to", target.url)
            #expect(own.exit == .code(1) && own.errors.contains("data of its own"), "\(own)")
            #expect(try contents(target) == before)
        }
    }
}
