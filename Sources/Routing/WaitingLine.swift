public import Vocabulary

/// Turns that wait for an account to have room, fair between clients: each client in turn, and of its own turns the one that came first.
public struct WaitingLine<Waiter> {
    private struct Place {
        var waiter: Waiter
        var by: Instant
        var number: UInt64
    }
    private struct Client {
        var key: Int64
        var places: [Place]
    }
    /// The one whose turn it is comes first.
    private var clients: [Client] = []
    public private(set) var count = 0
    private var next: UInt64 = 0
    private let countMax: Int

    public init(countMax: Int = Limits.capWaitersMax) { self.countMax = countMax }

    public var isEmpty: Bool { count == 0 }

    /// Joins the line of its client; false when too many wait.
    public mutating func join(_ waiter: Waiter, key: Int64, by: Instant) -> Bool {
        guard count < countMax else { return false }
        let place = Place(waiter: waiter, by: by, number: next)
        next += 1
        count += 1
        if let client = clients.firstIndex(where: { $0.key == key }) {
            clients[client].places.append(place)
        } else {
            clients.append(Client(key: key, places: [place]))
        }
        return true
    }

    /// What became of a waiter that was asked.
    public enum Outcome: Sendable {
        /// It has what it waited for, or waits no more.
        case served
        /// There is nothing for it now; whoever is behind it may want something else.
        case waits
    }

    /// Asks those that wait, client by client, until a whole round served nobody. A client that was served goes to the end.
    public mutating func serve(_ ask: (Waiter) -> Outcome) {
        var left = clients.count
        var at = 0
        while left > 0, at < clients.count {
            left -= 1
            guard let served = firstServed(clients[at], ask) else {
                at += 1
                continue
            }
            var client = clients.remove(at: at)
            client.places.remove(at: served)
            count -= 1
            guard !client.places.isEmpty else { continue }
            clients.append(client)
            left += 1
        }
    }

    private func firstServed(_ client: Client, _ ask: (Waiter) -> Outcome) -> Int? {
        for (place, entry) in client.places.enumerated() {
            if ask(entry.waiter) == .served { return place }
        }
        return nil
    }

    /// Takes out those whose time is over, in the order in which they came.
    public mutating func expired(_ now: Instant) -> [Waiter] { take { now >= $0.by } }

    public mutating func remove(where isGone: (Waiter) -> Bool) { _ = take { isGone($0.waiter) } }

    private mutating func take(_ isTaken: (Place) -> Bool) -> [Waiter] {
        var out: [Place] = []
        for client in clients.indices {
            out += clients[client].places.filter(isTaken)
            clients[client].places.removeAll(where: isTaken)
        }
        guard !out.isEmpty else { return [] }
        clients.removeAll(where: \.places.isEmpty)
        count -= out.count
        return out.sorted { $0.number < $1.number }.map(\.waiter)
    }
}
