import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Goal: numbers that an upstream invents end nothing, and the record says that they were changed.
    @Suite struct AbsurdNumbers {
        @Test func areCutAndMarked() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "access-token", accountID: "acc")
            let usage = "{\"input_tokens\":9223372036854775807,\"output_tokens\":9223372036854775807}"
            stage.upstream.always("access-token", .events([Canned.created(), Canned.completed(usage: usage)]))
            #expect(try eventually(5) { try stage.isAvailable("live") })
            let worker = stage.daemon.pid("worker")
            for n in 0..<8 {
                let answer = try stage.daemon.post(
                    "/v1/chat/completions", Stage.chat(stream: n % 2 == 0), headers: [("X-Request-Id", "req-\(n)")])
                #expect(answer.status == 200)
                let record = try stage.daemon.record("req-\(n)")
                #expect(record["input_tokens"] as? Int == 1_000_000_000 && record["error_code"] as? String == "usage_out_of_range")
            }
            #expect(try stage.daemon.get("/v1/usage").json["total_tokens"] as? Int == 16_000_000_000)
            #expect(try stage.metric("codex_lb_input_tokens_total") == 8e9)
            #expect(stage.daemon.pid("worker") == worker)
        }
    }

    /// Exactly one record per turn, whatever dies.
    @Suite struct Accounting {
        /// A record has what the turn was, used and cost.
        @Test(arguments: Database.allCases) func oneRecord(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            let body = Stage.body()
            let answer = try stage.daemon.post("/v1/responses", body, headers: [("X-Request-Id", "full")])
            let record = try stage.daemon.record("full")
            #expect(record["route"] as? String == "/v1/responses")
            #expect(record["account"] as? String == "a")
            #expect(record["key"] is NSNull)
            #expect(record["model"] as? String == "gpt-5.4" && record["model_asked"] as? String == "gpt-5.4")
            #expect(record["status"] as? Int == 200)
            #expect(record["error_code"] is NSNull)
            #expect(record["input_tokens"] as? Int == 100 && record["cached_input_tokens"] as? Int == 40)
            #expect(record["output_tokens"] as? Int == 20 && record["reasoning_tokens"] as? Int == 5)
            // gpt-5.4: 60 × $2.5 + 40 × $0.25 + 20 × $15, per million
            #expect(record["cost_microdollars"] as? Int == 460)
            #expect(record["attempts"] as? Int == 1)
            #expect(record["request_bytes"] as? Int == body.utf8.count)
            // The record is made before the last bytes are written: all but the terminal event's are counted.
            #expect((record["response_bytes"] as? Int ?? -1) <= answer.body.count)
            let (first, whole) = (record["first_byte_ms"] as? Int ?? -1, record["duration_ms"] as? Int ?? -1)
            #expect(first >= 0 && first <= whole && whole < 5000)
            let id = try #require(record["id"] as? String)
            #expect(id.count == 36 && Array(id)[14] == "7", "\(id) is no UUIDv7")
            let time = try #require(record["time"] as? String)
            #expect(time.hasSuffix("Z"))
            #expect(try stage.daemon.records().count == 1)
        }

        /// An unknown model costs an unknown amount, not nothing.
        @Test(arguments: Database.both) func unknownPrice(_ database: Database) throws {
            let stage = try Stage("a", on: database)
            stage.always("a", .status(200, Canned.response(model: "my-own-model")))
            _ = try stage.daemon.post("/v1/responses", Stage.body(stream: false, model: "my-own-model"), headers: [("X-Request-Id", "own")])
            #expect(try stage.daemon.record("own")["cost_microdollars"] is NSNull)
        }

        /// Requests that never became a turn leave no record.
        @Test func refusedRequestsAreNoTurns() throws {
            let stage = try Stage("a")
            _ = try stage.daemon.post("/v1/responses", "{")
            _ = try stage.daemon.get("/v1/models")
            _ = try stage.turn("real")
            _ = try stage.daemon.record("real")
            #expect(try stage.daemon.records().count == 1)
        }

        /// Records written in parallel by several workers and still there after a restart.
        @Test(arguments: Database.allCases) func survivesRestart(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            for i in 0..<20 { _ = try stage.turn("req-\(i)") }
            #expect(stage.daemon.stop() == .code(0))
            #expect(try stage.daemon.records().count == 20, "a stop loses nothing: the command reads the database itself")
            try stage.daemon.start(workers: 1)
            _ = try stage.turn("after")
            _ = try stage.daemon.record("after")
            #expect(try stage.daemon.records().count == 21)
        }

        /// kill -9 of the writer, ten times and more under 2,000 turns: no turn fails, every one has exactly one record.
        @Test func writerKilled() throws {
            let stage = try Stage("a", workers: 2)
            let load = Load(stage, clients: 4, pause: 15_000)
            var kills = 0
            let end = Date(timeIntervalSinceNow: 90)
            while load.count < 2000 || kills < 10, Date() < end {
                let before = load.count
                if stage.daemon.killRole("writer") != nil { kills += 1 }
                // The writer is back when records are acknowledged again; turns go on meanwhile.
                eventually(5) { load.count >= before + 60 }
            }
            let finished = load.stop()
            #expect(kills >= 10 && finished.count >= 2000, "\(kills) kills, \(finished.count) turns")
            #expect(eventually(10) { stage.daemon.pid("writer") != nil })
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count, "a turn failed or was sent twice")
        }

        /// kill -9 of a worker: what its clients saw finished has exactly one record, and others take over.
        @Test(arguments: Database.allCases) func workerKilled(_ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let load = Load(stage, clients: 4, pause: 1000)
            for _ in 0..<5 {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 60 })
                #expect(eventually(10) { stage.daemon.killRole("worker", Int.random(in: 0...1)) != nil })
            }
            let before = load.count
            #expect(eventually(20) { load.count >= before + 60 })
            let finished = load.stop()
            #expect(eventually(10) { stage.daemon.pid("worker", 0) != nil && stage.daemon.pid("worker", 1) != nil })
            try stage.expectOneRecord(of: finished)
        }

        /// Without a writer turns are served; their records wait and are stored when it is back.
        @Test func writerAway() throws {
            let stage = try Stage("a")
            let writer = try #require(stage.daemon.pid("writer"))
            kill(writer, SIGSTOP)
            for i in 0..<50 { #expect(try stage.turn("req-\(i)").types.last == "response.completed") }
            #expect(try eventually(2) { try stage.metric("codex_lb_journal_bytes") ?? 0 > 0 })
            kill(writer, SIGCONT)
            try stage.expectOneRecord(of: (0..<50).map { "req-\($0)" })
            #expect(try eventually(5) { try stage.metric("codex_lb_journal_bytes") == 0 })
            let (made, stored) = (
                try stage.metric("codex_lb_usage_records_journaled_total"), try stage.metric("codex_lb_usage_records_acknowledged_total")
            )
            #expect(made == 50 && stored == 50)
        }
    }
}
