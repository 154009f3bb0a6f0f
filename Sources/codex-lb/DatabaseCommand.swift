import ArgumentParser
import Platform
import PostgresStore
import SQLiteStore
import Schema
import Settings
import Store
import SupervisorRole
import Vocabulary

/// The database by hand; the supervisor runs the same at start.
struct Database: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "db", abstract: "Look after the database.",
        subcommands: [
            Upgrade.self, Current.self, History.self, Check.self, Wait.self, BackUp.self, Backups.self, Restore.self, Salvage.self,
            Copy.self, Prune.self, SpoolFiles.self, BringHome.self,
        ])

    struct Current: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Print the database's revision, or none.")
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            let revision = try LocalStore.failing { try LocalStore.history(settings) }.last?.id
            print(
                database.json
                    ? JSONText.object([
                        ("database", .string(settings.database.url.description)), ("revision", .optional(revision)),
                        ("head", .string(Schema.head.id)),
                    ]) : revision ?? "none")
        }
    }

    struct History: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the revisions that were applied.")
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            let rows = try LocalStore.failing { try LocalStore.history(settings) }
            if database.json {
                print(
                    JSONText.array(
                        rows.map {
                            JSONText.object([
                                ("id", .string($0.id)), ("name", .string($0.name)), ("checksum", .string($0.checksum)),
                                ("applied_at", .string($0.appliedAt.rfc3339)), ("duration_ms", .int($0.durationMilliseconds)),
                                ("app_version", .string($0.appVersion)),
                            ])
                        }))
            } else if rows.isEmpty {
                print("\(settings.database.url): no revision was applied yet; run: codex-lb db upgrade")
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
                "Check integrity, foreign keys, revision, that the schema is the expected one, that every row can be read and is as it was stored. Exit code 1 when something is wrong."
        )
        @Flag(
            name: .customLong("quick"), help: "SQLite: leave out whether indexes agree with their tables, and what is in the rows.")
        var isQuick = false
        @Flag(name: .customLong("at-start"), help: .hidden) var isAtStart = false
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            if isAtStart { Process.becomeIdle() }
            let report: CheckReport
            var isDamaged = false
            do throws(StoreError) {
                report = try LocalStore.check(settings, isQuick: isQuick, isSilent: isAtStart)
            } catch {
                guard error.kind == .corrupt else {
                    complain(error.message)
                    throw ExitCode(1)
                }
                (report, isDamaged) = (CheckReport([error.message], audit: nil), true)
            }
            let problems = report.problems
            if database.json {
                print(
                    JSONText.object(
                        [
                            ("database", .string(settings.database.url.description)), ("ok", .bool(problems.isEmpty)),
                            ("problems", .raw(JSONText.array(problems.map { $0.jsonQuoted }))),
                        ] + (report.audit?.members ?? [])))
            } else {
                for problem in problems { complain("\(settings.database.url): \(problem)") }
                if !isAtStart {
                    let rows = report.audit.map { "\($0.rows) rows read, \($0.checksums.summary)" }
                    let words = (problems.isEmpty ? ["ok"] : []) + (rows.map { [$0] } ?? [])
                    if !words.isEmpty { print("\(settings.database.url): \(words.joined(separator: "; "))") }
                }
            }
            guard !problems.isEmpty else { return }
            throw ExitCode(isAtStart && (isDamaged || problems.contains(where: DatabaseCheck.isDamage)) ? OneShotExit.damaged : 1)
        }
    }
}

extension RowAudit {
    var members: [(String, JSONText.Value)] {
        [
            ("rows", .int(Int64(rows))), ("unreadable", .raw(JSONText.array(faults.map(\.json)))),
            ("checksums", .raw(JSONText.object(checksums.members))),
        ]
    }
}

extension RowAudit.Fault {
    var json: String { JSONText.object([("table", .string(table)), ("id", .string(id)), ("what", .string(what))]) }
}

extension ChecksumCount {
    var members: [(String, JSONText.Value)] {
        [
            ("checked", .int(Int64(checked))), ("without", .int(Int64(without))),
            ("altered", .raw(JSONText.array(altered.map { $0.jsonQuoted }))),
        ]
    }
}

extension LocalStore {
    static func check(_ settings: Settings, isQuick: Bool, isSilent: Bool) throws(StoreError) -> CheckReport {
        func run() throws(StoreError) -> CheckReport {
            switch settings.database.url {
            case .sqlite(let path): try DatabaseCheck.run(path: path, isQuick: isQuick)
            case .postgresql(let url): try PostgresStore.check(url)
            }
        }
        if isSilent { return try run() }
        return try Ticker.during("checking \(settings.database.url)", run)
    }
}

/// Which database, and how to print; every `db` command takes this.
struct DatabaseOptions: ParsableArguments {
    @Option(
        name: .long,
        help:
            "The database (default: $CODEX_LB_DATABASE_URL, else sqlite:///<data directory>/store.db). Arguments can be seen by everyone on the host: leave a password to the environment or ~/.pgpass."
    )
    var url: String?
    @Flag(name: .long, help: "JSON instead of text.") var json = false
    @OptionGroup var data: DataOptions

    func settings() throws -> Settings {
        var flags = Settings.Flags()
        flags.dataDirectory = data.dataDirectory
        return try loadSettings(flags, databaseURL: url)
    }
}
