import ControlWire
import Fleet
import Loop

/// The supervisor's end of a child's control socket.
final class ChildLink: ByteStreamDelegate {
    private let stream: ByteStream
    private let child: ChildID
    private unowned let supervisor: Supervisor
    private var reader = FrameReader()

    init(_ loop: EventLoop, _ descriptor: Int32, _ child: ChildID, _ supervisor: Supervisor, unfinished: [UInt8] = []) {
        (self.child, self.supervisor) = (child, supervisor)
        reader.unfinished = unfinished
        stream = ByteStream(loop, .unix)
        do throws(LoopError) { try stream.open(descriptor) } catch { preconditionFailure("control socket: \(error)") }
        stream.delegate = self
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        var bytes: [UInt8] = []
        FrameCodec.encode(frame, into: &bytes)
        stream.write(bytes)
    }

    func close() { stream.close() }

    /// Everything said has been taken.
    var isAtRest: Bool { stream.isClosed || stream.queuedBytes == 0 }
    /// For another program, which goes on with it; -1: it is closed.
    var descriptor: Int32 { stream.isClosed ? -1 : stream.descriptor }
    var unfinished: [UInt8] { reader.unfinished }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in supervisor.received(frame, from: child) }
        } catch {
            stream.close()  // it talks nonsense: it will see our end and go
        }
    }
    // The exit itself is told by SIGCHLD.
    func streamEnded(_ stream: ByteStream) {}
    func streamFailed(_ stream: ByteStream, _ error: LoopError) {}
    func streamDrained(_ stream: ByteStream) {}
}
