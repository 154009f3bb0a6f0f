import ControlWire
import Diagnostics
import Loop
import Platform
import Vocabulary

/// The control socket to the supervisor.
final class SupervisorLink: ByteStreamDelegate {
    private weak var writer: Writer?
    private let stream: ByteStream
    private var reader = FrameReader()

    init(_ loop: EventLoop, _ heritage: Heritage) throws(LoopError) {
        stream = ByteStream(loop, .unix)
        try stream.open(heritage.control)
        stream.delegate = self
        send { $0.hello = Hello(role: "writer", generation: heritage.generation, pid: Process.id) }
    }

    func attach(_ writer: Writer) {
        self.writer = writer
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        var frame = Frame()
        fill(&frame)
        stream.write(FrameCodec.encode(frame))
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bytes.bytes) { frame throws(FrameError) in
                switch frame.body {
                case .logOrder(let order): if let writer { Logs.obey(order.level, reopens: order.reopen, writer.log) }
                case .drain(let drain): writer?.drain(milliseconds: Int(drain.milliseconds), handsOver: drain.handsOver)
                case .storeCommand(let command):
                    writer?.received(command) { [weak self] reply in
                        self?.send {
                            $0.correlation = frame.correlation
                            $0.storeReply = reply
                        }
                    }
                default: break
                }
            }
        } catch {
            supervisorGone()
        }
    }
    func streamEnded(_ stream: ByteStream) { supervisorGone() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { supervisorGone() }
    func streamDrained(_ stream: ByteStream) {}

    private func supervisorGone() { writer?.supervisorGone() }
}
