import FaultVFS
import Store
import Testing
import Vocabulary

@testable import SQLiteStore

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct CopyTests {
    @Test("Commits during a copy neither restart it, nor wait for it, nor get into it")
    func commitsMeanwhile() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append((0..<4_000).map(record))
        try store.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        let from = try Connection(scratch.database, .readOnly)
        let to = try Connection(scratch.path + "/data/copy.db", .readWrite)
        let pages = try #require(try from.int("PRAGMA page_count"))
        var (portions, last, slowest) = (0, 0, 0)
        try to.copy(from: from, pages: 10) { bytes, total throws(StoreError) in
            #expect(bytes > last && total == Int(pages) * 4096)
            (portions, last) = (portions + 1, bytes)
            let start = Clock.now
            #expect(try store.append([record(10_000 + portions)]) == 1)
            try store.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            slowest = max(slowest, Clock.now.milliseconds(since: start))
        }
        // The last portion may be empty: it only says that all is done.
        #expect((Int(pages) + 9) / 10...Int(pages) / 10 + 1 ~= portions && portions > 10)
        #expect(slowest < 5000)  // a writer that waited would wait for the end of the copy
        #expect(try to.int("SELECT count(*) FROM usage_records") == 4_000)
        #expect(try to.problems(isThorough: true, limit: 5) == [])
        #expect(try store.usage(last: 100_000).count == 4_000 + portions)
        print("copy: \(portions) portions, \(portions) commits meanwhile, the slowest with its checkpoint took \(slowest) ms")
    }

    @Test("A copy that a full disk ends leaves no file and says so, wherever the space ends")
    func full() throws {
        let scratch = FaultyScratch()
        let store = try scratch.scratch.open()
        _ = try store.append((0..<2_000).map(record))
        store.close()
        // Counted once, then each write in turn is where the space ends.
        scratch.arm(FAULT_FULL, at: .max)
        unlink(try Backup.make(database: scratch.scratch.database, now: now).path)
        let writes = scratch.calls
        #expect(writes > 50)
        for n in stride(from: 1, through: writes, by: 3) {
            scratch.arm(FAULT_FULL, at: n, isPersistent: true)
            let error = kind { () throws(StoreError) in _ = try Backup.make(database: scratch.scratch.database, now: now) }
            #expect(error?.kind == .full && error?.message.contains("no space left") == true, "write \(n): \(String(describing: error))")
            scratch.disarm()
            let left = names(in: scratch.scratch.path + "/data").filter { $0.contains("backup") || $0.contains("partial") }
            #expect(left == [], "write \(n)")
        }
        #expect(try Backup.make(database: scratch.scratch.database, now: now).problem == "")
    }

    @Test("A restore that a full disk ends changes nothing")
    func fullRestore() throws {
        let scratch = FaultyScratch()
        let store = try scratch.scratch.open()
        _ = try store.append((0..<500).map(record))
        let backup = try Backup.make(database: scratch.scratch.database, now: now).path
        _ = try store.append([record(500)])
        store.close()
        let before = names(in: scratch.scratch.path + "/data").sorted()
        scratch.arm(FAULT_FULL, at: 10, isPersistent: true)
        #expect(
            kind { () throws(StoreError) in _ = try scratch.scratch.restore(backup) }?.kind == .full)
        scratch.disarm()
        #expect(names(in: scratch.scratch.path + "/data").sorted() == before)
        let same = try scratch.scratch.open()
        #expect(try same.usage(last: 1000).count == 501)
        same.close()
    }

    @Test("A copy of more than a second tells how far it is, once a second", .enabled(if: getenv("CODEX_LB_BENCH") != nil))
    func progress() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        for b in 0..<1500 { _ = try store.append((0..<1000).map { record(b * 1000 + $0) }) }
        var lines: [String] = []
        let start = Clock.now
        _ = try Backup.make(database: scratch.database, now: now) { lines.append($0) }
        let ms = Clock.now.milliseconds(since: start)
        print("copy of \(Scratch.size(scratch.database) >> 20) MiB in \(ms) ms: \(lines)")
        #expect(lines.count <= ms / 1000)
        for line in lines { #expect(line.hasPrefix("copying ") && line.hasSuffix(" MiB")) }
    }
}

extension Scratch {
    static func size(_ path: String) -> Int {
        var info = stat()
        return stat(path, &info) == 0 ? Int(info.st_size) : 0
    }
}
