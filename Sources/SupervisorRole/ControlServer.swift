import ControlWire
import Fleet
import Logging
import Loop
import Platform
import Vocabulary

/// The Unix socket that the command line talks to. Only our own user and root may.
final class ControlServer {
    private let loop: EventLoop
    private let path: String
    private unowned let supervisor: Supervisor
    private var listener: Listener?
    private var descriptor: Int32 = -1
    private var file: SocketFile?
    private var visitors: [ObjectIdentifier: Visitor] = [:]
    /// Who answers a question that is passed on.
    private enum Answerer {
        case writer
        case worker(ChildID)
    }
    /// Whose question went to a child under which number of ours, and what the visitor called it.
    private var asked: [UInt64: (visitor: Visitor, correlation: UInt64, by: Instant, answerer: Answerer)] = [:]
    private var next: UInt64 = 1

    private var log: Logger { supervisor.log }

    init(_ loop: EventLoop, path: String, supervisor: Supervisor) throws(SystemError) {
        (self.loop, self.path, self.supervisor) = (loop, path, supervisor)
        try open()
    }

    /// The one that another program in this process has opened.
    init(_ loop: EventLoop, path: String, supervisor: Supervisor, adopting descriptor: Int32) throws(SystemError) {
        (self.loop, self.path, self.supervisor) = (loop, path, supervisor)
        try listen(descriptor)
    }

    private func open() throws(SystemError) {
        if let slash = path.lastIndex(of: "/") { try Directory.make(String(path[..<slash])) }
        try listen(try Sockets.listen(.unix(path: path), mode: 0o600))
    }

    private func listen(_ descriptor: Int32) throws(SystemError) {
        self.descriptor = descriptor
        do throws(LoopError) {
            listener = try Listener(loop, descriptor: descriptor, kind: .unix) { [unowned self] in came($0) }
        } catch {
            throw SystemError(-error.code, "control socket \(path)")
        }
        file = SocketFile(path)  // last: as long as it isn't ours the sweep tries again
    }

    /// Time has passed: answers for a writer that does not, and comes back when somebody cleaned the directory up.
    func sweep(_ now: Instant, isLookDue: Bool) {
        for (number, entry) in asked where now >= entry.by {
            switch entry.answerer {
            case .writer:
                refuse(
                    number,
                    "the writer has not answered for \(Limits.writerAnswerMilliseconds / 1000) s; look whether it took effect, then try again"
                )
            case .worker: refuse(number, "the worker has not answered for \(Limits.explainMilliseconds / 1000) s; try again")
            }
        }
        guard isLookDue, listener != nil, file?.isInPlace != true else { return }
        log.warning("the control socket is gone: making it again", metadata: ["path": "\(path)"])
        listener?.close()
        do throws(SystemError) { try open() } catch { log.error("the control socket can't be made again", metadata: ["error": "\(error)"]) }
    }

    func close() {
        listener?.close()
        listener = nil
        file?.remove()
    }

    /// No question is with the writer, and no answer on its way.
    var isAtRest: Bool { asked.isEmpty && visitors.values.allSatisfy(\.isAtRest) }

    /// What another program in this process needs to go on.
    func leave(to succession: inout Succession) {
        succession.control = descriptor
        succession.visitors = visitors.values.map(\.succession)
    }

    /// Goes on with those that another program had, and tells who waits for the end of an upgrade or a reload.
    func adopt(_ left: [SuccessionVisitor], _ waits: (_ since: Instant, _ answer: @escaping (FleetReply) -> Void) -> Void)
        throws(SystemError)
    {
        for one in left {
            let stream = ByteStream(loop, .unix)
            do throws(LoopError) { try stream.open(one.descriptorNumber) } catch { throw SystemError(-error.code, "control connection") }
            guard let user = Descriptor.peerUser(stream.descriptor) else {
                stream.close()
                continue
            }
            let visitor = Visitor(stream, self, user: user, unfinished: one.unfinished)
            visitors[ObjectIdentifier(visitor)] = visitor
            guard one.hasWaitingSinceNs else { continue }
            let since = Instant(nanoseconds: one.waitingSinceNs)
            visitor.question = (one.correlation, since)
            waits(since) { [weak visitor] in visitor?.answer(one.correlation, $0) }
        }
    }

    private func came(_ stream: ByteStream) {
        guard let user = Descriptor.peerUser(stream.descriptor), user == Process.user || user == 0 else {
            log.warning("control connection of another user refused")
            return stream.close()
        }
        let visitor = Visitor(stream, self, user: user)
        visitors[ObjectIdentifier(visitor)] = visitor
    }

