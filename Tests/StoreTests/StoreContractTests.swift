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

private let now = WallTime(milliseconds: 1_800_000_000_000)

/// A PostgreSQL server of this target's own: integration tests, which run in the same process, stop and break the one that they share.
enum Cluster {
    private static let lock = NSLock()
    nonisolated(unsafe) private static var made: PostgresCluster?  // under `lock`

    static func shared() throws -> PostgresCluster {
        lock.lock()
        defer { lock.unlock() }
        if let made { return made }
        let cluster = try PostgresCluster()
        made = cluster
        atexit { Cluster.made = nil }
        return cluster
    }
}

/// A database of one kind that holds nothing yet, with the place of its key.
private final class Ground {
    let kind: Database
    let folder: String
    private let url: DatabaseURL

    init(_ kind: Database) throws {
        self.kind = kind
        var template = Array("/tmp/clb-contract-XXXXXX".utf8CString)
        folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
        let text =
            try kind == .sqlite
            ? "sqlite:///\(folder)/store.db" : Cluster.shared().url(Cluster.shared().createDatabase())
        url = try DatabaseURL.parse(text, setting: "test") { $0 }
    }

    deinit { try? FileManager.default.removeItem(atPath: folder) }  // a leftover in /tmp is no failure

    var key: String { folder + "/encryption.key" }

    /// Opens it as the start of a server does: what is missing is made. A lock let go may live for a moment in a child that another test
    /// is just starting, between its fork and its exec.
    func open(key: String? = nil, revisions: [Revision] = Schema.revisions) throws(StoreError) -> StoreSession {
        switch url {
        case .sqlite(let path):
            try SQLiteStore.open(
                path: path, keyPath: key ?? self.key, appVersion: "contract", lockWaitMilliseconds: 5_000, now: now,
                upgrade: SQLiteStore.Upgrade(backupsKept: 0), revisions: revisions)
        case .postgresql(let url):
            try PostgresStore.upgrade(
                url, keyPath: key ?? self.key, appVersion: "contract", lockWaitMilliseconds: 10_000, now: now, revisions: revisions)
        }
    }

    /// Another session on a shared database that is there.
    func join() throws(StoreError) -> StoreSession {
        guard case .postgresql(let url) = url else { throw StoreError(.invalid, "SQLite has one writer") }
        return try PostgresStore.open(url, keyPath: key)
    }

    func openReadOnly() throws(StoreError) -> StoreSession {
        switch url {
        case .sqlite(let path): try SQLiteStore.openReadOnly(path: path)
        case .postgresql(let url): try PostgresStore.openReadOnly(url)
        }
    }

    func history() throws(StoreError) -> [AppliedRevision] {
        switch url {
        case .sqlite(let path): try SQLiteStore.history(path: path)
        case .postgresql(let url): try PostgresStore.history(url)
        }
    }

    func check() throws(StoreError) -> [String] { try report().problems }

    func report() throws(StoreError) -> CheckReport {
        switch url {
        case .sqlite(let path): try DatabaseCheck.run(path: path)
        case .postgresql(let url): try PostgresStore.check(url)
        }
    }
}

private func failure(_ body: () throws(StoreError) -> Void) -> StoreError? {
    do throws(StoreError) {
        try body()
        return nil
    } catch { return error }
}

private func id(_ n: Int) -> RecordID {
    RecordID(time: WallTime(milliseconds: now.milliseconds + Int64(n)), random: (UInt64(n), UInt64(n)))
}

/// Record `n`, every field another value; those that may be missing are.
func record(_ n: Int) -> UsageRecord {
    var r = UsageRecord(
        id: id(n), time: WallTime(milliseconds: now.milliseconds + Int64(n)), route: "/v1/responses", requestID: "req-\(n)")
    let n = Int64(n)
    (r.modelAsked, r.modelServed, r.status, r.errorCode) = ("gpt-5 ü", "gpt-5-2026", 200 + Int(n % 300), "")
    (r.inputTokens, r.cachedInputTokens, r.outputTokens, r.reasoningTokens) = (n * 10 + 1, n * 10 + 2, n * 10 + 3, n * 10 + 4)
    (r.durationMilliseconds, r.attempts, r.requestBytes, r.responseBytes) = (n * 10 + 5, Int(n % 3) + 1, n * 10 + 6, n * 10 + 7)
    return r
}

private func rowsOf(_ records: [UsageRecord]) throws -> JournalRows {
    var rows = JournalRows()
    for record in records { try rows.append(journal: record.journalBytes.span.bytes) }
    return rows
}

private func account(_ name: String) -> NewAccount {
    NewAccount(
        name: name, kind: .apiKey, baseURL: "https://api.openai.com/v1/",
        credentials: .init(bearer: "sk-secret-\(name)", refreshToken: "refresh-secret-\(name)", idToken: nil, chatGPTAccountID: ""))
}

