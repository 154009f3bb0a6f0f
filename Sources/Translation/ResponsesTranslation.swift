import JSONWire
public import Vocabulary

/// A public Responses request as a ChatGPT login's upstream wants it (behaviour report 1.6). What isn't named here passes byte by byte.
public enum ResponsesTranslation {
    /// Members that this upstream refuses.
    private static let removed = [
        "max_output_tokens", "metadata", "prompt_cache_retention", "safety_identifier", "temperature", "top_p", "truncation", "user",
        "prompt_cache_options", "background", "stream_options",
    ]
    /// Members of replayed items that are echoes of other APIs.
    private static let echoes = ["reasoning_content", "reasoning_details", "tool_calls", "function_call"]

    public static func codexRequest(from bytes: RawSpan) throws(ProxyError) -> [UInt8] {
        var changes: [(key: String, value: [UInt8]?)] = [("store", Array("false".utf8)), ("stream", Array("true".utf8))]
        changes += removed.map { ($0, nil) }
        if let tier = JSONScan.find(bytes, "service_tier"), JSONScan.equals(bytes, tier, "fast") {
            changes.append(("service_tier", Array("\"priority\"".utf8)))
        }
        if let input = JSONScan.find(bytes, "input") {
            switch JSONScan.kind(bytes, input) {
            case .string:
                let text = JSONScan.string(bytes, input) ?? ""
                let list: JSONValue = [["role": "user", "content": [["type": "input_text", "text": .string(text)]]]]
                changes.append(("input", list.serialized()))
            case .array:
                try rewriteItems(bytes, input, &changes)
            case .null:
                break
            default:
                throw ChatTranslation.invalid("\"input\" must be a string or an array", "input")
            }
        }
        let present = JSONScan.find(bytes, "instructions")
        let hasInstructions = present.map { JSONScan.kind(bytes, $0) == .string } ?? false
        if !hasInstructions, !changes.contains(where: { $0.key == "instructions" }) { changes.append(("instructions", Array("\"\"".utf8))) }
        guard let out = JSONEdit.setting(bytes, changes) else {
            throw ChatTranslation.invalid("The request body must be a JSON object", nil)
        }
        return out
    }

    private static func rewriteItems(
        _ bytes: RawSpan, _ input: Range<Int>, _ changes: inout [(key: String, value: [UInt8]?)]
    ) throws(ProxyError) {
        // A Responses-Lite body (items of additional tools) is Codex's own business from end to end.
        var isLite = false
        var needsChange = false
        JSONScan.elements(bytes, input) { item in
            JSONScan.members(bytes, item) { key, value in
                if JSONScan.keyEquals(bytes, key, "type"), JSONScan.equals(bytes, value, "additional_tools") { isLite = true }
                if JSONScan.keyEquals(bytes, key, "role") {
                    if JSONScan.equals(bytes, value, "system") || JSONScan.equals(bytes, value, "developer")
                        || JSONScan.equals(bytes, value, "tool")
                        || JSONScan.equals(bytes, value, "assistant")
                    {
                        needsChange = true
                    }
                }
                for echo in echoes where JSONScan.key(bytes, key) == echo { needsChange = true }
                return true
            }
            return true
        }
        guard needsChange, !isLite else { return }
        var instructions: [String] = []
        if let present = JSONScan.find(bytes, "instructions"), let text = JSONScan.string(bytes, present), !text.isEmpty {
            instructions.append(text)
        }
        var out: [UInt8] = [UInt8(ascii: "[")]
        func append(_ item: [UInt8]) {
            if out.count > 1 { out.append(UInt8(ascii: ",")) }
            out += item
        }
        var failure: JSONError?
        JSONScan.elements(bytes, input) { range in
            let raw = bytes.extracting(range)
            guard JSONScan.kind(bytes, range) == .object else {
                append(raw.withUnsafeBytes { Array($0) })
                return true
            }
            do throws(JSONError) {
                var item = try JSONValue(parsing: raw)
                let type = item["type"]?.stringValue
                let role = item["role"]?.stringValue
                let isMessage = type == nil || type == "message"
                if isMessage, role == "system" || role == "developer" {
                    let (text, rest) = split(item["content"])
                    if !text.isEmpty { instructions.append(text) }
                    if !rest.isEmpty { append(JSONValue(dictionaryLiteral: ("role", "user"), ("content", .array(rest))).serialized()) }
                    return true
                }
                if isMessage, role == "tool" {
                    let (text, _) = split(item["content"] ?? item["output"])
                    append(
                        JSONValue(
                            dictionaryLiteral: ("type", "function_call_output"), ("call_id", item["call_id"] ?? item["tool_call_id"] ?? ""),
                            ("output", .string(text))
                        ).serialized())
                    return true
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
                append(hasChanged ? item.serialized() : raw.withUnsafeBytes { Array($0) })
            } catch {
                failure = error
                return false
            }
            return true
        }
        if let failure { throw ChatTranslation.invalid("The request body is no valid JSON: \(failure.reason)", "input") }
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
