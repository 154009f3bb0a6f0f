import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// Whose files an instance's are, and where they really are.
    @Suite struct Places {
        /// What root does by hand to a service's files leaves them the service's.
        @Test(.enabled(if: getuid() == 0, "another user's files need root")) func rootLeavesFilesToTheService() throws {
            let daemon = try Daemon()
            let (data, nobody): (String, uid_t) = (daemon.directory + "/data", 65534)
            try FileManager.default.createDirectory(atPath: data, withIntermediateDirectories: true)
            #expect(chmod(daemon.directory, 0o755) == 0 && chown(data, nobody, nobody) == 0 && chmod(data, 0o700) == 0)
            daemon.environment["CODEX_LB_DATA_DIR"] = data
            daemon.environment["CODEX_LB_RUNTIME_DIR"] = data + "/run"
            let upstream = try FakeUpstream()
            try daemon.addAccount("a", baseURL: upstream.baseURL, key: Stage.key("a"))
            func strangers() throws -> [String] {
                try FileManager.default.subpathsOfDirectory(atPath: data).filter { name in
                    var info = stat()
                    return lstat(data + "/" + name, &info) == 0 && (info.st_uid != nobody || info.st_gid != nobody)
                }
            }
            #expect(try strangers() == [])
            let backup = String(try daemon.run("db", "backup").output.split(separator: " ")[0])
            #expect(try daemon.run("db", "restore", backup).isGood)
            #expect(try daemon.run("db", "recover", "--replace").isGood)
            #expect(try daemon.run("key", "rotate").isGood)
            #expect(try daemon.run("keys", "create", "k").isGood)
            #expect(try strangers() == [])
            var info = stat()
            #expect(stat(data + "/store.db", &info) == 0 && info.st_mode & 0o777 == 0o600)
            // The service can work with all of it.
            let binary = daemon.directory + "/codex-lb"
            try FileManager.default.copyItem(atPath: Daemon.binary, toPath: binary)
            chmod(binary, 0o755)
            let check = try Child(
                "/usr/bin/setpriv", ["--reuid", "65534", "--regid", "65534", "--clear-groups", binary, "accounts", "pause", "a"],
                environment: daemon.environment.merging(["PATH": "/usr/bin:/bin"]) { a, _ in a }, errors: daemon.directory + "/errors")
            #expect(check.wait(20) == .code(0), "\((try? String(contentsOfFile: daemon.directory + "/errors", encoding: .utf8)) ?? "")")
        }

        /// A database behind a symbolic link is one database, whatever names lead to it; behind two hard links it is refused.
        @Test func oneFileOneServer() throws {
            let stage = try Stage("a")
            let link = stage.daemon.directory + "/link.db"
            symlink(stage.daemon.database, link)
            let other = try Daemon(["CODEX_LB_DATABASE_URL": "sqlite:///\(link)"])
            try FileManager.default.createDirectory(atPath: other.data, withIntermediateDirectories: true)
            try FileManager.default.copyItem(atPath: stage.daemon.data + "/encryption.key", toPath: other.data + "/encryption.key")
            other.environment["CODEX_LB_DATABASE_MIGRATION_LOCK_TIMEOUT_SECONDS"] = "1"
            try other.launch()
            #expect(other.child?.wait(15)?.isRefusal == true && other.log.contains(stage.daemon.database), "\(other.log)")
            // Rows that are in the log only are seen through the link too.
            _ = try stage.turn("seen")
            _ = try stage.daemon.record("seen")
            let copy = stage.daemon.directory + "/copy"
            try FileManager.default.createDirectory(atPath: copy, withIntermediateDirectories: true)
            for suffix in ["", "-wal"] {
                try FileManager.default.copyItem(atPath: stage.daemon.database + suffix, toPath: copy + "/store.db" + suffix)
            }
            unlink(link)
            symlink(copy + "/store.db", link)
            let output = stage.daemon.directory + "/saved.db"
            #expect(try other.run("db", "recover", "--output", output).isGood)
            let saved = try Daemon(["CODEX_LB_DATABASE_URL": "sqlite:///\(output)"])
            #expect(try saved.records().contains { $0["request_id"] as? String == "seen" })
            #expect(stage.daemon.stop() == .code(0))

            let second = stage.daemon.directory + "/second.db"
            #expect(Glibc.link(stage.daemon.database, second) == 0)
            try stage.daemon.launch()
            #expect(stage.daemon.child?.wait(15) == .code(78) && stage.daemon.log.contains("hard links"), "\(stage.daemon.log)")
            unlink(second)
            try stage.daemon.start()
        }

        /// An operator who upgrades by hand is not overruled by a command.
        @Test func nothingUpgradesBehindTheOperator() throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_MIGRATE_ON_STARTUP": "false"])
            #expect(try daemon.run("db", "upgrade", "--to", "0001").isGood)
            for command in [["accounts", "add", "a", "--base-url", "http://127.0.0.1:1", "--key-file", "-"], ["keys", "create", "k"]] {
                let result = try daemon.run(command, input: "x\n")
                #expect(
                    !result.isGood && result.errors.contains("codex-lb db upgrade") && result.errors.contains("0002"), "\(result.errors)")
            }
            #expect(try daemon.run("db", "current").output.contains("0001"))
            #expect(try daemon.run("db", "upgrade").isGood)
            #expect(try daemon.run("keys", "create", "k").isGood)
        }

        /// Every line of a server is of one form, those of its one-shot children too.
        @Test func oneFormOfLines() throws {
            let daemon = try Daemon(["CODEX_LB_LOG_FORMAT": "json"])
            #expect(try daemon.run("db", "upgrade", "--to", "0001").isGood)
            try daemon.start()
            #expect(daemon.stop() == .code(0))
            let lines = daemon.log.split(separator: "\n")
            #expect(lines.contains { $0.contains("revision \(Revisions.afterFirst.joined(separator: ", ")) applied") })
            for line in lines { #expect((try? JSONSerialization.jsonObject(with: Data(line.utf8))) != nil, "\(line)") }
        }
    }
}
