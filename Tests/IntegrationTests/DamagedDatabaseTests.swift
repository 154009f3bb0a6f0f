import DaemonHarness
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Overwrites part of a file.
private func damage(_ path: String, at offset: Int, _ bytes: [UInt8]) throws {
    let fd = open(path, O_WRONLY | O_CLOEXEC)
    guard fd >= 0, pwrite(fd, bytes, bytes.count, off_t(offset)) == bytes.count else { throw HarnessError("\(path) can't be damaged") }
    close(fd)
}

extension Integration {
    /// Files that are no whole database of ours: what is said of them, and that nothing is lost or added.
    @Suite struct DamagedDatabases {
        // MARK: Damaged

        /// The header is overwritten: the start is refused with the ways out; `db recover --replace` brings everything back.
        @Test func damagedHeader() throws {
            let stage = try Stage("a")
            let ids = (0..<20).map { "turn-\($0)" }
            for id in ids { _ = try stage.turn(id) }
            try stage.expectOneRecord(of: ids)
            #expect(stage.daemon.stop() == .code(0))
            try damage(stage.daemon.database, at: 0, [UInt8](repeating: 0xA5, count: 100))
            let before = FileManager.default.contents(atPath: stage.daemon.database)
            try stage.daemon.expectRefusedStart("is damaged", "its header can't be read", "codex-lb db recover", "codex-lb db restore")
            try stage.daemon.run("db", "check").expectRefused("is damaged", "codex-lb db recover")
            #expect(FileManager.default.contents(atPath: stage.daemon.database) == before)

            let recovered = try stage.daemon.run("db", "recover", "--replace", "--json")
            #expect(
                recovered.isGood && recovered.json["header_damaged"] as? Bool == true && recovered.json["complete"] as? Bool == true,
                "\(recovered)")
            let kept = try #require(recovered.json["kept"] as? String)
            #expect(FileManager.default.contents(atPath: kept) == before)
            try stage.daemon.start()
            _ = try stage.turn("after")
            try stage.expectOneRecord(of: ids + ["after"])
            #expect(try stage.daemon.records().count == 21)
        }

        /// A page in the middle is overwritten: the check after the start finds it while turns are served; log, readiness, metrics and status
        /// say so. `db recover` saves the rest into a file that `db restore` puts in place.
        @Test func damagedPage() throws {
            let stage = try Stage("a")
            _ = try stage.turn("before")
            try stage.expectOneRecord(of: ["before"])
            #expect(stage.daemon.stop() == .code(0))
            let path = stage.daemon.database
            try fillDatabase(path, records: 20_000)
            let pages = try #require(FileManager.default.attributesOfItem(atPath: path)[.size] as? Int) / 4096
            try damage(path, at: pages / 2 * 4096, [UInt8](repeating: 0xA5, count: 4096))
            try stage.daemon.start()
            stage.daemon.expectLog("the database is damaged", "codex-lb db recover", "damaged: ")
            #expect(try eventually(5) { try stage.health() == (200, "degraded", "damaged") })
            #expect(try stage.metric("codex_lb_database_damaged") == 1)
            let status = try stage.daemon.run("ctl", "status")
            #expect(status.output.contains("PROBLEM") && status.output.contains("db recover"), "\(status)")
            #expect(stage.daemon.status()?["database_problem"] as? String != nil)
            // New records go elsewhere in the file.
            #expect(try stage.turn("after").types.last == "response.completed")
            #expect(
                try eventually(5) {
                    try stage.metric("codex_lb_usage_records_acknowledged_total") == 1 && stage.metric("codex_lb_journal_bytes") == 0
                })
            try stage.daemon.run("db", "check").expectRefused("damaged")
            try stage.daemon.run("db", "backup").expectRefused("no good", "codex-lb db check")
            try stage.daemon.run("db", "recover", "--replace").expectRefused("only one codex-lb")
            #expect(stage.daemon.stop() == .code(0))

