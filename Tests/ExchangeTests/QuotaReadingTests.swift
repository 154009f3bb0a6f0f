import HTTPWire
import Testing
import Vocabulary

@testable import Exchange

@Suite struct QuotaReadingTests {
    private let now = WallTime(milliseconds: 1_800_000_000_000)

    private func read(_ fields: String...) throws -> QuotaReading? {
        let bytes = Array(("HTTP/1.1 200 OK\r\n" + fields.map { "x-codex-\($0)\r\n" }.joined() + "\r\n").utf8)
        var scanned = 0
        return QuotaReading(try #require(try ResponseHead.parse(bytes.span.bytes, scanned: &scanned)).head.fields, now: now)
    }
    private func usage(_ json: String) -> QuotaReading? { QuotaReading(usage: Array(json.utf8).span.bytes, now: now) }
    private func event(_ json: String) -> QuotaReading? { QuotaReading(event: Array(json.utf8).span.bytes, now: now) }
    private func window(_ permille: Int, _ seconds: Int64) -> QuotaWindow {
        QuotaWindow(usedPermille: permille, resetsAt: WallTime(milliseconds: now.milliseconds + seconds * 1000))
    }

    @Test("Both windows, by time or by seconds, credits and plan, in the head of an answer")
    func head() throws {
        let both = try #require(
            try read(
                "primary-used-percent: 42.5", "primary-window-minutes: 300", "primary-reset-at: 1800003600", "Secondary-Used-Percent: 7",
                "secondary-reset-after-seconds: 60", "credits-has-credits: True", "credits-unlimited: false", "credits-balance: 12.50",
                "plan-type: plus", "turn-state: x"))
        #expect(both.primary == window(425, 3_600) && both.secondary == window(70, 60) && both.monthly == nil)
        #expect(both.credits == Credits(hasCredits: true, isUnlimited: false, balanceHundredths: 1_250) && both.plan == .plus)
        #expect(!both.isWhole)
        #expect(try read("turn-state: x") == nil)
    }

    @Test(
        "Numbers that nobody can count with say nothing, and a little beyond the scale is its end",
        arguments: [
            ("nan", "60", nil), ("inf", "60", nil), ("x", "60", nil), ("", "60", nil), ("5", "nan", nil), ("5", "0", nil), ("5", "-1", nil),
            ("5", "1e300", nil), ("5", "31622401", nil), ("-3", "60", nil), ("1e300", "60", nil), ("1001", "60", nil),
            ("100.4", "60", 1000),
            ("0", "60", 0), ("99.99", "60", 999),
        ] as [(String, String, Int?)])
    func absurd(_ used: String, _ seconds: String, _ expected: Int?) throws {
        let told = try read("primary-used-percent: \(used)", "primary-reset-after-seconds: \(seconds)")
        #expect(told?.primary?.usedPermille == expected)
    }

