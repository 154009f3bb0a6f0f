import Bytes
import HTTPWire
import JSONWire
public import Loop
public import Platform
import Vocabulary

/// A small OpenAI-compatible server with canned text: for `make demo`, and as the upstream of benchmarks.
public final class DemoUpstream {
    public struct Options: Sendable {
        /// Text deltas of a streamed answer.
        public var events = 20
        /// Milliseconds between them; 0 sends all at once.
        public var intervalMilliseconds = 60
        /// Text deltas tell when they were sent, for measurements of delay: `"sent":"…"`, nanoseconds of CLOCK_MONOTONIC.
        public var hasStamps = false
        public init() {}
    }

    let loop: EventLoop
    let options: Options
    private var listener: Listener?
    private var connections: [ObjectIdentifier: DemoConnection] = [:]
    /// Connections with a stream in progress, by the tick of an interval in which theirs come: as many streams as there may be, they are
    /// not all sent to at once.
    private var streaming: [[ObjectIdentifier: DemoConnection]]
    private var tick = 0
    private var timer: LoopTimer?
    private var begun = 0
    private var open = 0
    private static let tickMillisecondsMin = 5
    fileprivate(set) var logins = DemoLogins()
    /// Streams made so far, as chunks, by what was asked for.
    private var streams: [String: [[UInt8]]] = [:]

    /// Serves on a bound descriptor for as long as the loop runs.
    public init(_ loop: EventLoop, descriptor: Int32, options: Options) throws(SystemError) {
        (self.loop, self.options) = (loop, options)
        let interval = options.intervalMilliseconds
        let ticks = (1...max(1, interval / Self.tickMillisecondsMin)).last { interval % $0 == 0 } ?? 1
        streaming = Array(repeating: [:], count: ticks)
        do throws(LoopError) {
            listener = try Listener(loop, descriptor: descriptor, kind: .tcp) { [unowned self] stream in
                let connection = DemoConnection(self, stream)
                connections[ObjectIdentifier(connection)] = connection
            }
        } catch {
            throw SystemError(-error.code, "demo upstream")
        }
        if interval > 0 {
            timer = LoopTimer(loop) { [unowned self] in
                tick = (tick + 1) % ticks
                for connection in streaming[tick].values { connection.sendNext() }
            }
        }
    }

    func closed(_ connection: DemoConnection) {
        connections[ObjectIdentifier(connection)] = nil
        endStreaming(connection)
    }

    /// The chunks of a stream, made once.
    func chunks(_ name: String, _ make: () -> [String]) -> [[UInt8]] {
        if let known = streams[name] { return known }
        let made = make().map { DemoConnection.chunk($0) }
        if streams.count < 64 { streams[name] = made }
        return made
    }

    /// The first event goes out at once, the next one within an interval, the others an interval apart.
    func beginStreaming(_ connection: DemoConnection) {
        let tick = begun % streaming.count
        connection.tick = tick
        streaming[tick][ObjectIdentifier(connection)] = connection
        begun += 1
        open += 1
        let milliseconds = options.intervalMilliseconds / streaming.count
        if open == 1 { timer?.start(milliseconds: milliseconds, repeating: milliseconds) }
    }

    func endStreaming(_ connection: DemoConnection) {
        guard let tick = connection.tick else { return }
        streaming[tick][ObjectIdentifier(connection)] = nil
        connection.tick = nil
        open -= 1
        if open == 0 { timer?.stop() }
    }

    /// Runs the server alone in this process until a signal ends it.
    public static func run(listen address: ListenAddress, options: Options, announce: (String) -> Void) throws(SystemError) {
        let loop = EventLoop()
        let descriptor = try Sockets.listen(address)
        let server = try DemoUpstream(loop, descriptor: descriptor, options: options)
        announce(Sockets.name(of: descriptor))
        withExtendedLifetime(server) { loop.run() }
    }

    /// The tokens of a login of the demo as Codex keeps them.
    public static func authFile(_ name: String) -> String {
        "{\"auth_mode\":\"chatgpt\",\"tokens\":{\"access_token\":\"demo-\(name)-0\",\"refresh_token\":\"demo-refresh-\(name)-0\",\"id_token\":\"\(idToken(name))\",\"account_id\":\"demo-\(name)\"}}"
    }

    static func idToken(_ name: String) -> String {
        let claims =
            "{\"email\":\"\(name)@demo.example\",\"https://api.openai.com/auth\":{\"chatgpt_account_id\":\"demo-\(name)\",\"chatgpt_user_id\":\"demo-\(name)\"}}"
        return "eyJhbGciOiJub25lIn0.\(Base64.url.encode(Array(claims.utf8)))."
    }

    static let words = [
        "Hello", " from", " the", " demo", " upstream", ".", " These", " words", " are", " canned", ",", " the", " stream", " is", " real",
        ":", " each",
        " is", " one", " event", ".",
    ]
}

