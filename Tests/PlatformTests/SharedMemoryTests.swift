import CPlatform
import Platform
import Synchronization
import Testing
import Vocabulary

@Suite struct RenewalClaimTests {
    private let now = Instant(nanoseconds: 50_000_000_000_000)

    @Test("One refresh at a time, none of a state that is over, and a pause ends with the account's change")
    func claims() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        board.claim(account: 3, owner: 7)
        func claim(_ changed: Int64, after seconds: Int = 0, owner: Int64 = 7) -> Bool {
            let at = now.adding(milliseconds: seconds * 1000)
            return board.claimRenewal(
                account: 3, owner: owner, changedAt: WallTime(milliseconds: changed), now: at, until: at.adding(milliseconds: 30_000))
        }
        let start: Int64 = 1_800_000_000_000
        let asked = [
            claim(start, owner: 8), claim(start), claim(start), claim(start + 500), claim(start, after: 29), claim(start, after: 31),
        ]
        #expect(asked == [false, true, false, false, false, true])
        // A worker that has not heard of the new tokens never gets it again, however late it is.
        let late = [claim(start + 900, after: 100), claim(start, after: 1_000), claim(start + 900, after: 1_000)]
        #expect(late == [true, false, true])
        board.pauseRenewal(
            account: 3, owner: 7, changedAt: WallTime(milliseconds: start + 900), until: now.adding(milliseconds: 3_600_000))
        let paused = [claim(start + 900, after: 2_000), claim(start + 1_000, after: 2_000)]
        #expect(paused == [false, true])
        // Resumed after two months of pause.
        #expect(claim(start + 60 * 86_400_000, after: 60 * 86_400))
    }
}

@Suite struct JournalTests {
    private func make() throws -> (Journal, SharedMemory) {
        let memory = try SharedMemory.create("test:journal", count: Journal.memoryBytes(capacity: 64 * 1024))
        return (Journal(memory), memory)
    }

    @Test("Records come back whole and in order over many turns of the ring")
    func ring() throws {
        let (journal, _) = try make()
        var next: UInt64 = 0
        var wanted: UInt64 = 0
        var random = SystemRandomNumberGenerator()
        for _ in 0..<20_000 {
            let size = Int.random(in: 8...600, using: &random)
            var record = [UInt8](repeating: UInt8(truncatingIfNeeded: next), count: size)
            for i in 0..<8 { record[i] = UInt8(truncatingIfNeeded: next >> (8 * UInt64(i))) }
            if journal.append(record) { next += 1 }
            if !journal.hasRoom(turns: 8) {
                while !journal.isEmpty {
                    let (records, end, damaged) = journal.read(from: journal.tail, count: 50)
                    #expect(!damaged && !records.isEmpty)
                    for record in records {
                        let number = (0..<8).reduce(UInt64(0)) { $0 | UInt64(record[$1]) << (8 * UInt64($1)) }
                        #expect(number == wanted)
                        #expect(record.dropFirst(8).allSatisfy { $0 == UInt8(truncatingIfNeeded: number) })
                        wanted += 1
                    }
                    journal.acknowledge(through: end)
                }
            }
        }
        #expect(wanted > 10_000)
    }

