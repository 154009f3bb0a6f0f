internal import Bytes
public import HTTPWire
internal import JSONWire
public import Vocabulary

/// What an upstream says of one of an account's quota windows.
public struct QuotaWindow: Sendable, Equatable {
    /// 0 … 1000: thousandths of the window that are used up.
    public var usedPermille: Int
    /// When it begins anew.
    public var resetsAt: WallTime

    public init(usedPermille: Int, resetsAt: WallTime) { (self.usedPermille, self.resetsAt) = (usedPermille, resetsAt) }

    /// The one that holds an account up more: what is used up for longer, then what is fuller.
    static func tighter(_ a: QuotaWindow?, _ b: QuotaWindow?) -> QuotaWindow? {
        guard let a, let b else { return a ?? b }
        if a.usedPermille == b.usedPermille { return a.resetsAt >= b.resetsAt ? a : b }
        return a.usedPermille > b.usedPermille ? a : b
    }
}

/// The quota of one model, or of a family that is named like one.
public struct ModelQuota: Sendable, Equatable {
    public var model: String
    /// The tighter of its windows.
    public var window: QuotaWindow
    public init(model: String, window: QuotaWindow) { (self.model, self.window) = (model, window) }
}

/// What a ChatGPT upstream says of an account's quotas: in the head of every answer (`x-codex-primary-used-percent` and its like, refusals
/// too), in an event of a stream, or when it is asked (`/wham/usage`).
///
/// Numbers come from outside: what is no number, no part of a whole, or no time within a year, says nothing.
public struct QuotaReading: Sendable, Equatable {
    /// Mostly five hours.
    public var primary: QuotaWindow?
    /// Mostly a week.
    public var secondary: QuotaWindow?
    /// Mostly thirty days.
    public var monthly: QuotaWindow?
    public var credits: Credits?
    public var plan: Plan?
    /// Of single models.
    public var models: [ModelQuota] = []
    /// It names every window and model quota that there is: what it leaves out is not there.
    public var isWhole = false

    private var isEmpty: Bool { primary == nil && secondary == nil && monthly == nil && credits == nil && plan == nil && models.isEmpty }

    /// An answer's head; nil where nothing usable is said.
    public init?(_ fields: HeaderFields, now: WallTime) {
        var windows = (Told(), Told())
        var (has, unlimited, balance): (Bool?, Bool?, String?)
        fields.forEach { _, name, value in
            guard name.hasPrefix(ignoringCase: "x-codex-") else { return }
            let rest = name.extracting(droppingFirst: 8)
            func number() -> Double? { value.byteCount < 64 ? Double(value.text(0..<value.byteCount)) : nil }
            func isNamed(_ name: StaticString) -> Bool { rest.equalsIgnoringCase(name) }
            func flag() -> Bool? { value.equalsIgnoringCase("true") ? true : value.equalsIgnoringCase("false") ? false : nil }
            if isNamed("primary-used-percent") { windows.0.percent = number() }
            if isNamed("primary-window-minutes") { windows.0.minutes = number() }
            if isNamed("primary-reset-after-seconds") { windows.0.after = number() }
            if isNamed("primary-reset-at") { windows.0.at = number() }
            if isNamed("secondary-used-percent") { windows.1.percent = number() }
            if isNamed("secondary-window-minutes") { windows.1.minutes = number() }
            if isNamed("secondary-reset-after-seconds") { windows.1.after = number() }
            if isNamed("secondary-reset-at") { windows.1.at = number() }
            if isNamed("credits-has-credits") { has = flag() }
            if isNamed("credits-unlimited") { unlimited = flag() }
            if isNamed("credits-balance") { balance = value.text(0..<min(64, value.byteCount)) }
            if isNamed("plan-type") { plan = Plan(named: value.text(0..<min(64, value.byteCount))) }
        }
        put(windows.0, in: .primary, now)
        put(windows.1, in: .secondary, now)
        credits = Self.credits(has: has, unlimited: unlimited, balance: balance)
        if isEmpty { return nil }
    }

