import Testing
import Vocabulary

@testable import Exchange

private let now = WallTime(milliseconds: 1_800_000_000_000)

private func verdict(_ failure: Failure, attempts: Int = 1) -> Verdict {
    FailoverTable.verdict(failure, attemptsOnAccount: attempts, now: now, jitter: 0)
}

@Suite struct FailoverTableTests {
    @Test("Each row of docs/failover.md is decided as it is written there")
    func rows() {
        let errors = Verdict.Penalty.errors(milliseconds: 5_000)
        let unauthorized = Verdict.Penalty.unauthorized(milliseconds: 60_000)
        #expect(verdict(.notConnected("refused")) == Verdict(next: .nextAccount, penalty: errors))
        #expect(verdict(.untrusted("expired")) == Verdict(next: .surface, penalty: errors))
        #expect(verdict(.timedOut) == Verdict(next: .surface, penalty: errors))
        #expect(verdict(.broken("reset")) == Verdict(next: .surface, penalty: errors))
        #expect(verdict(.refused(UpstreamRefusal(status: 429))) == Verdict(next: .nextAccount, penalty: .limited(milliseconds: 30_000)))
        #expect(
            verdict(.refused(UpstreamRefusal(status: 400, code: "insufficient_quota")))
                == Verdict(next: .nextAccount, penalty: .limited(milliseconds: 120_000)))
        #expect(verdict(.refused(UpstreamRefusal(status: 401))) == Verdict(next: .nextAccount, penalty: unauthorized))
        #expect(
            verdict(.refused(UpstreamRefusal(status: 403, code: "token_expired"))) == Verdict(next: .nextAccount, penalty: unauthorized))
        #expect(verdict(.refused(UpstreamRefusal(status: 403, code: "unsupported_country"))) == Verdict(next: .surface, penalty: .none))
        for status in [502, 503, 504] {
            #expect(verdict(.refused(UpstreamRefusal(status: status))) == Verdict(next: .nextAccount, penalty: errors))
        }
        for status in [400, 404, 409, 413, 422] { #expect(verdict(.refused(UpstreamRefusal(status: status))).next == .surface) }
        #expect(
            verdict(.failedEvent(UpstreamRefusal(status: 200, code: "rate_limit_exceeded")))
                == Verdict(next: .nextAccount, penalty: .limited(milliseconds: 30_000)))
        for code in ["server_error", "overloaded_error", "server_is_overloaded", "upstream_request_timeout", ""] {
            #expect(verdict(.failedEvent(UpstreamRefusal(status: 200, code: code))).next == .surface)
        }
    }

    @Test("500 is tried three times on one account, with growing waits, then on the next")
    func internalErrors() {
        let failure = Failure.refused(UpstreamRefusal(status: 500))
        #expect(verdict(failure, attempts: 1).next == .sameAccount(afterMilliseconds: 200))
        #expect(verdict(failure, attempts: 2).next == .sameAccount(afterMilliseconds: 400))
        #expect(verdict(failure, attempts: 3).next == .nextAccount)
    }

    @Test("The upstream's own word on when to come back is honoured, the most exact one first")
    func cooldowns() {
        func limited(_ refusal: UpstreamRefusal) -> Int? {
            if case .limited(let ms) = verdict(.refused(refusal)).penalty { ms } else { nil }
        }
        let at = now.seconds + 90
        #expect(limited(UpstreamRefusal(status: 429, retryAfterSeconds: 7, resetsAt: at, resetsInSeconds: 5)) == 90_000)
        #expect(limited(UpstreamRefusal(status: 429, retryAfterSeconds: 7, resetsInSeconds: 5)) == 5_000)
        #expect(limited(UpstreamRefusal(status: 429, message: "try again in 20s", retryAfterSeconds: 7)) == 7_000)
        #expect(limited(UpstreamRefusal(status: 429, message: "Rate limit. Please try again in 1h2m3s.")) == 3_723_000)
        #expect(limited(UpstreamRefusal(status: 429, message: "try again in 500ms")) == 500)
        #expect(limited(UpstreamRefusal(status: 429, resetsAt: 5)) == 30_000)  // long ago: says nothing
        #expect(limited(UpstreamRefusal(status: 429, resetsInSeconds: .max)) == 366 * 86_400_000)
        #expect(limited(UpstreamRefusal(status: 429, resetsAt: .max)) == 366 * 86_400_000)
        #expect(limited(UpstreamRefusal(status: 429, message: "try again in 99999999999999999999h")) == 366 * 86_400_000)
    }

    @Test("Refusals are read from error bodies, events and plain details")
    func reading() {
        func read(_ json: String) -> UpstreamRefusal { UpstreamRefusal(status: 400, json: Array(json.utf8).span.bytes, retryAfter: "12") }
        let body = read(#"{"error":{"message":"m","type":"t","code":"c","resets_at":5,"resets_in_seconds":6}}"#)
        #expect(
            body == UpstreamRefusal(status: 400, code: "c", type: "t", message: "m", retryAfterSeconds: 12, resetsAt: 5, resetsInSeconds: 6)
        )
        #expect(read(#"{"type":"response.failed","response":{"error":{"code":"x","message":"y"}}}"#).code == "x")
        #expect(read(#"{"detail":"no"}"#).message == "no")
        #expect(read(#"{"error":{"type":"usage_limit_reached"}}"#).code == "usage_limit_reached")
        #expect(read("not json").code == "")
    }
}
