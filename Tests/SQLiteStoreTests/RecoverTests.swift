import Store
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema

#if canImport(Glibc)
    import Glibc
#endif

/// A database with something in every table, closed, and what is in it.
private final class Patient {
    static let tables = [
        "account_facts", "accounts", "audit", "client_keys", "leases", "revision_history", "settings", "state", "usage_records",
    ]
    let scratch = Scratch()
    var output: String { scratch.path + "/data/saved.db" }
    let records: Int
    private(set) var rows: [String: [String]] = [:]
    /// Pages of each table, and the cells of each, as SQLite counts them.
    private(set) var pages: [String: [(number: Int, cells: Int, isLeaf: Bool)]] = [:]

    /// Every hundredth record has a name so long that it needs overflow pages.
    init(records: Int) throws {
        self.records = records
        let store = try scratch.open()
        let root = Author("root (0)", at: now)
        for name in ["one", "two", "three"] {
            var new = newAccount
            new.name = name
            _ = try store.putAccount(new, now: now, by: root)
        }
        _ = try store.removeAccount("two", now: now, by: root)
        _ = try store.setAccountState("three", .paused, now: WallTime(milliseconds: now.milliseconds + 5))
        _ = try store.createClientKey("laptop", models: ["gpt-5"], expiresAt: nil, now: now)
        _ = try store.createClientKey("phone", models: nil, expiresAt: nil, now: now)
        _ = try store.revokeClientKey("phone", now: now)
        try store.sqlite.run("INSERT INTO settings (key, value) VALUES ('routing.strategy', 'least_used'), ('log_level', '')")
        for start in stride(from: 0, to: records, by: 100) {
            _ = try store.append(
                (start..<min(records, start + 100)).map { n in
                    var r = record(n)
                    (r.accountID, r.keyID) = (Int64(n % 3 + 1), n % 2 == 0 ? 1 : nil)
                    if n % 100 == 99 { r.modelAsked = String(repeating: "long-\(n)-", count: 2_000) }
                    return r
                })
        }
        store.close()
        rows = try Self.rows(scratch.database)
        let connection = try Connection(scratch.database, .readOnly)
        for table in Self.tables {
            pages[table] = try connection.rows(
                "SELECT pageno, ncell, pagetype FROM dbstat WHERE name = ? AND pagetype != 'overflow' ORDER BY pageno", [.text(table)]
            ) { (Int($0.int(0)), Int($0.int(1)), $0.text(2) == "leaf") }
        }
    }

    static func rows(_ path: String) throws -> [String: [String]] {
        let connection = try Connection(path, .readOnly)
        var out: [String: [String]] = [:]
        for table in tables {
            let columns = try connection.rows("SELECT 'quote(' || name || ')' FROM pragma_table_info(?)", [.text(table)]) { $0.text(0) }
            out[table] = try connection.rows("SELECT \(columns.joined(separator: " || ',' || ")) FROM \(table) ORDER BY 1", []) {
                $0.text(0)
            }
        }
        return out
    }

    func damage(_ change: (inout [UInt8]) -> Void) {
        var bytes = Scratch.bytes(scratch.database)
        change(&bytes)
        Scratch.write(scratch.database, bytes)
    }
    func overwritePage(_ number: Int, _ range: Range<Int> = 0..<4096, with byte: UInt8 = 0x5A) {
        damage { bytes in for i in range { bytes[(number - 1) * 4096 + i] = byte } }
    }

