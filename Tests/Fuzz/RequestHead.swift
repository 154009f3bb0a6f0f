/// A head fed byte by byte must end as the same head fed at once.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(_ lengths: some Sequence<Int>) -> String {
        var scanned = 0
        for length in lengths {
            do {
                guard let (head, consumed) = try RequestHead.parse(input.span.bytes.extracting(0..<length), scanned: &scanned) else {
                    continue
                }
                precondition(consumed <= length && head.target.utf8.first != nil)
                var out: [UInt8] = []
                head.fields.forEachEndToEnd { HeadWriter.field($1, $2, into: &out) }
                return
                    "\(head.method) \(head.target) \(head.path) \(head.query ?? "-") \(head.framing) \(head.keepsAlive) \(consumed) \(out)"
            } catch { return "\(error)" }
        }
        return "incomplete"
    }
    if count > 2048 { precondition(read([count / 2, count]) == read([count])) } else { precondition(read(0...count) == read([count])) }
    return 0
}
