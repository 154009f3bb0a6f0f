import Store
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema

#if canImport(Glibc)
    import Glibc
#endif

extension StoreSession {
    /// The connection as what it is here.
    var sqlite: Connection { connection as! Connection }
}

/// A directory of its own, gone with the value.
final class Scratch {
    let path: String
    var database: String { path + "/data/store.db" }
    var key: String { path + "/data/encryption.key" }
    init(in folder: String = "/tmp") {
        var template = Array("\(folder)/codexlb-store-XXXXXX".utf8CString)
        path = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }
    deinit {
        for folder in ["/data", ""] {
            guard let directory = opendir(path + folder) else { continue }
            while let entry = readdir(directory) {
                let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
                if name != ".", name != ".." { unlink(path + folder + "/" + name) }
            }
            closedir(directory)
            rmdir(path + folder)
        }
    }
    /// A lock let go may live for a moment in a child that another test is just starting, between its fork and its exec.
    func open(revisions: [Revision] = Schema.revisions, wait: Int = 5_000) throws(StoreError) -> StoreSession {
        try SQLiteStore.open(path: database, keyPath: key, appVersion: "test", lockWaitMilliseconds: wait, now: now, revisions: revisions)
    }
    /// Carries out what is refused while somebody has a database's lock; for 5 s at most, for the reason above.
    static func unlocked<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T {
        for _ in 0..<1_000 {
            do throws(StoreError) { return try body() } catch {
                guard error.kind == .busy else { throw error }
                usleep(5_000)
            }
        }
        return try body()
    }
    @discardableResult
    func restore(_ backup: String) throws(StoreError) -> String? {
        try Self.unlocked { () throws(StoreError) in try Backup.restore(backup, database: database, now: now) }
    }
    static func recover(_ database: String, _ output: String) throws(StoreError) -> RecoveryReport {
        try unlocked { () throws(StoreError) in try Recover.run(database: database, output: output, progress: { _ in }, now: now) }
    }
    static func bytes(_ path: String) -> [UInt8] {
        let fd = Glibc.open(path, O_RDONLY)
        defer { close(fd) }
        var out: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        while case let n = read(fd, &buffer, buffer.count), n > 0 { out += buffer[..<n] }
        return out
    }
    static func write(_ path: String, _ bytes: [UInt8]) {
        let fd = Glibc.open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        defer { close(fd) }
        _ = Glibc.write(fd, bytes, bytes.count)
    }
}

@Test("The list of tables is what the revisions make")
func tablesAreListed() throws {
    let scratch = Scratch()
    let store = try scratch.open()
    defer { store.close() }
    let made = try store.sqlite.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name", []) {
        $0.text(0)
    }
    #expect(made == Schema.tables)
}

let now = WallTime(milliseconds: 1_800_000_000_000)

func record(_ n: Int) -> UsageRecord {
    var r = UsageRecord(
        id: RecordID(time: WallTime(milliseconds: now.milliseconds + Int64(n)), random: (UInt64(n), UInt64(n))),
        time: WallTime(milliseconds: now.milliseconds + Int64(n)), route: "/v1/responses", requestID: "req-\(n)")
    (r.modelAsked, r.modelServed, r.status, r.inputTokens, r.outputTokens) = ("gpt-5", "gpt-5-2026-01-01", 200, Int64(n), 7)
    (r.cachedInputTokens, r.reasoningTokens, r.costMicrodollars, r.firstByteMilliseconds) = (1, 2, 3, nil)
    (r.durationMilliseconds, r.attempts, r.requestBytes, r.responseBytes, r.transport) = (5, 1, 100, 200, .websocket)
    return r
}

func kind(_ body: () throws(StoreError) -> Void) -> StoreError? {
    do throws(StoreError) {
        try body()
        return nil
    } catch { return error }
}

let newAccount = NewAccount(
    name: "one", kind: .apiKey, baseURL: "https://api.openai.com/v1/", credentials: .init(bearer: "sk-secret-value"))

@Suite struct UsageTests {
    @Test("A record sent twice is stored once, within a batch and across batches and restarts")
    func idempotent() throws {
        let scratch = Scratch()
        var store = try scratch.open()
        #expect(try store.append([record(1), record(2), record(1)]) == 2)
        #expect(try store.append([record(2), record(3)]) == 1)
        store.close()
        store = try scratch.open()
        #expect(store.applied.isEmpty && store.revision == Schema.head.id)
        #expect(try store.append([record(1), record(2), record(3)]) == 0)
        #expect(try store.append([]) == 0)
        #expect(try store.usage(last: 10).count == 3)
    }

