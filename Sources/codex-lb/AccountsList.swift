import ArgumentParser
import ControlWire
import Platform
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Accounts {
    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "List accounts with their states and quotas.",
            discussion: """
                What the running server knows comes from its memory; without one, from the store, as it was when that was last written. Windows: \
                part that is used up, and the time until it begins anew.
                """)
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var live: LiveTable
        @OptionGroup var data: DataOptions

        func validate() throws { try live.check(json: json) }

        func run() throws {
            let settings = try data.settings()
            if json { return print(JSONText.array(try AccountView.all(settings).map { $0.json(now: Clock.wall) })) }
            try live.show { Self.lines(try AccountView.all(settings)) }
        }

        private static func lines(_ accounts: [AccountView]) -> [String] {
            guard !accounts.isEmpty else {
                return ["no account; add one with: codex-lb accounts add NAME --base-url https://api.openai.com/v1 --key-file FILE"]
            }
            return AccountView.table(accounts, now: Clock.wall)
        }
    }
}

/// An account as an operator sees it: its row, what the store knows beside it, and what the running server does.
struct AccountView {
    private let row: AccountMessage
    private let plan: Plan
    private let windows: [(name: String, window: QuotaFact.Window)]
    private let credits: Credits?
    private let models: [(name: String, window: QuotaFact.Window)]
    private let stateReason: String
    private let cooldown: (until: WallTime, kind: String)?
    private let trouble: (text: String, at: WallTime)?
    private let live: LiveAccount?

