#if canImport(Glibc)
    internal import Glibc
#endif

/// `encryption.key`: 32 bytes in base64url on one line, readable by its owner alone.
public enum KeyFile {
    /// The key of the file; nil when there is no file.
    public static func load(path: String) throws(SealingError) -> SealingKey? {
        let fd = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        guard fd >= 0 else {
            if errno == ENOENT { return nil }
            throw SealingError(.keyFile, "encryption key \(path): \(String(cString: strerror(errno)))")
        }
        defer { close(fd) }
        var info = stat()
        guard fstat(fd, &info) == 0, info.st_mode & S_IFMT == S_IFREG else {
            throw SealingError(.keyFile, "encryption key \(path) is not a regular file")
        }
        guard info.st_mode & 0o077 == 0 else {
            let mode = String(info.st_mode & 0o777, radix: 8)
            throw SealingError(.keyFile, "encryption key \(path) can be read by others (mode \(mode)); run: chmod 600 \(path)")
        }
        var buffer = [UInt8](repeating: 0, count: 256)
        let n = read(fd, &buffer, buffer.count)
        let text = String(decoding: buffer[..<max(0, n)], as: UTF8.self)
        let line = text.split(whereSeparator: { $0.isWhitespace }).first ?? ""
        guard let bytes = Base64URL.decode(line), bytes.count == SealingKey.byteCount else {
            throw SealingError(.keyFile, "encryption key \(path) does not hold 32 bytes in base64url; put the right file back")
        }
        return SealingKey(bytes)
    }

    /// The key of the file, which is made when missing: complete and on disk before it has its name; of two makers one wins.
    public static func loadOrCreate(path: String) throws(SealingError) -> SealingKey {
        if let key = try load(path: path) { return key }
        func failed(_ what: String) -> SealingError {
            SealingError(.keyFile, "making the encryption key \(path): \(what): \(String(cString: strerror(errno)))")
        }
        let temporary = "\(path).\(getpid()).tmp"
        unlink(temporary)
        let fd = Glibc.open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw failed(temporary) }
        defer {
            close(fd)
            unlink(temporary)
        }
        let line = Array((SealingKey.random().text + "\n").utf8)
        guard write(fd, line, line.count) == line.count, fsync(fd) == 0 else { throw failed("writing") }
        guard link(temporary, path) == 0 || errno == EEXIST else { throw failed("linking") }
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        let dir = Glibc.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        if dir >= 0 {
            defer { close(dir) }
            guard fsync(dir) == 0 else { throw failed("syncing \(directory)") }
        }
        guard let key = try load(path: path) else { throw failed("reading it back") }
        return key
    }
}
