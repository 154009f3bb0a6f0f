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
                let outcome = try StoreCopy(from: source, to: sink, progress: complain).run()
                if database.json {
                    print(
                        JSONText.object([
                            ("from", .string(settings.database.url.description)), ("to", .string(other.database.url.description)),
                            (
                                "rows",
                                .raw(JSONText.object(outcome.counts.map { ($0.table, .int($0.target)) }))
                            ), ("left_out", .raw(JSONText.array(outcome.leftOut.map(\.json)))),
                            ("checksums", .raw(JSONText.object(outcome.checksums.members))),
                        ]))
                } else {
                    for count in outcome.counts {
                        print(
                            count.source == count.target
                                ? "\(count.table): \(count.target) rows in both" : "\(count.table): \(count.target) of \(count.source) rows"
                        )
                    }
                    print(outcome.checksums.summary)
                    print("set CODEX_LB_DATABASE_URL to the new database and keep \(settings.keyFile)")
                }
                guard !outcome.isWhole else { return }
                complainAbout(outcome, from: source.place)
                throw ExitCode(1)
            }
        }

        private func complainAbout(_ outcome: StoreCopy.Outcome, from source: String) {
            for fault in outcome.leftOut.prefix(Self.linesMax) { complain(fault.description) }
            if outcome.leftOut.count > Self.linesMax {
                complain("\(outcome.leftOut.count - Self.linesMax) more rows can't be read; --json lists them")
            }
            if !outcome.leftOut.isEmpty {
                complain(
                    "\(outcome.leftOut.count) rows of \(source) can't be read and were left out, everything else is copied: mend or delete them there and run this again, or go on without them"
                )
            }
            if let line = outcome.checksums.problem {
                complain("\(line); copied as they are, and codex-lb db check of the new database tells of them too")
            }
        }

        private static let linesMax = 100
    }
}
