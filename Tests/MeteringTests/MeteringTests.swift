import Testing

@testable import Metering

/// Goal: a turn costs what the price list says, to the microdollar.
@Suite struct PriceTests {
    func cost(_ model: String, _ input: Int64, _ cached: Int64, _ output: Int64, reasoning: Int64 = 0) -> Int64? {
        cost(model, "", input, cached, output, reasoning: reasoning)
    }
    func cost(_ model: String, _ tier: String, _ input: Int64, _ cached: Int64, _ output: Int64, reasoning: Int64 = 0) -> Int64? {
        PriceTable.costMicrodollars(
            model: model, serviceTier: tier, usage: TokenUsage(input: input, cachedInput: cached, output: output, reasoning: reasoning))
    }

    @Test func followsTheTable() {
        #expect(cost("gpt-5.4", 1000, 400, 100) == 3100)
        #expect(cost("gpt-5.6-sol", "priority", 100, 0, 10) == 1600)
        #expect(cost("gpt-5.6-sol", "fast", 100, 0, 10) == 1600)
        #expect(cost("gpt-5.1", "priority", 1000, 0, 0) == 2500)
        #expect(cost("gpt-5.5-pro", 10, 10, 1) == 480)
        #expect(cost("text-embedding-3-small", 100, 0, 0) == 2)
        #expect(cost("text-embedding-3-large", 100, 0, 0) == 13)
        #expect(cost("gpt-6", 1, 0, 1) == nil)
        #expect(cost("", 1, 0, 1) == nil)
    }

    @Test func priceOfHalfAThousandthIsKept() {
        #expect(cost("gpt-5.4-mini", "flex", 1_000_000, 1_000_000, 0) == 37_500)
        #expect(cost("gpt-5.1", "flex", 1_000_000, 1_000_000, 0) == 62_500)
        #expect(cost("gpt-5.2", "flex", 1_000_000, 1_000_000, 0) == 87_500)
    }

    @Test func snapshotsAndAliasesFindTheirModel() {
        #expect(cost("gpt-5.4-2026-03-01", 1000, 0, 0) == 2500)
        #expect(cost("gpt-5.4-mini-2026-03-01", 1000, 0, 0) == 750)
        #expect(cost("gpt-5.6", 1000, 0, 0) == 5000)
        #expect(cost("GPT-5.4", 1000, 0, 0) == 2500)
    }

    @Test func longContextCostsMore() {
        #expect(cost("gpt-5.4", 272_000, 0, 0) == 680_000)
        #expect(cost("gpt-5.4", 272_001, 0, 2) == 1_360_050)
        #expect(cost("gpt-5.4", "priority", 272_001, 0, 0) == 1_360_005)
        // Flex: twice the input, one and a half times the output.
        #expect(cost("gpt-5.4", "flex", 280_000, 80_000, 1000) == 531_250)
        #expect(cost("gpt-5.1", 300_000, 0, 0) == 375_000)
    }

    @Test func roundsHalfUpAndClamps() {
        #expect(cost("text-embedding-3-small", 24, 0, 0) == 0)
        #expect(cost("text-embedding-3-small", 25, 0, 0) == 1)
        #expect(cost("gpt-5.4", 10, 20, 0) == 3)  // 10 cached at 0.25
        #expect(cost("gpt-5.4", 0, 0, 0, reasoning: 7) == 105)
        #expect(cost("gpt-5.4", -5, -5, -5) == 0)
        // What an upstream invents must not end the worker.
        #expect(cost("gpt-5.4-pro", .max, .max, .max) != nil)
        #expect(cost("gpt-5.4-pro", .min, .max, .min) == 0)
    }
}

/// Goal: every shape of answer tells its usage; none can do harm.
@Suite struct UsageTapTests {
    func tap(_ json: String, _ read: (RawSpan, inout UsageFindings) -> Void) -> UsageFindings {
        var findings = UsageFindings()
        let bytes = Array(json.utf8)
        read(bytes.span.bytes, &findings)
        return findings
    }

    static let response =
        #"{"id":"resp_1","object":"response","model":"gpt-5.4-2026-03-01","service_tier":"priority","error":null,"output":[{"model":"no"}],"usage":{"input_tokens":10,"input_tokens_details":{"cached_tokens":4},"output_tokens":7,"output_tokens_details":{"reasoning_tokens":3},"total_tokens":17}}"#

    private static func event(_ json: RawSpan, into findings: inout UsageFindings) { UsageTap.responsesEvent(json, into: &findings) }

