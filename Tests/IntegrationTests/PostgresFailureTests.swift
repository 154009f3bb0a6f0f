import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// PostgreSQL is away, slow, full or wrong: turns go on, nothing is lost or doubled, and the message says what to do.
    @Suite struct PostgresFailures {
        private static let remote = ("X-Forwarded-For", "192.0.2.7")

        /// A server on a database of the shared cluster, with a short patience of the pool.
        private func stage(workers: Int = 1, _ environment: [String: String] = [:]) throws -> (Stage, PostgresCluster) {
            let stage = try Stage(
                "a", workers: workers, on: .postgresql,
                environment: ["CODEX_LB_DATABASE_POOL_TIMEOUT_SECONDS": "1"].merging(environment) { $1 })
            return (stage, try PostgresCluster.shared())
        }

        /// The words of the store's messages that an operator needs, all there.
        private func expect(_ text: String, has words: String...) {
            for word in words { #expect(text.contains(word), "\"\(word)\" is not in:\n\(text)") }
            #expect(
                !text.contains(PostgresCluster.password) && !text.contains(PostgresCluster.encodedPassword), "the password is in the log")
        }

        /// The same of a process that runs: a thread of its own writes its log.
        private func expect(_ daemon: Daemon, tells words: String...) {
            for word in words { #expect(daemon.waitLog(word), "\"\(word)\" is not in:\n\(daemon.log)") }
            expect(daemon.log)
        }

        // MARK: At start

        /// Down at start: it waits with growing pauses, then ends and says where it looked and what to check.
        @Test func downAtStart() throws {
            let cluster = try PostgresCluster.shared()
            let daemon = try Daemon(["CODEX_LB_DATABASE_STARTUP_WAIT_SECONDS": "2"], on: .postgresql)
            try cluster.stop()
            defer { try? cluster.start() }  // whoever asks for it next starts it too
            let start = Date()
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true)
            let seconds = Date().timeIntervalSince(start)
            #expect(seconds > 1 && seconds < 8, "\(seconds) s")
            expect(
                daemon.log, has: "waiting for the database", "127.0.0.1:\(cluster.port)", "pg_isready", "listen_addresses",
                "CODEX_LB_DATABASE_STARTUP_WAIT_SECONDS")
            let tries = daemon.log.components(separatedBy: "waiting for the database").count - 1
            #expect((2...8).contains(tries), "\(tries) tries in 2 s")
            #expect(!daemon.log.contains(" supervisor ready "))
        }

        /// An order to stop while it waits for the database is heeded at once.
        @Test func stoppedWhileWaiting() throws {
            let cluster = try PostgresCluster.shared()
            let daemon = try Daemon(on: .postgresql)
            try cluster.stop()
            defer { try? cluster.start() }  // whoever asks for it next starts it too
            try daemon.launch()
            #expect(daemon.waitLog("waiting for the database"))
            daemon.child?.signal(SIGTERM)
            #expect(daemon.child?.wait(3) == .code(0))
        }

        /// Down at start and up a moment later: it serves, without anybody's help.
        @Test func comesUpWhileWaiting() throws {
            let (stage, cluster) = try stage()
            #expect(stage.daemon.stop() == .code(0))
            try cluster.stop()
            try stage.daemon.launch()
            #expect(stage.daemon.waitLog("waiting for the database"))
            try cluster.start()
            try stage.daemon.waitReady()
            #expect(try stage.turn("served").types.last == "response.completed")
            _ = try stage.daemon.record("served")
        }

        /// What can't get better by waiting ends the start at once, with a line that says what to do.
        @Test(arguments: ["password", "none", "database", "user", "tls", "option"])
        func refusedAtStart(_ what: String) throws {
            let cluster = try PostgresCluster.shared()
            let name = try cluster.createDatabase()
            let (url, words): (String, [String]) =
                switch what {
                case "password": (cluster.url(name, password: "geheim"), ["authentication failed", "check user and password"])
                case "none": ("postgresql://\(PostgresCluster.user)@127.0.0.1:\(cluster.port)/\(name)", ["wants a password", ".pgpass"])
                case "database": (cluster.url("nowhere"), ["\"nowhere\" does not exist", "createdb"])
                case "user": ("postgresql://nobody:geheim@127.0.0.1:\(cluster.port)/\(name)", ["nobody", "check user and password"])
                case "tls":
                    (cluster.url(name, parameters: "sslmode=require"), ["TLS", "does not support SSL", "sslmode", "postgresql.conf"])
                default: (cluster.url(name, parameters: "sslmode=perhaps"), ["sslmode", "perhaps", "CODEX_LB_DATABASE_URL"])
                }
            let daemon = try Daemon(["CODEX_LB_DATABASE_URL": url])
            let start = Date()
            try daemon.launch()
            #expect(daemon.child?.wait(10)?.isRefusal == true)
            #expect(Date().timeIntervalSince(start) < 5, "it waited")
            for word in words + ["127.0.0.1:\(cluster.port)"] { expect(daemon.log, has: word) }
            #expect(!daemon.log.contains("geheim"), "the password is in the log")
            // The command line says the same.
            let list = try daemon.run("accounts", "list")
            #expect(list.exit == .code(1))
            expect(list.errors, has: words[0])
        }

        /// All connections taken by others: the start waits, says so, and serves when some are free. A pool that is larger than the
        /// server is told with the numbers.
        @Test func connectionsTaken() throws {
            let cluster = try PostgresCluster(["max_connections": "8", "superuser_reserved_connections": "3"])
            let name = try cluster.createDatabase()
            let daemon = try Daemon(["CODEX_LB_DATABASE_URL": cluster.url(name)])
            let others = try (0..<5).map { _ in try cluster.hold("SELECT 1", in: "postgres") }
            try daemon.launch(workers: 2)
            #expect(daemon.waitLog("waiting for the database"))
            expect(daemon, tells: "127.0.0.1:\(cluster.port)", "max_connections", "CODEX_LB_DATABASE_POOL_SIZE", "pgbouncer")
            for other in others { try other.end() }
            try daemon.waitReady()
            // 15 + 10 wanted, 8 - 3 given.
            expect(daemon, tells: "may open 25 connections", "gives ordinary users 5 in all", "max_connections")
            #expect(daemon.stop() == .code(0))
        }

        /// Of several hosts the first that can serve is used.
        @Test func secondHost() throws {
            let (stage, cluster) = try stage()
            #expect(stage.daemon.stop() == .code(0))
            let url = try #require(stage.daemon.environment["CODEX_LB_DATABASE_URL"])
            // Port 1 of loopback: nobody is there.
            stage.daemon.environment["CODEX_LB_DATABASE_URL"] = url.replacingOccurrences(of: "@127", with: "@127.0.0.1:1,127")
            try stage.daemon.start()
            #expect(try stage.turn("second").types.last == "response.completed")
            _ = try stage.daemon.record("second")
            _ = cluster
        }

        // MARK: Under load

        /// Away in the middle: turns go on, keys count as before, readiness says degraded with 200, reads are refused with 503, and when it
        /// is back everything is stored.
        @Test func downInTheMiddle() throws {
            let (stage, cluster) = try stage(["CODEX_LB_REQUIRE_KEYS": "never"])
            let key = try stage.daemon.createKey("laptop")
            let headers = [Self.remote, ("Authorization", "Bearer \(key)")]
            #expect(try eventually(2) { try stage.daemon.get("/v1/usage", headers: headers).status == 200 })
            let load = Load(stage, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            try cluster.stop()
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            let before = load.count
            #expect(eventually(20) { load.count >= before + 200 }, "turns do not go on")
            // A store error is no refusal of the caller.
            #expect(try stage.daemon.post("/v1/responses", Stage.body(), headers: headers).status == 200)
            #expect(
                try stage.daemon.post("/v1/responses", Stage.body(), headers: [Self.remote, ("Authorization", "Bearer sk-clb-x")]).status
                    == 401)
            for headers in [headers, []] {
                let usage = try stage.daemon.get("/v1/usage", headers: headers)
                #expect(usage.status == 503 && usage.errorCode == "database_unavailable", "\(usage.status) \(usage.text)")
                #expect(usage.header("retry-after") != nil)
            }
            try cluster.start()
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count + 1, "a turn failed or was sent twice")
            #expect(try stage.daemon.get("/v1/usage", headers: headers).status == 200)
            expect(stage.daemon, tells: "turns go on", "127.0.0.1:\(cluster.port)", "is reached again")
        }

        /// The only worker dies while the database is away: the next one serves by what that one knew, accounts and keys, and what it records
        /// comes home later. A second death in that time too.
        @Test func workerDiesMeanwhile() throws {
            let (stage, cluster) = try stage(["CODEX_LB_REQUIRE_KEYS": "never"])
            let key = try stage.daemon.createKey("laptop")
            func turn(_ id: String, _ key: String) -> Int? {
                let headers = [Self.remote, ("X-Request-Id", id), ("Authorization", "Bearer \(key)")]
                return try? stage.daemon.post("/v1/responses", Stage.body(), headers: headers, seconds: 5).status
            }
            /// The id of one that was served. Each try has its own: one that was given up may be served later, and have a record.
            func served(_ name: String, _ seconds: Double) throws -> String {
                var tries = 0
                let isServed = eventually(seconds) {
                    tries += 1
                    return turn("\(name)-\(tries)", key) == 200
                }
                try #require(isServed, "nobody serves \(name)")
                return "\(name)-\(tries)"
            }
            var ids = [try served("before", 5)]
            try cluster.stop()
            defer { try? cluster.start() }
            for number in 1...2 {
                let pid = try #require(stage.daemon.pid("worker", 0))
                kill(pid, SIGKILL)
                ids.append(try served("away-\(number)", 10))
                #expect(stage.daemon.pid("worker", 0) != pid)
                #expect(turn("stranger", "sk-clb-x") == 401)
            }
            #expect(try eventually(5, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            try cluster.start()
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            for id in ids { _ = try stage.daemon.record(id) }
        }

        /// Who reads usage just when the database goes is not kept for the pool's whole time (30 s): it is answered when that is known.
        @Test func readAsItGoes() throws {
            let (stage, cluster) = try stage(["CODEX_LB_DATABASE_POOL_TIMEOUT_SECONDS": "30"])
            #expect(try eventually(2) { try stage.daemon.get("/v1/usage").status == 200 })
            try cluster.stop(.immediate)
            let start = Date()
            let usage = try stage.daemon.get("/v1/usage")
            #expect(usage.status == 503 && usage.errorCode == "database_unavailable", "\(usage.status) \(usage.text)")
            #expect(Date().timeIntervalSince(start) < 15)
            try cluster.start()
            #expect(try eventually(15, every: 0.1) { try stage.daemon.get("/v1/usage").status == 200 })
        }

        /// Restarted again and again under load, orderly and as in a crash: no turn notices, no record is lost or doubled.
        @Test(arguments: [(PostgresCluster.Shutdown.fast, Database.postgresql), (.immediate, .postgresql), (.fast, .bouncer)])
        func restarted(_ how: PostgresCluster.Shutdown, _ database: Database) throws {
            let stage = try Stage("a", workers: 2, on: database)
            let cluster = try PostgresCluster.shared()
            let load = Load(stage, pause: 5_000)
            for _ in 0..<4 {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 100 })
                try cluster.restart(how)
            }
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            let before = load.count
            #expect(eventually(20) { load.count >= before + 100 })
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count, "a turn failed or was sent twice")
        }

        /// Its sessions are ended by force again and again, in the middle of batches: whether a batch was stored is unknown each time,
        /// and still it is there once.
        @Test func sessionsEnded() throws {
            let (stage, cluster) = try stage(workers: 2)
            let load = Load(stage, pause: 2_000)
            var ended = 0
            for _ in 0..<25 {
                let before = load.count
                #expect(eventually(20) { load.count >= before + 40 })
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'codex-lb'"
                ended += Int(try cluster.sql(end)) ?? 0
            }
            #expect(ended >= 20)
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count, "a turn failed or was sent twice")
        }

        /// Turned read-only under load: connections to it are given up, and taken up again when it takes writes.
        @Test func readOnly() throws {
            let (stage, cluster) = try stage()
            let load = Load(stage, clients: 2, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            try cluster.alterSystem("default_transaction_read_only", "on")
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            expect(stage.daemon, tells: "read-only")
            let before = load.count
            #expect(eventually(20) { load.count >= before + 50 }, "turns do not go on")
            try cluster.alterSystem("default_transaction_read_only", nil)
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count)
        }

        /// Turned read-only while several batches are on their way over one connection: each of them is sent again.
        @Test func readOnlyInTheMiddle() throws {
            let (stage, cluster) = try stage()
            let name = try #require(stage.daemon.databaseName)
            let holder = try cluster.hold("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE", in: name)
            for i in 0..<6 { #expect(try stage.turn("req-\(i)").types.last == "response.completed") }
            try cluster.alterSystem("default_transaction_read_only", "on")
            // Those until now may be one batch, which began before; these are others.
            for i in 6..<8 { #expect(try stage.turn("req-\(i)").types.last == "response.completed") }
            try holder.end()
            #expect(stage.daemon.waitLog("read-only"))
            try cluster.alterSystem("default_transaction_read_only", nil)
            try stage.expectOneRecord(of: (0..<8).map { "req-\($0)" })
            #expect(try eventually(5) { try stage.metric("codex_lb_journal_bytes") == 0 })
        }

        /// The primary ends and its standby takes over: the URL names both, and nothing else has to be done.
        @Test func failover() throws {
            let primary = try PostgresCluster()
            let name = try primary.createDatabase()
            let standby = try PostgresCluster(standbyOf: primary)
            let user = "\(PostgresCluster.user):\(PostgresCluster.encodedPassword)"
            // The standby stands first on purpose: a server that takes no writes is passed over.
            let url = "postgresql://\(user)@127.0.0.1:\(standby.port),127.0.0.1:\(primary.port)/\(name)"
            let stage = try Stage("a", environment: ["CODEX_LB_DATABASE_URL": url])
            // The pool's further connections come after READY, and each of them is at the standby for some milliseconds.
            #expect(try eventually(5) { try primary.sessions(of: name) > 0 && standby.sessions(of: name) == 0 })
            let load = Load(stage, clients: 2, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            // An orderly end waits until the standby has everything.
            try primary.stop()
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            try standby.promote()
            #expect(try eventually(15, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            let before = load.count
            #expect(eventually(20) { load.count >= before + 50 })
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(try standby.sessions(of: name) > 0)
        }

        /// A standby that took over lacks the last change: its next one has a version that the workers know already. It counts all the same.
        @Test func versionWentBack() throws {
            let (stage, cluster) = try stage()
            let name = try #require(stage.daemon.databaseName)
            #expect(try stage.health() == (200, "ok", "ok"))
            try cluster.sql(
                """
                UPDATE accounts SET state = 'paused';
                UPDATE state SET value = CAST(CAST(value AS BIGINT) - 1 AS TEXT) WHERE key = 'snapshot_version'
                """, in: name)
            #expect(try eventually(2, every: 0.05) { try stage.health().code == 503 })
        }

        /// Black-holed for 15 s: connections are taken and nobody answers. Turns go on, the loop answers at once, nothing is lost.
        @Test func blackHoled() throws {
            let (stage, cluster) = try stage(workers: 2)
            let load = Load(stage, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            cluster.freeze()
            let end = Date(timeIntervalSinceNow: 15)
            defer { cluster.thaw() }
            #expect(try eventually(10, every: 0.1) { try stage.health() == (200, "degraded", "unreachable") })
            var slowest = 0.0
            var counts = [load.count]
            while Date() < end {
                let start = Date()
                #expect(try stage.daemon.get("/health/live").status == 200)
                slowest = max(slowest, Date().timeIntervalSince(start))
                let before = load.count
                #expect(eventually(5) { load.count >= before + 20 }, "turns do not go on")
                counts.append(load.count)
            }
            #expect(slowest < bound(0.5, debug: 2), "the loop stood still for \(slowest) s")
            #expect(try stage.health() == (200, "degraded", "unreachable"))
            cluster.thaw()
            #expect(try eventually(20, every: 0.1) { try stage.health() == (200, "ok", "ok") })
            let finished = load.stop()
            try stage.expectOneRecord(of: finished)
            #expect(stage.calls("a") == finished.count, "a turn failed or was sent twice")
        }

        /// A stop while the database is away keeps the records in a file, and the next start stores them.
        @Test func stoppedWhileDown() throws {
            let (stage, cluster) = try stage()
            try cluster.stop()
            for i in 0..<20 { #expect(try stage.turn("kept-\(i)").types.last == "response.completed") }
            #expect(stage.daemon.stop(15) == .code(0), "it waits for a database that does not come")
            expect(stage.daemon.log, has: "kept for the next start")
            try cluster.start()
            try stage.daemon.start()
            expect(stage.daemon, tells: "20 usage records of an earlier run stored")
            try stage.expectOneRecord(of: (0..<20).map { "kept-\($0)" })
        }

        /// kill -9 of a worker while the database is away: the others serve on; its journal is brought home by its successor.
        @Test func workerKilledWhileDown() throws {
            let (stage, cluster) = try stage(workers: 2)
            let load = Load(stage, pause: 5_000)
            #expect(eventually(20) { load.count >= 50 })
            try cluster.stop()
            let before = load.count
            #expect(eventually(20) { load.count >= before + 50 })
            let old = try #require(stage.daemon.killRole("worker", 0))
            let after = load.count
            #expect(eventually(20) { load.count >= after + 50 }, "turns do not go on")
            try cluster.start()
            #expect(try eventually(20, every: 0.1) { try stage.metric("codex_lb_workers_ready") == 2 })
            #expect(stage.daemon.pid("worker", 0) != old)
            try stage.expectOneRecord(of: load.stop())
        }

        /// kill -9 of the supervisor while the database is away, in the middle of a stop too: its workers keep what they could not store for
        /// the next start.
        @Test(arguments: [false, true]) func supervisorKilledWhileDown(_ isStopping: Bool) throws {
            let stage = try Stage(
                "a", workers: 2, on: .postgresql, environment: ["CODEX_LB_SHUTDOWN_DRAIN_TIMEOUT_SECONDS": "1"])
            let cluster = try PostgresCluster.shared()
            try cluster.stop()
            for i in 0..<20 { #expect(try stage.turn("kept-\(i)").types.last == "response.completed") }
            let children = stage.daemon.fleetPIDs()
            if isStopping {
                stage.daemon.child?.signal(SIGTERM)
                #expect(stage.daemon.waitLog("stopping"))
            }
            stage.daemon.child?.signal(SIGKILL)
            #expect(eventually(20) { children.allSatisfy { !Daemon.isAlive($0) } })
            try cluster.start()
            try stage.daemon.start()
            try stage.expectOneRecord(of: (0..<20).map { "kept-\($0)" })
        }

        /// A second signal while the database is away: the end is immediate, and the records are kept.
        @Test func secondSignalWhileDown() throws {
            let (stage, cluster) = try stage()
            try cluster.stop()
            for i in 0..<20 { #expect(try stage.turn("kept-\(i)").types.last == "response.completed") }
            stage.daemon.child?.signal(SIGTERM)
            #expect(stage.daemon.waitLog("stopping"))
            stage.daemon.child?.signal(SIGTERM)
            #expect(stage.daemon.child?.wait(3)?.isRefusal == true)
            try cluster.start()
            try stage.daemon.start()
            try stage.expectOneRecord(of: (0..<20).map { "kept-\($0)" })
        }

        /// A read of the snapshot that is cancelled in its transaction takes nothing else with it: the next one works.
        @Test func snapshotCancelled() throws {
            let (stage, cluster) = try stage(["CODEX_LB_DATABASE_POOL_SIZE": "1", "CODEX_LB_DATABASE_MAX_OVERFLOW": "0"])
            let name = try #require(stage.daemon.databaseName)
            let holder = try cluster.hold("BEGIN; LOCK TABLE client_keys IN ACCESS EXCLUSIVE MODE", in: name)
            try cluster.sql("UPDATE state SET value = '1000' WHERE key = 'snapshot_version'", in: name)
            let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = '\(name)' AND wait_event_type = 'Lock'"
            #expect(try eventually(5, every: 0.02) { try cluster.sql(cancel) == "1" })
            #expect(stage.daemon.waitLog("canceling statement"))
            try holder.end()
            #expect(try eventually(5, every: 0.1) { try stage.daemon.get("/health/ready").json["snapshot_version"] as? Int == 1000 })
            _ = try stage.turn("after")
            try stage.expectOneRecord(of: ["after"])
        }

        // MARK: TLS

        /// A server with TLS: its certificate is verified when the URL says so, and everything works over it; another certificate is refused.
        @Test func tls() throws {
            let cluster = try PostgresCluster.shared()
            let certificate = try cluster.enableTLS()
            let name = try cluster.createDatabase()
            let url = cluster.url(name, parameters: "sslmode=verify-full&sslrootcert=\(certificate)")
            let stage = try Stage("a", environment: ["CODEX_LB_DATABASE_URL": url])
            for i in 0..<20 { #expect(try stage.turn("tls-\(i)").types.last == "response.completed") }
            try stage.expectOneRecord(of: (0..<20).map { "tls-\($0)" })
            let plain =
                "SELECT count(*) FILTER (WHERE NOT ssl), count(*) FILTER (WHERE ssl) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = '\(name)' AND application_name = 'codex-lb'"
            #expect(try cluster.sql(plain) == "0|t")
            let other = try Daemon([
                "CODEX_LB_DATABASE_URL": cluster.url(name, parameters: "sslmode=verify-full&sslrootcert=/etc/ssl/certs/ca-certificates.crt")
            ])
            try other.launch()
            #expect(other.child?.wait(10)?.isRefusal == true)
            expect(other.log, has: "TLS", "certificate", "sslrootcert")
        }

        // MARK: The pool

        /// No connection becomes free in time: the caller has its 503 when the pool's time is up, and turns do not care.
        @Test func poolExhausted() throws {
            let (stage, cluster) = try stage(["CODEX_LB_DATABASE_POOL_SIZE": "1", "CODEX_LB_DATABASE_MAX_OVERFLOW": "0"])
            let name = try #require(stage.daemon.databaseName)
            let holder = try cluster.hold("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE", in: name)
            #expect(try stage.turn("first").types.last == "response.completed")
            // The only connection waits for the table now.
            #expect(eventually(5, every: 0.001) { cluster.waitsForLock(in: name) })
            let start = Date()
            let usage = try stage.daemon.get("/v1/usage")
            let seconds = Date().timeIntervalSince(start)
            #expect(usage.status == 503 && usage.errorCode == "database_pool_timeout", "\(usage.status) \(usage.text)")
            #expect(seconds > 0.8 && seconds < bound(1.8, debug: 5), "\(seconds) s")
            #expect(try stage.turn("second").types.last == "response.completed")
            try holder.end()
            try stage.expectOneRecord(of: ["first", "second"])
            #expect(try eventually(5) { try stage.daemon.get("/v1/usage").status == 200 })
            expect(stage.daemon, tells: "became free within 1 s", "CODEX_LB_DATABASE_POOL_SIZE")
        }

        /// One connection for everything: reads and changes of accounts have their turn however busy the records keep it.
        @Test func poolOfOne() throws {
            let (stage, _) = try stage([
                "CODEX_LB_DATABASE_POOL_SIZE": "1", "CODEX_LB_DATABASE_MAX_OVERFLOW": "0", "CODEX_LB_REQUIRE_KEYS": "never",
            ])
            let load = Load(stage, pause: 1_000)
            #expect(eventually(20) { load.count >= 100 })
            // The pool's patience is a second, which one of them may miss on a machine that has other things to do.
            let good = try (0..<20).count { _ in try stage.daemon.get("/v1/usage").status == 200 }
            #expect(good >= 19, "\(good) of 20 reads had their turn")
            let key = try stage.daemon.createKey("laptop")
            let headers = [Self.remote, ("Authorization", "Bearer \(key)")]
            #expect(try eventually(2) { try stage.daemon.get("/v1/usage", headers: headers).status == 200 })
            try stage.expectOneRecord(of: load.stop())
        }

        /// A record that the database refuses for what it holds is set aside alone, in a file; all others are stored.
        @Test func poison() throws {
            let (stage, cluster) = try stage(["CODEX_LB_DATABASE_POOL_SIZE": "1", "CODEX_LB_DATABASE_MAX_OVERFLOW": "0"])
            let name = try #require(stage.daemon.databaseName)
            try cluster.sql("ALTER TABLE usage_records ADD CONSTRAINT mine CHECK (model_asked <> 'poison')", in: name)
            // Together in one batch: the table is locked until all of them wait.
            let holder = try cluster.hold("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE", in: name)
            for i in 0..<8 {
                let body = Stage.body(model: i == 5 ? "poison" : "gpt-5.4")
                #expect(try stage.daemon.post("/v1/responses", body, headers: [("X-Request-Id", "req-\(i)")]).status == 200)
            }
            try holder.end()
            try stage.expectOneRecord(of: (0..<8).filter { $0 != 5 }.map { "req-\($0)" })
            #expect(stage.daemon.waitLog("db spool retry"))
            #expect(try eventually(5) { try stage.metric("codex_lb_journal_bytes") == 0 })
            #expect(try stage.daemon.records().count == 7)
        }

        /// Connections beyond the pool's size are opened under load and closed when idle, and never more than size and overflow.
        @Test func poolBounds() throws {
            let (stage, cluster) = try stage(["CODEX_LB_DATABASE_POOL_SIZE": "2", "CODEX_LB_DATABASE_MAX_OVERFLOW": "2"])
            let name = try #require(stage.daemon.databaseName)
            let holder = try cluster.hold("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE", in: name)
            let group = DispatchGroup()
            for _ in 0..<8 {
                group.enter()
                Thread.detachNewThread {
                    _ = try? stage.daemon.get("/v1/usage")  // what it says is another test's matter
                    group.leave()
                }
            }
            var most = 0
            #expect(
                !(try eventually(4) {
                    most = max(most, try cluster.sessions(of: name))
                    return most > 4
                }))
            #expect(most == 4)
            try holder.end()
            group.wait()
            #expect(try eventually(20, every: 0.2) { try cluster.sessions(of: name) <= 2 })
        }
    }
}
