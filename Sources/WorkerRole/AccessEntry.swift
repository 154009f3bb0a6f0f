import Admission
import Diagnostics
import Exchange
import HTTPWire
import Vocabulary

/// A request's line in the access log while it is gathered: by its connection, and by its turn if it becomes one. It is written when both
/// have nothing more to say.
final class AccessEntry {
    var line = AccessLine()
    private let log: AccessLog
    private let start: Instant
    private var isAnswered = false
    private var awaitsTurn = false

    init(_ log: AccessLog, start: Instant) { (self.log, self.start) = (log, start) }

    /// What the head says.
    func took(_ head: RequestHead, client: IPAddress?) {
        line.client = client?.description ?? "unix"
        line.method = head.method.text
        line.route = Route(path: head.path)?.rawValue ?? head.path.cut(utf8: Limits.accessPathBytesMax)
    }

    func answerBegan(status: Int, _ now: Instant) {
        line.status = status
        line.firstByteMilliseconds = now.milliseconds(since: start)
    }

    /// The answer is over, or its client has gone.
    func answered(bytes: Int, _ now: Instant) {
        guard !isAnswered else { return }
        isAnswered = true
        line.bytesOut = bytes
        line.milliseconds = now.milliseconds(since: start)
        if line.status == nil, !awaitsTurn { line.code = "client_gone" }
        writeIfWhole()
    }

    func turnBegan() { awaitsTurn = true }
    func turnEnded() {
        awaitsTurn = false
        writeIfWhole()
    }

    private func writeIfWhole() {
        guard isAnswered, !awaitsTurn else { return }
        line.time = Clock.wall
        log.write(line)
    }
}
