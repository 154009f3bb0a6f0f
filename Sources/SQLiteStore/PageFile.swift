internal import Store

#if canImport(Glibc)
    internal import Glibc
#endif

/// The pages of a database file and of its log, read without SQLite and without a lock, so that damage in one does not hide the others.
/// The form is that of sqlite.org/fileformat2.html ("FF" below). Nothing is ever written.
final class PageFile {
    /// Our databases have SQLite's default; it is taken for granted where neither header can be read.
    private static let usualPageBytes = 4096
    /// A record that claims to be longer is damaged: ours have some hundred bytes.
    private static let recordBytesMax = 1 << 20

    let pageBytes: Int
    /// What of a page is in use (FF 1.3.4).
    let usableBytes: Int
    /// Pages of the file, with those that are only in the log yet. Pages are counted from 1.
    let count: Int
    /// The first 100 bytes of the main file are not a database header.
    let isHeaderDamaged: Bool
    /// What of the log SQLite would leave out though it was written.
    let logDamage: LogDamage?
    /// Frames of the log that are damaged or cut off.
    private(set) var unreadableFrames = 0
    /// Pages that the log holds behind its last readable commit, though there is damage: the commit may be what was damaged.
    private(set) var uncommitted: [[UInt8]] = []
    private let main: Int32
    private let log: Int32
    private var frames: [Int: Int] = [:]

