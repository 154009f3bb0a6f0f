import ArgumentParser
import ControlWire
import Platform
import SQLiteStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Database {
    struct BackUp: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "backup", abstract: "Copy the database as it is at one moment; a server may run.",
            discussion: "SQLite: one file beside the database. PostgreSQL: pg_dump's custom format in the data directory.")
        @Option(name: .long, help: "Where to (default: NAME.backup.YYYYMMDD-HHMMSS).") var output: String?
        @Flag(name: .customLong("scheduled"), help: .hidden) var isScheduled = false
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            if isScheduled { return try LocalStore.failing { try ScheduledBackup.run(settings) } }
            let file = try LocalStore.failing {
                try Ticker.during("backing up \(settings.database.url)") { try LocalBackup.make(settings, output: output) }
            }
            if database.json {
                print(JSONText.object(file.members))
            } else {
                print("\(file.path) (\(file.bytes) bytes, revision \(file.revision), checked)")
                print("keep \(settings.keyFile) with it: without that file the accounts in it can't be read")
            }
        }
    }

    struct Backups: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the database's copies, newest first.")
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            let files = Ticker.during("reading the backups of \(settings.database.url)") { LocalBackup.list(settings) }
            let now = Clock.wall
            if database.json {
                print(JSONText.array(files.map { JSONText.object($0.members) }))
            } else if files.isEmpty {
                print("no backup of \(settings.database.url); make one with: codex-lb db backup")
            } else {
                printTable(
                    ["MADE (UTC)", "AGE", "BYTES", "REVISION", "VERIFIED", "FILE"],
                    files.map { file in
                        [
                            file.stamp, file.age(now), String(file.bytes), file.revision, file.problem.isEmpty ? "yes" : file.problem,
                            file.path,
                        ]
                    })
            }
        }
    }

    struct Restore: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Put a backup in the database's place; what is there now is kept.",
            discussion:
                "Refuses while a server uses the database. SQLite: the present database with its log is kept beside it under a dated name. PostgreSQL: it is dumped first."
        )
        @Argument(help: "The backup.") var file: String
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            let aside = try LocalStore.failing {
                try Ticker.during("restoring \(file)") { try LocalBackup.restore(file, settings) }
            }
            if database.json {
                print(
                    JSONText.object([
                        ("database", .string(settings.database.url.description)), ("restored", .string(file)), ("kept", .optional(aside)),
                    ]))
                return
            }
            print("\(settings.database.url) is now \(file)")
            if let aside { print("the database before is kept as \(aside)") }
            print("look at it with: codex-lb db check; then start the server again: codex-lb serve")
        }
    }
}

/// Backups of whatever database the settings name.
enum LocalBackup {
    static func make(_ settings: Settings, output: String? = nil, label: String = Backup.label) throws(StoreError) -> BackupFile {
        switch settings.database.url {
        case .sqlite(let path):
            try Backup.make(database: path, output: output, label: label, now: Clock.wall, progress: complain)
        case .postgresql(let url): try PostgresDump(url, settings).make(output: output, label: label)
        }
    }

    static func list(_ settings: Settings) -> [BackupFile] {
        let all =
            switch settings.database.url {
            case .sqlite(let path): Backup.labels.flatMap { Backup.list(database: path, label: $0) }
            case .postgresql(let url): PostgresDump(url, settings).list()
            }
        return all.sorted { $0.stamp > $1.stamp }
    }

    static func restore(_ file: String, _ settings: Settings) throws(StoreError) -> String? {
        switch settings.database.url {
        case .sqlite(let path):
            // Its writer may be between two lives, without the lock.
            if isServed(settings) {
                throw StoreError(.busy, "a server runs on \(settings.dataDirectory); stop it first (codex-lb ctl status shows it)")
            }
            return try Backup.restore(file, database: path, now: Clock.wall, progress: complain)
        case .postgresql(let url): return try PostgresDump(url, settings).restore(file)
        }
    }

    /// Whether the server of this data directory uses this database.
    private static func isServed(_ settings: Settings) -> Bool {
        var frame = Frame()
        frame.statusRequest = StatusRequest()
        guard let server = try? ControlClient.connect(settings), let answer = try? server.ask(frame) else { return false }  // none there: good
        guard case .statusReply(let status)? = answer.body else { return true }
        return status.database == settings.database.url.description
    }
}

extension BackupFile {
    var members: [(String, JSONText.Value)] {
        [
            ("path", .string(path)), ("bytes", .int(Int64(bytes))), ("made", .string(stamp)), ("revision", .string(revision)),
            ("verified", .bool(problem.isEmpty)), ("problem", .optional(problem.isEmpty ? nil : problem)),
        ]
    }

    /// Since it was made, by its file's time.
    func age(_ now: WallTime) -> String {
        var info = stat()
        guard stat(path, &info) == 0 else { return "-" }
        return Ctl.Status.seconds(UInt64(max(0, now.milliseconds - Int64(info.st_mtim.tv_sec) * 1000)))
    }
}
