import Exchange
import HTTPWire
import JSONWire
import Loop
import Settings
import Upstream
import Vocabulary

/// A model as an upstream lists it.
struct ListedModel: Sendable {
    var id: String
    var json: JSONValue
    /// In the form that Codex reads; its own list is refused whole for one entry of another form.
    var isCodex: Bool
}

/// One GET of an account's models.
final class ModelFetch: UpstreamUser {
    private unowned let worker: Worker
    private let account: RoutedAccount
    private var done: ((Result<[ListedModel], ModelFetchError>) -> Void)?
    private var connection: UpstreamConnection?
    private var connecting: ConnectAttempt?
    private var status = 0
    private var body: [UInt8] = []
    private let deadline: Instant

    init(_ worker: Worker, _ account: RoutedAccount) {
        (self.worker, self.account) = (worker, account)
        deadline = worker.loop.now.adding(milliseconds: Limits.modelListMilliseconds)
    }

    func start(_ done: @escaping (Result<[ListedModel], ModelFetchError>) -> Void) {
        self.done = done
        var isDone = false
        let attempt = worker.pool.connection(to: account.origin, fresh: true) { [weak self] result in
            isDone = true
            guard let self, self.done != nil else {
                if case .success(let unused) = result { unused.giveBack() }
                return
            }
            connecting = nil
            switch result {
            case .success(let connection): send(connection)
            case .failure(.unreachable(let why)), .failure(.untrusted(let why)), .failure(.exhausted(let why)): fail(why)
            }
        }
        if !isDone { connecting = attempt }
    }

    private func send(_ connection: UpstreamConnection) {
        guard connection.isFit() else { return fail("it sent bytes before it was asked") }
        self.connection = connection
        let isChatGPT = account.value.kind == .chatGPT
        // ChatGPT's list depends on the version of Codex that asks.
        let query = isChatGPT ? "?client_version=\(worker.settings.codexClientVersion)" : ""
        let path = (Route.models.upstreamPath(account.value.kind) ?? "/models") + query
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
        guard body.count + bytes.byteCount <= Limits.modelListBytesMax else {
            connection?.close()
            return fail("its list is larger than \(Limits.modelListBytesMax) bytes")
        }
        bytes.withUnsafeBytes { body += $0 }
    }
    func upstreamPaused() {}
    func upstreamCompleted() {
        connection = nil
        guard status == 200 else { return fail("status \(status)") }
        let body = body
        self.body = []
        worker.bodyWork.run({ Self.models(in: body) }) { [self] models in
            if let models { finish(.success(models)) } else { fail("its answer is no list of models") }
        }
    }
    func upstreamTookRequest() {}
    func upstreamFailed(_ why: String, _ progress: UpstreamProgress) { fail(why) }

    /// `{"data":[{"id"}]}` of OpenAI, `{"models":[{"slug"}]}` of Codex, or a bare array of either; nil when it is nothing of that, or lists
    /// nothing: what is known already is worth more.
    static func models(in body: [UInt8]) -> [ListedModel]? {
        let text = body.starts(with: [0xEF, 0xBB, 0xBF]) ? Array(body.dropFirst(3)) : body
        guard let value = try? JSONValue(parsing: text.span.bytes), !UpstreamRefusal.isTold(text.span.bytes) else { return nil }  // no JSON
        let lists = [value["data"]?.arrayValue, value["models"]?.arrayValue, value.arrayValue].compactMap { $0 }
        guard let list = lists.first(where: { !$0.isEmpty }) else { return nil }
        var seen: Set<String> = []
        let models: [ListedModel] = list.prefix(Limits.modelsListedMax).compactMap { entry in
            let names = [entry["id"], entry["slug"], entry["model"], entry["name"]]
            let id = entry.stringValue ?? names.lazy.compactMap { $0?.stringValue }.first { !$0.isEmpty }
            guard let id, id.utf8.count <= Limits.modelBytesMax, seen.insert(id).inserted else { return nil }
            var json = entry.objectValue == nil ? JSONValue.object(JSONMembers([])) : entry
            // OpenAI's clients look for `id`, Codex for `slug`, and one entry without it spoils the list for it.
            for (key, value) in [
                ("id", .string(id)), ("slug", .string(id)), ("object", "model"), ("owned_by", "codex-lb"), ("created", .number("0")),
            ] as [(String, JSONValue)] where json[key] == nil || json[key]?.stringValue == "" {
                json[key] = value
            }
            return ListedModel(id: id, json: json, isCodex: entry["slug"]?.stringValue == id)
        }
        return models.isEmpty ? nil : models
    }

    func sweep(_ now: Instant) {
        guard done != nil, now >= deadline else { return }
        cancel()
        fail("no answer in \(Limits.modelListMilliseconds / 1000) s")
    }

    func cancel() {
        connecting?.cancel()
        connection?.close()
    }

    private func fail(_ why: String) { finish(.failure(ModelFetchError(reason: why))) }

    private func finish(_ result: Result<[ListedModel], ModelFetchError>) {
        let done = self.done
        self.done = nil
        done?(result)
    }
}

struct ModelFetchError: Error { var reason: String }
