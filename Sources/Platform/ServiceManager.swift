internal import CPlatform
import Synchronization
internal import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// What systemd gave and wants to hear (sd_listen_fds(3), sd_notify(3)); nothing of it links libsystemd.
public enum ServiceManager {
    /// Sockets passed by systemd, with their names, taken out of the environment. Checks LISTEN_PID.
    public static func listenSockets(_ environment: [String: String]) -> [(name: String, descriptor: Int32)] {
        guard let pid = environment["LISTEN_PID"], Int32(pid) == getpid(), let count = environment["LISTEN_FDS"].flatMap({ Int32($0) }),
            count > 0
        else {
            return []
        }
        let names = (environment["LISTEN_FDNAMES"] ?? "").split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        return (0..<count).map { i in
            let fd = 3 + i
            Descriptor.setCloseOnExec(fd)
            Descriptor.setNonBlocking(fd)
            return (Int(i) < names.count ? names[Int(i)] : "unknown", fd)
        }
    }

    // MARK: What it is told

    /// A message that the manager's queue has not taken yet.
    private struct Message: Sendable {
        var text: String
        /// Our own copy, or -1.
        var descriptor: Int32
    }
    /// In the order in which they were said.
    private static let waiting = Mutex<[Message]>([])

    /// Says something to `$NOTIFY_SOCKET`; nothing without one. Never waits: what the manager's queue does not take goes with a later `flush`.
    /// `isRepeated`: it is said again and again, and need not wait twice.
    public static func notify(_ lines: String, isRepeated: Bool = false) { notify(lines, -1, isRepeated) }

    /// False: it is not said, nor will it be.
    @discardableResult private static func notify(_ lines: String, _ descriptor: Int32, _ isRepeated: Bool = false) -> Bool {
        guard getenv("NOTIFY_SOCKET") != nil else { return true }
        return waiting.withLock { waiting in
            send(&waiting, milliseconds: 0)
            if isRepeated, waiting.contains(where: { $0.text == lines }) { return true }
            if waiting.count >= Limits.notificationsMax {
                // What was said last counts most; a socket to keep is said once.
                guard let oldest = waiting.firstIndex(where: { $0.descriptor < 0 }) else { return false }
                waiting.remove(at: oldest)
            }
            let copy = descriptor < 0 ? -1 : Descriptor.duplicate(descriptor)
            guard copy >= 0 || descriptor < 0 else { return false }  // no descriptor is left for it
            waiting.append(Message(text: lines, descriptor: copy))
            send(&waiting, milliseconds: 0)
            return true
        }
    }

    /// Says what could not be said before; waits so long for the manager to take it.
    public static func flush(milliseconds: Int = 0) { waiting.withLock { send(&$0, milliseconds: Int32(clamping: milliseconds)) } }

    /// Until one is not taken; waits so long in all. A manager that is gone or does not listen hears nothing: that is its own affair.
    private static func send(_ waiting: inout [Message], milliseconds: Int32) {
        guard !waiting.isEmpty, let target = getenv("NOTIFY_SOCKET") else { return }
        let end = Clock.now.adding(milliseconds: Int(milliseconds))
        var taken = 0
        while taken < waiting.count {
            let left = milliseconds == 0 ? 0 : Int32(clamping: end.milliseconds(since: Clock.now))
            guard codexlb_notify(target, waiting[taken].text, waiting[taken].descriptor, left) != -EAGAIN else { break }
            if waiting[taken].descriptor >= 0 { Descriptor.close(waiting[taken].descriptor) }
            taken += 1
        }
        waiting.removeFirst(taken)
    }

    /// Waits until the manager has taken all that was said (`BARRIER=1`, sd_notify(3)), or for so long: whom a message is from it can tell only
    /// while that process lives. False: it has not. Blocks.
    @discardableResult public static func barrier(milliseconds: Int) -> Bool {
        guard getenv("NOTIFY_SOCKET") != nil else { return true }
        guard let (ours, theirs) = try? Descriptor.socketPair() else { return false }  // no descriptor is left for it
        let end = Clock.now.adding(milliseconds: milliseconds)
        let isSaid = notify("BARRIER=1", theirs)
        Descriptor.close(theirs)
        defer { Descriptor.close(ours) }
        guard isSaid else { return false }
        flush(milliseconds: milliseconds)
        // It ends when the manager closes the last copy of the other one; children that end meanwhile do not end it.
        return Descriptor.wait(ours, for: 0, milliseconds: end.milliseconds(since: Clock.now))
    }

    // MARK: Descriptors that it keeps

    /// A listening socket that we have bound, under a name that tells its address: whoever is started after our sudden death gets it back
    /// with its backlog. For this the unit has `FileDescriptorStoreMax=`.
    public static func store(_ descriptor: Int32, address: ListenAddress) {
        notify("FDSTORE=1\nFDNAME=\(storedName(address))", descriptor)
    }

    /// It need not keep that one any longer.
    public static func forget(address: ListenAddress) { notify("FDSTOREREMOVE=1\nFDNAME=\(storedName(address))") }

    /// What a socket is called that it keeps for us. A name has no colon and no control character, and at most 255 bytes (sd_notify(3)).
    public static func storedName(_ address: ListenAddress) -> String {
        storedPrefix + String(decoding: address.description.utf8.map { $0 == UInt8(ascii: ":") ? UInt8(ascii: ";") : $0 }, as: UTF8.self)
    }

    /// How the names of those begin; every other socket of ours in `LISTEN_FDS` is of a socket unit.
    public static let storedPrefix = "bound="

    // MARK: Watchdog

    /// How often it wants to hear that the main process is alive, milliseconds: half of what it bears (sd_watchdog_enabled(3)). Nil: not at
    /// all, or of another process.
    public static func watchdogMilliseconds(_ environment: [String: String], pid: Int32 = Process.id) -> Int? {
        guard let microseconds = environment["WATCHDOG_USEC"].flatMap({ Int($0) }), microseconds > 0,
            environment["WATCHDOG_PID"].map({ Int32($0) == pid }) ?? true
        else { return nil }
        return max(1, microseconds / 2000)
    }
}
