import Loop
import Vocabulary

/// Names to addresses, off the loop, with a bounded cache. Several askers of one name share one lookup.
final class Resolver {
    private struct Entry {
        var addresses: [SocketAddress]
        var until: Instant
    }
    private let loop: EventLoop
    private var cache: [String: Entry] = [:]
    private var waiting: [String: [(Result<[SocketAddress], LoopError>) -> Void]] = [:]

    init(_ loop: EventLoop) { self.loop = loop }

    func resolve(_ host: String, port: UInt16, _ done: @escaping (Result<[SocketAddress], LoopError>) -> Void) {
        if let numeric = SocketAddress(numeric: host, port: port) { return done(.success([numeric])) }
        let key = "\(host):\(port)"
        if let entry = cache[key], entry.until > loop.now { return done(.success(entry.addresses)) }
        if waiting[key] != nil {
            waiting[key]!.append(done)
            return
        }
        waiting[key] = [done]
        loop.resolve(host, port: port) { [self] result in
            if case .success(let addresses) = result {
                if cache.count >= Limits.dnsCacheEntriesMax { cache.removeAll() }
                cache[key] = Entry(addresses: addresses, until: loop.now.adding(milliseconds: Limits.dnsCacheMilliseconds))
            }
            for waiter in waiting.removeValue(forKey: key) ?? [] { waiter(result) }
        }
    }

    /// The addresses did not work: ask again next time.
    func forget(_ host: String, port: UInt16) { cache["\(host):\(port)"] = nil }
}