    /// Recovers; the new database is whole and opens with the key.
    func recover() throws -> (report: RecoveryReport, rows: [String: [String]]) {
        let before = names(in: scratch.path + "/data").sorted().map { ($0, Scratch.bytes(scratch.path + "/data/" + $0)) }
        let report = try Scratch.recover(scratch.database, output)
        for (name, bytes) in before { #expect(Scratch.bytes(scratch.path + "/data/" + name) == bytes, "\(name) was changed") }
        #expect(names(in: scratch.path + "/data").count == before.count + 1)
        var info = stat()
        #expect(stat(output, &info) == 0 && info.st_mode & 0o777 == 0o600)
        #expect(try DatabaseCheck.run(path: output).problems == [])
        let rows = try Self.rows(output)
        for table in report.tables where table.name != "state" {
            #expect(table.saved == rows[table.name]?.count || table.name == "revision_history", "\(table)")
        }
        return (report, rows)
    }

    /// The lock may live for a moment in a child of another test (`Scratch.open`).
    func reopened() throws(StoreError) -> StoreSession {
        try SQLiteStore.open(path: output, keyPath: scratch.key, appVersion: "test", lockWaitMilliseconds: 5_000, now: now)
    }
}

extension RecoveryReport {
    fileprivate func table(_ name: String) -> Table? { tables.first { $0.name == name } }
}

@Suite struct RecoverTests {
    @Test("Of a sound database everything is saved as it is, and nothing is reported lost")
    func sound() throws {
        let patient = try Patient(records: 2_000)
        let (report, rows) = try patient.recover()
        #expect(report.isComplete && !report.isHeaderDamaged && !report.isSchemaDamaged && report.remarks == [])
        #expect(rows == patient.rows)
        let store = try patient.reopened()
        #expect(try store.snapshot().accounts.map(\.credentials) == [newAccount.credentials, newAccount.credentials])
        #expect(
            try store.addAccount(NewAccount(name: "four", kind: .apiKey, baseURL: "https://x", credentials: .init(bearer: "k")), now: now)
                .id == 4)
        store.close()
    }

    @Test("A header of zeros costs nothing; a whole first page costs the list of tables and no row")
    func firstPage() throws {
        for range in [0..<100, 0..<4096] {
            let patient = try Patient(records: 1_000)
            patient.overwritePage(1, range, with: 0)
            let (report, rows) = try patient.recover()
            // What was learned of accounts is learned again: it is in a table without row ids, whose place only the list of tables tells.
            let learned = range.count > 100 ? [] : try #require(patient.rows["account_facts"])
            #expect(rows == patient.rows.merging(["account_facts": learned]) { $1 })
            #expect(report.isHeaderDamaged && report.isSchemaDamaged == (range.count > 100))
            #expect(report.tables.allSatisfy { $0.lost == 0 && $0.unreadablePages == 0 })
            let store = try patient.reopened()
            #expect(try store.snapshot().accounts.count == 2)
            store.close()
        }
    }

