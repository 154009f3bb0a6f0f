internal import CPlatform
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// An error of a system call: what was tried, on what, and errno's text.
public struct SystemError: Error, CustomStringConvertible, Sendable, Equatable {
    public var code: Int32
    public var what: String
    public init(_ code: Int32, _ what: String) { (self.code, self.what) = (code, what) }
    public var description: String { "\(what): \(String(cString: strerror(code)))" }
}

public enum Descriptor {
    public static func setCloseOnExec(_ fd: Int32) { _ = codexlb_set_cloexec(fd, 1) }
    public static func setNonBlocking(_ fd: Int32) { _ = codexlb_set_nonblocking(fd, 1) }
    public static func close(_ fd: Int32) { if fd >= 0 { _ = Glibc.close(fd) } }

    /// Whether any of `events` (or an error, or the other side's end) comes to a descriptor within `milliseconds`. Blocks; a signal does not end it.
    public static func wait(_ fd: Int32, for events: Int32, milliseconds: Int) -> Bool {
        let deadline = Clock.now.adding(milliseconds: milliseconds)
        var one = pollfd(fd: fd, events: Int16(events), revents: 0)
        while true {
            let n = poll(&one, 1, Int32(clamping: deadline.milliseconds(since: Clock.now)))
            if n >= 0 || errno != EINTR { return n > 0 }
        }
    }

    /// `device:inode` of the open file, as systemd writes `JOURNAL_STREAM`.
    public static func identity(_ fd: Int32) -> String? {
        var info = stat()
        return fstat(fd, &info) == 0 ? "\(info.st_dev):\(info.st_ino)" : nil
    }

    /// Changes with the file that a path leads to, and with its contents; nil: there is none.
    public static func version(ofFile path: String) -> String? {
        var info = stat()
        guard stat(path, &info) == 0 else { return nil }
        return "\(info.st_dev):\(info.st_ino):\(info.st_size):\(info.st_mtim.tv_sec).\(info.st_mtim.tv_nsec)"
    }

    /// A second descriptor of the same open file, close-on-exec; -1 when there is no room.
    public static func duplicate(_ fd: Int32) -> Int32 { fcntl(fd, F_DUPFD_CLOEXEC, 3) }

    /// Opens /dev/null for each of 0, 1 and 2 that is closed: the next file opened would else get its number, and what is meant for
    /// stderr would go into it.
    public static func fillStandard() {
        // What is written to a standard output that was closed is lost: writing must fail, so that who asked for it hears of it.
        for fd: Int32 in 0...2 where fcntl(fd, F_GETFD) < 0 && errno == EBADF {
            _ = Glibc.open("/dev/null", fd == 1 ? O_RDONLY : O_RDWR)
        }
    }

    /// errno of the call that just failed.
    public static var lastError: Int32 { errno }

    /// A connected pair of stream sockets.
    public static func socketPair() throws(SystemError) -> (Int32, Int32) {
        var pair: [Int32] = [-1, -1]
        let code = codexlb_socketpair(&pair)
        if code < 0 { throw SystemError(-code, "socketpair") }
        return (pair[0], pair[1])
    }

    /// The user at the other end of a Unix-domain socket.
    public static func peerUser(_ fd: Int32) -> UInt32? {
        let id = codexlb_peer_uid(fd)
        return id < 0 ? nil : UInt32(id)
    }

    /// Descriptors this process has open now, from `/proc/self/fd`.
    public static var open: [Int32] {
        guard let directory = opendir("/proc/self/fd") else { return [] }
        defer { closedir(directory) }
        let own = dirfd(directory)
        var out: [Int32] = []
        while let entry = readdir(directory) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let fd = Int32(name), fd != own { out.append(fd) }
        }
        return out.sorted()
    }
}

