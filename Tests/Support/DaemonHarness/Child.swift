import Foundation

#if canImport(Glibc)
    import Glibc
#endif

public struct HarnessError: Error, CustomStringConvertible {
    public var description: String
    public init(_ text: String) { description = text }
}

/// Polls a condition until it holds; false when `seconds` pass first. For facts of other processes, which can't signal us.
@discardableResult
public func eventually(_ seconds: Double = 10, every: Double = 0.005, _ condition: () throws -> Bool) rethrows -> Bool {
    let end = Date(timeIntervalSinceNow: seconds)
    while true {
        if try condition() { return true }
        if Date() >= end { return false }
        usleep(UInt32(every * 1_000_000))
    }
}

/// Polls a condition until it has held at every look for `span` seconds; false when `seconds` pass first. For what each of several processes
/// learns by itself while one look asks only one of them: whoever looks at the database does so within half a second.
@discardableResult
public func steadily(_ span: Double = 1.2, within seconds: Double = 15, every: Double = 0.02, _ condition: () throws -> Bool) rethrows
    -> Bool
{
    let end = Date(timeIntervalSinceNow: seconds)
    var since: Date?
    while true {
        let look = Date()
        if try condition() {
            since = since ?? look
            if Date().timeIntervalSince(since!) >= span { return true }
        } else {
            since = nil
        }
        if Date() >= end { return false }
        usleep(UInt32(every * 1_000_000))
    }
}

/// A bound on time that says something about how fast the program is. `make soak` holds a release build to what is promised; a debug build on
/// a machine that has other things to do gets more.
public func bound(_ promised: Double, debug: Double) -> Double {
    ProcessInfo.processInfo.environment["CODEX_LB_TEST_RELEASE"] == nil ? debug : promised
}

/// The text of a file of /proc, which tells no size: read to its end.
public func procText(_ path: String) -> String {
    let fd = open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else { return "" }
    defer { close(fd) }
    var text: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    while true {
        let n = read(fd, &buffer, buffer.count)
        guard n > 0 else { return String(decoding: text, as: UTF8.self) }
        text += buffer[..<n]
    }
}

/// A process of ours, started with posix_spawn and reaped by its pid.
public final class Child: @unchecked Sendable {  // `lock` guards the exit
    public enum Exit: Equatable, Sendable, CustomStringConvertible {
        case code(Int32)
        case signal(Int32)
        public var description: String {
            switch self {
            case .code(let c): "exit code \(c)"
            case .signal(let s): "signal \(s)"
            }
        }
    }

    public let pid: Int32
    private let lock = NSLock()
    private var exit: Exit?

    /// Output goes to files, input comes from one. `passing` become descriptors from 3 on, `directory` the working directory.
    public init(
        _ executable: String, _ arguments: [String], environment: [String: String], input: String = "/dev/null",
        output: String = "/dev/null",
        errors: String = "/dev/null", passing: [Int32] = [], directory: String? = nil
    ) throws {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, input, O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_addopen(&actions, 2, errors, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        for (i, descriptor) in passing.enumerated() { posix_spawn_file_actions_adddup2(&actions, descriptor, 3 + Int32(i)) }
        // The test runner's threads block signals that the daemon must get.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        sigaddset(&none, SIGPIPE)
        posix_spawnattr_setsigdefault(&attributes, &none)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))
        // glibc's own way to start elsewhere hides behind a macro that Swift does not see.
        let command = (directory.map { ["/usr/bin/env", "-C", $0] } ?? []) + [executable] + arguments
        var argv = command.map { strdup($0) } + [nil]
        var envp = environment.sorted { $0.key < $1.key }.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer {
            for p in argv { free(p) }
            for p in envp { free(p) }
        }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, command[0], &actions, &attributes, &argv, &envp)
        guard code == 0 else { throw HarnessError("cannot start \(executable): \(String(cString: strerror(code)))") }
        self.pid = pid
    }

    /// Runs a program to its end and gives what it wrote.
    public static func capture(
        _ executable: String, _ arguments: [String], environment: [String: String] = ["PATH": "/usr/bin:/bin"], seconds: Double = 60
    ) throws -> CommandResult {
        let name = "/tmp/clbt-\(getpid())-\(UUID().uuidString)"
        defer { for end in ["out", "err"] { unlink("\(name).\(end)") } }
        let child = try Child(executable, arguments, environment: environment, output: name + ".out", errors: name + ".err")
        guard let exit = child.wait(seconds) else { throw HarnessError("\(executable) \(arguments.joined(separator: " ")) did not end") }
        return CommandResult(exit: exit, output: procText(name + ".out"), errors: procText(name + ".err"))
    }

    deinit {
        guard poll() == nil else { return }
        Glibc.kill(pid, SIGKILL)
        _ = wait(5)
    }

    /// The exit if it has ended.
    public func poll() -> Exit? {
        lock.lock()
        defer { lock.unlock() }
        if exit == nil {
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid {
                let signal = status & 0x7F
                exit = signal == 0 ? .code((status >> 8) & 0xFF) : .signal(signal)
            }
        }
        return exit
    }

    /// Waits for the end; nil when `seconds` pass first.
    public func wait(_ seconds: Double = 10) -> Exit? {
        eventually(seconds) { poll() != nil }
        return poll()
    }

    public func signal(_ number: Int32) { if poll() == nil { Glibc.kill(pid, number) } }

    /// Lets it run a little at a time and looks at a condition while it stands still; true when that holds, and it stands still then: the next
    /// signal finds it where it was seen. False when it has ended or `seconds` pass first. A step is half as long as a look, so that both keep
    /// their measure on a machine that is busy.
    public func stop(within seconds: Double = 60, where condition: () throws -> Bool) rethrows -> Bool {
        let end = Date(timeIntervalSinceNow: seconds)
        while Date() < end {
            signal(SIGSTOP)
            eventually(5, every: 0.001) {
                poll() != nil || procText("/proc/\(pid)/status").contains("State:\tT")
            }
            if poll() != nil { return false }
            let look = Date()
            if try condition() { return true }
            let took = Date().timeIntervalSince(look)
            signal(SIGCONT)
            usleep(UInt32(max(0.005, took / 2) * 1_000_000))
        }
        return false
    }
}

/// What a finished command left.
public struct CommandResult: Sendable {
    public var exit: Child.Exit
    public var output: String
    public var errors: String
    public var isGood: Bool { exit == .code(0) }
}