    @Test("A leaf that is overwritten costs its own rows, an interior page those it holds itself; both are reported")
    func pages() throws {
        for isLeaf in [true, false] {
            let patient = try Patient(records: 3_000)
            let page = try #require(patient.pages["usage_records"]?.last { $0.isLeaf == isLeaf && $0.cells > 0 })
            patient.overwritePage(page.number)
            let (report, rows) = try patient.recover()
            #expect(report.table("usage_records") == .init(name: "usage_records", saved: 3_000 - page.cells, lost: 0, unreadablePages: 1))
            #expect(Set(try #require(rows["usage_records"])).isSubset(of: Set(try #require(patient.rows["usage_records"]))))
            for table in Patient.tables where table != "usage_records" { #expect(rows[table] == patient.rows[table]) }
            // The rest of each long row that is lost lies on four or five pages of its own.
            let long = rows["usage_records"]?.filter { $0.utf8.count > 10_000 }.count ?? 0
            #expect((30 - long) * 4...(30 - long) * 5 ~= report.strayPages)
            #expect(!report.isComplete)
        }
    }

    @Test("Of a leaf whose head is gone the rows behind it are saved; a row with broken bytes is counted as lost")
    func halfPages() throws {
        var patient = try Patient(records: 1_000)
        var leaf = try #require(patient.pages["usage_records"]?.first { $0.isLeaf && $0.cells > 5 })
        patient.overwritePage(leaf.number, 0..<200, with: 0)
        var (report, rows) = try patient.recover()
        #expect(rows == patient.rows)
        #expect(report.table("usage_records")?.unreadablePages == 1 && report.table("usage_records")?.lost == 0)

        patient = try Patient(records: 1_000)
        leaf = try #require(patient.pages["usage_records"]?.first { $0.isLeaf && $0.cells > 5 })
        let start = (leaf.number - 1) * 4096
        patient.damage { bytes in
            let cell = Int(bytes[start + 8]) << 8 | Int(bytes[start + 9])
            for i in 0..<12 { bytes[start + cell + i] = 0xFF }
        }
        (report, rows) = try patient.recover()
        #expect(report.table("usage_records") == .init(name: "usage_records", saved: 999, lost: 1, unreadablePages: 0))
        #expect(rows["usage_records"].map { Set($0).count } == 999)
    }

    @Test("Of a file that is cut off everything before the cut is saved")
    func truncated() throws {
        let patient = try Patient(records: 3_000)
        let all = try #require(patient.pages["usage_records"])
        let cut = all[all.count / 2].number
        patient.damage { $0.removeLast($0.count - cut * 4096) }
        let (report, rows) = try patient.recover()
        let connection = try Connection(patient.output, .readOnly)
        // A row whose overflow pages are behind the cut is gone with them.
        let whole = all.filter { $0.number <= cut }.reduce(0) { $0 + $1.cells }
        let saved = try #require(report.table("usage_records")?.saved)
        let long = try #require(try connection.int("SELECT count(*) FROM usage_records WHERE length(model_asked) > 1000"))
        #expect(whole - saved <= 30 - Int(long) && saved <= whole && saved > 1_000)
        #expect(try #require(report.table("usage_records")?.unreadablePages) > 0)
        for table in Patient.tables where table != "usage_records" { #expect(rows[table] == patient.rows[table]) }
    }

    @Test("Tables lost as a whole: numbers of accounts are not given again, a lost pepper is said and made anew")
    func smallTables() throws {
        var patient = try Patient(records: 500)
        patient.overwritePage(try #require(patient.pages["accounts"]?.first?.number))
        var report = try patient.recover().report
        #expect(report.table("accounts") == .init(name: "accounts", saved: 0, lost: 3, unreadablePages: 1))
        #expect(report.table("usage_records")?.saved == 500)
        var store = try patient.reopened()
        #expect(try store.addAccount(newAccount, now: now).id == 4)
        store.close()

        patient = try Patient(records: 500)
        patient.overwritePage(try #require(patient.pages["state"]?.first?.number))
        report = try patient.recover().report
        #expect(report.table("state") == .init(name: "state", saved: 0, lost: 3, unreadablePages: 1))
        #expect(report.remarks.count == 1 && report.remarks[0].contains("client key"))
        store = try patient.reopened()
        #expect(try store.snapshot().accounts.map(\.credentials) == [newAccount.credentials, newAccount.credentials])
        store.close()
    }

    @Test("The log counts: with it everything is saved; a frame in its middle that is damaged hides no later commit")
    func log() throws {
        for isDamaged in [false, true] {
            let live = Scratch()
            let store = try live.open()
            for n in 0..<300 { _ = try store.append([record(n)]) }
            let copy = Scratch()
            mkdir(copy.path + "/data", 0o700)
            for suffix in ["", "-wal"] { Scratch.write(copy.database + suffix, Scratch.bytes(live.database + suffix)) }
            store.close()
            var log = Scratch.bytes(copy.database + "-wal")
            #expect(log.count > 300 * 4120)
            if isDamaged {
                log[32 + 150 * 4120 + 24 + 2_000] ^= 0xFF
                Scratch.write(copy.database + "-wal", log)
            }
            let output = copy.path + "/data/saved.db"
            let report = try Scratch.recover(copy.database, output)
            #expect(report.table("usage_records")?.saved == 300)
            #expect(report.unreadableFrames == (isDamaged ? 1 : 0) && report.isComplete == !isDamaged)
            #expect(Scratch.bytes(copy.database + "-wal") == log && access(copy.database + "-shm", F_OK) != 0)
            if isDamaged {
                let connection = try Connection(copy.database, .readOnly)
                #expect(try #require(try connection.int("SELECT count(*) FROM usage_records")) < 200)  // all that SQLite would give
            }
        }
    }

    @Test("The end of the log is cut off or its head is damaged: what SQLite would give is saved, and no less")
    func logEnds() throws {
        let live = Scratch()
        let store = try live.open()
        for n in 0..<100 { _ = try store.append([record(n)]) }
        let (main, log) = (Scratch.bytes(live.database), Scratch.bytes(live.database + "-wal"))
        store.close()
        for cut in [0, 1, 2_000, 4_120 * 10 + 7, 4_120 * 80] {
            let copy = Scratch()
            mkdir(copy.path + "/data", 0o700)
            Scratch.write(copy.database, main)
            Scratch.write(copy.database + "-wal", Array(log.dropLast(cut)))
            let report = try Scratch.recover(copy.database, copy.path + "/data/saved.db")
            let connection = try Connection(copy.database, .readOnly)
            let sqlite = Int(try #require(try connection.int("SELECT count(*) FROM usage_records")))
            let saved = try #require(report.table("usage_records")?.saved)
            #expect(saved == sqlite || cut % 4_120 != 0 && saved >= sqlite && report.unreadableFrames == 1, "cut \(cut)")
        }
        let copy = Scratch()
        mkdir(copy.path + "/data", 0o700)
        Scratch.write(copy.database, main)
        Scratch.write(copy.database + "-wal", [UInt8](repeating: 0, count: 32) + log.dropFirst(32))
        let report = try Scratch.recover(copy.database, copy.path + "/data/saved.db")
        #expect(report.table("usage_records")?.saved == 100 && report.unreadableFrames > 0)
    }

    @Test("A value that was altered in the file is told by a check and by its record's id; what is saved has it, and no checksum")
    func altered() throws {
        let patient = try Patient(records: 1_000)
        let needle = Array("req-500gpt-5".utf8)  // request_id and model_asked lie side by side
        patient.damage { bytes in
            guard let at = bytes.firstRange(of: needle)?.lowerBound else { return }
            bytes[at + 4] = UInt8(ascii: "9")
        }
        let id = record(500).id.description
        let check = try DatabaseCheck.run(path: patient.scratch.database)
        #expect(check.audit?.checksums == .init(checked: 1_000, altered: [id]), "\(check.problems)")
        #expect(check.problems.count == 1 && check.problems.allSatisfy { DatabaseCheck.isDamage($0) && $0.contains(id) })
        // Without a look at the rows it is sound, as SQLite sees it.
        #expect(try DatabaseCheck.run(path: patient.scratch.database, isQuick: true).problems == [])

        let (report, rows) = try patient.recover()
        #expect(report.checksums == .init(checked: 1_000, altered: [id]))
        #expect(!report.isComplete && report.table("usage_records")?.saved == 1_000 && report.table("usage_records")?.lost == 0)
        let new = Set(try #require(rows["usage_records"])).subtracting(try #require(patient.rows["usage_records"]))
        #expect(new.count == 1 && new.first?.contains("'req-900'") == true && new.first?.hasSuffix(",NULL") == true, "\(new)")
        #expect(try DatabaseCheck.run(path: patient.output).audit?.checksums == .init(checked: 999, without: 1))
    }

    @Test("Where the log still has the record as it was, that one is saved and nothing is told as altered")
    func alteredBesideTheLog() throws {
        let live = Scratch()
        let store = try live.open()
        for n in 0..<50 { _ = try store.append([record(n)]) }
        try store.sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)")
        let (main, log) = (Scratch.bytes(live.database), Scratch.bytes(live.database + "-wal"))
        store.close()
        let copy = Scratch()
        mkdir(copy.path + "/data", 0o700)
        // A record of the main file is hit, and the log's head, so that its frames are no longer the newest state.
        var bytes = main
        let at = try #require(bytes.firstRange(of: Array("req-20gpt-5".utf8))).lowerBound
        bytes[at + 4] = UInt8(ascii: "7")
        Scratch.write(copy.database, bytes)
        Scratch.write(copy.database + "-wal", [UInt8](repeating: 0, count: 32) + log.dropFirst(32))
        let output = copy.path + "/data/saved.db"
        let report = try Scratch.recover(copy.database, output)
        #expect(report.table("usage_records")?.saved == 50 && report.checksums == .init(checked: 50), "\(report)")
        let saved = try Connection(output, .readOnly)
        #expect(try saved.int("SELECT count(*) FROM usage_records WHERE request_id = 'req-20'") == 1)
    }

    @Test("A header that tells an older revision costs no row")
    func olderHeader() throws {
        let patient = try Patient(records: 300)
        patient.damage { $0[63] = 2 }
        let (report, rows) = try patient.recover()
        #expect(rows == patient.rows && report.isComplete && report.checksums == .init(checked: 300), "\(report)")
    }

    @Test("Nothing is made of a file that holds nothing, over a file that is there, or beside a running server")
    func refused() throws {
        let patient = try Patient(records: 10)
        Scratch.write(patient.output, [1])
        func refusal(_ database: String, _ output: String) -> StoreError.Kind? {
            kind { () throws(StoreError) in _ = try Scratch.recover(database, output) }?.kind
        }
        #expect(refusal(patient.scratch.database, patient.output) == .constraint)
        #expect(refusal(patient.scratch.path + "/none.db", patient.output + "2") == .missing)
        let text = patient.scratch.path + "/data/text"
        Scratch.write(text, [UInt8](repeating: UInt8(ascii: "x"), count: 50_000))
        #expect(refusal(text, patient.output + "2") == .missing)
        let store = try patient.scratch.open()
        let busy = kind { () throws(StoreError) in
            _ = try Recover.run(database: patient.scratch.database, output: patient.output + "2", progress: { _ in }, now: now)
        }
        #expect(busy?.kind == .busy)
        store.close()
        #expect(names(in: patient.scratch.path + "/data").allSatisfy { !$0.contains("saved.db2") })
    }

    @Test("Every table of the schema is of a kind that can be recovered: its key comes first, and a row's number is its id")
    func kinds() throws {
        let connection = try Connection(":memory:", .readWrite)
        _ = try SQLiteStore.migrator(connection, Schema.revisions).apply(appVersion: "test", now: now)
        let odd = try connection.rows(
            """
            SELECT l.name FROM pragma_table_list l JOIN pragma_table_info(l.name) c WHERE l.schema = 'main' AND l.type = 'table'
            AND l.name NOT LIKE 'sqlite_%' AND c.cid = 0 AND NOT (c.pk = 1 AND (l.wr OR c.type = 'INTEGER'))
            """, []
        ) { $0.text(0) }
        #expect(odd == [])
        #expect(try connection.int("SELECT count(*) FROM pragma_table_list WHERE schema = 'main' AND type = 'table'") ?? 0 > 6)
    }

    @Test("Random damage: the new database is whole each time, and no row of an untouched page is missing")
    func randomDamage() throws {
        let base = UInt64(Clock.wall.milliseconds)
        let patient = try Patient(records: 600)
        let sound = Scratch.bytes(patient.scratch.database)
        let usage = try #require(patient.pages["usage_records"])
        let all = Set(try #require(patient.rows["usage_records"]))
        let connection = try Connection(patient.scratch.database, .readOnly)
        let overflow = Set(try connection.rows("SELECT pageno FROM dbstat WHERE pagetype = 'overflow'", []) { Int($0.int(0)) })
        connection.close()
        for seed in base..<base + 80 {
            var random = SplitMix(seed)
            var (bytes, touched) = (sound, Set<Int>())
            for _ in 0..<1 + random.next() % 6 {
                let sector = Int(random.next() % UInt64(bytes.count / 512))
                let mode = random.next() % 3
                for i in sector * 512..<sector * 512 + 512 {
                    bytes[i] =
                        mode == 0
                        ? 0 : mode == 1 ? UInt8(truncatingIfNeeded: random.next()) : bytes[i] ^ (random.next() % 64 == 0 ? 0x10 : 0)
                }
                touched.insert(sector / 8 + 1)
            }
            Scratch.write(patient.scratch.database, bytes)
            unlink(patient.output)
            let report = try Scratch.recover(patient.scratch.database, patient.output)
            let rows = try Patient.rows(patient.output)
            let lost = all.subtracting(try #require(rows["usage_records"])).count
            let allowed =
                usage.filter { touched.contains($0.number) }.reduce(0) { $0 + $1.cells } + 6 * touched.intersection(overflow).count
            #expect(lost <= allowed, "seed \(seed): \(lost) of \(allowed), \(report)")
            #expect(try DatabaseCheck.run(path: patient.output).problems == [], "seed \(seed)")
        }
        Scratch.write(patient.scratch.database, sound)
    }
}
