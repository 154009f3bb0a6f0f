import FaultVFS
import Store
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema

#if canImport(Glibc)
    import Glibc
#endif

/// A scratch directory whose SQLite files go through the fault VFS.
final class FaultyScratch {
    /// In memory where that can be had: what the tests show does not depend on the real disk, and its syncs take most of their time.
    let scratch = Scratch(in: access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp")
    let disk: OpaquePointer

    init() {
        guard let disk = fault_watch(scratch.path + "/") else { fatalError("more disks are watched than the fault VFS has room for") }
        self.disk = disk
    }
    deinit { fault_unwatch(disk) }

    func arm(_ kind: fault_kind, at n: Int, isPersistent: Bool = false, seed: UInt64 = 0) {
        fault_arm(disk, kind, Int64(n), isPersistent, seed)
    }
    func disarm() { fault_disarm(disk) }
    var hits: Int { Int(fault_hits(disk)) }
    var calls: Int { Int(fault_calls(disk)) }
}

/// What a run did, as those who called it know it.
private struct Ledger {
    var acknowledged: Set<Int> = []
    var refused: Set<Int> = []
    var errors: [StoreError] = []
    /// The number of the next record.
    var next = 0

    /// Does `body`; keeps its error.
    mutating func attempt(_ body: () throws(StoreError) -> Void) -> Bool {
        do throws(StoreError) {
            try body()
            return true
        } catch {
            errors.append(error)
            return false
        }
    }

    mutating func append(_ count: Int, to store: StoreSession) {
        let numbers = next..<next + count
        next += count
        if attempt({ () throws(StoreError) in _ = try store.append(numbers.map(record)) }) {
            acknowledged.formUnion(numbers)
        } else {
            refused.formUnion(numbers)
        }
    }
}

/// An upgrade beside the released revisions. Its id has no number, so that `Inspection`, which knows the released ones, takes the file.
private let more = Revision(
    id: Schema.head.id + "+", name: "more",
    statements: [.sqlite: ["CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT", "INSERT INTO more VALUES (7)"]])

/// The records that are stored, and whether the file holds together.
private func stored(_ store: StoreSession) throws -> [Int] {
    #expect(try store.sqlite.rows("PRAGMA integrity_check", []) { $0.text(0) } == ["ok"])
    return try store.usage(last: 1_000_000).map { Int($0.record.inputTokens) }.sorted()
}

@Suite struct FaultTests {
    /// Everything a writer does in its life; each step goes on after an error, as the writer does.
    private func live(_ scratch: Scratch, _ ledger: inout Ledger) {
        var store: StoreSession?
        guard ledger.attempt({ () throws(StoreError) in store = try scratch.open() }), let first = store else { return }
        ledger.append(3, to: first)
        _ = ledger.attempt { () throws(StoreError) in _ = try first.addAccount(newAccount, now: now) }
        ledger.append(40, to: first)
        _ = ledger.attempt { () throws(StoreError) in
            _ = try first.createClientKey("laptop", models: nil, expiresAt: nil, now: now)
        }
        _ = ledger.attempt { () throws(StoreError) in try first.connection.execute("PRAGMA wal_checkpoint(PASSIVE)") }
        _ = ledger.attempt { () throws(StoreError) in _ = try Backup.make(database: scratch.database, now: now) }
        ledger.append(5, to: first)
        _ = ledger.attempt { () throws(StoreError) in _ = try first.snapshot() }
        first.close()
        store = nil
        guard ledger.attempt({ () throws(StoreError) in store = try scratch.open(revisions: Schema.revisions + [more]) }),
            let second = store
        else { return }
        _ = ledger.attempt { () throws(StoreError) in _ = try second.setAccountState("one", .paused, now: now) }
        _ = ledger.attempt { () throws(StoreError) in _ = try second.removeAccount("one", now: now) }
        ledger.append(2, to: second)
        second.close()
    }

