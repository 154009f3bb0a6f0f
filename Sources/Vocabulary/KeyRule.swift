/// Who must show a key of ours (`CODEX_LB_REQUIRE_KEYS`).
public enum KeyRule: String, Sendable, CaseIterable {
    /// Everybody, as soon as one key was ever made or an address beyond loopback listens. Before that callers on this host need none.
    case auto
    /// Everybody.
    case always
    /// Nobody: what stands in front decides who may come.
    case never

    /// Whether callers on this host need one too. That a caller is one can't be proven: a proxy on this host looks the same.
    public func isDemandedLocally(hasKeys: Bool, isExposed: Bool) -> Bool {
        switch self {
        case .auto: hasKeys || isExposed
        case .always: true
        case .never: false
        }
    }
}
