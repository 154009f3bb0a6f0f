import DaemonHarness
import Loop
import Settings
import Store
import Testing
import Vocabulary

@testable import PostgresStore

/// A worker's way into PostgreSQL, on a loop of its own, with a real server.
@Suite(.serialized) struct RecordLaneTests {
    /// A loop with a pool of `size` connections and a queue, swept as a worker does.
    private final class Ground {
        let loop = EventLoop()
        let pool: PostgresPool
        let queue: RecordQueue
        let database: String
        private var timer: LoopTimer!
        private var endBy = Instant.never

        init(size: Int) throws {
            let cluster = try Cluster.shared()
            database = try cluster.createDatabase()
            guard case .postgresql(let url) = try DatabaseURL.parse(cluster.url(database), setting: "test", absolute: { $0 }) else {
                preconditionFailure("a PostgreSQL URL")
            }
            let key = cluster.directory + "/queue-\(database).key"
            try PostgresStore.upgrade(
                url, keyPath: key, appVersion: "queue", lockWaitMilliseconds: 10_000, now: WallTime(milliseconds: 1_800_000_000_000)
            ).close()
            pool = PostgresPool(loop, PostgresTarget(url), PoolMachine.Limits(size: size, overflow: 0, waitMilliseconds: 5_000))
            queue = RecordQueue(loop, pool)
            timer = LoopTimer(loop) { [unowned self] in
                pool.sweep(loop.now)
                queue.sweep(loop.now)
                if loop.now >= endBy { loop.stop() }
            }
        }

        /// Runs until `loop.stop()`, ten seconds at most.
        func run() {
            endBy = loop.now.adding(milliseconds: 10_000)
            timer.start(milliseconds: 10, repeating: 10)
            loop.run()
            timer.stop()
        }

        func count() throws -> String { try Cluster.shared().sql("SELECT count(*) FROM usage_records", in: database) }
    }

    @Test("A batch whose records could all not be read is answered in its turn, and holds up nothing")
    func empty() throws {
        let ground = try Ground(size: 1)
        var answered: [Int] = []
        for (number, records) in [[], [record(1)], [], [record(2)]].enumerated() {
            ground.queue.append(records) { setAside in
                #expect(setAside.isEmpty)
                answered.append(number)
                if answered.count == 4 { ground.loop.stop() }
            }
        }
        ground.run()
        #expect(answered == [0, 1, 2, 3])
        #expect(try ground.count() == "2")
    }

    @Test("Callers that always wait for the only connection do not keep the records from it")
    func fair() throws {
        let ground = try Ground(size: 1)
        var reads = 0
        func read() {
            ground.pool.rows(Queries.totals(ofKey: nil)) { _ in
                reads += 1
                read()
            }
        }
        for _ in 0..<4 { read() }
        var stored = 0
        for n in 0..<20 {
            ground.queue.append([record(n)]) { _ in
                stored += 1
                if stored == 20 { ground.loop.stop() }
            }
        }
        ground.run()
        #expect(stored == 20, "\(reads) reads meanwhile")
    }

    @Test("Who waits while the queue loses its connection gets another one, not that one")
    func lost() throws {
        let cluster = try Cluster.shared()
        let ground = try Ground(size: 1)
        let holder = try cluster.hold("BEGIN; LOCK TABLE usage_records IN ACCESS EXCLUSIVE MODE", in: ground.database)
        defer { try? holder.end() }  // the next test has a database of its own
        var (stored, read): (Bool, Result<[Int64], StoreError>?) = (false, nil)
        ground.queue.append([record(1)]) { _ in
            stored = true
            if read != nil { ground.loop.stop() }
        }
        var cut: LoopTimer!
        cut = LoopTimer(ground.loop) {
            ground.pool.rows(Queries.version) { result in
                read = result
                if stored { ground.loop.stop() }
            }
            do {
                try cluster.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '\(ground.database)' AND application_name = 'codex-lb'"
                )
                try holder.end()
            } catch {
                Issue.record(error)
            }
        }
        cut.start(milliseconds: 500)
        ground.run()
        cut.close()
        #expect(try read?.get() == [1])
        #expect(stored)
        #expect(try ground.count() == "1")
    }
}

@Suite struct ConnectingTests {
    @Test(
        "What may pass by waiting is told from what an operator must change",
        arguments: [
            ("Connection refused", StoreError.Kind.unreachable), ("SSL SYSCALL error: Connection reset by peer", .unreachable),
            ("SSL SYSCALL error: EOF detected", .unreachable), ("server closed the connection unexpectedly", .unreachable),
            ("server does not support SSL, but SSL was required", .refused), ("SSL error: certificate verify failed", .refused),
            ("fe_sendauth: no password supplied", .refused), ("FATAL:  57P03: the database system is starting up", .unreachable),
            ("FATAL:  28P01: password authentication failed for user \"u\"", .refused),
            ("FATAL:  53300: sorry, too many clients already", .exhausted), ("session is read-only", .readOnly),
        ])
    func connecting(_ reason: String, _ kind: StoreError.Kind) throws {
        guard
            case .postgresql(let url) = try DatabaseURL.parse("postgresql://u:secret@db.example/x", setting: "test", absolute: { $0 })
        else { preconditionFailure("a PostgreSQL URL") }
        let text = "connection to server at \"db.example\" (192.0.2.1), port 5432 failed: \(reason)\n"
        let error = PostgresFailure.connecting(text, PostgresTarget(url), url.hosts[0])
        #expect(error.kind == kind && !error.message.contains("secret"), "\(error)")
    }
}
