/// The real schema next to the expected one, both as objects by name.
public enum SchemaDrift {
    /// A line for each object that is missing, another one, or not ours; empty when there is none.
    public static func lines(expected: [String: String], found: [String: String]) -> [String] {
        var out: [String] = []
        for (name, definition) in expected.sorted(by: { $0.key < $1.key }) {
            if let present = found[name] {
                if present != definition { out.append("\(name) is not as the revisions make it: \(present), expected \(definition)") }
            } else {
                out.append("\(name) is missing")
            }
        }
        for name in found.keys.sorted() where expected[name] == nil { out.append("\(name) was added by hand") }
        return out
    }
}
