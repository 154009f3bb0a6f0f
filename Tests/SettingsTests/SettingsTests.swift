import Settings
import Testing
import Vocabulary

@Suite struct SettingsTests {
    private func parse(_ environment: [String: String], _ flags: Settings.Flags = Settings.Flags()) throws -> Settings {
        try Settings(environment: environment.merging(["HOME": "/home/u", "PWD": "/work"]) { a, _ in a }, flags: flags, processors: 4)
    }

    @Test("Without any setting: ~/.codex-lb, 127.0.0.1:2455, one worker per CPU")
    func defaults() throws {
        let s = try parse([:])
        #expect(s.dataDirectory == "/home/u/.codex-lb" && s.runtimeDirectory == "/home/u/.codex-lb/run")
        #expect(s.database.url == .sqlite(path: "/home/u/.codex-lb/store.db") && s.listen == ["127.0.0.1:2455"] && s.workers == 4)
    }

    @Test("Flags win over the environment; systemd's directories are used")
    func order() throws {
        var flags = Settings.Flags()
        flags.dataDirectory = "rel/./a/../b"
        flags.workers = "2"
        let s = try parse(["CODEX_LB_DATA_DIR": "/x", "CODEX_LB_WORKERS": "9", "PORT": "99", "RUNTIME_DIRECTORY": "/run/x"], flags)
        #expect(
            s.dataDirectory == "/work/rel/b" && s.workers == 2 && s.listen == ["127.0.0.1:99"] && s.runtimeDirectory == "/work/rel/b/run")
        let systemd = try parse(["STATE_DIRECTORY": "/var/lib/codex-lb", "RUNTIME_DIRECTORY": "/run/codex-lb"])
        #expect(systemd.dataDirectory == "/var/lib/codex-lb" && systemd.runtimeDirectory == "/run/codex-lb")
    }

    @Test("Options belong to the address before them; proxies are networks")
    func listeners() throws {
        let s = try parse([
            "CODEX_LB_LISTEN": "0.0.0.0:2455,proxy, unix:/run/x,mode=0660,group=www  [::]:80",
            "CODEX_LB_TRUSTED_PROXIES": "10.0.0.0/8 unix,2001:db8::/32",
        ])
        #expect(s.listen == ["0.0.0.0:2455,proxy", "unix:/run/x,mode=0660,group=www", "[::]:80"])
        #expect(s.trustedProxies.networks == [Network("10.0.0.0/8"), Network("2001:db8::/32")] && s.trustedProxies.includesUnix)
        #expect(s.shown.contains { $0 == ("CODEX_LB_TRUSTED_PROXIES", "10.0.0.0/8,2001:db8::/32,unix") })
        #expect(try parse([:]).trustedProxies.isEmpty)
    }

    @Test("auto is as many workers as there are CPUs to use, at most 64")
    func workers() throws {
        #expect(try parse(["CODEX_LB_WORKERS": "auto"]).workers == 4 && parse(["CODEX_LB_WORKERS": "Auto"]).workers == 4)
        var flags = Settings.Flags()
        flags.workers = "auto"
        #expect(try parse(["CODEX_LB_WORKERS": "9"], flags).workers == 4)
        #expect(try Settings(environment: ["HOME": "/home/u", "PWD": "/work"], processors: 200).workers == 64)
    }

    @Test(
        "SQLite URLs name a file: what follows the third slash is absolute but for ~ and .",
        arguments: [
            ("sqlite:///var/lib/s.db", "/var/lib/s.db"), ("sqlite:////var/lib/s.db", "/var/lib/s.db"), ("sqlite:///~/s.db", "/home/u/s.db"),
            ("sqlite:///./s.db", "/work/s.db"), ("sqlite+aiosqlite:///~/.codex-lb/store.db", "/home/u/.codex-lb/store.db"),
        ])
    func urls(_ url: String, _ path: String) throws {
        #expect(try parse(["CODEX_LB_DATABASE_URL": url]).database.url == .sqlite(path: path))
    }

    @Test(
        "A bad value names its setting",
        arguments: [
            ("CODEX_LB_WORKERS", "many"), ("CODEX_LB_LISTEN", "proxy,0.0.0.0:1"), ("CODEX_LB_TRUSTED_PROXIES", "10.0.0.1/8"),
            ("CODEX_LB_TRUSTED_PROXIES", "proxy.example"), ("CODEX_LB_WORKERS", "0"), ("CODEX_LB_WORKERS", "65"), ("PORT", "x"),
            ("CODEX_LB_DATABASE_URL", "mysql://x"),
            ("CODEX_LB_LOG_FORMAT", "xml"), ("CODEX_LB_LOG_LEVEL", "loud"), ("CODEX_LB_IDLE_TIMEOUT_SECONDS", "-1"),
            ("CODEX_LB_HEAD_TIMEOUT_SECONDS", "soon"), ("CODEX_LB_DATABASE_POOL_SIZE", "0"), ("CODEX_LB_DATABASE_MAX_OVERFLOW", "-1"),
            ("CODEX_LB_DATABASE_POOL_TIMEOUT_SECONDS", "0"), ("CODEX_LB_DATABASE_MIGRATE_ON_STARTUP", "perhaps"),
            ("CODEX_LB_DATABASE_SQLITE_STARTUP_CHECK_MODE", "slow"), ("CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS", "daily"),
        ])
    func bad(_ name: String, _ value: String) {
        #expect { try parse([name: value]) } throws: { ($0 as? SettingsError)?.name == name }
    }
}

