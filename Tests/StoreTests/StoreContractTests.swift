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

    @Test("Old records go in portions, the oldest first; those of the moment itself stay", arguments: Database.both)
    func prune(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        var records = (0..<10).map { record($0) }
        for i in records.indices {
            let time = WallTime(milliseconds: now.milliseconds + Int64(i) * 1000)
            records[i].time = time
            records[i].id = RecordID(time: time, random: (UInt64(i), UInt64(i)))
        }
        #expect(try store.append(records) == 10)
        let border = WallTime(milliseconds: now.milliseconds + 7_000)
        #expect(try store.pruneUsage(before: border, limit: 3) == 3)
        #expect(try store.usage(last: 20).map(\.record) == records[3...].reversed())
        #expect(try store.pruneUsage(before: border, limit: 5) == 4)
        #expect(try store.pruneUsage(before: border, limit: 5) == 0)
        #expect(try store.usage(last: 20).map(\.record) == records[7...].reversed())
        #expect(try store.pruneUsage(before: WallTime(milliseconds: -5), limit: 5) == 0)
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
        "An account's times rise, whatever the clock does; another upstream does not get the fields of the one before",
        arguments: Database.both)
    func accountTimes(_ kind: Database) throws {
        let store = try Ground(kind).open()
        var new = account("one")
        new.change.headers = [Account.Header("api-key", "of-the-first")]
        new.change.proxy = "http://user:pw@proxy:1"
        var last = try store.addAccount(new, now: now).changedAt
        let early = WallTime(milliseconds: now.milliseconds - 3_600_000)
        func rises(_ account: Account) -> Bool {
            defer { last = account.changedAt }
            return account.changedAt > last
        }
        for state in [Account.State.paused, .active] { #expect(rises(try store.setAccountState("one", state, now: early))) }
        var change = AccountChange()
        change.headers = [Account.Header("api-key", "new")]
        #expect(rises(try store.setAccount("one", change, now: early)))
        new.known = .replaced
        new.change = AccountChange()
        #expect(rises(try store.putAccount(new, now: early).account))
        let kept = try #require(try store.snapshot().accounts.first)
        #expect(kept.changedAt == last && kept.credentials.headers.map(\.value) == ["new"])
        new.baseURL = "https://api.openai.com.evil/v1"
        #expect(rises(try store.putAccount(new, now: early).account))
        let moved = try #require(try store.snapshot().accounts.first)
        #expect(moved.credentials.headers.isEmpty && moved.credentials.proxy?.host == "proxy")
        let removal = AccountRemoval(moved, .reauthRequired, reason: "x")
        #expect(try store.takeOut(removal, now: early))
        #expect(rises(try #require(try store.snapshot().accounts.first)))
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
}
