public import Vocabulary

/// How far an account is trusted after errors of its upstream, in one word that all workers share. Connections that can't be made are counted
/// elsewhere.
///
/// ```
/// healthy ── 2 errors within 60 s ──▶ draining ── 60 s without one ──▶ probing ── 3 good turns ──▶ healthy
///                                        ▲──────────── an error ──────────┘
/// ```
public struct AccountHealth: Sendable, Equatable {
    public enum Tier: String, Sendable {
        case healthy
        /// Others come first.
        case draining
        /// One turn at a time shows whether it serves again.
        case probing
    }

    /// Since it was healthy.
    private var errors: Int
    /// Good turns while probing.
    private var goods: Int
    /// When the last one was, of the monotonic clock.
    private var errorMilliseconds: UInt64

    public init(word: UInt64 = 0) {
        (errors, goods, errorMilliseconds) = (Int(word & 0xFF), Int(word >> 8 & 0xFF), word >> 16)
    }
    /// 0 while there is nothing to remember.
    public var word: UInt64 { errors == 0 ? 0 : errorMilliseconds << 16 | UInt64(goods) << 8 | UInt64(errors) }

    public func tier(now: Instant) -> Tier {
        guard errors >= Limits.drainingErrors else { return .healthy }
        return isRecent(now) ? .draining : .probing
    }

    /// When a drained one is to be probed.
    public var probingAt: Instant {
        Instant(nanoseconds: (errorMilliseconds + Self.drainingMilliseconds).multipliedReportingOverflow(by: 1_000_000).partialValue)
    }

    private func isRecent(_ now: Instant) -> Bool { Self.milliseconds(now) < errorMilliseconds + Self.drainingMilliseconds }
    private static func milliseconds(_ now: Instant) -> UInt64 { now.nanoseconds / 1_000_000 & (1 << 48 - 1) }
    private static let drainingMilliseconds = UInt64(Limits.drainingSeconds) * 1000

    /// A turn that has begun then has failed. Turns that were open together meet one error together: it counts once.
    public mutating func failed(since begin: Instant? = nil, now: Instant) {
        // One error long ago is no beginning of a row.
        if errors < Limits.drainingErrors, !isRecent(now) { errors = 0 }
        if errors == 0 || begin.map({ Self.milliseconds($0) >= errorMilliseconds }) ?? true { errors = min(errors + 1, 255) }
        (goods, errorMilliseconds) = (0, max(errorMilliseconds, Self.milliseconds(now)))
    }

    public mutating func succeeded(now: Instant) {
        switch tier(now: now) {
        case .healthy: errors = 0
        case .draining: break
        case .probing:
            goods += 1
            if goods >= Limits.probesMin { (errors, goods) = (0, 0) }
        }
    }

    /// How long it is left alone for its errors: 30, 60, … 300 s from the third on.
    public var backoffMilliseconds: Int {
        guard errors >= Limits.backoffErrors else { return 0 }
        return min(Limits.errorBackoffMillisecondsMax, Limits.errorBackoffMilliseconds << min(16, errors - Limits.backoffErrors))
    }
}
