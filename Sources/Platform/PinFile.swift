internal import CPlatform
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// The pins of an instance in a file, so that its next start knows whose conversations are whose. What is lost of it costs a cached prompt.
///
/// Eight bytes that name the layout, then for each pin its key (u64), account (u32) and the second of the Unix time at which it is forgotten
/// (u32), then the CRC-32C of all that; little-endian.
public enum PinFile {
    private static let magic = Array("clb-pin1".utf8)

    /// Replaces the file; how many pins it holds now.
    public static func save(_ pins: PinTable, to path: String, now: Instant, wall: WallTime) throws(SystemError) -> Int {
        var bytes = magic
        var count = 0
        pins.forEach(now: now) { key, account, seconds in
            withUnsafeBytes(of: key.littleEndian) { bytes += $0 }
            withUnsafeBytes(of: UInt32(truncatingIfNeeded: account).littleEndian) { bytes += $0 }
            withUnsafeBytes(of: UInt32(clamping: wall.seconds + Int64(seconds)).littleEndian) { bytes += $0 }
            count += 1
        }
        let sum = bytes.withUnsafeBytes { SharedMemory.checksum($0) }
        withUnsafeBytes(of: sum.littleEndian) { bytes += $0 }
        let new = path + ".new"
        // Never to wait for the other end of a pipe.
        let fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0o600)
        guard fd >= 0 else { throw SystemError(errno, "making \(new)") }
        codexlb_adopt_owner(new, path)
        errno = 0
        var code: Int32 = write(fd, bytes, bytes.count) == bytes.count ? 0 : errno == 0 ? ENOSPC : errno
        if close(fd) != 0, code == 0 { code = errno }
        if code == 0, rename(new, path) != 0 { code = errno }
        guard code == 0 else {
            unlink(new)
            throw SystemError(code, "writing \(path)")
        }
        return count
    }

    /// How many pins it gave; nil: there is no file. One that is cut or damaged gives none.
    public static func load(_ path: String, into pins: PinTable, now: Instant, wall: WallTime) throws(SystemError) -> Int? {
        let fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
        guard fd >= 0 else {
            if errno == ENOENT { return nil }
            throw SystemError(errno, "reading \(path)")
        }
        defer { close(fd) }
        var info = stat()
        guard fstat(fd, &info) == 0, info.st_mode & S_IFMT == S_IFREG else { throw SystemError(EBADMSG, "reading \(path)") }
        var bytes = [UInt8](repeating: 0, count: magic.count + Limits.pinsMax * 16 + 4)
        let count = read(fd, &bytes, bytes.count)
        guard count >= 0 else { throw SystemError(errno, "reading \(path)") }
        let body = count - 4
        guard body >= magic.count, (body - magic.count) % 16 == 0, Array(bytes[..<magic.count]) == magic,
            number(bytes, body, 4) == UInt64(bytes[..<body].withUnsafeBytes { SharedMemory.checksum($0) })
        else { throw SystemError(EBADMSG, "reading \(path)") }
        var pinned = 0
        for place in stride(from: magic.count, to: body, by: 16) {
            let (key, account) = (number(bytes, place, 8), Int64(number(bytes, place + 8, 4)))
            // A clock that was put back must not keep a pin for longer than a new one.
            let seconds = min(Int64(number(bytes, place + 12, 4)) - wall.seconds, Int64(Limits.pinSeconds))
            guard seconds > 0 else { continue }
            pins.pin(key, to: account, seconds: Int(seconds), now: now)
            pinned += 1
        }
        return pinned
    }

    private static func number(_ bytes: [UInt8], _ place: Int, _ count: Int) -> UInt64 {
        (0..<count).reversed().reduce(0) { $0 << 8 | UInt64(bytes[place + $1]) }
    }
}
