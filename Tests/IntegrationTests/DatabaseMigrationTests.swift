import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// A database beside a server, looked at and changed by its own tool: sqlite3 or psql.
final class BareDatabase {
    let kind: Database
    /// What `--url` takes.
    let url: String
    /// The file's path, or the name in the cluster that tests share.
    let place: String
    private let isOwn: Bool

    /// A new one that does not hold anything yet. `daemon` owns the folder of the file.
    init(_ kind: Database, _ daemon: Daemon) throws {
        self.kind = kind
        isOwn = kind != .sqlite
        if let made = try kind.make() {
            (url, place) = made
        } else {
            place = "\(daemon.directory)/\(UUID().uuidString.prefix(8)).db"
            url = "sqlite:///\(place)"
        }
    }

    deinit { if isOwn { kind.giveBack(place) } }

    /// The one that the daemon uses.
    init(of daemon: Daemon) {
        isOwn = false
        if let name = daemon.databaseName, let url = daemon.environment["CODEX_LB_DATABASE_URL"] {
            (kind, self.url, place) = (.postgresql, url, name)
        } else {
            (kind, url, place) = (.sqlite, "sqlite:///\(daemon.data)/store.db", daemon.data + "/store.db")
        }
    }

    /// Rows come as lines, columns between `|`.
    @discardableResult
    func sql(_ text: String) throws -> String {
        guard kind == .sqlite else { return try PostgresCluster.shared().sql(text, in: place) }
        let result = try Child.capture("/usr/bin/sqlite3", ["-bail", "-cmd", ".timeout 5000", place, text])
        guard result.isGood else { throw HarnessError("sqlite3: \(result.errors)\nin: \(text)") }
        return result.output.trimmingCharacters(in: .whitespacesAndNewlines)
    }