    @Test("A successor on the same memory finds what was not acknowledged, and only that")
    func successor() throws {
        let (journal, memory) = try make()
        for i in 0..<10 { #expect(journal.append([UInt8(i)])) }
        let (_, end, _) = journal.read(from: 0, count: 4)
        journal.acknowledge(through: end)
        let successor = Journal(try SharedMemory(descriptor: memory.descriptor, count: memory.bytes.count))
        #expect(successor.read(from: successor.tail, count: 100).records == (4..<10).map { [UInt8($0)] })
    }

    @Test("Killed after any byte of an append, at any place in the ring: the successor finds the records before it, whole, and goes on")
    func killPoints() throws {
        for filled in [0, 3, 63, 64, 65] {
            let (journal, memory) = try make()
            // The last places are near the ring's end, where a record starts anew at its beginning.
            for i in 0..<filled { #expect(journal.append([UInt8](repeating: UInt8(i), count: 1000))) }
            let (_, end, _) = journal.read(from: 0, count: max(0, filled - 2))
            journal.acknowledge(through: end)
            let known = journal.read(from: journal.tail, count: 100).records
            let before = Array(memory.bytes)
            #expect(journal.append([UInt8](repeating: 0xEE, count: 700)))
            let after = Array(memory.bytes)
            let changed = before.indices.filter { before[$0] != after[$0] && $0 >= 4096 }
            #expect(!changed.isEmpty && before[..<4096] != after[..<4096])
            for cut in stride(from: 0, through: changed.count, by: 37) {
                let torn = try SharedMemory.create("test:torn", count: memory.bytes.count)
                torn.bytes.copyBytes(from: before)
                for place in changed[..<cut] { torn.bytes[place] = after[place] }  // the head is the last thing written
                let successor = Journal(torn)
                let read = successor.read(from: successor.tail, count: 100)
                #expect(!read.damaged && read.records == known, "filled \(filled), cut \(cut)")
                #expect(successor.append([UInt8](repeating: 0xDD, count: 900)))
                #expect(successor.read(from: successor.tail, count: 100).records == known + [[UInt8](repeating: 0xDD, count: 900)])
            }
        }
    }

    @Test("A full journal takes nothing more and loses nothing; a damaged record is noticed")
    func limits() throws {
        let (journal, memory) = try make()
        var count = 0
        while journal.append([UInt8](repeating: 7, count: 1000)) { count += 1 }
        #expect(count == 65)
        #expect(!journal.hasRoom())
        #expect(journal.read(from: 0, count: 1000).records.count == count)
        memory.bytes[4096 + 500] ^= 1
        #expect(journal.read(from: 0, count: 1000).damaged)
    }
}

@Suite struct ScoreboardTests {
    @Test("Turns on an account are summed over workers, and a dead worker's share is cleared")
    func inFlight() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        board.setRows(inUse: 3)
        for worker in 0..<3 { #expect(board.acquire(account: 5, worker: worker, cap: .max, now: Instant(nanoseconds: 9)) != nil) }
        #expect(board.acquire(account: 5, worker: 1, cap: 4, now: Instant(nanoseconds: 10)) != nil)
        #expect(board.acquire(account: 5, worker: 2, cap: 4, now: Instant(nanoseconds: 11)) == nil)
        #expect(board.inFlight(account: 5) == 4 && board.lastUsed(account: 5) == Instant(nanoseconds: 10))
        board.close(row: 1)
        #expect(board.inFlight(account: 5) == 2)
        board.release(account: 5, worker: 0)
        #expect(board.inFlight(account: 5) == 1 && board.inFlight(account: 4) == 0)
    }

    private let wall = WallTime(milliseconds: 1_800_000_000_000)

    @Test("A cooldown is never shortened, tells its reason, and is not inherited by the slot's next account")
    func cooldown() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        func at(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
        board.claim(account: 1, owner: 11)
        board.coolDown(account: 1, owner: 11, until: at(500), isLimit: true, at: wall)
        board.coolDown(account: 1, owner: 11, until: at(400), isLimit: false, at: wall)
        let cooldown = try #require(board.cooldown(account: 1, owner: 11, now: at(100)))
        #expect(cooldown.until == at(500) && cooldown.isLimit)
        #expect(board.cooldown(account: 1, owner: 11, now: at(500)) == nil)
        board.claim(account: 1, owner: 11)
        #expect(board.cooldown(account: 1, owner: 11, now: at(100)) != nil)
        board.claim(account: 1, owner: 12)
        #expect(board.cooldown(account: 1, owner: 12, now: at(100)) == nil)
    }

    @Test("A turn that outlives its account penalises nobody else")
    func outlived() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        func at(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
        board.claim(account: 1, owner: 11)
        board.claim(account: 1, owner: 12)
        board.coolDown(account: 1, owner: 11, until: at(900), isLimit: true, at: wall)
        #expect(board.cooldown(account: 1, owner: 12, now: at(100)) == nil)
        #expect(board.unreachable(account: 1, owner: 11, now: at(100)) == 1)
        #expect(board.failures(account: 1) == 0)
        board.coolDown(account: 1, owner: 12, until: at(300), isLimit: false, at: wall)
        let cooldown = try #require(board.cooldown(account: 1, owner: 12, now: at(100)))
        #expect(cooldown.until == at(300) && !cooldown.isLimit)
    }

    @Test("Figures end a quota's cooldown of before they were asked for, no other and no later one")
    func quotaEnds() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        func at(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
        func isCooling() -> Bool { board.cooldown(account: 1, owner: 11, now: at(1)) != nil }
        board.claim(account: 1, owner: 11)
        board.coolDown(account: 1, owner: 11, until: at(500), isLimit: true, at: wall)
        let ofRate = board.endQuotaCooldown(account: 1, owner: 11, mark: board.cooldownMark(account: 1), at: wall)
        #expect(!ofRate && isCooling())
        board.coolDown(account: 1, owner: 11, until: at(600), isLimit: true, isQuota: true, at: wall)
        let mark = board.cooldownMark(account: 1)
        board.coolDown(account: 1, owner: 11, until: at(700), isLimit: true, isQuota: true, at: wall)
        let ofBefore = board.endQuotaCooldown(account: 1, owner: 11, mark: mark, at: wall)
        #expect(!ofBefore && isCooling())
        let ofNow = board.endQuotaCooldown(account: 1, owner: 11, mark: board.cooldownMark(account: 1), at: wall)
        #expect(ofNow && !isCooling())
        // A login that was renewed keeps its limits and loses the rest.
        board.coolDown(account: 1, owner: 11, until: at(500), isLimit: true, at: wall)
        board.endCooldown(account: 1, keepsLimits: true, at: wall)
        #expect(isCooling())
        board.endCooldown(account: 1, at: wall)
        board.coolDown(account: 1, owner: 11, until: at(500), isLimit: false, at: wall)
        board.endCooldown(account: 1, keepsLimits: true, at: wall)
        #expect(!isCooling())
    }

    @Test("What is restored counts when it is newer than what is known, and only for the account whose it is")
    func restored() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        func at(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
        func restore(_ until: Instant?, _ time: Int64, owner: Int64 = 11) {
            let trouble = Trouble(at: WallTime(milliseconds: time), .refused, status: 429, code: "usage_limit_reached")
            board.restoreHealth(
                account: 1, owner: owner, until: until, isLimit: true, isQuota: true, trouble: trouble, at: WallTime(milliseconds: time))
        }
        board.claim(account: 1, owner: 11)
        restore(at(500), 1_000, owner: 12)
        #expect(board.cooldown(account: 1, owner: 11, now: at(1)) == nil && board.trouble(account: 1) == nil)
        restore(at(500), 1_000)
        #expect(board.cooldown(account: 1, owner: 11, now: at(1))?.isQuota == true)
        #expect(board.trouble(account: 1)?.description == "429 usage_limit_reached" && board.healthAt(account: 1).milliseconds == 1_000)
        restore(nil, 999)
        #expect(board.cooldown(account: 1, owner: 11, now: at(1)) != nil, "older")
        restore(nil, 2_000)
        #expect(board.cooldown(account: 1, owner: 11, now: at(1)) == nil)
        // Two instances met different things: the longer limit stays, and is told as the newer word.
        board.claim(account: 2, owner: 22)
        board.coolDown(account: 2, owner: 22, until: at(9_000), isLimit: true, isQuota: true, at: WallTime(milliseconds: 1_000))
        board.restoreHealth(
            account: 2, owner: 22, until: at(100), isLimit: false, isQuota: false, trouble: nil, at: WallTime(milliseconds: 2_000))
        #expect(board.cooldown(account: 2, owner: 22, now: at(500))?.isQuota == true && board.healthAt(account: 2).milliseconds > 2_000)
        board.restoreHealth(
            account: 2, owner: 22, until: nil, isLimit: false, isQuota: false, trouble: nil, at: WallTime(milliseconds: 3_000))
        #expect(board.cooldown(account: 2, owner: 22, now: at(500)) == nil, "an operator ends it")
        // Changes of one millisecond are told apart, and a clock that was set back does not hold them up.
        board.coolDown(account: 1, owner: 11, until: at(700), isLimit: true, at: WallTime(milliseconds: 2_000))
        #expect(board.healthAt(account: 1).milliseconds == 2_001)
        board.endCooldown(account: 1, at: WallTime(milliseconds: 500))
        #expect(board.healthAt(account: 1).milliseconds == 2_002)
        board.coolDown(account: 1, owner: 11, until: at(700), isLimit: true, at: WallTime(milliseconds: 10_000_000))
        board.endCooldown(account: 1, at: WallTime(milliseconds: 3_000))
        #expect(board.healthAt(account: 1).milliseconds == 3_000)
    }

    @Test("Quotas of models are told apart by their names, end with their windows, and go when figures leave them out")
    func modelQuotas() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        board.claim(account: 1, owner: 11)
        let end = WallTime(milliseconds: wall.milliseconds + 90_000)
        #expect(!board.hasModelQuotas)
        let names = (0..<6).map { "gpt-5.\($0)-spark" }
        board.setModelQuotas(account: 1, owner: 11, names.enumerated().map { (QuotaKey.of(model: $1), $0 * 200, end) })
        #expect(board.hasModelQuotas)
        for (place, name) in names.enumerated() {
            let quota = board.modelQuota(account: 1, QuotaKey.of(model: name.uppercased()), now: wall)
            #expect(quota?.usedPermille == (place < Limits.modelQuotasMax ? place * 200 : nil))
        }
        #expect(board.modelQuota(account: 1, QuotaKey.of(model: names[1]), now: end)?.usedPermille != nil, "rounded up to a minute")
        #expect(board.modelQuota(account: 1, QuotaKey.of(model: names[1]), now: WallTime(milliseconds: end.milliseconds + 60_000)) == nil)
        #expect(board.modelQuota(account: 1, QuotaKey.of(model: "gpt-5.4"), now: wall) == nil)
        board.setModelQuotas(account: 1, owner: 11, [])
        #expect(board.modelQuota(account: 1, QuotaKey.of(model: names[1]), now: wall) == nil)
    }

    @Test("Failures in a row are counted once per cooldown, and an answer forgets them")
    func failures() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes))
        func at(_ milliseconds: UInt64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }
        board.claim(account: 1, owner: 11)
        #expect(board.unreachable(account: 1, owner: 11, now: at(1)) == 1)
        board.coolDown(account: 1, owner: 11, until: at(100), isLimit: false, at: wall)
        for _ in 0..<50 { #expect(board.unreachable(account: 1, owner: 11, now: at(50)) == 1) }
        #expect(board.unreachable(account: 1, owner: 11, now: at(100)) == 2)
        board.reached(account: 1)
        #expect(board.unreachable(account: 1, owner: 11, now: at(200)) == 1)
    }
}

