/// Nothing traps; what is valid survives a tree and an edit.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    let bytes = input.span.bytes
    JSONScan.members(bytes, nil) { key, value in
        _ = JSONScan.key(bytes, key)
        _ = JSONScan.string(bytes, value)
        _ = JSONScan.int(bytes, value)
        JSONScan.elements(bytes, value) { _ in true }
        return true
    }
    _ = JSONScan.find(bytes, "a", "b")
    let edited = JSONEdit.setting(bytes, [("a", Array("[7]".utf8)), ("b", nil)])
    guard let value = try? JSONValue(parsing: bytes) else { return 0 }  // Not JSON: not trapping was the test.
    let written = value.serialized()
    guard let again = try? JSONValue(parsing: written.span.bytes) else { preconditionFailure("wrote what isn't JSON") }
    precondition(again == value)
    precondition((edited != nil) == (value.objectValue != nil))
    if let edited {
        guard let changed = try? JSONValue(parsing: edited.span.bytes) else { preconditionFailure("edit broke the document") }
        precondition(changed["a"] == .array([.number("7")]) && changed["b"] == nil)
        let others = { (v: JSONValue) in v.objectValue!.members.filter { $0.key != "a" && $0.key != "b" } }
        precondition(others(changed) == others(value))
    }
    return 0
}
