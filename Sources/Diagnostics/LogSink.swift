internal import Logging
internal import Synchronization
internal import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// Where lines leave the process: a bounded queue, and a thread of its own that writes it. Nobody who logs ever waits for a reader.
///
/// O_NONBLOCK is no way: it belongs to the open file, which stderr shares with whoever else writes or reads there. The thread may stand
/// in write(2) for as long as it likes; meanwhile the queue fills, further lines are dropped and counted, and once it has drained
/// one line says how many.
public final class LogSink: @unchecked Sendable {  // `lock` guards `state`; `dropped` is an atomic
    /// The process's stderr.
    public static let standard = LogSink(descriptor: 2)

    private struct State {
        var lines: [[UInt8]] = []
        /// Of the lines that are not written yet, those in the thread's hands included.
        var bytes = 0
        var droppedUntold = 0
        var limiter = LineLimiter()
        var refusals = RefusalTally()
        /// When a line is due that nobody will ask for: about lines left out, or refusals summed.
        var dueAt: Instant { min(limiter.dueAt ?? .never, refusals.dueAt ?? .never) }
        var hasThread = false
    }

    /// Stays the same for the life of the sink: another file is put under it.
    private let descriptor: Int32
    /// Where the lines go instead of where they went first; empty: nowhere else.
    private var path = ""
    private let bytesMax: Int
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let changed = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var state = State()
    private let droppedTotal = Atomic<Int>(0)
    /// How this process writes a line of its own.
    private var format: (Logger.Level, String, [(String, String)]) -> String = { _, message, _ in "codex-lb: \(message)\n" }