    /// What must hold after a run, whatever failed in it.
    private func judge(_ scratch: Scratch, _ ledger: Ledger, _ what: String) throws {
        let sensible: Set<StoreError.Kind> = [.io, .full]
        for error in ledger.errors {
            // An account that could not be added is not there to be paused.
            let isConsequence = error.kind == .notFound && ledger.errors.count > 1
            #expect(sensible.contains(error.kind) || isConsequence, "\(what): \(error.kind): \(error)")
        }
        for name in names(in: scratch.path + "/data") { #expect(!name.contains(".partial"), "\(what): \(name) is left") }
        for backup in Backup.list(database: scratch.database) { #expect(backup.problem == "", "\(what): \(backup)") }
        let store = try scratch.open(revisions: Schema.revisions + [more])
        let there = try stored(store)
        #expect(Set(there).count == there.count, "\(what): doubled")
        #expect(Set(there).isSuperset(of: ledger.acknowledged), "\(what): lost")
        #expect(Set(there).subtracting(ledger.acknowledged).isSubset(of: ledger.refused), "\(what): from nowhere")
        _ = try store.append(ledger.refused.sorted().map(record))
        #expect(try stored(store) == Array(0..<ledger.next), "\(what): after the repetition")
        _ = try store.snapshot()
        store.close()
    }

    @Test(
        "Whichever call to the disk fails, once or for good: nothing acknowledged is lost, nothing is doubled, and all is well afterwards",
        arguments: [FAULT_IOERR, FAULT_READ, FAULT_FULL, FAULT_SHORT], [false, true])
    func everyCall(kind: fault_kind, isPersistent: Bool) throws {
        var runs = 0
        for n in 1... {
            let faulty = FaultyScratch()
            faulty.arm(kind, at: n, isPersistent: isPersistent)
            var ledger = Ledger()
            live(faulty.scratch, &ledger)
            let hits = faulty.hits
            faulty.disarm()
            try judge(faulty.scratch, ledger, "\(kind) at call \(n)\(isPersistent ? " and on" : ""), \(ledger.errors)")
            runs += 1
            if hits == 0 {
                #expect(ledger.errors == [] && ledger.acknowledged.count == ledger.next)
                break
            }
        }
        #expect(runs > 20)
        print("fault loop: kind \(kind.rawValue)\(isPersistent ? ", persistent" : ""): \(runs) runs")
    }

    @Test("A session outlives a fault of the disk: once it works again the same session appends, reads and checkpoints")
    func heals() throws {
        for kind in [FAULT_IOERR, FAULT_READ, FAULT_FULL, FAULT_SHORT] {
            for n in 1... {
                let faulty = FaultyScratch()
                let store = try faulty.scratch.open()
                // A small cache, so that there are reads.
                try store.sqlite.execute("PRAGMA cache_size = 2")
                var ledger = Ledger()
                ledger.append(5, to: store)
                faulty.arm(kind, at: n, isPersistent: true)
                for _ in 0..<3 {
                    ledger.append(30, to: store)
                    _ = ledger.attempt { () throws(StoreError) in try store.sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)") }
                    _ = ledger.attempt { () throws(StoreError) in _ = try store.addAccount(newAccount, now: now) }
                    _ = ledger.attempt { () throws(StoreError) in _ = try store.removeAccount("one", now: now) }
                    _ = ledger.attempt { () throws(StoreError) in _ = try store.snapshot() }
                }
                let hits = faulty.hits
                faulty.disarm()
                let what: Comment = "\(kind) from call \(n) on, \(ledger.errors)"
                #expect(try Set(stored(store)).isSuperset(of: ledger.acknowledged), what)
                _ = try store.append(ledger.refused.sorted().map(record))
                #expect(try stored(store) == Array(0..<ledger.next), what)
                _ = try store.addAccount(
                    NewAccount(name: "two", kind: .apiKey, baseURL: "https://x", credentials: .init(bearer: "k")), now: now)
                try store.sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)")
                #expect(try store.snapshot().accounts.contains { $0.name == "two" }, what)
                store.close()
                if hits == 0 { break }
            }
        }
    }

    @Test("500 power cuts: no acknowledged record is lost, none is doubled, the database is whole, and account changes are all or nothing")
    func powerCuts() throws {
        let base = UInt64(Clock.wall.milliseconds)
        var cuts = 0
        var (acknowledged, survivors) = (0, 0)
        for seed in base..<base + 250 {
            var random = SplitMix(seed)
            let faulty = FaultyScratch()
            var ledger = Ledger()
            var paused: Bool?
            // One database lives through two cuts, so that a cut also meets the leavings of the one before.
            for round in 0..<2 {
                faulty.arm(FAULT_POWER_CUT, at: 1 + Int(random.next() % 160), seed: random.next())
                var opened: StoreSession?
                if ledger.attempt({ () throws(StoreError) in opened = try faulty.scratch.open() }), let store = opened {
                    _ = ledger.attempt { () throws(StoreError) in try store.sqlite.checkpointLog(pages: 8) }
                    if try !hasAccount(store), ledger.attempt({ () throws(StoreError) in _ = try store.addAccount(newAccount, now: now) }) {
                        paused = false
                    }
                    while faulty.hits == 0 {
                        switch random.next() % 8 {
                        case 0: _ = ledger.attempt { () throws(StoreError) in try store.sqlite.execute("PRAGMA wal_checkpoint(PASSIVE)") }
                        case 1:
                            let wanted = random.next() & 1 == 0
                            let done = ledger.attempt { () throws(StoreError) in
                                _ = try store.setAccountState("one", wanted ? .paused : .active, now: now)
                            }
                            paused = done ? wanted : nil
                        default: ledger.append(1 + Int(random.next() % 12), to: store)
                        }
                    }
                    store.close()
                }
                opened = nil
                cuts += 1
                faulty.disarm()
                let what: Comment = "seed \(seed), round \(round)"
                let store = try faulty.scratch.open()
                let there = try stored(store)
                #expect(Set(there).count == there.count, what)
                #expect(Set(there).isSuperset(of: ledger.acknowledged), what)
                #expect(Set(there).isSubset(of: ledger.acknowledged.union(ledger.refused)), what)
                if let paused {
                    #expect(try store.snapshot().accounts.map(\.state) == [paused ? .paused : .active], what)
                }
                (acknowledged, survivors) = (acknowledged + ledger.acknowledged.count, survivors + there.count)
                store.close()
            }
        }
        #expect(cuts == 500)
        print("power cuts: \(cuts) cuts, \(acknowledged) records acknowledged, \(survivors) there afterwards, 0 lost; first seed \(base)")
    }

    private func hasAccount(_ store: StoreSession) throws -> Bool {
        // A cut may come right here; then there is nobody to add an account either.
        (try? store.accounts().isEmpty == false) ?? true  // see above
    }
}

/// The names in a folder.
func names(in folder: String) -> [String] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var out: [String] = []
    while let entry = readdir(directory) {
        out.append(withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
    }
    return out
}

/// splitmix64 (Steele, Lea, Flood 2014): the same numbers for the same seed.
struct SplitMix {
    private var state: UInt64
    init(_ seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
