import ArgumentParser
import Platform
import Settings
import Store
import WriterRole

extension Database {
    struct SpoolFiles: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "spool", abstract: "Files of usage records that are not in the database.",
            subcommands: [ListFiles.self, Retry.self])

        struct ListFiles: ParsableCommand {
            static let configuration = CommandConfiguration(
                commandName: "list", abstract: "List them: those that wait for the database, and those that it refused.")
            @OptionGroup var database: DatabaseOptions

            func run() throws {
                let settings = try database.settings()
                var rows: [(file: String, kind: String, records: Int, problem: String)] = []
                for kind in Spool.Kind.allCases {
                    for file in Spool.files(directories: settings.spoolDirectories, kind) {
                        do throws(SystemError) {
                            let (records, isWhole) = try Spool.load(file)
                            rows.append((file, kind == .waiting ? "waiting" : "refused", records.count, isWhole ? "" : "torn"))
                        } catch {
                            rows.append((file, kind == .waiting ? "waiting" : "refused", 0, "\(error)"))
                        }
                    }
                }
                if database.json {
                    print(
                        JSONText.array(
                            rows.map {
                                JSONText.object([
                                    ("file", .string($0.file)), ("kind", .string($0.kind)), ("records", .int(Int64($0.records))),
                                    ("problem", .string($0.problem)),
                                ])
                            }))
                } else if rows.isEmpty {
                    print("no file of records: all of them are in the database or in the journals of a running server")
                } else {
                    printTable(["KIND", "RECORDS", "PROBLEM", "FILE"], rows.map { [$0.kind, String($0.records), $0.problem, $0.file] })
                }
            }
        }

        struct Retry: ParsableCommand {
            static let configuration = CommandConfiguration(
                abstract: "Have refused records tried again, by the running server or, without one, by this command.")
            @OptionGroup var database: DatabaseOptions

            func run() throws {
                let settings = try database.settings()
                let files = Spool.files(directories: settings.spoolDirectories, .refused)
                guard !files.isEmpty else { return print("no file of refused records") }
                for file in files {
                    do throws(SystemError) { print("\(try Spool.retry(file)) is tried again") } catch {
                        complain("\(error)")
                        throw ExitCode(1)
                    }
                }
                guard try ControlClient.connect(settings) == nil else {
                    return print("the running server does it within seconds; its log tells")
                }
                try LocalStore.failing {
                    let store = try LocalStore.openForChange(settings)
                    defer { store.close() }
                    guard Homecoming.run(settings.spoolDirectories, store, tell: complain) else { throw ExitCode(1) }
                }
            }
        }
    }
}
