import ArgumentParser
import ControlWire
import Loop
import PostgresStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Measures the way of usage records into the store: through a running writer's socket as a worker does it, or into PostgreSQL.
/// Prints one JSON object: records per second, and milliseconds from sending a batch to its acknowledgement.
@main
struct StoreBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "codex-lb-store-bench", abstract: "Usage records per second, for benchmarks.")

    @Option(name: .long, help: "The writer's socket: <data>/run/writer.sock.") var socket: String?
    @Option(name: .long, help: "postgresql://…: a migrated database.") var postgres: String?
    @Option(name: .long, help: "Records of one batch.") var batch = 200
    @Option(name: .long, help: "Batches on their way at a time.") var depth = 4
    @Option(name: .long) var seconds = 5.0
    @Option(name: .long, help: "Records per second to send at most; 0: as fast as it goes.") var rate = 0
    @Option(name: .long, help: "Records to send at most; 0: as many as there is time for.") var records = 0

    func validate() throws {
        guard (socket == nil) != (postgres == nil) else { throw ValidationError("give --socket or --postgres") }
        guard (1...1000).contains(batch), (1...64).contains(depth), seconds > 0, seconds <= 600 else {
            throw ValidationError("--batch 1 to 1000, --depth 1 to 64, --seconds up to 600")
        }
    }

    /// Synchronous on purpose: the main thread runs the loop.
    static func main() {
        signal(SIGPIPE, SIG_IGN)
        do { try parse().run() } catch { exit(withError: error) }
    }

    func run() throws {
        let loop = EventLoop()
        let meter = Meter(loop, self)
        if let socket {
            meter.sink = WriterSink(loop, socket, meter)
        } else {
            let url = try DatabaseURL.parse(postgres ?? "", setting: "--postgres") { $0 }
            guard case .postgresql(let target) = url else { throw ValidationError("--postgres takes a postgresql:// URL") }
            meter.sink = PostgresSink(loop, target, meter)
        }
        meter.sink.start()
        loop.run()
        print(meter.report)
    }
}

private func fail(_ what: String) -> Never {
    let line = Array("codex-lb-store-bench: \(what)\n".utf8)
    _ = write(2, line, line.count)  // when stderr is gone there is nobody to tell
    exit(1)
}

private protocol Sink: AnyObject {
    /// Calls `meter.ready()` when it can take batches.
    func start()
    /// Calls `meter.acknowledged()` for each batch in order.
    func send(_ records: [UsageRecord])
}

private final class Meter {
    let loop: EventLoop
    let options: StoreBench
    var sink: (any Sink)!
    private var sentAt: [Instant] = []
    private var latencies: [Double] = []
    private var start = Instant.never
    private var lastAck = Instant.never
    private var records = 0
    private var sent = 0
    private var number: UInt64 = 0
    private var timer: LoopTimer!

    init(_ loop: EventLoop, _ options: StoreBench) {
        (self.loop, self.options) = (loop, options)
        timer = LoopTimer(loop) { [unowned self] in fill() }
    }

    func ready() {
        start = loop.now
        timer.start(milliseconds: 1, repeating: 1)
        fill()
    }

    private func fill() {
        let now = loop.now
        let isOver =
            now >= start.adding(milliseconds: Int(options.seconds * 1000)) || options.records > 0 && sent >= options.records
        if isOver {
            if sentAt.isEmpty || now >= start.adding(milliseconds: Int(options.seconds * 1000) + 10_000) { loop.stop() }
            return
        }
        while sentAt.count < options.depth, options.records == 0 || sent < options.records {
            if options.rate > 0, sent + options.batch > options.rate * now.milliseconds(since: start) / 1000 { return }
            sent += options.batch
            sentAt.append(loop.now)
            sink.send((0..<options.batch).map { _ in record() })
        }
    }