            let output = stage.daemon.directory + "/saved.db"
            let recovered = try stage.daemon.run("db", "recover", "--output", output, "--json", seconds: 60)
            #expect(recovered.isGood && recovered.json["complete"] as? Bool == false, "\(recovered)")
            let tables = recovered.json["tables"] as? [[String: Any]] ?? []
            let usage = try #require(tables.first { $0["name"] as? String == "usage_records" })
            let saved = usage["saved"] as? Int ?? 0
            #expect(saved > 19_900 && saved < 20_002 && usage["unreadable_pages"] as? Int == 1, "\(usage)")
            #expect(try stage.daemon.run("db", "restore", output, seconds: 60).isGood)
            try stage.daemon.start()
            stage.daemon.expectLog("the database is sound")
            #expect(try stage.health() == (200, "ok", "ok"))
            #expect(try stage.daemon.get("/v1/usage").json["request_count"] as? Int == saved)
            #expect(try stage.daemon.run("requests", "--last", "10000", "--json").isGood)
        }

        /// One letter of a stored record is another one on the disk: SQLite finds nothing wrong, the checksum does. `db check` names the
        /// record, `db copy` brings and tells it, `db recover` keeps it without a checksum, and then all is well again.
        @Test func alteredRecord() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_DATABASE_SQLITE_STARTUP_CHECK_MODE": "full"])
            let ids = ["sound", "flip-me", "last"]
            for id in ids { _ = try stage.turn(id) }
            try stage.expectOneRecord(of: ids)
            #expect(stage.daemon.stop() == .code(0))
            let path = stage.daemon.database
            let good = try stage.daemon.run("db", "check")
            #expect(good.isGood && good.output.contains("checksums of 3 usage records checked"), "\(good)")
            let key = try Child.capture(
                "/usr/bin/sqlite3", [path, "SELECT lower(hex(id)) FROM usage_records WHERE request_id = 'flip-me'"]
            )
            .output.trimmingCharacters(in: .whitespacesAndNewlines)
            let bytes = try #require(FileManager.default.contents(atPath: path))
            let at = try #require(bytes.firstRange(of: Data("flip-me".utf8))).lowerBound
            try damage(path, at: at + 6, Array("a".utf8))
            let intact = try Child.capture("/usr/bin/sqlite3", [path, "PRAGMA integrity_check"])
            #expect(intact.output == "ok\n")

            let check = try stage.daemon.run("db", "check", "--json")
            let altered = (check.json["checksums"] as? [String: Any])?["altered"] as? [String] ?? []
            #expect(check.exit == .code(1) && altered.map { $0.filter { $0 != "-" } } == [key], "\(check)")
            try stage.daemon.run("db", "check").expectRefused("1 not as stored", altered.first ?? "?")
            #expect(try stage.daemon.run("db", "check", "--quick").isGood)
            try stage.daemon.start()
            stage.daemon.expectLog("the database is damaged", altered.first ?? "?")
            #expect(try eventually(5) { try stage.health() == (200, "degraded", "damaged") })
            #expect(stage.daemon.stop() == .code(0))

            let target = try BareDatabase(.sqlite, stage.daemon)
            try stage.daemon.run("db", "copy", "--to", target.url).expectRefused(
                "1 not as stored", altered.first ?? "?", "copied as they are")
            #expect(try target.sql("SELECT count(*) FROM usage_records WHERE request_id IN ('flip-ma', 'sound', 'last')") == "3")
            try stage.daemon.run("db", "check", "--url", target.url).expectRefused("1 not as stored")

            let recovered = try stage.daemon.run("db", "recover", "--replace")
            #expect(
                recovered.isGood && recovered.output.contains("1 not as stored") && recovered.output.contains(altered.first ?? "?")
                    && recovered.output.contains("kept as they are, without checksum"), "\(recovered)")
            let after = try stage.daemon.run("db", "check")
            #expect(after.isGood && after.output.contains("checksums of 2 usage records checked, 1 without checksum"), "\(after)")
            #expect(try stage.daemon.records().count == 3)
        }

        /// A row that can't be read: `db check` names it, `db copy` brings all others, says what it left out, and ends with 1.
        @Test func unreadableRecord() throws {
            let stage = try Stage("a")
            for id in ["sound", "broken"] { _ = try stage.turn(id) }
            try stage.expectOneRecord(of: ["sound", "broken"])
            #expect(stage.daemon.stop() == .code(0))
            let source = BareDatabase(of: stage.daemon)
            try fillDatabase(stage.daemon.database, records: 3_000)
            try source.sql("UPDATE usage_records SET model_served = CAST(x'67707480' AS TEXT) WHERE request_id = 'broken'")
            let check = try stage.daemon.run("db", "check", "--json")
            let rows = check.json["unreadable"] as? [[String: String]] ?? []
            let id = try #require(rows.first?["id"], "\(check)")
            #expect(check.exit == .code(1) && rows.count == 1 && rows[0]["table"] == "usage_records", "\(check)")
            #expect(rows[0]["what"]?.contains("model_served is a text that is not UTF-8") == true, "\(check)")

            let target = try BareDatabase(.postgresql, stage.daemon)
            let copy = try stage.daemon.run("db", "copy", "--to", target.url)
            copy.expectRefused(id, "model_served is a text that is not UTF-8", "1 rows of", "were left out")
            #expect(copy.output.contains("usage_records: 3001 of 3002 rows"), "\(copy)")
            #expect(try target.sql("SELECT count(*) FROM usage_records") == "3001")
            #expect(try stage.daemon.run("db", "check", "--url", target.url).isGood)
            // Deleted there, the next run has nothing to tell.
            try source.sql("DELETE FROM usage_records WHERE request_id = 'broken'")
            #expect(try stage.daemon.run("db", "copy", "--to", target.url).isGood)
        }

        /// The log is damaged at one place: a start would lose what stands behind it, and refuses; `db recover` brings it back, but for what was
        /// hit, nothing of it twice, and the server takes new records.
        @Test func damagedLog() throws {
            let stage = try Stage("a")
            func turns(_ name: String) throws -> [String] {
                let ids = (0..<10).map { "\(name)-\($0)" }
                for id in ids { _ = try stage.turn(id) }
                try stage.expectOneRecord(of: ids)
                return ids
            }
            let early = try turns("early")
            let whole = try #require(FileManager.default.attributesOfItem(atPath: stage.daemon.database + "-wal")[.size] as? Int)
            let late = try turns("late")
            // A machine that loses power has files as they are in this moment.
            let other = try Daemon()
            try FileManager.default.createDirectory(atPath: other.data, withIntermediateDirectories: false)
            for name in ["store.db", "store.db-wal", "encryption.key"] {
                try FileManager.default.copyItem(atPath: "\(stage.daemon.data)/\(name)", toPath: "\(other.data)/\(name)")
            }
            try damage(other.database + "-wal", at: whole + 100, [UInt8](repeating: 0xA5, count: 64))
            try other.expectRefusedStart("store.db-wal", "codex-lb db recover --replace")
            #expect(try other.run("db", "recover", "--replace").isGood)
            let after = Stage(stage.upstream, try other.start())
            other.expectLog("the database is sound")
            _ = try after.turn("after")
            try after.expectOneRecord(of: early + ["after"])
            let found = Set(try other.records().compactMap { $0["request_id"] as? String })
            #expect(found.isSubset(of: early + late + ["after"]) && found.count > early.count + 5)
        }

        // MARK: Not ours

        /// What belongs to somebody else is refused by name, and neither changed nor added to.
        @Test(arguments: ["orders", "alembic_version", "text"]) func foreign(_ kind: String) throws {
            let daemon = try Daemon()
            try FileManager.default.createDirectory(atPath: daemon.data, withIntermediateDirectories: false)
            if kind == "text" {
                try Data("Dear diary,\n".utf8).write(to: URL(fileURLWithPath: daemon.database))
            } else {
                let sql = "CREATE TABLE \(kind) (version_num TEXT); INSERT INTO \(kind) VALUES ('a1b2c3')"
                try #require(Child.capture("/usr/bin/sqlite3", [daemon.database, sql]).isGood)
            }
            let before = FileManager.default.contents(atPath: daemon.database)
            let word = [
                "orders": "another program", "alembic_version": "Python codex-lb (alembic revision a1b2c3)",
                "text": "is not an SQLite database",
            ]
            try daemon.expectRefusedStart(daemon.database, word[kind]!, "was not touched", "--data-dir")
            try daemon.run("db", "upgrade").expectRefused(word[kind]!)
            try daemon.run("db", "backup").expectRefused(word[kind]!)
            try daemon.run("accounts", "add", "a", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "x\n").expectRefused(
                word[kind]!)
            #expect(FileManager.default.contents(atPath: daemon.database) == before)
            // The sockets' folder and the lock are all that a start made.
            #expect(daemon.files.filter { $0 != "run" && $0 != "serve.lock" && $0 != "spool.reserve" } == ["store.db"])
        }

        /// A file that a newer build made, by its header: refused with both revisions, untouched.
        @Test func newer() throws {
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            try #require(
                Child.capture("/usr/bin/sqlite3", [daemon.database, "PRAGMA user_version = 9; PRAGMA wal_checkpoint(TRUNCATE)"]).isGood)
            let before = FileManager.default.contents(atPath: daemon.database)
            try daemon.expectRefusedStart("has revision 0009", "knows \(Revisions.head)", "run the newer codex-lb", "restore a backup")
            try daemon.run("db", "upgrade").expectRefused("0009")
            #expect(FileManager.default.contents(atPath: daemon.database) == before)
        }

        /// The file is gone or empty and there is a backup: an empty one is refused, a missing one made anew with a line that tells the way
        /// back; that way works.
        @Test(arguments: ["missing", "empty"]) func missing(_ what: String) throws {
            let stage = try Stage("a")
            _ = try stage.turn("before")
            try stage.expectOneRecord(of: ["before"])
            #expect(try stage.daemon.run("db", "backup").isGood)
            #expect(stage.daemon.stop() == .code(0))
            // A log is left when somebody was still reading at the stop.
            for suffix in ["-wal", "-shm", ""] { unlink(stage.daemon.database + suffix) }
            let backup = try #require(try stage.daemon.run("db", "backups", "--json").jsonList.first?["path"] as? String)
            if what == "empty" {
                try Data().write(to: URL(fileURLWithPath: stage.daemon.database))
                try stage.daemon.expectRefusedStart(stage.daemon.database, "there are backups of it", "codex-lb db restore")
            } else {
                try stage.daemon.start()
                stage.daemon.expectLog("there is no database at \(stage.daemon.database)", "codex-lb db restore \(backup)")
                #expect(stage.daemon.stop() == .code(0))
            }
            #expect(try stage.daemon.run("db", "restore", backup).isGood)
            try stage.daemon.start()
            try stage.expectOneRecord(of: ["before"])
        }

        /// A pipe where a file belongs is told, not waited for.
        @Test(arguments: ["store.db", "store.db-wal", "store.db-journal", "encryption.key"]) func pipe(_ file: String) throws {
            let daemon = try Daemon()
            try FileManager.default.createDirectory(atPath: daemon.data, withIntermediateDirectories: false)
            try #require(mkfifo(daemon.data + "/" + file, 0o600) == 0)
            try daemon.expectRefusedStart("\(daemon.data)/\(file) is not a regular file")
            try daemon.run("db", "upgrade").expectRefused("\(file) is not a regular file")
        }
    }
}
