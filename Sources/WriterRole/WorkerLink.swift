import ControlWire
import Logging
import Loop
import Vocabulary

/// A connected worker.
final class WorkerLink: ByteStreamDelegate {
    private unowned let writer: Writer
    private let stream: ByteStream
    private var reader = FrameReader()
    private var isClosed = false

    init(_ writer: Writer, _ stream: ByteStream) {
        (self.writer, self.stream) = (writer, stream)
        stream.delegate = self
        stream.startReading()
    }

    func send(_ fill: (inout Frame) -> Void) {
        guard !isClosed else { return }
        var frame = Frame()
        fill(&frame)
        stream.write(FrameCodec.encode(frame))
    }

    private func answer(_ number: UInt64, _ reply: StoreReply) {
        send {
            $0.correlation = number
            $0.storeReply = reply
        }
    }

    func acknowledge(_ end: UInt64) { if !isClosed { stream.write(FrameCodec.encodeAck(end: end)) } }

    func pause() { stream.stopReading() }
    func resume() { if !isClosed { stream.startReading() } }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(FrameError) {
            try reader.feed(bodiesOf: bytes.bytes) { body throws(FrameError) in
                guard !isClosed else { return }
                if let batch = FrameCodec.usageBatch(in: body) {
                    return try writer.commits.received(body.extracting(batch), from: self)
                }
                let frame = try Frame(body: body)
                switch frame.body {
                case .hello(let hello):
                    // One of another build whose supervisor has died. What it has to tell stays in its journal, which becomes a file.
                    guard hello.protocol == protocolVersion else {
                        if writer.strangers.insert(hello.pid).inserted {
                            writer.log.warning(
                                "a worker speaks another protocol: its records stay with it",
                                metadata: ["pid": "\(hello.pid)", "protocol": "\(hello.protocol)", "ours": "\(protocolVersion)"])
                        }
                        return end()
                    }
                    writer.greeted(self)
                case .usageBatch(let batch): try writer.commits.received(FrameCodec.bytes(of: batch).span.bytes, from: self)
                case .storeCommand(let command):
                    let number = frame.correlation
                    writer.received(command, answer: number == 0 ? nil : { [weak self] in self?.answer(number, $0) })
                default: break  // a newer worker may say more
                }
            }
        } catch {
            writer.log.error("unreadable frame from a worker", metadata: ["error": "\(error)"])
            end()
        }
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    private func end() {
        guard !isClosed else { return }
        isClosed = true
        stream.close()
        writer.gone(self)
    }
}
