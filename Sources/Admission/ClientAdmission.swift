public import Vocabulary

/// Who asks, as far as admission needs it.
public struct Caller: Sendable {
    /// The peer is loopback or a Unix-domain socket.
    public var isLocalPeer: Bool
    /// A forwarding header shows that somebody else stands behind a local peer.
    public var isForwarded: Bool
    public var authorization: String?

    public init(isLocalPeer: Bool, isForwarded: Bool, authorization: String?) {
        (self.isLocalPeer, self.isForwarded, self.authorization) = (isLocalPeer, isForwarded, authorization)
    }
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

    /// The client's key, nil for a local caller without one of ours, or why it is refused.
    ///
    /// `find` looks a presented key up; it hashes and compares in constant time. Local clients often must send some key to please
    /// their SDK: one that isn't ours is ignored there.
    public static func check(_ caller: Caller, now: WallTime, find: (Substring) -> ClientKey?) -> Result<ClientKey?, ProxyError> {
        let isLocal = caller.isLocalPeer && !caller.isForwarded
        let presented = bearer(caller.authorization)
        guard let presented, presented.hasPrefix(keyPrefix) else {
            if isLocal { return .success(nil) }
            return .failure(
                refusal(
                    presented == nil
                        ? "Missing API key in Authorization header. Send \"Authorization: Bearer sk-clb-…\"; the operator makes a key with: codex-lb keys create NAME"
                        : "Invalid API key"))
        }
        guard let key = find(presented), key.revokedAt == nil else { return .failure(refusal("Invalid API key")) }
        if let expires = key.expiresAt, expires <= now { return .failure(refusal("API key has expired")) }
        return .success(key)
    }

    /// Nil when the key may ask for the model.
    public static func checkModel(_ model: String, key: ClientKey?) -> ProxyError? {
        guard let models = key?.models, !models.contains(model) else { return nil }
        return ProxyError(
            status: 403, code: "model_not_allowed", type: "permission_error",
            message: "This API key may not use the model \"\(model)\". Allowed: \(models.joined(separator: ", "))", param: "model",
            origin: .downstream)
    }

    private static func refusal(_ message: String) -> ProxyError {
        ProxyError(status: 401, code: "invalid_api_key", type: "authentication_error", message: message, origin: .downstream)
    }
}