    /// The event `codex.rate_limits` of a stream; nil where nothing usable is said, or where it is about another limit than the account's.
    public init?(event json: RawSpan, now: WallTime) {
        guard json.byteCount <= Limits.quotaEventBytesMax else { return nil }
        for name in ["limit_id", "limit_name", "metered_limit_name"] as [StaticString] {
            if let limit = JSONScan.member(json, name).flatMap({ JSONScan.string(json, $0) }), !limit.isEmpty, limit != "codex" {
                return nil
            }
        }
        if let limits = JSONScan.find(json, "rate_limits"), JSONScan.kind(json, limits) == .object {
            for slot in Slot.allCases { put(Told(json, slot == .primary ? "primary" : "secondary", in: limits), in: slot, now) }
            credits = JSONScan.find(json, in: limits, "credits").flatMap { Self.credits(json, $0) }
        }
        credits = credits ?? JSONScan.find(json, "credits").flatMap { Self.credits(json, $0) }
        plan = JSONScan.find(json, "plan_type").flatMap { JSONScan.string(json, $0) }.flatMap { Plan(named: $0) }
        if isEmpty { return nil }
    }

    /// The answer of `/wham/usage`; nil of what is none. `json` is a whole document.
    public init?(usage json: RawSpan, now: WallTime) {
        let limit = JSONScan.find(json, "rate_limit").flatMap { JSONScan.kind(json, $0) == .object ? $0 : nil }
        plan = JSONScan.find(json, "plan_type").flatMap { JSONScan.string(json, $0) }.flatMap { Plan(named: $0) }
        guard limit != nil || plan != nil else { return nil }
        if let limit {
            for slot in Slot.allCases {
                put(Told(json, slot == .primary ? "primary_window" : "secondary_window", in: limit), in: slot, now)
            }
        }
        credits = JSONScan.find(json, "credits").flatMap { Self.credits(json, $0) }
        if let list = JSONScan.find(json, "additional_rate_limits"), JSONScan.kind(json, list) == .array {
            JSONScan.elements(json, list) { entry in
                if let quota = Self.model(json, entry, now) { models.append(quota) }
                return models.count < Limits.modelQuotasMax
            }
        }
        isWhole = true
    }

    private static func model(_ json: RawSpan, _ entry: Range<Int>, _ now: WallTime) -> ModelQuota? {
        guard JSONScan.kind(json, entry) == .object else { return nil }
        func text(_ name: StaticString) -> String {
            let told = JSONScan.find(json, in: entry, name).flatMap { JSONScan.string(json, $0) } ?? ""
            return told.utf8.count <= Limits.quotaNameBytesMax ? told : ""
        }
        let model = QuotaKey.model(limit: text("limit_name"), feature: text("metered_feature"))
        guard !model.isEmpty, let limit = JSONScan.find(json, in: entry, "rate_limit"), JSONScan.kind(json, limit) == .object else {
            return nil
        }
        let window = QuotaWindow.tighter(
            Told(json, "primary_window", in: limit).window(now), Told(json, "secondary_window", in: limit).window(now))
        return window.map { ModelQuota(model: model, window: $0) }
    }

    // MARK: Windows

    private enum Slot: CaseIterable { case primary, secondary }

    /// A window as it was told.
    private struct Told {
        var percent, minutes, after, at: Double?

        init() {}

        init(_ json: RawSpan, _ name: StaticString, in object: Range<Int>) {
            guard let place = JSONScan.find(json, in: object, name), JSONScan.kind(json, place) == .object else { return }
            func number(_ name: StaticString) -> Double? { JSONScan.find(json, in: place, name).flatMap { QuotaReading.number(json, $0) } }
            percent = number("used_percent")
            minutes = number("window_minutes") ?? number("limit_window_seconds").map { $0 / 60 }
            after = number("reset_after_seconds") ?? number("resets_in_seconds")
            at = number("reset_at") ?? number("resets_at")
        }

