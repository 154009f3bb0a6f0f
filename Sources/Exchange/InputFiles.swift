import Bytes
import JSONWire
import Vocabulary

/// The files that the input of a Responses request names.
enum InputFiles {
    /// Of the parts of the input's messages and of tools' outputs: `file_id` of `input_file` and `input_image`, and the images `sediment://ID`. A body
    /// in which neither key stands as it is mostly written is not walked: a turn whose files are not seen goes by ordinary choice.
    static func ids(in document: JSONDocument, _ input: JSONDocument.Value?) -> [String] {
        let bytes = document.bytes.span.bytes
        guard let input, hasKeys(bytes) else { return [] }
        var found: [String] = []
        func take(_ id: Substring?) {
            guard let id, !id.isEmpty, id.utf8.count <= Limits.affinityKeyBytesMax, !found.contains(String(id)) else { return }
            found.append(String(id))
        }
        for item in document.elements(input) {
            guard
                let parts = JSONScan.find(bytes, in: item.range, "content") ?? JSONScan.find(bytes, in: item.range, "output"),
                JSONScan.kind(bytes, parts) == .array
            else { continue }
            _ = JSONScan.elements(bytes, parts) { part in
                guard JSONScan.kind(bytes, part) == .object else { return true }
                JSONScan.members(bytes, part) { key, value in
                    if JSONScan.keyEquals(bytes, key, "file_id"), value.count <= Limits.affinityKeyBytesMax + 2 {
                        take(JSONScan.string(bytes, value)?[...])
                    } else if JSONScan.keyEquals(bytes, key, "image_url"), value.count <= Limits.affinityKeyBytesMax + sedimentBytes,
                        let url = JSONScan.string(bytes, value), url.hasPrefix("sediment://")
                    {
                        take(url.dropFirst(11).prefix { $0 != "?" && $0 != "#" })
                    }
                    return found.count < Limits.turnFilesMax
                }
                return found.count < Limits.turnFilesMax
            }
            if found.count >= Limits.turnFilesMax { break }
        }
        return found
    }

    /// Found by a byte that is rare in prose, and the one before it.
    private static func hasKeys(_ bytes: RawSpan) -> Bool {
        var start = 0
        while let mark = bytes.first(UInt8(ascii: "_"), from: start, to: bytes.byteCount) {
            start = mark + 1
            guard mark >= 6, bytes[mark - 1] == UInt8(ascii: "e") else { continue }
            if bytes.hasPrefix("\"file_id\"", at: mark - 5) || bytes.hasPrefix("\"image_url\"", at: mark - 6) { return true }
        }
        return false
    }

    /// Of `"sediment://` and the quote behind it.
    private static let sedimentBytes = 13
}