    init(descriptor: Int32, bytesMax: Int = Limits.logQueueBytesMax) {
        (self.descriptor, self.bytesMax) = (descriptor, bytesMax)
        pthread_mutex_init(lock, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(changed, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    /// For a file of its own, to be opened; nil when there is no descriptor for it.
    convenience init?() {
        let place = Glibc.open("/dev/null", O_WRONLY | O_CLOEXEC)
        guard place >= 0 else { return nil }
        self.init(descriptor: place)
    }

    /// Lines go to this file from now on, made with mode 0640 where there is none. Gives what is wrong when it can't be opened; then
    /// everything is as it was.
    public func open(_ path: String) -> String? {
        let fd = Glibc.open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0o640)
        guard fd >= 0 else { return "the log file \(path) can't be opened: \(String(cString: strerror(errno)))" }
        defer { close(fd) }
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        // Both in one step: the thread may be writing. Standard error goes with it, for what others of this process write there.
        guard dup2(fd, descriptor) >= 0 else {
            return "the log file \(path): \(String(cString: strerror(errno)))"
        }
        if descriptor != 2 { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
        self.path = path
        return nil
    }

    /// Opens the log file by its name again: whoever rotates logs has moved it away. Nothing where lines go to standard error.
    public func reopen() -> String? {
        pthread_mutex_lock(lock)
        let path = path
        pthread_mutex_unlock(lock)
        return path.isEmpty ? nil : open(path)
    }

    func setFormat(_ format: @escaping (Logger.Level, String, [(String, String)]) -> String) {
        pthread_mutex_lock(lock)
        self.format = format
        pthread_mutex_unlock(lock)
    }

    /// Lines that could not be written since the process began.
    public var dropped: Int { droppedTotal.load(ordering: .relaxed) }

    /// Tells `count` of the lines dropped beyond the `known` ones, and gives their number.
    public func dropped(since known: Int, _ count: (Int) -> Void) -> Int {
        let new = dropped - known
        if new > 0 { count(new) }
        return new
    }

    /// Queues one line, whatever its kind.
    public func write(_ line: String) {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        append(line)
    }

    /// Queues a line of a kind unless there were too many of it in this second; `line` is made only when it is wanted.
    func write(_ kind: String, _ level: Logger.Level, _ line: () -> String) {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        let now = Clock.now
        if state.dueAt <= now { summarise(now) }
        if state.limiter.admits(kind, level, now: now) { append(line()) } else { pthread_cond_broadcast(changed) }
    }

    /// Queues the line of a refused turn, or keeps it for the next sum of its code.
    func write(refusal code: String, _ line: @escaping RefusalTally.Line) {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        let now = Clock.now
        if state.dueAt <= now { summarise(now) }
        switch state.refusals.refused(code, now: now, line) {
        case .tell(let line): append(line)
        case .held(let isFirst): if isFirst { pthread_cond_broadcast(changed) }
        }
    }

    /// Waits until everything is written, but no longer than `milliseconds`: for the end of the process.
    public func flush(milliseconds: Int) {
        pthread_mutex_lock(lock)
        defer { pthread_mutex_unlock(lock) }
        summarise(.never)
        let by = Clock.now.adding(milliseconds: milliseconds)
        while state.bytes > 0, Clock.now < by { wait(until: by) }
    }

    // MARK: Under the lock

    private func append(_ line: String) {
        let bytes = Array(line.utf8)
        guard state.bytes + bytes.count <= bytesMax else { return drop() }
        state.lines.append(bytes)
        state.bytes += bytes.count
        if !state.hasThread { startThread() }
        pthread_cond_broadcast(changed)
    }

    private func drop() {
        state.droppedUntold += 1
        droppedTotal.wrappingAdd(1, ordering: .relaxed)
    }

    private func summarise(_ now: Instant) {
        for summary in state.limiter.summaries(now: now) {
            append(format(summary.level, "\(summary.count) more lines like this were left out", [("message", summary.kind)]))
        }
        for line in state.refusals.sums(now: now) { append(line) }
    }

    private func wait(until: Instant) {
        guard until != .never else {
            pthread_cond_wait(changed, lock)
            return
        }
        var time = timespec(tv_sec: Int(until.nanoseconds / 1_000_000_000), tv_nsec: Int(until.nanoseconds % 1_000_000_000))
        pthread_cond_timedwait(changed, lock, &time)
    }

    /// Without a thread to be had lines are dropped, and the next one tries again.
    private func startThread() {
        var (all, before) = (sigset_t(), sigset_t())
        sigfillset(&all)
        pthread_sigmask(SIG_BLOCK, &all, &before)  // signals are for the threads that know what to do about them
        defer { pthread_sigmask(SIG_SETMASK, &before, nil) }
        var thread = pthread_t()
        let me = Unmanaged.passUnretained(self).toOpaque()  // lives as long as the process
        state.hasThread =
            pthread_create(
                &thread, nil,
                { raw in
                    Unmanaged<LogSink>.fromOpaque(raw!).takeUnretainedValue().run()
                    return nil
                }, me) == 0
        if state.hasThread {
            pthread_detach(thread)
        } else {
            for _ in state.lines { drop() }
            (state.lines, state.bytes) = ([], 0)
        }
    }

    // MARK: The thread

    private func run() {
        pthread_mutex_lock(lock)
        while true {
            while state.lines.isEmpty {
                let due = state.dueAt
                if due <= Clock.now { summarise(Clock.now) } else { wait(until: due) }
            }
            let batch = state.lines
            state.lines = []
            for line in batch {
                pthread_mutex_unlock(lock)
                let isWritten = put(line)
                pthread_mutex_lock(lock)
                state.bytes -= line.count
                if !isWritten { drop() }
            }
            if state.bytes == 0 { tellDropped() }
            pthread_cond_broadcast(changed)
        }
    }

    /// The reader is back: it hears what it missed.
    private func tellDropped() {
        let count = state.droppedUntold
        guard count > 0 else { return }
        let line = Array(format(.warning, "log lines were dropped: they could not be written in time", [("lines", "\(count)")]).utf8)
        pthread_mutex_unlock(lock)
        let isWritten = put(line)
        pthread_mutex_lock(lock)
        if isWritten { state.droppedUntold -= count }
    }

    /// One write(2) where the file takes it, so that lines of several processes do not mix. False: it can't be written now.
    private func put(_ line: [UInt8]) -> Bool {
        var sent = 0
        while sent < line.count {
            let n = line.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress! + sent, line.count - sent) }
            if n > 0 {
                sent += n
            } else if errno == EAGAIN {
                // Somebody else made the open file non-blocking.
                var one = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                poll(&one, 1, -1)
            } else if errno != EINTR {
                return false  // no reader, a full disk
            }
        }
        return true
    }
}