    @Test("The newest come first, with every field and the names of key and account, even of removed ones")
    func newestFirst() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        let account = try store.addAccount(newAccount, now: now)
        let (key, _) = try store.createClientKey("laptop", models: nil, expiresAt: nil, now: now)
        var named = record(50)
        (named.accountID, named.keyID) = (account.id, key.id)
        _ = try store.append((0..<50).shuffled().map { record($0) } + [named])
        _ = try store.removeAccount("one", now: now)
        _ = try store.revokeClientKey("laptop", now: now)
        let listed = try store.usage(last: 3)
        #expect(listed.map(\.record) == [named, record(49), record(48)])
        #expect(listed[0].account == "one" && listed[0].key == "laptop" && listed[1].account == "")
        let reader = try SQLiteStore.openReadOnly(path: scratch.database)
        #expect(try reader.usage(last: 100).count == 51)
        #expect(kind { () throws(StoreError) in _ = try reader.append([record(99)]) }?.kind == .readOnly)
        #expect(kind { () throws(StoreError) in _ = try reader.snapshot() }?.kind == .readOnly)
    }

    @Test("A reader that stays keeps the log: it is told from the limit on, since when, and no longer than it stays")
    func heldLog() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append([record(0)])
        #expect(LogState.of(store)?.isBeyondLimit == false)
        let reader = try Connection(scratch.database, .readOnly)
        try reader.execute("BEGIN; SELECT count(*) FROM usage_records")
        var (next, last) = (1, 0)
        /// Records of 256 KiB.
        func grow(while goes: (Int) -> Bool) throws {
            for _ in 0..<1_000 {
                var big = record(next)
                big.errorCode = String(repeating: "e", count: 256 * 1024)
                next += 1
                _ = try store.append([big])
                last = try #require(LogState.of(store)).bytes
                if !goes(last) { return }
            }
            Issue.record("the log stays at \(last) bytes")
        }
        try grow { $0 <= Limits.logBytesMax * 3 / 4 }
        #expect(LogState.of(store)?.heldSince != nil && LogState.of(store)?.isBeyondLimit == false)
        let since = LogState.of(store)?.heldSince
        try grow { $0 <= Limits.logBytesMax }
        #expect(LogState.of(store)?.isBeyondLimit == true && LogState.of(store)?.heldSince == since)
        // It goes, and nobody writes.
        try reader.execute("COMMIT")
        #expect(LogState.of(store)?.isBeyondLimit == false && LogState.of(store)?.heldSince == nil)
        _ = try store.append([record(next)])
        #expect(try #require(LogState.of(store)).bytes < 1 << 20)
        var info = stat()
        #expect(stat(scratch.database + "-wal", &info) == 0 && info.st_size <= Limits.logBytesMax, "the space is not given back")
        // Without a reader it stays below what it grows to between two checkpoints, and is held by nobody.
        try grow { _ in
            #expect(LogState.of(store)?.heldSince == nil)
            return next < 150
        }
        #expect(last < Limits.logBytesMax / 2)
        store.close()
    }

    @Test("A failed transaction leaves nothing and the session goes on")
    func rollback() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        #expect(
            kind { () throws(StoreError) in
                try store.sqlite.transaction { () throws(StoreError) in
                    try store.sqlite.run("INSERT INTO settings (key, value) VALUES ('a', 'b')")
                    try store.sqlite.run("INSERT INTO settings (key, value) VALUES ('a', 'c')")
                }
            }?.kind == .constraint)
        #expect(try store.append([record(1)]) == 1)
        #expect(try store.snapshot().settings.isEmpty)
    }

    @Test("Rows per second in batches of 200", .enabled(if: getenv("CODEX_LB_BENCH") != nil))
    func rate() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        let batches = (0..<500).map { b in (0..<200).map { record(b * 200 + $0) } }
        let start = Clock.now
        for batch in batches { _ = try store.append(batch) }
        let ms = Clock.now.milliseconds(since: start)
        print("append: \(batches.count * 200) rows in \(ms) ms: \(batches.count * 200 * 1000 / max(1, ms)) rows/s")
    }
}

