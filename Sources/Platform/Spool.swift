internal import CPlatform
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// Usage records that an instance could not store before its end, in files that its next start stores: `journal-YYYYMMDD-HHMMSS-PID.spool`
/// in the data directory, or where that has no room in the runtime directory, mode 0600. Each is a sequence of [u32 count][u32 CRC-32C][bytes], little-endian.
///
/// Records have ids: a file that is stored twice is stored once.
public enum Spool {
    /// What a file holds.
    public enum Kind: String, CaseIterable, Sendable {
        /// Records that wait for a store: the next start, or the running server, stores them.
        case waiting = "journal-"
        /// Records that the store refuses for what they are: they stay until an operator has them tried again.
        case refused = "refused-"
    }
    private static let suffix = ".spool"
    /// Room for such a file on a disk that has become full: given up for it.
    private static func reserve(_ directory: String) -> String { directory + "/spool.reserve" }

    /// Keeps `Limits.spoolReservedBytes` of the disk for a stop on a full one, or an eighth of what is free if that is less.
    public static func reserveRoom(in directory: String) throws(SystemError) {
        let path = reserve(directory)
        var space = statvfs()
        guard access(path, F_OK) != 0, statvfs(directory, &space) == 0 else { return }
        let bytes = min(Limits.spoolReservedBytes, Int(space.f_bavail) * Int(space.f_frsize) / 8)
        guard bytes > 0 else { return }
        let fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw SystemError(errno, "making \(path)") }
        defer { close(fd) }
        codexlb_adopt_owner(path, directory + "/.")
        let code = posix_fallocate(fd, 0, off_t(bytes))
        guard code == 0 else {
            unlink(path)
            throw SystemError(code, "keeping \(bytes) bytes as \(path)")
        }
    }

    /// Writes what the journals still hold into one file, complete and on disk before it has its name: in the first of the directories that
    /// takes it, with the room kept there if it must be. Nil when they hold nothing.
    public static func save(
        _ journals: [Journal], directories: [String], now: WallTime
    ) throws(SystemError) -> (path: String, count: Int)? {
        var out: [UInt8] = []
        var count = 0
        for journal in journals {
            var at = journal.tail
            while at < journal.head {
                let (records, end, damaged) = journal.read(from: at, count: 1000)
                for record in records {
                    append(record, to: &out)
                    count += 1
                }
                if damaged || end == at { break }
                at = end
            }
        }
        guard count > 0 else { return nil }
        return (try write(out, count, .waiting, directories, now), count)
    }

    /// Writes records that a store refuses into a file of their own.
    public static func keep(refused records: [[UInt8]], directories: [String], now: WallTime) throws(SystemError) -> String {
        var out: [UInt8] = []
        for record in records { append(record, to: &out) }
        return try write(out, records.count, .refused, directories, now)
    }

    private static func append(_ record: [UInt8], to out: inout [UInt8]) {
        withUnsafeBytes(of: UInt32(record.count).littleEndian) { out += $0 }
        let sum = record.withUnsafeBytes { SharedMemory.checksum($0) }
        withUnsafeBytes(of: sum.littleEndian) { out += $0 }
        out += record
    }

    /// Has refused records tried again: as those that wait.
    public static func retry(_ path: String) throws(SystemError) -> String {
        guard let slash = path.lastIndex(of: "/") else { throw SystemError(EINVAL, "\(path) is no file of records") }
        let name = path[path.index(after: slash)...]
        guard name.hasPrefix(Kind.refused.rawValue) else { throw SystemError(EINVAL, "\(path) holds no refused records") }
        let target = path[...slash] + Kind.waiting.rawValue + name.dropFirst(Kind.refused.rawValue.count)
        guard rename(path, String(target)) == 0 else { throw SystemError(errno, "renaming \(path)") }
        return String(target)
    }

    private static func write(
        _ out: [UInt8], _ count: Int, _ kind: Kind, _ directories: [String], _ now: WallTime
    ) throws(SystemError) -> String {
        var problem = SystemError(ENOENT, "no directory to keep records in")
        for directory in directories {
            for _ in 0..<2 {
                do throws(SystemError) { return try write(out, kind, directory, now) } catch {
                    problem = error
                    guard [ENOSPC, EDQUOT].contains(error.code), unlink(reserve(directory)) == 0 else { break }
                }
            }
        }
        throw SystemError(problem.code, "keeping \(count) records: \(problem.what)")
    }

    private static func write(_ out: [UInt8], _ kind: Kind, _ directory: String, _ now: WallTime) throws(SystemError) -> String {
        let digits = now.rfc3339.filter { $0.isNumber }
        let stem = "\(directory)/\(kind.rawValue)\(digits.prefix(8))-\(digits.dropFirst(8).prefix(6))-\(getpid())"
        var (path, number) = (stem + suffix, 1)
        while access(path, F_OK) == 0 { (path, number) = ("\(stem)-\(number)\(suffix)", number + 1) }
        let partial = path + ".partial"
        let fd = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw SystemError(errno, "making \(partial)") }
        defer { close(fd) }
        codexlb_adopt_owner(partial, directory + "/.")
        var written = 0
        while written < out.count {
            let n = out.withUnsafeBytes { Glibc.write(fd, $0.baseAddress! + written, out.count - written) }
            guard n > 0 else {
                let code = errno
                unlink(partial)
                throw SystemError(code, "writing \(partial)")
            }
            written += n
        }
        guard fsync(fd) == 0, rename(partial, path) == 0 else {
            let code = errno
            unlink(partial)
            throw SystemError(code, "writing \(path)")
        }
        let folder = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if folder >= 0 {
            fsync(folder)
            close(folder)
        }
        return path
    }

    /// Spool files, oldest first.
    public static func files(directories: [String], _ kind: Kind = .waiting) -> [String] {
        directories.flatMap { files(directory: $0, kind.rawValue) }.sorted {
            $0.split(separator: "/").last ?? "" < $1.split(separator: "/").last ?? ""
        }
    }

    private static func files(directory: String, _ prefix: String) -> [String] {
        guard let folder = opendir(directory) else { return [] }
        defer { closedir(folder) }
        var out: [String] = []
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name.hasPrefix(prefix), name.hasSuffix(suffix) { out.append(directory + "/" + name) }
        }
        return out
    }

    /// The records of a file, as they stood in the journals, and whether it is whole to its end.
    public static func load(_ path: String) throws(SystemError) -> (records: [[UInt8]], isWhole: Bool) {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { throw SystemError(errno, "opening \(path)") }
        defer { close(fd) }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1 << 20)
        while true {
            let n = read(fd, &buffer, buffer.count)
            guard n >= 0 else { throw SystemError(errno, "reading \(path)") }
            if n == 0 { break }
            bytes += buffer[..<n]
        }
        var records: [[UInt8]] = []
        var at = 0
        func number(_ offset: Int) -> UInt32 { (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << UInt32(8 * $1) } }
        while at + 8 <= bytes.count {
            let count = Int(number(at))
            guard at + 8 + count <= bytes.count else { return (records, false) }
            let record = Array(bytes[at + 8..<at + 8 + count])
            guard record.withUnsafeBytes({ SharedMemory.checksum($0) }) == number(at + 4) else { return (records, false) }
            records.append(record)
            at += 8 + count
        }
        return (records, at == bytes.count)
    }
}