    fileprivate func gone(_ visitor: Visitor) { visitors[ObjectIdentifier(visitor)] = nil }

    fileprivate func received(_ frame: Frame, from visitor: Visitor) {
        switch frame.body {
        case .statusRequest:
            visitor.send(frame.correlation) { $0.statusReply = supervisor.status() }
        case .liveAccountsRequest:
            visitor.send(frame.correlation) { $0.liveAccountsReply = supervisor.liveAccounts() }
        case .fleetOrder(let order):
            visitor.question = (frame.correlation, loop.now)
            supervisor.obey(order) { [weak visitor] in visitor?.answer(frame.correlation, $0) }
        case .storeCommand(var command):
            command.givenBy.user = visitor.user
            let number = note(visitor, frame.correlation, Limits.writerAnswerMilliseconds, .writer)
            if !supervisor.toWriter(number, command) { refuse(number, "the writer is not running at the moment; try again in a second") }
        case .explainRequest(let question):
            guard let worker = supervisor.servingWorker() else {
                var reply = ExplainReply()
                reply.error = "no worker serves at the moment; codex-lb ctl status says more"
                return visitor.send(frame.correlation) { $0.explainReply = reply }
            }
            let number = note(visitor, frame.correlation, Limits.explainMilliseconds, .worker(worker))
            supervisor.send(to: worker) {
                $0.correlation = number
                $0.explainRequest = question
            }
        default:
            // Whoever waits for it hears at once that it waits for nothing.
            visitor.send(frame.correlation) { $0.fleetReply.error = "this server does not know the order; is it older than the command?" }
        }
    }

    private func note(_ visitor: Visitor, _ correlation: UInt64, _ milliseconds: Int, _ answerer: Answerer) -> UInt64 {
        defer { next += 1 }
        asked[next] = (visitor, correlation, loop.now.adding(milliseconds: milliseconds), answerer)
        return next
    }

    private func refuse(_ number: UInt64, _ why: String) {
        switch asked[number]?.answerer {
        case .writer:
            var reply = StoreReply()
            reply.error = why
            answered(number) { $0.storeReply = reply }
        case .worker:
            var reply = ExplainReply()
            reply.error = why
            answered(number) { $0.explainReply = reply }
        case nil: break
        }
    }

    /// The answer to a question that was passed on.
    func answered(_ number: UInt64, _ fill: (inout Frame) -> Void) {
        guard let entry = asked.removeValue(forKey: number) else { return }
        entry.visitor.send(entry.correlation, fill)
    }

    /// Commands it had not answered may or may not have been carried out.
    func writerGone() {
        for (number, entry) in asked {
            guard case .writer = entry.answerer else { continue }
            refuse(number, "the writer ended while it worked on this; look whether it took effect, then try again")
        }
    }

    func workerGone(_ id: ChildID) {
        for (number, entry) in asked {
            guard case .worker(id) = entry.answerer else { continue }
            refuse(number, "the worker ended before it answered; try again")
        }
    }
}

private final class Visitor: ByteStreamDelegate {
    private let stream: ByteStream
    /// At the other end.
    let user: UInt32
    private unowned let server: ControlServer
    private var reader = FrameReader()
    /// An order that is not answered yet.
    var question: (correlation: UInt64, since: Instant)?

    init(_ stream: ByteStream, _ server: ControlServer, user: UInt32, unfinished: [UInt8] = []) {
        (self.stream, self.server, self.user) = (stream, server, user)
        reader.unfinished = unfinished
        stream.delegate = self
        stream.startReading()
    }

    func send(_ correlation: UInt64, _ fill: (inout Frame) -> Void) {
        var frame = Frame()
        frame.correlation = correlation
        fill(&frame)
        var bytes: [UInt8] = []
        FrameCodec.encode(frame, into: &bytes)
        stream.write(bytes)
    }

    func answer(_ correlation: UInt64, _ reply: FleetReply) {
        question = nil
        send(correlation) { $0.fleetReply = reply }
    }

    var isAtRest: Bool { stream.queuedBytes == 0 }

    var succession: SuccessionVisitor {
        var out = SuccessionVisitor()
        out.descriptorNumber = stream.descriptor
        out.unfinished = reader.unfinished
        if let question { (out.correlation, out.waitingSinceNs) = (question.correlation, question.since.nanoseconds) }
        return out
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in server.received(frame, from: self) }
        } catch {
            end()
        }
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    private func end() {
        stream.close()
        server.gone(self)
    }
}
