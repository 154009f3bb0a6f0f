import DaemonHarness
import FakeUpstream
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

/// Requests that come at a fixed rate, whatever becomes of those before them (an open loop): a server that stands still for a while gets all
/// that were due meanwhile. Each has an id and a connection of its own, and is never tried again.
final class OpenLoad: @unchecked Sendable {  // `lock` guards what is counted
    struct Failure {
        var id: String
        var why: String
        /// Nobody took the connection.
        var isRefused: Bool
        var from: Date
        var to: Date
    }

    private let lock = NSLock()
    private var next = 0
    private var good: [String] = []
    private var failed: [Failure] = []
    private var worst = 0.0
    private var isStopped = false
    private let group = DispatchGroup()
    private let started = Date()

    /// `rate`: requests per second; `clients`: how many may be open at a time before the loop closes.
    init(_ stage: Stage, rate: Int, clients: Int = 48, name: String = "open") {
        for _ in 0..<clients {
            group.enter()
            Thread.detachNewThread { [self] in
                while let number = take() {
                    let due = started.addingTimeInterval(Double(number) / Double(rate))
                    let early = due.timeIntervalSinceNow
                    if early > 0 { usleep(UInt32(early * 1_000_000)) }
                    let id = "\(name)-\(number)"
                    let from = Date()
                    var (why, isRefused) = ("", true)
                    do {
                        let connection = try stage.daemon.connect()
                        isRefused = false
                        try connection.post("/v1/responses", Stage.body(stream: number % 2 == 0), headers: [("X-Request-Id", id)])
                        let answer = try connection.answer(40)
                        let isGood = answer.isWhole && answer.status == 200
                        if !isGood { why = "\(answer.status) \(answer.text.prefix(200))" }
                    } catch {
                        why = "\(error)"
                    }
                    let to = Date()
                    locked {
                        worst = max(worst, to.timeIntervalSince(due))
                        if why.isEmpty {
                            good.append(id)
                        } else {
                            failed.append(Failure(id: id, why: why, isRefused: isRefused, from: from, to: to))
                        }
                    }
                }
                group.leave()
            }
        }
    }

    private func take() -> Int? {
        locked {
            guard !isStopped else { return nil }
            defer { next += 1 }
            return next
        }
    }

    private func locked<T>(_ body: () -> T) -> T {
        lock.lock()
        defer { lock.unlock() }
        return body()
    }

    var count: Int { locked { good.count } }
    var failures: [Failure] { locked { failed } }
    /// Seconds from when a request was due to its end.
    var worstSeconds: Double { locked { worst } }

    /// Ids of the requests whose clients saw a whole good answer.
    @discardableResult func stop() -> [String] {
        locked { isStopped = true }
        group.wait()
        return locked { good }
    }
}

extension Stage {
    /// What clients saw whole, the upstream saw once and the store holds once. What failed may have come to the upstream, once at most.
    func expectThreeSets(_ load: OpenLoad, account: String = "a", sourceLocation: SourceLocation = #_sourceLocation) throws {
        let seen = Set(load.stop())
        let asked = Dictionary(requests(account).map { ($0.header("x-request-id") ?? "", 1) }, uniquingKeysWith: +)
        #expect(asked.filter { $0.value > 1 }.isEmpty, "sent twice", sourceLocation: sourceLocation)
        #expect(seen.subtracting(asked.keys).isEmpty, "answered without the upstream", sourceLocation: sourceLocation)
        let allowed = seen.union(load.failures.map(\.id))
        #expect(Set(asked.keys).subtracting(allowed).isEmpty, "the upstream saw what nobody sent", sourceLocation: sourceLocation)
        try expectOneRecord(of: load.stop().suffix(9_000))
    }
}

/// A line of the table that `make soak` prints at its end: into the file `CODEX_LB_TEST_TALLY`, if there is one.
func tally(_ number: Int, _ what: String, _ counts: String) {
    print("\(number). \(what): \(counts)")
    guard let path = ProcessInfo.processInfo.environment["CODEX_LB_TEST_TALLY"], let file = fopen(path, "a") else { return }
    fputs("\(number)\t\(what)\t\(counts)\n", file)
    fclose(file)
}

/// A number that the environment sets for a longer run.
func longRun(_ name: String, _ short: Int) -> Int { ProcessInfo.processInfo.environment[name].flatMap { Int($0) } ?? short }