public enum Process {
    public static var id: Int32 { getpid() }
    public static var parentID: Int32 { getppid() }
    public static var hostName: String {
        var name = [CChar](repeating: 0, count: 256)
        return gethostname(&name, 255) == 0
            ? String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self) : "host"
    }
    public static var user: UInt32 { geteuid() }
    /// As the system's databases have it, which may be elsewhere: may block. Nil: it has none.
    public static func userName(_ id: UInt32) -> String? {
        var (entry, found) = (passwd(), UnsafeMutablePointer<passwd>?.none)
        var buffer = [CChar](repeating: 0, count: 16 * 1024)
        guard getpwuid_r(id, &entry, &buffer, buffer.count, &found) == 0, found != nil, let name = entry.pw_name else { return nil }
        return String(cString: name)
    }

    /// The path of the running executable.
    public static var executable: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let n = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        return n > 0 ? String(decoding: buffer[..<n].map { UInt8(bitPattern: $0) }, as: UTF8.self) : "/proc/self/exe"
    }

    /// Starts this executable again with `arguments` and `heritage`; fork and exec happen in C, with nothing between them.
    /// `output`: what becomes its standard output and error; else they are ours. `program`: another one than this. `passing`: what it gets
    /// as descriptor 3, without a heritage.
    public static func spawnSelf(
        _ arguments: [String], heritage: Heritage?, environment: [String: String], output: Int32? = nil, program: String? = nil,
        passing: Int32? = nil
    ) throws(SystemError) -> Int32 {
        var environment = environment
        var descriptors: [Int32] = []
        if let heritage {
            environment[Heritage.variable] = heritage.encoded
            environment["CODEX_LB_HERITAGE_DATA"] = heritage.dataDirectory
            environment["CODEX_LB_HERITAGE_RUNTIME"] = heritage.runtimeDirectory
            descriptors = heritage.descriptors
        } else if let passing {
            descriptors = [passing]
        }
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            environment[name] = nil
        }
        var targets = descriptors.indices.map { Heritage.firstDescriptor + Int32($0) }
        if let output {
            descriptors += [output, output]
            targets += [1, 2]
        }
        let path = program ?? executable
        var argv = ([path] + arguments).map { strdup($0) } + [nil]
        var envp = environment.sorted { $0.key < $1.key }.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer {
            for p in argv { free(p) }
            for p in envp { free(p) }
        }
        // By this name, not by its path: the file may have been replaced since, and a generation is of one build.
        let pid = codexlb_spawn(program ?? "/proc/self/exe", &argv, &envp, descriptors, targets, descriptors.count, 0)
        if pid < 0 { throw SystemError(-pid, "starting \(path) \(arguments.joined(separator: " "))") }
        return pid
    }

    /// The path that this program was called by, which may lead to another file by now; nil when there is nothing to run.
    public static func called(_ name: String, environment: [String: String]) -> String? {
        var paths: [String] = []
        if name.hasPrefix("/") {
            paths = [name]
        } else if name.contains("/") {
            var buffer = [CChar](repeating: 0, count: 4096)
            guard getcwd(&buffer, buffer.count) != nil else { return nil }
            paths = [String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self) + "/" + name]
        } else {
            paths = (environment["PATH"] ?? "").split(separator: ":").map { "\($0)/\(name)" }
        }
        return paths.first { access($0, X_OK) == 0 }
    }

    /// Becomes another program: same process, same children, nothing open but `keeping`, under the same numbers, and the standard streams.
    /// Signals should be blocked: what comes meanwhile waits for the other program. Comes back only when it fails.
    public static func replace(
        with path: String, _ arguments: [String], environment: [String: String], keeping descriptors: [Int32]
    ) -> SystemError {
        var argv = arguments.map { strdup($0) } + [nil]
        var envp = environment.sorted { $0.key < $1.key }.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer {
            for p in argv { free(p) }
            for p in envp { free(p) }
        }
        return SystemError(-codexlb_exec(path, &argv, &envp, descriptors, descriptors.count), "starting \(path)")
    }

    /// Signals wait until they are let through. Other threads must have them blocked for good.
    public static func blockSignals(_ isOn: Bool) { codexlb_block_signals(isOn ? 1 : 0) }

    /// Starts another program, whose standard streams are ours and which inherits nothing else. It is ended with the calling thread.
    public static func spawn(_ path: String, _ arguments: [String], environment: [String: String]) throws(SystemError) -> Int32 {
        var argv = ([path] + arguments).map { strdup($0) } + [nil]
        var envp = environment.sorted { $0.key < $1.key }.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer {
            for p in argv { free(p) }
            for p in envp { free(p) }
        }
        let pid = codexlb_spawn(path, &argv, &envp, [], [], 0, 1)
        if pid < 0 { throw SystemError(-pid, "starting \(path)") }
        return pid
    }

    /// Gives way to every other process for CPU and disk: for checks beside a running server.
    public static func becomeIdle() { codexlb_become_idle() }

    /// Why a child ended.
    public enum Exit: Sendable, Equatable, CustomStringConvertible {
        case code(Int32)
        case signal(Int32)
        public var description: String {
            switch self {
            case .code(let c): "exit code \(c)"
            case .signal(let s): "signal \(s) (\(String(cString: strsignal(s))))"
            }
        }
    }

    /// Reaps one own child if it has ended; never waits and never touches others' children.
    public static func reap(_ pid: Int32) -> Exit? {
        var status: Int32 = 0
        guard waitpid(pid, &status, WNOHANG) == pid else { return nil }
        let signal = status & 0x7F
        return signal == 0 ? .code((status >> 8) & 0xFF) : .signal(signal)
    }

    public static func signal(_ pid: Int32, _ number: Int32) { _ = kill(pid, number) }

    /// Sends out what was printed; an errno when standard output did not take all of it.
    public static func flushOutput() -> Int32 { codexlb_flush_output() }

    public static func name(_ name: String) { codexlb_name_thread(name) }
    public static func forbidDumps() { codexlb_forbid_dumps() }
    public static func tuneAllocator() { codexlb_tune_allocator() }
    /// Pins the calling thread to one CPU; for benchmarks.
    public static func pin(toCPU cpu: Int) { _ = codexlb_pin(Int32(cpu)) }
    /// Descriptors this process may have open (RLIMIT_NOFILE, raised to its hard limit).
    public static var descriptorLimit: Int {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return 1024 }
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
        return Int(clamping: limit.rlim_cur)
    }
    /// Memory this process may use, bytes: the machine's, or what its control group is allowed (cgroup v2 `memory.max`).
    public static var memoryBytes: Int {
        let machine = sysconf(Int32(_SC_PHYS_PAGES)) * sysconf(Int32(_SC_PAGESIZE))
        guard let group = text("/proc/self/cgroup")?.split(separator: "\n").first(where: { $0.hasPrefix("0::") })?.dropFirst(3) else {
            return machine
        }
        // A limit of any group above this one holds too.
        var path = group
        var least = machine
        while true {
            if let text = text("/sys/fs/cgroup\(path)/memory.max"), let bytes = Int(text.prefix { $0 != "\n" }) {
                least = min(least, bytes)
            }
            guard let slash = path.lastIndex(of: "/") else { return least }
            path = path[..<slash]
        }
    }
    /// A small file of /proc or /sys; nil without one.
    static func text(_ path: String) -> String? {
        let fd = open(path, O_RDONLY | O_CLOEXEC)
        guard fd >= 0 else { return nil }
        defer { close(fd) }
        var buffer = [UInt8](repeating: 0, count: 4096)
        let n = read(fd, &buffer, buffer.count)
        return n < 0 ? nil : String(decoding: buffer[..<n], as: UTF8.self)
    }

    /// Ends the process after `seconds` whatever it does: the worker's own last deadline once its supervisor is gone.
    public static func setHardDeadline(seconds: Int) { _ = alarm(UInt32(max(1, seconds))) }
}
