import ArgumentParser
import HTTPWire
import Loop
import Platform
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A closed-loop HTTP/1.1 load generator: each connection sends its next request when the answer before it is complete.
/// One thread, one libuv loop. Load goes to loopback only.
@main
struct LoadGenerator: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "codex-lb-load", abstract: "Load on a loopback address, for benchmarks.")

    @Option(name: .long, help: "127.0.0.1:PORT") var target: String
    @Option(name: .long) var path = "/v1/responses"
    @Option(name: .long) var connections = 16
    @Option(name: .long, help: "Measured time.") var seconds = 5.0
    @Option(name: .long, help: "Time before it that is not counted.") var warmup = 1.0
    @Option(name: .long, help: "Request body.") var body = #"{"model":"demo-1","input":"Hello","stream":true}"#
    @Option(name: .customLong("body-bytes"), help: "Lengthen the body's input to this many bytes in all.") var bodyBytes = 0
    @Flag(name: .long, help: "Read the stamps of events (demo-upstream --stamps) and report how long these were under way.") var delays =
        false
    @Option(name: .long, help: "CPU to run on.") var pin: Int?
    @Option(name: .customLong("proxy-pid"), help: "Processes whose CPU time and memory are reported, separated by commas.") var proxyPIDs =
        ""

    func validate() throws {
        guard target.hasPrefix("127.") || target.hasPrefix("[::1]") || target.hasPrefix("localhost") else {
            throw ValidationError("load is sent to loopback only")
        }
        guard (1...20_000).contains(connections), seconds > 0, seconds <= 120 else {
            throw ValidationError("1 to 20000 connections, up to 120 seconds")
        }
    }

    static func main() {
        signal(SIGPIPE, SIG_IGN)
        do {
            let command = try parse()
            try command.run()
        } catch {
            exit(withError: error)
        }
    }

    func run() throws {
        if let pin { Process.pin(toCPU: pin) }
        _ = Process.descriptorLimit
        guard let colon = target.lastIndex(of: ":"), let port = UInt16(target[target.index(after: colon)...]),
            let address = SocketAddress(numeric: target[..<colon] == "localhost" ? "127.0.0.1" : String(target[..<colon]), port: port)
        else { throw ValidationError("--target ADDRESS:PORT") }
        let pids = proxyPIDs.split(separator: ",").compactMap { Int32($0) }
        let loop = EventLoop()
        let run = Run(loop, address, request: try request(), connections: connections, readsStamps: delays)
        var (started, before) = (loop.now, CPU.Ticks())
        let begin = LoopTimer(loop) {
            run.reset()
            (started, before) = (loop.now, CPU.ticks(pids))
        }
        begin.start(milliseconds: Int(warmup * 1000))
        var memory = 0
        let end = LoopTimer(loop) {
            memory = CPU.residentKiB(pids)
            loop.stop()
        }
        end.start(milliseconds: Int((warmup + seconds) * 1000))
        run.start()
        loop.run()
        let elapsed = Double(loop.now.nanoseconds - started.nanoseconds) / 1e9
        let after = CPU.ticks(pids)
        let tick = 1 / Double(sysconf(Int32(_SC_CLK_TCK)))
        let (user, kernel) = (Double(after.user - before.user) * tick, Double(after.kernel - before.kernel) * tick)
        let (latencies, delays) = (run.latencies.sorted(), run.delays.sorted())
        func quantile(_ sorted: [UInt64], _ q: Double) -> Double {
            sorted.isEmpty ? 0 : Double(sorted[min(sorted.count - 1, Int(Double(sorted.count) * q))]) / 1e6
        }
        let report: [(String, Double)] = [
            ("requests", Double(run.finished)), ("errors", Double(run.errors)), ("events", Double(run.events)), ("seconds", elapsed),
            ("requests_per_second", Double(run.finished) / elapsed), ("events_per_second", Double(run.events) / elapsed),
            ("p50_ms", quantile(latencies, 0.5)), ("p99_ms", quantile(latencies, 0.99)), ("event_delays", Double(delays.count)),
            ("event_delay_p50_ms", quantile(delays, 0.5)), ("event_delay_p99_ms", quantile(delays, 0.99)),
            ("proxy_user_seconds", user), ("proxy_kernel_seconds", kernel), ("proxy_resident_kib", Double(memory)),
            ("open", Double(run.open)),
        ]
        print("{" + report.map { "\"\($0)\":\(Self.decimal($1))" }.joined(separator: ",") + "}")
    }

    /// Without Foundation there is no format; a Double's own text may have an exponent, which JSON takes too.
    private static func decimal(_ value: Double) -> String { value == value.rounded() ? "\(Int(value))" : "\(value)" }

    private func request() throws -> [UInt8] {
        var body = Array(self.body.utf8)
        if body.count < bodyBytes {
            let start = Array("\"input\":\"".utf8)
            guard let at = body.indices.first(where: { body[$0...].starts(with: start) }) else {
                throw ValidationError("--body-bytes needs a body with an input")
            }
            body.insert(contentsOf: repeatElement(UInt8(ascii: "x"), count: bodyBytes - body.count), at: at + start.count)
        }
        var out: [UInt8] = []
        HeadWriter.request(.post, target: path, into: &out)
        HeadWriter.field("Host", target, into: &out)
        HeadWriter.field("Content-Type", "application/json", into: &out)
        HeadWriter.field("Content-Length", String(body.count), into: &out)
        HeadWriter.end(into: &out)
        out += body
        return out
    }
}

