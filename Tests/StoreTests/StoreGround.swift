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

let now = WallTime(milliseconds: 1_800_000_000_000)

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
final class Ground {
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

func failure(_ body: () throws(StoreError) -> Void) -> StoreError? {
    do throws(StoreError) {
        try body()
        return nil
    } catch { return error }
}

func id(_ n: Int) -> RecordID {
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

func rowsOf(_ records: [UsageRecord]) throws -> JournalRows {
    var rows = JournalRows()
    for record in records { try rows.append(journal: record.journalBytes.span.bytes) }
    return rows
}

func account(_ name: String) -> NewAccount {
    NewAccount(
        name: name, kind: .apiKey, baseURL: "https://api.openai.com/v1/",
        credentials: .init(bearer: "sk-secret-\(name)", refreshToken: "refresh-secret-\(name)", idToken: nil, chatGPTAccountID: ""))
}

extension StoreSession {
    func count(_ table: String) throws(StoreError) -> Int64 {
        try connection.rows("SELECT count(*) FROM \(table)", []) { $0.int(0) }.first ?? -1
    }
}
