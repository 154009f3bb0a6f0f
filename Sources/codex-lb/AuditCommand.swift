import ArgumentParser
import ControlWire
import JSONWire
import Vocabulary

struct Audit: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the newest changes of operators: who, when, what was before.")
    @Option(name: .long, help: "How many, 1 to 100000.") var last = 20
    @Flag(name: .long, help: "A JSON array, newest first.") var json = false
    @OptionGroup var data: DataOptions

    func validate() throws {
        guard (1...Limits.auditRowsMax).contains(last) else { throw ValidationError("--last takes 1 to \(Limits.auditRowsMax)") }
    }

    func run() throws {
        var command = StoreCommand()
        command.listAudit.last = UInt32(last)
        let rows = try StoreClient.perform(command, data.settings()).audit
        if json {
            print("[" + rows.map { Self.json($0) }.joined(separator: ",\n") + "]")
        } else if rows.isEmpty {
            print("no change yet")
        } else {
            printTable(
                ["TIME", "ACTOR", "ACTION", "SUBJECT", "CHANGE"],
                rows.map { [WallTime(milliseconds: $0.atMs).rfc3339, $0.actor, $0.action, $0.subject, Self.words($0.detail)] })
        }
    }

    /// Nil for what no build writes.
    private static func members(_ detail: String) -> [JSONMembers.Member]? {
        (try? JSONValue(parsing: Array(detail.utf8).span.bytes))?.objectValue?.members  // see above
    }

    /// `weight 100 → 300, headers changed`
    static func words(_ detail: String) -> String {
        func text(_ value: JSONValue?) -> String {
            switch value {
            case nil, .null?: "-"
            case .string(let text)?: text
            case .array(let elements)?: elements.isEmpty ? "-" : elements.map { text($0) }.joined(separator: " ")
            case let value?: String(decoding: value.serialized(), as: UTF8.self)
            }
        }
        guard let members = members(detail) else { return detail }
        return members.map { member in
            guard member.value.objectValue != nil else { return "\(member.key) \(text(member.value))" }
            return "\(member.key) \(text(member.value["old"])) → \(text(member.value["new"]))"
        }.joined(separator: ", ")
    }

    private static func json(_ row: AuditRow) -> String {
        JSONText.object([
            ("id", .int(row.id)), ("time", .string(WallTime(milliseconds: row.atMs).rfc3339)), ("actor", .string(row.actor)),
            ("action", .string(row.action)), ("subject", .string(row.subject)),
            ("detail", members(row.detail) == nil ? .string(row.detail) : .raw(row.detail)),
        ])
    }
}
