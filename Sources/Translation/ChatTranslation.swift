public import JSONWire
public import Vocabulary

/// Chat Completions told as Responses and back, for accounts that speak Responses only (behaviour report 1.6, 1.7).
public enum ChatTranslation {
    static func invalid(_ message: String, _ param: String?) -> ProxyError {
        ProxyError(
            status: 400, code: "invalid_request_error", type: "invalid_request_error", message: message, param: param, origin: .downstream)
    }

    static func ambiguous(_ problem: JSONAmbiguity, at place: String) -> ProxyError {
        let key = problem.key.cut(utf8: 64)
        return invalid("The key \"\(key)\" \(problem.reason)", place + key)
    }

    /// Members of a chat request that are told otherwise.
    private static let rewritten: Set<String> = [
        "messages", "tools", "tool_choice", "response_format", "max_tokens", "max_completion_tokens", "store", "stream_options",
        "functions", "function_call", "reasoning_effort", "verbosity",
    ]

    /// Those that mean the same in a Responses request. What is in none of these lists is refused: passed on it would be the upstream's 400.
    private static let passing: Set<String> = [
        "model", "stream", "temperature", "top_p", "user", "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "service_tier", "reasoning", "text", "include", "instructions", "previous_response_id", "truncation",
        "max_output_tokens", "conversation", "prompt",
    ]

    /// Parameters that Responses lack, with the values (beside null) that ask for nothing: those are dropped, others refused
    /// (docs/upstreams.md). Passed on they would be the upstream's 400.
    static let lacking: [(name: String, neutral: [JSONValue])] = [
        ("n", [1]), ("frequency_penalty", [0]), ("presence_penalty", [0]), ("seed", []), ("stop", [[]]), ("logit_bias", [[:]]),
        ("logprobs", [false]), ("top_logprobs", [0]), ("modalities", [["text"]]), ("audio", []), ("prediction", []),
        ("web_search_options", []), ("best_of", [1]), ("suffix", [""]), ("echo", [false]), ("top_k", [0, -1]), ("min_p", [0]),
        ("repetition_penalty", [1]), ("length_penalty", [1]), ("extra_body", [[:]]), ("chat_template_kwargs", [[:]]),
    ]

    /// `1` and `1.0` are the same to a client.
    private static func isNeutral(_ value: JSONValue, _ neutral: [JSONValue]) -> Bool {
        value.isNull || neutral.contains { $0 == value || $0.intValue != nil && $0.intValue == value.intValue }
    }

    /// A Responses request that asks the same. A body that is in the shape of Responses already (`input`, no `messages`) passes unchanged.
    public static func responsesRequest(fromChat document: JSONDocument) throws(ProxyError) -> JSONDocument {
        let chat: JSONValue
        do throws(JSONError) { chat = try JSONValue(document, document.root) } catch {
            throw invalid("The request body can't be read: \(error.reason)", nil)
        }
        if let problem = chat.ambiguity { throw ambiguous(problem, at: "") }
        guard let members = chat.objectValue else { throw invalid("The request body must be a JSON object", nil) }
        guard let messages = chat["messages"]?.arrayValue else {
            if chat["input"] != nil { return document }
            throw invalid("\"messages\" must be an array", "messages")
        }
        for (name, neutral) in lacking {
            guard let value = chat[name], !isNeutral(value, neutral) else { continue }
            throw invalid("\"\(name)\" is not supported by this account's upstream; leave it out", name)
        }

        let known = passing.union(rewritten).union(lacking.map(\.name))
        if let unknown = members.members.first(where: { !$0.value.isNull && !known.contains($0.key) }) {
            let key = unknown.key.cut(utf8: 64)
            throw invalid("\"\(key)\" is not known to this account's upstream; leave it out", key)
        }
        var out = JSONMembers(members.members.filter { passing.contains($0.key) })
        var instructions: [String] = []
        var input: [JSONValue] = []
        var calls: [String: String] = [:]
        for (i, message) in messages.enumerated() {
            try add(message, at: "messages.\(i)", number: i, &instructions, &input, &calls)
        }
        if chat["response_format"]?["type"]?.stringValue == "json_object" { keepTheWord(instructions, &input) }
        if !instructions.isEmpty { out["instructions"] = .string(instructions.joined(separator: "\n")) }
        out["input"] = .array(input)
        if let tools = chat["tools"]?.arrayValue { out["tools"] = .array(tools.map(flattened)) }
        if let choice = chat["tool_choice"], !choice.isNull {
            out["tool_choice"] = flattenedChoice(choice)
        }
        try addFunctions(chat, &out)
        var text = chat["text"]?.objectValue ?? JSONMembers()
        if let format = chat["response_format"], !format.isNull { text["format"] = textFormat(format) }
        if let verbosity = chat["verbosity"], !verbosity.isNull { text["verbosity"] = verbosity }
        if !text.isEmpty { out["text"] = .object(text) }
        if let effort = chat["reasoning_effort"], !effort.isNull {
            var reasoning = chat["reasoning"]?.objectValue ?? JSONMembers()
            reasoning["effort"] = effort
            out["reasoning"] = .object(reasoning)
        }
        do throws(JSONError) { return try JSONDocument(JSONValue.object(out).serialized()) } catch {
            throw invalid("The request can't be told as a Responses request: \(error.reason)", nil)  // an array became a level deeper
        }
    }

