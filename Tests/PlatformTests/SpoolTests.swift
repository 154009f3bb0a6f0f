import Testing
import Vocabulary

@testable import Platform

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct SpoolTests {
    private let now = WallTime(milliseconds: 1_800_000_000_000)

    private func folder() -> String {
        var template = Array("/tmp/codexlb-spool-XXXXXX".utf8CString)
        return template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    }

    private func journal(_ records: [[UInt8]], acknowledging count: Int = 0) throws -> Journal {
        let journal = Journal(try SharedMemory.create("test", count: Journal.memoryBytes(capacity: 64 * 1024)))
        for record in records { #expect(journal.append(record)) }
        let (_, end, _) = journal.read(from: journal.tail, count: count)
        journal.acknowledge(through: end)
        return journal
    }

    @Test("What no store acknowledged comes back whole; what one did does not; empty journals leave no file")
    func roundTrip() throws {
        let directory = folder()
        defer { rmdir(directory) }
        let records = (0..<50).map { [UInt8](repeating: UInt8($0), count: $0 * 7) }
        let empty = try Spool.save([journal([])], directories: [directory], now: now)
        #expect(empty == nil && Spool.files(directories: [directory]).isEmpty)
        let saved = try #require(
            try Spool.save([journal(records, acknowledging: 10), journal([[1, 2, 3]])], directories: [directory], now: now))
        #expect(saved.count == 41)
        #expect(Spool.files(directories: [directory]) == [saved.path])
        let (loaded, isWhole) = try Spool.load(saved.path)
        #expect(isWhole && loaded == Array(records[10...]) + [[1, 2, 3]])
        var info = stat()
        #expect(stat(saved.path, &info) == 0 && info.st_mode & 0o777 == 0o600)
        unlink(saved.path)
    }

    @Test("A torn file gives what is before the tear")
    func torn() throws {
        let directory = folder()
        defer { rmdir(directory) }
        let saved = try #require(try Spool.save([journal([[1], [2, 2], [3, 3, 3]])], directories: [directory], now: now))
        #expect(truncate(saved.path, 9 + 10 + 8) == 0)
        let (loaded, isWhole) = try Spool.load(saved.path)
        #expect(loaded == [[1], [2, 2]] && !isWhole)
        unlink(saved.path)
    }
}
