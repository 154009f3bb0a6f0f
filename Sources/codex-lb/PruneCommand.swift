import ArgumentParser
import ControlWire
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

extension Database {
    struct Prune: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Delete usage records that are older than they are to be kept.",
            discussion: """
                In small portions, also while a server runs. Age counts from the newest record. The file of an SQLite database does not shrink; \
                what becomes free is used again.
                """)
        @Option(name: .long, help: "Days that records are kept (default: CODEX_LB_USAGE_RETENTION_DAYS).") var days: Int?
        @Flag(name: .long, help: .hidden) var scheduled = false
        @OptionGroup var data: DataOptions

        func validate() throws {
            if let days, !Limits.retentionDays.contains(days) {
                throw ValidationError("--days takes \(Limits.retentionDays.lowerBound) to \(Limits.retentionDays.upperBound)")
            }
        }

        func run() throws {
            let settings = try data.settings()
            guard let days = days ?? settings.database.retentionDays else {
                complain("usage records are kept for ever (CODEX_LB_USAGE_RETENTION_DAYS is 0); give --days N to delete older ones now")
                throw ExitCode(2)
            }
            guard var newest = try Self.newest(settings) else {
                if !scheduled { print("there are no usage records") }
                return
            }
            newest = min(newest, Clock.wall.milliseconds)
            let before = WallTime(milliseconds: newest - Int64(days) * 86_400_000)
            var (count, portion) = (0, 0)
            repeat {
                var command = StoreCommand()
                (command.pruneUsage.beforeMs, command.pruneUsage.limit) = (before.milliseconds, UInt32(Limits.pruneBatchMax))
                command.pruneUsage.noted = !scheduled && count == 0
                if scheduled { command.pruneUsage.witnessBeforeMs = newest - Self.witnessMilliseconds }
                let reply: StoreReply
                if scheduled, settings.database.sqlitePath != nil {
                    // Where the server was stopped meanwhile, whoever comes then finds nobody at work on the database.
                    guard let answer = try StoreClient.askServer(command, settings) else { return }
                    reply = answer
                } else {
                    reply = try StoreClient.perform(command, settings)
                }
                guard !reply.unwitnessed else {
                    complain(
                        "no usage record lies between \(before.rfc3339) and the day before the newest: is the clock right? Nothing is deleted; by hand: codex-lb db prune --days \(days)"
                    )
                    throw ExitCode(1)
                }
                portion = Int(reply.pruned)
                count += portion
                usleep(10_000)  // for whoever waits for the writer
            } while portion > 0  // of a portion another one's run may have had a part
            let text = "deleted \(count) usage records of turns before \(before.rfc3339)"
            if !scheduled { print(text) } else if count > 0 { complain(text) }
        }

        /// A clock that jumps ahead makes all that is old look old enough: a schedule deletes only what records of another day than the newest
        /// one's are between.
        private static let witnessMilliseconds: Int64 = 86_400_000

        private static func newest(_ settings: Settings) throws -> Int64? {
            var command = StoreCommand()
            command.listUsage.last = 1
            return try StoreClient.perform(command, settings).usage.first?.record.timeMs
        }
    }
}
