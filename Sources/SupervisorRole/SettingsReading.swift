import Fleet
import Loop
import Platform
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A child that reads and checks the settings of a reload. It prints the environment that they are in, or what is wrong with them.
///
/// What was checked is what is used: the supervisor reads no file of its own.
final class SettingsReading: ByteStreamDelegate {
    let pid: Int32
    let by: Instant
    private(set) var exit: Process.Exit?
    private let stream: ByteStream
    private unowned let supervisor: Supervisor
    private var report: [UInt8] = []
    private var isWhole = false
    private var isOver = false

    init(_ supervisor: Supervisor, pid: Int32, output: Int32) throws(LoopError) {
        (self.supervisor, self.pid) = (supervisor, pid)
        by = supervisor.loop.now.adding(milliseconds: Limits.reloadCheckMilliseconds)
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
        failed("reading the settings took longer than \(Limits.reloadCheckMilliseconds) ms")
    }

    private func conclude() {
        guard let exit, isWhole else { return }
        stream.close()
        supervisor.readings.removeAll { $0 === self }
        guard exit == .code(0) else { return failed(reason(exit)) }
        guard !isOver else { return }
        isOver = true
        var environment: [String: String] = [:]
        for entry in report.split(separator: 0) {
            guard let equals = entry.firstIndex(of: UInt8(ascii: "=")) else { continue }
            environment[String(decoding: entry[..<equals], as: UTF8.self)] = String(decoding: entry[(equals + 1)...], as: UTF8.self)
        }
        supervisor.settingsRead(environment)
    }

    private func reason(_ exit: Process.Exit) -> String {
        let text = String(decoding: report, as: UTF8.self).split(separator: "\n").map { line in
            line.hasPrefix("codex-lb: ") ? line.dropFirst(10) : line
        }.joined(separator: "; ")
        return text.isEmpty ? "the child that reads the settings ended with \(exit)" : text
    }

    private func failed(_ reason: String) {
        guard !isOver else { return }
        isOver = true
        supervisor.perform(supervisor.fleet.settingsRefused(reason: reason, now: supervisor.loop.now))
    }
}
