public import Foundation
import HTTPWire
import Loop
import Platform
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A scripted OpenAI- and ChatGPT-compatible server on 127.0.0.1, on a thread and loop of its own.
///
/// What it answers is chosen by the bearer token of a request, so a test tells its accounts apart by their keys.
/// Every method may be called from any thread.
public final class FakeUpstream: @unchecked Sendable {  // its parts: `book` has a lock, the loop is entered through `post` only
    private let book = Book()
    private let loop = EventLoop()
    public let port: UInt16

    public init(address: String = "127.0.0.1") throws {
        signal(SIGPIPE, SIG_IGN)  // libuv writes to connections that the other side has reset
        let descriptor = try Sockets.listen(.tcp(host: address, port: 0))
        port = UInt16(Sockets.name(of: descriptor).split(separator: ":").last!)!
        let (book, loop) = (book, loop)
        let thread = Thread {
            let server: FakeServer
            do { server = try FakeServer(loop, book, descriptor) } catch { fatalError("fake upstream: \(error)") }
            withExtendedLifetime(server) { loop.run() }
            server.end()
            loop.close()
        }
        thread.name = "fake-upstream"
        thread.start()
    }

    deinit { loop.post { [loop] in loop.stop() } }

    public var host: String { "127.0.0.1:\(port)" }
    /// Base URL of an API-key account.
    public var baseURL: String { "http://\(host)/v1" }
    /// Base URL of a ChatGPT account.
    public var chatGPTBaseURL: String { "http://\(host)/backend-api" }

    // MARK: Script

    /// Answers of the next POSTs with this bearer token, in order; after them its default, which is `Behaviour.ok`.
    public func script(_ bearer: String, _ behaviours: Behaviour...) {
        book.change { $0.queues[bearer, default: []] += behaviours }
    }

    /// The answer to every POST with this bearer token that the script says nothing about.
    public func always(_ bearer: String, _ behaviour: Behaviour) { book.change { $0.defaults[bearer] = behaviour } }

    /// The answer to every request of this path, whoever sends it (`GET /v1/models`), before anything else is looked at.
    public func always(path: String, bearer: String? = nil, _ behaviour: Behaviour) {
        book.change { $0.paths[(bearer ?? "*") + " " + path] = behaviour }
    }

    // MARK: What happened

    public var requests: [RecordedRequest] { book.read { $0.requests } }
    public func requests(_ bearer: String) -> [RecordedRequest] { requests.filter { $0.bearer == bearer } }
    /// POSTs per bearer token.
    public func calls(_ bearer: String) -> Int { book.read { book in book.requests.count { $0.bearer == bearer && $0.method == "POST" } } }
    public func forgetRequests() { book.change { $0.requests = [] } }

    /// Waits until so many requests have come in all (or with this token); false when `seconds` pass.
    @discardableResult
    public func wait(requests count: Int, _ bearer: String? = nil, seconds: Double = 10) -> Bool {
        book.wait(seconds) { book in
            count <= (bearer == nil ? book.requests.count : book.requests.count { $0.bearer == bearer })
        }
    }

    /// Waits until the other side has closed this connection.
    @discardableResult
    public func waitClosed(connection: Int, seconds: Double = 10) -> Bool { book.wait(seconds) { $0.closedByPeer.contains(connection) } }

    /// Connections that are open now.
    public var openConnections: Int { book.read { $0.open.count } }

    /// Bytes of answers that the kernel has taken, on one connection.
    public func bytesSent(connection: Int) -> Int { book.read { $0.sent[connection] ?? 0 } }

    /// Waits until a condition about this server's facts holds.
    @discardableResult
    public func wait(seconds: Double = 10, until condition: () -> Bool) -> Bool {
        let end = Date(timeIntervalSinceNow: seconds)
        while !condition() {
            if Date() > end { return false }
            book.waitForChange(until: Date(timeIntervalSinceNow: 0.05))
        }
        return true
    }
}

/// One request as it came.
public struct RecordedRequest: Sendable {
    public var method: String
    public var path: String
    /// Names in lower case, in order.
    public var headers: [(name: String, value: String)]
    public var body: [UInt8]
    /// Number of the connection, from 1.
    public var connection: Int
    public var time: Date
    public var bearer: String

