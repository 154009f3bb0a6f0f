import Settings
import Testing

@Suite struct SettingsTests {
    private func parse(_ environment: [String: String], _ flags: Settings.Flags = Settings.Flags()) throws -> Settings {
        try Settings(environment: environment.merging(["HOME": "/home/u", "PWD": "/work"]) { a, _ in a }, flags: flags, processors: 4)
    }

    @Test("Without any setting: ~/.codex-lb, 127.0.0.1:2455, one worker per CPU")
    func defaults() throws {
        let s = try parse([:])
        #expect(s.dataDirectory == "/home/u/.codex-lb" && s.runtimeDirectory == "/home/u/.codex-lb/run")
        #expect(s.databasePath == "/home/u/.codex-lb/store.db" && s.listen == ["127.0.0.1:2455"] && s.workers == 4)
    }

    @Test("Flags win over the environment; systemd's directories are used")
    func order() throws {
        var flags = Settings.Flags()
        flags.dataDirectory = "rel/./a/../b"
        flags.workers = 2
        let s = try parse(["CODEX_LB_DATA_DIR": "/x", "CODEX_LB_WORKERS": "9", "PORT": "99", "RUNTIME_DIRECTORY": "/run/x"], flags)
        #expect(
            s.dataDirectory == "/work/rel/b" && s.workers == 2 && s.listen == ["127.0.0.1:99"] && s.runtimeDirectory == "/work/rel/b/run")
        let systemd = try parse(["STATE_DIRECTORY": "/var/lib/codex-lb", "RUNTIME_DIRECTORY": "/run/codex-lb"])
        #expect(systemd.dataDirectory == "/var/lib/codex-lb" && systemd.runtimeDirectory == "/run/codex-lb")
    }

    @Test(
        "SQLite URLs name a file: what follows the third slash is absolute but for ~ and .",
        arguments: [
            ("sqlite:///var/lib/s.db", "/var/lib/s.db"), ("sqlite:////var/lib/s.db", "/var/lib/s.db"), ("sqlite:///~/s.db", "/home/u/s.db"),
            ("sqlite:///./s.db", "/work/s.db"), ("sqlite+aiosqlite:///~/.codex-lb/store.db", "/home/u/.codex-lb/store.db"),
        ])
    func urls(_ url: String, _ path: String) throws {
        #expect(try parse(["CODEX_LB_DATABASE_URL": url]).databasePath == path)
    }

    @Test(
        "A bad value names its setting",
        arguments: [
            ("CODEX_LB_WORKERS", "many"), ("CODEX_LB_WORKERS", "0"), ("CODEX_LB_WORKERS", "65"), ("PORT", "x"),
            ("CODEX_LB_DATABASE_URL", "mysql://x"),
            ("CODEX_LB_LOG_FORMAT", "xml"), ("CODEX_LB_LOG_LEVEL", "loud"), ("CODEX_LB_IDLE_TIMEOUT_SECONDS", "-1"),
            ("CODEX_LB_HEAD_TIMEOUT_SECONDS", "soon"),
        ])
    func bad(_ name: String, _ value: String) {
        #expect { try parse([name: value]) } throws: { ($0 as? SettingsError)?.name == name }
    }
}
