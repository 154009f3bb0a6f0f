import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Clients that send turns until told to stop, each turn under its own id; what they saw finished.
final class Load: @unchecked Sendable {  // `lock` guards the counters
    private let lock = NSLock()
    private var finished: [String] = []
    private var isStopped = false
    private let group = DispatchGroup()

    /// `pause`: microseconds a client rests between its turns, so that a long test stays within what `requests` lists.
    init(_ stage: Stage, clients: Int = 4, pause: UInt32, name: String = "load") {
        for client in 0..<clients {
            group.enter()
            Thread.detachNewThread { [self] in
                var connection: HTTPConnection?
                var number = 0
                while !locked({ isStopped }) {
                    let id = "\(name)-\(client)-\(number)"
                    number += 1
                    usleep(pause)
                    do {
                        if connection == nil { connection = try stage.daemon.connect() }
                        try connection!.post("/v1/responses", Stage.body(stream: number % 4 != 0), headers: [("X-Request-Id", id)])
                        let answer = try connection!.answer()
                        let isGood =
                            answer.isWhole && answer.status == 200 && (number % 4 == 0 || answer.types.last == "response.completed")
                        if isGood { locked { finished.append(id) } } else { connection = nil }
                    } catch {
                        connection = nil  // the worker was killed under it: that turn is not finished
                        usleep(2_000)
                    }
                }
                group.leave()
            }
        }
    }

    private func locked<T>(_ body: () -> T) -> T {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }

    var count: Int { locked { finished.count } }

    /// Ids of the turns whose clients saw a whole good answer.
    func stop() -> [String] {
        locked { isStopped = true }
        group.wait()
        return locked { finished }
    }
}

/// Clients that send one turn after the other and never try again: every one of them is to succeed. Each has one connection for all of them,
/// or a new one for each.
final class SteadyLoad: @unchecked Sendable {  // `lock` guards the counters
    private let lock = NSLock()
    private var good: [String] = []
    private(set) var failed: [String] = []
    private(set) var connections = 0
    private var isStopped = false
    private let group = DispatchGroup()

    init(_ stage: Stage, clients: Int, keepsAlive: Bool, name: String = "steady", pause: UInt32 = 1_000) {
        for client in 0..<clients {
            group.enter()
            Thread.detachNewThread { [self] in
                var connection: HTTPConnection?
                var number = 0
                while !locked({ isStopped }) {
                    let id = "\(name)-\(client)-\(number)"
                    number += 1
                    usleep(pause)
                    do {
                        if connection == nil {
                            connection = try stage.daemon.connect()
                            locked { connections += 1 }
                        }
                        try connection!.post("/v1/responses", Stage.body(stream: number % 2 == 0), headers: [("X-Request-Id", id)])
                        let answer = try connection!.answer()
                        let isGood =
                            answer.isWhole && answer.status == 200 && (number % 2 == 1 || answer.types.last == "response.completed")
                        locked { if isGood { good.append(id) } else { failed.append("\(id): \(answer.status) \(answer.text)") } }
                        if !keepsAlive || !isGood || answer.header("connection")?.lowercased() == "close" { connection = nil }
                    } catch {
                        connection = nil
                        locked { failed.append("\(id): \(error)") }
                    }
                }
                group.leave()
            }
        }
    }

    private func locked<T>(_ body: () -> T) -> T {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }

    var count: Int { locked { good.count } }

    /// Ids of the turns whose clients saw a whole good answer.
    func stop() -> [String] {
        locked { isStopped = true }
        group.wait()
        return locked { good }
    }
}

/// A number that several threads count up.
final class Counter: @unchecked Sendable {  // `lock` guards the value
    private let lock = NSLock()
    private var count = 0
    func add() {
        lock.lock()
        count += 1
        lock.unlock()
    }
    var value: Int {
        lock.lock()
        defer { lock.unlock() }
        return count
    }
}

extension Stage {
    /// What clients saw, what the upstream saw and what the store holds is the same, each of it once.
    ///
    /// `others`: whole good answers of another load beside it.
    func expectThreeSets(
        _ load: SteadyLoad, and others: [String] = [], account: String = "a", sourceLocation: SourceLocation = #_sourceLocation
    ) throws {
        let kept = load.stop()
        let seen = kept + others
        #expect(
            load.failed.isEmpty, "\(load.failed.count) of \(seen.count + load.failed.count): \(load.failed.prefix(3))",
            sourceLocation: sourceLocation)
        let asked = requests(account).compactMap { $0.header("x-request-id") }
        #expect(
            asked.count == seen.count && Set(asked) == Set(seen), "the upstream saw \(asked.count), clients \(seen.count)",
            sourceLocation: sourceLocation)
        // Counters outlive their workers.
        try eventually(10) { try metric("codex_lb_usage_records_acknowledged_total") == Double(seen.count) }
        let acknowledged = try metric("codex_lb_usage_records_acknowledged_total")
        #expect(acknowledged == Double(seen.count), "\(seen.count) turns", sourceLocation: sourceLocation)
        // Of a long run, those that `requests` lists.
        let part = min(1, 5_000 / Double(max(1, seen.count)))
        func newest(_ ids: [String]) -> ArraySlice<String> { ids.suffix(Int(Double(ids.count) * part)) }
        try expectOneRecord(of: Array(newest(kept) + newest(others)))
        print("\(seen.count) turns on \(load.connections) connections, 0 failed")
    }

    /// Every finished turn has exactly one record; nothing is in the store twice.
    func expectOneRecord(of finished: [String], seconds: Double = 15) throws {
        var (counts, found): ([String: Int], [[String: Any]]) = ([:], [])
        eventually(seconds, every: 0.2) {
            // A pooler may refuse for a moment after its server was away.
            guard let records = try? daemon.records() else { return false }
            (found, counts) = (records, Dictionary(records.map { ($0["request_id"] as? String ?? "", 1) }, uniquingKeysWith: +))
            return finished.allSatisfy { counts[$0] != nil }
        }
        let lost = finished.filter { counts[$0] == nil }
        #expect(lost.isEmpty, "\(lost.count) of \(finished.count) finished turns have no record: \(lost.prefix(5))")
        let doubled = counts.filter { $0.value > 1 }
        let examples = found.filter { doubled[$0["request_id"] as? String ?? ""] != nil }
        #expect(doubled.isEmpty, "\(doubled.count) turns have more than one record: \(examples.prefix(4))")
    }
}
