import ControlWire
import Logging
import Loop
import Platform

#if canImport(Glibc)
    import Glibc
#endif

/// The Unix socket that the command line talks to. Only our own user and root may.
final class ControlDoor {
    private let loop: EventLoop
    private let log: Logger
    private let path: String
    private unowned let supervisor: Supervisor
    private var listener: Listener?
    private var visitors: [ObjectIdentifier: Visitor] = [:]
    /// Whose command went to the writer under which number of ours, and what the visitor called it.
    private var asked: [UInt64: (visitor: Visitor, correlation: UInt64)] = [:]
    private var next: UInt64 = 1

    init(_ loop: EventLoop, path: String, log: Logger, supervisor: Supervisor) throws(SystemError) {
        (self.loop, self.path, self.log, self.supervisor) = (loop, path, log, supervisor)
        let descriptor = try Sockets.listen(.unix(path: path), mode: 0o600)
        do throws(LoopError) {
            listener = try Listener(loop, descriptor: descriptor, kind: .unix) { [unowned self] in came($0) }
        } catch {
            throw SystemError(-error.code, "control socket \(path)")
        }
    }

    func close() {
        listener?.close()
        listener = nil
        unlink(path)
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
        case .storeCommand(let command):
            let number = next
            next += 1
            asked[number] = (visitor, frame.correlation)
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
        guard let (visitor, correlation) = asked.removeValue(forKey: number) else { return }
        visitor.send(correlation) { $0.storeReply = reply }
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
