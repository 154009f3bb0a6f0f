public import Vocabulary

/// Who asks, as far as admission needs it.
public struct Caller: Sendable {
    /// The peer is loopback or a Unix-domain socket, nothing tells of a proxy in front of it, and `Host` is a name of this host.
    public var isLocal: Bool
    public var authorization: String?

    public init(isLocal: Bool, authorization: String?) { (self.isLocal, self.authorization) = (isLocal, authorization) }
}

public enum ClientAdmission {
    /// What a key of ours starts with.
    public static let keyPrefix = "sk-clb-"

    /// The key in `Authorization: Bearer …`; nil when there is none. The scheme is case-insensitive (RFC 9110 §11.1).
    public static func bearer(_ authorization: String?) -> Substring? {
        guard let authorization, let space = authorization.firstIndex(of: " "),
            authorization[..<space].lowercased() == "bearer"
        else { return nil }
        let token = authorization[authorization.index(after: space)...].drop { $0 == " " }
        return token.isEmpty ? nil : token
    }

    /// The client's key, nil for a caller that needs none and shows none of ours, or why it is refused.
    ///
    /// `isDemandedLocally` is what `rule` comes to now. `find` looks a presented key up; it hashes and compares in constant time. Clients
    /// often must send some key to please their SDK: where none is demanded, one that isn't ours is ignored.
    public static func check(
        _ caller: Caller, rule: KeyRule, isDemandedLocally: Bool, now: WallTime, find: (Substring) -> ClientKey?
    ) -> Result<ClientKey?, ProxyError> {
        let presented = bearer(caller.authorization)
        guard let presented, presented.hasPrefix(keyPrefix) else {
            if rule == .never || caller.isLocal && !isDemandedLocally { return .success(nil) }
            return .failure(refusal(presented == nil ? missing(isDemandedLocally: isDemandedLocally) : "Invalid API key"))
        }
        guard let key = find(presented), key.revokedAt == nil else { return .failure(refusal("Invalid API key")) }
        if let expires = key.expiresAt, expires <= now { return .failure(refusal("API key has expired")) }
        return .success(key)
    }

    private static func missing(isDemandedLocally: Bool) -> String {
        "Missing API key in Authorization header. Send \"Authorization: Bearer sk-clb-…\"; the operator makes a key with: codex-lb keys create NAME"
            + (isDemandedLocally
                ? "" : ". Only direct callers on this host need none; this request came through a proxy or with another host's name")
    }

    /// Nil when the key may ask for the model.
    public static func checkModel(_ model: String, key: ClientKey?) -> ProxyError? {
        // Byte for byte, as upstreams compare: Swift's == takes other spellings of the same letters for equal.
        guard let models = key?.models, !models.contains(where: { $0.utf8.elementsEqual(model.utf8) }) else { return nil }
        return ProxyError(
            status: 403, code: "model_not_allowed", type: "permission_error",
            message:
                "This API key may not use the model \"\(model.cut(utf8: Limits.recordModelBytesMax))\". Allowed: \(models.joined(separator: ", "))",
            param: "model", origin: .downstream)
    }

    private static func refusal(_ message: String) -> ProxyError {
        ProxyError(status: 401, code: "invalid_api_key", type: "authentication_error", message: message, origin: .downstream)
    }
}
