import ArgumentParser
import Settings

/// The database by hand; the supervisor runs the same at start.
struct Database: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "db", abstract: "Look after the database.", subcommands: [Upgrade.self])

    struct Upgrade: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Bring the schema to this build's revision.")
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            try LocalStore.upgrade(settings)
        }
    }
}