    init(_ path: String) throws(StoreError) {
        main = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        let code = errno
        log = open(path + "-wal", O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard main >= 0 else {
            if log >= 0 { close(log) }
            throw StoreError(code == ENOENT ? .missing : .io, "reading \(path): \(String(cString: strerror(code)))")
        }
        let head = Self.read(main, at: 0, count: 100)
        let size = Self.size(main)
        isHeaderDamaged = !Self.isHeader(head)
        let logHead = Self.read(log, at: 0, count: 32)
        let logPageBytes = Self.number(logHead, 8)
        if !isHeaderDamaged {
            pageBytes = Self.pageBytes(head)
        } else {
            pageBytes =
                logPageBytes >= 512 && logPageBytes <= 65536 && logPageBytes.nonzeroBitCount == 1 ? logPageBytes : Self.usualPageBytes
        }
        usableBytes = pageBytes - (isHeaderDamaged ? 0 : Int(head[20]))
        let (frames, pagesAfterCommit, damaged, rest, logDamage) = Self.frames(log, logHead, pageBytes)
        self.logDamage = logDamage
        count = max((size + pageBytes - 1) / pageBytes, pagesAfterCommit)
        self.frames = frames
        unreadableFrames = damaged
        if damaged > 0 { uncommitted = rest.map { Self.read(log, at: $0, count: pageBytes) }.filter { $0.count == pageBytes } }
    }

    deinit {
        close(main)
        if log >= 0 { close(log) }
    }

    /// The newest state of a page; nil where the file is cut off or the disk does not give it.
    func page(_ number: Int) -> [UInt8]? {
        let bytes =
            frames[number].map { Self.read(log, at: $0, count: pageBytes) }
            ?? Self.read(main, at: (number - 1) * pageBytes, count: pageBytes)
        return bytes.count == pageBytes ? bytes : nil
    }

    /// The pages that hold nothing (FF 1.5); none when the header can't be trusted.
    func freePages() -> Set<Int> {
        guard let head = page(1), Self.isHeader(head) else { return [] }
        var (out, trunk) = (Set<Int>(), Self.number(head, 32))
        while trunk > 1, trunk <= count, out.insert(trunk).inserted, let bytes = page(trunk) {
            let leaves = Self.number(bytes, 4)
            guard leaves <= usableBytes / 4 - 2 else { break }
            for i in 0..<leaves { out.insert(Self.number(bytes, 8 + 4 * i)) }
            trunk = Self.number(bytes, 0)
        }
        return out
    }

    /// FF 1.3.
    static func isHeader(_ head: [UInt8]) -> Bool {
        head.count >= 100 && head.starts(with: "SQLite format 3\0".utf8) && (512...65536).contains(pageBytes(head))
            && pageBytes(head).nonzeroBitCount == 1 && (1...2).contains(head[18]) && (1...2).contains(head[19]) && head[20] <= 32
            && head[21...23].elementsEqual([64, 32, 32]) && number(head, 56) <= 1
    }

    private static func pageBytes(_ head: [UInt8]) -> Int {
        let raw = Int(head[16]) << 8 | Int(head[17])
        return raw == 1 ? 65536 : raw
    }

    /// Four bytes, big-endian; 0 beyond the end.
    static func number(_ bytes: [UInt8], _ at: Int) -> Int {
        at >= 0 && at + 4 <= bytes.count ? bytes[at..<at + 4].reduce(0) { $0 << 8 | Int($1) } : 0
    }

    // MARK: The log

    /// Where in the log the newest committed state of each page lies (FF 4).
    ///
    /// A frame's checksum starts from that of the frame before it, which is stored, too: behind a damaged frame the rest still proves itself.
    private static func frames(
        _ log: Int32, _ head: [UInt8], _ pageBytes: Int
    ) -> (committed: [Int: Int], pages: Int, damaged: Int, uncommitted: [Int], log: LogDamage?) {
        guard head.count == 32 else { return ([:], 0, 0, [], nil) }
        let frameBytes = 24 + pageBytes
        let size = Self.size(log)
        let total = (size - 32 + frameBytes - 1) / frameBytes
        let isBig = head[3] & 1 == 1
        var seed = (UInt32(truncatingIfNeeded: number(head, 24)), UInt32(truncatingIfNeeded: number(head, 28)))
        let isIntact = number(head, 0) & ~1 == 0x377F_0682 && checksum(head[0..<24], (0, 0), isBig) == seed
        var salt = isIntact ? Array(head[16..<24]) : []
        var (committed, pending): ([Int: Int], [Int: Int]) = ([:], [:])
        var (pages, damaged) = (0, isIntact ? 0 : 1)
        // SQLite reads up to the first frame that does not follow from the one before.
        var end: Int? = isIntact ? nil : 0
        var (commitsBehind, zeros) = (0, 0)
        for i in 0..<max(0, total) {
            let at = 32 + i * frameBytes
            let frame = read(log, at: at, count: frameBytes)
            guard frame.count >= 24 else { break }
            // Without the header the first frame says which generation of the log this is: those behind it may be older.
            if salt.isEmpty { salt = Array(frame[8..<16]) }
            let stored = (UInt32(truncatingIfNeeded: number(frame, 16)), UInt32(truncatingIfNeeded: number(frame, 20)))
            let isOurs = frame[8..<16].elementsEqual(salt)
            let page = number(frame, 0)
            let follows =
                isOurs && frame.count == frameBytes && page > 0
                && checksum(frame[24...], checksum(frame[0..<8], seed, isBig), isBig) == stored
            if !follows, end == nil { end = i }
            // One that is cut off at the end of the file was being written. One whose page was hit still has its head.
            if end != nil, frame.count == frameBytes {
                if isOurs, number(frame, 4) > 0 { commitsBehind += 1 }
                if frame.allSatisfy({ $0 == 0 }) { zeros += 1 }
            }
            if follows {
                pending[page] = at + 24
                if case let after = number(frame, 4), after > 0 {
                    committed.merge(pending) { $1 }
                    (pages, pending) = (after, [:])
                }
            } else if isOurs {
                damaged += 1
            }
            seed = stored
        }
        let isDamage = commitsBehind > 0 || zeros > 0
        let log = end.flatMap { isDamage ? LogDamage(frame: $0 + 1, commitsBehind: commitsBehind, zeroFrames: zeros) : nil }
        return (committed, pages, damaged + zeros, pending.values.sorted(), log)
    }

    /// FF 4.2: two sums over words of 32 bits, in the byte order that the log's magic number gives.
    private static func checksum(_ bytes: ArraySlice<UInt8>, _ seed: (UInt32, UInt32), _ isBig: Bool) -> (UInt32, UInt32) {
        bytes.withUnsafeBytes { raw in
            var (a, b) = seed
            for at in stride(from: 0, to: raw.count - 7, by: 8) {
                let (x, y) = (
                    raw.loadUnaligned(fromByteOffset: at, as: UInt32.self), raw.loadUnaligned(fromByteOffset: at + 4, as: UInt32.self)
                )
                a = a &+ (isBig ? UInt32(bigEndian: x) : UInt32(littleEndian: x)) &+ b
                b = b &+ (isBig ? UInt32(bigEndian: y) : UInt32(littleEndian: y)) &+ a
            }
            return (a, b)
        }
    }

    private static func size(_ fd: Int32) -> Int {
        var info = stat()
        return fd >= 0 && fstat(fd, &info) == 0 ? Int(info.st_size) : 0
    }

    /// Up to `count` bytes.
    private static func read(_ fd: Int32, at offset: Int, count: Int) -> [UInt8] {
        guard fd >= 0, offset >= 0 else { return [] }
        return [UInt8](unsafeUninitializedCapacity: count) { buffer, used in
            used = max(0, pread(fd, buffer.baseAddress, count, off_t(offset)))
        }
    }

    // MARK: Cells

    /// The cell at `at` of a page. Nil when it does not hold together, or its overflow pages do not.
    func cell(_ bytes: [UInt8], at: Int, _ kind: TreePage.Kind) -> Cell? {
        var reader = Reader(bytes, at, usableBytes)
        var cell = Cell()
        if kind.isInterior {
            guard at + 4 <= usableBytes else { return nil }
            cell.child = Self.number(bytes, at)
            reader.at += 4
            if kind == .tableInterior { return cell }
        }
        guard let length = reader.varint(), length >= 2, length <= Self.recordBytesMax else { return nil }
        if kind == .tableLeaf {
            guard let id = reader.varint() else { return nil }
            cell.rowID = id
        }
        // How much of it lies here (FF 1.6, "Let X be …").
        let (total, usable) = (Int(length), usableBytes)
        let most = kind == .tableLeaf ? usable - 35 : (usable - 12) * 64 / 255 - 23
        let least = (usable - 12) * 32 / 255 - 23
        let fitting = least + (total - least) % (usable - 4)
        let here = total <= most ? total : fitting <= most ? fitting : least
        guard reader.at + here <= usable else { return nil }
        var payload = Array(bytes[reader.at..<reader.at + here])
        cell.end = reader.at + here
        if total > here {
            guard cell.end + 4 <= usable else { return nil }
            var next = Self.number(bytes, cell.end)
            cell.end += 4
            while payload.count < total {
                guard next > 1, next <= count, !cell.overflow.contains(next), let page = page(next) else { return nil }
                cell.overflow.append(next)
                payload += page[4..<4 + min(usable - 4, total - payload.count)]
                next = Self.number(page, 0)
            }
        }
        guard let values = Self.record(payload) else { return nil }
        cell.values = values
        return cell
    }

    /// FF 2.1. Nil for what no record of ours has: a real number, a text that is not UTF-8.
    private static func record(_ bytes: [UInt8]) -> [SQLValue]? {
        var types = Reader(bytes, 0, bytes.count)
        guard let headBytes = types.varint(), headBytes >= 2, headBytes <= bytes.count else { return nil }
        var at = Int(headBytes)
        var out: [SQLValue] = []
        while types.at < Int(headBytes) {
            guard let type = types.varint(), type >= 0, type != 7, type != 10, type != 11 else { return nil }
            let size = type >= 12 ? (Int(type) - 12) / 2 : [0, 1, 2, 3, 4, 6, 8, 0, 0, 0][Int(type)]
            guard size <= bytes.count - at else { return nil }
            let field = bytes[at..<at + size]
            at += size
            switch type {
            case 0: out.append(.null)
            case 1...6: out.append(.int(field.dropFirst().reduce(Int64(Int8(bitPattern: field[field.startIndex]))) { $0 << 8 | Int64($1) }))
            case 8, 9: out.append(.int(type - 8))
            case _ where type & 1 == 0: out.append(.blob(Array(field)))
            default:
                guard let text = String(validating: field, as: UTF8.self) else { return nil }
                out.append(.text(text))
            }
        }
        return at == bytes.count && types.at == Int(headBytes) ? out : nil
    }
}

/// Frames that stand in a log (`-wal`) behind the first one that SQLite can't read: it would begin the log anew there, and they were gone.
struct LogDamage: Equatable {
    /// The first frame that does not follow from the one before; the first of the log is 1.
    var frame: Int
    /// Ends of transactions that were written there or behind it.
    var commitsBehind: Int
    /// Frames of nothing but zeros, which SQLite never writes.
    var zeroFrames: Int
}

/// One cell of a B-tree page.
struct Cell {
    /// The page to the left of it; nil on a leaf.
    var child: Int?
    var rowID: Int64?
    var values: [SQLValue] = []
    var overflow: [Int] = []
    /// Behind its last byte on its own page.
    var end = 0
}

/// The head of a B-tree page and where its cells are (FF 1.6).
struct TreePage {
    enum Kind: UInt8 {
        case indexInterior = 2
        case tableInterior = 5
        case indexLeaf = 10
        case tableLeaf = 13
        var isInterior: Bool { self == .indexInterior || self == .tableInterior }
        var isTable: Bool { self == .tableInterior || self == .tableLeaf }
    }
    let kind: Kind
    /// Pointers inside the page only.
    var cells: [Int] = []
    /// Cells that the page says it has.
    let count: Int
    var rightmost: Int?

