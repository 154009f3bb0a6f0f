import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// A new encryption key for a store, whatever happens on the way.
    @Suite struct KeyRotations {
        /// The steps of `KeyRotation.Step`; before the first three the store still belongs to the old key.
        private static let (steps, stepsBeforeCommit) = (6, 3)

        private func keyFile(_ daemon: Daemon) -> String { daemon.data + "/encryption.key" }

        private func fingerprint(_ database: BareDatabase) throws -> String {
            try database.sql("SELECT value FROM state WHERE key = 'key_fingerprint'")
        }

        /// PostgreSQL ends a session some milliseconds after its client.
        private func rotate(_ daemon: Daemon, _ options: String...) throws -> CommandResult {
            var result = try daemon.run(["key", "rotate"] + options)
            try eventually(5, every: 0.05) {
                guard result.errors.contains("stop every instance first") else { return true }
                result = try daemon.run(["key", "rotate"] + options)
                return false
            }
            return result
        }

        /// A turn of a client with its key from afar reaches the upstream with the account's key.
        private func expectService(_ stage: Stage, _ key: String, _ what: String) throws {
            let before = stage.calls("a")
            let answer = try stage.daemon.post(
                "/v1/responses", Stage.body(), headers: [("X-Forwarded-For", "192.0.2.7"), ("Authorization", "Bearer \(key)")])
            #expect(answer.types.last == "response.completed" && stage.calls("a") == before + 1, "\(what): \(answer.text)")
        }

        /// kill -9 before each step: the next start serves with what was sealed, whichever key it is sealed with.
        @Test(arguments: Database.both) func killed(_ kind: Database) throws {
            let stage = try Stage("a", workers: 2, on: kind)
            let (daemon, database) = (stage.daemon, BareDatabase(of: stage.daemon))
            let key = try daemon.createKey("laptop")
            #expect(daemon.stop() == .code(0))
            for step in 1...Self.steps {
                let before = try fingerprint(database)
                let killed = try rotate(daemon, "--die-before", String(step))
                #expect(killed.exit == .signal(SIGKILL), "step \(step): \(killed)")
                let after = try fingerprint(database)
                #expect((after == before) == (step <= Self.stepsBeforeCommit), "step \(step)")
                try daemon.start(workers: 2)
                try expectService(stage, key, "step \(step)")
                #expect(daemon.stop() == .code(0))
                #expect(try fingerprint(database) == after)
                if step > Self.stepsBeforeCommit {
                    #expect(access(keyFile(daemon) + ".new", F_OK) != 0, "step \(step)")
                    #expect(access("\(keyFile(daemon)).old.\(before)", F_OK) == 0, "step \(step)")
                }
            }
        }

        /// Whole: the old key opens nothing that is left in the database, backups from before need it, and the command says so.
        @Test(arguments: Database.both) func nothingOpensWithTheOld(_ kind: Database) throws {
            let stage = try Stage("a", "b", on: kind)
            let (daemon, database) = (stage.daemon, BareDatabase(of: stage.daemon))
            let key = try daemon.createKey("laptop")
            #expect(try daemon.run("accounts", "remove", "b").isGood)
            #expect(daemon.stop() == .code(0))
            let backup = try #require(try daemon.run("db", "backup", "--json").json["path"] as? String)
            let before = try fingerprint(database)
            let result = try rotate(daemon)
            let kept = "\(keyFile(daemon)).old.\(before)"
            #expect(result.isGood && result.output.contains(kept) && result.output.contains("backups made until now"), "\(result)")
            #expect(result.errors.isEmpty, "\(result)")
            #expect(result.output.contains("every other instance") == (kind == .postgresql))
            var info = stat()
            for file in [keyFile(daemon), kept] { #expect(stat(file, &info) == 0 && info.st_mode & 0o777 == 0o600, "\(file)") }
            #expect(access(keyFile(daemon) + ".new", F_OK) != 0)

            // Whatever is sealed begins with 1 and the key's id; the pepper stands there as base64url.
            let id = stride(from: 0, to: 16, by: 2).map { UInt8(before.dropFirst($0).prefix(2), radix: 16)! }
            let head = Data([1] + id)
            let text = head.base64EncodedString().replacingOccurrences(of: "+", with: "-").replacingOccurrences(of: "/", with: "_")
            if kind == .sqlite {
                for file in [database.place, database.place + "-wal"] where access(file, F_OK) == 0 {
                    let bytes = try #require(FileManager.default.contents(atPath: file))
                    for trace in [head, Data(text.utf8), Data(before.utf8)] { #expect(bytes.range(of: trace) == nil, "\(file)") }
                }
            } else {
                let hex = head.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
                #expect(try database.sql("SELECT count(*) FROM accounts WHERE encode(credentials, 'hex') LIKE '\(hex)%'") == "0")
                #expect(try database.sql("SELECT count(*) FROM state WHERE value LIKE '\(text)%' OR value = '\(before)'") == "0")
            }
            try daemon.start()
            try expectService(stage, key, "rotated")
            #expect(daemon.stop() == .code(0))

            // The way back: the backup with the key that was kept for it.
            #expect(try daemon.restore(backup).isGood)
            try daemon.launch()
            #expect(daemon.child?.wait(15)?.isRefusal == true && daemon.log.contains("cp -p \(kept) \(keyFile(daemon))"), "\(daemon.log)")
            try FileManager.default.removeItem(atPath: keyFile(daemon))
            try FileManager.default.copyItem(atPath: kept, toPath: keyFile(daemon))
            try daemon.start()
            try expectService(stage, key, "restored")
        }

        /// Under a running server it is refused with one line, also from a data directory beside it, and nothing changes.
        @Test(arguments: Database.both) func refusedWhileServing(_ kind: Database) throws {
            let stage = try Stage("a", on: kind)
            let (daemon, database) = (stage.daemon, BareDatabase(of: stage.daemon))
            let before = try fingerprint(database)
            let other = daemon.directory + "/other"
            try FileManager.default.createDirectory(atPath: other, withIntermediateDirectories: true)
            try FileManager.default.copyItem(atPath: keyFile(daemon), toPath: other + "/encryption.key")
            for options in [[], ["--data-dir", other, "--url", database.url]] {
                let result = try daemon.run(["key", "rotate"] + options)
                #expect(result.exit == .code(1) && result.errors.localizedCaseInsensitiveContains("stop "), "\(result)")
                #expect(result.errors.split(separator: "\n").count == 1, "\(result)")
            }
            #expect(try fingerprint(database) == before)
            #expect(access(keyFile(daemon) + ".new", F_OK) != 0)
            #expect(try stage.turn().types.last == "response.completed")
        }
    }
}