    /// `functions` and `function_call`, the older way to say `tools` and `tool_choice`.
    private static func addFunctions(_ chat: JSONValue, _ out: inout JSONMembers) throws(ProxyError) {
        if let functions = chat["functions"], !functions.isNull {
            guard let list = functions.arrayValue else { throw invalid("\"functions\" must be an array", "functions") }
            guard out["tools"] == nil else { throw invalid("send \"tools\" or \"functions\", not both", "functions") }
            out["tools"] = .array(list.map { flattened(["type": "function", "function": $0]) })
        }
        guard let call = chat["function_call"], !call.isNull else { return }
        guard out["tool_choice"] == nil else { throw invalid("send \"tool_choice\" or \"function_call\", not both", "function_call") }
        if call.stringValue != nil { out["tool_choice"] = call } else { out["tool_choice"] = named(call) }
    }

    /// What chat nests under its type stands beside it in Responses.
    private static func flattenedChoice(_ choice: JSONValue) -> JSONValue {
        if choice["function"] != nil { return named(choice["function"]) }
        if let custom = choice["custom"] { return ["type": "custom", "name": custom["name"] ?? ""] }
        guard let allowed = choice["allowed_tools"] else { return choice }
        return [
            "type": "allowed_tools", "mode": allowed["mode"] ?? "auto",
            "tools": .array((allowed["tools"]?.arrayValue ?? []).map { flattenedChoice($0) }),
        ]
    }

    private static func named(_ function: JSONValue?) -> JSONValue { ["type": "function", "name": function?["name"] ?? ""] }

    /// With `json_object` the upstream wants the word in its input; a client that said it in a system message has said it, but that became
    /// instructions.
    private static func keepTheWord(_ instructions: [String], _ input: inout [JSONValue]) {
        func hasWord(_ bytes: [UInt8]) -> Bool { String(decoding: bytes, as: UTF8.self).lowercased().contains("json") }
        guard instructions.contains(where: { $0.lowercased().contains("json") }), !hasWord(JSONValue.array(input).serialized()) else {
            return
        }
        input.insert(["role": "user", "content": [["type": "input_text", "text": "Answer in JSON."]]], at: 0)
    }

