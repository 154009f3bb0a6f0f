import ArgumentParser
import Settings

struct Config: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show and check the settings, as environment, .env files and defaults make them.", subcommands: [Show.self, Check.self])

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Print every setting as NAME=VALUE, or the value of one.",
            discussion: "For scripts: \"$(codex-lb config show CODEX_LB_DATA_DIR)\" is never empty. Secrets are not shown.")
        @Argument(help: "A setting's name: CODEX_LB_…") var name: String?
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            guard let name else {
                for (name, value) in settings.shown { print("\(name)=\(value)") }
                return
            }
            guard let found = settings.shown.first(where: { $0.name == name }) else {
                let nearest = settings.unknown(in: [name: ""]).first?.nearest
                complain("there is no setting \"\(name)\"\(nearest.map { "; the nearest is \($0)" } ?? "")")
                throw ExitCode(2)
            }
            print(found.value)
        }
    }

    struct Check: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Read all settings and tell what is wrong with them. Exit code 2 when something is.")
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let unknown = settings.unknown(in: try environmentWithDirectory())
            for (name, nearest) in unknown { complain("\(name) is no setting of codex-lb and does nothing; the nearest is \(nearest)") }
            if !unknown.isEmpty { throw ExitCode(2) }
            print("the settings are good; codex-lb config show prints them")
        }
    }
}
