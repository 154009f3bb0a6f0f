internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

/// A mapped, shared memory file. The mapping lives as long as the process: what is built on it holds plain pointers.
public struct SharedMemory: @unchecked Sendable {  // access rules belong to Journal and Scoreboard, which use atomics
    public let descriptor: Int32
    public let bytes: UnsafeMutableRawBufferPointer

    /// Makes one of `count` zero bytes.
    public static func create(_ name: String, count: Int) throws(SystemError) -> SharedMemory {
        let fd = codexlb_memfd(name, count)
        if fd < 0 { throw SystemError(-fd, "memfd_create \(name)") }
        return try SharedMemory(descriptor: fd, count: count)
    }

    /// Maps an inherited one; its size must be `count`.
    public init(descriptor: Int32, count: Int) throws(SystemError) {
        var info = stat()
        guard fstat(descriptor, &info) == 0 else { throw SystemError(errno, "shared memory of descriptor \(descriptor)") }
        guard Int(info.st_size) == count else {
            throw SystemError(EINVAL, "shared memory has \(info.st_size) bytes, this build expects \(count)")
        }
        guard let base = mmap(nil, count, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0), base != MAP_FAILED else {
            throw SystemError(errno, "mapping shared memory")
        }
        self.descriptor = descriptor
        bytes = UnsafeMutableRawBufferPointer(start: base, count: count)
    }

    /// CRC-32C of bytes, as the journal writes it beside each record.
    static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 { codexlb_crc32c(bytes.baseAddress, bytes.count) }
}

/// A few bytes for another program, in a file that only its descriptor leads to.
public enum MemoryFile {
    public static func make(_ name: String, _ bytes: [UInt8]) throws(SystemError) -> Int32 {
        let fd = codexlb_memfd(name, bytes.count)
        if fd < 0 { throw SystemError(-fd, "memfd_create \(name)") }
        guard bytes.withUnsafeBytes({ pwrite(fd, $0.baseAddress, $0.count, 0) }) == bytes.count else {
            let code = errno
            close(fd)
            throw SystemError(code, "writing \(name)")
        }
        return fd
    }

    /// All of it.
    public static func read(_ fd: Int32) throws(SystemError) -> [UInt8] {
        var info = stat()
        guard fstat(fd, &info) == 0 else { throw SystemError(errno, "memory file of descriptor \(fd)") }
        var bytes = [UInt8](repeating: 0, count: Int(info.st_size))
        guard pread(fd, &bytes, bytes.count, 0) == bytes.count else { throw SystemError(errno, "memory file of descriptor \(fd)") }
        return bytes
    }
}
