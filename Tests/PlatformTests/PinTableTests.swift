import Foundation
import Platform
import Testing
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

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

    @Test("A file brings them into the next table, for the time that is left on the wall's clock")
    func file() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pins.\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }  // a leftover in /tmp is no failure
        let (path, wall) = (directory + "/pins", WallTime(milliseconds: 1_800_000_000_000))
        let pins = try make()
        #expect(try PinFile.load(path, into: pins, now: now, wall: wall) == nil)
        for key in 1...1000 as ClosedRange<UInt64> { pins.pin(key &* 0x9E37_79B9_7F4A_7C15, to: Int64(key), seconds: Int(key), now: now) }
        pins.pin(7, to: Int64(UInt32.max), seconds: Limits.pinSeconds, now: now)
        #expect(try PinFile.save(pins, to: path, now: now, wall: wall) == 1001)
        var info = stat()
        #expect(stat(path, &info) == 0 && info.st_mode & 0o777 == 0o600)
        // The machine was started anew: its monotonic clock begins at zero. 500 s have passed.
        let (later, next) = (Instant(nanoseconds: 5_000_000_000), try make())
        #expect(try PinFile.load(path, into: next, now: later, wall: WallTime(milliseconds: wall.milliseconds + 500_000)) == 501)
        for key in 1...1000 as ClosedRange<UInt64> {
            let account = next.account(key &* 0x9E37_79B9_7F4A_7C15, now: later)
            #expect(account == (key > 500 ? Int64(key) : nil))
        }
        #expect(next.account(1000 &* 0x9E37_79B9_7F4A_7C15, now: later.adding(milliseconds: 500_000)) == nil)
        // A clock that was put back keeps nothing for longer than it was remembered for.
        let early = try make()
        _ = try PinFile.load(path, into: early, now: later, wall: WallTime(milliseconds: wall.milliseconds - 1_000_000_000))
        #expect(early.account(7, now: later.adding(milliseconds: (Limits.pinSeconds + 1) * 1000)) == nil)
    }

    @Test("A file that is cut or damaged gives nothing, and says so")
    func damagedFile() throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("pins.\(UUID().uuidString)").path
        defer { try? FileManager.default.removeItem(atPath: path) }  // a leftover in /tmp is no failure
        let (pins, wall) = (try make(), WallTime(milliseconds: 1_800_000_000_000))
        for key in 1...10 as ClosedRange<UInt64> { pins.pin(key, to: 5, seconds: 100, now: now) }
        _ = try PinFile.save(pins, to: path, now: now, wall: wall)
        let whole = try Data(contentsOf: URL(fileURLWithPath: path))
        let damages: [(inout Data) -> Void] = [
            { $0.removeLast() }, { $0.removeLast(16) }, { $0[20] ^= 1 }, { $0[0] ^= 1 }, { $0 = Data() }, { $0 = Data(count: 4) },
            { $0 += Data(count: 16) }, { $0 += Data(count: 3 << 20) },
        ]
        for (number, damage) in damages.enumerated() {
            var bytes = whole
            damage(&bytes)
            try bytes.write(to: URL(fileURLWithPath: path))
            let fresh = try make()
            #expect(throws: SystemError.self, "damage \(number)") { try PinFile.load(path, into: fresh, now: now, wall: wall) }
            for key in 1...10 as ClosedRange<UInt64> { #expect(fresh.account(key, now: now) == nil) }
        }
    }

    @Test("What is no file gives nothing and holds nobody up: a pipe without an end, a directory, a link")
    func noFile() throws {
        let directory = FileManager.default.temporaryDirectory.appendingPathComponent("pins.\(UUID().uuidString)").path
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(atPath: directory) }  // a leftover in /tmp is no failure
        let (pins, wall) = (try make(), WallTime(milliseconds: 1_800_000_000_000))
        pins.pin(1, to: 5, seconds: 100, now: now)
        #expect(mkfifo(directory + "/pipe", 0o600) == 0 && mkdir(directory + "/directory", 0o700) == 0)
        #expect(symlink("/dev/zero", directory + "/link") == 0)
        for name in ["pipe", "directory", "link"] {
            #expect(throws: SystemError.self, "\(name)") {
                try PinFile.load(directory + "/" + name, into: pins, now: now, wall: wall)
            }
            #expect(rename(directory + "/" + name, directory + "/pins.new") == 0)
            #expect(throws: SystemError.self, "\(name)") { try PinFile.save(pins, to: directory + "/pins", now: now, wall: wall) }
            _ = remove(directory + "/pins.new")
        }
        #expect(try PinFile.save(pins, to: directory + "/pins", now: now, wall: wall) == 1)
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
