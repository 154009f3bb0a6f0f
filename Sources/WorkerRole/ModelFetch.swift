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
final class ModelFetch {
    enum Answer: Sendable {
        case models([ListedModel], etag: String?)
        /// Since the answer that had the etag.
        case unchanged
    }

    private let worker: Worker
    private let fetch: Fetch
    private let etag: String?

    /// `etag`: of the list that is known.
    init(_ worker: Worker, _ account: RoutedAccount, etag: String?) {
        (self.worker, self.etag) = (worker, etag)
        let isChatGPT = account.value.kind == .chatGPT
        // ChatGPT's list depends on the version of Codex that asks.
        let query = isChatGPT ? "?client_version=\(worker.settings.codexClientVersion)" : ""
        let path = (Route.models.upstreamPath(account.value.kind) ?? "/models") + query
        var fields = account.credentials + [(name: "Accept", value: "application/json")]
        if isChatGPT, let id = account.chatGPTAccountID { fields.append(("chatgpt-account-id", id)) }
        if let etag { fields.append(("If-None-Match", etag)) }
        fetch = Fetch(
            worker.pool, .init(.get, account.origin, account.target(path), fields: fields), bytesMax: Limits.modelListBytesMax,
            milliseconds: Limits.modelListMilliseconds)
    }

    func start(_ done: @escaping (Result<Answer, Fetch.Problem>) -> Void) {
        fetch.start { [worker, etag] result in
            let answer: Fetch.Answer
            do throws(Fetch.Problem) { answer = try result.get() } catch { return done(.failure(error)) }
            if answer.status == 304, etag != nil { return done(.success(.unchanged)) }
            guard answer.status == 200 else { return done(.failure(.init(reason: "status \(answer.status)"))) }
            let next = answer.etag.flatMap { Self.isEntityTag($0) ? $0 : nil }
            worker.bodyWork.run({ Self.models(in: answer.body) }) { models in
                done(models.map { .success(.models($0, etag: next)) } ?? .failure(.init(reason: "its answer is no list of models")))
            }
        }
    }

    /// `"…"` or `W/"…"` (RFC 9110 §8.8.3), of letters that come through unchanged.
    static func isEntityTag(_ text: String) -> Bool {
        let tag = text.hasPrefix("W/") ? text.utf8.dropFirst(2) : text.utf8[...]
        return tag.count >= 2 && tag.count <= Limits.etagBytesMax && tag.first == UInt8(ascii: "\"") && tag.last == UInt8(ascii: "\"")
            && tag.dropFirst().dropLast().allSatisfy { $0 > 0x20 && $0 < 0x7F && $0 != UInt8(ascii: "\"") }
    }

    func sweep(_ now: Instant) { fetch.sweep(now) }
    func cancel() { fetch.cancel() }

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
}
