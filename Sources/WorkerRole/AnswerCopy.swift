import Vocabulary

/// A body that is passed on as it comes, and what is kept of it to read its usage at its end.
struct AnswerCopy {
    /// The whole body so far, or nothing once it was given up.
    private(set) var bytes: [UInt8] = []
    /// Length of the body so far.
    private(set) var count = 0
    private var isKept = true

    /// A body beyond `Limits.assembledBodyBytesMax` is not kept.
    mutating func append(_ piece: RawSpan) {
        count += piece.byteCount
        if count > Limits.assembledBodyBytesMax { giveUp() }
        if isKept { piece.withUnsafeBytes { bytes += $0 } }
    }

    /// Keeps nothing any more: what the answer cost will be an estimate.
    mutating func giveUp() { (bytes, isKept) = ([], false) }
}
