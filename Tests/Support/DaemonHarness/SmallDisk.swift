import Foundation

#if canImport(Glibc)
    import Glibc
#endif

/// A small file system of its own, in memory; unmounted with the value. Making one takes the right to mount.
public final class SmallDisk: @unchecked Sendable {  // used by one test at a time
    public let path: String
    private var filler: String { path + "/filler" }

    /// Why there can be none; nil when there can.
    public static let obstacle: String? = {
        do {
            _ = try SmallDisk(megabytes: 1)
            return nil
        } catch { return "\(error)" }
    }()

    public init(megabytes: Int) throws {
        var template = Array("/tmp/clbd.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw HarnessError("no temporary directory") }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        guard mount("tmpfs", path, "tmpfs", 0, "size=\(megabytes)m,mode=0700") == 0 else {
            let code = errno
            rmdir(path)
            throw HarnessError("a tmpfs can't be mounted: \(String(cString: strerror(code)))")
        }
    }

    deinit {
        umount2(path, Int32(MNT_DETACH))
        rmdir(path)
    }

    /// Bytes that can still be written.
    public var free: Int {
        var space = statvfs()
        return statvfs(path, &space) == 0 ? Int(space.f_bavail) * Int(space.f_frsize) : -1
    }

    /// Writes a file until only `bytes` are left.
    public func fill(leaving bytes: Int = 0) throws {
        let fd = open(filler, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw HarnessError("making \(filler): \(String(cString: strerror(errno)))") }
        defer { close(fd) }
        let block = [UInt8](repeating: 0x20, count: 65_536)
        while free > bytes {
            guard write(fd, block, min(block.count, max(1, free - bytes))) > 0 else { break }
        }
        guard free <= max(4096, bytes) else { throw HarnessError("\(path) can't be filled: \(free) bytes are left") }
    }

    public func makeRoom() { unlink(filler) }

    /// Files must not be open for writing.
    public func setReadOnly(_ isReadOnly: Bool) throws {
        guard mount(nil, path, nil, UInt(MS_REMOUNT) | (isReadOnly ? UInt(MS_RDONLY) : 0), nil) == 0 else {
            throw HarnessError("remounting \(path): \(String(cString: strerror(errno)))")
        }
    }
}
