internal import JSONWire
public import Vocabulary

/// What an upstream says of an account's quotas, as the store keeps it.
public struct QuotaFact: Sendable, Equatable {
    public struct Window: Sendable, Equatable {
        public var usedPermille: Int
        public var resetsAt: WallTime
        public init(usedPermille: Int, resetsAt: WallTime) { (self.usedPermille, self.resetsAt) = (usedPermille, resetsAt) }
    }
    public var plan = Plan.unknown
    /// By the window's name: primary, secondary, monthly.
    public var windows: [(name: String, window: Window)] = []
    public var credits: Credits?
    /// By the model's name.
    public var models: [(name: String, window: Window)] = []

    public init() {}

    public init?(_ fact: AccountFact) {
        guard fact.subject == .quota, let json = fact.json else { return nil }
        plan = json["plan"]?.stringValue.flatMap { Plan(named: $0) } ?? .unknown
        windows = Self.windows(json["windows"])
        models = Array(Self.windows(json["models"]).prefix(Limits.modelQuotasMax))
        if let told = json["credits"], let has = told["has_credits"]?.boolValue {
            credits = Credits(
                hasCredits: has, isUnlimited: told["unlimited"]?.boolValue ?? false,
                balanceHundredths: told["balance_hundredths"]?.intValue.flatMap { Int(exactly: $0) }.flatMap { $0 >= 0 ? $0 : nil })
        }
    }

    private static func windows(_ json: JSONValue?) -> [(name: String, window: Window)] {
        (json?.objectValue?.members ?? []).compactMap { member in
            guard let used = member.value["used_permille"]?.intValue, (0...1000).contains(used),
                let at = member.value["resets_at_ms"]?.intValue
            else { return nil }
            return (member.key, Window(usedPermille: Int(used), resetsAt: WallTime(milliseconds: at)))
        }
    }

    public func fact(of account: Int64, at: WallTime) -> AccountFact {
        func object(_ windows: [(name: String, window: Window)]) -> JSONValue {
            .object(
                JSONMembers(
                    windows.map { name, window in
                        .init(
                            key: name,
                            value: ["used_permille": .int(Int64(window.usedPermille)), "resets_at_ms": .int(window.resetsAt.milliseconds)])
                    }))
        }
        var json: JSONValue = ["plan": .string(plan.name), "windows": object(windows)]
        if let credits {
            json["credits"] = ["has_credits": .bool(credits.hasCredits), "unlimited": .bool(credits.isUnlimited)]
            if let balance = credits.balanceHundredths { json["credits"]?["balance_hundredths"] = .int(Int64(balance)) }
        }
        if !models.isEmpty { json["models"] = object(models) }
        return AccountFact(accountID: account, subject: .quota, at: at, value: String(decoding: json.serialized(), as: UTF8.self))
    }

    public static func == (a: QuotaFact, b: QuotaFact) -> Bool {
        a.plan == b.plan && a.credits == b.credits && a.windows.elementsEqual(b.windows, by: ==) && a.models.elementsEqual(b.models, by: ==)
    }
}

/// Until when an account is left alone, and what counted against it last.
public struct HealthFact: Sendable, Equatable {
    public enum Kind: String, Sendable { case errors, limit, quota }
    /// Nil: it is not.
    public var cooldown: (until: WallTime, kind: Kind)?
    public var trouble: Trouble?

    public init(cooldown: (until: WallTime, kind: Kind)? = nil, trouble: Trouble? = nil) {
        (self.cooldown, self.trouble) = (cooldown, trouble)
    }

    public init?(_ fact: AccountFact) {
        guard fact.subject == .health, let json = fact.json else { return nil }
        if let told = json["cooldown"], let until = told["until_ms"]?.intValue, let kind = told["kind"]?.stringValue.flatMap(Kind.init) {
            cooldown = (WallTime(milliseconds: until), kind)
        }
        if let told = json["trouble"], let at = told["at_ms"]?.intValue, let name = told["kind"]?.stringValue,
            let kind = Trouble.Kind.allCases.first(where: { "\($0)" == name })
        {
            trouble = Trouble(
                at: WallTime(milliseconds: at), kind, status: told["status"]?.intValue.flatMap { Int(exactly: $0) } ?? 0,
                code: told["code"]?.stringValue ?? "")
        }
    }

    public func fact(of account: Int64, at: WallTime) -> AccountFact {
        var json: JSONValue = [:]
        if let (until, kind) = cooldown { json["cooldown"] = ["until_ms": .int(until.milliseconds), "kind": .string(kind.rawValue)] }
        if let trouble {
            json["trouble"] = [
                "at_ms": .int(trouble.at.milliseconds), "kind": .string("\(trouble.kind)"), "status": .int(Int64(trouble.status)),
                "code": .string(trouble.code),
            ]
        }
        return AccountFact(accountID: account, subject: .health, at: at, value: String(decoding: json.serialized(), as: UTF8.self))
    }

