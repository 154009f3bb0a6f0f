internal import Store
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

extension LogDamage {
    /// Each commit is on disk before the next transaction begins (`synchronous = FULL`): two ends behind the place are no trace of a power
    /// cut, but damage. One end, or zeros, may be what a power cut left of a transaction that nobody was told of.
    var isCertain: Bool { commitsBehind > 1 }

    /// What is wrong with a database's log; nil when all is well or there is none.
    ///
    /// Read while somebody writes, frames that come in behind what was read look like it: then only what is found again at the same place
    /// counts, for a writer goes on from the end that it knows.
    static func find(_ path: String) throws(StoreError) -> LogDamage? {
        var before: (damage: LogDamage, head: [UInt8])?
        for _ in 0..<5 {
            let head = head(path)
            guard head.count == 32, let found = try PageFile(path).logDamage else { return nil }
            if !WriterLock.isHeld(database: path) { return found }
            if let before, before.damage.frame == found.frame, before.head == head { return found }
            before = (found, head)
            usleep(50_000)
        }
        return nil
    }

    private static func head(_ path: String) -> [UInt8] {
        let fd = open(path + "-wal", O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard fd >= 0 else { return [] }
        defer { close(fd) }
        var bytes = [UInt8](repeating: 0, count: 32)
        let n = pread(fd, &bytes, 32, 0)
        return n == 32 ? bytes : []
    }

    func line(_ path: String) -> String {
        var what: [String] = []
        if commitsBehind > 0 { what.append("\(commitsBehind) transactions") }
        if zeroFrames > 0 { what.append("\(zeroFrames) pages of zeros") }
        return
            "the log \(path)-wal can be read up to frame \(frame - 1) only; \(what.joined(separator: " and ")) are at or behind frame \(frame)"
    }

    /// To be called by whoever holds the right to write, before SQLite opens the database, which throws away what it can't read of the log.
    /// Refuses where that would lose what was acknowledged; where it may be the trace of a power cut, database and log are copied first. True:
    /// they were, and the log is to be begun anew.
    static func guardBeforeOpening(_ path: String, now: WallTime, progress: (String) -> Void) throws(StoreError) -> Bool {
        guard access(path, F_OK) == 0, let damage = try find(path) else { return false }
        guard damage.isCertain else {
            let aside = Backup.free("\(path).damaged-log.\(Backup.stamp(now))")
            for suffix in ["-wal", ""] { try Backup.copyBytes(path + suffix, aside + suffix) }
            progress(
                "\(damage.line(path)): as a power cut leaves it. A copy of both is kept as \(aside); if rows are missing: codex-lb db recover --url sqlite:///\(aside)"
            )
            return true
        }
        throw StoreError(
            .corrupt,
            "\(damage.line(path)), and a start would lose them. Save them: codex-lb db recover --replace (the files are kept under a dated name). To go on without them, move \(path)-wal away"
        )
    }
}
