import DaemonHarness
import Foundation
import Platform
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// docs/operations.md: who changed what, and when, and what it was before.
    @Suite struct Audits {
        private static let isRoot = geteuid() == 0
        private static let setpriv = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        private static func user(_ id: uid_t) -> String {
            getpwuid(id).map { "\(String(cString: $0.pointee.pw_name)) (\(id))" } ?? "uid \(id)"
        }

        /// Oldest first.
        private func rows(_ daemon: Daemon) throws -> [[String: Any]] {
            let result = try daemon.run("audit", "--last", "1000", "--json")
            #expect(result.isGood, "\(result)")
            return result.jsonList.reversed()
        }

        /// One row for each order that changes something, with a server and without one; none for orders that fail or change nothing; no secret.
        @Test(arguments: Database.both, [true, false]) func everyOrder(_ kind: Database, _ isRunning: Bool) throws {
            let daemon = try Daemon(on: kind)
            if isRunning { try daemon.start() }
            #expect(try daemon.run("audit").output == "no change yet\n" || !isRunning)
            var want: [String] = []
            func order(_ arguments: [String], _ action: String, _ subject: String, input: String? = nil) throws {
                let result = try daemon.run(arguments, input: input)
                #expect(result.isGood, "\(arguments): \(result)")
                want.append("\(action) \(subject)")
            }
            let key = "sk-plainSecretOne"
            try order(
                ["accounts", "add", "a", "--base-url", "http://127.0.0.1:1/v1?sig=querySecret", "--key-file", "-"], "accounts.add", "a",
                input: key + "\n")
            try order(
                ["accounts", "set", "a", "--weight", "300", "--proxy", "http://name:proxySecret@127.0.0.1:2"], "accounts.set", "a")
            try order(
                ["accounts", "add", "a", "--base-url", "http://127.0.0.1:1/v1", "--key-file", "-", "--replace"], "accounts.replace", "a",
                input: "sk-plainSecretTwo\n")
            try daemon.importAccount("me", baseURL: "http://127.0.0.1:1", token: "tokenSecretOne", accountID: "w")
            want.append("accounts.add me")
            try daemon.importAccount("me", baseURL: "http://127.0.0.1:1", token: "tokenSecretTwo", accountID: "w")
            want.append("accounts.renew me")
            try order(["accounts", "pause", "a"], "accounts.pause", "a")
            try order(["accounts", "resume", "a"], "accounts.resume", "a")
            try order(["settings", "set", "routing.strategy", "fill_first"], "settings.set", "routing.strategy")
            try order(["settings", "unset", "routing.strategy"], "settings.unset", "routing.strategy")
            let plain = try daemon.createKey("laptop")
            want.append("keys.create laptop")
            try order(["keys", "revoke", "laptop"], "keys.revoke", "laptop")
            try order(["accounts", "remove", "a"], "accounts.remove", "a")
            for arguments in [
                ["accounts", "pause", "nobody"], ["accounts", "remove", "a"], ["keys", "revoke", "laptop"],
                ["settings", "set", "routing.single_account", "nobody"], ["settings", "unset", "routing.nonsense"],
            ] { #expect(!(try daemon.run(arguments).isGood), "\(arguments)") }
            #expect(try daemon.run("settings", "unset", "routing.strategy").isGood)
            #expect(try daemon.run("accounts", "resume", "me").isGood)

            let rows = try rows(daemon)
            #expect(rows.map { "\($0["action"] ?? "") \($0["subject"] ?? "")" } == want)
            #expect(rows.allSatisfy { $0["actor"] as? String == Self.user(geteuid()) }, "\(rows)")
            #expect(rows.allSatisfy { !($0["detail"] as? [String: Any] ?? [:]).isEmpty && $0["time"] is String })
            let weight = (rows[1]["detail"] as? [String: Any])?["weight"] as? [String: Int]
            #expect(weight == ["old": 100, "new": 300])
            let table = try daemon.run("audit", "--last", "3").output
            #expect(table.split(separator: "\n").count == 4 && table.contains("state active → revoked"), "\(table)")

            let stored = try BareDatabase(of: daemon).sql("SELECT actor, action, subject, detail FROM audit")
            #expect(stored.contains("http://127.0.0.1:2"))
            for secret in ["Secret", String(plain.dropFirst(7))] { #expect(!stored.contains(secret)) }
            // Written by the server, read without it.
            if isRunning {
                #expect(daemon.stop() == .code(0))
                #expect(try self.rows(daemon).count == want.count)
            }
            guard kind == .sqlite else { return }
            for suffix in ["", "-wal"] {
                let bytes = FileManager.default.contents(atPath: daemon.database + suffix) ?? Data()
                for secret in ["SecretOne", "SecretTwo", "proxySecret", String(plain.dropFirst(7))] {
                    #expect(bytes.range(of: Data(secret.utf8)) == nil, "\(secret) in \(suffix)")
                }
            }
        }

        /// What stands in the environment counts for root alone.
        @Test(arguments: Database.both, [true, false]) func sudo(_ kind: Database, _ isRunning: Bool) throws {
            let daemon = try Daemon(on: kind)
            if isRunning { try daemon.start() }
            let environment = ["SUDO_UID": "4242", "SUDO_USER": "alice\u{1B}[2J"]
            #expect(try daemon.run("settings", "set", "routing.strategy", "fill_first", environment: environment).isGood)
            let want = Self.isRoot ? "alice\\u001b[2J (4242) by sudo" : Self.user(geteuid())
            #expect(try rows(daemon).map { $0["actor"] as? String } == [want])
        }

        /// A server of a service's user: root is told from it, and who is not root can't say to be another.
        @Test(.enabled(if: isRoot, "another user needs root")) func service() throws {
            let daemon = try Daemon()
            chown(daemon.directory, 65_534, 65_534)
            daemon.runner = Self.setpriv
            try daemon.start()
            let claim = ["SUDO_UID": "4242", "SUDO_USER": "alice"]
            #expect(try daemon.run("settings", "set", "routing.strategy", "fill_first", environment: claim).isGood)
            daemon.runner = []
            #expect(try daemon.run("settings", "set", "routing.strategy", "round_robin").isGood)
            #expect(try daemon.run("settings", "unset", "routing.strategy", environment: claim).isGood)
            let want = [Self.user(65_534), Self.user(0), "alice (4242) by sudo"]
            #expect(try rows(daemon).map { $0["actor"] as? String } == want)
        }

        /// A user that the command itself names, past the command line, is put right by what the socket tells.
        @Test func forged() throws {
            let daemon = try Daemon()
            try daemon.start()
            func field(_ number: UInt64, _ bytes: [UInt8]) -> [UInt8] { varint(number << 3 | 2) + varint(UInt64(bytes.count)) + bytes }
            func varint(_ number: UInt64) -> [UInt8] {
                number < 128 ? [UInt8(number)] : [UInt8(number & 127) | 128] + varint(number >> 7)
            }
            // Frame { correlation 1, store_command { set_setting, given_by { user 4242 } } }
            let order = field(21, field(1, Array("routing.strategy".utf8)) + field(2, Array("fill_first".utf8)))
            let frame = [8, 1] + field(9, order + field(40, [8] + varint(4242)))
            let socket = try Sockets.connectUnix(daemon.data + "/run/control.sock")
            defer { close(socket) }
            let bytes = [0, 0, 0, UInt8(frame.count)] + frame
            #expect(send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count)
            var answer = [UInt8](repeating: 0, count: 1_024)
            #expect(recv(socket, &answer, answer.count, 0) > 0)
            #expect(try rows(daemon).map { $0["actor"] as? String } == [Self.user(geteuid())])
        }

        /// The schema is from before: the server serves, changes work, nothing is noted, and who asks is told why.
        @Test(arguments: Database.both) func olderSchema(_ kind: Database) throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST": "false"], on: kind)
            #expect(try daemon.run("db", "upgrade", "--to", "0006").isGood)
            let database = BareDatabase(of: daemon)
            try database.sql("CREATE TABLE audit (mine TEXT)")
            try daemon.start()
            #expect(daemon.log.contains("going on with the old one"), "\(daemon.log)")
            #expect(try daemon.run("settings", "set", "routing.strategy", "fill_first").isGood)
            #expect(try daemon.run("settings", "get", "routing.strategy").output == "fill_first\n")
            let told = try daemon.run("audit")
            #expect(told.exit == .code(1) && told.errors.contains("0007") && told.errors.contains("db upgrade"), "\(told)")
            #expect(daemon.stop() == .code(0))
            #expect(try database.sql("SELECT count(*) FROM audit") == "0")
            try database.sql("DROP TABLE audit")
            #expect(try daemon.run("db", "upgrade").isGood)
            #expect(try rows(daemon).isEmpty)
            #expect(try daemon.run("settings", "unset", "routing.strategy").isGood)
            #expect(try rows(daemon).count == 1)
        }
    }
}