@Suite struct DatabaseSettingsTests {
    private func database(_ environment: [String: String]) throws -> DatabaseSettings {
        try Settings(environment: ["HOME": "/home/u", "PWD": "/work"].merging(environment) { $1 }, processors: 4).database
    }
    private func postgres(_ url: String) throws -> PostgresURL {
        guard case .postgresql(let url) = try database(["CODEX_LB_DATABASE_URL": url]).url else {
            throw SettingsError("url", "no PostgreSQL")
        }
        return url
    }

    @Test("Defaults are those of the page")
    func defaults() throws {
        let d = try database([:])
        #expect(d.poolSize == 15 && d.poolOverflow == 10 && d.poolTimeoutMilliseconds == 30_000)
        #expect(d.migratesOnStartup && d.failsFast && d.lockTimeoutMilliseconds == 300_000)
        #expect(d.preMigrateBackups == 5 && d.startupCheck == .quick && d.backupIntervalMilliseconds == nil)
    }

    @Test("The instance's connections are shared out over its workers, at least one each")
    func shares() throws {
        let d = try database(["CODEX_LB_DATABASE_POOL_SIZE": "5", "CODEX_LB_DATABASE_MAX_OVERFLOW": "3"])
        #expect((0..<4).map { d.poolShare(worker: $0, workers: 4).size } == [2, 1, 1, 1])
        #expect((0..<4).map { d.poolShare(worker: $0, workers: 4).overflow } == [1, 1, 1, 0])
        #expect(d.poolTotal(workers: 4) == 8)
        #expect(d.poolTotal(workers: 8) == 8 + 3)
    }

    @Test("User, password, hosts, ports, database and parameters of a PostgreSQL URL")
    func postgresURLs() throws {
        let whole = try postgres(
            "postgresql+asyncpg://us%65r:p%40ss%2Fword@db1,db2:6432,[::1]:7000/my%20db?sslmode=require&application_name=x")
        #expect(whole.hosts.map(\.name) == ["db1", "db2", "::1"] && whole.hosts.map(\.port) == [5432, 6432, 7000])
        #expect(whole.user == "user" && whole.password == "p@ss/word" && whole.database == "my db")
        #expect(whole.parameters.map(\.name) == ["sslmode", "application_name"])
        #expect(try postgres("postgres:///db?host=/run/postgresql&port=5433").hosts == [.init(name: "/run/postgresql", port: 5433)])
        #expect(try postgres("postgresql://%2Ftmp%2Fpg/db").hosts.first?.name == "/tmp/pg")
        #expect(try postgres("postgresql:///db").hosts.first?.name == PostgresURL.defaultHost)
        #expect(try postgres("postgresql://h/db?ssl=require").parameters.first?.name == "sslmode")
        #expect(try postgres("postgresql://h/db?host2=1").parameters.count == 1)
    }

    @Test(
        "A bad URL names the part that is wrong and never the password",
        arguments: [
            ("postgresql://u:secret@h:port/db", "port"), ("postgresql://u:se/cret@h/db", "%2F"), ("postgresql://u:se@cret@h/db", "@"),
            ("postgresql://u:1?secret@h/db", "%3F"), ("postgresql://u:1/secret@h", "%2F"), ("postgresql://u:1/a?secret=b@h/db", "%2F"),
            ("postgresql://u:secret%zz@h/db", "password"), ("postgresql://u:secret@[::1/db", "host"),
            ("postgresql://u:secret@h,,i/db", "host"),
            ("postgresql://u:secret@::1/db", "brackets"), ("postgresql://u:secret@h/a/b", "database name"),
            ("postgresql://u:secret@h/db?sslmode", "sslmode"), ("postgresql://u:secret@h/db?host=x", "host"),
            ("postgresql://u:secret@h:0/db", "port"), ("postgresql://u:secret@a,b/db?port=1,2,3", "ports"),
            ("postgresql://u:secret@h%20i/db", "space"), ("mysql://u:secret@h/db", "scheme"), ("sqlite://store.db", "three slashes"),
            ("sqlite:///", "path"), ("sqlite:///a/", "file"), ("sqlite:///x.db?timeout=3", "parameters"), ("store.db", "://"),
        ])
    func bad(_ url: String, _ part: String) {
        #expect { try database(["CODEX_LB_DATABASE_URL": url]) } throws: {
            let text = "\($0)"
            return text.contains("CODEX_LB_DATABASE_URL") && text.contains(part) && !text.contains("cret") && !text.contains("secret")
        }
    }

    @Test("What is shown of a URL has no password and no parameters")
    func shown() throws {
        let url = try database(["CODEX_LB_DATABASE_URL": "postgresql://u:secret@h:1,[::1]/db?sslpassword=geheim"]).url
        #expect(url.description == "postgresql://u@h:1,[::1]:5432/db")
    }
}

