internal import Synchronization
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// A worker's ring of usage records that the store has not acknowledged, in memory that the supervisor holds too: it outlives the worker.
///
/// ```
/// offset 0     layout │ tail: first byte not acknowledged │ head: first free byte   (ever-growing positions)
/// offset 4096  ring of [u32 count][u32 CRC-32C][bytes, padded to 8]; count 0xFFFF_FFFF: go on at the ring's start
/// ```
/// One process appends and acknowledges (the worker that was started with it); a successor finds what its predecessor left. A record exists once
/// `head` has passed it, so a kill at any instruction leaves it either whole or absent.
public struct Journal: @unchecked Sendable {  // one writer; positions are atomics
    private let base: UnsafeMutableRawPointer
    public let capacity: Int
    private static let headerBytes = 4096
    private static let skip: UInt32 = 0xFFFF_FFFF
    /// What lies where. To be counted up with every change of it.
    public static let layoutVersion: UInt64 = 2

    /// Bytes of the memory file of a journal.
    public static func memoryBytes(capacity: Int = Limits.journalBytes) -> Int { headerBytes + capacity }

    /// Lays a fresh memory out, or takes one that this build has laid out.
    public init(_ memory: SharedMemory) {
        base = memory.bytes.baseAddress!
        capacity = memory.bytes.count - Self.headerBytes
        precondition(capacity % 8 == 0 && capacity >= 4 * Limits.journalRecordBytesMax)
        if layoutCell.pointee.load(ordering: .acquiring) == 0 { layoutCell.pointee.store(Self.layoutVersion, ordering: .releasing) }
    }

    /// A memory that another build has laid out is refused.
    public init(inherited memory: SharedMemory) throws(SystemError) {
        self.init(memory)
        let found = layoutCell.pointee.load(ordering: .acquiring)
        guard found == Self.layoutVersion else {
            throw SystemError(EPROTO, "the journal has layout \(found), this build knows \(Self.layoutVersion)")
        }
    }

    private var layoutCell: UnsafeMutablePointer<Atomic<UInt64>> { base.assumingMemoryBound(to: Atomic<UInt64>.self) }

    private var tailCell: UnsafeMutablePointer<Atomic<UInt64>> { (base + 64).assumingMemoryBound(to: Atomic<UInt64>.self) }
    private var headCell: UnsafeMutablePointer<Atomic<UInt64>> { (base + 128).assumingMemoryBound(to: Atomic<UInt64>.self) }
    private var ring: UnsafeMutableRawPointer { base + Self.headerBytes }

    /// Position after the newest record.
    public var head: UInt64 { headCell.pointee.load(ordering: .acquiring) }
    /// Position of the oldest record that is not acknowledged.
    public var tail: UInt64 { tailCell.pointee.load(ordering: .acquiring) }
    public var isEmpty: Bool { head == tail }
    public var usedBytes: Int { max(0, Int(truncatingIfNeeded: head &- tail)) }

    /// Gives the ring's memory back to the kernel: nobody uses the journal until its next process, and nothing is in it.
    public func rest() {
        guard isEmpty else { return }
        _ = madvise(ring, capacity, MADV_REMOVE)  // where it can't, the pages stay
    }

    /// Whether `turns` more records fit for certain.
    public func hasRoom(turns: Int = 1) -> Bool {
        capacity - usedBytes > (turns + 1) * (Limits.journalRecordBytesMax + 16)
    }

    /// Appends one record of at most `Limits.journalRecordBytesMax` bytes. False when it does not fit: Admission prevents that by refusing turns in time.
    public func append(_ record: [UInt8]) -> Bool {
        precondition(record.count <= Limits.journalRecordBytesMax, "a usage record of \(record.count) bytes")
        let need = 8 + (record.count + 7) / 8 * 8
        var position = head
        var offset = Int(position % UInt64(capacity))
        let toEnd = capacity - offset
        let total = toEnd < need ? toEnd + need : need
        guard usedBytes + total <= capacity else { return false }
        if toEnd < need {
            ring.storeBytes(of: Self.skip, toByteOffset: offset, as: UInt32.self)
            position += UInt64(toEnd)
            offset = 0
        }
        record.withUnsafeBytes { bytes in
            ring.storeBytes(of: UInt32(record.count), toByteOffset: offset, as: UInt32.self)
            ring.storeBytes(of: SharedMemory.checksum(bytes), toByteOffset: offset + 4, as: UInt32.self)
            (ring + offset + 8).copyMemory(from: bytes.baseAddress ?? UnsafeRawPointer(base), byteCount: bytes.count)
        }
        headCell.pointee.store(position + UInt64(need), ordering: .releasing)
        return true
    }

    /// Up to `count` whole records from `position` on, and the position after the last of them.
    /// A record whose checksum does not hold ends the reading: what follows can't be trusted.
    public func read(from position: UInt64, count: Int) -> (records: [[UInt8]], end: UInt64, damaged: Bool) {
        var records: [[UInt8]] = []
        let (_, end, damaged) = visit(from: position, count: count) { records.append($0.withUnsafeBytes { Array($0) }) }
        return (records, end, damaged)
    }

    /// The same without copies: `body` gets each record where it lies.
    public func visit(
        from position: UInt64, count: Int, _ body: (RawSpan) -> Void
    ) -> (count: Int, end: UInt64, damaged: Bool) {
        var visited = 0
        var at = position
        let end = head
        while at < end, visited < count {
            let offset = Int(at % UInt64(capacity))
            let length = ring.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
            if length == Self.skip {
                at += UInt64(capacity - offset)
                continue
            }
            guard length <= UInt32(Limits.journalRecordBytesMax), offset + 8 + Int(length) <= capacity else { return (visited, at, true) }
            let bytes = UnsafeRawBufferPointer(start: ring + offset + 8, count: Int(length))
            guard SharedMemory.checksum(bytes) == ring.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self) else {
                return (visited, at, true)
            }
            body(bytes.bytes)
            visited += 1
            at += UInt64(8 + (Int(length) + 7) / 8 * 8)
        }
        return (visited, at, false)
    }

    /// Forgets everything before `end`: the store has committed it.
    public func acknowledge(through end: UInt64) {
        guard end > tail, end <= head else { return }
        tailCell.pointee.store(end, ordering: .releasing)
    }
}