    static func all(_ settings: Settings) throws -> [AccountView] {
        var command = StoreCommand()
        command.listAccounts = ListAccounts()
        let reply = try StoreClient.perform(command, settings)
        let live = Dictionary(try liveAccounts(settings).map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
        let facts = Dictionary(grouping: reply.facts.compactMap { AccountFact($0) }, by: \.accountID)
        return reply.accounts.map { AccountView($0, facts[$0.id] ?? [], live[$0.id]) }
    }

    /// Empty where no server runs.
    private static func liveAccounts(_ settings: Settings) throws -> [LiveAccount] {
        guard let server = try ControlClient.connect(settings) else { return [] }
        var frame = Frame()
        frame.liveAccountsRequest = LiveAccountsRequest()
        guard case .liveAccountsReply(let reply)? = try server.ask(frame).body else { return [] }
        return reply.accounts
    }

    private init(_ row: AccountMessage, _ facts: [AccountFact], _ live: LiveAccount?) {
        (self.row, self.live) = (row, live)
        let quota = facts.lazy.compactMap { QuotaFact($0) }.first
        let health = facts.lazy.compactMap { HealthFact($0) }.first
        stateReason = facts.lazy.compactMap { StateFact($0) }.first?.reason ?? ""
        models = quota?.models ?? []
        if let live, live.quotaAtMs > 0 {
            windows = live.windows.map {
                ($0.name, .init(usedPermille: Int($0.usedPermille), resetsAt: WallTime(milliseconds: $0.resetsAtMs)))
            }
            (credits, plan) = (Credits(word: live.credits), Plan(named: live.plan) ?? .unknown)
        } else {
            (windows, credits) = (quota?.windows ?? [], quota?.credits)
            plan = live.flatMap { Plan(named: $0.plan) } ?? quota?.plan ?? .unknown
        }
        if let live {
            cooldown =
                live.cooldownUntilMs > 0 ? (WallTime(milliseconds: live.cooldownUntilMs), live.cooldownKind) : nil
            trouble = live.trouble.isEmpty ? nil : (live.trouble, WallTime(milliseconds: live.troubleAtMs))
        } else {
            cooldown = health?.cooldown.map { ($0.until, $0.kind.rawValue) }
            trouble = health?.trouble.map { ($0.description, $0.at) }
        }
    }

    // MARK: A table

    static func table(_ accounts: [AccountView], now: WallTime) -> [String] {
        let hasModels = accounts.contains { !$0.current($0.models, now).isEmpty }
        let hasMonths = accounts.contains { $0.window("monthly", now) != nil }
        var titles = ["NAME", "KIND", "PLAN", "STATE", "5 HOURS", "WEEK"]
        if hasMonths { titles.append("MONTH") }
        if hasModels { titles.append("MODELS") }
        titles += ["TURNS", "HEALTH", "LAST ERROR", "BASE URL"]
        let hasProxies = accounts.contains { !$0.row.proxy.isEmpty }
        if hasProxies { titles.append("THROUGH") }
        return tableLines(
            titles,
            accounts.map { account in
                var cells = [
                    account.row.name, account.row.kind, account.plan == .unknown ? "-" : account.plan.name, account.state,
                    account.cell("primary", now), account.cell("secondary", now),
                ]
                if hasMonths { cells.append(account.cell("monthly", now)) }
                if hasModels {
                    let told = account.current(account.models, now).map { "\($0.name) \(Self.text($0.window, now))" }
                    cells.append(told.isEmpty ? "-" : told.joined(separator: ", "))
                }
                cells += [
                    account.live.map { String($0.inFlight) } ?? "-", account.health(now), account.lastError(now), account.row.baseURL,
                ]
                if hasProxies { cells.append(account.row.proxy.isEmpty ? "-" : account.row.proxy) }
                return cells
            })
    }

    private var state: String { stateReason.isEmpty || row.state == "active" ? row.state : "\(row.state) (\(stateReason))" }

    /// One that has begun anew since it was told says nothing.
    private func current(_ windows: [(name: String, window: QuotaFact.Window)], _ now: WallTime)
        -> [(name: String, window: QuotaFact.Window)]
    {
        windows.filter { $0.window.resetsAt > now }
    }

    private func window(_ name: String, _ now: WallTime) -> QuotaFact.Window? { current(windows, now).first { $0.name == name }?.window }

    private func cell(_ name: String, _ now: WallTime) -> String { window(name, now).map { Self.text($0, now) } ?? "-" }

    private static func text(_ window: QuotaFact.Window, _ now: WallTime) -> String {
        "\(percent(window.usedPermille))% \(span(window.resetsAt.milliseconds - now.milliseconds))"
    }

    private static func percent(_ permille: Int) -> String { permille % 10 == 0 ? String(permille / 10) : "\(Double(permille) / 10)" }

    /// In its two largest units: `4d3h`, `2h13m`, `1m5s`, `9s`.
    static func span(_ milliseconds: Int64) -> String {
        let s = max(0, (milliseconds + 999) / 1000)
        if s >= 86_400 { return "\(s / 86_400)d\(s / 3600 % 24)h" }
        if s >= 3600 { return "\(s / 3600)h\(s / 60 % 60)m" }
        return s >= 60 ? "\(s / 60)m\(s % 60)s" : "\(s)s"
    }

    private func isCooling(_ now: WallTime) -> (until: WallTime, kind: String)? { cooldown.flatMap { $0.until > now ? $0 : nil } }

    private func health(_ now: WallTime) -> String {
        if let (until, kind) = isCooling(now) {
            let what = kind == "quota" ? "no quota" : kind == "limit" ? "limited" : "resting"
            return "\(what) \(Self.span(until.milliseconds - now.milliseconds))"
        }
        return row.state == Account.State.active.rawValue ? live?.tier ?? "-" : "-"
    }

    private func lastError(_ now: WallTime) -> String {
        trouble.map {
            "\($0.text), \(Self.span(max(0, now.milliseconds.subtractingReportingOverflow($0.at.milliseconds).partialValue))) ago"
        } ?? "-"
    }

    // MARK: JSON

    func json(now: WallTime) -> String {
        func windows(_ list: [(name: String, window: QuotaFact.Window)]) -> JSONText.Value {
            .raw(
                JSONText.object(
                    current(list, now).map { name, window in
                        (
                            name,
                            .raw(
                                JSONText.object([
                                    ("used_percent", .raw(Self.percent(window.usedPermille))),
                                    ("resets_at", .string(window.resetsAt.rfc3339)),
                                    ("resets_in_seconds", .int((window.resetsAt.milliseconds - now.milliseconds + 999) / 1000)),
                                ]))
                        )
                    }))
        }
        let cooling: JSONText.Value =
            isCooling(now).map { until, kind in
                .raw(
                    JSONText.object([
                        ("kind", .string(kind)), ("until", .string(until.rfc3339)),
                        ("seconds", .int((until.milliseconds - now.milliseconds + 999) / 1000)),
                    ]))
            } ?? .null
        let credit: JSONText.Value =
            credits.map {
                .raw(
                    JSONText.object([
                        ("has_credits", .bool($0.hasCredits)), ("unlimited", .bool($0.isUnlimited)),
                        ("balance", $0.balanceHundredths.map { .raw(String(Double($0) / 100)) } ?? .null),
                    ]))
            } ?? .null
        let error: JSONText.Value =
            trouble.map { .raw(JSONText.object([("what", .string($0.text)), ("at", .string($0.at.rfc3339))])) } ?? .null
        return JSONText.object([
            ("id", .int(row.id)), ("name", .string(row.name)), ("kind", .string(row.kind)),
            ("plan", .optional(plan == .unknown ? nil : plan.name)), ("state", .string(row.state)),
            ("state_reason", .optional(row.state == "active" || stateReason.isEmpty ? nil : stateReason)),
            ("windows", windows(self.windows)), ("credits", credit), ("models", windows(models)),
            ("in_flight", .optional(live.map { Int64($0.inFlight) })), ("health", .optional(live?.tier)), ("cooldown", cooling),
            ("last_error", error), ("base_url", .string(row.baseURL)),
            ("proxy", .optional(row.proxy.isEmpty ? nil : row.proxy)),
            ("policy", .string(row.options.policy)), ("weight", .int(Int64(row.options.weight))),
            ("streams_max", row.options.streamsMax == 0 ? .null : .int(Int64(row.options.streamsMax))),
            ("overflow", .bool(row.options.overflow)),
            ("allowed_models", row.options.limitsModels ? .raw(JSONText.array(row.options.models.map { $0.jsonQuoted })) : .null),
            ("created_at", .string(WallTime(milliseconds: row.createdAtMs).rfc3339)),
        ])
    }
}