@Suite struct EnvironmentFileTests {
    @Test("Comments, export, quotes and trailing comments; names of other programs are left out")
    func parse() throws {
        let text = """
            # a comment
            CODEX_LB_WORKERS=3
            export CODEX_LB_LOG_LEVEL = "debug"   # why
            CODEX_LB_DATABASE_URL='postgresql://u:p#w@h/db'
            CODEX_LB_LISTEN=127.0.0.1:1 # two
            CODEX_LB_DATA_DIR=
            OPENAI_API_KEY=sk-x
            something else

            """
        #expect(
            try EnvironmentFile.parse(text, file: ".env").mapValues { "\($0.value) in \($0.line)" } == [
                "CODEX_LB_WORKERS": "3 in 2", "CODEX_LB_LOG_LEVEL": "debug in 3", "CODEX_LB_DATABASE_URL": "postgresql://u:p#w@h/db in 4",
                "CODEX_LB_LISTEN": "127.0.0.1:1 in 5", "CODEX_LB_DATA_DIR": " in 6",
            ])
    }

    @Test(
        "Variables that other programs know too count in a file of this program alone",
        arguments: [
            ("/etc/codex-lb/codex-lb.env", true), ("etc/codex-lb.env", true), ("/srv/my.env", true), (".env", false), (".env.local", false),
            ("/srv/.env", false),
        ])
    func shared(_ file: String, _ counts: Bool) throws {
        let found = try EnvironmentFile.parse("https_proxy=http://p:3128\nSSL_CERT_DIR=/c\nPORT=7\n", file: file)
        #expect(found.mapValues(\.value) == (counts ? ["https_proxy": "http://p:3128", "SSL_CERT_DIR": "/c", "PORT": "7"] : [:]))
        // What would be dropped without a word is refused where somebody meant it for us.
        func other() throws -> Bool { try EnvironmentFile.parse("PGSSLMODE=require\n", file: file).isEmpty }
        if counts, file.hasPrefix("/") { #expect(throws: SettingsError.self) { try other() } } else { #expect(try other()) }
    }

    @Test(
        "As editors and shells leave it",
        arguments: [
            ("\u{FEFF}CODEX_LB_X=1", "1"), ("CODEX_LB_X=1\r\nCODEX_LB_Y=2\r\n", "1"), ("export\tCODEX_LB_X=1", "1"),
            ("export  CODEX_LB_X = 1", "1"),
            ("\u{A0}CODEX_LB_X\u{A0}=\u{A0}1\u{A0}", "1"), ("CODEX_LB_X=1\t# why", "1"), ("CODEX_LB_X=a#b", "a#b"),
            ("CODEX_LB_X='a # b' # why", "a # b"),
            ("CODEX_LB_X=\"a\\\"b\\\\c\\$d\\n\"", "a\"b\\c$d\\n"), ("CODEX_LB_X='a\\b'", "a\\b"), ("CODEX_LB_X=# nothing", "# nothing"),

        ])
    func odd(_ text: String, _ value: String) throws {
        #expect(try EnvironmentFile.parse(text, file: ".env")["CODEX_LB_X"]?.value == value)
    }

    @Test(
        "What would be read as something else is refused",
        arguments: ["CODEX_LB_X=\u{201C}a\u{201D}", "CODEX_LB_X=\"a\" b", "CODEX_LB_X='a'#b", "C\0O\0"])
    func misread(_ text: String) {
        #expect { try EnvironmentFile.parse(text, file: "/e/.env") } throws: { "\($0)".hasPrefix("/e/.env") }
    }

    @Test(
        "What may be a secret is not repeated",
        arguments: ["CODEX_LB_DATABASE_URL: postgresql://u:hunter2@h/db?sslmode=x", "CODEX_LB_METRICS_TOKEN:hunter2", "TOKEN:hunter2=x"])
    func secrets(_ text: String) {
        #expect { try EnvironmentFile.parse(text, file: "/etc/codex-lb/codex-lb.env") } throws: { !"\($0)".contains("hunter2") }
    }

    @Test(
        "A line that can't be read is named by file and number",
        arguments: ["CODEX_LB_X", "\n\nCODEX_LB_X=\"open", "CODEX_LB_x=1", "\nCODEX_LB_SETTINGS_FILE=/x"])
    func bad(_ text: String) {
        #expect { try EnvironmentFile.parse(text, file: "/e/.env") } throws: {
            "\($0)".hasPrefix("/e/.env:\(text.split(separator: "\n", omittingEmptySubsequences: false).count)")
        }
    }
}
