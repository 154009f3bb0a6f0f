import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Several instances on one PostgreSQL database.
    @Suite struct PostgresShared {
        private static func remote(_ key: String) -> [(String, String)] {
            [("X-Forwarded-For", "192.0.2.7"), ("Authorization", "Bearer \(key)")]
        }

        /// A second instance on the first one's database, with a data directory of its own and the same encryption key.
        private func neighbour(of daemon: Daemon, key: Bool = true, _ environment: [String: String] = [:]) throws -> Daemon {
            var settings = environment
            settings["CODEX_LB_DATABASE_URL"] = daemon.environment["CODEX_LB_DATABASE_URL"]
            let other = try Daemon(settings)
            guard key else { return other }
            try FileManager.default.createDirectory(
                atPath: other.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
            try FileManager.default.copyItem(atPath: daemon.data + "/encryption.key", toPath: other.data + "/encryption.key")
            return other
        }

        /// Accounts, keys and states that one instance's command line changes are those of the other within a second.
        @Test func changesAreSeen() throws {
            let first = try Stage("a", on: .postgresql)
            let second = Stage(first.upstream, try neighbour(of: first.daemon))
            try second.daemon.start()
            #expect(try second.turn("one").types.last == "response.completed")
            #expect(try first.daemon.run("accounts", "pause", "a").isGood)
            #expect(try eventually(bound(1, debug: 3)) { try second.turn(stream: false).status == 503 })
            #expect(try eventually(bound(1, debug: 3)) { try first.turn(stream: false).status == 503 })
            try second.daemon.addAccount("b", baseURL: first.upstream.baseURL, key: Stage.key("b"))
            #expect(try eventually(bound(1, debug: 3)) { try first.turn(stream: false).status == 200 })
            #expect(try eventually(bound(1, debug: 3)) { try second.turn(stream: false).status == 200 })
            #expect(first.calls("b") >= 2)
            let key = try second.daemon.createKey("laptop")
            #expect(try eventually(bound(1, debug: 3)) { try first.daemon.get("/v1/usage", headers: Self.remote(key)).status == 200 })
            #expect(try first.daemon.run("keys", "revoke", "laptop").isGood)
            #expect(try eventually(bound(1, debug: 3)) { try second.daemon.get("/v1/usage", headers: Self.remote(key)).status == 401 })
            #expect(try eventually(bound(1, debug: 3)) { try first.daemon.get("/v1/usage", headers: Self.remote(key)).status == 401 })
        }

        /// Ten accounts and ten keys made at once by the command lines of both: each has its own place, and both instances know all.
        @Test func changesAtOnce() throws {
            let first = try Stage("a", on: .postgresql, environment: ["CODEX_LB_REQUIRE_KEYS": "never"])
            let second = Stage(first.upstream, try neighbour(of: first.daemon, ["CODEX_LB_REQUIRE_KEYS": "never"]))
            try second.daemon.start()
            let group = DispatchGroup()
            for i in 0..<10 {
                group.enter()
                let daemon = i % 2 == 0 ? first.daemon : second.daemon
                Thread.detachNewThread {
                    defer { group.leave() }
                    // What failed is missing below.
                    try? daemon.addAccount("n\(i)", baseURL: first.upstream.baseURL, key: Stage.key("n\(i)"))
                    _ = try? daemon.createKey("k\(i)")
                }
            }
            group.wait()
            let database = BareDatabase(of: first.daemon)
            #expect(try database.sql("SELECT count(*), count(DISTINCT slot) FROM accounts WHERE removed_at_ms IS NULL") == "11|11")
            #expect(try database.sql("SELECT count(*) FROM client_keys") == "10")
            for stage in [first, second] {
                #expect(
                    try eventually(2) {
                        try (stage.daemon.get("/health/ready").json["accounts"] as? [String: Any])?["active"] as? Int == 11
                    })
            }
        }

        /// Both write usage of one key; either tells the sum.
        @Test func usageIsShared() throws {
            let first = try Stage("a", on: .postgresql)
            let second = Stage(first.upstream, try neighbour(of: first.daemon))
            try second.daemon.start()
            let key = try first.daemon.createKey("laptop")
            for stage in [first, second] {
                #expect(try eventually(bound(1, debug: 3)) { try stage.daemon.get("/v1/usage", headers: Self.remote(key)).status == 200 })
                for _ in 0..<5 {
                    #expect(
                        try stage.daemon.post("/v1/responses", Stage.body(), headers: Self.remote(key)).types.last == "response.completed")
                }
            }
            for stage in [first, second] {
                #expect(
                    try eventually(5) { try stage.daemon.get("/v1/usage", headers: Self.remote(key)).json["request_count"] as? Int == 10 })
            }
        }

        /// An instance with another encryption key, or none, is refused with a line that says which file to bring; the first goes on.
        @Test(arguments: [true, false]) func otherKey(_ hasOne: Bool) throws {
            let first = try Stage("a", on: .postgresql)
            let other = try neighbour(of: first.daemon, key: false)
            if hasOne {
                let third = try Daemon()
                try third.addAccount("x", baseURL: "http://127.0.0.1:1", key: "x")
                try FileManager.default.createDirectory(
                    atPath: other.data, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
                try FileManager.default.copyItem(atPath: third.data + "/encryption.key", toPath: other.data + "/encryption.key")
            }
            try other.launch()
            #expect(other.child?.wait(15)?.isRefusal == true)
            for word in [
                other.data + "/encryption.key", hasOne ? "is not the encryption key" : "is missing", "sealed with", "shares the database",
            ] {
                #expect(other.log.contains(word), "\"\(word)\" is not in:\n\(other.log)")
            }
            let add = try other.run("accounts", "add", "b", "--base-url", "http://127.0.0.1:1", "--key-file", "-", input: "x\n")
            #expect(add.exit == .code(1) && add.errors.contains("encryption.key"), "\(add)")
            #expect(try first.turn().types.last == "response.completed")
        }

        /// Two that start on one new database at the same moment, each without a key: one makes the key, the other is refused for lack of it.
        @Test func twoFirstStarts() throws {
            let first = try Daemon(on: .postgresql)
            let second = try neighbour(of: first, key: false)
            try first.launch()
            try second.launch()
            #expect(
                eventually(20) {
                    [first, second].contains { $0.child?.poll() != nil }
                        && [first, second].contains { $0.log.contains(" supervisor ready ") }
                }, "\(first.log)\n\(second.log)")
            let refused = first.child?.poll() == nil ? second : first
            #expect(refused.child?.poll()?.isRefusal == true)
            #expect(refused.log.contains("encryption.key"), "\(refused.log)")
        }

        /// Only our tables are dumped and put back; what others have in the database stays as it is.
        @Test func restoreLeavesOthersAlone() throws {
            let daemon = try Daemon(on: .postgresql)
            let url = try #require(daemon.environment["CODEX_LB_DATABASE_URL"])
            let bare = BareDatabase(of: daemon)
            try bare.sql("CREATE SCHEMA ours; GRANT ALL ON SCHEMA ours TO PUBLIC")
            try bare.sql("CREATE TABLE orders (id INT PRIMARY KEY); INSERT INTO orders VALUES (1)")
            try bare.sql("CREATE TABLE accounts (name TEXT); INSERT INTO accounts VALUES ('somebody else')")
            daemon.environment["CODEX_LB_DATABASE_URL"] = url + (url.contains("?") ? "&" : "?") + "options=-csearch_path%3Dours"
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1/v1", key: "x")
            let dump = String(try daemon.run("db", "backup", seconds: 60).output.split(separator: " ")[0])
            try daemon.addAccount("b", baseURL: "http://127.0.0.1:1/v1", key: "x")
            try bare.sql("INSERT INTO orders VALUES (2)")
            try bare.sql("UPDATE accounts SET name = 'still somebody else'")
            let restored = try daemon.restore(dump)
            #expect(restored.isGood, "\(restored.errors)")
            #expect(try daemon.run("accounts", "list").output.contains("a ") && !daemon.run("accounts", "list").output.contains("b "))
            #expect(try bare.sql("SELECT count(*) FROM orders") == "2")
            #expect(try bare.sql("SELECT name FROM public.accounts") == "still somebody else")
            // The dump is of another schema than this URL's.
            daemon.environment["CODEX_LB_DATABASE_URL"] = url
            let elsewhere = try daemon.run("db", "restore", dump, seconds: 60)
            #expect(!elsewhere.isGood && elsewhere.errors.contains("nothing was changed"), "\(elsewhere.errors)")
        }

        /// An instance is known by what no URL changes: a restore is refused while it serves, and goes a moment after it has ended.
        @Test func restoreWhileServed() throws {
            let daemon = try Daemon(on: .postgresql)
            let url = try #require(daemon.environment["CODEX_LB_DATABASE_URL"])
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1/v1", key: "x")
            let dump = String(try daemon.run("db", "backup", seconds: 60).output.split(separator: " ")[0])
            daemon.environment["CODEX_LB_DATABASE_URL"] = url + (url.contains("?") ? "&" : "?") + "application_name=somebody"
            try daemon.start()
            daemon.environment["CODEX_LB_DATABASE_URL"] = url
            #expect(
                try eventually(5) { try BareDatabase(of: daemon).sql("SELECT count(*) FROM leases WHERE name LIKE 'serving:%'") == "1" })
            let refused = try daemon.run("db", "restore", dump, seconds: 60)
            #expect(!refused.isGood && refused.errors.contains("served from by"), "\(refused.errors)")
            #expect(daemon.stop() == .code(0))
            #expect(try daemon.restore(dump).isGood)
        }

        /// SIGTERM of one instance under load: its turns are finished and stored, the other notices nothing.
        @Test func oneStops() throws {
            let first = try Stage("a", workers: 2, on: .postgresql)
            let second = Stage(first.upstream, try neighbour(of: first.daemon))
            try second.daemon.start()
            let loads = [Load(first, clients: 2, pause: 5_000, name: "first"), Load(second, clients: 2, pause: 5_000, name: "second")]
            #expect(eventually(20) { loads.allSatisfy { $0.count >= 50 } })
            #expect(first.daemon.stop() == .code(0))
            let before = loads[1].count
            #expect(eventually(20) { loads[1].count >= before + 100 })
            let (ended, kept) = (loads[0].stop(), loads[1].stop())
            try second.expectOneRecord(of: ended + kept)
            #expect(
                !second.daemon.log.contains(" ERROR ") && !second.daemon.log.contains("child ended"), "\(second.daemon.log.suffix(2000))")
        }

        /// kill -9 of one whole instance: what it had stored stays, and the other notices nothing.
        @Test func oneIsKilled() throws {
            let first = try Stage("a", on: .postgresql)
            let second = Stage(first.upstream, try neighbour(of: first.daemon))
            try second.daemon.start()
            _ = try first.turn("stored")
            _ = try second.daemon.record("stored")
            let load = Load(second, clients: 2, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            first.daemon.endAll()
            let before = load.count
            #expect(eventually(20) { load.count >= before + 100 })
            try second.expectOneRecord(of: load.stop() + ["stored"])
        }

        /// A scheduled backup is made by one of the two at a time: no more copies than intervals, every copy good.
        @Test func scheduledBackup() throws {
            // 0.0005 h are 1.8 s.
            let settings = ["CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS": "0.0005", "CODEX_LB_DATABASE_BACKUP_MAX_FILES": "100"]
            let daemon = try Daemon(settings, on: .postgresql)
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            let other = try neighbour(of: daemon, settings)
            try daemon.start()
            let start = Date()
            try other.start()
            let made = { [daemon, other].map { $0.log.components(separatedBy: "scheduled backup made").count - 1 } }
            #expect(eventually(30) { made().reduce(0, +) >= 4 }, "\(daemon.log)\n\(other.log)")
            let intervals = Int(Date().timeIntervalSince(start) / 1.8) + 1
            let count = made().reduce(0, +)
            #expect(count <= intervals, "\(count) backups within \(intervals) intervals: \(made())")
            #expect(daemon.stop() == .code(0) && other.stop() == .code(0))
            for daemon in [daemon, other] {
                let list = try daemon.run("db", "backups", "--json")
                let files = try JSONSerialization.jsonObject(with: Data(list.output.utf8)) as? [[String: Any]] ?? []
                #expect(files.allSatisfy { $0["verified"] as? Bool == true }, "\(list.output)")
                #expect(files.count >= daemon.log.components(separatedBy: "scheduled backup made").count - 1)
                let names = try FileManager.default.contentsOfDirectory(atPath: daemon.data)
                #expect(!names.contains { $0.hasSuffix(".partial") }, "\(names)")
            }
        }

        /// Nobody makes a backup while another holds the lease; when that one is not heard of any more, one of them does.
        @Test func leaseIsKept() throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS": "0.0002"], on: .postgresql)
            try daemon.addAccount("a", baseURL: "http://127.0.0.1:1", key: "x")
            let (cluster, name) = (
                try PostgresCluster.shared(), try #require(daemon.databaseName)
            )
            try cluster.sql(
                "INSERT INTO leases VALUES ('backup', 'another:1', 7, CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT) + 60000, 0)",
                in: name)
            try daemon.start()
            // Refused tries leave no trace: four intervals of 0.72 s are watched for a backup that must not come.
            #expect(!daemon.waitLog("scheduled backup", seconds: 3))
            #expect(try cluster.sql("SELECT holder, epoch FROM leases WHERE name NOT LIKE 'serving:%'", in: name) == "another:1|7")
            try cluster.sql("UPDATE leases SET expires_at_ms = 0", in: name)
            #expect(daemon.waitLog("scheduled backup made"))
            #expect(Int(try cluster.sql("SELECT epoch FROM leases WHERE name NOT LIKE 'serving:%'", in: name)) ?? 0 >= 8)
        }
    }
}
