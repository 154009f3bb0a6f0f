public import Exchange
public import HTTPWire
internal import Loop
public import Vocabulary

/// One request and its whole answer, bounded in bytes and time: for what is no turn (a list of models, a token).
public final class Fetch: UpstreamUser {
    public struct Request {
        public var origin: Origin
        public var method: Method
        /// Path and query.
        public var target: String
        /// Beside `Host`, `User-Agent`, `Accept-Encoding` and the length.
        public var fields: [(name: String, value: String)]
        public var body: [UInt8]
        public init(
            _ method: Method, _ origin: Origin, _ target: String, fields: [(name: String, value: String)] = [], body: [UInt8] = []
        ) {
            (self.method, self.origin, self.target, self.fields, self.body) = (method, origin, target, fields, body)
        }
    }

    public struct Answer: Sendable {
        public var status: Int
        public var body: [UInt8]
        /// What tells this answer from the next (RFC 9110 §8.8.3).
        public var etag: String?
    }

    /// Why there is no answer, for people.
    public struct Problem: Error, Sendable {
        public var reason: String
        public init(reason: String) { self.reason = reason }
    }

    private let pool: UpstreamPool
    private let request: Request
    private let bytesMax: Int
    private let seconds: Int
    private let deadline: Instant
    private var done: ((Result<Answer, Problem>) -> Void)?
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    private var answer = Answer(status: 0, body: [])

    public init(_ pool: UpstreamPool, _ request: Request, bytesMax: Int, milliseconds: Int) {
        (self.pool, self.request, self.bytesMax, seconds) = (pool, request, bytesMax, milliseconds / 1000)
        deadline = pool.loop.now.adding(milliseconds: milliseconds)
    }

    /// `done` is called once, maybe at once, unless it is cancelled before.
    public func start(_ done: @escaping (Result<Answer, Problem>) -> Void) {
        self.done = done
        var isDone = false
        let attempt = pool.connection(to: request.origin, fresh: true) { [weak self] result in
            isDone = true
            guard let self, self.done != nil else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            connecting = nil
            switch result {
            case .success(let connection): send(on: connection)
            case .failure(.unreachable(let why)), .failure(.untrusted(let why)), .failure(.exhausted(let why)): fail(why)
            }
        }
        if !isDone { connecting = attempt }
    }

    private func send(on connection: UpstreamConnection) {
        guard connection.isFit() else { return fail("it sent bytes before it was asked") }
        self.connection = connection
        var head: [UInt8] = []
        HeadWriter.request(request.method, target: request.target, into: &head)
        HeadWriter.field("Host", request.origin.authority, into: &head)
        for (name, value) in request.fields { HeadWriter.field(named: name, value, into: &head) }
        HeadWriter.field("Accept-Encoding", "identity", into: &head)
        HeadWriter.field("User-Agent", "codex-lb/\(Version.text)", into: &head)
        if request.method == .post { HeadWriter.field("Content-Length", request.body.count, into: &head) }
        HeadWriter.end(into: &head)
        connection.send([head + request.body], method: request.method, for: self)
    }

    /// To be called again and again: its time may be over.
    public func sweep(_ now: Instant) {
        guard done != nil, now >= deadline else { return }
        end()
        fail("no answer in \(seconds) s")
    }

    public func cancel() {
        done = nil
        end()
    }

    private func end() {
        connecting?.cancel()
        connection?.close()
        (connecting, connection) = (nil, nil)
    }

    private func fail(_ why: String) { finish(.failure(Problem(reason: why))) }

    private func finish(_ result: Result<Answer, Problem>) {
        let done = self.done
        self.done = nil
        done?(result)
    }

    public func upstreamTookRequest() {}
    public func upstreamResponded(_ head: ResponseHead) {
        answer.status = head.status
        answer.etag = head.fields.first(named: "etag")
    }
    public func upstreamReceived(_ bytes: RawSpan) {
        guard answer.body.count + bytes.byteCount <= bytesMax else {
            end()
            return fail("its answer is larger than \(bytesMax) bytes")
        }
        bytes.withUnsafeBytes { answer.body += $0 }
    }
    public func upstreamPaused() {}
    public func upstreamCompleted() {
        connection = nil
        let whole = answer
        answer.body = []
        finish(.success(whole))
    }
    public func upstreamFailed(_ why: String, _ progress: UpstreamProgress) {
        connection = nil
        fail(why)
    }
}
