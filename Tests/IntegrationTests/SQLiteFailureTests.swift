import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Another program on an SQLite file, in the middle of what it does, until `end()`: the sqlite3 shell, fed through a pipe.
private final class Intruder {
    private let child: Child
    private let pipe: Int32

    init(_ daemon: Daemon, _ database: String, _ sql: String) throws {
        let name = "\(daemon.directory)/intruder-\(UUID().uuidString.prefix(8))"
        guard mkfifo(name, 0o600) == 0 else { throw HarnessError("no pipe") }
        // For both directions, so that neither this nor the shell's opening waits for the other.
        pipe = open(name, O_RDWR | O_CLOEXEC)
        child = try Child(
            "/usr/bin/sqlite3", ["-bail", "-cmd", ".timeout 10000", database], environment: ["PATH": "/usr/bin:/bin"], input: name,
            output: name + ".out", errors: name + ".err")
        let text = Array((sql + ";\nSELECT 'held';\n").utf8)
        let child = child
        guard write(pipe, text, text.count) == text.count,
            eventually(15, { child.poll() != nil || procText(name + ".out").contains("held") }), child.poll() == nil
        else { throw HarnessError("sqlite3 does not hold: \(procText(name + ".err"))") }
    }

    /// It goes without a commit.
    func end() throws {
        close(pipe)
        guard child.wait(5) != nil else { throw HarnessError("sqlite3 does not end") }
    }
}

extension Daemon {
    var database: String { data + "/store.db" }

