/// Nothing traps, and no layer's output is larger than its limit. The first byte chooses the encodings.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    guard let choice = input.first else { return 0 }
    let names = ["gzip", "deflate", "zstd", "identity", "br"]
    let encodings = [names[Int(choice & 7) % names.count]] + (choice & 8 == 0 ? [] : [names[Int(choice >> 4) % names.count]])
    let limit = 256 * 1024
    // What is broken throws; not trapping and not growing is the test.
    if let out = try? Inflate.decode(Array(input.dropFirst()), encodings: encodings, bytesMax: limit) {
        precondition(out.count <= max(limit, input.count))
    }
    return 0
}
