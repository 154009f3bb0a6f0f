import ControlWire
import DaemonHarness
import Foundation
import PostgresStore
import Settings
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema
@testable import Store

#if canImport(Glibc)
    import Glibc
#endif

/// Goal: a copy in the other database is the same store, whatever broke off on the way.
@Suite(.serialized) struct StoreCopyTests {
    private func fill(_ store: StoreSession, records: Range<Int>) throws {
        _ = try store.addAccount(account("gone"), now: now)
        let root = Author("root (0)", at: now)
        _ = try store.removeAccount("gone", now: now, by: root)
        _ = try store.addAccount(account("one"), now: now)
        _ = try store.setAccountState("one", .paused, now: now, by: root)
        _ = try store.createClientKey("k", models: ["gpt-5"], expiresAt: nil, now: now)
        _ = try store.createClientKey("old", models: nil, expiresAt: nil, now: now)
        _ = try store.revokeClientKey("old", now: now)
        try store.connection.change("INSERT INTO settings (key, value) VALUES ('a', 'b')", [])
        for start in stride(from: records.lowerBound, to: records.upperBound, by: 200) {
            _ = try store.append((start..<min(start + 200, records.upperBound)).map(record))
        }
    }

    /// A store and an empty one of the other kind, which has the same key.
    private func pair(_ kind: Database) throws -> (source: (Ground, StoreSession), target: (Ground, StoreSession)) {
        let (from, to) = (try Ground(kind), try Ground(kind == .sqlite ? .postgresql : .sqlite))
        let source = try from.open()
        try FileManager.default.copyItem(atPath: from.key, toPath: to.key)
        return ((from, source), (to, try to.open()))
    }

    @Test("A copy into the other database is the same store, and goes on with new ids", arguments: Database.both)
    func copied(_ kind: Database) throws {
        let ((_, source), (ground, target)) = try pair(kind)
        try fill(source, records: 0..<2_345)
        let counts = try StoreCopy(from: source, to: target).run().counts
        let want: [(String, Int64)] = [("accounts", 2), ("client_keys", 2), ("settings", 1), ("audit", 2), ("usage_records", 2_345)]
        #expect(counts == want.map { StoreCopy.Count(table: $0.0, source: $0.1, target: $0.1) })
        let (ours, theirs) = (try source.snapshot(), try target.snapshot())
        #expect(theirs.accounts == ours.accounts && theirs.clientKeys == ours.clientKeys)
        #expect(theirs.pepper == ours.pepper && theirs.settings == ours.settings)
        #expect(try target.clientKeys() == source.clientKeys())
        #expect(try target.usage(last: 5_000) == source.usage(last: 5_000))
        #expect(try target.audit(last: 10) == source.audit(last: 10))
        #expect(try target.addAccount(account("new"), now: now).id == 3)
        #expect(try target.createClientKey("new", models: nil, expiresAt: nil, now: now).key.id == 3)
        #expect(try ground.check() == [])
    }

    @Test("A copy that broke off goes on where it was, and brings what changed meanwhile", arguments: Database.both)
    func resumed(_ kind: Database) throws {
        let ((_, source), (_, target)) = try pair(kind)
        try fill(source, records: 100..<2_500)
        // A record in the second portion that the target refuses ends the first run.
        let trap =
            kind == .sqlite
            ? "ALTER TABLE usage_records ADD CONSTRAINT trap CHECK (request_id <> 'req-1700')"
            : "CREATE TRIGGER trap BEFORE INSERT ON usage_records WHEN new.request_id = 'req-1700' BEGIN SELECT raise(ABORT, 'trap'); END"
        try target.connection.execute(trap)
        #expect(failure { () throws(StoreError) in _ = try StoreCopy(from: source, to: target).run() }?.kind == .constraint)
        let part = try target.count("usage_records")
        #expect(part > 0 && part < 2_400)
        try target.connection.execute(kind == .sqlite ? "ALTER TABLE usage_records DROP CONSTRAINT trap" : "DROP TRIGGER trap")
        _ = try source.setAccountState("one", .active, now: now)
        _ = try source.addAccount(account("late"), now: now)
        // The record of a slow turn, older than what is there; and new ones.
        _ = try source.append([record(5), record(3_000)])
        var lines: [String] = []
        let counts = try StoreCopy(from: source, to: target) { lines.append($0) }.run().counts
        #expect(counts.allSatisfy { $0.source == $0.target } && counts.last?.target == 2_402, "\(counts)")
        #expect(lines.contains { $0.contains("\(2_402 - part - 1) usage records copied, the others were there") }, "\(lines)")
        #expect(try target.snapshot().accounts == source.snapshot().accounts)
        #expect(try target.usage(last: 5_000) == source.usage(last: 5_000))
        // Once more there is nothing to do.
        lines = []
        _ = try StoreCopy(from: source, to: target) { lines.append($0) }.run()
        #expect(lines.contains { $0.hasPrefix("0 usage records copied") }, "\(lines)")
    }