    /// Nil when it is not the head of a B-tree page.
    init?(_ bytes: [UInt8], number: Int, usable: Int) {
        let at = number == 1 ? 100 : 0
        guard let kind = Kind(rawValue: bytes[at]) else { return nil }
        let head = kind.isInterior ? 12 : 8
        count = Int(bytes[at + 3]) << 8 | Int(bytes[at + 4])
        let pointers = at + head
        guard pointers + 2 * count <= usable, bytes[at + 7] <= 60 else { return nil }
        self.kind = kind
        if kind.isInterior { rightmost = PageFile.number(bytes, at + 8) }
        for i in 0..<count {
            let place = Int(bytes[pointers + 2 * i]) << 8 | Int(bytes[pointers + 2 * i + 1])
            if place >= pointers + 2 * count, place + 3 < usable { cells.append(place) }
        }
    }
}

/// Reads varints (FF 1.6: big-endian, 7 bits a byte, the ninth has 8) and never beyond `end`.
private struct Reader {
    private let bytes: [UInt8]
    private let end: Int
    var at: Int
    init(_ bytes: [UInt8], _ at: Int, _ end: Int) { (self.bytes, self.at, self.end) = (bytes, at, end) }

    mutating func varint() -> Int64? {
        var value: UInt64 = 0
        for i in 0..<9 {
            guard at < end else { return nil }
            let byte = bytes[at]
            at += 1
            if i == 8 { return Int64(bitPattern: value << 8 | UInt64(byte)) }
            value = value << 7 | UInt64(byte & 0x7F)
            if byte < 0x80 { return Int64(bitPattern: value) }
        }
        return nil
    }
}
