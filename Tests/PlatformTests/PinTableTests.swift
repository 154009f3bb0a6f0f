import Foundation
import Platform
import Testing
import Vocabulary

/// Goal: every worker finds the account that any of them remembered, and nobody ever finds one that nobody did.
@Suite struct PinTableTests {
    private let now = Instant(nanoseconds: 50_000_000_000_000)

    private func make() throws -> PinTable {
        Scoreboard(fresh: try SharedMemory.create("test:pins", count: Scoreboard.memoryBytes)).pins
    }

    @Test("What is remembered is found until its time is over; the last word counts")
    func remembers() throws {
        let pins = try make()
        #expect(pins.account(7, now: now) == nil)
        pins.pin(7, to: 41, seconds: 100, now: now)
        pins.pin(8, to: 42, seconds: 100, now: now)
        #expect(pins.account(7, now: now) == 41 && pins.account(8, now: now) == 42)
        pins.pin(7, to: 43, seconds: 200, now: now)
        #expect(pins.account(7, now: now.adding(milliseconds: 150_000)) == 43)
        #expect(pins.account(8, now: now.adding(milliseconds: 100_000)) == nil)
        pins.pin(9, to: 1 << 40, seconds: 100, now: now)
        #expect(pins.account(9, now: now) == nil, "an id that has no room is not cut")
    }

    @Test("Beyond its size it forgets, what would end first before others, and stays right")
    func full() throws {
        let pins = try make()
        var random = SystemRandomNumberGenerator()
        var keys: [UInt64] = []
        for i in 0..<4 * Limits.pinsMax {
            let key: UInt64 = random.next()
            pins.pin(key, to: Int64(i % 1000 + 1), seconds: i < Limits.pinsMax / 2 ? 10_000 : 100, now: now)
            keys.append(key)
        }
        var found = 0
        for (i, key) in keys.enumerated() {
            guard let account = pins.account(key, now: now) else { continue }
            found += 1
            #expect(account == Int64(i % 1000 + 1))
        }
        #expect(found > Limits.pinsMax * 9 / 10 && found <= Limits.pinsMax)
        let long = keys.prefix(Limits.pinsMax / 2).filter { pins.account($0, now: now) != nil }.count
        #expect(long > Limits.pinsMax / 2 * 8 / 10, "\(long)")
    }

    @Test("Four threads that write the same few sets at once never make an account that nobody pinned")
    func races() async throws {
        let pins = try make()
        let (now, sets) = (now, UInt64(Limits.pinsMax / 8))
        // Key k belongs to account k alone, so any other answer is a mixture of two.
        let wrong = await withTaskGroup(of: Int.self) { group in
            for thread in 0..<4 as Range<UInt64> {
                group.addTask {
                    var random = SystemRandomNumberGenerator()
                    var wrong = 0
                    for _ in 0..<200_000 {
                        let number = random.next() % 64 + 1
                        let key = number * sets + 3
                        if random.next() % 2 == thread % 2 {
                            pins.pin(key, to: Int64(number), seconds: Int(random.next() % 1000) + 1, now: now)
                        } else if let account = pins.account(key, now: now), account != Int64(number) {
                            wrong += 1
                        }
                    }
                    return wrong
                }
            }
            return await group.reduce(0, +)
        }
        #expect(wrong == 0)
    }
}