    private static func add(
        _ message: JSONValue, at place: String, number: Int, _ instructions: inout [String], _ input: inout [JSONValue],
        _ calls: inout [String: String]
    ) throws(ProxyError) {
        guard let role = message["role"]?.stringValue else { throw invalid("\"role\" is missing", "\(place).role") }
        switch role {
        case "system", "developer":
            instructions.append(try plainText(message["content"], at: place))
        case "user":
            input.append(["role": "user", "content": .array(try userParts(message["content"], at: place))])
        case "assistant":
            let text = try plainText(message["content"], at: place)
            if !text.isEmpty { input.append(["role": "assistant", "content": [["type": "output_text", "text": .string(text)]]]) }
            for (i, call) in (message["tool_calls"]?.arrayValue ?? []).enumerated() {
                guard let id = call["id"]?.stringValue, let name = call["function"]?["name"]?.stringValue else {
                    throw invalid("a tool call needs \"id\" and \"function.name\"", "\(place).tool_calls.\(i)")
                }
                input.append([
                    "type": "function_call", "call_id": .string(id), "name": .string(name),
                    "arguments": .string(call["function"]?["arguments"]?.stringValue ?? ""),
                ])
            }
            if let call = message["function_call"], !call.isNull {
                guard let name = call["name"]?.stringValue else { throw invalid("a call needs a \"name\"", "\(place).function_call") }
                // The older form has no ids: the answer belongs to the last call of that name.
                let id = "call_\(number)"
                calls[name] = id
                input.append([
                    "type": "function_call", "call_id": .string(id), "name": .string(name),
                    "arguments": .string(call["arguments"]?.stringValue ?? ""),
                ])
            }
        case "function":
            guard let name = message["name"]?.stringValue, let id = calls[name] else {
                throw invalid("\"name\" must be that of an earlier \"function_call\"", "\(place).name")
            }
            input.append([
                "type": "function_call_output", "call_id": .string(id), "output": .string(try plainText(message["content"], at: place)),
            ])
        case "tool":
            guard let id = message["tool_call_id"]?.stringValue else {
                throw invalid("\"tool_call_id\" is missing", "\(place).tool_call_id")
            }
            input.append([
                "type": "function_call_output", "call_id": .string(id), "output": .string(try plainText(message["content"], at: place)),
            ])
        default:
            throw invalid("\"\(role)\" is no role; send system, developer, user, assistant or tool", "\(place).role")
        }
    }

    /// Text of a string or of text parts.
    private static func plainText(_ content: JSONValue?, at place: String) throws(ProxyError) -> String {
        guard let content, !content.isNull else { return "" }
        if let text = content.stringValue { return text }
        guard let parts = content.arrayValue else { throw invalid("\"content\" must be a string or an array", "\(place).content") }
        var out = ""
        for (i, part) in parts.enumerated() {
            if part["type"]?.stringValue == "refusal" {
                out += part["refusal"]?.stringValue ?? ""
                continue
            }
            guard let text = part["text"]?.stringValue else { throw invalid("only text is allowed here", "\(place).content.\(i)") }
            out += text
        }
        return out
    }

    private static func userParts(_ content: JSONValue?, at place: String) throws(ProxyError) -> [JSONValue] {
        guard let content, !content.isNull else { return [["type": "input_text", "text": ""]] }
        if let text = content.stringValue { return [["type": "input_text", "text": .string(text)]] }
        guard let parts = content.arrayValue else { throw invalid("\"content\" must be a string or an array", "\(place).content") }
        var out: [JSONValue] = []
        for (i, part) in parts.enumerated() {
            let here = "\(place).content.\(i)"
            switch part["type"]?.stringValue {
            case "text", "input_text":
                out.append(["type": "input_text", "text": part["text"] ?? ""])
            case "image_url":
                let image = part["image_url"]
                guard let url = image?.stringValue ?? image?["url"]?.stringValue else {
                    throw invalid("\"image_url.url\" is missing", here)
                }
                var item: JSONMembers = JSONMembers([
                    .init(key: "type", value: "input_image"), .init(key: "image_url", value: .string(url)),
                ])
                if let detail = image?["detail"], !detail.isNull { item["detail"] = detail }
                out.append(.object(item))
            case "file":
                guard let data = part["file"]?["file_data"]?.stringValue else {
                    throw invalid("only files with \"file_data\" can be sent", here)
                }
                var item: JSONMembers = JSONMembers([
                    .init(key: "type", value: "input_file"), .init(key: "file_data", value: .string(data)),
                ])
                if let name = part["file"]?["filename"] { item["filename"] = name }
                out.append(.object(item))
            case "input_audio":
                throw invalid("audio is not supported", here)
            default:
                out.append(part)
            }
        }
        return out
    }

    /// `{type:function,function:{…}}` as `{type:function,…}`. What chat takes for not strict, Responses take for strict: it is said.
    private static func flattened(_ tool: JSONValue) -> JSONValue {
        if tool["type"]?.stringValue == "custom", let custom = tool["custom"]?.objectValue {
            return .object(JSONMembers([.init(key: "type", value: "custom")] + custom.members))
        }
        guard tool["type"]?.stringValue == "function", let function = tool["function"]?.objectValue else { return tool }
        var out = JSONMembers([.init(key: "type", value: "function")] + function.members)
        if out["strict"]?.isNull ?? true { out["strict"] = false }
        return .object(out)
    }