    public func header(_ name: String) -> String? { headers.first { $0.name == name.lowercased() }?.value }
    public func headerCount(_ name: String) -> Int { headers.count { $0.name == name.lowercased() } }
    public var text: String { String(decoding: body, as: UTF8.self) }
    /// The body as a JSON object; empty when it is none.
    public var json: [String: Any] { (try? JSONSerialization.jsonObject(with: Data(body)) as? [String: Any]) ?? [:] }
}

/// What the loop's thread and the tests share.
final class Book: @unchecked Sendable {  // every access holds `condition`
    struct State {
        var queues: [String: [Behaviour]] = [:]
        var defaults: [String: Behaviour] = [:]
        var paths: [String: Behaviour] = [:]
        var requests: [RecordedRequest] = []
        var open: Set<Int> = []
        var closedByPeer: Set<Int> = []
        var sent: [Int: Int] = [:]
    }
    private let condition = NSCondition()
    private var state = State()

    func change(_ body: (inout State) -> Void) {
        condition.lock()
        body(&state)
        condition.broadcast()
        condition.unlock()
    }

    func read<T>(_ body: (State) -> T) -> T {
        condition.lock()
        defer { condition.unlock() }
        return body(state)
    }

    func wait(_ seconds: Double, _ holds: (State) -> Bool) -> Bool {
        let end = Date(timeIntervalSinceNow: seconds)
        condition.lock()
        defer { condition.unlock() }
        while !holds(state) {
            if !condition.wait(until: end) { return holds(state) }
        }
        return true
    }

    func waitForChange(until end: Date) {
        condition.lock()
        _ = condition.wait(until: end)
        condition.unlock()
    }

    /// Records a request and tells how to answer it.
    func came(_ request: RecordedRequest) -> Behaviour {
        condition.lock()
        defer {
            condition.broadcast()
            condition.unlock()
        }
        state.requests.append(request)
        let path = String(request.path.prefix { $0 != "?" })
        if let known = state.paths[request.bearer + " " + path] ?? state.paths["* " + path] { return known }
        guard request.method == "POST" else { return .ok }
        if state.queues[request.bearer]?.isEmpty == false { return state.queues[request.bearer]!.removeFirst() }
        return state.defaults[request.bearer] ?? .ok
    }
}

/// Runs on the loop's thread only.
final class FakeServer {
    let loop: EventLoop
    let book: Book
    private var listener: Listener?
    private var connections: [Int: FakeConnection] = [:]
    private var lastConnection = 0

    init(_ loop: EventLoop, _ book: Book, _ descriptor: Int32) throws {
        (self.loop, self.book) = (loop, book)
        listener = try Listener(loop, descriptor: descriptor, kind: .tcp) { [unowned self] stream in
            lastConnection += 1
            let id = lastConnection
            book.change { $0.open.insert(id) }
            connections[id] = FakeConnection(self, stream, id)
        }
    }

    func closed(_ connection: FakeConnection) {
        connections[connection.id] = nil
        book.change { $0.open.remove(connection.id) }
    }

    /// After the loop: lets go of what the handles hold.
    func end() { connections = [:] }
}

final class FakeConnection: ByteStreamDelegate {
    let id: Int
    private unowned let server: FakeServer
    private let stream: ByteStream
    private var input: [UInt8] = []
    private var scanned = 0
    private var request: (head: RequestHead, decoder: BodyDecoder)?
    private var body: [UInt8] = []
    private var steps: ArraySlice<Behaviour.Step> = []
    private var isBusy = false
    private var isClosed = false
    private var written = 0

    init(_ server: FakeServer, _ stream: ByteStream, _ id: Int) {
        (self.server, self.stream, self.id) = (server, stream, id)
        stream.delegate = self
        stream.startReading()
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if isBusy || !input.isEmpty {
            input += bytes
            advanceInput()
        } else {
            var offset = 0
            advance(bytes.bytes, &offset)
            input += bytes[offset...]
        }
    }