@Suite struct ListenAddressTests {
    @Test("Addresses are parsed, and what is wrong with the others is said")
    func parse() throws {
        #expect(try ListenAddress.parse("127.0.0.1:2455").get() == .tcp(host: "127.0.0.1", port: 2455))
        #expect(try ListenAddress.parse("[::1]:80").get() == .tcp(host: "::1", port: 80))
        #expect(try ListenAddress.parse(":80").get() == .tcp(host: "0.0.0.0", port: 80))
        #expect(try ListenAddress.parse("unix:/run/x.sock").get() == .unix(path: "/run/x.sock"))
        for bad in ["127.0.0.1", "1.2.3.4:70000", "example.com:80", "unix:relative", ""] {
            #expect(throws: ListenAddressError.self) { try ListenAddress.parse(bad).get() }
        }
    }
}

@Suite struct ScoreboardArithmeticTests {
    @Test("Whatever stands in the memory, sums over it can be read")
    func absurdNumbers() throws {
        let board = Scoreboard(fresh: try SharedMemory.create("test:board", count: Scoreboard.memoryBytes))
        board.setRows(inUse: 2)
        for worker in 0..<2 {
            board.add(.inputTokens, worker: worker, .max)
            board.observeFirstByte(milliseconds: .max, worker: worker)
            board.observeFirstByte(milliseconds: .max, worker: worker)
            board.release(account: 0, worker: worker)  // below zero
        }
        #expect(board.sum(.inputTokens) == -2)
        #expect(board.firstByteHistogram.counts.last == 4)
        #expect(board.inFlight(account: 0) == 0)
        board.set(.schemaRevision, -1)
        #expect(board.value(.schemaRevision) == -1)
    }
}