    /// A change of one value of a stored record, its checksum left as it is.
    private func alter(_ store: StoreSession, _ n: Int, _ column: String, _ value: SQLValue) throws(StoreError) {
        #expect(try store.connection.change("UPDATE usage_records SET \(column) = $1 WHERE id = $2", [value, .blob(id(n).bytes)]) == 1)
    }

    @Test("Records have checksums that both databases and every copy agree on; a check counts those without", arguments: Database.both)
    func checksums(_ kind: Database) throws {
        let ((from, source), (to, target)) = try pair(kind)
        try fill(source, records: 0..<30)
        var odd = record(40)
        (odd.requestID, odd.modelAsked, odd.keyID, odd.accountID, odd.costMicrodollars) = ("a\0b", "ü\u{1F600}", .min, .max, 0)
        (odd.inputTokens, odd.outputTokens, odd.transport) = (.max, -1, .websocket)
        _ = try source.append([odd])
        // As a codex-lb without checksums stored them.
        try source.connection.change("UPDATE usage_records SET checksum = NULL WHERE id < $1", [.blob(id(4).bytes)])
        let report = try from.report()
        #expect(report.problems == [])
        #expect(report.audit?.checksums == .init(checked: 27, without: 4))
        let outcome = try StoreCopy(from: source, to: target).run()
        #expect(outcome.isWhole && outcome.checksums == .init(checked: 27, without: 4))
        #expect(try to.report().audit?.checksums == .init(checked: 27, without: 4))
        let sql = "SELECT id, checksum FROM usage_records ORDER BY id"
        #expect(
            try target.connection.rows(sql, []) { [$0.value(0), $0.value(1)] }
                == source.connection.rows(sql, []) { [$0.value(0), $0.value(1)] })
    }

    @Test("A value that was altered in place is told with its record, whichever it is, by a check and by a copy", arguments: Database.both)
    func altered(_ kind: Database) throws {
        let ((from, source), (to, target)) = try pair(kind)
        _ = try source.append((0..<40).map(record))
        #expect(try from.check() == [])
        // Each column in a record of its own, and the checksum too; not the id, which the others name it by.
        for (n, column) in UsageRecord.columnNames.enumerated().dropFirst() {
            var new = SQLValue.int(123_456)
            if case .text = record(n).columnValues[n] { new = .text(column == "transport" ? "websocket" : "x") }
            try alter(source, n, column, new)
        }
        try alter(source, 30, "checksum", .int(5))
        let want = (Array(1...20) + [30]).map { id($0).description }
        let report = try from.report()
        #expect(report.audit?.checksums.altered == want && report.problems.count == 1, "\(report.problems)")
        #expect(report.problems[0].contains("21 not as stored") && report.problems[0].contains(want[0]))
        // A copy neither hides it nor makes it right.
        let outcome = try StoreCopy(from: source, to: target).run()
        #expect(outcome.checksums.altered == want && !outcome.isWhole && outcome.leftOut == [])
        #expect(try target.usage(last: 100) == source.usage(last: 100))
        #expect(try to.report().audit?.checksums.altered == want)
    }

    @Test("Rows that can't be read are named by a check; a copy leaves them out, brings the others and tells", arguments: Database.both)
    func unreadable(_ kind: Database) throws {
        let ((from, source), (to, target)) = try pair(kind)
        try fill(source, records: 0..<2_500)
        try alter(source, 1_700, "transport", .text("pigeon"))
        try source.connection.change("UPDATE accounts SET kind = 'magic' WHERE name = 'one'", [])
        try source.connection.change("UPDATE client_keys SET models = '[1' WHERE name = 'k'", [])
        let problems = try from.check()
        #expect(problems.count == 3, "\(problems)")
        for words in [
            ["accounts, row 2", "kind is the text \"magic\""], ["client_keys, row 1", "models"],
            ["usage_records, row \(id(1_700))", "transport is the text \"pigeon\", expected http or websocket"],
        ] {
            #expect(problems.contains { line in words.allSatisfy { line.contains($0) } }, "\(words) in \(problems)")
        }
        for run in 1...2 {
            let outcome = try StoreCopy(from: source, to: target).run()
            #expect(outcome.leftOut.map(\.table) == ["accounts", "client_keys", "usage_records"], "run \(run): \(outcome.leftOut)")
            #expect(outcome.leftOut.last?.id == id(1_700).description && !outcome.isWhole)
            #expect(try target.count("usage_records") == 2_499 && target.count("accounts") == 1)
            #expect(try to.check() == [])
        }
        // Put right, the next run brings them too.
        try alter(source, 1_700, "transport", .text("http"))
        try source.connection.change("UPDATE accounts SET kind = 'api_key' WHERE name = 'one'", [])
        try source.connection.change("UPDATE client_keys SET models = NULL WHERE name = 'k'", [])
        #expect(try StoreCopy(from: source, to: target).run().isWhole)
        #expect(try target.count("usage_records") == 2_500 && target.snapshot().accounts == source.snapshot().accounts)
    }

    @Test("A copy into another store's database is refused, and nothing of it is changed", arguments: Database.both)
    func copyRefused(_ kind: Database) throws {
        let (from, to) = (try Ground(kind), try Ground(kind == .sqlite ? .postgresql : .sqlite))
        let (source, target) = (try from.open(), try to.open())
        _ = try source.addAccount(account("one"), now: now)
        _ = try target.addAccount(account("theirs"), now: now)
        let before = try target.snapshot()
        #expect(failure { () throws(StoreError) in _ = try StoreCopy(from: source, to: target).run() }?.kind == .wrongKey)
        // The same key, but data of its own.
        let third = try Ground(to.kind)
        try FileManager.default.copyItem(atPath: from.key, toPath: third.key)
        let own = try third.open()
        _ = try own.append([record(1)])
        #expect(failure { () throws(StoreError) in _ = try StoreCopy(from: source, to: own).run() }?.kind == .constraint)
        #expect(try target.snapshot() == before)
        #expect(try own.count("usage_records") == 1 && own.count("accounts") == 0)
    }

    @Test("What was changed in the target since the last copy is not undone by another one", arguments: Database.both)
    func changedTarget(_ kind: Database) throws {
        let ((_, source), (_, target)) = try pair(kind)
        try fill(source, records: 0..<3)
        _ = try StoreCopy(from: source, to: target).run()
        _ = try source.addAccount(account("late"), now: now)
        _ = try StoreCopy(from: source, to: target).run()
        _ = try target.addAccount(account("theirs"), now: now)
        let before = try target.snapshot()
        #expect(failure { () throws(StoreError) in _ = try StoreCopy(from: source, to: target).run() }?.kind == .constraint)
        #expect(try target.snapshot() == before)
        // The other way round it is the newer one that counts.
        _ = try StoreCopy(from: target, to: source).run()
        #expect(try source.snapshot().accounts == before.accounts)
    }
}
