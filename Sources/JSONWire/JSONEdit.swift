import Bytes

/// Changes members of a document and leaves every other byte as it was.
public enum JSONEdit {
    /// The top-level object with each key of `changes` set to the given JSON, or removed where that is nil. A key that occurs several times
    /// keeps its first place; one that is absent is appended. Keys are compared without their escapes. Nil: not an object.
    public static func setting(_ bytes: RawSpan, _ changes: [(key: String, value: [UInt8]?)]) -> [UInt8]? {
        let open = bytes.skippingSpace(0)
        guard open < bytes.byteCount, bytes[open] == Ascii.openBrace else { return nil }
        var out = bytes.array(0..<open + 1)
        out.reserveCapacity(bytes.byteCount + changes.reduce(0) { $0 + $1.key.utf8.count + ($1.value?.count ?? 0) + 8 })
        var done = [Bool](repeating: false, count: changes.count)
        var kept = 0
        // What lies between the previous member's comma (or the brace) and this member's belongs to it.
        var start = open + 1
        var last = start
        let whole = JSONScan.members(bytes, nil) { key, value in
            let end = bytes.skippingSpace(value.upperBound)
            defer { (start, last) = (end + 1, end) }
            guard let index = changes.lastIndex(where: { JSONScan.keyEquals(bytes, key, $0.key) }) else {
                separate(&out, &kept)
                append(bytes, start..<end, &out)
                return true
            }
            guard !done[index] else { return true }
            done[index] = true
            guard let replacement = changes[index].value else { return true }
            separate(&out, &kept)
            append(bytes, start..<value.lowerBound, &out)
            out.append(contentsOf: replacement)
            append(bytes, value.upperBound..<end, &out)
            return true
        }
        guard whole else { return nil }
        if start == open + 1, last == start { last = bytes.skippingSpace(start) }  // An empty object.
        guard bytes.skippingSpace(last + 1) == bytes.byteCount else { return nil }
        for (index, change) in changes.enumerated() where !done[index] {
            guard let value = change.value, changes.lastIndex(where: { $0.key == change.key }) == index else { continue }
            separate(&out, &kept)
            JSONWriter.string(change.key, into: &out)
            out.append(Ascii.colon)
            out.append(contentsOf: value)
        }
        append(bytes, last..<bytes.byteCount, &out)
        return out
    }

    private static func separate(_ out: inout [UInt8], _ kept: inout Int) {
        if kept > 0 { out.append(Ascii.comma) }
        kept += 1
    }

    private static func append(_ bytes: RawSpan, _ range: Range<Int>, _ out: inout [UInt8]) {
        bytes.extracting(range).withUnsafeBytes { out.append(contentsOf: $0) }
    }

}
