internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

public enum Directory {
    /// Removes a directory with everything in it. What can't be removed stays.
    public static func remove(_ path: String) {
        if let folder = opendir(path) {
            while let entry = readdir(folder) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name == "." || name == ".." { continue }
                let inner = path + "/" + name
                var info = stat()
                if lstat(inner, &info) == 0, info.st_mode & S_IFMT == S_IFDIR { remove(inner) } else { unlink(inner) }
            }
            closedir(folder)
        }
        rmdir(path)
    }

    /// Makes a directory and its parents, for this user only.
    public static func make(_ path: String) throws(SystemError) {
        var at = ""
        for part in path.split(separator: "/") {
            at += "/" + part
            if mkdir(at, 0o700) == 0 {
                codexlb_adopt_owner(at, at + "/..")
            } else if errno != EEXIST {
                throw SystemError(errno, "making the directory \(at)")
            }
        }
        if access(path, W_OK | X_OK) != 0 { throw SystemError(errno, "writing into the directory \(path)") }
    }
}
