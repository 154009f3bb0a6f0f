import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// The calendar jumps; waits do not. libfaketime turns the wall clock of the server's processes, and leaves the monotonic one alone.
    @Suite struct WallClock {
        static let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"

        /// The clock goes back an hour while an account cools down for five seconds: it is back after five seconds, not after an hour, and the
        /// store does not look away.
        @Test(.enabled(if: access(library, R_OK) == 0, "needs the Debian package faketime"), arguments: Database.both)
        func backAnHour(_ database: Database) throws {
            let offset = "/tmp/clbt-clock-\(getpid())-\(UUID().uuidString)"
            func turn(_ text: String) throws { try Data((text + "\n").utf8).write(to: URL(fileURLWithPath: offset)) }
            try turn("+0")
            defer { unlink(offset) }
            let daemon = try Daemon(
                [
                    "LD_PRELOAD": Self.library, "FAKETIME_TIMESTAMP_FILE": offset, "FAKETIME_NO_CACHE": "1",
                    "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                ], on: database)
            // The library's first process in a row loses its arguments; the next has them.
            daemon.runner = ["/usr/bin/env"]
            let stage = Stage(try FakeUpstream(), daemon)
            try daemon.addAccount("a", baseURL: stage.upstream.baseURL, key: Stage.key("a"))
            try daemon.start()
            stage.script("a", .error(429, code: "rate_limit_exceeded", more: "\"resets_in_seconds\":5"))
            #expect(try stage.turn("first", stream: false).status == 429)
            #expect(try !stage.isAvailable("a"))
            try turn("-3600")
            let start = Date()
            #expect(try eventually(15, every: 0.1) { try stage.isAvailable("a") }, "the account cools down for longer than it was told")
            #expect(Date().timeIntervalSince(start) < 10)
            #expect(try stage.turn("second", stream: false).status == 200)
            try turn("+3600")
            #expect(try stage.health().database == "ok")
        }
    }
}
