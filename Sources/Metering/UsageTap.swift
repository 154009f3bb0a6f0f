import JSONWire
import Vocabulary

/// Tokens of one turn.
public struct TokenUsage: Sendable, Equatable {
    public let input: Int64
    /// Part of `input`.
    public let cachedInput: Int64
    public let output: Int64
    /// Part of `output`.
    public let reasoning: Int64
    /// Each in `0 ... Limits.turnTokensMax`, whatever was told.
    public init(input: Int64 = 0, cachedInput: Int64 = 0, output: Int64 = 0, reasoning: Int64 = 0) {
        (self.input, self.cachedInput) = (Self.clamped(input), Self.clamped(cachedInput))
        (self.output, self.reasoning) = (Self.clamped(output), Self.clamped(reasoning))
    }

    public static let bounds = 0...Limits.turnTokensMax
    private static func clamped(_ number: Int64) -> Int64 { min(max(number, bounds.lowerBound), bounds.upperBound) }
}

/// What a turn's answer told about itself.
public struct UsageFindings: Sendable, Equatable {
    public var usage: TokenUsage?
    /// The upstream told no usage; the numbers are a guess from the bytes that passed.
    public var isEstimated = false
    /// A number of tokens was negative, broken or beyond any turn's: it was changed into one that can be counted with.
    public var isOutOfRange = false
    public var modelServed = ""
    public var serviceTier = ""
    /// Of a failure inside the answer; whoever reads errors (Exchange) fills it.
    public var errorCode: String?
    public var responseID: String?
    /// Of a file that the answer made room for.
    public var fileID: String?
    /// As the response object tells it: `completed`, `failed` and so on.
    public var status: String?
    /// The object has a member that failures are told by: whoever reads errors has something to look at.
    public var mayTellFailure = false
    public init() {}
}

/// Reads usage from an answer's JSON as it passes. Never fails: what is not understood is not counted.
public enum UsageTap {
    /// Any event; it is the terminal ones that tell: `response.completed`, `response.incomplete`, `response.failed`, `error`. Returns where
    /// its response object stands.
    @discardableResult
    public static func responsesEvent(_ json: RawSpan, into findings: inout UsageFindings) -> Range<Int>? {
        var response: Range<Int>?
        _ = JSONScan.walk(json, 0) { key, start in
            guard response == nil, JSONScan.keyEquals(json, key, "response") else { return JSONScan.valueEnd(json, start) }
            guard let end = object(json, start, into: &findings) ?? JSONScan.valueEnd(json, start) else { return nil }
            response = start..<end
            return end
        }
        return response
    }

    /// The response object of an answer that was not streamed.
    public static func responsesBody(_ json: RawSpan, into findings: inout UsageFindings) { _ = object(json, 0, into: &findings) }

    /// A `chat.completion.chunk` or a whole `chat.completion`.
    public static func chatChunk(_ json: RawSpan, into findings: inout UsageFindings) {
        _ = object(json, 0, into: &findings, isChat: true)
    }

    /// The answer of an embeddings route.
    public static func embeddingsBody(_ json: RawSpan, into findings: inout UsageFindings) {
        _ = object(json, 0, into: &findings, isChat: true, hasIdentity: false)
    }

    /// One walk over the members of the object at `start`; of a key that occurs twice the first counts. Returns the place behind it; nil when it
    /// has no end, and then what stood before counts all the same.
    private static func object(
        _ json: RawSpan, _ start: Int, into findings: inout UsageFindings, isChat: Bool = false, hasIdentity: Bool = true
    ) -> Int? {
        var (model, tier, id, usage): (Range<Int>?, Range<Int>?, Range<Int>?, Range<Int>?)
        let end = JSONScan.walk(json, start) { key, start in
            guard let end = JSONScan.valueEnd(json, start) else { return nil }
            if model == nil, JSONScan.keyEquals(json, key, "model") {
                model = start..<end
            } else if usage == nil, JSONScan.keyEquals(json, key, "usage") {
                usage = start..<end
            } else if hasIdentity, tier == nil, JSONScan.keyEquals(json, key, "service_tier") {
                tier = start..<end
            } else if hasIdentity, id == nil, JSONScan.keyEquals(json, key, "id") {
                id = start..<end
            } else if findings.status == nil, JSONScan.keyEquals(json, key, "status") {
                findings.status = JSONScan.string(json, start..<end)
            } else if isOfFailure(json, key, start..<end) {
                findings.mayTellFailure = true
            }
            return end
        }
        if let model { findings.modelServed = JSONScan.string(json, model) ?? findings.modelServed }
        if let tier { findings.serviceTier = JSONScan.string(json, tier) ?? findings.serviceTier }
        if let id { findings.responseID = JSONScan.string(json, id) ?? findings.responseID }
        if let usage, JSONScan.kind(json, usage) == .object { tokens(json, usage, isChat: isChat, into: &findings) }
        return end
    }

    /// `error` that says something, `type`, `detail`, `object` of an error; any key with an escape may be one of them.
    private static func isOfFailure(_ json: RawSpan, _ key: Range<Int>, _ value: Range<Int>) -> Bool {
        switch key.count {
        case 4: JSONScan.keyEquals(json, key, "type")
        case 5: JSONScan.keyEquals(json, key, "error") && JSONScan.kind(json, value) != .null
        case 6:
            JSONScan.keyEquals(json, key, "detail") || JSONScan.keyEquals(json, key, "object") && JSONScan.equals(json, value, "error")
        default: key.count > 6 && JSONScan.hasBackslash(json, key)
        }
    }

    private static func tokens(_ json: RawSpan, _ usage: Range<Int>, isChat: Bool, into findings: inout UsageFindings) {
        let (inputName, outputName): (StaticString, StaticString) =
            isChat ? ("prompt_tokens", "completion_tokens") : ("input_tokens", "output_tokens")
        let (inputDetails, outputDetails): (StaticString, StaticString) =
            isChat ? ("prompt_tokens_details", "completion_tokens_details") : ("input_tokens_details", "output_tokens_details")
        var (input, cached, output, reasoning): (Range<Int>?, Range<Int>?, Range<Int>?, Range<Int>?)
        JSONScan.members(json, usage) { key, value in
            if input == nil, JSONScan.keyEquals(json, key, inputName) {
                input = value
            } else if output == nil, JSONScan.keyEquals(json, key, outputName) {
                output = value
            } else if cached == nil, JSONScan.keyEquals(json, key, inputDetails) {
                cached = JSONScan.find(json, in: value, "cached_tokens")
            } else if reasoning == nil, JSONScan.keyEquals(json, key, outputDetails) {
                reasoning = JSONScan.find(json, in: value, "reasoning_tokens")
            }
            return true
        }
        findings.usage = TokenUsage(
            input: tokens(json, input, &findings), cachedInput: tokens(json, cached, &findings),
            output: tokens(json, output, &findings), reasoning: tokens(json, reasoning, &findings))
    }

    /// The number of tokens at a place; 0 where none is told.
    private static func tokens(_ json: RawSpan, _ place: Range<Int>?, _ findings: inout UsageFindings) -> Int64 {
        guard let place, let count = JSONScan.count(json, place, in: TokenUsage.bounds) else { return 0 }
        if !count.isExact { findings.isOutOfRange = true }
        return count.number
    }
}