enum CPU {
    private static func read(_ path: String) -> String {
        guard let file = fopen(path, "r") else { return "" }
        defer { fclose(file) }
        var buffer = [UInt8](repeating: 0, count: 8192)
        let n = fread(&buffer, 1, buffer.count, file)
        return String(decoding: buffer[..<n], as: UTF8.self)
    }
    struct Ticks { var (user, kernel): (UInt64, UInt64) = (0, 0) }

    /// User and system time of the processes, in clock ticks.
    static func ticks(_ pids: [Int32]) -> Ticks {
        pids.reduce(into: Ticks()) { sum, pid in
            let text = read("/proc/\(pid)/stat")
            guard let close = text.lastIndex(of: ")") else { return }
            let fields = text[text.index(close, offsetBy: 2)...].split(separator: " ")
            sum.user += UInt64(fields[11]) ?? 0
            sum.kernel += UInt64(fields[12]) ?? 0
        }
    }
    static func residentKiB(_ pids: [Int32]) -> Int {
        pids.reduce(0) { sum, pid in
            let line = read("/proc/\(pid)/status").split(separator: "\n").first { $0.hasPrefix("VmRSS:") }
            return sum + (line?.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap { Int($0) } ?? 0)
        }
    }
}

final class Run {
    let loop: EventLoop
    let address: SocketAddress
    let request: [UInt8]
    private let count: Int
    private var clients: [Client] = []
    var finished = 0
    var errors = 0
    var events = 0
    var open = 0
    var latencies: [UInt64] = []
    /// How long stamped events were under way, nanoseconds.
    var delays: [UInt64] = []
    let readsStamps: Bool

    init(_ loop: EventLoop, _ address: SocketAddress, request: [UInt8], connections: Int, readsStamps: Bool) {
        (self.loop, self.address, self.request, count, self.readsStamps) = (loop, address, request, connections, readsStamps)
    }
    func start() {
        clients = (0..<count).map { _ in Client(self) }
        for client in clients { client.connect() }
    }
    func reset() { (finished, errors, events, latencies, delays) = (0, 0, 0, [], []) }
}

final class Client: ByteStreamDelegate {
    private unowned let run: Run
    private var stream: ByteStream?
    private var started = Instant(nanoseconds: 0)
    private var headBytes: [UInt8] = []
    private var scanned = 0
    private var decoder: BodyDecoder?
    private var last: UInt8 = 0
    private var stamp = Stamp()

    init(_ run: Run) { self.run = run }

    func connect() {
        let stream = ByteStream(run.loop, .tcp)
        self.stream = stream
        stream.delegate = self
        stream.connect(to: run.address) { [unowned self] error in
            guard error == nil else { return lost() }
            stream.startReading()
            run.open += 1
            send()
        }
    }

    private func send() {
        started = run.loop.now
        (headBytes, scanned, decoder) = ([], 0, nil)
        stream?.write(run.request)
    }

    private func lost() {
        run.errors += 1
        stream?.close()
        guard run.errors < 10_000 else { return run.loop.stop() }
        connect()
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        do throws(WireError) {
            if var decoder {
                var offset = 0
                let isOver = try take(&decoder, bytes.bytes, &offset)
                self.decoder = decoder
                if isOver { complete() }
            } else {
                headBytes += bytes
                let whole = headBytes
                guard let (head, consumed) = try ResponseHead.parse(whole.span.bytes, scanned: &scanned) else { return }
                if head.status != 200 { run.errors += 1 }
                var decoder = BodyDecoder(head.framing(toMethod: .post))
                var offset = consumed
                let isOver = try take(&decoder, whole.span.bytes, &offset)
                self.decoder = decoder
                if isOver { complete() }
            }
        } catch {
            run.open -= 1
            lost()
        }
    }

    /// Counts events by their blank lines.
    private func take(_ decoder: inout BodyDecoder, _ bytes: RawSpan, _ offset: inout Int) throws(WireError) -> Bool {
        while let piece = try decoder.next(bytes, &offset) {
            switch piece {
            case .data(let range):
                if run.readsStamps { readStamps(bytes, range) }
                for i in range {
                    let b = bytes.unsafeLoad(fromUncheckedByteOffset: i, as: UInt8.self)
                    if b == 10, last == 10 { run.events += 1 }
                    last = b
                }
            case .end: return true
            }
        }
        return false
    }

    private func readStamps(_ bytes: RawSpan, _ range: Range<Int>) {
        let now = Clock.now.nanoseconds
        for i in range {
            if let sent = stamp.found(bytes.unsafeLoad(fromUncheckedByteOffset: i, as: UInt8.self)) {
                run.delays.append(now - min(now, sent))
            }
        }
    }

    private func complete() {
        run.finished += 1
        run.latencies.append(run.loop.now.nanoseconds - started.nanoseconds)
        send()
    }

    func streamEnded(_ stream: ByteStream) {
        run.open -= 1
        lost()
    }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) {
        run.open -= 1
        lost()
    }
    func streamDrained(_ stream: ByteStream) {}
}

/// Finds `"sent":"NANOSECONDS"` in bytes that come in pieces.
struct Stamp {
    private static let mark = Array("\"sent\":\"".utf8)
    private var matched = 0
    private var value: UInt64 = 0

    mutating func found(_ byte: UInt8) -> UInt64? {
        guard matched == Self.mark.count else {
            // The mark's first byte stands in it again, but nothing longer does.
            matched = byte == Self.mark[matched] ? matched + 1 : byte == Self.mark[0] ? 1 : 0
            value = 0
            return nil
        }
        if byte >= 0x30, byte <= 0x39 {
            value = value &* 10 &+ UInt64(byte - 0x30)
            return nil
        }
        matched = 0
        return byte == Self.mark[0] ? value : nil
    }
}