extension StoreSession {
    fileprivate func count(_ table: String) throws(StoreError) -> Int64 {
        try connection.rows("SELECT count(*) FROM \(table)", []) { $0.int(0) }.first ?? -1
    }
}

/// What a store promises, whatever database is behind it.
@Suite(.serialized) struct StoreContractTests {
    // MARK: Usage

    @Test("A record is stored once, however often it comes: within a batch, in a later batch, in a later session", arguments: Database.both)
    func idempotent(_ kind: Database) throws {
        let ground = try Ground(kind)
        var store = try ground.open()
        #expect(try store.append([record(1), record(2), record(1)]) == 2)
        #expect(try store.append([record(2), record(3)]) == 1)
        #expect(try store.append([]) == 0)
        var other = record(1)
        other.status = 599
        #expect(try store.append([other]) == 0)
        store.close()
        store = try ground.open()
        #expect(store.applied.isEmpty && store.revision == Schema.head.id)
        #expect(try store.append([record(1), record(2), record(3)]) == 0)
        #expect(try store.append([record(4), record(3)]) == 1)
        #expect(try store.usage(last: 10).map(\.record) == [record(4), record(3), record(2), record(1)])
    }

    @Test("Records as workers send them become the same rows, with their checksums, in groups of any size", arguments: Database.both)
    func rows(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        var all: [UsageRecord] = []
        for size in [0, 1, 3, 4, 5, 63, 64, 65, 85, 200] {
            let new = (0..<size).map { i in
                var r = record(all.count + i)
                if i % 3 == 1 { (r.keyID, r.accountID, r.costMicrodollars, r.firstByteMilliseconds) = (.max, .min, 0, -1) }
                if i % 5 == 2 { (r.transport, r.errorCode, r.modelServed) = (.websocket, "error \u{1F600}", "") }
                if i % 7 == 3, kind == .sqlite { r.requestID = "a\0b" }
                return r
            }
            all += new
            let (added, refused) = try store.appendWhatFits(rowsOf(new))
            #expect(added == size && refused.isEmpty)
            if let last = new.last {
                // Two that are there, one of them twice, and two new ones, one of them twice.
                let more = [record(all.count), record(all.count + 1)]
                let again = try store.appendWhatFits(rowsOf([last, more[0], new[0], more[0], last, more[1]]))
                #expect(again.new == 2)
                all += more
            }
        }
        #expect(try store.usage(last: all.count + 1).map(\.record) == all.reversed())
        let sums = try store.rows(Query("SELECT count(*) FROM usage_records WHERE checksum IS NULL") { $0.int(0) })
        #expect(sums == [0])
        #expect(try ground.check().isEmpty)
    }

    @Test("Records that the store refuses are given back as they came, the others are stored", arguments: Database.both)
    func refused(_ kind: Database) throws {
        let store = try Ground(kind).open()
        try store.connection.execute(
            kind == .sqlite
                ? "CREATE TRIGGER no_bad BEFORE INSERT ON usage_records WHEN NEW.model_asked = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
                : "ALTER TABLE usage_records ADD CONSTRAINT no_bad CHECK (model_asked <> 'bad')")
        var records = (0..<70).map(record)
        for n in [0, 33, 69] { records[n].modelAsked = "bad" }
        let (new, refused) = try store.appendWhatFits(rowsOf(records))
        #expect(new == 67 && refused == [0, 33, 69].map { records[$0].journalBytes })
        #expect(try store.usage(last: 100).map(\.record) == records.filter { $0.modelAsked != "bad" }.reversed())
    }

