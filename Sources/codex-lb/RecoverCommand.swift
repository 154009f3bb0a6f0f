import ArgumentParser
import SQLiteStore
import Settings
import Store
import Vocabulary

extension Database {
    struct Salvage: ParsableCommand {
        static let configuration = CommandConfiguration(
            commandName: "recover",
            abstract: "Save what a damaged SQLite file still holds into a new database, and tell what was lost.")
        @Option(name: .long, help: "The new file (default: store.db.recovered.YYYYMMDD-HHMMSS).") var output: String?
        @Flag(name: .customLong("replace"), help: "Put it in the damaged one's place, which is kept under a dated name.") var isReplacing =
            false
        @OptionGroup var database: DatabaseOptions

        func run() throws {
            let settings = try database.settings()
            guard let path = settings.database.sqlitePath else {
                complain("db recover is for SQLite; restore a PostgreSQL database from a dump: codex-lb db restore FILE")
                throw ExitCode(2)
            }
            try LocalStore.failing {
                let target = output ?? "\(path).recovered.\(Backup.stamp(Clock.wall))"
                let report = try Ticker.during("recovering \(path)") {
                    try Recover.run(database: path, output: target, progress: complain, now: Clock.wall)
                }
                let aside = isReplacing ? try Backup.restore(target, database: path, now: Clock.wall, progress: complain) : nil
                if database.json {
                    print(JSONText.object([("output", .string(target)), ("kept", .optional(aside))] + report.members))
                    return
                }
                printTable(
                    ["TABLE", "SAVED", "LOST", "UNREADABLE PAGES"],
                    report.tables.map { [$0.name, String($0.saved), String($0.lost), String($0.unreadablePages)] })
                if report.isHeaderDamaged { print("the header was damaged") }
                if report.isSchemaDamaged { print("the list of tables was damaged: rows were told apart by their shape") }
                if report.strayPages > 0 { print("\(report.strayPages) pages belong to nothing that could be read") }
                if report.unreadableFrames > 0 {
                    print("\(report.unreadableFrames) pages of the log could not be read: the newest changes")
                }
                print(report.checksums.summary)
                if let line = report.checksums.problem { print("\(line); kept as they are, without checksum") }
                for remark in report.remarks { print(remark) }
                print(report.isComplete ? "no loss was found" : "some of it is lost or altered, see above")
                if let aside {
                    print("\(path) is now what was saved; the damaged one is kept as \(aside)")
                } else {
                    print(
                        "\(target): look at it with codex-lb db check --url sqlite:///\(target); put it in place with codex-lb db restore \(target)"
                    )
                }
            }
        }
    }
}

extension RecoveryReport {
    var members: [(String, JSONText.Value)] {
        let tables = tables.map { table in
            JSONText.object([
                ("name", .string(table.name)), ("saved", .int(Int64(table.saved))), ("lost", .int(Int64(table.lost))),
                ("unreadable_pages", .int(Int64(table.unreadablePages))),
            ])
        }
        return [
            ("complete", .bool(isComplete)), ("tables", .raw(JSONText.array(tables))), ("header_damaged", .bool(isHeaderDamaged)),
            ("schema_damaged", .bool(isSchemaDamaged)), ("stray_pages", .int(Int64(strayPages))),
            ("unreadable_frames", .int(Int64(unreadableFrames))), ("checksums", .raw(JSONText.object(checksums.members))),
            ("remarks", .raw(JSONText.array(remarks.map { $0.jsonQuoted }))),
        ]
    }
}
