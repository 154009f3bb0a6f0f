import ArgumentParser
import SQLiteStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Database {
    struct Copy: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Copy everything into another database, SQLite or PostgreSQL.",
            discussion:
                "Can be cut and run again: what is there already stays. With the server running it brings most of it over; stop the server and run it once more for the rest, then set CODEX_LB_DATABASE_URL."
        )
        @Option(name: .customLong("to"), help: "The database to copy into; it is made and migrated as needed.") var target: String
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            var there = database
            there.url = target
            let other = try there.settings()
            guard other.database.url != settings.database.url else {
                complain("--to names the same database: \(settings.database.url)")
                throw ExitCode(2)
            }
            try LocalStore.failing {
                let source = try LocalStore.openReadOnly(settings)
                defer { source.close() }
                let sink = try LocalStore.upgrade(other, lockWaitMilliseconds: LocalStore.changeWaitMilliseconds)
                defer { sink.close() }
                let counts = try StoreCopy(from: source, to: sink, progress: complain).run()
                if database.json {
                    print(
                        JSONText.object([
                            ("from", .string(settings.database.url.description)), ("to", .string(other.database.url.description)),
                            (
                                "rows",
                                .raw(JSONText.object(counts.map { ($0.table, .int($0.target)) }))
                            ),
                        ]))
                } else {
                    for count in counts { print("\(count.table): \(count.target) rows in both") }
                    print("set CODEX_LB_DATABASE_URL to the new database and keep \(settings.keyFile)")
                }
            }
        }
    }
}