    private func advanceInput() {
        guard !isBusy, !isClosed, !input.isEmpty else { return }
        let whole = input
        input = []
        var offset = 0
        advance(whole.span.bytes, &offset)
        input.insert(contentsOf: whole[offset...], at: 0)
    }

    private func advance(_ bytes: RawSpan, _ offset: inout Int) {
        do throws(WireError) {
            while !isBusy, !isClosed, offset < bytes.byteCount {
                if request == nil {
                    guard let (head, consumed) = try RequestHead.parse(bytes.extracting(droppingFirst: offset), scanned: &scanned) else {
                        return
                    }
                    offset += consumed
                    request = (head, BodyDecoder(head.framing))
                    (scanned, body) = (0, [])
                    if head.expectsContinue { stream.write(Array("HTTP/1.1 100 Continue\r\n\r\n".utf8)) }
                }
                var isComplete = request!.head.framing == .none
                while !isComplete, let piece = try request!.decoder.next(bytes, &offset) {
                    switch piece {
                    case .data(let range): bytes.extracting(range).withUnsafeBytes { body += $0 }
                    case .end: isComplete = true
                    }
                }
                guard isComplete else { return }
                let head = request!.head
                request = nil
                answer(head)
            }
        } catch {
            stream.write(Array("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".utf8))
            end()
        }
    }

    private func answer(_ head: RequestHead) {
        var headers: [(name: String, value: String)] = []
        head.fields.forEach { _, name, value in
            headers.append((text(name).lowercased(), text(value)))
        }
        let authorization = headers.first { $0.name == "authorization" }?.value ?? ""
        let recorded = RecordedRequest(
            method: head.method.text, path: head.target, headers: headers, body: body, connection: id, time: Date(),
            bearer: authorization.hasPrefix("Bearer ") ? String(authorization.dropFirst(7)) : "")
        isBusy = true
        steps = server.book.came(recorded).steps(recorded)[...]
        run()
    }

    private func text(_ span: RawSpan) -> String { span.withUnsafeBytes { String(decoding: $0, as: UTF8.self) } }

    /// Performs the answer's steps for as long as nothing has to be waited for.
    private func run() {
        while !isClosed, let step = steps.first {
            switch step {
            case .bytes(let bytes):
                // The peer takes nothing more at the moment: `streamDrained` goes on.
                guard stream.queuedBytes == 0 else { return note() }
                steps.removeFirst()
                written += bytes.count
                stream.write(bytes)
                note()
            case .times(let count, let bytes):
                guard stream.queuedBytes == 0 else { return note() }
                steps[steps.startIndex] = .times(count - 1, bytes)
                if count <= 1 { steps.removeFirst() }
                written += bytes.count
                stream.write(bytes)
                note()
            case .gate(let gate):
                let me = Unchecked(self)
                let loop = server.loop
                guard gate.pass(orCall: { loop.post { me.value?.run() } }) else { return }
                steps.removeFirst()
            case .end:
                steps = []
                stream.shutdown()
                isBusy = true  // takes nothing more
                return
            case .close:
                return end()
            case .reset:
                stream.reset()
                closed()
                return
            }
        }
        note()
        guard !isClosed else { return }
        isBusy = false
        advanceInput()
    }

    private func note() {
        let taken = written - stream.queuedBytes
        server.book.change { $0.sent[id] = taken }
    }

    func streamDrained(_ stream: ByteStream) {
        note()
        if isBusy { run() }
    }

    func streamEnded(_ stream: ByteStream) {
        server.book.change { $0.closedByPeer.insert(id) }
        end()
    }

    func streamFailed(_ stream: ByteStream, _ error: LoopError) {
        server.book.change { $0.closedByPeer.insert(id) }
        end()
    }

    private func end() {
        guard !isClosed else { return }
        stream.close()
        closed()
    }

    private func closed() {
        isClosed = true
        steps = []
        server.closed(self)
    }
}

/// Carries a loop's object to the loop's own thread.
struct Unchecked<T: AnyObject>: @unchecked Sendable {
    weak var value: T?
    init(_ value: T) { self.value = value }
}
