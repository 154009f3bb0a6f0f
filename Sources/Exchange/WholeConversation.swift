import JSONWire
import Vocabulary

/// Whether the input of a Responses request says all that its previous response is about.
enum WholeConversation {
    /// It begins as a conversation does, has answers of the model in it and for each output of a tool the call. What only one account can read
    /// (encrypted reasoning, items that are named by their ids) makes it less than whole, and so does what this build does not know.
    static func isWhole(_ document: JSONDocument, _ input: JSONDocument.Value?) -> Bool {
        guard let input, document.kind(input) == .array else { return false }
        var (isFirst, hasAnswer) = (true, false)
        var calls: Set<String> = []
        for item in document.elements(input) {
            // One with a key twice is not the same to every reader: what we see need not be what an upstream sees.
            guard let fields = (try? document.fields(item)) ?? nil else { return false }  // see above
            func text(_ name: String) -> String? {
                fields[name].flatMap { $0.range.count <= Limits.affinityKeyBytesMax ? document.string($0) : nil }
            }
            let type = fields["type"] == nil ? "message" : text("type")
            if isFirst, type != "message" || text("role") == "assistant" { return false }
            isFirst = false
            switch type {
            case "message":
                guard let role = text("role"), ["user", "system", "developer", "assistant"].contains(role) else { return false }
                if role == "assistant" { hasAnswer = true }
            case "function_call", "custom_tool_call", "local_shell_call":
                guard let id = text("call_id") else { return false }
                calls.insert(id)
                hasAnswer = true
            case "function_call_output", "custom_tool_call_output", "local_shell_call_output":
                guard let id = text("call_id"), calls.contains(id) else { return false }
            case "reasoning":
                guard fields["id"] == nil, fields["encrypted_content"].map({ document.kind($0) == .null }) ?? true else { return false }
            default: return false
            }
        }
        return hasAnswer
    }
}