@Suite struct ChecksumTests {
    /// RFC 3720 B.4 has the vectors of CRC-32C.
    @Test("CRC-32C is what the RFC says, with the processor's instruction and without")
    func vectors() {
        let vectors: [([UInt8], UInt32)] = [
            ([UInt8](repeating: 0, count: 32), 0x8A91_36AA), ([UInt8](repeating: 0xFF, count: 32), 0x62A8_AB43),
            ((0..<32).map { UInt8($0) }, 0x46DD_794E), (Array("123456789".utf8), 0xE306_9283), ([], 0),
        ]
        for (bytes, sum) in vectors {
            #expect(codexlb_crc32c(bytes, bytes.count) == sum)
            #expect(codexlb_crc32c_by_table(bytes, bytes.count) == sum)
        }
        for count in 0..<300 {
            let bytes = (0..<count).map { _ in UInt8.random(in: 0...255) }
            #expect(codexlb_crc32c(bytes, count) == codexlb_crc32c_by_table(bytes, count), "\(bytes)")
        }
    }
}

@Suite struct LayoutTests {
    @Test("Memory that another build has laid out is refused, and says which layout it has")
    func otherBuild() throws {
        let memory = try SharedMemory.create("test:scoreboard", count: Scoreboard.memoryBytes)
        let board = Scoreboard(fresh: memory)
        _ = try Scoreboard(inherited: memory)
        board.set(.layoutVersion, Scoreboard.layoutVersion + 1)
        let error = #expect(throws: SystemError.self) { try Scoreboard(inherited: memory) }
        #expect(error?.what.contains("\(Scoreboard.layoutVersion + 1)") == true)

        let ring = try SharedMemory.create("test:journal", count: Journal.memoryBytes(capacity: 64 * 1024))
        _ = Journal(ring)
        _ = try Journal(inherited: ring)
        ring.bytes.storeBytes(of: Journal.layoutVersion + 1, as: UInt64.self)
        #expect(throws: SystemError.self) { try Journal(inherited: ring) }
    }

