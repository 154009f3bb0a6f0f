import DaemonHarness
import FakeUpstream
import Foundation
import Testing

extension Integration {
    /// Goal: no body of one client holds up another's request.
    @Suite struct LargeBodies {
        /// Health requests, one after the other on their own connection and thread, until `stop`.
        private final class Probe: @unchecked Sendable {  // every access holds `lock`
            private let lock = NSLock()
            private var isStopped = false
            /// Seconds that each took; infinity where one failed.
            private var times: [Double] = []
            private let ended = DispatchSemaphore(value: 0)

            init(_ daemon: Daemon) {
                let address = daemon.address
                Thread.detachNewThread { [self] in
                    defer { ended.signal() }
                    guard let connection = try? HTTPConnection(address) else { return lock.withLock { times.append(.infinity) } }
                    while !lock.withLock({ isStopped }) {
                        let start = Date()
                        guard (try? connection.send("GET", "/health/live", body: nil)) != nil,
                            (try? connection.answer(20))?.status == 200
                        else { return lock.withLock { times.append(.infinity) } }
                        let took = Date().timeIntervalSince(start)
                        lock.withLock { times.append(took) }
                    }
                }
            }

            /// The worst, the 95th of a hundred, and how many there were.
            func stop() -> (worst: Double, usual: Double, count: Int) {
                lock.withLock { isStopped = true }
                ended.wait()
                let sorted = lock.withLock { times.sorted() }
                return (sorted.last ?? 0, sorted.isEmpty ? 0 : sorted[(sorted.count - 1) * 95 / 100], sorted.count)
            }
        }

        /// `{"model":…,"input":` and 480 levels, each with its part of the bytes.
        private static func deep(_ count: Int) -> [UInt8] {
            let pad = String(repeating: "a", count: count / 480 - 12)
            return Array(
                ("{\"model\":\"gpt-5.4\",\"input\":" + String(repeating: "[\"\(pad)\",", count: 480) + "0"
                    + String(repeating: "]", count: 480) + "}").utf8)
        }

        /// 120 levels and a chat around them: rewritten in depth for a login.
        private static func chat(_ count: Int) -> [UInt8] {
            let pad = String(repeating: "a", count: count / 120 - 12)
            return Array(
                ("{\"model\":\"gpt-5.4\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"metadata\":"
                    + String(repeating: "[\"\(pad)\",", count: 120) + "0" + String(repeating: "]", count: 120) + "}").utf8)
        }

        private static func flat(_ count: Int) -> [UInt8] {
            Array(("{\"model\":\"gpt-5.4\",\"stream\":true,\"input\":[" + String(repeating: "0,", count: count / 2) + "0]}").utf8)
        }

        private func worked(_ stage: Stage, _ name: String, _ path: String, _ body: [UInt8], _ headers: [(String, String)] = []) throws
            -> Int
        {
            let connection = try stage.daemon.connect()
            let probe = Probe(stage.daemon)
            let start = Date()
            try connection.send("POST", path, body: body, headers: headers)
            let status = try connection.answer(60).status
            let took = Date().timeIntervalSince(start)
            let (worst, usual, count) = probe.stop()
            print(
                "body \(name): \(body.count) bytes, \(status) after \(Int(took * 1000)) ms, \(count) health requests, worst \(Int(worst * 1000)) ms, 95 % within \(Int(usual * 1000)) ms"
            )
            // What is done on the loop holds up one request for all of its time. What the machine holds up, in a debug build beside other
            // things, says nothing of that.
            #expect(worst < bound(0.1, debug: max(0.3, took / 2)), "\(name): of \(took) s a health request took \(worst) s")
            #expect(usual < 0.1 || count < 100, "\(name): of \(count) health requests a twentieth took \(usual) s")
            return status
        }

        @Test func othersAreServedMeanwhile() throws {
            let stage = try Stage("a")
            #expect(try worked(stage, "flat 1 MB", "/v1/responses", Self.flat(1 << 20)) == 200)
            for megabytes in [4, 16, 30] {
                #expect(try worked(stage, "480 deep \(megabytes) MB", "/v1/responses", Self.deep(megabytes << 20)) == 400)
            }
            #expect(try worked(stage, "chat 120 deep 8 MB", "/v1/chat/completions", Self.chat(8 << 20)) == 200)
            let file = stage.daemon.directory + "/body"
            for (name, body, status) in [("480 deep", Self.deep(30 << 20), 400), ("flat", Self.flat(2 << 20), 200)] {
                try Data(body).write(to: URL(fileURLWithPath: file))
                try #require(Child("/usr/bin/zstd", ["-q", "-f", file, "-o", file + ".zst"], environment: [:]).wait(60) == .code(0))
                let packed = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file + ".zst")))
                #expect(try worked(stage, "zstd, \(name)", "/v1/responses", packed, [("Content-Encoding", "zstd")]) == status)
            }
        }

        /// With several accounts a conversation is told by how it begins, and whether it says all that its previous response is about is looked at:
        /// both where the body is read.
        @Test func alsoWhenToldByItsBeginning() throws {
            let stage = try Stage("a", "b")
            let text = String(repeating: "word ", count: 6 << 20)
            let input = "\"input\":[{\"content\":\"\(text)\",\"role\":\"user\"},{\"content\":\"x\",\"role\":\"assistant\"}]}"
            let users = (0..<9).map { _ in "{\"content\":\"\(text.prefix(3 << 20))\",\"role\":\"user\"}" }.joined(separator: ",")
            let late = Array("{\"model\":\"gpt-5.4\",\"stream\":true,\"input\":[\(users)]}".utf8)
            #expect(try worked(stage, "no answer among the first, 27 MB", "/v1/responses", late) == 200)
            for (name, more) in [("role last, 30 MB", ""), ("whole conversation, 30 MB", "\"previous_response_id\":\"resp_1\",")] {
                let body = Array("{\"model\":\"gpt-5.4\",\"stream\":true,\(more)\(input)".utf8)
                #expect(try worked(stage, name, "/v1/responses", body) == 200)
            }
        }

        /// The translation for a login reads in depth.
        @Test func alsoWhenTranslated() throws {
            let stage = try Stage()
            try stage.daemon.importAccount("live", baseURL: stage.upstream.chatGPTBaseURL, token: "access-token", accountID: "acc")
            stage.upstream.always("access-token", .events(Canned.stream))
            #expect(try eventually(5) { try stage.isAvailable("live") })
            #expect(try worked(stage, "chat 120 deep 4 MB", "/v1/chat/completions", Self.chat(4 << 20)) == 200)
            #expect(try worked(stage, "flat 1 MB", "/v1/responses", Self.flat(1 << 20)) == 200)
            #expect(stage.upstream.calls("access-token") == 2)
        }
    }
}