    public static func == (a: HealthFact, b: HealthFact) -> Bool {
        a.trouble == b.trouble && a.cooldown?.until == b.cooldown?.until && a.cooldown?.kind == b.cooldown?.kind
    }
}

/// Why an account was taken out of routing by what its upstream or issuer said.
public struct StateFact: Sendable, Equatable {
    public var reason: String
    public init(reason: String) { self.reason = reason }

    public init?(_ fact: AccountFact) {
        guard fact.subject == .state, let reason = fact.json?["reason"]?.stringValue else { return nil }
        self.reason = reason
    }

    /// Nothing is to be told: an operator has changed the state.
    public static let none = "{}"

    public var value: String {
        let json: JSONValue = ["reason": .string(reason.cut(utf8: 256))]
        return String(decoding: json.serialized(), as: UTF8.self)
    }
}

extension AccountFact {
    /// Nil of what this build does not read: it may be a later one's.
    fileprivate var json: JSONValue? {
        guard value.utf8.count <= Limits.factBytesMax else { return nil }
        return try? JSONValue(parsing: Array(value.utf8).span.bytes)  // see above
    }
}

/// The facts in SQL of both dialects.
extension Queries {
    /// Those that were learned since; nil for subjects that this build does not know.
    public static func facts(since: WallTime = WallTime(milliseconds: 0)) -> Query<AccountFact?> {
        Query("SELECT account_id, subject, at_ms, value FROM account_facts WHERE at_ms > $1", [.int(since.milliseconds)]) { row in
            AccountFact.Subject(rawValue: row.text(1)).map {
                AccountFact(accountID: row.int(0), subject: $0, at: WallTime(milliseconds: row.int(2)), value: row.text(3))
            }
        }
    }

    /// One that lies further ahead than clocks differ was written by a clock that was wrong: it must not hold up what comes until then.
    private static func later(_ horizon: Int) -> String {
        """
        ON CONFLICT (account_id, subject) DO UPDATE SET at_ms = excluded.at_ms, value = excluded.value
        WHERE account_facts.at_ms < excluded.at_ms OR account_facts.at_ms > $\(horizon)
        """
    }

    private static func horizon(_ now: WallTime) -> SQLValue { .int(now.adding(milliseconds: Limits.factAheadMilliseconds).milliseconds) }

    /// Keeps a fact unless a later one is there, or the account is gone; one row if it was kept.
    public static func learn(_ fact: AccountFact, now: WallTime) -> Query<Int64> {
        Query(
            """
            INSERT INTO account_facts (account_id, subject, at_ms, value)
            SELECT id, CAST($1 AS TEXT), CAST($2 AS BIGINT), CAST($3 AS TEXT) FROM accounts WHERE id = $4 AND removed_at_ms IS NULL
            \(later(5)) RETURNING account_id
            """,
            [.text(fact.subject.rawValue), .int(fact.at.milliseconds), .text(fact.value), .int(fact.accountID), horizon(now)]
        ) { $0.int(0) }
    }

    /// Takes an account out of routing for what its upstream or issuer said, if it is still active and as it was at `changedAt`. One statement
    /// that raises the version first, for a worker that shares the database; one row if it was done.
    public static func takeOut(_ order: AccountRemoval, now: WallTime, hasFacts: Bool) -> Query<Int64> {
        let done = "SELECT id FROM done"
        let kept = """
            INSERT INTO account_facts (account_id, subject, at_ms, value)
            SELECT id, 'state', CAST($2 AS BIGINT), CAST($6 AS TEXT) FROM done WHERE true \(later(7)) RETURNING account_id
            """
        let values: [SQLValue] = [
            .text(order.state.rawValue), .int(now.after(order.changedAt).milliseconds), .int(order.accountID),
            .text(Account.State.active.rawValue),
            .int(order.changedAt.milliseconds),
        ]
        return Query(
            """
            WITH v AS (
                UPDATE state SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE key = 'snapshot_version' RETURNING value
            ), done AS (
                UPDATE accounts SET state = $1, changed_at_ms = $2
                WHERE id = $3 AND state = $4 AND changed_at_ms = $5 AND removed_at_ms IS NULL AND EXISTS (SELECT 1 FROM v) RETURNING id
            )
            \(hasFacts ? kept : done)
            """, values + (hasFacts ? [.text(StateFact(reason: order.reason).value), horizon(now)] : [])
        ) { $0.int(0) }
    }
}

/// That an account is taken out of routing.
public struct AccountRemoval: Sendable, Equatable {
    public var accountID: Int64
    /// As the account was when its upstream said so.
    public var changedAt: WallTime
    public var state: Account.State
    public var reason: String

    public init(_ account: Account, _ state: Account.State, reason: String) {
        self.init(accountID: account.id, changedAt: account.changedAt, state, reason: reason)
    }
    public init(accountID: Int64, changedAt: WallTime, _ state: Account.State, reason: String) {
        (self.accountID, self.changedAt, self.state, self.reason) = (accountID, changedAt, state, reason)
    }
}