    @Test("A journal at rest gives its memory back and goes on where it was; one with records keeps them")
    func rest() throws {
        let journal = Journal(try SharedMemory.create("test:journal", count: Journal.memoryBytes(capacity: 64 * 1024)))
        for n in 0..<200 { #expect(journal.append([UInt8](repeating: UInt8(n), count: 100))) }
        journal.rest()
        #expect(journal.read(from: journal.tail, count: 1000).records.count == 200)
        journal.acknowledge(through: journal.head)
        journal.rest()
        #expect(journal.isEmpty && journal.append([1, 2, 3]))
        #expect(journal.read(from: journal.tail, count: 10).records == [[1, 2, 3]])
    }
}

@Suite struct HandoverSocketTests {
    @Test(
        "A descriptor goes through with its kind and its client; an empty queue gives none, a full one takes none, and nothing of it is lost"
    )
    func passing() throws {
        let socket = try HandoverSocket.pair()
        defer { for fd in [socket.taking, socket.giving] { Descriptor.close(fd) } }
        #expect(HandoverSocket.take(from: socket.taking) == nil)
        let pair = try Descriptor.socketPair()
        defer { Descriptor.close(pair.1) }
        let identity = Descriptor.identity(pair.0)
        var given = 0
        while given < 100_000,
            HandoverSocket.give(
                pair.0, isUnix: given % 2 == 1, client: given % 3 == 0 ? IPAddress("2001:db8::1") : nil, over: socket.giving)
        { given += 1 }
        #expect((10..<100_000).contains(given))
        Descriptor.close(pair.0)
        for n in 0..<given {
            let (descriptor, isUnix, client) = try #require(HandoverSocket.take(from: socket.taking))
            #expect(isUnix == (n % 2 == 1) && Descriptor.identity(descriptor) == identity)
            #expect(client == (n % 3 == 0 ? IPAddress("2001:db8::1") : nil))
            Descriptor.close(descriptor)
        }
        #expect(HandoverSocket.take(from: socket.taking) == nil)
    }
}

/// How many are in, and were at most.
private final class Count: Sendable {
    private let inside = Atomic<Int>(0)
    let highest = Atomic<Int>(0)
    func enter() {
        let now = inside.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
        highest.max(now, ordering: .sequentiallyConsistent)
    }
    func leave() { inside.wrappingSubtract(1, ordering: .sequentiallyConsistent) }
}

@Suite struct AccountCapTests {
    private func board(rows: Int) throws -> Scoreboard {
        let board = Scoreboard(fresh: try SharedMemory.create("test:caps", count: Scoreboard.memoryBytes))
        board.setRows(inUse: rows)
        return board
    }

