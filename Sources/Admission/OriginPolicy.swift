public import HTTPWire
public import Vocabulary

/// Keeps web pages from spending: a browser sends a page's request to 127.0.0.1 whoever made the page, and says in `Origin` and
/// `Sec-Fetch-Site` (W3C Fetch Metadata) where the page is from.
public struct OriginPolicy: Sendable, Equatable {
    /// `scheme://host[:port]` of pages that may call, in lower case (`CODEX_LB_ALLOWED_ORIGINS`).
    public var allowed: Set<String>

    public init(allowed: Set<String> = []) { self.allowed = allowed }

    public enum Verdict: Sendable, Equatable {
        /// No browser, or a page of our own.
        case pass
        /// A page on the list: the browser is told that it may read the answer.
        case allowed(origin: String)
        case refused
    }

    public func verdict(_ fields: HeaderFields) -> Verdict {
        let origins = fields.all(.origin)
        if origins.isEmpty {
            let site = fields.first(.secFetchSite)?.lowercased() ?? "none"
            return site == "none" || site == "same-origin" ? .pass : .refused
        }
        guard origins.count == 1, let origin = origins.first else { return .refused }
        if allowed.contains(origin.lowercased()) { return .allowed(origin: origin) }
        return isOwn(origin, host: fields.first(.host)) ? .pass : .refused
    }

    /// A page that this address itself delivered. A name that a page's owner has pointed to 127.0.0.1 is not this host's.
    private func isOwn(_ origin: String, host: String?) -> Bool {
        guard let host, Locality.isLocal(authority: host) else { return false }
        return origin.lowercased() == "http://" + host.lowercased()
    }

    public static let refusal = ProxyError(
        status: 403, code: "origin_not_allowed", type: "permission_error",
        message: "Requests of web pages from other origins are refused. Allow a page's origin with CODEX_LB_ALLOWED_ORIGINS",
        origin: .downstream)
}
