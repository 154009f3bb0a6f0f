/// Names like one that is not known, for whoever mistyped it.
public enum NearNames {
    /// Levenshtein's: letters to put in, take out or change.
    public static func distance(_ one: String, _ other: String) -> Int {
        let (a, b) = (Array(one.utf8), Array(other.utf8))
        var row = Array(0...b.count)
        for i in a.indices {
            var (corner, left) = (row[0], i + 1)
            row[0] = left
            for j in b.indices {
                left = min(left + 1, row[j + 1] + 1, corner + (a[i] == b[j] ? 0 : 1))
                (corner, row[j + 1]) = (row[j + 1], left)
            }
        }
        return row[b.count]
    }

    /// The nearest of `known`, nearest first; only those that share at least half of their letters with `name`.
    public static func nearest(to name: String, in known: some Sequence<String>, count: Int = Limits.nearNamesMax) -> [String] {
        var found: [(name: String, distance: Int)] = []
        // Long names are no slip of a finger, and cost the product of their lengths.
        guard name.utf8.count <= Limits.nearNameBytesMax else { return [] }
        for candidate in Set(known) where candidate.utf8.count <= Limits.nearNameBytesMax {
            let distance = distance(name, candidate)
            if distance * 2 <= max(name.utf8.count, candidate.utf8.count) { found.append((candidate, distance)) }
        }
        return found.sorted { ($0.distance, $0.name) < ($1.distance, $1.name) }.prefix(count).map(\.name)
    }
}
