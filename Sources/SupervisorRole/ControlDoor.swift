import ControlWire
import Logging
import Loop
import Platform
import Vocabulary

/// The Unix socket that the command line talks to. Only our own user and root may.
final class ControlDoor {
    private let loop: EventLoop
    private let path: String
    private unowned let supervisor: Supervisor
    private var listener: Listener?
    private var file: SocketFile?
    private var visitors: [ObjectIdentifier: Visitor] = [:]
    /// Whose command went to the writer under which number of ours, and what the visitor called it.
    private var asked: [UInt64: (visitor: Visitor, correlation: UInt64, by: Instant)] = [:]
    private var next: UInt64 = 1

    private var log: Logger { supervisor.log }

    init(_ loop: EventLoop, path: String, supervisor: Supervisor) throws(SystemError) {
        (self.loop, self.path, self.supervisor) = (loop, path, supervisor)
        try open()
    }

    private func open() throws(SystemError) {
        if let slash = path.lastIndex(of: "/") { try Directory.make(String(path[..<slash])) }
        let descriptor = try Sockets.listen(.unix(path: path), mode: 0o600)
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
            refuse(
                number,
                "the writer has not answered for \(Limits.writerAnswerMilliseconds / 1000) s; look whether it took effect, then try again")
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

    private func came(_ stream: ByteStream) {
        guard let user = Descriptor.peerUser(stream.descriptor), user == Process.user || user == 0 else {
            log.warning("control connection of another user refused")
            return stream.close()
        }
        let visitor = Visitor(stream, self)
        visitors[ObjectIdentifier(visitor)] = visitor
    }

    fileprivate func gone(_ visitor: Visitor) { visitors[ObjectIdentifier(visitor)] = nil }

    fileprivate func received(_ frame: Frame, from visitor: Visitor) {
        switch frame.body {
        case .statusRequest:
            visitor.send(frame.correlation) { $0.statusReply = supervisor.status() }
        case .fleetOrder(let order):
            supervisor.obey(order) { [weak visitor] reply in visitor?.send(frame.correlation) { $0.fleetReply = reply } }
        case .storeCommand(let command):
            let number = next
            next += 1
            asked[number] = (visitor, frame.correlation, loop.now.adding(milliseconds: Limits.writerAnswerMilliseconds))
            if !supervisor.toWriter(number, command) { refuse(number, "the writer is not running at the moment; try again in a second") }
        default: break
        }
    }

    private func refuse(_ number: UInt64, _ why: String) {
        var reply = StoreReply()
        reply.error = why
        answered(number, reply)
    }

    func answered(_ number: UInt64, _ reply: StoreReply) {
        guard let entry = asked.removeValue(forKey: number) else { return }
        entry.visitor.send(entry.correlation) { $0.storeReply = reply }
    }

    /// Commands it had not answered may or may not have been carried out.
    func writerGone() {
        for number in asked.keys { refuse(number, "the writer ended while it worked on this; look whether it took effect, then try again") }
    }
}

private final class Visitor: ByteStreamDelegate {
    private let stream: ByteStream
    private unowned let door: ControlDoor
    private var reader = FrameReader()

    init(_ stream: ByteStream, _ door: ControlDoor) {
        (self.stream, self.door) = (stream, door)
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

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in door.received(frame, from: self) }
        } catch {
            end()
        }
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    private func end() {
        stream.close()
        door.gone(self)
    }
}
