import Bytes
import JSONWire
import Vocabulary

/// A body that is passed on as it comes, and what is kept of it to read its usage at its end.
struct AnswerCopy {
    /// The whole body so far; once it was given up its last bytes.
    private(set) var bytes: [UInt8] = []
    /// Length of the body so far.
    private(set) var count = 0
    private(set) var isWhole = true

    /// A body beyond `Limits.assembledBodyBytesMax` is not kept.
    mutating func append(_ piece: RawSpan) {
        count += piece.byteCount
        piece.withUnsafeBytes { bytes += $0 }
        if count > Limits.assembledBodyBytesMax { isWhole = false }
        if !isWhole, bytes.count > 2 * Limits.usageTailBytes { cutToTail() }
    }

    /// Keeps no more than its end.
    mutating func giveUp() {
        isWhole = false
        cutToTail()
    }

    private mutating func cutToTail() { bytes = Array(bytes.suffix(Limits.usageTailBytes)) }

    /// `{"usage":{…}}` with the last such member of the kept end; empty when there is none. Inside a JSON string the quotes would be escaped, so
    /// these are a member's; only numbers of tokens make it the answer's own.
    var usageInTail: [UInt8] {
        let mark = Array("\"usage\"".utf8)
        let tail = bytes.span.bytes
        var at = bytes.count - mark.count
        while at >= 0 {
            defer { at -= 1 }
            guard bytes[at] == mark[0], bytes[at..<at + mark.count].elementsEqual(mark), at == 0 || bytes[at - 1] != UInt8(ascii: "\\")
            else {
                continue
            }
            guard let colon = bytes[(at + mark.count)...].firstIndex(where: { $0 > 0x20 }), bytes[colon] == UInt8(ascii: ":"),
                let start = bytes[(colon + 1)...].firstIndex(where: { $0 > 0x20 }), bytes[start] == UInt8(ascii: "{"),
                let end = JSONScan.valueEnd(tail, start)
            else { continue }
            let object = tail.extracting(start..<end)
            for name in ["input_tokens", "prompt_tokens", "total_tokens"] as [StaticString] {
                guard let value = JSONScan.find(object, name), JSONScan.kind(object, value) == .number else { continue }
                return Array("{\"usage\":".utf8) + Array(bytes[start..<end]) + Array("}".utf8)
            }
        }
        return []
    }
}
