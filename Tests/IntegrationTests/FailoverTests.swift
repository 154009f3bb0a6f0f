import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// docs/failover.md, row by row, with accounts `a` (first in line) and `b`.
    @Suite struct Failover {
        /// A refused connection moves the turn to the next account and the refusing one is skipped for a while.
        @Test func refusedConnection() throws {
            let stage = try Stage()
            try stage.daemon.addAccount("a", baseURL: "http://127.0.0.1:1/v1", key: "sk-up-a")
            try stage.daemon.addAccount("b", baseURL: stage.upstream.baseURL, key: "sk-up-b")
            #expect(eventually(2) { (try? stage.metric("codex_lb_account_available{account=\"b\"}")) == 1 })
            let answer = try stage.turn()
            #expect(answer.types.last == "response.completed")
            #expect(stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
            #expect(try stage.daemon.record("req-1")["account"] as? String == "b")
        }

        /// A host name that does not exist counts as no connection.
        @Test func unknownHost() throws {
            let stage = try Stage("b")
            try stage.daemon.addAccount("a", baseURL: "http://nowhere.invalid/v1", key: "sk-up-a")
            #expect(eventually(2) { (try? stage.metric("codex_lb_account_available{account=\"a\"}")) == 1 })
            for _ in 0..<2 { #expect(try stage.turn().types.last == "response.completed") }
            #expect(stage.calls("b") == 2)
        }

        /// Sent and not answered in time: 502 upstream_request_timeout, and the request is not sent again.
        @Test func noAnswerInTime() throws {
            let stage = try Stage("a", "b", environment: ["CODEX_LB_UPSTREAM_FIRST_BYTE_TIMEOUT_SECONDS": "1"])
            stage.always("a", .silence(Gate()))
            let answer = try stage.turn(stream: false)
            #expect(answer.status == 502)
            #expect(answer.errorCode == "upstream_request_timeout")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
            #expect(try !stage.isAvailable("a"))
        }

        /// Sent and the connection lost before an answer: 502 upstream_unavailable, and the request is not sent again.
        @Test(arguments: [Behaviour.close, .reset]) func lostBeforeAnswer(_ behaviour: Behaviour) throws {
            let stage = try Stage("a", "b")
            stage.always("a", behaviour)
            let answer = try stage.turn(stream: false)
            #expect(answer.status == 502)
            #expect(answer.errorCode == "upstream_unavailable")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
        }

        /// Refusals for rate and quota move the turn to the next account; the refusing one is skipped until it said it is free again.
        @Test(arguments: [
            (429, "usage_limit_reached", "\"resets_in_seconds\":600"), (429, "rate_limit_exceeded", ""), (400, "rate_limit_exceeded", ""),
            (403, "usage_limit_reached", ""), (429, "insufficient_quota", ""), (403, "usage_not_included", ""), (402, "quota_exceeded", ""),
            (429, "something_new", ""),
        ]) func limited(_ status: Int, _ code: String, _ more: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .error(status, code: code, more: more))
            let answer = try stage.turn()
            #expect(answer.status == 200)
            #expect(answer.types.count { $0 == "response.completed" } == 1)
            #expect(!answer.types.contains("response.failed"))
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
            let record = try stage.daemon.record("req-1")
            #expect(record["attempts"] as? Int == 2)
            #expect(record["account"] as? String == "b")
            #expect(try stage.turn("req-2").types.last == "response.completed")
            #expect(stage.calls("a") == 1, "a limited account was asked again")
        }

        /// 401, and 403 with an authentication code, move the turn to the next account.
        @Test(arguments: [(401, "invalid_api_key"), (401, "whatever"), (403, "account_deactivated"), (402, "account_suspended")])
        func unauthorized(_ status: Int, _ code: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .error(status, code: code))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
        }

        /// One 500 is answered by a second request to the same account.
        @Test func serverErrorOnce() throws {
            let stage = try Stage("a", "b")
            stage.script("a", .error(500, code: "server_error"), .ok)
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("a") == 2 && stage.calls("b") == 0)
            #expect(try stage.daemon.record("req-1")["attempts"] as? Int == 2)
        }

        /// Three 500s and no more, then the next account.
        @Test func serverErrorThrice() throws {
            let stage = try Stage("a", "b")
            stage.always("a", .error(500, code: "server_error"))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("a") == 3 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
            let times = stage.requests("a").map(\.time)
            #expect(times[1].timeIntervalSince(times[0]) > 0.15 && times[2].timeIntervalSince(times[1]) > 0.3)
        }

        /// 504 and 524 say that a gateway gave up waiting for somebody who has the request: never sent again.
        @Test(arguments: [504, 524]) func gatewayGaveUp(_ status: Int) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .status(status, "<html><title>gave up</title></html>", headers: ["Content-Type": "text/html"]))
            let answer = try stage.turn(stream: false)
            #expect(answer.status == status && stage.calls("a") == 1 && stage.calls("b") == 0)
            #expect((answer.json["error"] as? [String: Any])?["message"] as? String == "gave up")
        }

        /// A limit of one model leaves the account to the others.
        @Test func limitOfAModel() throws {
            let stage = try Stage("a", "b")
            stage.script("a", .error(429, code: "rate_limit_exceeded", message: "Rate limit reached for gpt-5.4. Try again in 60s"))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(try stage.turn("req-2").types.last == "response.completed")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 2)
            #expect(try stage.isAvailable("a"))
            #expect(try stage.daemon.post("/v1/responses", Stage.body(model: "gpt-5.5")).status == 200)
            #expect(stage.calls("a") == 2)
        }

        /// The API's own flat error event moves a turn on as the nested one does, and a request's own fault reaches the client as 400.
        @Test func flatEvents() throws {
            let stage = try Stage("a", "b")
            stage.script("a", .events([Canned.errorEvent("rate_limit_exceeded")]))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
            stage.always("b", .events([Canned.errorEvent("invalid_prompt")]))
            #expect(try stage.turn("req-2").failedCode == "invalid_prompt")
            #expect(try stage.daemon.record("req-2")["error_code"] as? String == "invalid_prompt")
            #expect(try stage.isAvailable("b"))
        }

        /// 502, 503 and what other companies' edges send move the turn on at once.
        @Test(arguments: [502, 503, 520, 529]) func gatewayErrors(_ status: Int) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .status(status, "<html>bad gateway</html>", headers: ["Content-Type": "text/html"]))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
        }

        /// Other 4xx reach the client as they are, at once, and cost the account nothing.
        @Test(arguments: [400, 403, 404, 409, 413, 422]) func otherRefusals(_ status: Int) throws {
            let stage = try Stage("a", "b")
            let body =
                "{\"error\" : {\"message\":\"Ünusual\",\"type\":\"invalid_request_error\",\"code\":\"odd_thing\",\"param\":\"input[0]\",\"more\":[1]}}"
            stage.always("a", .status(status, body, headers: ["X-Upstream-Says": "hello"]))
            let answer = try stage.turn()
            #expect(answer.status == status)
            #expect(answer.text == body)
            #expect(answer.header("x-upstream-says") == "hello")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
            #expect(try stage.isAvailable("a"))
            let record = try stage.daemon.record("req-1")
            #expect(record["status"] as? Int == status)
            #expect(record["error_code"] as? String == "odd_thing")
        }

        /// A stream whose first telling event is a limit or refused credentials is tried elsewhere; the client sees one whole answer.
        @Test(arguments: ["rate_limit_exceeded", "usage_limit_reached", "insufficient_quota", "invalid_api_key", "token_invalidated"])
        func firstEventFails(_ code: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .events([Canned.created(), Canned.inProgress(), Canned.failed(code)]))
            let answer = try stage.turn()
            #expect(answer.types.count { $0 == "response.created" } == 1)
            #expect(answer.types.last == "response.completed")
            #expect(!answer.types.contains("response.failed"))
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try !stage.isAvailable("a"))
        }

        /// A bare `error` event as the first is the same.
        @Test func firstErrorEvent() throws {
            let stage = try Stage("a", "b")
            stage.always("a", .events(["{\"type\":\"error\",\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"x\"}}"]))
            #expect(try stage.turn().types.last == "response.completed")
            #expect(stage.calls("b") == 1)
        }

        /// An accepted request that then fails for another reason is never sent twice: one call, one `response.failed` with its code.
        @Test(arguments: ["server_error", "overloaded_error", "server_is_overloaded", "upstream_request_timeout"])
        func acceptedIsNeverReplayed(_ code: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .events([Canned.failed(code)]))
            let answer = try stage.turn()
            #expect(answer.status == 200)
            #expect(answer.failedCode == code)
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
            #expect(try stage.daemon.record("req-1")["error_code"] as? String == code)
        }

        /// An empty 200 stream: one call, one `response.failed` with stream_incomplete.
        @Test(arguments: ["/v1/responses", "/backend-api/codex/responses"]) func emptyStream(_ path: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .emptyStream)
            let answer = try stage.turn(path: path)
            #expect(answer.failedCode == "stream_incomplete")
            #expect(answer.types.first == (path == "/v1/responses" ? "response.created" : "response.failed"))
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
        }

        /// A 200 whose body is lost before any event: one call, `response.failed` with upstream_unavailable.
        @Test func lostBeforeFirstEvent() throws {
            let stage = try Stage("a", "b")
            stage.always("a", .cut(after: []))
            let answer = try stage.turn()
            #expect(answer.failedCode == "upstream_unavailable")
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
        }

        /// Once text is visible a limit is told to the client and no other account is asked.
        @Test func visibleThenLimit() throws {
            let stage = try Stage("a", "b")
            stage.always("a", .events([Canned.created(), Canned.delta("partial answer"), Canned.failed("rate_limit_exceeded")]))
            let answer = try stage.turn()
            #expect(answer.text.components(separatedBy: "partial answer").count == 2)
            #expect(answer.failedCode == "rate_limit_exceeded")
            #expect(stage.calls("b") == 0)
        }

        /// Once text is visible a cut stream ends with one `response.failed`, in the words of each route.
        @Test(arguments: [("/v1/responses", "upstream_stream_truncated"), ("/backend-api/codex/responses", "stream_incomplete")])
        func visibleThenCut(_ path: String, _ code: String) throws {
            let stage = try Stage("a", "b")
            stage.always("a", .cut(after: [Canned.created(), Canned.delta("partial answer")]))
            let answer = try stage.turn(path: path)
            #expect(answer.isWhole)
            #expect(answer.text.components(separatedBy: "partial answer").count == 2)
            #expect(answer.failedCode == code)
            #expect(stage.calls("a") == 1 && stage.calls("b") == 0)
            #expect(try stage.daemon.record("req-1")["error_code"] as? String == code)
        }

        /// A stream that ends properly but without a terminal event is cut too.
        @Test func endsWithoutTerminalEvent() throws {
            let stage = try Stage("a")
            stage.always("a", .events([Canned.created(), Canned.delta("x")]))
            #expect(try stage.turn().failedCode == "upstream_stream_truncated")
        }

        /// When `response.created` had to be shown because nothing else came, the right to fail over is gone.
        @Test func heldBackForAWhileOnly() throws {
            let stage = try Stage("a", "b", environment: ["CODEX_LB_FAILOVER_HOLD_BACK_SECONDS": "0.1"])
            let gate = Gate()
            stage.always("a", .stall([Canned.created()], gate, [Canned.failed("rate_limit_exceeded")]))
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.head().status == 200)
            #expect(try connection.event()?.type == "response.created")
            gate.open()
            #expect(try connection.event()?.type == "response.failed")
            #expect(stage.calls("b") == 0)
        }

        /// What is kept back has a limit in bytes too: then the client gets it, long before the time is over.
        @Test func heldBackBytes() throws {
            let stage = try Stage("a", environment: ["CODEX_LB_FAILOVER_HOLD_BACK_SECONDS": "60"])
            let gate = Gate()
            let padded = "{\"type\":\"response.in_progress\",\"pad\":\"\(String(repeating: "x", count: 8192))\"}"
            stage.always("a", .stall([Canned.created()] + Array(repeating: padded, count: 12), gate, [Canned.completed()]))
            let connection = try stage.daemon.connect()
            try connection.post("/v1/responses", Stage.body())
            #expect(try connection.head().status == 200)
            #expect(try connection.event()?.type == "response.created")
            gate.open()
            while let event = try connection.event(), event.type != "response.completed" { #expect(event.type == "response.in_progress") }
        }

        /// Three accounts that all refuse with 429: the client gets the last upstream's own words.
        @Test func threeLimited() throws {
            let stage = try Stage("a", "b", "c", "d")
            for name in ["a", "b", "c", "d"] {
                stage.always(name, .error(429, code: "rate_limit_exceeded", message: "from the upstream", headers: ["Retry-After": "7"]))
            }
            let answer = try stage.turn()
            #expect(answer.status == 429)
            #expect(answer.errorCode == "rate_limit_exceeded")
            #expect(answer.error["message"] as? String == "from the upstream")
            #expect(answer.header("retry-after") == "7")
            #expect(stage.calls("a") + stage.calls("b") + stage.calls("c") + stage.calls("d") == 3, "a turn tries three accounts at most")
            #expect(try stage.daemon.record("req-1")["attempts"] as? Int == 3)
        }

        /// Three accounts whose streams all begin with a limit: the upstream's code in a `response.failed`, not no_accounts.
        @Test func threeFirstEventsLimited() throws {
            let stage = try Stage("a", "b", "c")
            for name in ["a", "b", "c"] { stage.always(name, .events([Canned.failed("rate_limit_exceeded")])) }
            let answer = try stage.turn()
            #expect(answer.status == 200)
            #expect(answer.failedCode == "rate_limit_exceeded")
            let whole = try Stage("a", "b", "c")
            for name in ["a", "b", "c"] { whole.always(name, .events([Canned.failed("rate_limit_exceeded")])) }
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1 && stage.calls("c") == 1)
        }

        /// A pool that is limited as a whole answers by itself: 429 usage_limit_reached, with the time of the first account to be free.
        @Test func wholePoolLimited() throws {
            let stage = try Stage("a", "b")
            let soon = Int(Date().timeIntervalSince1970) + 100
            stage.always("a", .error(429, code: "usage_limit_reached", more: "\"resets_at\":\(soon + 500)"))
            stage.always("b", .error(429, code: "usage_limit_reached", more: "\"resets_at\":\(soon)"))
            _ = try stage.turn()
            let answer = try stage.turn("req-2")
            #expect(answer.status == 429)
            #expect(answer.errorCode == "usage_limit_reached")
            #expect(answer.error["resets_at"] as? Int == soon)
            let seconds = answer.header("retry-after").flatMap { Int($0) } ?? 0
            #expect((80...101).contains(seconds))
            #expect(stage.calls("a") == 1 && stage.calls("b") == 1)
            #expect(try stage.daemon.record("req-2")["attempts"] as? Int == 0)
        }

        /// `Retry-After` decides how long a limited account is left alone.
        @Test func retryAfterIsHonoured() throws {
            let stage = try Stage("a")
            stage.script("a", .error(429, code: "rate_limit_exceeded", headers: ["Retry-After": "5"]))
            #expect(try stage.turn().status == 429)
            #expect(try stage.turn("req-2").status == 429)
            #expect(stage.calls("a") == 1)
            #expect(try eventually(10) { try stage.isAvailable("a") })
            #expect(try stage.turn("req-3").types.last == "response.completed")
        }

        /// "Try again in 1s" in the message does too.
        @Test func delayInMessageIsHonoured() throws {
            let stage = try Stage("a")
            stage.script("a", .error(429, code: "rate_limit_exceeded", message: "Rate limit reached. Please try again in 900ms."))
            #expect(try stage.turn().status == 429)
            #expect(try eventually(3) { try stage.isAvailable("a") })
            #expect(try stage.turn("req-2").types.last == "response.completed")
        }

        /// An account in trouble is used again when nothing else is left.
        @Test func lastResort() throws {
            let stage = try Stage("a")
            stage.script("a", .status(502, "bad"))
            let answer = try stage.turn()
            #expect(answer.status == 502 && (answer.json["error"] as? [String: Any])?["message"] as? String == "bad")
            #expect(try stage.turn("req-2").types.last == "response.completed")
        }

        /// Turns are spread over the accounts: the one not used for longest comes next.
        @Test func leastRecentlyUsed() throws {
            let stage = try Stage("a", "b", "c")
            for i in 0..<9 { #expect(try stage.turn("req-\(i)").types.last == "response.completed") }
            #expect(stage.calls("a") == 3 && stage.calls("b") == 3 && stage.calls("c") == 3)
        }

        /// No account: a Responses stream gets status 200 and `response.failed`, with a `response.created` before it on /v1.
        @Test(arguments: [
            ("/v1/responses", ["response.created", "response.failed"]), ("/backend-api/codex/responses", ["response.failed"]),
        ])
        func emptyPoolStream(_ path: String, _ types: [String]) throws {
            let stage = try Stage()
            let answer = try stage.turn(path: path)
            #expect(answer.status == 200)
            #expect(answer.header("content-type")?.hasPrefix("text/event-stream") == true)
            #expect(answer.types == types)
            #expect(answer.failedCode == "no_accounts")
            let response = answer.events.last?.json["response"] as? [String: Any]
            #expect(response?["id"] as? String == "req-1")
            #expect(response?["object"] as? String == "response")
            #expect(response?["status"] as? String == "failed")
        }

        /// No account: everything that is no Responses stream gets 503 no_accounts.
        @Test func emptyPoolWhole() throws {
            let stage = try Stage()
            for (path, body) in [
                ("/v1/responses", Stage.body(stream: false)), ("/v1/chat/completions", Stage.chat(stream: true)),
                ("/v1/chat/completions", Stage.chat(stream: false)),
                ("/v1/embeddings", "{\"model\":\"text-embedding-3-small\",\"input\":\"x\"}"),
            ] {
                let answer = try stage.daemon.post(path, body)
                #expect(answer.status == 503, "\(path)")
                #expect(answer.errorCode == "no_accounts", "\(path)")
            }
            #expect(try stage.daemon.get("/v1/models").status == 503)
        }

        /// Paused accounts count as none.
        @Test func pausedPool() throws {
            let stage = try Stage("a")
            #expect(try stage.daemon.run("accounts", "pause", "a").isGood)
            #expect(try eventually(bound(1, debug: 3)) { try stage.turn(stream: false).errorCode == "no_accounts" })
            #expect(try stage.daemon.run("accounts", "resume", "a").isGood)
            #expect(try eventually(bound(1, debug: 3)) { try stage.turn(stream: false).status == 200 })
        }

        /// An account that can't be reached is asked less and less often: 5 s, then 10 s, and from the start after an answer.
        @Test func growingBackoff() throws {
            let stage = try Stage("a")
            try stage.daemon.addAccount("dead", baseURL: "http://127.0.0.1:1/v1", key: "sk-up-dead")
            let pauses = { stage.daemon.log.matches(of: /account cools down account=dead .*seconds=(\d+)/).compactMap { Int($0.output.1) } }
            let isAskedAgain = try eventually(12, every: 0.05) {
                try stage.turn(stream: false).status == 200 && pauses().count >= 2
            }
            #expect(isAskedAgain)
            #expect(Array(pauses().prefix(2)) == [5, 10])
        }
    }
}
