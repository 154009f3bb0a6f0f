import JSONWire

/// Tokens of one turn.
public struct TokenUsage: Sendable, Equatable {
    public var input: Int64
    /// Part of `input`.
    public var cachedInput: Int64
    public var output: Int64
    /// Part of `output`.
    public var reasoning: Int64
    public init(input: Int64 = 0, cachedInput: Int64 = 0, output: Int64 = 0, reasoning: Int64 = 0) {
        (self.input, self.cachedInput, self.output, self.reasoning) = (input, cachedInput, output, reasoning)
    }
}

/// What a turn's answer told about itself.
public struct UsageFindings: Sendable, Equatable {
    public var usage: TokenUsage?
    /// The upstream told no usage; the numbers are a guess from the bytes that passed.
    public var isEstimated = false
    public var modelServed = ""
    public var serviceTier = ""
    public var errorCode: String?
    public var responseID: String?
    public init() {}
}

/// Reads usage from an answer's JSON as it passes. Never fails: what is not understood is not counted.
public enum UsageTap {
    /// Any event; it is the terminal ones that tell: `response.completed`, `response.incomplete`, `response.failed`, `error`.
    public static func responsesEvent(_ json: RawSpan, into findings: inout UsageFindings) {
        if let response = JSONScan.find(json, "response") {
            responseObject(json.extracting(response), into: &findings)
        }
        guard findings.errorCode == nil, let type = JSONScan.find(json, "type") else { return }
        if JSONScan.equals(json, type, "error") {
            let code = JSONScan.find(json, "error", "code") ?? JSONScan.find(json, "code")
            findings.errorCode = code.flatMap { JSONScan.string(json, $0) } ?? "upstream_error"
        } else if JSONScan.equals(json, type, "response.failed") {
            findings.errorCode = "upstream_error"
        }
    }

    /// The response object of an answer that was not streamed.
    public static func responsesBody(_ json: RawSpan, into findings: inout UsageFindings) { responseObject(json, into: &findings) }

    private static func responseObject(_ json: RawSpan, into findings: inout UsageFindings) {
        if let model = JSONScan.find(json, "model") { findings.modelServed = JSONScan.string(json, model) ?? findings.modelServed }
        if let tier = JSONScan.find(json, "service_tier") { findings.serviceTier = JSONScan.string(json, tier) ?? findings.serviceTier }
        if let id = JSONScan.find(json, "id") { findings.responseID = JSONScan.string(json, id) ?? findings.responseID }
        if let code = JSONScan.find(json, "error", "code") { findings.errorCode = JSONScan.string(json, code) ?? "upstream_error" }
        guard let usage = JSONScan.find(json, "usage"), JSONScan.kind(json, usage) == .object else { return }
        let part = json.extracting(usage)
        findings.usage = TokenUsage(
            input: int(part, "input_tokens"), cachedInput: int(part, "input_tokens_details", "cached_tokens"),
            output: int(part, "output_tokens"),
            reasoning: int(part, "output_tokens_details", "reasoning_tokens"))
    }

    /// A `chat.completion.chunk` or a whole `chat.completion`.
    public static func chatChunk(_ json: RawSpan, into findings: inout UsageFindings) {
        if let model = JSONScan.find(json, "model") { findings.modelServed = JSONScan.string(json, model) ?? findings.modelServed }
        if let tier = JSONScan.find(json, "service_tier") { findings.serviceTier = JSONScan.string(json, tier) ?? findings.serviceTier }
        if let id = JSONScan.find(json, "id") { findings.responseID = JSONScan.string(json, id) ?? findings.responseID }
        chatUsage(json, into: &findings)
    }

    /// The answer of an embeddings route.
    public static func embeddingsBody(_ json: RawSpan, into findings: inout UsageFindings) {
        if let model = JSONScan.find(json, "model") { findings.modelServed = JSONScan.string(json, model) ?? findings.modelServed }
        chatUsage(json, into: &findings)
    }

    private static func chatUsage(_ json: RawSpan, into findings: inout UsageFindings) {
        guard let usage = JSONScan.find(json, "usage"), JSONScan.kind(json, usage) == .object else { return }
        let part = json.extracting(usage)
        findings.usage = TokenUsage(
            input: int(part, "prompt_tokens"), cachedInput: int(part, "prompt_tokens_details", "cached_tokens"),
            output: int(part, "completion_tokens"), reasoning: int(part, "completion_tokens_details", "reasoning_tokens"))
    }

    private static func int(_ json: RawSpan, _ name: StaticString) -> Int64 {
        JSONScan.find(json, name).flatMap { JSONScan.int(json, $0) } ?? 0
    }
    private static func int(_ json: RawSpan, _ outer: StaticString, _ name: StaticString) -> Int64 {
        JSONScan.find(json, outer, name).flatMap { JSONScan.int(json, $0) } ?? 0
    }
}