    @Test(
        "The newest records come first, however they arrived, with the names of key and account even when those are gone",
        arguments: Database.both)
    func newestFirst(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        let one = try store.addAccount(account("one"), now: now)
        let (laptop, _) = try store.createClientKey("laptop", models: nil, expiresAt: nil, now: now)
        var named = record(50)
        (named.accountID, named.keyID) = (one.id, laptop.id)
        for part in stride(from: 0, to: 50, by: 10) { #expect(try store.append((part..<part + 10).shuffled().map(record)) == 10) }
        #expect(try store.append([named]) == 1)
        _ = try store.removeAccount("one", now: now)
        _ = try store.revokeClientKey("laptop", now: now)
        let listed = try store.usage(last: 3)
        #expect(listed.map(\.record) == [named, record(49), record(48)])
        #expect(listed[0].account == "one" && listed[0].key == "laptop" && listed[1].account == "" && listed[1].key == "")
        #expect(try store.usage(last: 0).isEmpty)
        #expect(try ground.openReadOnly().usage(last: 100).count == 51)
    }

    @Test("Every field comes back as it went in, the extremes and what may be missing too", arguments: Database.both)
    func fields(_ kind: Database) throws {
        let store = try Ground(kind).open()
        var full = record(7)
        (full.route, full.transport, full.requestID) = (
            "/backend-api/codex/responses", .websocket, "it's \"quoted\" \\ {a,b} \u{1F600}\r\n\t"
        )
        (full.modelAsked, full.modelServed, full.errorCode) = ("NULL", "", "upstream_error")
        (full.keyID, full.accountID, full.costMicrodollars, full.firstByteMilliseconds) = (.max, .min, 0, -1)
        (full.inputTokens, full.outputTokens, full.responseBytes, full.status) = (.max, .min, 1 << 53 + 1, 499)
        #expect(try store.append([full, record(6)]) == 2)
        #expect(try store.usage(last: 2).map(\.record) == [full, record(6)])
    }

    @Test("A NUL in a text neither ends it nor stops the batch; PostgreSQL, whose text has none, stores U+FFFD", arguments: Database.both)
    func nul(_ kind: Database) throws {
        let store = try Ground(kind).open()
        var odd = record(2)
        (odd.requestID, odd.modelAsked, odd.errorCode) = ("a\0b", "\0", "end\0")
        #expect(try store.append([record(1), odd, record(3)]) == 3)
        let stored = try #require(try store.usage(last: 3).map(\.record).dropFirst().first)
        let want = ["a\0b", "\0", "end\0"].map { kind == .sqlite ? $0 : $0.replacingOccurrences(of: "\0", with: "\u{FFFD}") }
        #expect([stored.requestID, stored.modelAsked, stored.errorCode] == want)
        #expect(try store.append([odd]) == 0)
    }

    @Test("Whole batches with missing values throughout, nowhere, and mixed are stored", arguments: Database.both)
    func batches(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let missing = (0..<200).map(record)
        let present = (200..<400).map { n in
            var r = record(n)
            (r.keyID, r.accountID, r.costMicrodollars, r.firstByteMilliseconds) = (Int64(n), Int64(n + 1), Int64(n + 2), Int64(n + 3))
            return r
        }
        let mixed = (400..<600).map { n in
            var r = record(n)
            if n % 2 == 0 { (r.keyID, r.costMicrodollars) = (Int64(n), Int64(n)) } else { r.accountID = Int64(n) }
            return r
        }
        for batch in [missing, present, mixed] { #expect(try store.append(batch) == 200) }
        let all = missing + present + mixed
        #expect(try store.usage(last: 1000).map(\.record) == all.reversed())
        // Repeated in other company only the new ones count.
        #expect(try store.append(Array(all[150..<349]) + [record(600)]) == 1)
    }

    @Test("Totals are those of one key, or of all requests; what has no price adds none", arguments: Database.both)
    func totals(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let nothing = UsageTotals(requests: 0, inputTokens: 0, cachedInputTokens: 0, outputTokens: 0, costMicrodollars: 0)
        #expect(try store.rows(Queries.totals(ofKey: nil)) == [nothing])
        #expect(try store.rows(Queries.totals(ofKey: 1)) == [nothing])
        let records = (0..<6).map { n in
            var r = UsageRecord(id: id(n), time: now, route: "/v1/responses", requestID: "r\(n)")
            (r.keyID, r.inputTokens, r.cachedInputTokens, r.outputTokens) = ([1, 2, nil][n % 3], 100, 10, 1)
            r.costMicrodollars = n < 3 ? 5_000_000_000 : nil
            return r
        }
        #expect(try store.append(records) == 6)
        #expect(
            try store.rows(Queries.totals(ofKey: nil))
                == [
                    UsageTotals(
                        requests: 6, inputTokens: 600, cachedInputTokens: 60, outputTokens: 6, costMicrodollars: 15_000_000_000)
                ])
        #expect(
            try store.rows(Queries.totals(ofKey: 2))
                == [
                    UsageTotals(requests: 2, inputTokens: 200, cachedInputTokens: 20, outputTokens: 2, costMicrodollars: 5_000_000_000)
                ])
        #expect(try store.rows(Queries.totals(ofKey: 3)) == [nothing])
    }

    @Test("Records with numbers near the end of 64 bits neither end the sum nor the reader", arguments: Database.both)
    func absurdTotals(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let records = (0..<4).map { n in
            var r = UsageRecord(id: id(n), time: now, route: "/v1/responses", requestID: "r\(n)")
            (r.keyID, r.inputTokens, r.outputTokens, r.costMicrodollars) = (Int64(n / 3), .max, n < 3 ? .max : 5, n < 2 ? .max : .min)
            return r
        }
        #expect(try store.append(records) == 4)
        let all = try #require(try store.rows(Queries.totals(ofKey: nil)).first)
        #expect(all.inputTokens == .max && all.outputTokens == .max && all.costMicrodollars == -2 && all.totalTokens == .max)
        let one = try #require(try store.rows(Queries.totals(ofKey: 1)).first)
        #expect(one.inputTokens == .max && one.outputTokens == 5 && one.totalTokens == .max)
    }

