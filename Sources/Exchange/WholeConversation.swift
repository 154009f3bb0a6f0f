import JSONWire
import Vocabulary

/// Whether the input of a Responses request says all that its previous response is about.
enum WholeConversation {
    /// It begins as a conversation does, has answers of the model in it and for each output of a tool the call. What only one account can read
    /// (encrypted reasoning, items that are named by their ids) makes it less than whole, and so does what this build does not know.
    static func isWhole(_ document: JSONDocument, _ input: JSONDocument.Value?) -> Bool {
        guard let input, document.kind(input) == .array else { return false }
        let bytes = document.bytes.span.bytes
        func text(_ item: JSONDocument.Value, _ name: StaticString) -> String? {
            JSONScan.find(bytes, in: item.range, name).flatMap { $0.count <= Limits.affinityKeyBytesMax ? JSONScan.string(bytes, $0) : nil }
        }
        var (isFirst, hasAnswer) = (true, false)
        var calls: Set<String> = []
        for item in document.elements(input) {
            guard document.kind(item) == .object else { return false }
            let (type, role) = (text(item, "type") ?? "message", text(item, "role"))
            if isFirst, type != "message" || role == "assistant" { return false }
            isFirst = false
            switch type {
            case "message":
                guard let role else { return false }
                if role == "assistant" { hasAnswer = true }
            case "function_call", "custom_tool_call", "local_shell_call":
                guard let id = text(item, "call_id") else { return false }
                calls.insert(id)
                hasAnswer = true
            case "function_call_output", "custom_tool_call_output", "local_shell_call_output":
                guard let id = text(item, "call_id"), calls.contains(id) else { return false }
            case "reasoning":
                let sealed = JSONScan.find(bytes, in: item.range, "encrypted_content")
                guard sealed.map({ JSONScan.kind(bytes, $0) == .null }) ?? true, text(item, "id") == nil else { return false }
            default: return false
            }
        }
        return hasAnswer
    }
}
