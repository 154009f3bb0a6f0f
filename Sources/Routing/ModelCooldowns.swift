public import Vocabulary

/// Which models an account has no quota for, and until when. Bounded: names come from clients.
public struct ModelCooldowns: Sendable {
    private struct Key: Hashable {
        var account: Int64
        var model: String
    }
    private var ends: [Key: Instant] = [:]
    static let entriesMax = 1024

    public init() {}
    public var isEmpty: Bool { ends.isEmpty }
    /// Rises with each change that is not the passing of time.
    public private(set) var version = 0
    /// When the first of them ends.
    public var firstEnd: Instant? { ends.values.min() }

    /// A shorter cooldown never replaces a longer one. At the limit what is over is forgotten, and if that is nothing, the one that ends first.
    public mutating func coolDown(account: Int64, model: String, until: Instant, now: Instant) {
        let key = Key(account: account, model: model)
        if ends.count >= Self.entriesMax, ends[key] == nil {
            ends = ends.filter { $0.value > now }
            if ends.count >= Self.entriesMax, let first = ends.min(by: { $0.value < $1.value }) { ends[first.key] = nil }
        }
        ends[key] = max(ends[key] ?? until, until)
        version += 1
    }

    /// Nil when the account may be asked for the model.
    public mutating func until(account: Int64, model: String, now: Instant) -> Instant? {
        let key = Key(account: account, model: model)
        guard let end = ends[key] else { return nil }
        if end > now { return end }
        ends[key] = nil
        return nil
    }

    public mutating func forget(account: Int64, model: String) {
        if ends.removeValue(forKey: Key(account: account, model: model)) != nil { version += 1 }
    }

    /// The operator resumed the account, or it has new credentials.
    public mutating func forget(account: Int64) {
        ends = ends.filter { $0.key.account != account }
        version += 1
    }
}
