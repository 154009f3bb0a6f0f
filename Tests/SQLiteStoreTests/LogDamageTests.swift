import Foundation
import Store
import Testing
import Vocabulary

@testable import SQLiteStore

/// Goal: what was acknowledged and stands in the log only is never thrown away in silence.
@Suite struct LogDamageTests {
    /// A database as a crash leaves it: 1,000 rows in ten transactions, all of them in the log.
    private struct Crashed {
        let scratch = Scratch()
        var path: String { scratch.path + "/data/crashed.db" }
        var log: String { path + "-wal" }
        private let frameBytes = 24 + 4096

        init() throws {
            let store = try scratch.open()
            try store.sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            for start in stride(from: 0, to: 1000, by: 100) { _ = try store.append((start..<start + 100).map { record($0) }) }
            for suffix in ["", "-wal"] { try FileManager.default.copyItem(atPath: scratch.database + suffix, toPath: path + suffix) }
            store.close()
        }

        var frames: Int { (bytes.count - 32) / frameBytes }
        var bytes: [UInt8] { [UInt8](FileManager.default.contents(atPath: log) ?? Data()) }

        func change(_ body: (inout [UInt8]) -> Void) throws {
            var bytes = bytes
            body(&bytes)
            try Data(bytes).write(to: URL(fileURLWithPath: log))
        }
        func at(frame: Int) -> Int { 32 + (frame - 1) * frameBytes }

        /// The lock may live for a moment in a child of another test (`Scratch.open`).
        func open(_ progress: @escaping (String) -> Void = { _ in }) throws(StoreError) -> StoreSession {
            try SQLiteStore.open(
                path: path, keyPath: scratch.path + "/data/encryption.key", appVersion: "test", lockWaitMilliseconds: 5_000, now: now,
                upgrade: SQLiteStore.Upgrade(progress: progress))
        }
        func recovered() throws -> RecoveryReport {
            try Scratch.recover(path, scratch.path + "/data/saved.db")
        }
    }

    @Test("A sound log, one of an older generation, and one that a crash has torn are no damage")
    func sound() throws {
        let crashed = try Crashed()
        #expect(crashed.frames > 10)
        #expect(try LogDamage.find(crashed.path) == nil)
        try crashed.change { $0.removeLast(1000) }
        #expect(try LogDamage.find(crashed.path) == nil)
        let store = try crashed.open()
        #expect(try (store.sqlite.int("SELECT count(*) FROM usage_records") ?? 0) >= 900)
        // The log begins anew in front of what it held.
        try store.sqlite.execute("PRAGMA wal_checkpoint(RESTART)")
        _ = try store.append([record(5000)])
        #expect(try LogDamage.find(crashed.path) == nil)
        store.close()
    }

    @Test(
        "Some bytes in its middle: check says so, a start refuses and changes nothing, recover saves the rest and does not call it complete"
    )
    func hit() throws {
        let crashed = try Crashed()
        let place = crashed.at(frame: crashed.frames / 2) + 500
        try crashed.change { for i in 0..<300 { $0[place + i] ^= 0x5A } }
        let before = (crashed.bytes, FileManager.default.contents(atPath: crashed.path))
        #expect(try DatabaseCheck.run(path: crashed.path).problems.contains { DatabaseCheck.isDamage($0) && $0.contains("-wal") })
        do {
            _ = try crashed.open()
            Issue.record("it opened")
        } catch { #expect(error.kind == .corrupt && error.message.contains("db recover --replace"), "\(error)") }
        #expect((crashed.bytes, FileManager.default.contents(atPath: crashed.path)) == before)
        let report = try crashed.recovered()
        #expect(!report.isComplete)
        #expect(report.tables.first { $0.name == "usage_records" }?.saved ?? 0 > 900)
    }

    @Test("The salts of a frame in its middle, which makes it look like one of an older generation")
    func salts() throws {
        let crashed = try Crashed()
        let place = crashed.at(frame: crashed.frames / 2)
        try crashed.change { for i in 8..<16 { $0[place + i] ^= 0xFF } }
        #expect(try LogDamage.find(crashed.path)?.isCertain == true)
    }

    @Test("Zeros up to its end, as a power cut may leave them: database and log are copied before a start goes on")
    func zeros() throws {
        let crashed = try Crashed()
        let place = crashed.at(frame: crashed.frames / 2)
        try crashed.change { for i in place..<$0.count { $0[i] = 0 } }
        let log = crashed.bytes
        #expect(try DatabaseCheck.run(path: crashed.path).problems.contains { $0.contains("zeros") })
        #expect(try !crashed.recovered().isComplete)
        var told: [String] = []
        let store = try crashed.open { told.append($0) }
        #expect((try store.sqlite.int("SELECT count(*) FROM usage_records") ?? 0) > 100)
        store.close()
        let aside = try #require(told.first { $0.contains("damaged-log") })
        let kept = try FileManager.default.contentsOfDirectory(atPath: crashed.scratch.path + "/data").filter { $0.contains("damaged-log") }
        #expect(kept.count == 2 && kept.allSatisfy { aside.contains($0.replacingOccurrences(of: "-wal", with: "")) })
        let copied = kept.first { $0.hasSuffix("-wal") }.flatMap {
            FileManager.default.contents(atPath: crashed.scratch.path + "/data/" + $0)
        }
        #expect(copied.map { [UInt8]($0) } == log)
        // Once is enough.
        told = []
        try crashed.open { told.append($0) }.close()
        #expect(!told.contains { $0.contains("damaged-log") })
    }

    @Test("A log that is written while it is read is no damage, however the two meet")
    func hotWriter() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        let ended = DispatchSemaphore(value: 0)
        let path = scratch.database
        Thread.detachNewThread {
            for start in stride(from: 0, to: 40_000, by: 20) {
                do { _ = try store.append((start..<start + 20).map { record($0) }) } catch { Issue.record("\(error)") }
            }
            ended.signal()
        }
        var looks = 0
        while ended.wait(timeout: .now()) == .timedOut {
            if let found = try LogDamage.find(path) { Issue.record("\(found)") }
            looks += 1
        }
        #expect(looks >= 1)
        store.close()
    }

    @Test("All of it zeros: nothing is called complete")
    func allZeros() throws {
        let crashed = try Crashed()
        try crashed.change { for i in 32..<$0.count { $0[i] = 0 } }
        #expect(try DatabaseCheck.run(path: crashed.path).problems.contains { $0.contains("zeros") })
        #expect(try !crashed.recovered().isComplete)
    }
}
