import Vocabulary

/// Prices of models, so that a record knows what its turn cost. docs/prices.md tells how to read it.
public enum PriceTable {
    /// The day on which the prices were taken.
    public static let date = "2026-08-21"

    /// Ten-thousandths of a microdollar per token, for the list has prices like $0.0375: $1 per million tokens is 10,000.
    struct Price {
        var input: Int64
        var cached: Int64
        var output: Int64
        /// Dollars per million tokens; a missing cached price is the input price.
        init(_ input: Double, _ cached: Double?, _ output: Double) {
            (self.input, self.cached, self.output) = (Self.unit(input), Self.unit(cached ?? input), Self.unit(output))
        }
        private static func unit(_ dollars: Double) -> Int64 { Int64(dollars * 10_000 + 0.5) }
    }

    struct Model {
        var standard: Price
        var priority: Price?
        var flex: Price?
        /// Above `longContextTokens` input tokens.
        var long: Price?
        init(_ standard: Price, priority: Price? = nil, flex: Price? = nil, long: Price? = nil) {
            (self.standard, self.priority, self.flex, self.long) = (standard, priority, flex, long)
        }
    }

    static let longContextTokens = 272_000
    static let models: [String: Model] = [
        "gpt-5.6-sol": Model(Price(5, 0.5, 30), priority: Price(10, 1, 60), flex: Price(2.5, 0.25, 15), long: Price(10, 1, 45)),
        "gpt-5.6-terra": Model(Price(2, 0.2, 12), priority: Price(4, 0.4, 24), flex: Price(1, 0.1, 6), long: Price(4, 0.4, 18)),
        "gpt-5.6-luna": Model(
            Price(0.2, 0.02, 1.2), priority: Price(0.4, 0.04, 2.4), flex: Price(0.1, 0.01, 0.6), long: Price(0.4, 0.04, 1.8)),
        "gpt-5.5": Model(Price(5, 0.5, 30), priority: Price(12.5, 1.25, 75), flex: Price(2.5, 0.25, 15)),
        "gpt-5.5-pro": Model(Price(30, nil, 180), flex: Price(15, nil, 90)),
        "gpt-5.4": Model(Price(2.5, 0.25, 15), priority: Price(5, 0.5, 30), flex: Price(1.25, 0.125, 7.5), long: Price(5, 0.5, 22.5)),
        "gpt-5.4-mini": Model(Price(0.75, 0.075, 4.5), flex: Price(0.375, 0.0375, 2.25)),
        "gpt-5.4-nano": Model(Price(0.2, 0.02, 1.25), flex: Price(0.1, 0.01, 0.625)),
        "gpt-5.4-pro": Model(Price(30, nil, 180), flex: Price(15, nil, 90), long: Price(60, nil, 270)),
        "gpt-5.3-codex": Model(Price(1.75, 0.175, 14), priority: Price(3.5, 0.35, 28)),
        "gpt-5.2-codex": Model(Price(1.75, 0.175, 14), priority: Price(3.5, 0.35, 28)),
        "gpt-5.3": Model(Price(1.75, 0.175, 14)),
        "gpt-5.2": Model(Price(1.75, 0.175, 14), priority: Price(3.5, 0.35, 28), flex: Price(0.875, 0.0875, 7)),
        "gpt-5.2-chat-latest": Model(Price(1.75, 0.175, 14)),
        "gpt-5.3-chat-latest": Model(Price(1.75, 0.175, 14)),
        "gpt-5.1": Model(Price(1.25, 0.125, 10), priority: Price(2.5, 0.25, 20), flex: Price(0.625, 0.0625, 5)),
        "gpt-5": Model(Price(1.25, 0.125, 10), priority: Price(2.5, 0.25, 20), flex: Price(0.625, 0.0625, 5)),
        "gpt-5.1-chat-latest": Model(Price(1.25, 0.125, 10)),
        "gpt-5-chat-latest": Model(Price(1.25, 0.125, 10)),
        "gpt-5.1-codex-max": Model(Price(1.25, 0.125, 10), priority: Price(2.5, 0.25, 20)),
        "gpt-5.1-codex": Model(Price(1.25, 0.125, 10), priority: Price(2.5, 0.25, 20)),
        "gpt-5-codex": Model(Price(1.25, 0.125, 10), priority: Price(2.5, 0.25, 20)),
        "gpt-5.1-codex-mini": Model(Price(0.25, 0.025, 2)),
        "gpt-image-2": Model(Price(5, 2, 30)),
        "gpt-image-1.5": Model(Price(5, 2, 30)),
        "gpt-image-1": Model(Price(5, 2, 30)),
        "gpt-image-1-mini": Model(Price(5, 2, 30)),
        "text-embedding-3-small": Model(Price(0.02, nil, 0)),
        "text-embedding-3-large": Model(Price(0.13, nil, 0)),
    ]

