import ArgumentParser
import Settings
import Store
import WriterRole

extension Database {
    /// What the supervisor has done on a shared database when files of records come while it serves.
    struct BringHome: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "bring-home", abstract: "Store the usage records that an earlier run left as files.", shouldDisplay: false)
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            try LocalStore.failing {
                let store = try LocalStore.openForChange(settings)
                defer { store.close() }
                guard Homecoming.run(settings.spoolDirectories, store, tell: complain) else { throw ExitCode(1) }
            }
        }
    }
}
