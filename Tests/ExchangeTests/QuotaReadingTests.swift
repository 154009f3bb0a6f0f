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

    @Test("Both windows, by time or by seconds")
    func windows() throws {
        let both = try read(
            "primary-used-percent: 42.5", "primary-window-minutes: 300", "primary-reset-at: 1800003600", "Secondary-Used-Percent: 7",
            "secondary-reset-after-seconds: 60")
        #expect(both?.primary == QuotaWindow(usedPermille: 425, resetsAt: WallTime(milliseconds: 1_800_003_600_000)))
        #expect(both?.secondary == QuotaWindow(usedPermille: 70, resetsAt: WallTime(milliseconds: 1_800_000_060_000)))
    }

    @Test(
        "Numbers that nobody can count with say nothing, and those beyond the scale are its end",
        arguments: [
            ("nan", "60", nil), ("inf", "60", nil), ("x", "60", nil), ("", "60", nil), ("5", "nan", nil), ("5", "0", nil), ("5", "-1", nil),
            ("5", "1e300", nil), ("5", "31622401", nil), ("-3", "60", 0), ("1e300", "60", 1000), ("100.4", "60", 1000), ("0", "60", 0),
        ] as [(String, String, Int?)])
    func absurd(_ used: String, _ seconds: String, _ expected: Int?) throws {
        let told = try read("primary-used-percent: \(used)", "primary-reset-after-seconds: \(seconds)")
        #expect(told?.primary?.usedPermille == expected)
    }

    @Test("A window without an end says nothing")
    func endless() throws { #expect(try read("primary-used-percent: 5") == nil) }
}
