import ArgumentParser
import ControlWire
import Platform
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

struct Keys: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Create, list and revoke the keys that clients use.", subcommands: [Create.self, List.self, Revoke.self])

    struct Create: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a client key and print it, once.")
        @Argument(help: "A name of your choice.") var name: String
        @Option(name: .long, help: "When it ends: 30d, 12h, 90m, or a UTC date such as 2027-01-31 or 2027-01-31T12:00:00Z.") var expires:
            String?
        @Option(name: .long, help: "Models it may ask for, separated by commas (default: any).") var models: String?
        @OptionGroup var data: DataOptions

        func run() throws {
            var command = StoreCommand()
            command.createClientKey.name = name
            if let expires {
                guard let time = Self.time(expires, now: Clock.wall) else {
                    complain("--expires \"\(expires)\": give a span such as 30d, 12h or 90m, or a UTC date such as 2027-01-31")
                    throw ExitCode(2)
                }
                guard time > Clock.wall else {
                    complain("--expires \"\(expires)\" lies in the past")
                    throw ExitCode(2)
                }
                command.createClientKey.expiresAtMs = time.milliseconds
            }
            if let models {
                let list = models.split(separator: ",").map { String($0.filter { $0 != " " }) }.filter { !$0.isEmpty }
                guard !list.isEmpty else {
                    complain("--models is empty; leave it out to allow any model")
                    throw ExitCode(2)
                }
                command.createClientKey.limitsModels = true
                command.createClientKey.models = list
            }
            let settings = try data.settings()
            print(try StoreClient.perform(command, settings).plainKey)
            let code = Process.flushOutput()
            guard code == 0 else {
                // Nobody will ever see it: a key that is lost must not stay valid.
                var revoke = StoreCommand()
                revoke.revokeClientKey.name = name
                _ = try StoreClient.perform(revoke, settings)
                complain(
                    "the key could not be written to standard output (\(String(cString: strerror(code)))) and was revoked; run this again")
                throw ExitCode(1)
            }
            if settings.keyRule == .auto {
                complain("from now on every request needs a key, also on this host (CODEX_LB_REQUIRE_KEYS=auto; docs/security.md)")
            }
        }

        /// A span from now, or a UTC date with or without a time.
        static func time(_ text: String, now: WallTime) -> WallTime? {
            if let unit = text.last, let count = Int64(text.dropLast()), count > 0, count < 1_000_000,
                let seconds = ["d": 86_400, "h": 3600, "m": 60][String(unit)] as Int64?
            {
                return WallTime(milliseconds: now.milliseconds + count * seconds * 1000)
            }
            var body = text[...]
            if body.hasSuffix("Z") { body.removeLast() }
            let parts = body.split(separator: "T", omittingEmptySubsequences: false)
            let date = parts[0].split(separator: "-").compactMap { Int64($0) }
            guard parts.count <= 2, date.count == 3, (1970...9999).contains(date[0]), (1...12).contains(date[1]), (1...31).contains(date[2])
            else {
                return nil
            }
            var clock: [Int64] = [0, 0, 0]
            if parts.count == 2 {
                let given = parts[1].split(separator: ":").compactMap { Int64($0) }
                guard (2...3).contains(given.count), given[0] < 24, given[1] < 60, given.count < 3 || given[2] < 60 else { return nil }
                clock = given + (given.count == 2 ? [0] : [])
            }
            // Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": days_from_civil.
            let year = date[1] <= 2 ? date[0] - 1 : date[0]
            let era = year / 400
            let dayOfYear = (153 * (date[1] + (date[1] > 2 ? -3 : 9)) + 2) / 5 + date[2] - 1
            let dayOfEra = (year - era * 400) * 365 + (year - era * 400) / 4 - (year - era * 400) / 100 + dayOfYear
            let days = era * 146_097 + dayOfEra - 719_468
            return WallTime(milliseconds: (days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2]) * 1000)
        }
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List client keys.")
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            var command = StoreCommand()
            command.listClientKeys = ListClientKeys()
            let keys = try StoreClient.perform(command, data.settings()).clientKeys
            let now = Clock.wall.milliseconds
            func state(_ k: ClientKeyMessage) -> String {
                k.hasRevokedAtMs ? "revoked" : k.hasExpiresAtMs && k.expiresAtMs <= now ? "expired" : "active"
            }
            func time(_ has: Bool, _ ms: Int64) -> String? { has ? WallTime(milliseconds: ms).rfc3339 : nil }
            if json {
                print(
                    "["
                        + keys.map { k in
                            JSONText.object([
                                ("id", .int(k.id)), ("name", .string(k.name)), ("prefix", .string(k.prefix)), ("state", .string(state(k))),
                                (
                                    "models",
                                    k.limitsModels ? .raw("[" + k.models.map { $0.jsonQuoted }.joined(separator: ",") + "]") : .null
                                ),
                                ("expires_at", .optional(time(k.hasExpiresAtMs, k.expiresAtMs))),
                                ("revoked_at", .optional(time(k.hasRevokedAtMs, k.revokedAtMs))),
                                ("created_at", .string(WallTime(milliseconds: k.createdAtMs).rfc3339)),
                            ])
                        }.joined(separator: ",") + "]")
            } else if keys.isEmpty {
                print("no client key; make one with: codex-lb keys create NAME")
            } else {
                printTable(
                    ["NAME", "KEY", "STATE", "MODELS", "EXPIRES", "CREATED"],
                    keys.map { k in
                        [
                            k.name, k.prefix + "…", state(k), k.limitsModels ? k.models.joined(separator: ",") : "any",
                            time(k.hasExpiresAtMs, k.expiresAtMs) ?? "never", WallTime(milliseconds: k.createdAtMs).rfc3339,
                        ]
                    })
            }
        }
    }

    struct Revoke: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "End a client key for good.")
        @Argument(help: "The key's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws {
            var command = StoreCommand()
            command.revokeClientKey.name = name
            _ = try StoreClient.perform(command, data.settings())
            print("key \(name) revoked")
        }
    }
}
