import Exchange
import HTTPWire
import JSONWire
import Logging
import Loop
import Settings
import Vocabulary

/// The models of all accounts as one list, asked from their upstreams and kept for a while.
final class ModelCatalogue {
    private unowned let worker: Worker
    private struct Model {
        var id: String
        var json: JSONValue
    }
    private var models: [Model] = []
    private var validUntil = Instant(nanoseconds: 0)
    private var waiting: [(ClientRequest, ClientConnection)] = []
    private var fetches: [ModelFetch] = []
    private var problems: [String] = []
    /// The accounts have changed since the fetches began: what they bring is answered, not kept.
    private var isOutdated = false

    static let cacheMilliseconds = 300_000
    /// After a refresh in which an account failed, ask again sooner.
    static let partialCacheMilliseconds = 15_000
    static let fetchMilliseconds = 10_000

    init(_ worker: Worker) { self.worker = worker }

    /// Accounts have changed.
    func forget() {
        validUntil = Instant(nanoseconds: 0)
        isOutdated = true
    }

    func answer(_ request: ClientRequest, on client: ClientConnection) {
        if worker.loop.now < validUntil { return respond(request, client) }
        waiting.append((request, client))
        if fetches.isEmpty { refresh() }
    }

    private func refresh() {
        let active = worker.accounts.filter { $0.value.state == .active }
        // Accounts of one origin with one kind may still differ in their models: each is asked.
        guard !active.isEmpty else { return finish([]) }
        problems = []
        isOutdated = false
        var found: [[Model]?] = Array(repeating: nil, count: active.count)
        var open = active.count
        fetches = active.map { ModelFetch(worker, $0) }
        for (i, fetch) in fetches.enumerated() {
            fetch.start { [unowned self] result in
                switch result {
                case .success(let body): found[i] = Self.models(in: body)
                case .failure(let error): problems.append("\(active[i].value.name): \(error.message)")
                }
                open -= 1
                if open == 0 { finish(found) }
            }
        }
    }

    private func finish(_ found: [[Model]?]) {
        fetches = []
        var seen: Set<String> = []
        let fresh = found.compactMap { $0 }.joined().filter { seen.insert($0.id).inserted }
        let failed = found.contains { $0 == nil }
        if !fresh.isEmpty || !failed { models = Array(fresh) }
        if !isOutdated {
            validUntil = worker.loop.now.adding(milliseconds: failed ? Self.partialCacheMilliseconds : Self.cacheMilliseconds)
        }
        if failed {
            worker.log.notice("models of some accounts could not be listed", metadata: ["problems": "\(problems.joined(separator: "; "))"])
        }
        let all = waiting
        waiting = []
        for (request, client) in all { respond(request, client) }
    }

    private func respond(_ request: ClientRequest, _ client: ClientConnection) {
        if worker.accounts.isEmpty { return client.respond(worker.noAccounts(for: request.route), requestID: request.id) }
        if models.isEmpty, !problems.isEmpty {
            return client.respond(
                ProxyError(
                    status: 502, code: "upstream_unavailable", type: "server_error",
                    message: "No account's models could be listed: \(problems.joined(separator: "; "))", origin: .upstream),
                requestID: request.id)
        }
        let allowed = models.filter { model in request.key?.models.map { $0.contains(model.id) } ?? true }
        let list = JSONValue.array(allowed.map(\.json))
        let isCodex = request.route == .codexModels || request.head.query?.contains("client_version") == true
        var out: [UInt8] = isCodex ? Array("{\"models\":".utf8) : Array("{\"object\":\"list\",\"data\":".utf8)
        out += list.serialized()
        if isCodex {
            out += ",\"data\":".utf8
            out += list.serialized()
        }
        out += "}".utf8
        client.respond(200, "application/json", out, requestID: request.id)
    }