    /// Names that stand for a model beyond those of the table itself.
    static let aliases: [String: String] = ["gpt-5.6": "gpt-5.6-sol"]

    /// The table's model for a name: itself, an alias, or the longest name it goes on from (`gpt-5.4-2026-03-01`).
    static func find(_ name: String) -> Model? {
        let name = name.lowercased()
        if let model = models[aliases[name] ?? name] { return model }
        var best: String?
        for known in Array(models.keys) + Array(aliases.keys) where name.hasPrefix(known) && known.count > best?.count ?? 0 {
            let rest = name.dropFirst(known.count)
            // A snapshot's date or a variant, never another number: gpt-5.45 is not gpt-5.4.
            if rest.first == "-" { best = known }
        }
        return best.flatMap { models[aliases[$0] ?? $0] }
    }

    /// The cost in millionths of a dollar, rounded half up; nil when the model is not in the table.
    public static func costMicrodollars(model name: String, serviceTier: String, usage: TokenUsage) -> Int64? {
        find(name).map { cost($0, serviceTier: serviceTier, usage: usage) }
    }

    fileprivate static func cost(_ model: Model, serviceTier: String, usage: TokenUsage) -> Int64 {
        let isLong = usage.input > longContextTokens
        var price = model.standard
        switch serviceTier {
        case "priority", "fast":
            price = model.priority ?? model.standard  // not raised by a long context
        case "flex":
            price = model.flex ?? model.standard
            if isLong, model.long != nil, model.flex != nil {
                price.input *= 2
                price.cached *= 2
                price.output = price.output * 3 / 2
            }
        default:
            if isLong, let long = model.long { price = long }
        }
        // `TokenUsage` is bounded: at the highest price this is far from the end of Int64.
        let input = usage.input
        let cached = min(usage.cachedInput, input)
        let output = usage.output > 0 ? usage.output : usage.reasoning
        let cost = (input - cached) * price.input + cached * price.cached + output * price.output
        return (cost + 5_000) / 10_000
    }
}

/// Remembers what the table has for names that come again and again.
public struct PriceBook: Sendable {
    private var known: [String: PriceTable.Model?] = [:]
    /// Names come from outside: many, and long ones, which are looked up each time.
    static let namesMax = 256
    var namesKept: Int { known.count }

    public init() {}

    /// As `PriceTable.costMicrodollars`.
    public mutating func costMicrodollars(model name: String, serviceTier: String, usage: TokenUsage) -> Int64? {
        if let found = known[name] { return found.map { PriceTable.cost($0, serviceTier: serviceTier, usage: usage) } }
        let found = PriceTable.find(name)
        if name.utf8.count <= Limits.recordModelBytesMax {
            if known.count >= Self.namesMax { known = [:] }
            known[name] = .some(found)
        }
        return found.map { PriceTable.cost($0, serviceTier: serviceTier, usage: usage) }
    }
}