@Suite struct AccountTests {
    @Test("A slot and a name are free again when their account is removed; an id never")
    func slots() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        var made: [Account] = []
        for name in ["one", "b", "c"] {
            var new = newAccount
            new.name = name
            made.append(try store.addAccount(new, now: now))
        }
        #expect(made.map(\.slot) == [0, 1, 2])
        #expect(made[0].baseURL == "https://api.openai.com/v1")
        #expect(kind { () throws(StoreError) in _ = try store.addAccount(newAccount, now: now) }?.kind == .constraint)
        _ = try store.removeAccount("b", now: now)
        _ = try store.removeAccount("c", now: now)
        var again = newAccount
        again.name = "c"
        let fourth = try store.addAccount(again, now: now)
        #expect(fourth.slot == 1 && fourth.id == 4)
        #expect(try store.accounts().map(\.name) == ["c", "one"])
        #expect(kind { () throws(StoreError) in _ = try store.removeAccount("b", now: now) }?.kind == .notFound)
    }

    @Test("Each change raises the snapshot's version; reading and failing do not")
    func versions() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        var last = try store.snapshot().version
        func rose(_ body: () throws -> Void) throws {
            try body()
            let version = try store.snapshot().version
            #expect(version == last + 1)
            last = version
        }
        try rose { _ = try store.addAccount(newAccount, now: now) }
        try rose { _ = try store.setAccountState("one", .paused, now: now) }
        try rose {
            _ = try store.createClientKey("k", models: ["gpt-5", "o3"], expiresAt: WallTime(milliseconds: now.milliseconds + 1), now: now)
        }
        let snapshot = try store.snapshot()
        #expect(snapshot.accounts.first?.state == .paused && snapshot.accounts.first?.credentials == newAccount.credentials)
        #expect(snapshot.clientKeys.first?.models == ["gpt-5", "o3"] && snapshot.pepper.count == 32)
        try rose { _ = try store.revokeClientKey("k", now: now) }
        try rose { _ = try store.removeAccount("one", now: now) }
        _ = kind { () throws(StoreError) in _ = try store.revokeClientKey("k", now: now) }
        _ = try store.append([record(1)])
        #expect(try store.snapshot().version == last && store.snapshot().clientKeys.map(\.revokedAt) == [now])
        #expect(try store.clientKeys().first?.revokedAt == now)
    }

    @Test("Credentials lie sealed in the files, and open in their own row only")
    func sealed() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.addAccount(newAccount, now: now)
        var other = newAccount
        (other.name, other.credentials) = ("two", .init(bearer: "another", refreshToken: "r", idToken: nil, chatGPTAccountID: ""))
        _ = try store.addAccount(other, now: now)
        let (key, plain) = try store.createClientKey("k", models: nil, expiresAt: nil, now: now)
        #expect(plain.hasPrefix("sk-clb-") && plain.utf8.count == 50 && plain.hasPrefix(key.prefix) && key.digest.count == 32)
        #expect(try store.snapshot().accounts.map(\.credentials) == [newAccount.credentials, other.credentials])
        for file in [scratch.database, scratch.database + "-wal"] {
            let text = String(decoding: Scratch.bytes(file), as: UTF8.self)
            #expect(!text.contains("sk-secret-value") && !text.contains(plain))
        }
        try store.sqlite.run(
            "UPDATE accounts SET credentials = (SELECT credentials FROM accounts WHERE name = 'two') WHERE name = 'one'")
        #expect(kind { () throws(StoreError) in _ = try store.snapshot() }?.kind == .corrupt)
    }

    @Test("What can't be a base URL, a key or a name is refused with a reason")
    func invalid() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        for (name, url, bearer) in [
            ("a b", "https://x", "k"), ("a", "ftp://x", "k"), ("a", "https://x", ""), ("a", "https://x", "k\r\nX: y"),
            ("-a", "https://x", "k"),
        ] {
            let new = NewAccount(name: name, kind: .apiKey, baseURL: url, credentials: .init(bearer: bearer))
            let error = kind { () throws(StoreError) in _ = try store.addAccount(new, now: now) }
            #expect(error?.kind == .invalid)
            #expect(error?.message.contains("X: y") == false)
        }
        #expect(
            kind { () throws(StoreError) in _ = try store.createClientKey("k", models: ["a\"b"], expiresAt: nil, now: now) }?.kind
                == .invalid)
    }
}

