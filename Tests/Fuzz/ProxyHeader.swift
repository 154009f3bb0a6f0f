/// A PROXY header fed byte by byte must end as the same header fed at once, and nothing behind it belongs to it.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    func read(pieces size: Int) -> String {
        var reader = ProxyHeaderReader()
        var taken = 0
        while taken < count {
            let next = min(count, taken + size)
            switch reader.take(input.span.bytes.extracting(taken..<next)) {
            case .more: break
            case .header(let header, let consumed):
                precondition(consumed > 0 && taken + consumed <= count && taken + consumed <= Limits.proxyHeaderBytesMax)
                return "\(header) \(taken + consumed)"
            case .wrong: return "wrong"  // for which reason may depend on what has come by then
            }
            taken = next
        }
        return "incomplete"
    }
    let whole = read(pieces: max(1, count))
    for size in [1, 7] { precondition(read(pieces: size) == whole) }
    return 0
}