    private static func textFormat(_ format: JSONValue) -> JSONValue {
        guard format["type"]?.stringValue == "json_schema", let schema = format["json_schema"]?.objectValue else { return format }
        return .object(JSONMembers([.init(key: "type", value: "json_schema")] + schema.members))
    }

    // MARK: Back

    static func usage(_ usage: JSONValue?) -> JSONValue {
        func tokens(_ value: JSONValue?) -> Int64 { value?.count(in: 0...Limits.turnTokensMax) ?? 0 }
        let input = tokens(usage?["input_tokens"])
        let output = tokens(usage?["output_tokens"])
        return [
            "prompt_tokens": .int(input), "completion_tokens": .int(output), "total_tokens": .int(input + output),
            "prompt_tokens_details": ["cached_tokens": .int(tokens(usage?["input_tokens_details"]?["cached_tokens"]))],
            "completion_tokens_details": ["reasoning_tokens": .int(tokens(usage?["output_tokens_details"]?["reasoning_tokens"]))],
        ]
    }

    static func finishReason(_ response: JSONValue, hasCalls: Bool) -> String {
        switch response["incomplete_details"]?["reason"]?.stringValue {
        case "max_output_tokens": "length"
        case "content_filter": "content_filter"
        default: hasCalls ? "tool_calls" : "stop"
        }
    }

    /// A whole chat completion as the one chunk of a stream; nil when it is none.
    public static func chunk(fromCompletion json: RawSpan) -> [UInt8]? {
        guard var value = try? JSONValue(parsing: json), let choices = value["choices"]?.arrayValue else { return nil }  // no JSON, no chunk
        value["object"] = "chat.completion.chunk"
        value["choices"] = .array(
            choices.map { choice in
                guard var members = choice.objectValue, let message = members["message"] else { return choice }
                members["message"] = nil
                members["delta"] = message
                return .object(members)
            })
        return value.serialized()
    }

    /// A `chat.completion` made of a finished response object.
    public static func chatCompletion(fromResponse bytes: RawSpan, model: String, created: Int64, id: String) -> [UInt8] {
        let response = (try? JSONValue(parsing: bytes)) ?? .null  // it was scanned already; a broken one gives an empty answer
        var text = ""
        var refusal: String?
        var calls: [JSONValue] = []
        for item in response["output"]?.arrayValue ?? [] {
            switch item["type"]?.stringValue {
            case "message":
                for part in item["content"]?.arrayValue ?? [] {
                    if let piece = part["text"]?.stringValue { text += piece }
                    if let piece = part["refusal"]?.stringValue { refusal = (refusal ?? "") + piece }
                }
            case "function_call":
                calls.append([
                    "id": item["call_id"] ?? item["id"] ?? "", "type": "function",
                    "function": ["name": item["name"] ?? "", "arguments": item["arguments"] ?? ""],
                ])
            default: break
            }
        }
        var message: JSONMembers = JSONMembers([
            .init(key: "role", value: "assistant"), .init(key: "content", value: text.isEmpty && !calls.isEmpty ? .null : .string(text)),
            .init(key: "refusal", value: refusal.map { .string($0) } ?? .null),
        ])
        if !calls.isEmpty { message["tool_calls"] = .array(calls) }
        let completion: JSONValue = [
            "id": .string(id), "object": "chat.completion", "created": .int(created), "model": response["model"] ?? .string(model),
            "choices": [
                [
                    "index": 0, "message": .object(message), "logprobs": nil,
                    "finish_reason": .string(finishReason(response, hasCalls: !calls.isEmpty)),
                ]
            ],
            "usage": usage(response["usage"]),
        ]
        return completion.serialized()
    }
}

/// Tells a Responses stream as a chat stream, event by event. Arguments of tool calls are append-only.
public struct ChatStreamTranslator: Sendable {
    private let model: String
    private let includeUsage: Bool
    private let created: Int64
    private let id: String
    private var hasRole = false
    /// Output indices of tool calls, in the order in which they came: their place is the chat index.
    private var calls: [Int64] = []
    /// Argument characters already told, per call.
    private var told: [Int] = []
    private var isFinished = false

    public init(model: String, includeUsage: Bool, created: Int64, id: String) {
        (self.model, self.includeUsage, self.created, self.id) = (model, includeUsage, created, id)
    }