    @Test("A window without an end says nothing")
    func endless() throws { #expect(try read("primary-used-percent: 5") == nil) }

    @Test("A week in the first place is the weekly window, thirty days are the monthly one, and of two weeks the tighter counts")
    func places() throws {
        let month = usage(
            "{\"plan_type\":\"free\",\"rate_limit\":{\"primary_window\":{\"used_percent\":12,\"limit_window_seconds\":2592000,\"reset_after_seconds\":900},\"secondary_window\":null}}"
        )
        #expect(month?.monthly == window(120, 900) && month?.primary == nil && month?.secondary == nil && month?.plan == .free)
        let week = try read("primary-used-percent: 50", "primary-window-minutes: 10080", "primary-reset-after-seconds: 5")
        #expect(week?.secondary == window(500, 5) && week?.primary == nil)
        let weeks = try read(
            "primary-used-percent: 50", "primary-window-minutes: 10080", "primary-reset-after-seconds: 5", "secondary-used-percent: 60",
            "secondary-window-minutes: 10080", "secondary-reset-after-seconds: 9")
        #expect(weeks?.secondary == window(600, 9))
    }

    @Test("The answer of /wham/usage: windows, credits, plan, and quotas of models; whole")
    func whole() throws {
        let told = try #require(
            usage(
                """
                {"plan_type":"prolite","workspace_id":"w","rate_limit":{"allowed":true,"primary_window":{"used_percent":12.0,"reset_at":1800000900,
                "limit_window_seconds":18000,"reset_after_seconds":900},"secondary_window":{"used_percent":"99.9","limit_window_seconds":604800,
                "reset_after_seconds":90000}},"credits":{"has_credits":true,"unlimited":false,"balance":"0"},"additional_rate_limits":[
                {"limit_name":"codex_other","metered_feature":"codex_bengalfox","rate_limit":{"primary_window":{"used_percent":100,
                "reset_after_seconds":60},"secondary_window":{"used_percent":100,"reset_after_seconds":6000}}},
                {"limit_name":"GPT-6 Nano","metered_feature":"x","rate_limit":{"primary_window":{"used_percent":3,"reset_after_seconds":60}}},
                {"limit_name":"broken","rate_limit":{"primary_window":{"used_percent":-3,"reset_after_seconds":60}}},{"limit_name":7},7,null]}
                """))
        #expect(told.primary == window(120, 900) && told.secondary == window(999, 90_000) && told.plan == .prolite && told.isWhole)
        #expect(told.credits == Credits(hasCredits: true, isUnlimited: false, balanceHundredths: 0) && told.credits?.areUsable == false)
        #expect(
            told.models == [
                ModelQuota(model: "gpt-5.3-codex-spark", window: window(1000, 6_000)),
                ModelQuota(model: "GPT-6 Nano", window: window(30, 60)),
            ])
        #expect(
            QuotaKey.of(model: "GPT-6 Nano") == QuotaKey.of(model: "gpt-6-nano")
                && QuotaKey.of(model: "gpt-6") != QuotaKey.of(model: "gpt-5"))
    }

    @Test(
        "What is no usage answer is none, whatever else it is",
        arguments: ["", "{}", "[]", "7", "null", "{\"rate_limit\":7}", "{\"rate_limit\":[]}", "{\"plan_type\":7}", "{\"plan_type\":\"\"}"])
    func noUsage(_ text: String) { #expect(usage(text) == nil) }

    @Test("An answer of the usage question is read by status and words, and what is cut or no JSON says nothing")
    func answers() {
        func answer(_ status: Int, _ body: String) -> UsageAnswer { UsageAnswer(status: status, body: Array(body.utf8), now: now) }
        let good = "{\"plan_type\":\"plus\",\"rate_limit\":{}}"
        if case .figures(let reading) = answer(200, good) { #expect(reading.plan == .plus) } else { Issue.record("no figures") }
        for cut in 0..<good.utf8.count {
            #expect(answer(200, String(good.prefix(cut))) == .failed("its answer tells no usage"), "cut at \(cut)")
        }
        #expect(answer(401, "{\"error\":{\"code\":\"token_expired\"}}") == .unauthorized)
        #expect(answer(402, "{\"detail\":{\"code\":\"deactivated_workspace\"}}") == .closed("status 402 deactivated_workspace"))
        #expect(answer(403, "{\"detail\":\"Your account has been deactivated.\"}") == .closed("status 403"))
        #expect(answer(403, "") == .failed("status 403") && answer(404, "<html>") == .failed("status 404"))
        #expect(answer(500, "") == .failed("status 500") && answer(429, "{}") == .failed("status 429"))
    }

    @Test("The event of a stream: its own limits count, another limit's and those that say nothing don't")
    func events() {
        let windows =
            "{\"primary\":{\"used_percent\":30,\"window_minutes\":300,\"resets_at\":1800000060},\"secondary\":{\"used_percent\":40,\"window_minutes\":10080,\"reset_at\":1800000600}}"
        let told = event(
            "{\"type\":\"codex.rate_limits\",\"plan_type\":\"team\",\"rate_limits\":\(windows),\"credits\":{\"unlimited\":true}}")
        #expect(told?.primary == window(300, 60) && told?.secondary == window(400, 600) && told?.plan == .team)
        #expect(told?.credits == Credits(hasCredits: false, isUnlimited: true) && told?.credits?.areUsable == true)
        #expect(event("{\"type\":\"codex.rate_limits\",\"limit_id\":\"codex\",\"rate_limits\":\(windows)}")?.primary == window(300, 60))
        for other in [
            "{\"limit_id\":\"codex_bengalfox\",\"rate_limits\":\(windows)}", "{\"limit_name\":\"x\",\"rate_limits\":\(windows)}",
            "{\"rate_limits\":null}", "{\"rate_limits\":{\"primary\":null}}", "{}", "[]", "",
        ] { #expect(event(other) == nil, "\(other)") }
        #expect(event("{\"rate_limits\":\(windows),\"x\":\"" + String(repeating: "y", count: Limits.quotaEventBytesMax) + "\"}") == nil)
    }

    /// Bytes of a good answer changed at random never trap, and never make a figure out of range.
    @Test(arguments: 1...4) func noise(_ seed: UInt64) {
        let good = Array(
            "{\"plan_type\":\"plus\",\"rate_limit\":{\"primary_window\":{\"used_percent\":12.5,\"reset_at\":1800000900,\"limit_window_seconds\":18000}},\"credits\":{\"balance\":\"1.5\"},\"additional_rate_limits\":[{\"limit_name\":\"m\",\"rate_limit\":{\"primary_window\":{\"used_percent\":9,\"reset_after_seconds\":5}}}]}"
                .utf8)
        var state = seed &* 0x9E37_79B9_7F4A_7C15
        func next() -> Int {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 33)
        }
        for _ in 0..<5_000 {
            var bytes = good
            for _ in 0..<1 + next() % 4 { bytes[next() % bytes.count] = UInt8(next() & 0xFF) }
            for reading in [QuotaReading(usage: bytes.span.bytes, now: now), QuotaReading(event: bytes.span.bytes, now: now)] {
                let windows =
                    [reading?.primary, reading?.secondary, reading?.monthly].compactMap { $0 } + (reading?.models.map(\.window) ?? [])
                for window in windows { #expect((0...1000).contains(window.usedPermille) && window.resetsAt > now, "seed \(seed)") }
            }
        }
    }

    @Test("Every code that the failover table knows of an account can be told by the scoreboard")
    func codes() {
        let known = FailoverTable.quotaCodes.union(FailoverTable.authCodes).union(LoginCodes.dead)
            .union(FailoverTable.rateCodes).union(FailoverTable.modelCodes).union(Renewals.codes)
        #expect(known.subtracting(Trouble.codes).isEmpty)
        for code in Trouble.codes {
            let trouble = Trouble(at: now, .refused, status: 429, code: code)
            #expect(Trouble(word: trouble.word) == trouble && trouble.description == "429 \(code)")
        }
        #expect(Trouble(word: 0) == nil && Trouble(at: now, .silent, status: 5_000, code: "x").status == 0)
        #expect(Set(Trouble.codes).count == Trouble.codes.count && Trouble.codes.count < 256)
    }

    /// What issuers say of a refresh that no second try mends (`Admission.Renewal`).
    private enum Renewals { static let codes: Set = ["invalid_grant", "invalid_client", "unauthorized_client"] }
}
