import Store
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema

#if canImport(Glibc)
    import Glibc
#endif

private let second = Revision(
    id: Schema.name(Schema.head.number + 1), name: "more", statements: [.sqlite: ["CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT"]])

@Suite struct BackupTests {
    @Test("A copy made while the writer is open holds everything committed, opens, and is one private file under its final name")
    func make() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        #expect(try store.append((0..<500).map(record)) == 500)
        let file = try Backup.make(database: scratch.database, now: now)
        #expect(file.path == scratch.database + ".backup.20270115-080000" && file.problem.isEmpty && file.revision == Schema.head.id)
        var info = stat()
        #expect(stat(file.path, &info) == 0 && info.st_mode & 0o777 == 0o600)
        #expect(access(file.path + "-wal", F_OK) != 0)
        #expect(try store.append([record(999)]) == 1)  // the writer goes on
        let copy = try SQLiteStore.openReadOnly(path: file.path)
        #expect(try copy.usage(last: 1000).count == 500)
        copy.close()
        // The same second again gets a name of its own.
        #expect(try Backup.make(database: scratch.database, now: now).path == file.path + "-1")
        #expect(Backup.list(database: scratch.database).map(\.stamp) == ["20270115-080000-1", "20270115-080000"])
        store.close()
    }

    @Test("A log that lost its database is neither begun anew nor put under a restored one", arguments: [false, true])
    func orphanedLog(isEmpty: Bool) throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append((0..<100).map(record))
        let backup = try Backup.make(database: scratch.database, now: now).path
        _ = try store.append((100..<200).map(record))
        let log = Scratch.bytes(scratch.database + "-wal")
        store.close()
        unlink(scratch.database)
        if isEmpty { Scratch.write(scratch.database, []) }
        Scratch.write(scratch.database + "-wal", log)
        for error in [
            kind { () throws(StoreError) in _ = try scratch.open() },
            kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: scratch.database) },
        ] {
            #expect(
                error?.kind == .corrupt && error?.message.contains("its log \(scratch.database)-wal is there") == true, "\(error as Any)")
        }
        #expect(Scratch.bytes(scratch.database + "-wal") == log)
        #expect((access(scratch.database, F_OK) == 0) == isEmpty)
        let aside = try #require(try scratch.restore(backup))
        #expect(Scratch.bytes(isEmpty ? aside + "-wal" : aside) == log)
        #expect(try DatabaseCheck.run(path: scratch.database).problems == [])
        let restored = try scratch.open()
        #expect(try restored.usage(last: 1000).count == 100)
        restored.close()
    }

    @Test("Only the newest are kept, and foreign files stay")
    func prune() throws {
        let scratch = Scratch()
        try scratch.open().close()
        for i in 0..<4 { _ = try Backup.make(database: scratch.database, now: WallTime(milliseconds: now.milliseconds + Int64(i) * 1000)) }
        let foreign = [".backup.mine", ".backup.20270115-08000x", ".backup.20270115-080000.old"].map { scratch.database + $0 }
        for path in foreign { Scratch.write(path, [1]) }
        try Backup.prune(database: scratch.database, keeping: 2)
        #expect(Backup.list(database: scratch.database).map(\.stamp) == ["20270115-080003", "20270115-080002"])
        for path in foreign { #expect(access(path, F_OK) == 0) }
    }

    @Test("What killed backups left unfinished goes with the next one; what is being made, and files of others, stay")
    func leftUnfinished() throws {
        let scratch = Scratch()
        try scratch.open().close()
        let names = [
            "scheduled.20261125-151206.77.partial", "scheduled.20261125-151206.77.partial-journal", "backup.20261125-151206.78.partial",
            "backup.20261125-151206.79.partial", "mine.partial",
        ]
        let paths = names.map { scratch.database + "." + $0 }
        var descriptors: [Int32] = []
        for path in paths {
            descriptors.append(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o600))
            guard path != paths[2] else { continue }  // that one is in work
            var times = [timespec(tv_sec: 1_000, tv_nsec: 0), timespec(tv_sec: 1_000, tv_nsec: 0)]
            #expect(utimensat(AT_FDCWD, path, &times, 0) == 0)
        }
        defer { for descriptor in descriptors { close(descriptor) } }
        #expect(flock(descriptors[3], LOCK_EX) == 0)
        _ = try Backup.make(database: scratch.database, now: now)
        #expect(paths.map { access($0, F_OK) == 0 } == [false, false, true, true, true])
    }

    @Test("An upgrade of an existing database makes a copy of the old revision first; a first start and a start without upgrade make none")
    func beforeUpgrade() throws {
        let scratch = Scratch()
        try scratch.open().close()
        try scratch.open().close()
        #expect(Backup.list(database: scratch.database, label: Backup.upgradeLabel).isEmpty)
        let store = try scratch.open(revisions: Schema.revisions + [second])
        #expect(store.applied == [Schema.name(Schema.head.number + 1)])
        let backups = Backup.list(database: scratch.database, label: Backup.upgradeLabel)
        #expect(backups.map(\.path) == [store.backup] && backups.first?.revision == Schema.head.id)
        store.close()
    }

    @Test("Restore puts the copy in place, keeps the present database, and refuses while a writer has it")
    func restore() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append([record(1)])
        let backup = try Backup.make(database: scratch.database, now: now).path
        _ = try store.append([record(2)])
        #expect { _ = try Backup.restore(backup, database: scratch.database, now: now) } throws: { ($0 as? StoreError)?.kind == .busy }
        store.close()
        let aside = try #require(try scratch.restore(backup))
        let restored = try scratch.open()
        #expect(try restored.usage(last: 10).map(\.record) == [record(1)])
        restored.close()
        let kept = try SQLiteStore.openReadOnly(path: aside)
        #expect(try kept.usage(last: 10).count == 2)
        kept.close()
    }

    @Test("A damaged or foreign copy is refused and nothing is changed")
    func refused() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append((0..<2_000).map(record))
        let backup = try Backup.make(database: scratch.database, now: now).path
        store.close()
        let before = Scratch.bytes(scratch.database)
        var bytes = Scratch.bytes(backup)
        for i in 8_192..<20_000 { bytes[i] = 0x5A }
        Scratch.write(backup, bytes)
        let damaged = kind { () throws(StoreError) in try scratch.restore(backup) }
        #expect(damaged != nil && damaged?.kind != .busy, "\(damaged as Any)")
        #expect(Backup.list(database: scratch.database).first?.problem.isEmpty == false)
        Scratch.write(scratch.path + "/data/text", Array("hello, not a database, by no means".utf8))
        let foreign = kind { () throws(StoreError) in try scratch.restore(scratch.path + "/data/text") }
        #expect(foreign != nil && foreign?.kind != .busy, "\(foreign as Any)")
        #expect(Scratch.bytes(scratch.database) == before)
    }
}

