import ArgumentParser
import SQLiteStore
import Settings
import Store
import Vocabulary

/// The database by hand; the supervisor runs the same at start.
struct Database: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "db", abstract: "Look after the database.",
        subcommands: [Upgrade.self, Current.self, History.self, Check.self, BackUp.self, Backups.self, Restore.self])

    struct Upgrade: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Bring the schema to this build's revision; a copy is made first.")
        @OptionGroup var data: DataOptions
        func run() throws { try LocalStore.upgrade(data.settings()) }
    }

    struct Current: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Print the database's revision, or none.")
        @Flag(name: .long, help: "One JSON object.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let revision = try LocalStore.history(settings).last?.id
            print(json ? JSONText.object([("revision", .optional(revision)), ("head", .string(SQLiteStore.head))]) : revision ?? "none")
        }
    }

    struct History: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the revisions that were applied.")
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            let rows = try LocalStore.history(data.settings())
            if json {
                print(
                    "["
                        + rows.map {
                            JSONText.object([
                                ("id", .string($0.id)), ("name", .string($0.name)), ("checksum", .string($0.checksum)),
                                ("applied_at", .string($0.appliedAt.rfc3339)), ("duration_ms", .int($0.durationMilliseconds)),
                                ("app_version", .string($0.appVersion)),
                            ])
                        }.joined(separator: ",") + "]")
            } else {
                printTable(
                    ["REVISION", "NAME", "APPLIED", "MS", "BY"],
                    rows.map { [$0.id, $0.name, $0.appliedAt.rfc3339, String($0.durationMilliseconds), $0.appVersion] })
            }
        }
    }

    struct Check: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract:
                "Check integrity, foreign keys, revision and that the schema is the expected one. Exit code 1 when something is wrong.")
        @Flag(name: .long, help: "One JSON object.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let problems = try LocalStore.failing { () throws(StoreError) in try DatabaseCheck.run(path: settings.databasePath) }
            if json {
                print(
                    JSONText.object([
                        ("database", .string(settings.databasePath)), ("ok", .bool(problems.isEmpty)),
                        ("problems", .raw("[" + problems.map { JSONText.quoted($0) }.joined(separator: ",") + "]")),
                    ]))
            } else if problems.isEmpty {
                print("\(settings.databasePath): ok")
            } else {
                for problem in problems { complain("\(settings.databasePath): \(problem)") }
            }
            if !problems.isEmpty { throw ExitCode(1) }
        }
    }

    struct BackUp: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "backup", abstract: "Copy the database as it is at one moment; a server may run.")
        @Option(name: .long, help: "Where to (default: store.db.backup.YYYYMMDD-HHMMSS beside the database).") var output: String?
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let file = try LocalStore.failing { () throws(StoreError) in
                try Backup.make(database: settings.databasePath, output: output, now: Clock.wall)
            }
            print("\(file.path) (\(file.bytes) bytes, revision \(file.revision), checked)")
            print("keep \(settings.keyFile) with it: without that file the accounts in it can't be read")
        }
    }

    struct Backups: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the copies beside the database, newest first.")
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let files = Backup.list(database: settings.databasePath)
            if json {
                print(
                    "["
                        + files.map {
                            JSONText.object([
                                ("path", .string($0.path)), ("bytes", .int(Int64($0.bytes))), ("made", .string($0.stamp)),
                                ("revision", .string($0.revision)), ("verified", .bool($0.problem.isEmpty)),
                                ("problem", .optional($0.problem.isEmpty ? nil : $0.problem)),
                            ])
                        }.joined(separator: ",") + "]")
            } else if files.isEmpty {
                print("no backup beside \(settings.databasePath); make one with: codex-lb db backup")
            } else {
                printTable(
                    ["MADE (UTC)", "BYTES", "REVISION", "VERIFIED", "FILE"],
                    files.map { [$0.stamp, String($0.bytes), $0.revision, $0.problem.isEmpty ? "yes" : $0.problem, $0.path] })
            }
        }
    }

    struct Restore: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Put a backup in the database's place; the present one is kept beside it.")
        @Argument(help: "The backup.") var file: String
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let aside = try LocalStore.failing { () throws(StoreError) in
                try Backup.restore(file, database: settings.databasePath, now: Clock.wall)
            }
            print("\(settings.databasePath) is now \(file)")
            if let aside { print("the database before is kept as \(aside)") }
            print("start the server again with: codex-lb serve")
        }
    }
}
