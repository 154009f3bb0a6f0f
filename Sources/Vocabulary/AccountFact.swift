/// Something that was learned of an account and that outlives the processes. The store keeps the latest of each subject.
public struct AccountFact: Sendable, Equatable {
    public enum Subject: String, Sendable, CaseIterable {
        /// What its upstream says of its quotas and plan.
        case quota
        /// Why and until when it is left alone, and what counted against it last.
        case health
        /// Why it was taken out of routing.
        case state
    }

    public var accountID: Int64
    public var subject: Subject
    /// When it was learned: of two the later one counts.
    public var at: WallTime
    /// A JSON object; `QuotaFact`, `HealthFact` and `StateFact` read it.
    public var value: String

    public init(accountID: Int64, subject: Subject, at: WallTime, value: String) {
        (self.accountID, self.subject, self.at, self.value) = (accountID, subject, at, value)
    }
}

/// A ChatGPT plan, as tokens and usage answers name it.
public enum Plan: UInt8, Sendable, CaseIterable {
    case unknown, free, go, plus, pro, prolite, team, business, enterprise, edu
    /// One that this build does not know.
    case other

    /// Nil of a name that says nothing.
    public init?(named name: String) {
        let name = name.lowercased()
        guard !name.isEmpty, name != Plan.unknown.name else { return nil }
        self = name == "education" ? .edu : Self.allCases.first { $0.name == name } ?? .other
    }

    public var name: String { "\(self)" }

    /// What its week gives, in hundredths of a Plus week: 1,134, 7,560, 37,800 and 50,400 credits, as the Python system has found them. One that
    /// nobody has told of counts as Plus.
    public var weekHundredths: Int {
        switch self {
        case .free: 15
        case .prolite: 500
        case .pro, .enterprise: 667
        case .unknown, .go, .plus, .team, .business, .edu, .other: 100
        }
    }
}

/// A login's credits beyond its windows.
public struct Credits: Sendable, Equatable {
    public var hasCredits: Bool
    public var isUnlimited: Bool
    /// In hundredths; nil when nobody says.
    public var balanceHundredths: Int?

    public init(hasCredits: Bool, isUnlimited: Bool, balanceHundredths: Int? = nil) {
        (self.hasCredits, self.isUnlimited, self.balanceHundredths) = (hasCredits, isUnlimited, balanceHundredths)
    }

    /// They keep an account in whose windows are used up.
    public var areUsable: Bool { isUnlimited || (balanceHundredths.map { $0 > 0 } ?? hasCredits) }

    private static let balanceMax = 1 << 40

    /// One word that is never 0.
    public var word: UInt64 {
        let balance = balanceHundredths.map { UInt64(min(max($0, 0), Self.balanceMax)) }
        return 1 | (hasCredits ? 2 : 0) | (isUnlimited ? 4 : 0) | (balance.map { 8 | $0 << 4 } ?? 0)
    }
    public init?(word: UInt64) {
        guard word & 1 == 1 else { return nil }
        self.init(
            hasCredits: word & 2 != 0, isUnlimited: word & 4 != 0,
            balanceHundredths: word & 8 != 0 ? Int(truncatingIfNeeded: word >> 4) : nil)
    }
}

/// A quota of one model beside an account's windows, by a number that stands for the model's name.
public enum QuotaKey {
    /// Names that upstreams give to the quota of a model whose name they don't say.
    private static let models = ["codex_bengalfox": "gpt-5.3-codex-spark", "codex_spark": "gpt-5.3-codex-spark"]

    /// The model that the quota with these names is for; its own name where nobody knows better.
    public static func model(limit: String, feature: String) -> String { models[feature] ?? models[limit] ?? limit }

    /// Of a model, however it is written: letters and digits alone count. Never 0.
    public static func of(model: String) -> UInt64 {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325  // FNV-1a
        for byte in model.utf8 {
            let letter = byte >= 0x41 && byte <= 0x5A ? byte | 0x20 : byte
            guard letter >= 0x61 && letter <= 0x7A || letter >= 0x30 && letter <= 0x39 else { continue }
            hash = (hash ^ UInt64(letter)) &* 0x100_0000_01B3
        }
        return max(1, hash)
    }
}