    var tables: Int {
        get throws {
            if kind == .sqlite {
                guard FileManager.default.fileExists(atPath: place) else { return 0 }
                return Int(try sql("SELECT count(*) FROM sqlite_master")) ?? -1
            }
            return Int(try sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")) ?? -1
        }
    }

    /// Whether a migrator's lock is still there, which nobody could be holding.
    var isLocked: Bool {
        get throws {
            guard kind != .sqlite else { return false }  // a file lock ends with its process
            return try sql(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
                != "0"
        }
    }

    var ledger: String { get throws { try sql("SELECT id FROM revision_history ORDER BY id") } }
}

extension CommandResult {
    var json: [String: Any] { (try? JSONSerialization.jsonObject(with: Data(output.utf8)) as? [String: Any]) ?? [:] }
    var jsonList: [[String: Any]] { (try? JSONSerialization.jsonObject(with: Data(output.utf8)) as? [[String: Any]]) ?? [] }
}

extension Integration {
    /// The schema's way to this build's revision, by hand and at start, on both databases.
    @Suite struct Migrations {
        /// Ten migrators at once on a new database: all come to their end, one of them has done the work, no lock is left.
        @Test(arguments: Database.allCases) func tenAtOnce(_ kind: Database) throws {
            let daemon = try Daemon()
            let database = try BareDatabase(kind, daemon)
            let files = (0..<10).map { "\(daemon.directory)/upgrade.\($0)" }
            let migrators = try files.map {
                try Child(
                    Daemon.binary, ["db", "upgrade", "--json", "--url", database.url], environment: daemon.environment, output: $0,
                    errors: $0 + ".err")
            }
            var applied: [[String]] = []
            for (migrator, file) in zip(migrators, files) {
                #expect(migrator.wait(30) == .code(0), "\(procText(file + ".err"))")
                let json = try JSONSerialization.jsonObject(with: Data(procText(file).utf8)) as? [String: Any]
                #expect(json?["revision"] as? String == Revisions.head, "\(procText(file))")
                applied.append(json?["applied"] as? [String] ?? ["?"])
            }
            #expect(applied.filter { !$0.isEmpty } == [Revisions.all], "\(applied)")
            #expect(try database.ledger == Revisions.ledger)
            #expect(try !database.isLocked)
            let check = try daemon.run("db", "check", "--url", database.url)
            #expect(check.isGood, "\(check)")
        }

        /// kill -9 just before each statement: the next upgrade completes by itself, with a sound database and each revision once.
        @Test(arguments: Database.both) func killedBeforeEachStatement(_ kind: Database) throws {
            let daemon = try Daemon()
            var kills = 0
            for number in 1... {
                let database = try BareDatabase(kind, daemon)
                let killed = try daemon.run("db", "upgrade", "--url", database.url, "--die-before", String(number))
                if killed.isGood { break }
                kills += 1
                #expect(killed.exit == .signal(SIGKILL), "\(number): \(killed)")
                // With an upgrade by hand and with the one that any command makes.
                let again = try daemon.run("db", "upgrade", "--url", database.url)
                #expect(again.isGood, "\(number): \(again)")
                #expect(try database.ledger == Revisions.ledger, "\(number)")
                let check = try daemon.run("db", "check", "--url", database.url)
                #expect(check.isGood, "\(number): \(check)")
                #expect(try !database.isLocked, "\(number)")
            }
            #expect(kills >= 10, "\(kills) statements")
        }

        /// kill -9 of the start in the middle of its upgrade: the next start completes it and serves.
        @Test(arguments: Database.both) func startKilled(_ kind: Database) throws {
            let daemon = try Daemon(on: kind)
            #expect(try daemon.run("db", "upgrade", "--die-before", "5").exit == .signal(SIGKILL))
            try daemon.start()
            #expect(try BareDatabase(of: daemon).ledger == Revisions.ledger)
            #expect(try daemon.get("/health/live").status == 200)
        }

        /// A dry run prints the statements and makes nothing, not even a file.
        @Test(arguments: Database.both) func dryRun(_ kind: Database) throws {
            let daemon = try Daemon()
            let database = try BareDatabase(kind, daemon)
            let text = try daemon.run("db", "upgrade", "--dry-run", "--url", database.url)
            #expect(
                text.isGood && text.output.contains("CREATE TABLE usage_records") && text.output.contains("-- revision 0002"), "\(text)")
            let json = try daemon.run("db", "upgrade", "--dry-run", "--json", "--url", database.url)
            #expect(json.jsonList.map { $0["id"] as? String } == Revisions.all, "\(json)")
            #expect(try database.tables == 0)
            #expect(kind != .sqlite || !FileManager.default.fileExists(atPath: database.place))
            #expect(!FileManager.default.fileExists(atPath: daemon.data + "/encryption.key"))
        }

        /// Revision by revision by hand: `--to` stops there, and current, history, check and wait tell where it is, as text and as JSON.
        @Test(arguments: Database.both) func byHand(_ kind: Database) throws {
            let daemon = try Daemon()
            let database = try BareDatabase(kind, daemon)
            func db(_ arguments: String...) throws -> CommandResult { try daemon.run(["db"] + arguments + ["--url", database.url]) }
            #expect(try db("current").output == "none\n")
            #expect(try db("current", "--json").json["revision"] is NSNull)
            let early = try db("wait", "--timeout", "0.3")
            #expect(early.exit == .code(1) && early.errors.contains(Revisions.all.joined(separator: ", ")), "\(early)")

            let first = try db("upgrade", "--to", "0001", "--json")
            #expect(
                first.isGood && first.json["applied"] as? [String] == ["0001"] && first.json["revision"] as? String == "0001", "\(first)")
            #expect(try db("current").output == "0001\n")
            #expect(try database.ledger == "0001")
            let check = try db("check")
            #expect(check.exit == .code(1) && check.errors.contains(Revisions.head), "\(check)")
            #expect(try db("upgrade", "--dry-run", "--json").jsonList.map { $0["id"] as? String } == Revisions.afterFirst)
            let half = try db("wait", "--timeout", "0.3")
            #expect(half.exit == .code(1) && half.errors.contains("0002") && !half.errors.contains("0001,"), "\(half)")

            // Who waits is let go when the schema is there.
            let waiting = try Child(
                Daemon.binary, ["db", "wait", "--timeout", "20", "--json", "--url", database.url], environment: daemon.environment,
                output: daemon.directory + "/wait")
            let second = try db("upgrade", "--json")
            #expect(second.json["applied"] as? [String] == Revisions.afterFirst && second.json["before"] as? String == "0001", "\(second)")
            #expect(waiting.wait(10) == .code(0))
            #expect(procText(daemon.directory + "/wait").contains("\"revision\":\"\(Revisions.head)\""))

            #expect(try db("upgrade", "--json").json["applied"] as? [String] == [])
            #expect(try db("current", "--json").json["head"] as? String == Revisions.head)
            let history = try db("history", "--json").jsonList
            #expect(history.map { $0["id"] as? String } == Revisions.all)
            #expect(
                history.allSatisfy { ($0["checksum"] as? String)?.count == 16 && ($0["applied_at"] as? String)?.hasSuffix("Z") == true })
            #expect(try db("history").output.contains("accounts, client keys, usage, settings"))
            let good = try db("check", "--json")
            #expect(good.isGood && good.json["ok"] as? Bool == true, "\(good)")
            #expect(try db("upgrade", "--to", "0009").exit == .code(2))
        }

