/// A body fed byte by byte must give the data of the same body fed at once.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(step: Int) -> (data: [UInt8], end: String) {
        var decoder = BodyDecoder(.chunked)
        var data: [UInt8] = []
        var at = 0
        while at < count {
            let end = min(count, at + step)
            let part = input.span.bytes.extracting(at..<end)
            var offset = 0
            do {
                while let piece = try decoder.next(part, &offset) {
                    guard case .data(let range) = piece else { return (data, "end at \(at + offset)") }
                    precondition(!range.isEmpty)
                    data += input[at + range.lowerBound..<at + range.upperBound]
                }
                precondition(offset == part.byteCount)
            } catch { return (data, "\(error)") }
            at = end
        }
        return (data, "open")
    }
    precondition(read(step: 1) == read(step: max(1, count)))
    return 0
}
