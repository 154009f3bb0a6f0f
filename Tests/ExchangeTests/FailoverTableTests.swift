import HTTPWire
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
        #expect(verdict(.refused(UpstreamRefusal(status: 429))) == Verdict(next: .nextAccount, penalty: .limited(milliseconds: 5_000)))
        #expect(
            verdict(.refused(UpstreamRefusal(status: 400, code: "insufficient_quota")))
                == Verdict(next: .nextAccount, penalty: .limited(milliseconds: 120_000)))
        #expect(verdict(.refused(UpstreamRefusal(status: 401))) == Verdict(next: .nextAccount, penalty: unauthorized))
        #expect(
            verdict(.refused(UpstreamRefusal(status: 403, code: "invalid_api_key"))) == Verdict(next: .nextAccount, penalty: unauthorized))
        #expect(verdict(.refused(UpstreamRefusal(status: 403, code: "unsupported_country"))) == Verdict(next: .surface, penalty: .none))
        for status in [502, 503, 520, 521, 522, 523, 525, 526, 527, 529, 530] {
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

    struct Row: CustomTestStringConvertible {
        var what: String
        var refusal: UpstreamRefusal
        var next: Verdict.Next
        var penalty: Verdict.Penalty
        var testDescription: String { what }
    }

    private static func row(
        _ status: Int, _ code: String, _ message: String, _ next: Verdict.Next, _ penalty: Verdict.Penalty
    ) -> Row {
        Row(
            what: "\(status) \(code) \(message)", refusal: UpstreamRefusal(status: status, code: code, message: message), next: next,
            penalty: penalty)
    }

    private static func row(_ status: Int, _ code: String, _ next: Verdict.Next, _ penalty: Verdict.Penalty) -> Row {
        row(status, code, "", next, penalty)
    }

    static let table: [Row] = [
        // Out of credit.
        row(402, "", .nextAccount, .limited(milliseconds: 120_000)), row(402, "402", .nextAccount, .limited(milliseconds: 120_000)),
        row(400, "billing_hard_limit_reached", .nextAccount, .limited(milliseconds: 120_000)),
        row(429, "billing_hard_limit_reached", .nextAccount, .limited(milliseconds: 120_000)),
        row(200, "402", .nextAccount, .limited(milliseconds: 120_000)),
        row(200, "insufficient_quota", .nextAccount, .limited(milliseconds: 120_000)),
        // The work may have been done.
        row(504, "", .surface, .errors(milliseconds: 5_000)), row(524, "", .surface, .errors(milliseconds: 5_000)),
        row(598, "", .surface, .errors(milliseconds: 5_000)), row(200, "504", .surface, .none), row(200, "502", .surface, .none),
        // Dead logins.
        row(401, "token_expired", .nextAccount, .reauthRequired(milliseconds: 600_000)),
        row(401, "refresh_token_reused", .nextAccount, .reauthRequired(milliseconds: 600_000)),
        row(403, "account_deactivated", .nextAccount, .deactivated(milliseconds: 600_000)),
        row(200, "token_invalidated", .nextAccount, .reauthRequired(milliseconds: 600_000)),
        row(200, "401", .nextAccount, .unauthorized(milliseconds: 60_000)),
        // The request itself.
        row(400, "context_length_exceeded", .surface, .none), row(200, "context_length_exceeded", .surface, .none),
        row(200, "invalid_prompt", .surface, .none), row(429, "context_length_exceeded", .surface, .none),
        row(200, "cyber_policy", .surface, .none), row(200, "image_content_policy_violation", .surface, .none),
        row(
            429, "rate_limit_exceeded",
            "Request too large for gpt-5.4 in organization org-x on tokens per min (TPM): Limit 10000, Requested 20000.", .surface, .none),
        row(413, "rate_limit_exceeded", "Limit 6000, Requested 10000, please reduce your message size", .surface, .none),
        row(200, "rate_limit_exceeded", "Limit 6000, Requested 10000", .surface, .none),
        // Account or model.
        row(429, "rate_limit_exceeded", "Limit 10000, Used 9000, Requested 2000.", .nextAccount, .limited(milliseconds: 30_000)),
        row(
            429, "rate_limit_exceeded", "Rate limit reached for GPT-5.4 in organization org-x", .nextAccount,
            .limited(milliseconds: 30_000, scope: .model)),
        row(429, "model_cooldown", .nextAccount, .limited(milliseconds: 30_000, scope: .model)),
        row(429, "insufficient_quota", "no quota for gpt-5.4", .nextAccount, .limited(milliseconds: 120_000)),
        row(429, "429", "busy", .nextAccount, .limited(milliseconds: 5_000)),
        row(200, "429", .nextAccount, .limited(milliseconds: 5_000)),
    ]

    @Test("status × code × place: each row of docs/failover.md", arguments: table) func decided(_ row: Row) {
        let failure: Failure = row.refusal.status == 200 ? .failedEvent(row.refusal) : .refused(row.refusal)
        let verdict = FailoverTable.verdict(failure, attemptsOnAccount: 1, now: now, jitter: 0, model: "gpt-5.4")
        #expect(verdict == Verdict(next: row.next, penalty: row.penalty))
    }

    @Test(
        "A failure that an event tells has the status that SDKs treat rightly",
        arguments: [
            ("context_length_exceeded", 400), ("invalid_prompt", 400), ("image_too_large", 400), ("invalid_image_format", 400),
            ("cyber_policy", 400), ("bio_policy", 400), ("misalignment_policy", 400), ("content_policy_violation", 400),
            ("billing_hard_limit_reached", 429), ("usage_limit_reached", 429), ("server_is_overloaded", 503), ("token_expired", 401),
            ("model_not_found", 404), ("server_error", 502), ("503", 503), ("", 502),
        ])
    func statusOfEvents(_ code: String, _ status: Int) {
        let error = ErrorEnvelope.error(for: .failedEvent(UpstreamRefusal(status: 200, code: code, message: "m", param: "p")))
        #expect(error.status == status && error.code == (code.isEmpty ? "upstream_error" : code) && error.param == "p")
    }

    private static func read(_ status: Int, _ body: String, _ fields: [(String, String)] = []) -> UpstreamRefusal {
        var head = HeaderFields()
        for (name, value) in fields { head.append(name, value) }
        let bytes = Array(body.utf8)
        return status == 200
            ? UpstreamRefusal(event: bytes.span.bytes) : UpstreamRefusal(status: status, body: bytes.span.bytes, fields: head)
    }

    @Test(
        "One reader knows every shape of an error",
        arguments: [
            (400, #"{"error":{"message":"m","type":"t","code":"c","param":"p"}}"#, "c|t|m|p", true),
            (200, #"{"type":"response.failed","response":{"error":{"code":"c","message":"m"}}}"#, "c||m|", true),
            (200, #"{"type":"error","code":"c","message":"m","param":"p"}"#, "c||m|p", true),
            (200, #"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, "overloaded_error|overloaded_error|m|", true),
            (200, #"{"error":{"code":502,"message":"m"}}"#, "502||m|", true),
            (
                429, #" [{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED"}}]"#, "RESOURCE_EXHAUSTED|RESOURCE_EXHAUSTED|m|",
                false
            ),
            (400, #"{"type":"error","code":"c","message":"m"}"#, "c||m|", false), (400, #"{"detail":"m"}"#, "||m|", true),
            (402, #"{"detail":{"code":"deactivated_workspace"}}"#, "deactivated_workspace|||", true),
            (422, #"{"detail":[{"msg":"m","type":"missing"}]}"#, "missing|missing|m|", true),
            (400, #"{"error":"invalid_grant","error_description":"m"}"#, "invalid_grant||m|", true),
            (400, #"{"error":"m"}"#, "||m|", true), (500, #"{"errors":[{"code":7,"message":"m"}]}"#, "7||m|", true),
            (400, #"{"\u0065rror":{"c\u006fde":"c"}}"#, "c|||", true),
            (502, "<html><head><TITLE>502 Bad Gateway</TITLE>", "||502 Bad Gateway|", false),
            (503, "upstream connect error", "||upstream connect error|", false), (503, "", "|||", true),
            (400, #"{"error":{"code":"c","message":"cut o"#, "|||", false),
        ] as [(Int, String, String, Bool)])
    func shapes(_ status: Int, _ body: String, _ wanted: String, _ isReadable: Bool) {
        let r = Self.read(status, body)
        #expect("\(r.code)|\(r.type)|\(r.message)|\(r.param ?? "")" == wanted)
        #expect(r.isReadable == isReadable)
    }

    /// 2027-01-15T08:00:00Z is `now`.
    @Test(
        "Waiting times are read wherever they stand, the most exact one first",
        arguments: [
            ("Retry-After", "7", "{}", 7_000), ("Retry-After", "1.5", "{}", 1_500),
            ("Retry-After", "Fri, 15 Jan 2027 08:01:30 GMT", "{}", 90_000), ("Retry-After", "Friday, 15-Jan-27 08:01:30 GMT", "{}", 90_000),
            ("Retry-After", "Fri Jan 15 08:01:30 2027", "{}", 90_000), ("Retry-After", "Fri, 15 Jan 2027 07:00:00 GMT", "{}", nil),
            ("Retry-After", "soon", "{}", nil), ("Retry-After", "nan", "{}", nil), ("Retry-After", "-1", "{}", nil),
            ("Retry-After", "99999999999999999999999", "{}", 31_622_400_000), ("retry-after-ms", "2500", "{}", 2_500),
            ("retry-after-ms", "2500.5", "{}", 2_501), ("x", "y", #"{"error":{"resets_in_seconds":5.25}}"#, 5_250),
            ("x", "y", #"{"error":{"resets_in_seconds":"5"}}"#, 5_000), ("x", "y", #"{"error":{"resets_at":1800000090}}"#, 90_000),
            ("x", "y", #"{"error":{"resets_at":1800000090000}}"#, 90_000), ("x", "y", #"{"error":{"resets_at":1800000090.5}}"#, 90_500),
            ("x", "y", #"{"error":{"resets_at":9e99}}"#, 31_622_400_000),
            ("Retry-After", "7", #"{"error":{"resets_at":1800000090,"resets_in_seconds":3}}"#, 90_000),
            ("Retry-After", "7", #"{"error":{"resets_at":5,"resets_in_seconds":3}}"#, 3_000),
            ("x", "y", #"{"error":{"message":"Please retry in 95.5s."}}"#, 95_500),
            ("x", "y", #"{"error":{"message":"Try again in 6m0s"}}"#, 360_000),
            ("x", "y", #"{"error":{"message":"Try again in 20 seconds."}}"#, 20_000),
            ("x", "y", #"{"error":{"message":"try again in 3 minutes"}}"#, 180_000),
            ("x", "y", #"{"error":{"message":"try again in 1h2m3s"}}"#, 3_723_000),
            ("x", "y", #"{"error":{"message":"try again in 1 hour, 5 minutes"}}"#, 3_900_000),
            ("x", "y", #"{"error":{"message":"try again in 500ms"}}"#, 500),
            ("x", "y", #"{"error":{"message":"try again in a while"}}"#, nil),
            ("x", "y", #"{"error":{"message":"try again in 99999999m99999999m99999999m99999999m"}}"#, 31_622_400_000),
            ("x", "y", #"[{"error":{"code":429,"details":[{"@type":"x"},{"retryDelay":"95s"}]}}]"#, 95_000),
        ] as [(String, String, String, Int?)])
    func waits(_ name: String, _ value: String, _ body: String, _ wanted: Int?) {
        for status in [429, 503] {
            let refusal = Self.read(status, body, [(name, value)])
            #expect(refusal.waits.lazy.compactMap { $0.milliseconds(from: now) }.first == wanted)
            switch verdict(.refused(refusal)).penalty {
            case .limited(let ms, _): #expect(status == 429 && ms == wanted ?? 5_000)
            case .errors(let ms): #expect(status == 503 && ms == min(wanted ?? 5_000, 300_000))
            default: Issue.record("no penalty")
            }
        }
    }

    @Test("A text of nothing but waits costs nothing and traps nothing")
    func absurdText() {
        let text = "try again in " + String(repeating: "99999999h", count: 1_000_000)
        #expect(Wait.message(text)?.milliseconds(from: now) == 31_622_400_000)
        #expect(Wait.message(String(repeating: "try again in ", count: 100_000)) == nil)
    }

    @Test("The request's own fault costs no account, whatever its status says; a limit's numbers are read whole")
    func requestFaults() {
        for (status, code) in [
            (500, "context_length_exceeded"), (503, "content_policy_violation"), (502, "invalid_prompt"), (429, "context_length_exceeded"),
        ] {
            let verdict = verdict(.refused(UpstreamRefusal(status: status, code: code)))
            #expect(verdict.next == .surface && verdict.penalty == .none, "\(status) \(code)")
        }
        func limit(_ message: String) -> Verdict {
            verdict(.refused(UpstreamRefusal(status: 429, code: "rate_limit_exceeded", message: message)))
        }
        #expect(limit("Rate limit reached for gpt-5.4 on tokens per min. Limit 10000, Used 0, Requested 20000.").penalty == .none)
        #expect(limit("Rate limit reached for gpt-5.4. Limit 1,000,000, Used 999,000, Requested 20,000.").penalty != .none)
    }

    @Test(
        "An account without the model is told from one that refuses the request",
        arguments: [
            (404, "", "The model `gpt-x` does not exist.", true), (404, "", "model \"gpt-x\" not found, try pulling it first", true),
            (400, "invalid_request_error", "gpt-x is not a valid model ID", true),
            (403, "", "You are not allowed to sample from this model", true),
            (404, "not_found_error", "model: gpt-x", true), (400, "", "Invalid model name passed in model=gpt-x", true),
            (400, "previous_response_not_found", "Previous response not found for this model", false), (404, "", "Not Found", false),
            (400, "image_not_found", "The image was not found. The model needs one", false), (500, "model_not_found", "x", false),
        ])
    func models(_ status: Int, _ code: String, _ message: String, _ isLacking: Bool) {
        let refusal = UpstreamRefusal(status: status, code: code, message: message)
        #expect(FailoverTable.lacksModel(refusal, "gpt-x") == isLacking)
    }
}