        /// What somebody changed by hand is told by `db check`: a column, an index, a table more or less.
        @Test(arguments: Database.both) func drift(_ kind: Database) throws {
            let daemon = try Daemon()
            let database = try BareDatabase(kind, daemon)
            func check() throws -> CommandResult { try daemon.run("db", "check", "--json", "--url", database.url) }
            #expect(try daemon.run("db", "upgrade", "--url", database.url).isGood)
            try database.sql("DROP INDEX usage_records_key")
            try database.sql("CREATE TABLE extra (x BIGINT)")
            try database.sql("ALTER TABLE settings ADD COLUMN more TEXT")
            let result = try check()
            let problems = (result.json["problems"] as? [String] ?? []).joined(separator: "\n")
            #expect(result.exit == .code(1) && result.json["ok"] as? Bool == false)
            for word in ["usage_records_key", "extra", "settings"] { #expect(problems.contains(word), "\(word) is not in: \(problems)") }
        }

        /// MIGRATE_ON_STARTUP=false: an old schema is refused with the command to run, and is left as it is; a current one is served.
        @Test(arguments: Database.both) func notOnStartup(_ kind: Database) throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_MIGRATE_ON_STARTUP": "false"], on: kind)
            #expect(try daemon.run("db", "upgrade", "--to", "0001").isGood)
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true)
            #expect(daemon.log.contains("0002") && daemon.log.contains("codex-lb db upgrade"), "\(daemon.log)")
            #expect(try BareDatabase(of: daemon).ledger == "0001")
            #expect(try daemon.run("db", "upgrade").isGood)
            try daemon.start()
            #expect(try daemon.get("/health/live").status == 200)
        }

        /// A revision that can't be applied ends the start; the lines say which, at what statement, why, and how to go back.
        @Test(arguments: Database.both) func failsFast(_ kind: Database) throws {
            let daemon = try Daemon(on: kind)
            #expect(try daemon.run("db", "upgrade", "--to", "0001").isGood)
            let database = BareDatabase(of: daemon)
            try database.sql("CREATE TABLE leases (mine TEXT)")
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true)
            for word in ["revision 0002", "statement 1 of 2", "CREATE TABLE leases", "already exists"] {
                #expect(daemon.log.contains(word), "\"\(word)\" is not in:\n\(daemon.log)")
            }
            #expect(try database.ledger == "0001")
            guard kind == .sqlite else { return }
            let backup = try #require(daemon.log.firstMatch(of: /codex-lb db restore (\S+)/)?.1)
            #expect(backup.contains("/store.db.before-upgrade.") && FileManager.default.fileExists(atPath: String(backup)), "\(backup)")
            // Starting again and again makes no second copy, drives out none made by hand, and is told not to help.
            let made = try daemon.run("db", "backup").output.split(separator: " ")[0]
            for _ in 0..<6 {
                try daemon.launch()
                #expect(daemon.child?.wait(15) == .code(78))
            }
            let copies = daemon.files.filter { $0.hasPrefix("store.db.before-upgrade.") }
            #expect(copies.count == 1 && FileManager.default.fileExists(atPath: String(made)), "\(daemon.files)")
            // The command that it names works.
            #expect(try daemon.run("db", "restore", String(backup)).isGood)
        }

        /// FAIL_FAST=false: it goes on with the old schema that this build knows, turns are served and stored, and everybody who asks is told.
        @Test(arguments: Database.both) func failsSlowly(_ kind: Database) throws {
            let stage = try Stage(
                "a", on: kind, environment: ["CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST": "false", "CODEX_LB_REQUIRE_KEYS": "never"])
            #expect(stage.daemon.stop() == .code(0))
            // The way back that nobody but a test goes.
            let database = BareDatabase(of: stage.daemon)
            try database.sql("DROP TABLE leases")
            try database.sql("DROP INDEX usage_records_key")
            try database.sql("ALTER TABLE usage_records DROP COLUMN checksum")
            for column in ["policy", "weight", "streams_max", "models", "is_overflow"] {
                try database.sql("ALTER TABLE accounts DROP COLUMN \(column)")
            }
            for table in ["account_facts", "pins", "audit"] { try database.sql("DROP TABLE IF EXISTS \(table)") }
            try database.sql("DELETE FROM revision_history WHERE id > '0001'")
            try database.sql("CREATE TABLE leases (mine TEXT)")
            try stage.daemon.start()
            #expect(
                stage.daemon.log.contains("revision 0002") && stage.daemon.log.contains("going on with the old one"), "\(stage.daemon.log)")
            #expect(try stage.health() == (200, "degraded", "schema not upgraded"))
            let status = try #require(stage.daemon.status())
            #expect(status["revision"] as? String == "0001")
            #expect((status["database_problem"] as? String)?.contains("schema") == true, "\(status)")
            #expect(try stage.daemon.run("ctl", "status").output.contains("PROBLEM"))
            for i in 0..<5 { #expect(try stage.turn("old-\(i)").types.last == "response.completed") }
            try stage.expectOneRecord(of: (0..<5).map { "old-\($0)" })
            #expect(try stage.daemon.get("/v1/usage").json["request_count"] as? Int == 5)
            // Accounts and keys too.
            _ = try stage.daemon.createKey("laptop")
            #expect(stage.daemon.stop() == .code(0))
            try database.sql("DROP TABLE leases")
            try stage.daemon.start()
            #expect(try stage.health() == (200, "ok", "ok"))
            // What was stored with the old schema has no checksum, and is not taken for damage.
            _ = try stage.turn("new")
            try stage.expectOneRecord(of: (0..<5).map { "old-\($0)" } + ["new"])
            let check = try stage.daemon.run("db", "check", "--json")
            let checksums = try #require(check.json["checksums"] as? [String: Any], "\(check)")
            #expect(check.isGood && checksums["checked"] as? Int == 1 && checksums["without"] as? Int == 5, "\(check)")
        }

        /// Four ledgers that this build must not touch: each is refused with its own words, also when it may go on with an old schema.
        @Test(
            arguments: Database.both,
            [
                (
                    "newer", "INSERT INTO revision_history VALUES ('0099', 'from the future', 'abc', 1, 1, '9.9')",
                    ["0099", "newer codex-lb"]
                ),
                (
                    "changed", "UPDATE revision_history SET checksum = '0123456789abcdef' WHERE id = '0002'",
                    ["0002", "0123456789abcdef", "checksum"]
                ),
                ("missing", "DELETE FROM revision_history WHERE id = '0001'", ["lacks 0001", "restore a backup"]),
                (
                    "diverged", "UPDATE revision_history SET name = 'something else' WHERE id = '0002'",
                    ["another revision 0002", "something else"]
                ),
            ])
        func refusals(_ kind: Database, _ refusal: (name: String, sql: String, words: [String])) throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST": "false"], on: kind)
            #expect(try daemon.run("db", "upgrade").isGood)
            let database = BareDatabase(of: daemon)
            try database.sql(refusal.sql)
            let ledger = try database.ledger
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true, "\(refusal.name): \(daemon.log)")
            let upgrade = try daemon.run("db", "upgrade")
            #expect(upgrade.exit == .code(1))
            let add = try daemon.run("accounts", "add", "a", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "x\n")
            #expect(add.exit == .code(1))
            for text in [daemon.log, upgrade.errors, add.errors] {
                for word in refusal.words { #expect(text.contains(word), "\(refusal.name): \"\(word)\" is not in:\n\(text)") }
            }
            #expect(try database.ledger == ledger)
        }

        /// A database with tables of another program is refused and left alone.
        @Test(arguments: ["alembic_version", "orders"]) func foreign(_ table: String) throws {
            let daemon = try Daemon(on: .postgresql)
            let database = BareDatabase(of: daemon)
            try database.sql("CREATE TABLE \(table) (x TEXT)")
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true)
            #expect(daemon.log.contains(table == "orders" ? "another program (table orders" : "the Python codex-lb"), "\(daemon.log)")
            #expect(try database.tables == 1)
        }
    }
}
