import Foundation

/// Lets a test decide when an answer goes on: each permit lets one gate step of one connection through.
public final class Gate: @unchecked Sendable {  // every access holds `lock`
    private let lock = NSLock()
    private var permits = 0
    private var isOpen = false
    private var waiting: [@Sendable () -> Void] = []

    public init() {}

    /// Lets `count` waiting or coming steps through.
    public func release(_ count: Int = 1) {
        lock.lock()
        permits += count
        let calls = waiting
        waiting = []
        lock.unlock()
        for call in calls { call() }
    }

    /// Lets everything through from now on.
    public func open() {
        lock.lock()
        isOpen = true
        let calls = waiting
        waiting = []
        lock.unlock()
        for call in calls { call() }
    }

    /// Connections that wait here.
    public var waitingCount: Int {
        lock.lock()
        defer { lock.unlock() }
        return waiting.count
    }

    func pass(orCall call: @escaping @Sendable () -> Void) -> Bool {
        lock.lock()
        defer { lock.unlock() }
        if isOpen { return true }
        if permits > 0 {
            permits -= 1
            return true
        }
        waiting.append(call)
        return false
    }
}

/// How one request is answered.
public struct Behaviour: Sendable {
    public enum Step: Sendable {
        case bytes([UInt8])
        /// The same bytes so many times, as fast as the peer takes them.
        case times(Int, [UInt8])
        case gate(Gate)
        /// Closes our side after what was written.
        case end
        /// Closes both sides, as a server does that drops an idle connection.
        case close
        /// Closes with RST.
        case reset
    }

    let steps: @Sendable (RecordedRequest) -> [Step]

    public init(_ steps: @escaping @Sendable (RecordedRequest) -> [Step]) { self.steps = steps }
    public init(steps: [Step]) { self.steps = { _ in steps } }

    // MARK: Answers

    /// The answer that `choose` has for a request.
    public static func chosen(_ choose: @escaping @Sendable (RecordedRequest) -> Behaviour) -> Behaviour {
        Behaviour { choose($0).steps($0) }
    }

    /// A good answer to whatever was asked.
    public static let ok = Behaviour { Canned.answer($0).steps($0) }

    /// A whole answer with a body.
    public static func status(_ status: Int, _ body: String, headers: [String: String] = [:]) -> Behaviour {
        Behaviour(steps: [.bytes(Self.whole(status, body, headers))])
    }

    /// OpenAI's error envelope.
    public static func error(
        _ status: Int, code: String, type: String = "invalid_request_error", message: String = "scripted", more: String = "",
        headers: [String: String] = [:]
    ) -> Behaviour {
        .status(status, Canned.error(code: code, type: type, message: message, more: more), headers: headers)
    }

    /// A 200 stream of these `data:` payloads, each as one event in one chunk. With a gate each event waits for a permit.
    public static func events(_ payloads: [String], gate: Gate? = nil, headers: [String: String] = [:]) -> Behaviour {
        Behaviour(steps: [.bytes(streamHead(headers))] + pieces(payloads, gate) + (gate.map { [.gate($0)] } ?? []) + [.bytes(chunkEnd)])
    }

    /// The connection ends within the chunked body after these events.
    public static func cut(after payloads: [String], gate: Gate? = nil, reset: Bool = false) -> Behaviour {
        Behaviour(
            steps: [.bytes(streamHead([:]))] + pieces(payloads, nil) + (gate.map { [.gate($0)] } ?? []) + [
                .bytes(Array("ff\r\ndata: {\"ty".utf8)), reset ? .reset : .end,
            ])
    }

    /// A 200 stream with no event at all.
    public static let emptyStream = Behaviour(steps: [.bytes(streamHead([:]) + chunkEnd)])

    /// 200 and half of a stream's head's body: the events come, then nothing until the gate opens, then the rest.
    public static func stall(_ before: [String], _ gate: Gate, _ after: [String]) -> Behaviour {
        Behaviour(steps: [.bytes(streamHead([:]))] + pieces(before, nil) + [.gate(gate)] + pieces(after, nil) + [.bytes(chunkEnd)])
    }

    /// Nothing at all until the gate opens, then a good answer.
    public static func silence(_ gate: Gate) -> Behaviour { Behaviour { [.gate(gate)] + Canned.answer($0).steps($0) } }

    /// Closes without a byte of an answer.
    public static let close = Behaviour(steps: [.end])
    public static let reset = Behaviour(steps: [.reset])