    private mutating func chunk(_ delta: JSONMembers, finish: String? = nil, into out: inout [UInt8]) {
        var delta = delta
        if !hasRole {
            hasRole = true
            delta = JSONMembers([.init(key: "role", value: "assistant")] + delta.members)
        }
        write(
            [["index": 0, "delta": .object(delta), "logprobs": nil, "finish_reason": finish.map { .string($0) } ?? nil]],
            usage: includeUsage ? .some(.null) : nil,
            into: &out)
    }

    private func write(_ choices: JSONValue, usage: JSONValue?, into out: inout [UInt8]) {
        var members = JSONMembers([
            .init(key: "id", value: .string(id)), .init(key: "object", value: "chat.completion.chunk"),
            .init(key: "created", value: .int(created)),
            .init(key: "model", value: .string(model)), .init(key: "choices", value: choices),
        ])
        if let usage { members["usage"] = usage }
        out += "data: ".utf8
        JSONValue.object(members).write(into: &out)
        out += "\n\n".utf8
    }

    private mutating func callIndex(_ outputIndex: Int64) -> Int {
        if let known = calls.firstIndex(of: outputIndex) { return known }
        calls.append(outputIndex)
        told.append(0)
        return calls.count - 1
    }

    /// Appends the chunks that the event amounts to; many amount to none.
    public mutating func event(_ json: RawSpan, into out: inout [UInt8]) {
        guard !isFinished, let event = try? JSONValue(parsing: json) else { return }  // no JSON: nothing to tell
        let outputIndex = event["output_index"]?.intValue ?? 0
        switch event["type"]?.stringValue {
        case "response.output_text.delta", "response.text.delta":
            if let text = event["delta"]?.stringValue { chunk(JSONMembers([.init(key: "content", value: .string(text))]), into: &out) }
        case "response.refusal.delta":
            if let text = event["delta"]?.stringValue { chunk(JSONMembers([.init(key: "refusal", value: .string(text))]), into: &out) }
        case "response.output_item.added" where event["item"]?["type"]?.stringValue == "function_call":
            let i = callIndex(outputIndex)
            let item = event["item"]
            call(
                i,
                [
                    "index": .int(Int64(i)), "id": item?["call_id"] ?? item?["id"] ?? "", "type": "function",
                    "function": ["name": item?["name"] ?? "", "arguments": ""],
                ], into: &out)
        case "response.function_call_arguments.delta":
            guard let text = event["delta"]?.stringValue, !text.isEmpty else { return }
            let i = callIndex(outputIndex)
            told[i] += text.utf8.count
            call(i, ["index": .int(Int64(i)), "function": ["arguments": .string(text)]], into: &out)
        case "response.output_item.done" where event["item"]?["type"]?.stringValue == "function_call":
            // Whole arguments at the end tell only what the deltas had not.
            let isNew = !calls.contains(outputIndex)
            let i = callIndex(outputIndex)
            let item = event["item"]
            let all = Array((item?["arguments"]?.stringValue ?? "").utf8)
            let rest = String(decoding: all[min(told[i], all.count)...], as: UTF8.self)
            told[i] = all.count
            if isNew {
                call(
                    i,
                    [
                        "index": .int(Int64(i)), "id": item?["call_id"] ?? item?["id"] ?? "", "type": "function",
                        "function": ["name": item?["name"] ?? "", "arguments": .string(rest)],
                    ], into: &out)
            } else if !rest.isEmpty {
                call(i, ["index": .int(Int64(i)), "function": ["arguments": .string(rest)]], into: &out)
            }
        case "response.completed", "response.incomplete":
            let response = event["response"] ?? .null
            chunk(JSONMembers(), finish: ChatTranslation.finishReason(response, hasCalls: !calls.isEmpty), into: &out)
            if includeUsage { write([], usage: ChatTranslation.usage(response["usage"]), into: &out) }
            isFinished = true
        default: break
        }
    }

    private mutating func call(_ index: Int, _ call: JSONValue, into out: inout [UInt8]) {
        chunk(JSONMembers([.init(key: "tool_calls", value: [call])]), into: &out)
    }

    /// The stream's last line.
    public mutating func finish(into out: inout [UInt8]) {
        isFinished = true
        out += "data: [DONE]\n\n".utf8
    }
}
