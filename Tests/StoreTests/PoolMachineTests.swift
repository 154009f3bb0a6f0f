import Store
import Testing
import Vocabulary

private func at(_ milliseconds: Int) -> Instant { Instant(nanoseconds: 1_000_000_000).adding(milliseconds: milliseconds) }

private func pool(size: Int = 1, overflow: Int = 1, wait: Int = 1_000) -> PoolMachine {
    PoolMachine(PoolMachine.Limits(size: size, overflow: overflow, waitMilliseconds: wait))
}

@Suite struct PoolMachineTests {
    @Test("A connection is opened when it is needed, given to one caller at a time, and kept")
    func life() {
        var p = pool()
        #expect(p.asked(caller: 1, now: at(0)) == [.open(0)])
        #expect(p.opened(0, jitter: 0, now: at(5)) == [.grant(caller: 1, connection: 0)])
        #expect(p.released(0, now: at(10)) == [])
        #expect(p.asked(caller: 2, now: at(20)) == [.grant(caller: 2, connection: 0)])
        #expect(p.openCount == 1 && p.busyCount == 1)
    }

    @Test("Under load connections beyond the size are opened, and closed when they have been idle; the others stay")
    func overflow() {
        var p = pool(size: 1, overflow: 2)
        for caller in 1...4 { _ = p.asked(caller: caller, now: at(0)) }
        var granted = 0
        for id in 0..<3 { granted += p.opened(id, jitter: 0, now: at(1)).count }
        #expect(granted == 3 && p.waiterCount == 1)
        #expect(p.released(1, now: at(2)) == [.grant(caller: 4, connection: 1)])
        for id in 0..<3 { _ = p.released(id, now: at(100 + id)) }
        #expect(p.ticked(at(9_000)) == [])
        #expect(p.ticked(at(10_200)) == [.close(0), .close(1)])
        #expect(p.openCount == 1)
    }

    @Test("A caller that waits too long is refused, and told whether the database was away or busy")
    func timeout() {
        var p = pool(size: 1, overflow: 0, wait: 1_000)
        _ = p.asked(caller: 1, now: at(0))
        _ = p.opened(0, jitter: 0, now: at(0))
        _ = p.asked(caller: 2, now: at(100))
        #expect(p.ticked(at(1_099)) == [])
        #expect(p.ticked(at(1_100)) == [.refuse(caller: 2, .timeout)])
        var away = pool(size: 1, overflow: 0, wait: 1_000)
        _ = away.asked(caller: 1, now: at(0))
        _ = away.openFailed(0, now: at(10))
        #expect(away.ticked(at(1_000)).first == .refuse(caller: 1, .unopened))
    }