final class DemoConnection: ByteStreamDelegate {
    private unowned let server: DemoUpstream
    private let stream: ByteStream
    private var input: [UInt8] = []
    private var scanned = 0
    private var request: (head: RequestHead, decoder: BodyDecoder)?
    private var body: [UInt8] = []
    private var pieces: [[UInt8]] = []
    private var nextPiece = 0
    private var isBusy = false
    /// Whose request is answered; nil of one without a login of the demo.
    private var login: String?
    /// When its events come while a stream is in progress.
    var tick: Int?

    init(_ server: DemoUpstream, _ stream: ByteStream) {
        (self.server, self.stream) = (server, stream)
        stream.delegate = self
        stream.startReading()
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        input += bytes
        work()
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    private func end() {
        stream.close()
        server.closed(self)
    }

    private func work() {
        do throws(WireError) {
            while !isBusy, !input.isEmpty {
                let whole = input
                var offset = 0
                if request == nil {
                    guard let (head, consumed) = try RequestHead.parse(whole.span.bytes, scanned: &scanned) else { return }
                    request = (head, BodyDecoder(head.framing))
                    (scanned, offset, body) = (0, consumed, [])
                    if head.expectsContinue { stream.write(Array("HTTP/1.1 100 Continue\r\n\r\n".utf8)) }
                }
                var isComplete = request!.head.framing == .none
                while !isComplete, let piece = try request!.decoder.next(whole.span.bytes, &offset) {
                    switch piece {
                    case .data(let range): body += whole[range]
                    case .end: isComplete = true
                    }
                }
                input.removeFirst(offset)
                guard isComplete else { return }
                let head = request!.head
                request = nil
                answer(head)
            }
        } catch {
            end()
        }
    }

    private func answer(_ head: RequestHead) {
        login = nil
        let request = body
        let json = request.span.bytes
        let model = JSONScan.find(json, "model").flatMap { JSONScan.string(json, $0) } ?? "demo-1"
        let isStream = JSONScan.find(json, "stream").flatMap { JSONScan.bool(json, $0) } ?? false
        let path =
            head.path.hasPrefix("/v1/")
            ? String(head.path.dropFirst(3)) : head.path.hasPrefix("/backend-api/") ? String(head.path.dropFirst(12)) : head.path
        switch path {
        case "/responses":
            isStream
                ? begin("responses \(model)") { Self.responseEvents(model, server.options) }
                : whole(Self.response(model, server.options.events))
        case "/codex/responses":
            login = DemoLogins.name(head.fields.first(.authorization))
            if let refusal = login.flatMap({ server.logins.turn($0) }) { return whole(refusal.json, status: refusal.status) }
            begin("responses \(model)") { Self.responseEvents(model, server.options) }
        case "/wham/usage":
            let answer = server.logins.usage(DemoLogins.name(head.fields.first(.authorization)) ?? "guest")
            whole(answer.json, status: answer.status)
        case "/oauth/token", "/api/accounts/deviceauth/usercode", "/api/accounts/deviceauth/token":
            let answer =
                path == "/oauth/token"
                ? server.logins.token(json) : path.hasSuffix("usercode") ? server.logins.deviceCode() : server.logins.devicePoll()
            whole(answer.json, status: answer.status)
        case "/chat/completions":
            if isStream {
                let usage = JSONScan.find(json, "stream_options", "include_usage").flatMap { JSONScan.bool(json, $0) } ?? false
                begin("chat \(usage) \(model)") { Self.chatChunks(model, server.options.events, usage) }
            } else {
                whole(Self.chat(model, server.options.events))
            }
        case "/embeddings":
            whole(
                "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.1,0.2,0.3]}],\"model\":\"\(model)\",\"usage\":{\"prompt_tokens\":5,\"total_tokens\":5}}"
            )
        case "/models", "/codex/models":
            whole("{\"object\":\"list\",\"data\":[{\"id\":\"demo-1\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"demo\"}]}")
        default:
            whole(
                "{\"error\":{\"message\":\"no such path\",\"type\":\"invalid_request_error\",\"code\":\"not_found\",\"param\":null}}",
                status: 404)
        }
    }

    private func whole(_ json: String, status: Int = 200) {
        var out: [UInt8] = []
        HeadWriter.status(status, into: &out)
        HeadWriter.field("Content-Type", "application/json", into: &out)
        HeadWriter.field("Content-Length", String(json.utf8.count), into: &out)
        HeadWriter.end(into: &out)
        out += json.utf8
        stream.write(out)
    }

    private func begin(_ name: String, _ events: () -> [String]) {
        var out: [UInt8] = []
        HeadWriter.status(200, into: &out)
        HeadWriter.field("Content-Type", "text/event-stream; charset=utf-8", into: &out)
        HeadWriter.field("Transfer-Encoding", "chunked", into: &out)
        if let login { server.logins.quotaFields(login, into: &out) }
        HeadWriter.end(into: &out)
        pieces = server.chunks(name, events)
        nextPiece = 0
        if server.options.intervalMilliseconds == 0 {
            for piece in pieces { out += piece }
            out += HeadWriter.lastChunk
            stream.write(out)
        } else {
            isBusy = true
            stream.write(out)
            sendNext()
            server.beginStreaming(self)
        }
    }

    func sendNext() {
        var piece = pieces[nextPiece]
        if server.options.hasStamps, let digits = Self.stampDigits(piece) {
            let now = String(Clock.now.nanoseconds)
            piece.replaceSubrange(digits.suffix(now.utf8.count), with: now.utf8)
        }
        stream.write(piece)
        nextPiece += 1
        guard nextPiece == pieces.count else { return }
        stream.write(HeadWriter.lastChunk)
        server.endStreaming(self)
        isBusy = false
        work()
    }

    static func chunk(_ text: String) -> [UInt8] {
        var out: [UInt8] = []
        HeadWriter.chunkStart(count: text.utf8.count, into: &out)
        out += text.utf8
        out += [13, 10]
        return out
    }

    // Stamps

    private static let stamp = ",\"sent\":\"" + String(repeating: "0", count: 20) + "\""

    /// Where the digits of a stamp stand in a chunk; it ends its event.
    private static func stampDigits(_ chunk: [UInt8]) -> Range<Int>? {
        let end = chunk.count - "\"}\n\n\r\n".utf8.count
        let begin = end - (stamp.utf8.count - 1)
        return begin > 0 && chunk[begin..<end].elementsEqual(stamp.utf8.dropLast()) ? end - 20..<end : nil
    }

    // Canned texts

    private static func text(_ events: Int) -> String { (0..<events).map { DemoUpstream.words[$0 % DemoUpstream.words.count] }.joined() }
    private static func usage(_ events: Int) -> String {
        "{\"input_tokens\":12,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":\(events),\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":\(events + 12)}"
    }
    private static func chatUsage(_ events: Int) -> String {
        "{\"prompt_tokens\":12,\"completion_tokens\":\(events),\"total_tokens\":\(events + 12),\"prompt_tokens_details\":{\"cached_tokens\":4},\"completion_tokens_details\":{\"reasoning_tokens\":0}}"
    }
    private static func item(_ events: Int) -> String {
        "{\"id\":\"msg_demo\",\"type\":\"message\",\"status\":\"completed\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"\(text(events))\",\"annotations\":[]}]}"
    }
    private static func responseObject(_ model: String, status: String, output: String, usage: String) -> String {
        "{\"id\":\"resp_demo\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"\(status)\",\"model\":\"\(model)\",\"output\":[\(output)],\"error\":null,\"incomplete_details\":null,\"instructions\":null,\"metadata\":{},\"parallel_tool_calls\":true,\"temperature\":1.0,\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"usage\":\(usage)}"
    }
    static func response(_ model: String, _ events: Int) -> String {
        responseObject(model, status: "completed", output: item(events), usage: usage(events))
    }
    static func responseEvents(_ model: String, _ options: DemoUpstream.Options) -> [String] {
        let events = options.events
        var sequence = -1
        func event(_ type: String, _ rest: String) -> String {
            sequence += 1
            return "event: \(type)\ndata: {\"type\":\"\(type)\",\"sequence_number\":\(sequence),\(rest)}\n\n"
        }
        var out = [event("response.created", "\"response\":" + responseObject(model, status: "in_progress", output: "", usage: "null"))]
        out.append(
            event(
                "response.output_item.added",
                "\"output_index\":0,\"item\":{\"id\":\"msg_demo\",\"type\":\"message\",\"status\":\"in_progress\",\"role\":\"assistant\",\"content\":[]}"
            ))
        out.append(
            event(
                "response.content_part.added",
                "\"item_id\":\"msg_demo\",\"output_index\":0,\"content_index\":0,\"part\":{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[]}"
            ))
        for i in 0..<events {
            let word = DemoUpstream.words[i % DemoUpstream.words.count]
            out.append(
                event(
                    "response.output_text.delta",
                    "\"item_id\":\"msg_demo\",\"output_index\":0,\"content_index\":0,\"delta\":\"\(word)\",\"logprobs\":[]"
                        + (options.hasStamps ? stamp : "")))
        }
        out.append(event("response.output_item.done", "\"output_index\":0,\"item\":" + item(events)))
        out.append(
            event(
                "response.completed",
                "\"response\":" + responseObject(model, status: "completed", output: item(events), usage: usage(events))))
        return out
    }
    static func chat(_ model: String, _ events: Int) -> String {
        "{\"id\":\"chatcmpl-demo\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"\(model)\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"\(text(events))\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":\(chatUsage(events))}"
    }
    static func chatChunks(_ model: String, _ events: Int, _ withUsage: Bool) -> [String] {
        func chunk(_ choices: String, _ usage: String) -> String {
            "data: {\"id\":\"chatcmpl-demo\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"\(model)\",\"choices\":[\(choices)]\(withUsage ? ",\"usage\":\(usage)" : "")}\n\n"
        }
        var out = [chunk("{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}", "null")]
        for i in 0..<events {
            let word = DemoUpstream.words[i % DemoUpstream.words.count]
            out.append(chunk("{\"index\":0,\"delta\":{\"content\":\"\(word)\"},\"finish_reason\":null}", "null"))
        }
        out.append(chunk("{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}", "null"))
        if withUsage { out.append(chunk("", chatUsage(events))) }
        out.append("data: [DONE]\n\n")
        return out
    }
}