    @Test func responses() {
        for findings in [
            tap(Self.response, UsageTap.responsesBody),
            tap(#"{"type":"response.completed","response":\#(Self.response)}"#, Self.event),
        ] {
            #expect(findings.usage == TokenUsage(input: 10, cachedInput: 4, output: 7, reasoning: 3))
            #expect(findings.modelServed == "gpt-5.4-2026-03-01")
            #expect(findings.serviceTier == "priority")
            #expect(findings.errorCode == nil)
            #expect(findings.responseID == "resp_1")
        }
    }

    @Test(
        "Numbers of tokens are read as they are written, and changed and marked where nobody can count with them",
        arguments: [
            ("11", 11, true), ("11.0", 11, true), ("1e3", 1000, true), ("1.5E1", 15, true), ("120e-1", 12, true), ("0.0", 0, true),
            ("0e999999999999999999999", 0, true), ("-0", 0, true), ("1000000000", 1_000_000_000, true),
            ("1000000001", 1_000_000_000, false),
            ("9223372036854775807", 1_000_000_000, false), ("9223372036854775808", 1_000_000_000, false),
            ("18446744073709551616", 1_000_000_000, false), ("1e999", 1_000_000_000, false), ("9.3e18", 1_000_000_000, false),
            ("-1", 0, false), ("-9223372036854775808", 0, false), ("-1e999", 0, false), ("10.5", 10, false), ("1e-3", 0, false),
            ("null", 0, true), ("\"7\"", 0, true), ("[7]", 0, true),
        ] as [(String, Int64, Bool)])
    func numbers(_ text: String, _ number: Int64, _ isExact: Bool) {
        let usage = #"{"input_tokens":\#(text),"output_tokens":\#(text),"output_tokens_details":{"reasoning_tokens":\#(text)}}"#
        let response = tap(#"{"usage":\#(usage)}"#, UsageTap.responsesBody)
        #expect(response.usage == TokenUsage(input: number, output: number, reasoning: number))
        #expect(response.isOutOfRange == !isExact)
        let chat = tap(#"{"usage":{"prompt_tokens":\#(text),"completion_tokens":\#(text)}}"#, UsageTap.chatChunk)
        #expect(chat.usage == TokenUsage(input: number, output: number) && chat.isOutOfRange == !isExact)
    }

    @Test func chatAndEmbeddings() {
        let chat = tap(
            #"{"id":"c","object":"chat.completion.chunk","model":"gpt-5.4","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":2}}}"#,
            UsageTap.chatChunk)
        #expect(chat.usage == TokenUsage(input: 5, cachedInput: 1, output: 6, reasoning: 2))
        #expect(chat.modelServed == "gpt-5.4")
        #expect(tap(#"{"choices":[],"usage":null}"#, UsageTap.chatChunk).usage == nil)
        #expect(
            tap(
                #"{"object":"list","data":[],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#,
                UsageTap.embeddingsBody
            ).usage == TokenUsage(input: 8))
    }

    @Test func prefixesDoNoHarm() {
        let json = #"{"type":"response.completed","response":\#(Self.response)}"#
        for cut in 0..<json.utf8.count {
            let part = String(decoding: Array(json.utf8)[..<cut], as: UTF8.self)
            for read in [Self.event, UsageTap.responsesBody, UsageTap.chatChunk, UsageTap.embeddingsBody] {
                _ = tap(part, read)
            }
        }
    }
}

@Suite struct PriceBookTests {
    @Test("The book says what the table says, and keeps few names and no long ones")
    func book() {
        var book = PriceBook()
        let usage = TokenUsage(input: 1000, cachedInput: 100, output: 50)
        let names =
            Array(PriceTable.models.keys) + ["gpt-5.6", "GPT-5.4", "gpt-5.4-2026-03-01", "gpt-5.45", "", "claude", "gpt-5.4-pro-x"]
            + (0..<1000).map { "m\($0)" } + [String(repeating: "gpt-5.4-", count: 1000)]
        for name in names + names {
            for tier in ["", "priority", "flex"] {
                #expect(
                    book.costMicrodollars(model: name, serviceTier: tier, usage: usage)
                        == PriceTable.costMicrodollars(model: name, serviceTier: tier, usage: usage))
            }
            #expect(book.namesKept <= PriceBook.namesMax)
        }
        var long = PriceBook()
        for i in 0..<10 { _ = long.costMicrodollars(model: String(repeating: "\(i)", count: 100_000), serviceTier: "", usage: usage) }
        #expect(long.namesKept == 0)
    }
}
