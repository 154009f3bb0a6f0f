internal import CPlatform

#if canImport(Glibc)
    internal import Glibc
#endif

public enum Directory {
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
