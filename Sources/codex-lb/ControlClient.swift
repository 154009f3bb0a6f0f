import ArgumentParser
import ControlWire
import Platform
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A blocking connection of the command line to the supervisor.
final class ControlClient {
    private let descriptor: Int32
    private var patienceMilliseconds = Limits.controlAnswerMilliseconds
    private var reader = FrameReader()

    private init(_ descriptor: Int32) { self.descriptor = descriptor }
    deinit { close(descriptor) }

    /// Nil when no server runs on this data directory.
    static func connect(_ settings: Settings) throws -> ControlClient? {
        do throws(SystemError) {
            // No answer of the server takes longer: it only passes commands on.
            return ControlClient(try Sockets.connectUnix(settings.controlSocket, milliseconds: Limits.controlAnswerMilliseconds))
        } catch {
            if error.code == ENOENT || error.code == ECONNREFUSED { return nil }
            if error.code == EAGAIN { throw silent() }
            complain("\(error)\(error.code == EACCES ? ". Run this as the user that the server runs as" : "")")
            throw ExitCode(1)
        }
    }

    /// How long the answer to an order may take.
    func setPatience(milliseconds: Int) {
        patienceMilliseconds = milliseconds
        var limit = timeval(tv_sec: milliseconds / 1000, tv_usec: milliseconds % 1000 * 1000)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    /// Waits for the end of the connection, which is the server's.
    func waitEnd() throws {
        setPatience(milliseconds: 0)  // its drain has a limit of its own
        var byte: UInt8 = 0
        while true {
            let n = recv(descriptor, &byte, 1, 0)
            if n == 0 || n < 0 && errno != EINTR { return }
        }
    }

    /// Sends one frame and waits for the one that answers it.
    func ask(_ frame: Frame) throws -> Frame {
        var frame = frame
        frame.correlation = 1
        var out: [UInt8] = []
        FrameCodec.encode(frame, into: &out)
        var sent = 0
        while sent < out.count {
            let n = out.withUnsafeBytes { send(descriptor, $0.baseAddress! + sent, out.count - sent, Int32(MSG_NOSIGNAL)) }
            if n < 0, errno == EINTR { continue }
            guard n > 0 else { throw n < 0 && errno == EAGAIN ? Self.silent() : lost() }
            sent += n
        }
        var buffer = [UInt8](repeating: 0, count: 64 * 1024)
        while true {
            let n = recv(descriptor, &buffer, buffer.count, 0)
            if n < 0, errno == EINTR { continue }
            guard n > 0 else { throw n < 0 && errno == EAGAIN ? Self.silent(patienceMilliseconds) : lost() }
            var answer: Frame?
            do throws(FrameError) {
                try reader.feed(buffer.span.bytes.extracting(0..<n)) { frame throws(FrameError) in answer = frame }
            } catch {
                complain("the server's answer can't be read: \(error)")
                throw ExitCode(1)
            }
            if let answer { return answer }
        }
    }

    private static func silent(_ milliseconds: Int = Limits.controlAnswerMilliseconds) -> ExitCode {
        complain(
            "the server has not answered for \(milliseconds / 1000) s: its supervisor hangs, or is stopped. Whether the command took effect is unknown; look at the server's log and processes, then try again"
        )
        return ExitCode(1)
    }

    private func lost() -> ExitCode {
        complain("the server ended the connection without an answer; its log says more")
        return ExitCode(1)
    }
}
