import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Small things that cost an operator an hour.
    @Suite struct SmallThings {
        /// A role that may not make tables: the line says what to grant.
        @Test func noRightToMakeTables() throws {
            let daemon = try Daemon(on: .postgresql)
            let bare = BareDatabase(of: daemon)
            try bare.sql(
                "REVOKE ALL ON SCHEMA public FROM PUBLIC; ALTER SCHEMA public OWNER TO postgres; GRANT USAGE ON SCHEMA public TO PUBLIC")
            try bare.sql("ALTER DATABASE \(bare.place) OWNER TO postgres")
            let result = try daemon.run("db", "upgrade", seconds: 30)
            #expect(!result.isGood && result.errors.contains("GRANT USAGE, CREATE ON SCHEMA"), "\(result.errors)")
        }

        /// A database of another encoding can't hold every name: refused before anything is made.
        @Test func notUTF8() throws {
            let daemon = try Daemon(on: .postgresql)
            let url = try #require(daemon.environment["CODEX_LB_DATABASE_URL"])
            let name = "latin_\(UUID().uuidString.prefix(8).lowercased())"
            let cluster = try PostgresCluster.shared()
            _ = try cluster.sql("CREATE DATABASE \(name) ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0", in: "postgres")
            defer { _ = try? cluster.sql("DROP DATABASE \(name)", in: "postgres") }
            let old = try #require(daemon.databaseName)
            let result = try daemon.run("db", "upgrade", "--url", url.replacingOccurrences(of: "/" + old, with: "/" + name), seconds: 30)
            #expect(!result.isGood && result.errors.contains("LATIN1") && result.errors.contains("createdb -E UTF8"), "\(result.errors)")
        }

        /// A backup that is broken off leaves no file.
        @Test func brokenOffBackup() throws {
            let stage = try Stage("a")
            _ = try stage.turn("one")
            #expect(stage.daemon.stop() == .code(0))
            // Large enough to be met in the middle.
            try BareDatabase(of: stage.daemon).sql(
                "CREATE TABLE pad (x BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200) INSERT INTO pad SELECT randomblob(1000000) FROM n"
            )
            let child = try Child(
                Daemon.binary, ["db", "backup"], environment: stage.daemon.environment, errors: stage.daemon.directory + "/backup.err")
            let hasBegun = child.stop {
                ((try? FileManager.default.contentsOfDirectory(atPath: stage.daemon.data)) ?? []).contains { $0.hasSuffix(".partial") }
            }
            #expect(hasBegun, "\(procText(stage.daemon.directory + "/backup.err"))")
            // It finds the order when it goes on.
            child.signal(SIGINT)
            child.signal(SIGCONT)
            #expect(child.wait(10) == .signal(SIGINT))
            // The database's own -wal and -shm may stay.
            let left = try FileManager.default.contentsOfDirectory(atPath: stage.daemon.data)
            #expect(!left.contains { $0.contains(".partial") || $0.contains(".backup.") }, "\(left)")
        }
    }
}
