import ArgumentParser
import ControlWire
import Settings
import Vocabulary

/// Settings in the store, which count for all workers and instances at once.
struct SettingsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "settings", abstract: "Show and change what counts for all instances at once, live.",
        discussion: """
            routing.strategy         how an account is chosen (docs/routing.md)
            routing.single_account   the account of the strategy single_account
            models.alias.NAME        the model that goes upstream for NAME
            What an instance is started with (CODEX_LB_…) is shown by: codex-lb config check
            """,
        subcommands: [List.self, Get.self, Set.self, Unset.self])

    private static func stored(_ data: DataOptions) throws -> [String: String] {
        var command = StoreCommand()
        command.listSettings = ListSettings()
        return try StoreClient.perform(command, data.settings()).settings
    }

    /// What it is while nobody sets it.
    private static func known(_ name: String) throws -> StoredSettings.Setting {
        guard let setting = StoredSettings.setting(name) else {
            complain(StoredSettings.unknown(name))
            throw ExitCode(2)
        }
        return setting
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List settings with their values.")
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            let stored = try SettingsCommand.stored(data)
            let fixed = StoredSettings.fixed.map { (name: $0.name, value: stored[$0.name] ?? $0.standard, meaning: $0.meaning) }
            let others = stored.keys.filter { name in !fixed.contains { $0.name == name } }.sorted().map { name in
                (name: name, value: stored[name] ?? "", meaning: StoredSettings.setting(name)?.meaning ?? "unknown to this codex-lb")
            }
            let all = fixed + others
            if json {
                let rows = all.map { setting in
                    JSONText.object([
                        ("name", .string(setting.name)), ("value", .string(setting.value)), ("is_set", .bool(stored[setting.name] != nil)),
                    ])
                }
                print(JSONText.array(rows))
            } else {
                printTable(
                    ["NAME", "VALUE", "SET", "MEANING"],
                    all.map { [$0.name, $0.value.isEmpty ? "-" : $0.value, stored[$0.name] == nil ? "no" : "yes", $0.meaning] })
            }
        }
    }

    struct Get: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Print a setting's value.")
        @Argument(help: "The setting's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws {
            let setting = try SettingsCommand.known(name)
            print(try SettingsCommand.stored(data)[name] ?? setting.standard)
        }
    }

    struct Set: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Set a setting; it counts within a second.")
        @Argument(help: "The setting's name.") var name: String
        @Argument(help: "Its value.") var value: String
        @OptionGroup var data: DataOptions
        func run() throws {
            let setting = try SettingsCommand.known(name)
            if let problem = setting.problem(value) {
                complain("\(name): \(problem)")
                throw ExitCode(2)
            }
            var command = StoreCommand()
            (command.setSetting.name, command.setSetting.value) = (name, value)
            _ = try StoreClient.perform(command, data.settings())
            print("\(name) is \(value)")
        }
    }

    struct Unset: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Go back to what counts while a setting is not set.")
        @Argument(help: "The setting's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws {
            var command = StoreCommand()
            command.unsetSetting.name = name
            let reply = try StoreClient.perform(command, data.settings())
            print(reply.wasSet ? "\(name) is unset" : "\(name) was not set")
        }
    }
}