    /// These bytes as they are, then our end.
    public static func raw(_ bytes: [UInt8], thenEnd: Bool = true) -> Behaviour {
        Behaviour(steps: [.bytes(bytes)] + (thenEnd ? [.end] : []))
    }

    /// A stream whose one delta has so many bytes.
    public static func hugeEvent(bytes: Int) -> Behaviour {
        let piece = [UInt8](repeating: UInt8(ascii: "x"), count: 64 * 1024)
        let count = bytes / piece.count
        return Behaviour(steps: [
            .bytes(streamHead([:]) + chunk("event: response.created\ndata: \(Canned.created())\n\n")),
            .bytes(chunk("event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"")),
            .times(count, chunk(piece)),
            .bytes(chunk("\"}\n\n") + chunk("event: response.completed\ndata: \(Canned.completed())\n\n") + chunkEnd),
        ])
    }

    /// A stream with so many deltas of 4 KiB, sent as fast as they are taken.
    public static func flood(events: Int) -> Behaviour {
        let delta =
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\""
            + String(repeating: "y", count: 4096) + "\"}\n\n"
        return Behaviour(steps: [
            .bytes(streamHead([:]) + chunk("event: response.created\ndata: \(Canned.created())\n\n")),
            .times(events, chunk(delta)),
            .bytes(chunk("event: response.completed\ndata: \(Canned.completed())\n\n") + chunkEnd),
        ])
    }

    // MARK: Bytes

    public static func whole(_ status: Int, _ body: String, _ headers: [String: String]) -> [UInt8] {
        var head = "HTTP/1.1 \(status) Scripted\r\nContent-Length: \(body.utf8.count)\r\n"
        if headers["Content-Type"] == nil { head += "Content-Type: application/json\r\n" }
        for (name, value) in headers.sorted(by: { $0.key < $1.key }) { head += "\(name): \(value)\r\n" }
        return Array((head + "\r\n" + body).utf8)
    }

    public static func streamHead(_ headers: [String: String]) -> [UInt8] {
        var head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        for (name, value) in headers.sorted(by: { $0.key < $1.key }) { head += "\(name): \(value)\r\n" }
        return Array((head + "\r\n").utf8)
    }

    public static let chunkEnd = Array("0\r\n\r\n".utf8)

    public static func chunk(_ text: String) -> [UInt8] { chunk(Array(text.utf8)) }
    public static func chunk(_ bytes: [UInt8]) -> [UInt8] { Array((String(bytes.count, radix: 16) + "\r\n").utf8) + bytes + [13, 10] }

    /// An event of a payload: named by its `type` where it has one.
    public static func event(_ payload: String) -> String {
        if let range = payload.range(of: "{\"type\":\""), range.lowerBound == payload.startIndex {
            return "event: \(payload[range.upperBound...].prefix { $0 != "\"" })\ndata: \(payload)\n\n"
        }
        return "data: \(payload)\n\n"
    }

    static func pieces(_ payloads: [String], _ gate: Gate?) -> [Step] {
        payloads.flatMap { payload -> [Step] in (gate.map { [.gate($0)] } ?? []) + [.bytes(chunk(event(payload)))] }
    }
}

/// Answers as OpenAI gives them, with tokens that a test can count on.
public enum Canned {
    /// 100 input tokens (40 cached), 20 output tokens (5 reasoning).
    public static let responsesUsage =
        "{\"input_tokens\":100,\"input_tokens_details\":{\"cached_tokens\":40},\"output_tokens\":20,\"output_tokens_details\":{\"reasoning_tokens\":5},\"total_tokens\":120}"
    public static let chatUsage =
        "{\"prompt_tokens\":100,\"prompt_tokens_details\":{\"cached_tokens\":40},\"completion_tokens\":20,\"completion_tokens_details\":{\"reasoning_tokens\":5},\"total_tokens\":120}"
    public static let item =
        "{\"id\":\"msg_1\",\"type\":\"message\",\"status\":\"completed\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\",\"text\":\"Hello\",\"annotations\":[]}]}"

    public static func response(
        status: String = "completed", output: String = item, usage: String = responsesUsage, model: String = "gpt-5.4",
        error: String = "null"
    )
        -> String
    {
        "{\"id\":\"resp_fake\",\"object\":\"response\",\"created_at\":1767225600,\"status\":\"\(status)\",\"model\":\"\(model)\",\"output\":[\(output)],\"error\":\(error),\"incomplete_details\":null,\"instructions\":null,\"metadata\":{},\"parallel_tool_calls\":true,\"temperature\":1.0,\"tool_choice\":\"auto\",\"tools\":[],\"top_p\":1.0,\"usage\":\(usage)}"
    }

