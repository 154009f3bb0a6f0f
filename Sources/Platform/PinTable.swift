internal import Synchronization
public import Vocabulary

/// Which account a conversation belongs to, known to all workers at once: a bounded table in shared memory.
///
/// Keys are hashes; an entry is two words that anybody may write at any moment, without a lock and without a process that could die holding
/// one. The first is the key XOR the second (Hyatt and Mann, "A lockless transposition-table implementation", 2002): a half-written entry,
/// or one that two processes wrote at once, belongs to no key and is not found. A full set forgets what would end first.
public struct PinTable: @unchecked Sendable {  // atomics only
    private static let ways = 8
    static let sets = Limits.pinsMax / ways
    public static let memoryBytes = Limits.pinsMax * 16

    private let base: UnsafeMutableRawPointer

    /// `memory`: `memoryBytes` of shared memory, zeroes at first.
    init(_ memory: UnsafeMutableRawPointer) { base = memory }

    private typealias Cell = UnsafeMutablePointer<Atomic<UInt64>>
    private func cell(_ entry: Int, _ word: Int) -> Cell { (base + entry * 16 + word * 8).assumingMemoryBound(to: Atomic<UInt64>.self) }
    private func first(_ key: UInt64) -> Int { Int(key % UInt64(Self.sets)) * Self.ways }

    /// Account and the second of the monotonic clock when it is forgotten, in one word; 0 is nothing.
    private static func packed(_ account: Int64, _ until: Instant) -> UInt64 {
        UInt64(truncatingIfNeeded: account) << 32 | (until.nanoseconds / 1_000_000_000) & 0xFFFF_FFFF
    }
    private static func seconds(_ word: UInt64) -> UInt64 { word & 0xFFFF_FFFF }

    /// The account of `key`; nil when nobody knows, or no more.
    public func account(_ key: UInt64, now: Instant) -> Int64? {
        let start = first(key)
        for entry in start..<start + Self.ways {
            let word = cell(entry, 1).pointee.load(ordering: .relaxed)
            guard word != 0, cell(entry, 0).pointee.load(ordering: .relaxed) ^ word == key else { continue }
            return Self.seconds(word) > now.nanoseconds / 1_000_000_000 ? Int64(word >> 32) : nil
        }
        return nil
    }

    /// Calls `body` with what is remembered now, and for how many seconds yet.
    public func forEach(now: Instant, _ body: (_ key: UInt64, _ account: Int64, _ seconds: Int) -> Void) {
        let today = now.nanoseconds / 1_000_000_000
        for entry in 0..<Limits.pinsMax {
            let word = cell(entry, 1).pointee.load(ordering: .relaxed)
            guard word != 0, Self.seconds(word) > today else { continue }
            body(cell(entry, 0).pointee.load(ordering: .relaxed) ^ word, Int64(word >> 32), Int(Self.seconds(word) - today))
        }
    }

    /// True: others don't know it yet, it was another account's, or a good part of its time was over. Account ids beyond 32 bits are not pinned.
    @discardableResult public func pin(_ key: UInt64, to account: Int64, seconds: Int, now: Instant) -> Bool {
        guard account > 0, account <= Int64(UInt32.max) else { return false }
        let start = first(key)
        var (place, soonest, isNews) = (start, UInt64.max, true)
        for entry in start..<start + Self.ways {
            let word = cell(entry, 1).pointee.load(ordering: .relaxed)
            if word == 0 || cell(entry, 0).pointee.load(ordering: .relaxed) ^ word == key {
                place = entry
                let left = Int(clamping: Self.seconds(word)) - Int(clamping: now.nanoseconds / 1_000_000_000)
                isNews = word >> 32 != UInt64(account) || left < seconds - seconds / 4
                break
            }
            if Self.seconds(word) < soonest { (place, soonest) = (entry, Self.seconds(word)) }
        }
        let word = Self.packed(account, now.adding(milliseconds: seconds * 1000))
        cell(place, 1).pointee.store(word, ordering: .relaxed)
        cell(place, 0).pointee.store(key ^ word, ordering: .relaxed)
        return isNews
    }
}
