/// Nothing traps; frames do not depend on where the stream is cut; a record that can be read is written back as it was.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(cutAt cut: Int) -> (frames: [Frame], failed: Bool) {
        var reader = FrameReader(frameBytesMax: 1 << 16)
        var frames: [Frame] = []
        for part in [Array(input[..<cut]), Array(input[cut...])] {
            do throws(FrameError) {
                try reader.feed(part.span.bytes) { frame throws(FrameError) in frames.append(frame) }
            } catch {
                return (frames, true)
            }
        }
        return (frames, false)
    }
    let whole = read(cutAt: input.count)
    let parts = read(cutAt: input.count / 2)
    precondition(whole.frames == parts.frames && whole.failed == parts.failed)
    for frame in whole.frames {
        var reader = FrameReader()
        var again: [Frame] = []
        do throws(FrameError) {
            try reader.feed(FrameCodec.encode(frame).span.bytes) { frame throws(FrameError) in again.append(frame) }
        } catch {
            preconditionFailure("wrote a frame that can't be read: \(error)")
        }
        precondition(again == [frame])
    }
    if let record = try? UsageRecord(journalBytes: input) {  // Not a record: not trapping was the test.
        let again = try? UsageRecord(journalBytes: record.journalBytes)
        precondition(again == record)
    }
    var rows = JournalRows()
    if rows.append(batch: input.span.bytes, unreadable: { _, _ in }) != nil, let theirs = try? UsageBatch(serializedBytes: input) {  // the same
        let readable = theirs.records.map { [UInt8]($0) }.filter { (try? UsageRecord(journalBytes: $0)) != nil }  // the others are told
        precondition(rows.rows.indices.map { rows.journalBytes($0) } == readable)
    }
    return 0
}