    public static func created() -> String {
        "{\"type\":\"response.created\",\"sequence_number\":0,\"response\":\(response(status: "in_progress", output: "", usage: "null"))}"
    }
    public static func inProgress() -> String {
        "{\"type\":\"response.in_progress\",\"sequence_number\":1,\"response\":\(response(status: "in_progress", output: "", usage: "null"))}"
    }
    public static let itemAdded =
        "{\"type\":\"response.output_item.added\",\"sequence_number\":2,\"output_index\":0,\"item\":{\"id\":\"msg_1\",\"type\":\"message\",\"status\":\"in_progress\",\"role\":\"assistant\",\"content\":[]}}"
    public static let partAdded =
        "{\"type\":\"response.content_part.added\",\"sequence_number\":3,\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"part\":{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[]}}"
    public static func delta(_ text: String) -> String {
        "{\"type\":\"response.output_text.delta\",\"sequence_number\":4,\"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\"\(text)\",\"logprobs\":[]}"
    }
    public static let itemDone = "{\"type\":\"response.output_item.done\",\"sequence_number\":5,\"output_index\":0,\"item\":\(item)}"
    public static func completed(output: String = item, usage: String = responsesUsage) -> String {
        "{\"type\":\"response.completed\",\"sequence_number\":6,\"response\":\(response(output: output, usage: usage))}"
    }
    public static func failed(_ code: String, message: String = "scripted") -> String {
        "{\"type\":\"response.failed\",\"sequence_number\":1,\"response\":\(response(status: "failed", output: "", usage: "null", error: "{\"code\":\"\(code)\",\"message\":\"\(message)\"}"))}"
    }
    public static func errorEvent(_ code: String) -> String {
        "{\"type\":\"error\",\"code\":\"\(code)\",\"message\":\"scripted\",\"param\":null}"
    }

    /// A whole good stream.
    public static var stream: [String] { [created(), itemAdded, partAdded, delta("Hel"), delta("lo"), itemDone, completed()] }

    public static func chatChunk(_ content: String, finish: String = "null", usage: String? = nil) -> String {
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"gpt-5.4\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\(content)\"},\"finish_reason\":\(finish)}]"
            + (usage.map { ",\"usage\":\($0)" } ?? "") + "}"
    }
    public static let chatUsageChunk =
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1767225600,\"model\":\"gpt-5.4\",\"choices\":[],\"usage\":\(chatUsage)}"
    public static let chat =
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1767225600,\"model\":\"gpt-5.4\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello\"},\"finish_reason\":\"stop\"}],\"usage\":\(chatUsage)}"
    public static let embeddings =
        "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,0.25]}],\"model\":\"text-embedding-3-small\",\"usage\":{\"prompt_tokens\":7,\"total_tokens\":7}}"
    public static func models(_ ids: String...) -> String {
        "{\"object\":\"list\",\"data\":["
            + ids.map { "{\"id\":\"\($0)\",\"object\":\"model\",\"created\":1767225600,\"owned_by\":\"openai\"}" }.joined(separator: ",")
            + "]}"
    }

    public static func error(code: String, type: String = "invalid_request_error", message: String = "scripted", more: String = "")
        -> String
    {
        "{\"error\":{\"message\":\"\(message)\",\"type\":\"\(type)\",\"code\":\"\(code)\",\"param\":null\(more.isEmpty ? "" : "," + more)}}"
    }

    static func answer(_ request: RecordedRequest) -> Behaviour {
        let path = request.path.prefix { $0 != "?" }
        let isStream = request.json["stream"] as? Bool ?? false
        switch path {
        case _ where path.hasSuffix("/codex/responses"): return .events(stream)
        case _ where path.hasSuffix("/responses"): return isStream ? .events(stream) : .status(200, response())
        case _ where path.hasSuffix("/chat/completions"):
            guard isStream else { return .status(200, chat) }
            let options = request.json["stream_options"] as? [String: Any]
            let usage = options?["include_usage"] as? Bool ?? false
            return .events(
                [chatChunk("Hel"), chatChunk("lo"), chatChunk("", finish: "\"stop\"")] + (usage ? [chatUsageChunk] : []) + ["[DONE]"])
        case _ where path.hasSuffix("/embeddings"): return .status(200, embeddings)
        case _ where path.hasSuffix("/models"): return .status(200, models("gpt-5.4"))
        default: return .error(404, code: "not_found")
        }
    }
}