    /// Threads stand for workers: the memory is the same. Each counts itself in after it was let in and out before it leaves.
    @Test("However many take at once, no more than the cap are in; at the end nobody is")
    func cap() async throws {
        let board = try board(rows: 4)
        let count = Count()
        await withTaskGroup(of: Void.self) { group in
            for row in 0..<4 {
                group.addTask {
                    for turn in 0..<20_000 {
                        guard board.acquire(account: 9, worker: row, cap: 3, now: Instant(nanoseconds: UInt64(turn))) != nil else {
                            continue
                        }
                        count.enter()
                        count.leave()
                        board.release(account: 9, worker: row)
                    }
                }
            }
            // The supervisor compares meanwhile and finds nothing.
            group.addTask { for _ in 0..<200 { #expect(board.reconcile() == 0) } }
        }
        #expect((1...3).contains(count.highest.load(ordering: .relaxed)) && board.inFlight(account: 9) == 0)
    }

    @Test("A worker that is killed between two counts leaves one turn too many, until it is compared")
    func reconciled() throws {
        let board = try board(rows: 3)
        #expect(board.acquire(account: 2, worker: 0, cap: 3, now: Instant(nanoseconds: 1)) != nil)
        #expect(board.acquire(account: 2, worker: 1, cap: 3, now: Instant(nanoseconds: 1)) != nil)
        board.dieInAcquire(account: 2, worker: 1)
        #expect(board.inFlight(account: 2) == 3 && board.reconcile() == 0, "it may still be about to count itself")
        board.close(row: 1)
        #expect(board.inFlight(account: 2) == 2, "its share is taken back, what it was in the middle of is not known")
        let changes = board.accountChanges
        #expect(board.reconcile() == 1 && board.inFlight(account: 2) == 1 && board.accountChanges != changes)
        #expect(board.reconcile() == 0)
        board.release(account: 2, worker: 0)
        board.release(account: 2, worker: 0)
        #expect(board.inFlight(account: 2) == 0)
    }
}
