import Bytes
internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

/// `encryption.key`: 32 bytes in base64url on one line, readable by its owner alone.
///
/// A rotation makes `encryption.key.new` beside it, which takes its place once the store is sealed with it; the key before stays as
/// `encryption.key.old.FINGERPRINT`.
public enum KeyFile {
    /// Where the key of a rotation is until it takes the place of the one at `path`.
    public static func next(_ path: String) -> String { path + ".new" }
    /// Where a rotation leaves the key of this fingerprint.
    public static func old(_ path: String, _ fingerprint: String) -> String { "\(path).old.\(fingerprint)" }

    /// The key of the file; nil when there is no file.
    public static func load(path: String) throws(SealingError) -> SealingKey? {
        let fd = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)  // a pipe that nobody writes to is told, not waited for
        guard fd >= 0 else {
            if errno == ENOENT { return nil }
            throw SealingError(.keyFile, "encryption key \(path): \(String(cString: strerror(errno)))")
        }
        defer { close(fd) }
        var info = stat()
        guard fstat(fd, &info) == 0, info.st_mode & S_IFMT == S_IFREG else {
            throw SealingError(.keyFile, "encryption key \(path) is not a regular file")
        }
        // systemd gives a credential to the service's user by an access list, whose mask stands where the group's rights would.
        let isCredential = getenv("CREDENTIALS_DIRECTORY").map { path.hasPrefix(String(cString: $0) + "/") } ?? false
        guard info.st_mode & (isCredential ? 0o037 : 0o077) == 0 else {
            let mode = String(info.st_mode & 0o777, radix: 8)
            throw SealingError(.keyFile, "encryption key \(path) can be read by others (mode \(mode)); run: chmod 600 \(path)")
        }
        var buffer = [UInt8](repeating: 0, count: 256)
        let n = read(fd, &buffer, buffer.count)
        let text = String(decoding: buffer[..<max(0, n)], as: UTF8.self)
        let line = text.split(whereSeparator: { $0.isWhitespace }).first ?? ""
        guard let bytes = Base64.url.decode(line), bytes.count == SealingKey.byteCount else {
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
        codexlb_adopt_owner(temporary, path)
        let line = Array((SealingKey.random().text + "\n").utf8)
        guard write(fd, line, line.count) == line.count, fsync(fd) == 0 else { throw failed("writing") }
        guard link(temporary, path) == 0 || errno == EEXIST else { throw failed("linking") }
        try syncDirectory(of: path)
        guard let key = try load(path: path) else { throw failed("reading it back") }
        return key
    }

    /// Gives the key at `path` its name as an old one too, so that no moment is without it. Whoever did it already is as good.
    public static func keepOld(_ path: String) throws(SealingError) -> String? {
        guard let key = try load(path: path) else { return nil }
        let kept = old(path, key.fingerprint)
        guard link(path, kept) == 0 || errno == EEXIST else {
            throw SealingError(.keyFile, "keeping the encryption key as \(kept): \(String(cString: strerror(errno)))")
        }
        try syncDirectory(of: path)
        return kept
    }

    /// Puts the key of a rotation in its place. Whoever did it already is as good.
    public static func takeNext(_ path: String) throws(SealingError) {
        guard rename(next(path), path) == 0 || errno == ENOENT else {
            throw SealingError(.keyFile, "renaming \(next(path)) to \(path): \(String(cString: strerror(errno)))")
        }
        try syncDirectory(of: path)
    }

    /// Names in the directory of `path` are on disk. A directory that may not be read is left to the file system.
    public static func syncDirectory(of path: String) throws(SealingError) {
        let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? "."
        let dir = Glibc.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard dir >= 0 else { return }
        defer { close(dir) }
        guard fsync(dir) == 0 else { throw SealingError(.keyFile, "syncing \(directory): \(String(cString: strerror(errno)))") }
    }
}
