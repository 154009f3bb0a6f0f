import ControlWire
import Platform
import Vocabulary

/// What two builds must have in common for one to go on where the other was: the other's workers live on beside it, in the same memory and on
/// the same database.
public struct Build: Sendable, Equatable {
    public var version: String
    var common: [(name: String, value: String)]

    /// The name that the text goes by among what the other program reports.
    public static let variable = "CODEX_LB_BUILD"
    /// Of `Succession`. To be counted up with every change that an older program would misread.
    static let successionVersion = 1

    /// This one. `schema`: its newest revision.
    public init(schema: String) {
        version = Version.text
        common = [
            ("succession", "\(Self.successionVersion)"), ("protocol", "\(protocolVersion)"), ("scoreboard", "\(Scoreboard.layoutVersion)"),
            ("journal", "\(Journal.layoutVersion)"), ("schema", schema),
        ]
    }

    /// `0.1.0 succession=1 protocol=1 …`; nil: it is no such text.
    init?(_ text: String) {
        let words = text.split(separator: " ")
        guard let first = words.first, words.count > 1 else { return nil }
        version = String(first)
        common = []
        for word in words.dropFirst() {
            guard let equals = word.firstIndex(of: "=") else { return nil }
            common.append((String(word[..<equals]), String(word[word.index(after: equals)...])))
        }
    }

    public var text: String { version + common.map { " \($0.name)=\($0.value)" }.joined() }

    /// Why the other one can't go on here; nil: it can.
    func obstacle(to other: Build) -> String? {
        for (name, value) in common {
            let theirs = other.common.first { $0.name == name }?.value
            guard theirs == value else {
                return "codex-lb \(other.version) has another \(name) (\(theirs ?? "none"), this one \(value)): it takes a restart"
            }
        }
        return nil
    }

    public static func == (a: Build, b: Build) -> Bool { a.text == b.text }
}