@Suite struct DatabaseCheckTests {
    @Test("Rows that hold what no column may are named with table, id, column and value, though SQLite calls some of them sound")
    func unreadableRows() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.addAccount(newAccount, now: now)
        _ = try store.append((0..<20).map(record))
        // What damage or another program may leave, and a STRICT table does not let in.
        let original = try store.sqlite.rows("SELECT sql FROM sqlite_schema WHERE name = 'usage_records'", []) { $0.text(0) }[0]
        func reshape(_ sql: String) throws {
            try store.sqlite.execute("PRAGMA writable_schema = ON")
            try store.sqlite.run("UPDATE sqlite_schema SET sql = ? WHERE name = 'usage_records'", [.text(sql)])
            try store.sqlite.execute("PRAGMA writable_schema = RESET; CREATE TABLE cookie (x); DROP TABLE cookie")
        }
        try reshape(
            original.split(separator: "STRICT, ").joined().split(separator: " NOT NULL,").joined(separator: ",")
                .split(separator: " INTEGER").joined(separator: " BLOB"))
        func set(_ n: Int, _ sql: String) throws {
            try store.sqlite.run("UPDATE usage_records SET \(sql) WHERE id = ?", [.blob(record(n).id.bytes)])
        }
        try set(1, "input_tokens = 'many'")
        try set(2, "model_asked = CAST(x'67ff70' AS TEXT)")
        try set(3, "route = NULL")
        try set(4, "duration_ms = 1e300")
        try set(5, "id = x'0102'")
        try set(6, "transport = 'pigeon'")
        try set(7, "status = x'00'")
        try reshape(original)
        try store.sqlite.run("UPDATE accounts SET slot = 5000")
        store.close()

        let report = try DatabaseCheck.run(path: scratch.database)
        func fault(_ n: Int, _ what: String) -> RowAudit.Fault {
            RowAudit.Fault(table: "usage_records", id: record(n).id.description, what: what)
        }
        let want = [
            RowAudit.Fault(table: "accounts", id: "1", what: "slot is 5000, expected 0 to \(Limits.accountsMax - 1)"),
            RowAudit.Fault(table: "usage_records", id: "x'0102'", what: "id has 2 bytes, expected 16"),
            fault(1, "input_tokens is the text \"many\", expected a number"),
            fault(2, "model_asked is a text that is not UTF-8: x'67ff70'"),
            fault(3, "route is NULL"), fault(4, "duration_ms is the number 1e+300, expected a number"),
            fault(6, "transport is the text \"pigeon\", expected http or websocket"), fault(7, "status is x'00', expected a number"),
        ]
        #expect(report.audit?.faults == want, "\(report.problems)")
        for fault in want { #expect(report.problems.contains("damaged: \(fault)"), "\(fault)") }
        #expect(report.audit?.checksums == .init(checked: 13))
        #expect(try DatabaseCheck.run(path: scratch.database, isQuick: true).audit == nil)
    }

    @Test("A sound database has no problems; a missing index, a hand-made table and damage are named")
    func check() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append((0..<2_000).map(record))
        store.close()
        #expect(try DatabaseCheck.run(path: scratch.database).problems == [])
        #expect(try SQLiteStore.history(path: scratch.database).map(\.id) == Schema.revisions.map(\.id))
        let hand = try Connection(scratch.database, .readWrite)
        try hand.execute("DROP INDEX accounts_live_name; CREATE TABLE mine (x)")
        hand.close()
        #expect(
            try DatabaseCheck.run(path: scratch.database).problems == [
                "index accounts_live_name is missing", "table mine was added by hand",
            ])
    }
}