        func window(_ now: WallTime) -> QuotaWindow? {
            // Beyond the whole it is used up; far beyond, it is no percentage.
            guard let percent, percent >= 0, percent <= 1000 else { return nil }
            let year = 366.0 * 86_400
            guard let wait = after ?? at.map({ $0 - Double(now.seconds) }), wait > 0, wait <= year else { return nil }
            return QuotaWindow(
                usedPermille: Int(min(percent, 100) * 10), resetsAt: WallTime(milliseconds: now.milliseconds + Int64(wait * 1000)))
        }
    }

    /// Plans without a short window tell their week, or their month, in the first place.
    private mutating func put(_ told: Told, in slot: Slot, _ now: WallTime) {
        guard let window = told.window(now) else { return }
        let day = 24.0 * 60
        switch told.minutes {
        case .some(let minutes) where minutes > 14 * day: monthly = .tighter(monthly, window)
        case .some(let minutes) where minutes > 2 * day: secondary = .tighter(secondary, window)
        case .some(let minutes) where minutes > 0: primary = .tighter(primary, window)
        default: if slot == .primary { primary = .tighter(primary, window) } else { secondary = .tighter(secondary, window) }
        }
    }

    // MARK: Credits

    private static func credits(_ json: RawSpan, _ place: Range<Int>) -> Credits? {
        guard JSONScan.kind(json, place) == .object else { return nil }
        func flag(_ name: StaticString) -> Bool? { JSONScan.find(json, in: place, name).flatMap { JSONScan.bool(json, $0) } }
        let balance = JSONScan.find(json, in: place, "balance").flatMap { JSONScan.string(json, $0) ?? (number(json, $0).map { "\($0)" }) }
        return credits(has: flag("has_credits"), unlimited: flag("unlimited"), balance: balance)
    }

    private static func credits(has: Bool?, unlimited: Bool?, balance: String?) -> Credits? {
        let amount = balance.flatMap { $0.utf8.count < 64 ? Double($0) : nil }.flatMap { $0.isFinite && $0 >= 0 ? $0 : nil }
        guard has != nil || unlimited != nil || amount != nil else { return nil }
        return Credits(
            hasCredits: has ?? (amount ?? 0 > 0), isUnlimited: unlimited ?? false,
            balanceHundredths: amount.map { Int(min($0, 1e9) * 100) })
    }

    private static func number(_ json: RawSpan, _ place: Range<Int>) -> Double? {
        let text: String? =
            switch JSONScan.kind(json, place) {
            case .number: place.count < 64 ? String(decoding: json.array(place), as: UTF8.self) : nil
            case .string: JSONScan.string(json, place)
            default: nil
            }
        return text.flatMap { $0.utf8.count < 64 ? Double($0) : nil }
    }
}

/// What an answer of `/wham/usage` says.
public enum UsageAnswer: Sendable, Equatable {
    case figures(QuotaReading)
    /// Its credentials are refused.
    case unauthorized
    /// The person's or the workspace's account is closed.
    case closed(String)
    /// Worth another try later.
    case failed(String)

    public init(status: Int, body: [UInt8], now: WallTime) {
        if status == 200 {
            // Looked at as a whole once, so that what is cut or no JSON says nothing.
            guard (try? JSONDocument(body)) != nil, let reading = QuotaReading(usage: body.span.bytes, now: now) else {  // see above
                self = .failed("its answer tells no usage")
                return
            }
            self = .figures(reading)
            return
        }
        let refusal = UpstreamRefusal(status: status, body: body.span.bytes, fields: HeaderFields())
        let reason = "status \(status)\(refusal.code.isEmpty ? "" : " \(refusal.code.cut(utf8: 64))")"
        if status == 402 || [401, 403, 404].contains(status) && FailoverTable.isClosed(refusal) {
            self = .closed(reason)
        } else if status == 401 {
            self = .unauthorized
        } else {
            self = .failed(reason)
        }
    }
}
