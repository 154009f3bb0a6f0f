internal import Glibc

/// A damaged database traps nothing and is read to its end. The input is the file; from its second half on it is also taken for the log.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    let path = "/dev/shm/codex-lb-fuzz.\(getpid())"
    write(input[...], path)
    write(input[(count / 2)...], path + "-wal")
    defer {
        unlink(path)
        unlink(path + "-wal")
    }
    guard let file = try? PageFile(path) else { return 0 }  // not to be opened: not trapping was the test
    _ = file.freePages()
    for number in 1...max(1, min(file.count, 64)) {
        guard let bytes = file.page(number), let page = TreePage(bytes, number: number, usable: file.usableBytes) else { continue }
        for at in page.cells { _ = file.cell(bytes, at: at, page.kind) }
    }
    return 0
}

private func write(_ bytes: ArraySlice<UInt8>, _ path: String) {
    let fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    precondition(fd >= 0)
    bytes.withUnsafeBytes { _ = Glibc.write(fd, $0.baseAddress, $0.count) }
    close(fd)
}