@Suite struct OpeningTests {
    @Test("The Python codex-lb's database is refused by name and stays as it is, byte for byte", arguments: ["DELETE", "WAL"])
    func foreign(mode: String) throws {
        let scratch = Scratch()
        mkdir(scratch.path + "/data", 0o700)
        do {
            let python = try Connection(scratch.database, .readWrite)
            try python.execute("PRAGMA journal_mode = \(mode)")
            try python.execute(
                "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('abc123'); CREATE TABLE accounts (id TEXT)"
            )
        }
        let before = Scratch.bytes(scratch.database)
        let writing = kind { () throws(StoreError) in _ = try scratch.open() }
        let reading = kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: scratch.database) }
        for error in [writing, reading] {
            #expect(error?.kind == .foreign)
            #expect(error?.message.contains("Python codex-lb") == true && error?.message.contains("--data-dir") == true)
        }
        #expect(Scratch.bytes(scratch.database) == before && !before.isEmpty)
        for suffix in ["-wal", "-shm", "-journal", ".lock"] { #expect(access(scratch.database + suffix, F_OK) != 0) }
        #expect(access(scratch.key, F_OK) != 0)
    }

    @Test("A foreign database whose tables are still in its log is refused too")
    func foreignInLog() throws {
        let scratch = Scratch()
        mkdir(scratch.path + "/data", 0o700)
        let other = try Connection(scratch.database, .readWrite)
        try other.execute("PRAGMA journal_mode = WAL")
        let before = Scratch.bytes(scratch.database)
        try other.execute("CREATE TABLE theirs (id TEXT)")
        #expect(kind { () throws(StoreError) in _ = try scratch.open() }?.kind == .foreign)
        #expect(Scratch.bytes(scratch.database) == before)
        #expect(try other.int("SELECT count(*) FROM theirs") == 0)
    }

    @Test("A file that is no database is refused and left alone")
    func notADatabase() {
        let scratch = Scratch()
        mkdir(scratch.path + "/data", 0o700)
        let text = [UInt8](repeating: UInt8(ascii: "x"), count: 5000)
        Scratch.write(scratch.database, text)
        #expect(kind { () throws(StoreError) in _ = try scratch.open() }?.kind == .foreign)
        #expect(Scratch.bytes(scratch.database) == text)
    }

    @Test("Another or a missing key file stops the start with a line that says so, and no key is made")
    func wrongKey() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.addAccount(newAccount, now: now)
        store.close()
        let right = Scratch.bytes(scratch.key)
        unlink(scratch.key)
        let missing = kind { () throws(StoreError) in _ = try scratch.open() }
        #expect(missing?.kind == .wrongKey && missing?.message.contains("is missing") == true)
        #expect(access(scratch.key, F_OK) != 0)
        Scratch.write(scratch.key, Array((String(repeating: "A", count: 43) + "\n").utf8))
        let wrong = kind { () throws(StoreError) in _ = try scratch.open() }
        #expect(wrong?.kind == .wrongKey && wrong?.message.contains("is not the encryption key") == true)
        Scratch.write(scratch.key, right)
        #expect(try scratch.open().snapshot().accounts.count == 1)
    }

    @Test("A newer revision, a changed checksum and an older schema are each told apart")
    func revisions() throws {
        let scratch = Scratch()
        var store = try scratch.open()
        #expect(store.applied == Schema.revisions.map(\.id))
        store.close()
        let two = Revision(
            id: Schema.name(Schema.head.number + 1), name: "more", statements: [.sqlite: ["CREATE TABLE more (id INTEGER) STRICT"]])
        let broken = Revision(
            id: Schema.name(Schema.head.number + 1), name: "broken",
            statements: [.sqlite: ["CREATE TABLE half (id INTEGER) STRICT", "CREATE NONSENSE"]])
        #expect(kind { () throws(StoreError) in _ = try scratch.open(revisions: Schema.revisions + [broken]) } != nil)
        store = try scratch.open(revisions: Schema.revisions + [two])
        #expect(store.applied == [Schema.name(Schema.head.number + 1)])
        #expect(try store.sqlite.int("SELECT count(*) FROM sqlite_master WHERE name = 'half'") == 0)
        #expect(try store.sqlite.int("PRAGMA user_version") == Int64(Schema.head.number + 1))
        store.close()
        let newer = kind { () throws(StoreError) in _ = try scratch.open() }
        #expect(newer?.kind == .newer && newer?.message.contains(Schema.name(Schema.head.number + 1)) == true)

        let other = Scratch()
        store = try other.open()
        try store.sqlite.run("UPDATE revision_history SET checksum = 'x'")
        store.close()
        #expect(kind { () throws(StoreError) in _ = try other.open() }?.kind == .changed)
        #expect(kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: other.database) }?.kind == .changed)
    }

    @Test("Only one opener writes; the other is told whose process it is")
    func lock() throws {
        let scratch = Scratch()
        var store: StoreSession? = try scratch.open()
        let error = kind { () throws(StoreError) in _ = try scratch.open(wait: 30) }
        #expect(error?.kind == .busy && error?.message.contains("process \(getpid())") == true)
        store?.close()
        store = nil
        _ = try scratch.open()
    }

    @Test("The files are their owner's alone, the database carries our mark and is durable at each commit")
    func settings() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append([record(1)])
        for file in [scratch.database, scratch.database + "-wal", scratch.key, scratch.database + ".lock"] {
            var info = stat()
            #expect(stat(file, &info) == 0 && info.st_mode & 0o077 == 0)
        }
        #expect(try store.sqlite.int("PRAGMA application_id") == 0x434C_4231)
        #expect(try store.sqlite.int("PRAGMA synchronous") == 2)
        #expect(try store.sqlite.int("PRAGMA foreign_keys") == 1)
        #expect(try store.sqlite.int("PRAGMA trusted_schema") == 0)
        try store.sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)")
    }

    @Test("Without a database there is nothing to read, and reading makes none")
    func missing() {
        let scratch = Scratch()
        #expect(kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: scratch.database) }?.kind == .missing)
        #expect(access(scratch.database, F_OK) != 0)
    }
}
