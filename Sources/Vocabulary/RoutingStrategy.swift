/// By which rule an account is chosen from those that can serve a turn (docs/routing.md has a picture of each).
public enum RoutingStrategy: String, Sendable, CaseIterable {
    /// The least loaded for its size and what is left of its quota.
    case capacityWeighted = "capacity_weighted"
    /// The one whose quota is used least.
    case usageWeighted = "usage_weighted"
    /// Each in turn.
    case roundRobin = "round_robin"
    /// The one that has most left for the time until its quota begins anew.
    case relativeAvailability = "relative_availability"
    /// The one that is used most, until it is full.
    case fillFirst = "fill_first"
    /// The smallest first, until it is full.
    case sequentialDrain = "sequential_drain"
    /// The one whose quota begins anew first.
    case resetDrain = "reset_drain"
    /// One account and no other.
    case singleAccount = "single_account"
    /// The one with the fewest turns in flight.
    case leastInFlight = "least_inflight"

    public static let standard = capacityWeighted
}