    func expectLog(_ words: String..., seconds: Double = 15, from place: SourceLocation = #_sourceLocation) {
        for word in words { #expect(waitLog(word, seconds: seconds), "\"\(word)\" is not in the log:\n\(log)", sourceLocation: place) }
    }

    /// The start ends by itself with 1 and says all of `words`.
    func expectRefusedStart(_ words: String..., seconds: Double = 15, from place: SourceLocation = #_sourceLocation) throws {
        try launch()
        #expect(child?.wait(seconds)?.isRefusal == true, "\(log)", sourceLocation: place)
        for word in words { #expect(log.contains(word), "\"\(word)\" is not in the log:\n\(log)", sourceLocation: place) }
    }

    /// Names in the data directory, sorted.
    var files: [String] { ((try? FileManager.default.contentsOfDirectory(atPath: data)) ?? []).sorted() }
}

/// Many records in the order of their ids, put in by the sqlite3 shell.
func fillDatabase(_ path: String, records: Int) throws {
    let sql = """
        WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < \(records))
        INSERT INTO usage_records (id, time_ms, route, transport, key_id, account_id, request_id, model_asked, model_served, status,
          error_code, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, duration_ms, attempts, request_bytes,
          response_bytes)
        SELECT CAST(printf('%016d', n) AS BLOB), 1790000000000 + n, '/v1/responses', 'http', 1, 1, 'filled-' || n, 'gpt-5.4',
          'gpt-5.4', 200, '', 100, 40, 20, 5, 12, 1, 50, 900 FROM c
        """
    let result = try Child.capture("/usr/bin/sqlite3", ["-bail", path, sql + "; PRAGMA wal_checkpoint(TRUNCATE)"])
    guard result.isGood else { throw HarnessError("sqlite3: \(result.errors)") }
}

extension CommandResult {
    func expectRefused(_ words: String..., from place: SourceLocation = #_sourceLocation) {
        #expect(exit == .code(1), "\(self)", sourceLocation: place)
        for word in words { #expect(errors.contains(word), "\"\(word)\" is not in: \(errors)", sourceLocation: place) }
    }
}

extension Integration {
    /// What can go wrong with an SQLite store, with the real server: what it says, what it goes on doing, and that no record is lost.
    @Suite struct SQLiteFailures {
        private static let mayMount = SmallDisk.obstacle == nil
        private static let mountNeeded = Comment(rawValue: "needs a small file system: \(SmallDisk.obstacle ?? "")")

        /// A server whose database is alone on a disk of its own.
        private func stage(on disk: SmallDisk, _ more: [String: String] = [:]) throws -> Stage {
            try Stage("a", environment: ["CODEX_LB_DATABASE_URL": "sqlite:///\(disk.path)/store.db"].merging(more) { $1 })
        }

        // MARK: Locked

        /// Another program locks the database for some seconds under load: turns go on, the log says what to do, then all is stored.
        @Test func lockedUnderLoad() throws {
            let stage = try Stage("a", workers: 2)
            let load = Load(stage, clients: 4, pause: 20_000)
            #expect(eventually(10) { load.count >= 20 })
            let intruder = try Intruder(stage.daemon, stage.daemon.database, "BEGIN EXCLUSIVE")
            stage.daemon.expectLog(
                "records can't be stored; they wait", "is locked by another program", "fuser -v \(stage.daemon.database)")
            let before = load.count
            #expect(eventually(10) { load.count >= before + 100 }, "turns do not go on")
            #expect(try stage.metric("codex_lb_journal_bytes") ?? 0 > 0)
            try intruder.end()
            stage.daemon.expectLog("the store takes records again")
            try stage.expectOneRecord(of: load.stop())
            #expect(try stage.health() == (200, "ok", "ok"))
        }

        /// A database that stays locked until the journal is full: new turns get 503 with `Retry-After` and are not sent; when the lock is
        /// gone everything that was taken in is stored, and turns go on.
        @Test func fullJournal() throws {
            let stage = try Stage("a")
            // Turns without an account are records too, and the cheapest.
            #expect(try stage.daemon.run("accounts", "pause", "a").isGood)
            #expect(try eventually(5) { try stage.turn(stream: false).errorCode == "no_accounts" })
            let database = BareDatabase(of: stage.daemon)
            let (model, id) = (String(repeating: "m", count: 256), String(repeating: "i", count: 128))
            let count = { Int(try database.sql("SELECT count(*) FROM usage_records WHERE request_id = '\(id)'")) ?? -1 }
            let intruder = try Intruder(stage.daemon, stage.daemon.database, "BEGIN EXCLUSIVE")
            let connection = try stage.daemon.connect()
            let body = Array(Stage.body(stream: false, model: model).utf8)
            let head = HTTPConnection.head("POST", "/v1/responses", bodyCount: body.count, headers: [("X-Request-Id", id)])
            let batch = [[UInt8]](repeating: Array(head.utf8) + body, count: 50).flatMap { $0 }
            var (taken, refused): (Int, Answer?) = (0, nil)
            while refused == nil, taken < 100_000 {
                try connection.send(batch)
                for _ in 0..<50 {
                    let answer = try connection.answer()
                    if answer.text.contains("journal is full") { refused = answer } else { taken += 1 }
                }
            }
            #expect(refused?.status == 503 && refused?.header("retry-after") != nil, "\(taken) turns: \(String(describing: refused))")
            #expect(try stage.health().code == 503)
            #expect(stage.upstream.requests.allSatisfy { $0.method != "POST" })
            try intruder.end()
            try eventually(60, every: 0.2) { try count() == taken }
            let stored = try count()
            #expect(stored == taken)
            #expect(try stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try eventually(5) { try stage.turn("again").types.last == "response.completed" })
            #expect(try eventually(5) { try stage.health() == (200, "ok", "ok") })
            #expect(!stage.daemon.log.contains("usage record lost"))
        }

        /// Locked for writing when the server starts: it starts all the same, and stores its records when the lock is gone.
        @Test func lockedAtStart() throws {
            let stage = try Stage("a")
            #expect(stage.daemon.stop() == .code(0))
            let intruder = try Intruder(stage.daemon, stage.daemon.database, "BEGIN EXCLUSIVE")
            try stage.daemon.start()
            for i in 0..<5 { #expect(try stage.turn("locked-\(i)").types.last == "response.completed") }
            stage.daemon.expectLog("is locked by another program")
            try intruder.end()
            try stage.expectOneRecord(of: (0..<5).map { "locked-\($0)" })
        }

        /// Kept by another program for itself alone, reading included: neither a start nor a command gets anywhere, and both say why.
        @Test func lockedWhole() throws {
            let stage = try Stage("a")
            _ = try stage.turn("before")
            try stage.expectOneRecord(of: ["before"])
            #expect(stage.daemon.stop() == .code(0))
            let intruder = try Intruder(
                stage.daemon, stage.daemon.database,
                "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; INSERT INTO settings VALUES ('a', 'b')")
            try stage.daemon.expectRefusedStart("is locked by another program", "fuser -v \(stage.daemon.database)")
            try stage.daemon.run("requests").expectRefused("is locked by another program", "fuser -v")
            try stage.daemon.run("accounts", "pause", "a").expectRefused("is locked by another program", "fuser -v")
            try intruder.end()
            try stage.daemon.start()
            #expect(try stage.daemon.records().count == 1)
        }

        // MARK: Not writable

        /// As another user on files that are not his: the start ends with who may not write what, and nothing is changed.
        @Test(arguments: ["directory", "file"]) func notWritable(_ what: String) throws {
            let daemon = try Daemon()
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            chmod(daemon.directory, 0o755)
            if geteuid() == 0 {
                // Root may write everything: somebody else must try it.
                let nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
                let reachable = try Child.capture(nobody[0], Array(nobody.dropFirst()) + ["/usr/bin/test", "-x", Daemon.binary])
                try #require(reachable.isGood, "\(Daemon.binary) can't be reached by other users")
                for path in [daemon.data] + daemon.files.map({ daemon.data + "/" + $0 }) { chown(path, 65_534, 65_534) }
                daemon.runner = nobody
            }
            chmod(what == "file" ? daemon.database : daemon.data, what == "file" ? 0o400 : 0o500)
            // The lock of a start would be the first thing to be made.
            unlink(daemon.database + ".lock")
            defer { chmod(daemon.data, 0o700) }
            let before = FileManager.default.contents(atPath: daemon.database)
            let way =
                what == "file" ? ["may not write the file", "ls -la \(daemon.data)"] : ["Permission denied", "Give this user the right"]
            try daemon.expectRefusedStart(daemon.data, way[0], way[1])
            try daemon.run("accounts", "pause", "a").expectRefused(daemon.data, way[0], way[1])
            #expect(FileManager.default.contents(atPath: daemon.database) == before)
            // Put right, it serves.
            chmod(daemon.data, 0o700)
            chmod(daemon.database, 0o600)
            try daemon.start()
        }

        /// On a read-only file system: refused with that word, with or without a database; made writable again it serves.
        @Test(.enabled(if: mayMount, mountNeeded), arguments: [true, false]) func readOnlyFileSystem(_ hasDatabase: Bool) throws {
            let disk = try SmallDisk(megabytes: 4)
            let daemon = try Daemon(["CODEX_LB_DATA_DIR": disk.path + "/data", "CODEX_LB_RUNTIME_DIR": "/tmp"])
            daemon.environment["CODEX_LB_RUNTIME_DIR"] = daemon.directory + "/run"
            if hasDatabase { try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x") }
            try disk.setReadOnly(true)
            try daemon.expectRefusedStart("ead-only file system", disk.path)
            try daemon.run("accounts", "add", "b", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "x\n")
                .expectRefused("ead-only file system", disk.path)
            try disk.setReadOnly(false)
            try daemon.start()
            #expect(daemon.stop() == .code(0))
        }

        /// Another program holds the database: within three seconds every worker, the metrics and the supervisor say so, with the same word.
        @Test func oneTruthAboutTheStore() throws {
            let stage = try Stage("a", workers: 2)
            _ = try stage.turn("before")
            try stage.expectOneRecord(of: ["before"])
            let intruder = try Intruder(stage.daemon, stage.daemon.database, "BEGIN IMMEDIATE")
            #expect(try stage.turn("waits").types.last == "response.completed")
            #expect(
                try eventually(bound(3, debug: 6), every: 0.1) {
                    try (0..<12).allSatisfy { _ in try stage.health() == (200, "degraded", "unreachable") }
                }, "whichever worker is asked")
            #expect(try stage.metric("codex_lb_database_reachable") == 0)
            #expect(eventually(5) { (stage.daemon.status()?["database_problem"] as? String)?.hasPrefix("unreachable") == true })
            try intruder.end()
            #expect(try eventually(10, every: 0.1) { try (0..<12).allSatisfy { _ in try stage.health() == (200, "ok", "ok") } })
            #expect(eventually(5) { stage.daemon.status().map { ($0["database_problem"] as? String ?? "") == "" } ?? false })
            try stage.expectOneRecord(of: ["before", "waits"])
        }

        /// Another program keeps a read transaction open until the log is beyond its limit: one line says so and how to find the reader,
        /// readiness, metrics and status say it with one word, turns go on; when it goes, the log is emptied and all is well.
        @Test func readerHoldsTheLog() throws {
            let stage = try Stage("a", workers: 2)
            _ = try stage.turn("before")
            try stage.expectOneRecord(of: ["before"])
            let reader = try Intruder(stage.daemon, stage.daemon.database, "BEGIN; SELECT count(*) FROM usage_records")
            try fillDatabase(stage.daemon.database, records: 700_000)
            let log = stage.daemon.database + "-wal"
            func logBytes() throws -> Int { try FileManager.default.attributesOfItem(atPath: log)[.size] as? Int ?? 0 }
            try #require(try logBytes() > 64 << 20)
            #expect(try stage.health() == (200, "ok", "ok"), "nobody has looked yet")
            #expect(try stage.turn("meanwhile").types.last == "response.completed")
            let line = "a reader keeps the database's log from being emptied"
            stage.daemon.expectLog(line, "fuser -v \(stage.daemon.database)-shm", "held_seconds=")
            #expect(try eventually(5) { try stage.health() == (200, "degraded", "log held by a reader") })
            #expect(try stage.metric("codex_lb_database_log_held_bytes") ?? 0 > Double(64 << 20))
            #expect((stage.daemon.status()?["database_problem"] as? String)?.hasPrefix("log held by a reader") == true)
            // Looked at each second, told once a minute.
            for i in 0..<6 {
                _ = try stage.turn("more-\(i)")
                usleep(400_000)
            }
            #expect(stage.daemon.log.components(separatedBy: line).count == 2, "\(stage.daemon.log)")

            try reader.end()
            stage.daemon.expectLog("the database's log is emptied again")
            #expect(try eventually(5) { try stage.health() == (200, "ok", "ok") })
            #expect(try stage.metric("codex_lb_database_log_held_bytes") == 0)
            #expect((stage.daemon.status()?["database_problem"] as? String ?? "") == "")
            _ = try stage.turn("after")
            let database = BareDatabase(of: stage.daemon)
            let stored = "SELECT count(*) FROM usage_records WHERE request_id NOT LIKE 'filled-%'"
            #expect(try eventually(10, every: 0.2) { try database.sql(stored) == "9" })
            #expect(try logBytes() <= 64 << 20, "the space is not given back")
        }

        // MARK: Disk full

        /// The disk fills up under load: turns go on, readiness says degraded, and with room again every record is there.
        @Test(.enabled(if: mayMount, mountNeeded)) func fullUnderLoad() throws {
            let disk = try SmallDisk(megabytes: 8)
            let stage = try stage(on: disk)
            let load = Load(stage, clients: 4, pause: 20_000)
            #expect(eventually(10) { load.count >= 20 })
            try disk.fill()
            stage.daemon.expectLog("records can't be stored; they wait", "no space left", "free some on the file system of \(disk.path)")
            #expect(try eventually(20, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            let before = load.count
            #expect(eventually(10) { load.count >= before + 20 }, "turns do not go on")
            disk.makeRoom()
            stage.daemon.expectLog("the store takes records again")
            try stage.expectOneRecord(of: load.stop())
            #expect(try eventually(5, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            #expect(try stage.daemon.run("db", "check").isGood)
        }

        /// Stopped while the disk is full: the records go to a file in the data directory, and the next start stores them and removes it.
        @Test(.enabled(if: mayMount, mountNeeded)) func stoppedWhileFull() throws {
            let disk = try SmallDisk(megabytes: 8)
            let stage = try stage(on: disk)
            _ = try stage.turn("stored")
            try stage.expectOneRecord(of: ["stored"])
            try disk.fill()
            let ids = (0..<30).map { "waiting-\($0)" }
            for id in ids { #expect(try stage.turn(id).types.last == "response.completed") }
            #expect(stage.daemon.stop(15) == .code(0), "it waits out the drain for a store that takes nothing")
            stage.daemon.expectLog("usage records that could not be stored are kept for the next start", "records=30")
            let spool = try #require(
                stage.daemon.files.first { $0.hasPrefix("journal-") && $0.hasSuffix(".spool") }, "\(stage.daemon.files)")
            // Full again, without what the log took: the start can't store them and keeps the file.
            try disk.fill()
            try stage.daemon.expectRefusedStart("no space left", disk.path)
            #expect(stage.daemon.files.contains(spool))
            disk.makeRoom()
            try stage.daemon.start()
            stage.daemon.expectLog("30 usage records of an earlier run stored from \(stage.daemon.data)/\(spool)")
            #expect(!stage.daemon.files.contains(spool))
            try stage.expectOneRecord(of: ["stored"] + ids)
            #expect(try stage.daemon.records().count == 31)
        }

        /// The data directory is on the full disk too: what the end of the database's log gives back is enough for the file of the records.
        @Test(.enabled(if: mayMount, mountNeeded)) func stoppedWhileFullTogether() throws {
            let disk = try SmallDisk(megabytes: 8)
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_DATA_DIR": disk.path + "/data"])
            daemon.environment["CODEX_LB_RUNTIME_DIR"] = daemon.directory + "/run"
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            let stage = Stage(upstream, try daemon.start())
            _ = try stage.turn("stored")
            try stage.expectOneRecord(of: ["stored"])
            try disk.fill()
            let ids = (0..<5).map { "waiting-\($0)" }
            for id in ids { #expect(try stage.turn(id).types.last == "response.completed") }
            #expect(daemon.stop(15) == .code(0))
            daemon.expectLog("usage records that could not be stored are kept for the next start", "records=5")
            disk.makeRoom()
            try daemon.start()
            try stage.expectOneRecord(of: ["stored"] + ids)
            #expect(try FileManager.default.contentsOfDirectory(atPath: disk.path + "/data").allSatisfy { !$0.contains("journal-") })
        }

        /// Thousands of records wait on a disk that holds everything: the room that was kept at the start takes them. Without that room, and
        /// without another place, they are lost, and that is said and ends with a failure.
        @Test(.enabled(if: mayMount, mountNeeded), arguments: [true, false]) func manyWhileFull(_ hasRoom: Bool) throws {
            let disk = try SmallDisk(megabytes: 5)
            let upstream = try FakeUpstream()
            let daemon = try Daemon(["CODEX_LB_DATA_DIR": disk.path + "/data", "CODEX_LB_RUNTIME_DIR": disk.path + "/data/run"])
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            let stage = Stage(upstream, try daemon.start())
            _ = try stage.turn("stored", stream: false)
            try stage.expectOneRecord(of: ["stored"])
            if !hasRoom { #expect(unlink(disk.path + "/data/spool.reserve") == 0) }
            try disk.fill()
            let client = try daemon.connect()
            let ids = (0..<3000).map { "waiting-\($0)" }
            for id in ids {
                try client.post("/v1/responses", Stage.body(stream: false), headers: [("X-Request-Id", id)])
                guard try client.answer().status == 200 else { throw HarnessError("\(id)") }
            }
            client.close()
            let exit = daemon.stop(20)
            guard hasRoom else {
                #expect(exit == .code(1))
                return daemon.expectLog("usage records are lost", "keeping 3000 records")
            }
            #expect(exit == .code(0))
            daemon.expectLog("usage records that could not be stored are kept for the next start", "records=3000")
            disk.makeRoom()
            try daemon.start()
            try stage.expectOneRecord(of: ["stored"] + ids)
        }

        /// No room for a backup: refused beforehand by the numbers, or broken off when the space ends; neither leaves a file.
        @Test(.enabled(if: mayMount, mountNeeded), arguments: [0, 400]) func fullDuringBackup(_ kilobytesForTheCopy: Int) throws {
            let disk = try SmallDisk(megabytes: 16)
            let stage = try stage(on: disk)
            let path = disk.path + "/store.db"
            // What the log holds beyond the file shows only when it is copied.
            if kilobytesForTheCopy == 0 { try fillDatabase(path, records: 5_000) }
            let reader = try Intruder(stage.daemon, path, "BEGIN; SELECT count(*) FROM usage_records")
            if kilobytesForTheCopy > 0 { try fillDatabase(path, records: 5_000) }
            try disk.fill(leaving: kilobytesForTheCopy * 1024)
            let before = try FileManager.default.contentsOfDirectory(atPath: disk.path).sorted()
            let backup = try stage.daemon.run("db", "backup")
            backup.expectRefused(disk.path, kilobytesForTheCopy == 0 ? "MiB free" : "o space left")
            #expect(try FileManager.default.contentsOfDirectory(atPath: disk.path).sorted() == before)
            try reader.end()
            disk.makeRoom()
            #expect(try stage.daemon.run("db", "backup").isGood)
            _ = try stage.turn("after")
            try stage.expectOneRecord(of: ["after"])
        }

        // MARK: Scheduled backups

        /// The schedule's copies under load: all good, the oldest deleted beyond the limit, and the load loses nothing.
        @Test func scheduled() throws {
            let stage = try Stage(
                "a",
                environment: ["CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS": "0.0005", "CODEX_LB_DATABASE_BACKUP_MAX_FILES": "2"])
            func copies() -> [String] {
                stage.daemon.files.filter { $0.hasPrefix("store.db.scheduled.") && !$0.contains(".partial") }
            }
            let load = Load(stage, clients: 2, pause: 10_000)
            var seen: Set<String> = []
            #expect(
                eventually(30, every: 0.02) {
                    seen.formUnion(copies())
                    // A third name: the first was deleted for it.
                    return seen.count >= 3 && copies().count <= 2
                }, "\(seen)")
            let finished = load.stop()
            #expect(stage.daemon.stop() == .code(0))
            let listed = try stage.daemon.run("db", "backups", "--json").jsonList
            #expect(listed.count == 2 && listed.allSatisfy { $0["verified"] as? Bool == true }, "\(listed)")
            #expect(copies().count == 2 && !copies().contains(seen.sorted()[0]), "\(copies()) of \(seen)")
            #expect(stage.daemon.log.contains("scheduled backup made: "))
            try stage.expectOneRecord(of: finished)
        }

        // MARK: Settings in files

        /// Process environment before `.env.local` before `.env` before `etc/codex-lb.env`, for commands and for the server.
        @Test func environmentFiles() throws {
            let daemon = try Daemon()
            let place = daemon.directory + "/work"
            try FileManager.default.createDirectory(atPath: place + "/etc", withIntermediateDirectories: true)
            daemon.workingDirectory = place
            daemon.environment["CODEX_LB_DATA_DIR"] = nil
            func write(_ file: String, _ text: String) throws { try Data(text.utf8).write(to: URL(fileURLWithPath: "\(place)/\(file)")) }
            let files = ["etc/codex-lb.env", ".env", ".env.local"]
            for (i, file) in files.enumerated() {
                try write(
                    file,
                    "# comment\nexport CODEX_LB_DATA_DIR=\"\(place)/\(i)\"\nOTHER_PROGRAM=1\nCODEX_LB_LOG_FORMAT=\(i == 0 ? "json" : "text")\n"
                )
                let current = try daemon.run("db", "current", "--json")
                #expect((current.json["database"] as? String)?.hasSuffix("\(place)/\(i)/store.db") == true, "\(file): \(current)")
            }
            let process = try daemon.run("db", "current", "--json", environment: ["CODEX_LB_DATA_DIR": place + "/own"])
            #expect((process.json["database"] as? String)?.hasSuffix("\(place)/own/store.db") == true, "\(process)")
            // The server too, and its children, which do not look into files of their own.
            try daemon.launch()
            try daemon.waitReady()
            #expect(FileManager.default.fileExists(atPath: place + "/2/store.db"))
            #expect(try daemon.run("ctl", "status").isGood)
            #expect(daemon.stop() == .code(0))
        }

        /// A line that is no setting stops every command with its file and number.
        @Test(arguments: [".env", ".env.local", "etc/codex-lb.env"]) func badEnvironmentFile(_ file: String) throws {
            let daemon = try Daemon()
            let place = daemon.directory + "/work"
            try FileManager.default.createDirectory(atPath: place + "/etc", withIntermediateDirectories: true)
            daemon.workingDirectory = place
            try Data("# fine\n\nCODEX_LB_WORKERS\n".utf8).write(to: URL(fileURLWithPath: "\(place)/\(file)"))
            for arguments in [["serve"], ["db", "current"]] {
                let result = try daemon.run(arguments)
                #expect(result.exit == .code(2) && result.errors.contains("\(file):3") && result.errors.contains("NAME=VALUE"), "\(result)")
            }
        }

        // MARK: Usage

        /// `GET /v1/usage`: a client key sees its own totals, a caller who needs none sees all.
        @Test(arguments: Database.both) func usage(_ database: Database) throws {
            let stage = try Stage("a", on: database, environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            let keys = try ["laptop", "server"].map { try stage.daemon.createKey($0) }
            func bearer(_ key: String) -> [(String, String)] { [("Authorization", "Bearer \(key)"), ("X-Forwarded-For", "192.0.2.7")] }
            for (key, count) in zip(keys, [2, 1]) {
                // A shared database's change is seen within a second.
                #expect(try eventually(3, every: 0.05) { try stage.daemon.get("/v1/usage", headers: bearer(key)).status == 200 })
                for _ in 0..<count { #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: bearer(key)).status == 200) }
            }
            _ = try stage.turn("no key")
            func usage(_ headers: [(String, String)]) throws -> [String: Any] { try stage.daemon.get("/v1/usage", headers: headers).json }
            #expect(try eventually(5, every: 0.05) { try usage([])["request_count"] as? Int == 4 })
            for (headers, count) in [([], 4), (bearer(keys[0]), 2), (bearer(keys[1]), 1)] {
                let answer = try usage(headers)
                #expect(answer["request_count"] as? Int == count, "\(answer)")
                #expect(answer["total_tokens"] as? Int == count * 120 && answer["input_tokens"] as? Int == count * 100)
                #expect(answer["cached_input_tokens"] as? Int == count * 40 && answer["output_tokens"] as? Int == count * 20)
                let cost = answer["total_cost_usd"] as? Double ?? 0
                #expect(abs(cost - Double(count) * 0.00046) < 1e-9)
            }
            #expect(try stage.daemon.get("/v1/usage", headers: bearer("sk-clb-wrong")).status == 401)
        }
    }
}
