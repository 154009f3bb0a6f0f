import DaemonHarness
import Foundation
import Testing

extension Integration {
    /// The settings as an operator asks for them.
    @Suite struct Configuration {
        /// What a setting amounts to; secrets are not shown; every documented name is there.
        @Test func show() throws {
            let daemon = try Daemon([
                "CODEX_LB_METRICS_TOKEN": "very-secret-token-1", "CODEX_LB_LOG_LEVEL": "INFO",
                "CODEX_LB_DATABASE_URL": "postgresql://u:secret@h/db",
            ])
            let all = try daemon.run("config", "show")
            #expect(all.isGood && !all.output.contains("secret"))
            #expect(all.output.contains(/(?m)^CODEX_LB_LOG_LEVEL=info +# environment$/), "\(all.output)")
            #expect(all.output.contains(/(?m)^CODEX_LB_METRICS_TOKEN=\*\*\* +# environment$/))
            #expect(all.output.contains(/(?m)^CODEX_LB_STICKINESS=true +# default$/))
            #expect(try daemon.run("config", "show", "CODEX_LB_DATA_DIR").output == daemon.data + "\n")
            let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
                .appendingPathComponent("docs/settings.md")
            let names = try String(contentsOf: page, encoding: .utf8).matches(of: /\| `(CODEX_LB_[A-Z_]+)`/).map { String($0.output.1) }
            #expect(names.count > 30)
            for name in names { #expect(all.output.contains(name + "="), "\(name)") }
            let wrong = try daemon.run("config", "show", "CODEX_LB_DATADIR")
            #expect(wrong.exit == .code(2) && wrong.errors.contains("CODEX_LB_DATA_DIR"))
        }

        /// One file instead of those that are looked for: what it says is shown with its line, a reload reads it anew, and it must be there.
        @Test func namedFile() throws {
            let daemon = try Daemon()
            let file = daemon.directory + "/of this server.env"
            func write(_ text: String) throws { try Data(text.utf8).write(to: URL(fileURLWithPath: file)) }
            daemon.environment["CODEX_LB_SETTINGS_FILE"] = file
            let missing = try daemon.run("config", "check")
            #expect(missing.exit == .code(2) && missing.errors.contains(file), "\(missing)")
            daemon.environment["CODEX_LB_SETTINGS_FILE"] = "-" + file
            #expect(try daemon.run("config", "check").isGood)
            daemon.environment["CODEX_LB_SETTINGS_FILE"] = "settings.env"
            #expect(try daemon.run("config", "check").exit == .code(2))
            daemon.environment["CODEX_LB_SETTINGS_FILE"] = file
            daemon.environment["CODEX_LB_WORKERS"] = nil
            try write("# two\nCODEX_LB_WORKERS=2\n")
            let shown = try daemon.run("config", "show").output
            #expect(shown.contains("CODEX_LB_WORKERS=2") && shown.contains("# \(file):2\n"), "\(shown)")
            try daemon.start(workers: nil)
            #expect(try daemon.run("ctl", "status", "--json").json["workers"] as? Int == 2)
            try write("CODEX_LB_WORKERS=3\n")
            #expect(try daemon.run("ctl", "reload").isGood)
            #expect(try daemon.run("ctl", "status", "--json").json["workers"] as? Int == 3)
            try write("CODEX_LB_WORKERS\n")
            let broken = try daemon.run("ctl", "reload")
            #expect(!broken.isGood && broken.errors.contains("\(file):1"), "\(broken)")
        }

        /// Live tables draw themselves anew on a terminal, survive the server's absence, and are refused where nobody could see them.
        @Test func watch() throws {
            let daemon = try Daemon()
            try daemon.start()
            for arguments in [["ctl", "status"], ["accounts", "list"]] {
                let blind = try daemon.run(arguments + ["--watch"])
                #expect(blind.exit == .code(2) && blind.errors.contains("terminal"), "\(blind)")
                #expect(try daemon.run(arguments + ["--watch", "--json"]).exit == .code(2))
                // script(1) gives it a terminal.
                let command = "stty rows 40 cols 150; timeout 5 \(Daemon.binary) \((arguments + ["--watch"]).joined(separator: " "))"
                daemon.runner = ["/bin/sh", "-c", "script -qec '\(command)' /dev/null"]
                let seen = try daemon.run()
                daemon.runner = []
                let screens = seen.output.components(separatedBy: "\u{1B}[H\u{1B}[2J").dropFirst()
                #expect(screens.count >= 2, "\(seen)")
                #expect(screens.allSatisfy { $0.contains(arguments[0] == "ctl" ? "listening" : "no account") }, "\(screens)")
            }
        }

        /// A misspelt name does nothing, and that is said: with the nearest one, at the start and by the check.
        @Test func misspelt() throws {
            let daemon = try Daemon(["CODEX_LB_LOG_LEVLE": "debug"])
            let check = try daemon.run("config", "check")
            #expect(check.exit == .code(2) && check.errors.contains("CODEX_LB_LOG_LEVLE") && check.errors.contains("CODEX_LB_LOG_LEVEL"))
            try daemon.start()
            #expect(daemon.log.contains("CODEX_LB_LOG_LEVLE"))
            daemon.environment["CODEX_LB_LOG_LEVLE"] = nil
            #expect(try daemon.run("config", "check").isGood)
        }

        /// Every line of the sample file is a valid setting once its # is taken away.
        @Test func sampleFile() throws {
            let sample = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
                .appendingPathComponent("etc/codex-lb.env")
            let lines = try String(contentsOf: sample, encoding: .utf8).split(separator: "\n").map {
                $0.hasPrefix("#") && $0.contains("=") && !$0.hasPrefix("# ") ? $0.dropFirst() : $0
            }
            let daemon = try Daemon()
            let home = daemon.directory + "/home"
            try FileManager.default.createDirectory(atPath: home, withIntermediateDirectories: true)
            try Data(lines.joined(separator: "\n").utf8).write(to: URL(fileURLWithPath: home + "/.env"))
            daemon.runner = [
                "/usr/bin/env", "-i", "HOME=\(home)", "PATH=/usr/bin:/bin", "/bin/sh", "-c", "cd \(home) && exec \"$0\" \"$@\"",
            ]
            let check = try daemon.run("config", "check")
            #expect(check.isGood, "\(check.errors)")
        }

        /// A secret that can't be written is not left behind as a valid key; output that is lost is no success.
        @Test func lostOutput() throws {
            let daemon = try Daemon()
            #expect(try daemon.run("db", "upgrade").isGood)
            for (place, name) in [("> /dev/full", "full"), (">&-", "closed")] {
                daemon.runner = ["/bin/sh", "-c", "exec \"$0\" \"$@\" \(place)"]
                let made = try daemon.run("keys", "create", name)
                #expect(made.exit == .code(1) && made.errors.contains("revoked"), "\(name): \(made.errors)")
                #expect(try daemon.run("accounts", "list").exit == .code(1))
            }
            daemon.runner = []
            let keys = try daemon.run("keys", "list")
            #expect(keys.output.split(separator: "\n").dropFirst().allSatisfy { $0.contains("revoked") }, "\(keys.output)")
        }

        /// A command that there isn't has no help.
        @Test func helpOfNothing() throws {
            let daemon = try Daemon()
            #expect(try daemon.run("help", "nosuch").exit == .code(2))
            #expect(try daemon.run("help", "accounts").isGood)
            let help = try daemon.run("--help").output
            #expect(help.split(separator: "\n").allSatisfy { $0.utf8.count <= 80 }, "\(help)")
            #expect(help.contains("--base-url https://api.openai.com/v1\n"))
        }

        /// Paths that only a shell would expand make no directory of that name.
        @Test(arguments: ["sqlite:///~root/x.db", "sqlite:///$HOME/x.db"]) func unexpanded(_ url: String) throws {
            let daemon = try Daemon(["CODEX_LB_DATABASE_URL": url])
            let result = try daemon.run("db", "upgrade")
            #expect(result.exit == .code(2) && result.errors.contains("CODEX_LB_DATABASE_URL"), "\(result.errors)")
        }

        /// A source that holds nothing is not copied over what was meant.
        @Test func emptyCopy() throws {
            let daemon = try Daemon()
            #expect(try daemon.run("db", "upgrade").isGood)
            let result = try daemon.run("db", "copy", "--to", "sqlite:///\(daemon.directory)/other.db")
            #expect(!result.isGood && result.errors.contains("nothing to copy"), "\(result.errors)")
        }
    }
}
