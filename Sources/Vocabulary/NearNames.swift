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

    /// The nearest of `known`, nearest first; only those that share at least half of their letters with `name`, and that `isMeant`.
    public static func nearest(
        to name: String, in known: some Sequence<String>, count: Int = Limits.nearNamesMax, where isMeant: (String) -> Bool = { _ in true }
    ) -> [String] {
        // Long names are no slip of a finger, and cost the product of their lengths.
        guard name.utf8.count <= Limits.nearNameBytesMax else { return [] }
        let letters = Letters(name)
        var likely: [(name: String, least: Int)] = []
        for candidate in known where candidate.utf8.count <= Limits.nearNameBytesMax {
            let least = letters.leastDistance(candidate)
            if least * 2 <= max(name.utf8.count, candidate.utf8.count) { likely.append((candidate, least)) }
        }
        likely.sort { ($0.least, $0.name) < ($1.least, $1.name) }
        var found: [String: Int] = [:]
        for (candidate, _) in likely.prefix(Limits.nearNameCandidatesMax) where found[candidate] == nil && isMeant(candidate) {
            let distance = distance(name, candidate)
            if distance * 2 <= max(name.utf8.count, candidate.utf8.count) { found[candidate] = distance }
        }
        return found.sorted { ($0.value, $0.key) < ($1.value, $1.key) }.prefix(count).map(\.key)
    }

    /// How often each letter is in a name: that alone bounds the distance from below, for much less than the distance costs.
    private struct Letters {
        /// Letters that share a place only make the bound lower.
        private var counts = InlineArray<64, Int16>(repeating: 0)
        init(_ name: String) { for letter in name.utf8 { counts[Int(letter & 63)] += 1 } }

        func leastDistance(_ other: String) -> Int {
            var counts = counts
            var (surplus, missing) = (0, 0)
            for letter in other.utf8 {
                counts[Int(letter & 63)] -= 1
                if counts[Int(letter & 63)] < 0 { surplus += 1 }
            }
            for place in counts.indices { missing += max(0, Int(counts[place])) }
            return max(surplus, missing)
        }
    }
}