    // MARK: Accounts and keys

    @Test(
        "A slot and a name are free again when their account is removed, an id never; the credentials are forgotten",
        arguments: Database.both)
    func accounts(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let made = try ["b", "a", "c"].map { try store.addAccount(account($0), now: now) }
        #expect(made.map(\.slot) == [0, 1, 2] && made.map(\.id) == [1, 2, 3])
        #expect(made[0].baseURL == "https://api.openai.com/v1" && made[0].state == .active && made[0].kind == .apiKey)
        #expect(try store.accounts().map(\.name) == ["a", "b", "c"])
        #expect(failure { () throws(StoreError) in _ = try store.addAccount(account("a"), now: now) }?.kind == .constraint)
        for state in [Account.State.paused, .reauthRequired, .active] {
            #expect(try store.setAccountState("a", state, now: now).state == state)
            #expect(try store.accounts()[0].state == state)
        }
        _ = try store.removeAccount("a", now: now)
        _ = try store.removeAccount("c", now: now)
        #expect(try store.accounts().map(\.name) == ["b"])
        let kept = try store.connection.rows("SELECT credentials FROM accounts WHERE removed_at_ms IS NOT NULL", []) { $0.blob(0) }
        #expect(kept == [[], []])
        let again = try store.addAccount(account("c"), now: now)
        #expect(again.slot == 1 && again.id > 3)
        for error in [
            failure { () throws(StoreError) in _ = try store.removeAccount("a", now: now) },
            failure { () throws(StoreError) in _ = try store.setAccountState("a", .paused, now: now) },
        ] { #expect(error?.kind == .notFound && error?.message.contains("\"a\"") == true) }
        #expect(try store.snapshot().accounts.map(\.name) == ["b", "c"])
    }

    @Test("Client keys: one valid key of a name at a time, models and expiry kept, the plain key kept nowhere", arguments: Database.both)
    func clientKeys(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let later = WallTime(milliseconds: now.milliseconds + 1)
        let (first, plain) = try store.createClientKey("laptop", models: ["gpt-5", "o3"], expiresAt: later, now: now)
        #expect(
            failure { () throws(StoreError) in _ = try store.createClientKey("laptop", models: nil, expiresAt: nil, now: now) }?.kind
                == .constraint)
        let (second, other) = try store.createClientKey("server", models: [], expiresAt: nil, now: now)
        #expect(plain != other && first.digest != second.digest && plain.hasPrefix(first.prefix))
        #expect(try store.clientKeys() == [first, second])
        #expect(try store.snapshot().clientKeys == [first, second])
        #expect(first.models == ["gpt-5", "o3"] && first.expiresAt == later && second.models == [] && second.expiresAt == nil)
        #expect(try store.revokeClientKey("laptop", now: now).revokedAt == now)
        #expect(failure { () throws(StoreError) in _ = try store.revokeClientKey("laptop", now: now) }?.kind == .notFound)
        let (third, _) = try store.createClientKey("laptop", models: nil, expiresAt: nil, now: now)
        #expect(third.id > second.id && third.models == nil)
        // Revoked keys stay in it: an instance that had keys never counts as one without.
        #expect(try store.snapshot().clientKeys.map(\.id) == [first.id, second.id, third.id])
        #expect(try store.snapshot().clientKeys.map(\.revokedAt) == [now, nil, nil])
        #expect(try store.clientKeys().map(\.revokedAt) == [now, nil, nil])
    }