    /// `{"data":[{"id"}]}` of OpenAI or `{"models":[{"slug"}]}` of Codex.
    private static func models(in body: [UInt8]) -> [Model] {
        guard let value = try? JSONValue(parsing: body.span.bytes) else { return [] }  // no JSON: no models
        let list = value["data"]?.arrayValue ?? value["models"]?.arrayValue ?? []
        return list.compactMap { entry in
            guard let id = entry["id"]?.stringValue ?? entry["slug"]?.stringValue else { return nil }
            var json = entry
            if json["id"] == nil { json["id"] = .string(id) }
            if json["object"] == nil { json["object"] = .string("model") }
            if json["owned_by"] == nil { json["owned_by"] = .string("codex-lb") }
            if json["created"] == nil { json["created"] = .number("0") }
            return Model(id: id, json: json)
        }
    }

    func sweep(_ now: Instant) { for fetch in fetches { fetch.sweep(now) } }
}

/// One GET of an account's models.
private final class ModelFetch: UpstreamUser {
    private unowned let worker: Worker
    private let account: RoutedAccount
    private var done: ((Result<[UInt8], ProxyError>) -> Void)?
    private var connection: UpstreamConnection?
    private var status = 0
    private var body: [UInt8] = []
    private let deadline: Instant

    init(_ worker: Worker, _ account: RoutedAccount) {
        (self.worker, self.account) = (worker, account)
        deadline = worker.loop.now.adding(milliseconds: ModelCatalogue.fetchMilliseconds)
    }

    func start(_ done: @escaping (Result<[UInt8], ProxyError>) -> Void) {
        self.done = done
        worker.pool.connection(to: account.origin, fresh: true) { [weak self] result in
            guard let self, self.done != nil else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            switch result {
            case .success(let connection): send(connection)
            case .failure(.unreachable(let why)), .failure(.untrusted(let why)), .failure(.exhausted(let why)): fail(why)
            }
        }
    }

    private func send(_ connection: UpstreamConnection) {
        guard connection.isFit() else { return fail("it sent bytes before it was asked") }
        self.connection = connection
        let isChatGPT = account.value.kind == .chatGPT
        let path = (Route.models.upstreamPath(account.value.kind) ?? "/models") + (isChatGPT ? "?client_version=\(Version.text)" : "")
        var head: [UInt8] = []
        HeadWriter.request(.get, target: account.prefix + path, into: &head)
        HeadWriter.field("Host", account.origin.authority, into: &head)
        HeadWriter.field("Authorization", account.authorization, into: &head)
        HeadWriter.field("Accept", "application/json", into: &head)
        HeadWriter.field("Accept-Encoding", "identity", into: &head)
        HeadWriter.field("User-Agent", "codex-lb/\(Version.text)", into: &head)
        if isChatGPT, let id = account.chatGPTAccountID { HeadWriter.field("chatgpt-account-id", id, into: &head) }
        HeadWriter.end(into: &head)
        connection.send([head], method: .get, for: self)
    }

    func upstreamResponded(_ head: ResponseHead) { status = head.status }
    func upstreamSent(_ bytes: RawSpan) {
        guard body.count + bytes.byteCount <= Limits.upstreamHeadBytesMax * 64 else {
            connection?.close()
            return fail("the list of models is too large")
        }
        bytes.withUnsafeBytes { body += $0 }
    }
    func upstreamPaused() {}
    func upstreamCompleted() {
        connection = nil
        if status == 200 { finish(.success(body)) } else { fail("status \(status)") }
    }
    func upstreamTookRequest() {}
    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) { fail(why) }

    func sweep(_ now: Instant) {
        guard done != nil, now >= deadline else { return }
        connection?.close()
        fail("no answer in time")
    }

    private func fail(_ why: String) {
        finish(.failure(ProxyError(status: 502, code: "upstream_unavailable", type: "server_error", message: why, origin: .upstream)))
    }

    private func finish(_ result: Result<[UInt8], ProxyError>) {
        let done = self.done
        self.done = nil
        done?(result)
    }
}
