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
        let run = Run(loop, address, request: request(), connections: connections)
        var before: (Instant, Int, UInt64) = (loop.now, 0, 0)
        let begin = LoopTimer(loop) {
            run.reset()
            before = (loop.now, 0, CPU.ticks(pids))
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
        let elapsed = Double(loop.now.nanoseconds - before.0.nanoseconds) / 1e9
        let cpu = Double(CPU.ticks(pids) - before.2) / Double(sysconf(Int32(_SC_CLK_TCK)))
        let latencies = run.latencies.sorted()
        func quantile(_ q: Double) -> Double {
            latencies.isEmpty ? 0 : Double(latencies[min(latencies.count - 1, Int(Double(latencies.count) * q))]) / 1e6
        }
        func number(_ value: Double) -> String {
            let scaled = Int((value * 1000).rounded())
            let fraction = String(scaled % 1000)
            return "\(scaled / 1000)." + String(repeating: "0", count: 3 - fraction.count) + fraction
        }
        print(
            "{\"requests\":\(run.finished),\"errors\":\(run.errors),\"requests_per_second\":\(number(Double(run.finished) / elapsed)),"
                + "\"events_per_second\":\(number(Double(run.events) / elapsed)),\"p50_ms\":\(number(quantile(0.5))),\"p99_ms\":\(number(quantile(0.99))),"
                + "\"proxy_cpu_seconds\":\(number(cpu)),\"proxy_cpu_microseconds_per_request\":\(number(run.finished == 0 ? 0 : cpu * 1e6 / Double(run.finished))),"
                + "\"proxy_resident_kib\":\(memory),\"open\":\(run.open)}")
    }

    private func request() -> [UInt8] {
        var out: [UInt8] = []
        HeadWriter.request(.post, target: path, into: &out)
        HeadWriter.field("Host", target, into: &out)
        HeadWriter.field("Content-Type", "application/json", into: &out)
        HeadWriter.field("Content-Length", String(body.utf8.count), into: &out)
        HeadWriter.end(into: &out)
        out += body.utf8
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
    /// User and system time of the processes, in clock ticks.
    static func ticks(_ pids: [Int32]) -> UInt64 {
        pids.reduce(0) { sum, pid in
            let text = read("/proc/\(pid)/stat")
            guard let close = text.lastIndex(of: ")") else { return sum }
            let fields = text[text.index(close, offsetBy: 2)...].split(separator: " ")
            return sum + (UInt64(fields[11]) ?? 0) + (UInt64(fields[12]) ?? 0)
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

    init(_ loop: EventLoop, _ address: SocketAddress, request: [UInt8], connections: Int) {
        (self.loop, self.address, self.request, count) = (loop, address, request, connections)
    }
    func start() {
        clients = (0..<count).map { _ in Client(self) }
        for client in clients { client.connect() }
    }
    func reset() { (finished, errors, events, latencies) = (0, 0, 0, []) }
}

final class Client: ByteStreamDelegate {
    private unowned let run: Run
    private var stream: ByteStream?
    private var started = Instant(nanoseconds: 0)
    private var headBytes: [UInt8] = []
    private var scanned = 0
    private var decoder: BodyDecoder?
    private var last: UInt8 = 0

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
