import ArgumentParser
import Settings

struct Config: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show and check the settings, as environment, .env files and defaults make them.", subcommands: [Show.self, Check.self])

    struct Show: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Print every setting as NAME=VALUE and where it comes from, or the value of one.",
            discussion: "For scripts: \"$(codex-lb config show CODEX_LB_DATA_DIR)\" is never empty. Secrets are shown as ***.")
        @Argument(help: "A setting's name: CODEX_LB_…") var name: String?
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            guard let name else {
                let environment = try GatheredEnvironment()
                let lines = settings.shown.map { ("\($0.name)=\($0.value)", environment.source(of: $0.name, data.flags)) }
                let width = lines.map(\.0.count).filter { $0 <= 60 }.max() ?? 0
                for (line, source) in lines {
                    print("\(line)\(String(repeating: " ", count: max(0, width - line.count)))  # \(source)")
                }
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
            let unknown = settings.unknown(in: try gatherEnvironment())
            for (name, nearest) in unknown { complain("\(name) is no setting of codex-lb and does nothing; the nearest is \(nearest)") }
            if !unknown.isEmpty { throw ExitCode(2) }
            print("the settings are good; codex-lb config show prints them")
        }
    }
}