    @Test("After failures one try at a time, after 50, 100, 200 … 5000 ms; the first success opens what is wanted")
    func backoff() {
        var p = pool(size: 3, overflow: 0, wait: 1_000_000)
        for caller in 1...3 { _ = p.asked(caller: caller, now: at(0)) }
        for id in 0..<3 { #expect(p.openFailed(id, now: at(0)) == []) }
        var (now, waits) = (0, [Int]())
        var id = 3
        for _ in 0..<8 {
            let from = now
            var actions: [PoolMachine.Action] = []
            while actions.isEmpty {
                now += 50
                actions = p.ticked(at(now))
            }
            #expect(actions == [.open(id)])
            waits.append(now - from)
            _ = p.openFailed(id, now: at(now))
            id += 1
        }
        #expect(waits == [200, 400, 800, 1600, 3200, 5000, 5000, 5000])
        now += 5_000
        #expect(p.ticked(at(now)) == [.open(id)])
        #expect(p.opened(id, jitter: 0, now: at(now)) == [.grant(caller: 1, connection: id), .open(id + 1), .open(id + 2)])
    }

    @Test("A lost connection makes room for another one")
    func lost() {
        var p = pool(size: 1, overflow: 0)
        _ = p.asked(caller: 1, now: at(0))
        _ = p.opened(0, jitter: 0, now: at(0))
        _ = p.asked(caller: 2, now: at(1))
        #expect(p.broke(0, now: at(2)) == [.open(1)])
        #expect(p.released(0, now: at(3)) == [])
    }

    @Test("Condemned connections serve nobody after the one who has them")
    func condemned() {
        var p = pool(size: 2, overflow: 0)
        for caller in 1...2 { _ = p.asked(caller: caller, now: at(0)) }
        for id in 0...1 { _ = p.opened(id, jitter: 0, now: at(0)) }
        _ = p.released(1, now: at(1))
        #expect(p.condemned(now: at(2)) == [.close(1)])
        #expect(p.released(0, now: at(3)) == [.close(0)])
        #expect(p.openCount == 0)
        #expect(p.asked(caller: 3, now: at(4)) == [.open(2)])
        #expect(p.condemned(now: at(5)) == [])
        #expect(p.opened(2, jitter: 0, now: at(6)) == [.close(2), .open(3)], "what was opened towards the server before is not used")
    }

    @Test("An old connection is replaced when it is idle; chance spreads the ends over a fifth of the lifetime")
    func lifetime() {
        var p = pool(size: 2, overflow: 0)
        for caller in 1...2 { _ = p.asked(caller: caller, now: at(0)) }
        _ = p.opened(0, jitter: 0, now: at(0))
        _ = p.opened(1, jitter: 1, now: at(0))
        for id in 0...1 { _ = p.released(id, now: at(1)) }
        #expect(p.ticked(at(1_439_999)) == [])
        #expect(p.ticked(at(1_440_000)) == [.close(1)])
        #expect(p.ticked(at(1_800_000)) == [.close(0)])
    }

    @Test("Random histories: never more than the limits, never two callers on one connection, every caller answered once")
    func random() {
        for seed in 0..<200 {
            var random = SplitMix(state: UInt64(seed) &* 0x9E37_79B9_7F4A_7C15 + 1)
            var p = pool(size: 2, overflow: 2, wait: 300)
            var (now, caller) = (0, 0)
            var opening: Set<Int> = []
            var holders: [Int: Int] = [:]
            var waiting: Set<Int> = []
            func take(_ actions: [PoolMachine.Action]) {
                for action in actions {
                    switch action {
                    case .open(let id): #expect(opening.insert(id).inserted, "seed \(seed)")
                    case .close(let id): #expect(holders[id] == nil, "seed \(seed)")
                    case .grant(let caller, let id):
                        #expect(waiting.remove(caller) != nil && holders[id] == nil, "seed \(seed)")
                        holders[id] = caller
                    case .refuse(let caller, _): #expect(waiting.remove(caller) != nil, "seed \(seed)")
                    }
                }
                #expect(p.openCount <= 4 && p.busyCount == holders.count, "seed \(seed)")
            }
            for _ in 0..<300 {
                now += Int(random.next() % 40)
                switch random.next() % 6 {
                case 0, 1:
                    caller += 1
                    waiting.insert(caller)
                    take(p.asked(caller: caller, now: at(now)))
                case 2:
                    guard let id = opening.min() else { continue }
                    opening.remove(id)
                    take(random.next() % 3 == 0 ? p.openFailed(id, now: at(now)) : p.opened(id, jitter: 0.5, now: at(now)))
                case 3:
                    guard let id = holders.keys.min() else { continue }
                    holders[id] = nil
                    take(p.released(id, now: at(now)))
                case 4 where random.next() % 4 == 0:
                    guard let id = holders.keys.max() else { continue }
                    holders[id] = nil
                    take(p.broke(id, now: at(now)))
                default: take(p.ticked(at(now)))
                }
            }
            while let id = holders.keys.min() {
                holders[id] = nil
                take(p.released(id, now: at(now)))
            }
            take(p.ticked(at(now + 10_000)))
            #expect(waiting.isEmpty, "seed \(seed)")
        }
    }
}

private struct SplitMix {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
