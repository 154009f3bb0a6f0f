public import JSONWire
public import Vocabulary

/// A public Responses request as a ChatGPT login's upstream wants it (behaviour report 1.6). What isn't named here passes byte by byte.
public enum ResponsesTranslation {
    /// Members that this upstream refuses.
    private static let removed = [
        "max_output_tokens", "metadata", "prompt_cache_retention", "safety_identifier", "temperature", "top_p", "truncation", "user",
        "prompt_cache_options", "background", "stream_options",
    ]
    /// Roles whose items are told otherwise.
    private static let rewrittenRoles: Set<String> = ["system", "developer", "tool", "assistant"]
    /// Members of replayed items that are echoes of other APIs.
    private static let echoes = ["reasoning_content", "reasoning_details", "tool_calls", "function_call"]

    public static func codexRequest(from document: JSONDocument) throws(ProxyError) -> [UInt8] {
        guard let fields = try fields(document, document.root, at: "") else {
            throw ChatTranslation.invalid("The request body must be a JSON object", nil)
        }
        var changes: [(key: String, value: [UInt8]?)] = [("store", Array("false".utf8)), ("stream", Array("true".utf8))]
        changes += removed.map { ($0, nil) }
        if let tier = fields["service_tier"], document.equals(tier, "fast") {
            changes.append(("service_tier", Array("\"priority\"".utf8)))
        }
        let instructions = fields["instructions"].flatMap { document.string($0) }
        if let input = fields["input"] {
            switch document.kind(input) {
            case .string:
                let text = document.string(input) ?? ""
                let list: JSONValue = [["role": "user", "content": [["type": "input_text", "text": .string(text)]]]]
                changes.append(("input", list.serialized()))
            case .array:
                try rewriteItems(document, input, instructions, &changes)
            case .null:
                break
            default:
                throw ChatTranslation.invalid("\"input\" must be a string or an array", "input")
            }
        }
        if instructions == nil, !changes.contains(where: { $0.key == "instructions" }) {
            changes.append(("instructions", Array("\"\"".utf8)))
        }
        guard let out = JSONEdit.setting(document.bytes.span.bytes, changes) else {
            throw ChatTranslation.invalid("The request body must be a JSON object", nil)
        }
        return out
    }

    private static func fields(
        _ document: JSONDocument, _ value: JSONDocument.Value, at place: String
    ) throws(ProxyError) -> JSONDocument.Fields? {
        do throws(JSONAmbiguity) { return try document.fields(value) } catch { throw ChatTranslation.ambiguous(error, at: place) }
    }

    private static func tree(_ document: JSONDocument, _ value: JSONDocument.Value, at place: String) throws(ProxyError) -> JSONValue {
        let tree: JSONValue
        do throws(JSONError) { tree = try JSONValue(document, value) } catch {
            throw ChatTranslation.invalid("\"input\" can't be read: \(error.reason)", place)
        }
        if let problem = tree.ambiguity { throw ChatTranslation.ambiguous(problem, at: place + ".") }
        return tree
    }

    private static func rewriteItems(
        _ document: JSONDocument, _ input: JSONDocument.Value, _ present: String?, _ changes: inout [(key: String, value: [UInt8]?)]
    ) throws(ProxyError) {
        // A Responses-Lite body (items of additional tools) is Codex's own business from end to end.
        var isLite = false
        var needsChange = false
        for (i, item) in document.elements(input).enumerated() {
            guard let fields = try fields(document, item, at: "input.\(i).") else { continue }
            if let type = fields["type"], document.equals(type, "additional_tools") { isLite = true }
            if let role = fields["role"].flatMap({ document.string($0) }) { needsChange = needsChange || rewrittenRoles.contains(role) }
            for echo in echoes where fields[echo] != nil { needsChange = true }
        }
        guard needsChange, !isLite else { return }
        var instructions: [String] = []
        if let present, !present.isEmpty { instructions.append(present) }
        var out: [UInt8] = [UInt8(ascii: "[")]
        func append(_ item: ArraySlice<UInt8>) {
            if out.count > 1 { out.append(UInt8(ascii: ",")) }
            out += item
        }
        for (i, element) in document.elements(input).enumerated() {
            let raw = document.raw(element)
            guard document.kind(element) == .object else {
                append(raw)
                continue
            }
            var item = try tree(document, element, at: "input.\(i)")
            let type = item["type"]?.stringValue
            let role = item["role"]?.stringValue
            let isMessage = type == nil || type == "message"
            if isMessage, role == "system" || role == "developer" {
                let (text, rest) = split(item["content"])
                if !text.isEmpty { instructions.append(text) }
                if !rest.isEmpty {
                    append(JSONValue(dictionaryLiteral: ("role", "user"), ("content", .array(rest))).serialized()[...])
                }
                continue
            }
            if isMessage, role == "tool" {
                let (text, _) = split(item["content"] ?? item["output"])
                let output = JSONValue(
                    dictionaryLiteral: ("type", "function_call_output"), ("call_id", item["call_id"] ?? item["tool_call_id"] ?? ""),
                    ("output", .string(text)))
                append(output.serialized()[...])
                continue
            }
            var hasChanged = false
            for echo in echoes where item[echo] != nil {
                item[echo] = nil
                hasChanged = true
            }
            if isMessage, role == "assistant", let content = item["content"], let parts = assistantParts(content) {
                item["content"] = parts
                hasChanged = true
            }
            append(hasChanged ? item.serialized()[...] : raw)
        }
        out.append(UInt8(ascii: "]"))
        changes.append(("input", out))
        if !instructions.isEmpty {
            var text: [UInt8] = []
            JSONWriter.string(instructions.joined(separator: "\n"), into: &text)
            changes.append(("instructions", text))
        }
    }

    /// The text of a content and its parts that are no text.
    private static func split(_ content: JSONValue?) -> (text: String, rest: [JSONValue]) {
        guard let content else { return ("", []) }
        if let text = content.stringValue { return (text, []) }
        var texts: [String] = []
        var rest: [JSONValue] = []
        for part in content.arrayValue ?? [] {
            if let text = part["text"]?.stringValue { texts.append(text) } else { rest.append(part) }
        }
        return (texts.joined(separator: "\n"), rest)
    }

    /// An assistant's content in output parts; nil when it is so already.
    private static func assistantParts(_ content: JSONValue) -> JSONValue? {
        if let text = content.stringValue { return [["type": "output_text", "text": .string(text)]] }
        guard let parts = content.arrayValue else { return nil }
        var hasChanged = false
        let out = parts.map { part -> JSONValue in
            guard let type = part["type"]?.stringValue, type == "text" || type == "input_text" else { return part }
            var part = part
            part["type"] = "output_text"
            hasChanged = true
            return part
        }
        return hasChanged ? .array(out) : nil
    }
}
