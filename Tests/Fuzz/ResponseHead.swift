/// A head fed byte by byte must end as the same head fed at once.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(_ lengths: some Sequence<Int>) -> String {
        var scanned = 0
        for length in lengths {
            do {
                guard let (head, consumed) = try ResponseHead.parse(input.span.bytes.extracting(0..<length), scanned: &scanned) else {
                    continue
                }
                precondition(consumed <= length)
                return "\(head.status) \(head.framing(toMethod: .get)) \(head.keepsAlive) \(head.fields.count) \(consumed)"
            } catch { return "\(error)" }
        }
        return "incomplete"
    }
    if count > 2048 { precondition(read([count / 2, count]) == read([count])) } else { precondition(read(0...count) == read([count])) }
    return 0
}
