import Loop
import Platform
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A child that reads and checks settings: of a reload this program, of an upgrade the one that is to follow. It prints the environment that
/// they are in, or what is wrong.
///
/// What was checked is what is used: the supervisor reads no file of its own.
final class SettingsReading: ByteStreamDelegate {
    let pid: Int32
    let by: Instant
    private(set) var exit: Process.Exit?
    private let stream: ByteStream
    private unowned let supervisor: Supervisor
    private let what: String
    private let milliseconds: Int
    private let done: (Result<[String: String], Failure>) -> Void
    private var report: [UInt8] = []
    private var isWhole = false
    private var isOver = false

    struct Failure: Error { var reason: String }

    /// `what`: in words, for a line that says that it failed. `done` is called once.
    init(
        _ supervisor: Supervisor, pid: Int32, output: Int32, what: String, milliseconds: Int,
        _ done: @escaping (Result<[String: String], Failure>) -> Void
    ) throws(LoopError) {
        (self.supervisor, self.pid, self.what, self.milliseconds, self.done) = (supervisor, pid, what, milliseconds, done)
        by = supervisor.loop.now.adding(milliseconds: milliseconds)
        stream = ByteStream(supervisor.loop, .unix)
        try stream.open(output)
        stream.delegate = self
        stream.startReading()
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if report.count + bytes.count <= Limits.reloadReportBytesMax { report += bytes }
    }
    func streamEnded(_ stream: ByteStream) { ended() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { ended() }
    func streamDrained(_ stream: ByteStream) {}

    private func ended() {
        isWhole = true
        conclude()
    }

    func ended(_ exit: Process.Exit) {
        self.exit = exit
        conclude()
    }

    /// It takes too long: its end will tell why.
    func isLate() {
        guard !isOver, exit == nil else { return }
        Process.signal(pid, SIGKILL)
        end(.failure(Failure(reason: "\(what) took longer than \(milliseconds) ms")))
    }

    private func conclude() {
        guard let exit, isWhole else { return }
        stream.close()
        supervisor.readings.removeAll { $0 === self }
        guard exit == .code(0) else { return end(.failure(Failure(reason: reason(exit)))) }
        var environment: [String: String] = [:]
        for entry in report.split(separator: 0) {
            guard let equals = entry.firstIndex(of: UInt8(ascii: "=")) else { continue }
            environment[String(decoding: entry[..<equals], as: UTF8.self)] = String(decoding: entry[(equals + 1)...], as: UTF8.self)
        }
        end(.success(environment))
    }

    private func reason(_ exit: Process.Exit) -> String {
        let text = String(decoding: report, as: UTF8.self).split(separator: "\n").map { line in
            line.hasPrefix("codex-lb: ") ? line.dropFirst(10) : line
        }.joined(separator: "; ")
        return text.isEmpty ? "\(what): the child ended with \(exit)" : text
    }

    private func end(_ result: Result<[String: String], Failure>) {
        guard !isOver else { return }
        isOver = true
        done(result)
    }
}