    private func record() -> UsageRecord {
        number += 1
        let now = Clock.wall
        var r = UsageRecord(
            id: RecordID(time: now, random: (number & 0xFFF, UInt64.random(in: 0...UInt64.max))), time: now, route: "/v1/responses",
            requestID: "req_0123456789abcdef\(number)")
        (r.modelAsked, r.modelServed, r.status, r.accountID, r.keyID) = ("gpt-5.4", "gpt-5.4-2026-03-05", 200, 1, 1)
        (r.inputTokens, r.cachedInputTokens, r.outputTokens, r.reasoningTokens, r.costMicrodollars) = (1200, 800, 350, 120, 6400)
        (r.firstByteMilliseconds, r.durationMilliseconds, r.attempts, r.requestBytes, r.responseBytes) = (420, 8_300, 1, 40_000, 22_000)
        return r
    }

    func acknowledged() {
        let now = loop.now
        latencies.append(Double(now.nanoseconds - sentAt.removeFirst().nanoseconds) / 1e6)
        records += options.batch
        lastAck = now
        fill()
    }

    var report: String {
        let sorted = latencies.sorted()
        func at(_ share: Double) -> Double {
            sorted.isEmpty ? 0 : (sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))] * 100).rounded() / 100
        }
        let span = Double(lastAck.milliseconds(since: start)) / 1000
        return
            "{\"records\":\(records),\"records_per_second\":\(Int(Double(records) / max(span, 0.001))),\"ack_p50_ms\":\(at(0.5)),\"ack_p99_ms\":\(at(0.99)),\"ack_max_ms\":\(at(1)),\"unanswered\":\(sentAt.count)}"
    }
}

private final class WriterSink: Sink, ByteStreamDelegate {
    private let stream: ByteStream
    private let path: String
    private unowned let meter: Meter
    private var reader = FrameReader()
    private var end: UInt64 = 0
    private var acknowledged: UInt64 = 0

    init(_ loop: EventLoop, _ path: String, _ meter: Meter) {
        (stream, self.path, self.meter) = (ByteStream(loop, .unix), path, meter)
        stream.delegate = self
    }

    func start() {
        stream.connect(to: SocketAddress(host: .unix(path), port: 0)) { [self] error in
            guard error == nil else { return failed("\(path): \(error!)") }
            stream.startReading()
            var hello = Hello()
            hello.protocol = protocolVersion
            hello.role = "worker"
            stream.write(FrameCodec.encode(Frame(.hello(hello))))
            meter.ready()
        }
    }

    func send(_ records: [UsageRecord]) {
        end += 1
        var (batch, frame): ([UInt8], [UInt8]) = ([], [])
        for record in records { FrameCodec.append(record: record.journalBytes.span.bytes, to: &batch) }
        FrameCodec.encodeBatch(end: end, records: batch, into: &frame)
        stream.write(frame)
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do {
            try reader.feed(bytes.bytes) { frame in
                guard case .usageAck(let ack)? = frame.body else { return }
                while acknowledged < ack.end {
                    acknowledged += 1
                    meter.acknowledged()
                }
            }
        } catch {
            failed("\(error)")
        }
    }
    func streamEnded(_ stream: ByteStream) { failed("the writer closed the connection") }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { failed("\(error)") }
    func streamDrained(_ stream: ByteStream) {}

    private func failed(_ what: String) { fail(what) }
}

private final class PostgresSink: Sink {
    private let pool: PostgresPool
    private let lane: RecordQueue
    private unowned let meter: Meter
    private let timer: LoopTimer

    init(_ loop: EventLoop, _ url: PostgresURL, _ meter: Meter) {
        let pool = PostgresPool(loop, PostgresTarget(url), PoolMachine.Limits(size: 2, overflow: 0, waitMilliseconds: 5_000))
        let lane = RecordQueue(loop, pool)
        (self.pool, self.lane, self.meter) = (pool, lane, meter)
        timer = LoopTimer(loop) {
            pool.sweep(loop.now)
            lane.sweep(loop.now)
        }
        lane.failed = { fail("\($0)") }
    }

    func start() {
        timer.start(milliseconds: 50, repeating: 50)
        pool.rows(Queries.revision) { [self] result in
            if case .failure(let error) = result { lane.failed(error) }
            meter.ready()
        }
    }

    func send(_ records: [UsageRecord]) { lane.append(records) { [self] _ in meter.acknowledged() } }
}
