/// The schema's revisions, as `Sources/Schema` has them; these tests see the program from outside.
enum Revisions {
    static let all = ["0001", "0002", "0003", "0004", "0005", "0006", "0007"]
    static let head = all[all.count - 1]
    /// As the ledger's ids are read.
    static let ledger = all.joined(separator: "\n")
    static let afterFirst = Array(all.dropFirst())
}