    @Test("The snapshot's version rises by exactly one with each change, and with nothing else", arguments: Database.both)
    func versions(_ kind: Database) throws {
        let store = try Ground(kind).open()
        var last = try store.snapshot().version
        func expect(_ rise: Int64, _ what: String, _ body: () throws -> Void) throws {
            try body()
            let version = try store.snapshot().version
            #expect(version == last + rise, "\(what)")
            last = version
        }
        try expect(1, "add") { _ = try store.addAccount(account("one"), now: now) }
        try expect(1, "pause") { _ = try store.setAccountState("one", .paused, now: now) }
        try expect(1, "key") { _ = try store.createClientKey("k", models: nil, expiresAt: nil, now: now) }
        try expect(0, "usage") { _ = try store.append([record(1)]) }
        try expect(0, "taken name") {
            #expect(failure { () throws(StoreError) in _ = try store.addAccount(account("one"), now: now) }?.kind == .constraint)
        }
        try expect(0, "taken key") {
            #expect(
                failure { () throws(StoreError) in _ = try store.createClientKey("k", models: nil, expiresAt: nil, now: now) }?.kind
                    == .constraint)
        }
        try expect(0, "nobody") {
            #expect(failure { () throws(StoreError) in _ = try store.removeAccount("two", now: now) }?.kind == .notFound)
        }
        try expect(0, "invalid") {
            #expect(failure { () throws(StoreError) in _ = try store.addAccount(account("a b"), now: now) }?.kind == .invalid)
        }
        try expect(1, "revoke") { _ = try store.revokeClientKey("k", now: now) }
        try expect(1, "remove") { _ = try store.removeAccount("one", now: now) }
        #expect(try store.rows(Queries.version) == [last])
    }

    // MARK: Secrets

    @Test(
        "No row holds a credential, a plain key or the pepper in the clear; a sealed value opens in its own row only",
        arguments: Database.both)
    func sealed(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        _ = try store.addAccount(account("one"), now: now)
        _ = try store.addAccount(account("two"), now: now)
        let (_, plain) = try store.createClientKey("k", models: nil, expiresAt: nil, now: now)
        let snapshot = try store.snapshot()
        #expect(snapshot.accounts.map(\.credentials) == ["one", "two"].map { account($0).credentials })
        #expect(snapshot.pepper.count == 32)
        var rows: [[UInt8]] = []
        for (table, columns) in [
            ("accounts", ["name", "base_url", "credentials"]), ("client_keys", ["name", "prefix", "digest"]), ("state", ["key", "value"]),
            ("settings", ["key", "value"]),
        ] {
            rows += try store.connection.rows("SELECT \(columns.joined(separator: ", ")) FROM \(table)", []) { row in
                columns.indices.flatMap { column in row.blob(Int32(column)) }
            }
        }
        #expect(rows.count >= 6)
        let pepper = Data(snapshot.pepper)
        let secrets = [Data("secret".utf8), Data(plain.utf8), pepper, pepper.base64EncodedData().dropLast(1)]
        for (row, secret) in rows.flatMap({ row in secrets.map { (row, $0) } }) { #expect(Data(row).range(of: secret) == nil) }
        try store.connection.change(
            "UPDATE accounts SET credentials = (SELECT credentials FROM accounts WHERE name = 'two') WHERE name = 'one'", [])
        #expect(failure { () throws(StoreError) in _ = try store.snapshot() }?.kind == .corrupt)
    }

    @Test("Another key file, or none, is refused by name and left as it is", arguments: Database.both)
    func wrongKey(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        _ = try store.addAccount(account("one"), now: now)
        store.close()
        let missing = ground.folder + "/nowhere.key"
        let none = failure { () throws(StoreError) in _ = try ground.open(key: missing) }
        #expect(none?.kind == .wrongKey && none?.message.contains("\(missing) is missing") == true, "\(String(describing: none))")
        #expect(access(missing, F_OK) != 0)
        let foreign = ground.folder + "/foreign.key"
        let bytes = Data((String(repeating: "A", count: 43) + "\n").utf8)
        try bytes.write(to: URL(fileURLWithPath: foreign))
        chmod(foreign, 0o600)
        let other = failure { () throws(StoreError) in _ = try ground.open(key: foreign) }
        #expect(other?.kind == .wrongKey && other?.message.contains("\(foreign) (") == true, "\(String(describing: other))")
        #expect(FileManager.default.contents(atPath: foreign) == bytes)
        #expect(try ground.open().snapshot().accounts.map(\.credentials) == [account("one").credentials])
    }

    @Test("What was stored is the same after closing and opening", arguments: Database.both)
    func reopened(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        _ = try store.addAccount(account("one"), now: now)
        _ = try store.addAccount(account("two"), now: now)
        _ = try store.setAccountState("two", .paused, now: now)
        _ = try store.createClientKey("k", models: ["gpt-5"], expiresAt: WallTime(milliseconds: now.milliseconds + 5), now: now)
        try store.connection.change("INSERT INTO settings (key, value) VALUES ('a', 'b')", [])
        let before = try store.snapshot()
        #expect(before.settings == ["a": "b"] && before.accounts.count == 2 && before.clientKeys.count == 1)
        store.close()
        let again = try ground.open()
        #expect(try again.snapshot() == before)
        #expect(try ground.check() == [])
    }

    @Test("A session for reading neither writes nor opens secrets", arguments: Database.both)
    func readOnly(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        _ = try store.addAccount(account("one"), now: now)
        let reader = try ground.openReadOnly()
        #expect(try reader.accounts().map(\.name) == ["one"])
        #expect(failure { () throws(StoreError) in _ = try reader.snapshot() }?.kind == .readOnly)
        #expect(failure { () throws(StoreError) in _ = try reader.addAccount(account("two"), now: now) }?.kind == .readOnly)
    }

    @Test("Everything of a transaction or nothing, and the session goes on after a failure", arguments: Database.both)
    func rollback(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let error = failure { () throws(StoreError) in
            try store.connection.transaction { () throws(StoreError) in
                for value in ["b", "c"] {
                    try store.connection.change("INSERT INTO settings (key, value) VALUES ($1, $2)", [.text("a"), .text(value)])
                }
            }
        }
        #expect(error?.kind == .constraint)
        #expect(try store.snapshot().settings.isEmpty)
        #expect(try store.append([record(1)]) == 1)
    }

    // MARK: Several sessions

    @Test("Accounts added by four sessions at once get slots and ids of their own, and each change is counted")
    func concurrentChanges() async throws {
        let ground = try Ground(.postgresql)
        let store = try ground.open()
        let before = try store.snapshot().version
        let sessions = try (0..<4).map { _ in try ground.join() }
        try await withThrowingTaskGroup(of: Void.self) { group in
            for (i, session) in sessions.enumerated() {
                group.addTask {
                    for n in 0..<10 { _ = try session.addAccount(account("s\(i)-\(n)"), now: now) }
                }
            }
            try await group.waitForAll()
        }
        let snapshot = try store.snapshot()
        #expect(snapshot.accounts.map(\.slot).sorted() == Array(0..<40))
        #expect(Set(snapshot.accounts.map(\.id)).count == 40)
        #expect(snapshot.version == before + 40)
    }

    @Test("Of sessions that want one name at once exactly one gets it; the others are told that it is taken")
    func concurrentNames() async throws {
        let ground = try Ground(.postgresql)
        let store = try ground.open()
        let before = try store.snapshot().version
        let sessions = try (0..<4).map { _ in try ground.join() }
        let outcomes = await withTaskGroup(of: StoreError?.self) { group in
            for session in sessions {
                group.addTask { failure { () throws(StoreError) in _ = try session.addAccount(account("same"), now: now) } }
            }
            return await group.reduce(into: [StoreError?]()) { $0.append($1) }
        }
        #expect(outcomes.filter { $0 == nil }.count == 1)
        #expect(outcomes.compactMap { $0 }.allSatisfy { $0.kind == .constraint && $0.message.contains("same") }, "\(outcomes)")
        #expect(try store.snapshot().version == before + 1)
    }

    @Test("Records that two sessions send at the same time are stored once, and counted as new by one of them")
    func concurrentRecords() async throws {
        let ground = try Ground(.postgresql)
        let store = try ground.open()
        let sessions = try (0..<2).map { _ in try ground.join() }
        let counts = try await withThrowingTaskGroup(of: Int.self) { group in
            for (i, session) in sessions.enumerated() {
                group.addTask {
                    var new = 0
                    for start in stride(from: 0, to: 2000, by: 100) {
                        // The same ids in another order: a lock order of their own would be a deadlock.
                        let batch = (start..<start + 100).map(record)
                        new += try session.append(i == 0 ? batch : batch.reversed())
                    }
                    return new
                }
            }
            return try await group.reduce(into: [Int]()) { $0.append($1) }
        }
        #expect(counts.reduce(0, +) == 2000, "\(counts)")
        #expect(try store.count("usage_records") == 2000)
    }

    // MARK: From one to the other

    private func fill(_ store: StoreSession, records: Range<Int>) throws {
        _ = try store.addAccount(account("gone"), now: now)
        _ = try store.removeAccount("gone", now: now)
        _ = try store.addAccount(account("one"), now: now)
        _ = try store.setAccountState("one", .paused, now: now)
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
        let want: [(String, Int64)] = [("accounts", 2), ("client_keys", 2), ("settings", 1), ("usage_records", 2_345)]
        #expect(counts == want.map { StoreCopy.Count(table: $0.0, source: $0.1, target: $0.1) })
        let (ours, theirs) = (try source.snapshot(), try target.snapshot())
        #expect(theirs.accounts == ours.accounts && theirs.clientKeys == ours.clientKeys)
        #expect(theirs.pepper == ours.pepper && theirs.settings == ours.settings)
        #expect(try target.clientKeys() == source.clientKeys())
        #expect(try target.usage(last: 5_000) == source.usage(last: 5_000))
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

    // MARK: Revisions

    @Test("The ledger names each revision, its checksum and who applied it", arguments: Database.both)
    func history(_ kind: Database) throws {
        let ground = try Ground(kind)
        #expect(try ground.history().isEmpty)
        let store = try ground.open()
        #expect(store.applied == Schema.revisions.map(\.id) && store.revision == Schema.head.id)
        let history = try ground.history()
        #expect(history.map(\.id) == Schema.revisions.map(\.id) && history.map(\.name) == Schema.revisions.map(\.name))
        #expect(history.map(\.checksum) == Schema.revisions.map { $0.checksum(kind == .sqlite ? .sqlite : .postgresql) })
        #expect(history.allSatisfy { $0.appliedAt == now && $0.appVersion == "contract" && $0.durationMilliseconds >= 0 })
        let (a, b) = (Schema.head.checksum(.sqlite), Schema.head.checksum(.postgresql))
        #expect(a != b, "a ledger would not tell the dialects apart")
    }

    @Test("A revision that fails leaves nothing of itself; the next attempt applies it", arguments: Database.both)
    func failedRevision(_ kind: Database) throws {
        let ground = try Ground(kind)
        func next(_ statements: String...) -> [Revision] {
            Schema.revisions + [Revision(id: "0004", name: "more", statements: [.sqlite: statements, .postgresql: statements])]
        }
        try ground.open().close()
        let broken = failure { () throws(StoreError) in
            _ = try ground.open(revisions: next("CREATE TABLE more (x TEXT)", "CREATE NONSENSE"))
        }
        for word in ["revision 0004", "statement 2 of 2", "CREATE NONSENSE"] {
            #expect(broken?.message.contains(word) == true, "\(String(describing: broken))")
        }
        let store = try ground.open()
        #expect(try !store.connection.hasTable("more"))
        store.close()
        let later = try ground.open(revisions: next("CREATE TABLE more (x TEXT)"))
        #expect(try later.applied == ["0004"] && later.connection.hasTable("more"))
        later.close()
        // And now this build is the older one.
        let newer = failure { () throws(StoreError) in _ = try ground.open() }
        #expect(newer?.kind == .newer && newer?.message.contains("0004") == true, "\(String(describing: newer))")
    }

    @Test(
        "Four ledgers that must not be touched are told apart, by writers and readers", arguments: Database.both,
        [
            (StoreError.Kind.newer, "INSERT INTO revision_history VALUES ('0004', 'later', 'abc', 1, 1, '9.9')", "0004"),
            (.changed, "UPDATE revision_history SET checksum = '0123456789abcdef' WHERE id = '0002'", "0123456789abcdef"),
            (.missingRevision, "DELETE FROM revision_history WHERE id = '0001'", "lacks 0001"),
            (.diverged, "UPDATE revision_history SET name = 'something else' WHERE id = '0002'", "something else"),
        ])
    func refusals(_ kind: Database, _ refusal: (kind: StoreError.Kind, sql: String, word: String)) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        try store.connection.change(refusal.sql, [])
        let ledger = try ground.history()
        store.close()
        for error in [
            failure { () throws(StoreError) in _ = try ground.open() }, failure { () throws(StoreError) in _ = try ground.openReadOnly() },
        ] {
            #expect(error?.kind == refusal.kind && error?.message.contains(refusal.word) == true, "\(String(describing: error))")
            #expect(error?.isSchemaRefusal == true)
        }
        #expect(try ground.history() == ledger)
    }

    // MARK: One schema in two dialects

    /// A table as both databases can tell it.
    private struct Table: Equatable {
        struct Column: Equatable {
            var name: String
            /// As PostgreSQL names it.
            var type: String
            var isNullable: Bool
            /// Numbers itself; a number is never used twice.
            var isIdentity: Bool
        }
        struct Index: Hashable {
            /// Empty for the one that a UNIQUE of the table makes: each database names it its own way.
            var name: String
            var columns: [String]
            var isUnique: Bool
            /// In capitals and small letters as written, without parentheses; empty when it has all rows.
            var condition: String
        }
        var columns: [Column]
        var primaryKey: [String]
        var indexes: Set<Index>
    }

    /// What a type of SQLite is in PostgreSQL. ANY is `state.value`, which was text or bytes in old files.
    private static let types = ["INTEGER": "bigint", "TEXT": "text", "BLOB": "bytea", "ANY": "text"]

    private static func sqliteTables(_ connection: any SQLConnection) throws -> [String: Table] {
        var out: [String: Table] = [:]
        for (name, sql) in try connection.rows(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'", [], { ($0.text(0), $0.text(1)) })
        {
            let columns = try connection.rows("SELECT name, type, \"notnull\", pk FROM pragma_table_info('\(name)') ORDER BY cid", []) {
                (name: $0.text(0), type: $0.text(1), isNotNull: $0.int(2) == 1, key: $0.int(3))
            }
            let numbersItself = sql.contains("AUTOINCREMENT")
            var table = Table(columns: [], primaryKey: [], indexes: [])
            for column in columns {
                // INTEGER PRIMARY KEY is the row's own number: never NULL, whatever the pragma says.
                let isRowNumber = column.key == 1 && column.type == "INTEGER" && numbersItself
                table.columns.append(
                    Table.Column(
                        name: column.name, type: types[column.type] ?? "unknown: \(column.type)",
                        isNullable: !column.isNotNull && !isRowNumber, isIdentity: isRowNumber))
            }
            table.primaryKey = columns.filter { $0.key > 0 }.sorted { $0.key < $1.key }.map(\.name)
            for (index, isUnique, origin) in try connection.rows(
                "SELECT name, \"unique\", origin FROM pragma_index_list('\(name)') WHERE origin <> 'pk'", [],
                { ($0.text(0), $0.int(1) == 1, $0.text(2)) })
            {
                let definition = try connection.rows("SELECT coalesce(sql, '') FROM sqlite_master WHERE name = '\(index)'", []) {
                    $0.text(0)
                }
                let condition = definition.first?.firstRange(of: " WHERE ").map { String(definition[0][$0.upperBound...]) } ?? ""
                table.indexes.insert(
                    Table.Index(
                        name: origin == "u" ? "" : index,
                        columns: try connection.rows("SELECT name FROM pragma_index_info('\(index)') ORDER BY seqno", []) { $0.text(0) },
                        isUnique: isUnique, condition: condition))
            }
            out[name] = table
        }
        return out
    }

    private static func postgresTables(_ connection: any SQLConnection) throws -> [String: Table] {
        var out: [String: Table] = [:]
        for name in try connection.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", [], { $0.text(0) }) {
            var table = Table(columns: [], primaryKey: [], indexes: [])
            table.columns = try connection.rows(
                """
                SELECT attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 1 ELSE 0 END, CASE attidentity WHEN '' THEN 0 ELSE 1 END
                FROM pg_attribute WHERE attrelid = '\(name)'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
                """, []
            ) { Table.Column(name: $0.text(0), type: $0.text(1), isNullable: $0.int(2) == 0, isIdentity: $0.int(3) == 1) }
            for (isPrimary, isConstraint, index) in try connection.rows(
                """
                SELECT CASE WHEN x.indisprimary THEN 1 ELSE 0 END,
                  (SELECT count(*) FROM pg_constraint c WHERE c.conindid = x.indexrelid), i.relname,
                  (SELECT string_agg(pg_get_indexdef(x.indexrelid, k, true), ',' ORDER BY k) FROM generate_series(1, x.indnkeyatts) k),
                  CASE WHEN x.indisunique THEN 1 ELSE 0 END, coalesce(pg_get_expr(x.indpred, x.indrelid), '')
                FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = '\(name)'::regclass
                """, [],
                { row in
                    let condition = row.text(5).filter { $0 != "(" && $0 != ")" }
                    let columns = row.text(3).split(separator: ",").map(String.init)
                    return (
                        row.int(0) == 1, row.int(1) > 0,
                        Table.Index(name: row.text(2), columns: columns, isUnique: row.int(4) == 1, condition: condition)
                    )
                })
            {
                if isPrimary {
                    table.primaryKey = index.columns
                } else {
                    var index = index
                    if isConstraint { index.name = "" }
                    table.indexes.insert(index)
                }
            }
            out[name] = table
        }
        return out
    }

    @Test("Both dialects end in the same schema: tables, columns, types, keys and indexes with their conditions")
    func sameSchema() throws {
        let (lite, great) = (try Ground(.sqlite).open(), try Ground(.postgresql).open())
        let (ours, theirs) = (try Self.sqliteTables(lite.connection), try Self.postgresTables(great.connection))
        #expect(ours.keys.sorted() == theirs.keys.sorted())
        for (name, table) in ours {
            let other = try #require(theirs[name])
            #expect(table.columns == other.columns, "\(name)")
            #expect(table.primaryKey == other.primaryKey && !table.primaryKey.isEmpty, "\(name)")
            #expect(table.indexes == other.indexes, "\(name)")
        }
        // The comparison sees what it should: a known table with everything that there is.
        let keys = try #require(ours["client_keys"])
        #expect(keys.columns.map(\.name).contains("models") && keys.columns.filter(\.isNullable).count == 3)
        #expect(keys.columns.first == Table.Column(name: "id", type: "bigint", isNullable: false, isIdentity: true))
        #expect(
            keys.indexes == [
                Table.Index(name: "", columns: ["digest"], isUnique: true, condition: ""),
                Table.Index(name: "client_keys_live_name", columns: ["name"], isUnique: true, condition: "revoked_at_ms IS NULL"),
            ])
    }
}
