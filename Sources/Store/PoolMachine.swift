public import Vocabulary

/// Decides which caller gets which connection of a pool, and when connections are opened and closed. Does no I/O and reads no clock.
///
/// ```
/// per connection:  opening ─▶ busy ◀─▶ idle ─▶ (closed)
///                     └─ failed: the next try waits 50 ms, 100 ms … 5 s
/// per caller:      waiting ─▶ granted │ refused after the time limit
/// ```
public struct PoolMachine: Sendable {
    public struct Limits: Sendable, Equatable {
        /// Connections that stay open; opened when first needed.
        public var size: Int
        /// Connections beyond `size`, opened while callers wait and closed `overflowIdleMilliseconds` after their last use.
        public var overflow: Int
        public var waitMilliseconds: Int
        public var overflowIdleMilliseconds = 10_000
        /// A connection older than this, less up to a fifth by chance so that not all end at once, is replaced when it is idle.
        public var lifetimeMilliseconds = 1_800_000
        /// Callers waiting; more are refused at once.
        public var waitersMax = 10_000
        public init(size: Int, overflow: Int, waitMilliseconds: Int) {
            (self.size, self.overflow, self.waitMilliseconds) = (size, overflow, waitMilliseconds)
        }
    }

    public enum Refusal: Sendable, Equatable {
        /// No connection became free in time.
        case timeout
        /// None could be opened in time.
        case unopened
        case tooManyWaiters
    }

    public enum Action: Sendable, Equatable {
        case open(Int)
        case close(Int)
        /// The caller may use the connection until it gives it back.
        case grant(caller: Int, connection: Int)
        case refuse(caller: Int, Refusal)
    }

    private enum State: Equatable {
        /// Can transition to: `busy`, `idle`, gone.
        case opening
        /// Can transition to: `busy`, gone.
        case idle(since: Instant)
        /// Can transition to: `idle`, gone.
        case busy
    }
    private struct Connection {
        var state: State
        var expires: Instant
        /// Not to be used again, whatever its age.
        var isCondemned = false
    }
    private struct Waiter {
        var caller: Int
        var by: Instant
    }

    private let limits: Limits
    private var connections: [Int: Connection] = [:]
    private var waiters: [Waiter] = []
    private var nextConnection = 0
    /// Failed tries to open in a row.
    private var failures = 0
    private var retryAt = Instant(nanoseconds: 0)

    public init(_ limits: Limits) {
        precondition(limits.size >= 1 && limits.overflow >= 0)
        self.limits = limits
    }

    public var openCount: Int { connections.values.count { $0.state != .opening } }
    public var busyCount: Int { connections.values.count { $0.state == .busy } }
    public var waiterCount: Int { waiters.count }

    /// A caller wants a connection.
    public mutating func asked(caller: Int, now: Instant) -> [Action] {
        guard waiters.count < limits.waitersMax else { return [.refuse(caller: caller, .tooManyWaiters)] }
        waiters.append(Waiter(caller: caller, by: now.adding(milliseconds: limits.waitMilliseconds)))
        return serve(now)
    }

    /// The connection is there. `jitter`: 0 to 1, by chance.
    public mutating func opened(_ id: Int, jitter: Double, now: Instant) -> [Action] {
        guard let opening = connections[id], opening.state == .opening else { return [.close(id)] }
        failures = 0
        retryAt = now
        if opening.isCondemned {
            connections[id] = nil
            return [.close(id)] + serve(now)
        }
        let life = limits.lifetimeMilliseconds - Int(Double(limits.lifetimeMilliseconds) / 5 * jitter)
        connections[id] = Connection(state: .idle(since: now), expires: now.adding(milliseconds: life))
        return serve(now)
    }

    /// It could not be opened. Callers wait on: a later try may work.
    public mutating func openFailed(_ id: Int, now: Instant) -> [Action] {
        guard connections.removeValue(forKey: id) != nil else { return [] }
        retryAt = now.adding(milliseconds: min(5_000, 50 << min(failures, 10)))
        failures += 1
        return []
    }

    /// The caller is done with it.
    public mutating func released(_ id: Int, now: Instant) -> [Action] {
        guard let connection = connections[id], connection.state == .busy else { return [] }
        if connection.isCondemned || connection.expires <= now {
            connections[id] = nil
            return [.close(id)] + serve(now)
        }
        connections[id]?.state = .idle(since: now)
        return serve(now)
    }

    /// It is lost, in use or not.
    public mutating func broke(_ id: Int, now: Instant) -> [Action] {
        guard connections.removeValue(forKey: id) != nil else { return [] }
        return serve(now)
    }

    /// The server is another one than before: no connection is worth keeping.
    public mutating func condemned(now: Instant) -> [Action] {
        var actions: [Action] = []
        for (id, connection) in connections {
            if case .idle = connection.state {
                connections[id] = nil
                actions.append(.close(id))
            } else {
                connections[id]?.isCondemned = true
            }
        }
        return actions.sorted { $0.id < $1.id } + serve(now)
    }

    /// Time has passed.
    public mutating func ticked(_ now: Instant) -> [Action] {
        var actions: [Action] = []
        while let first = waiters.first, first.by <= now {
            waiters.removeFirst()
            actions.append(.refuse(caller: first.caller, failures > 0 ? .unopened : .timeout))
        }
        let idle = connections.compactMap { id, connection -> (id: Int, since: Instant, isOld: Bool)? in
            guard case .idle(let since) = connection.state else { return nil }
            return (id, since, connection.expires <= now)
        }.sorted { $0.since < $1.since || $0.since == $1.since && $0.id < $1.id }
        var surplus = connections.count - limits.size
        for entry in idle {
            let isSurplus = surplus > 0 && now.milliseconds(since: entry.since) >= limits.overflowIdleMilliseconds
            guard entry.isOld || isSurplus else { continue }
            surplus -= 1
            connections[entry.id] = nil
            actions.append(.close(entry.id))
        }
        return actions + serve(now)
    }

    /// Grants idle connections, the last used first so that the others can end, and opens what is missing.
    private mutating func serve(_ now: Instant) -> [Action] {
        var actions: [Action] = []
        while let waiter = waiters.first, let id = freshest(now) {
            waiters.removeFirst()
            connections[id]?.state = .busy
            actions.append(.grant(caller: waiter.caller, connection: id))
        }
        guard now >= retryAt else { return actions }
        var opening = connections.values.count { $0.state == .opening }
        // After a failure one try at a time finds out whether the server is back.
        let openingMax = failures > 0 ? 1 : waiters.count
        while opening < min(waiters.count, openingMax), connections.count < limits.size + limits.overflow {
            connections[nextConnection] = Connection(state: .opening, expires: .never)
            actions.append(.open(nextConnection))
            nextConnection += 1
            opening += 1
        }
        return actions
    }

    private func freshest(_ now: Instant) -> Int? {
        var best: (id: Int, since: Instant)?
        for (id, connection) in connections {
            guard case .idle(let since) = connection.state, !connection.isCondemned, connection.expires > now else { continue }
            if let known = best, known.since > since || known.since == since && known.id < id { continue }
            best = (id, since)
        }
        return best?.id
    }
}

extension PoolMachine.Action {
    fileprivate var id: Int {
        switch self {
        case .open(let id), .close(let id), .grant(_, let id): id
        case .refuse(let caller, _): caller
        }
    }
}
