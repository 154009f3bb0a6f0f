import Admission
import HTTPWire
import Logging
import Platform
import Sealing
import Settings
import Vocabulary

/// Who may ask for what: the snapshot's client keys and the rule that says who needs one.
final class ClientGate {
    private let settings: Settings
    /// An address beyond loopback listens.
    private let isExposed: Bool
    private let log: Logger
    /// Says once for the whole instance what the rule comes to.
    private let tells: Bool
    /// Callers on this host must show a key too.
    private var isKeyDemandedLocally = true
    private var hasKeys: Bool?
    private var keys: [[UInt8]: ClientKey] = [:]
    private var pepper: [UInt8] = []

    init(_ settings: Settings, isExposed: Bool, tells: Bool, _ log: Logger) {
        (self.settings, self.isExposed, self.tells, self.log) = (settings, isExposed, tells, log)
    }

    /// Revoked keys count: an instance that had keys is not opened by the end of the last one.
    func replace(with new: [ClientKey], pepper: [UInt8]) {
        self.pepper = pepper
        keys = Dictionary(new.map { ($0.digest, $0) }, uniquingKeysWith: { a, _ in a })
        guard hasKeys != !new.isEmpty else { return }
        hasKeys = !new.isEmpty
        isKeyDemandedLocally = settings.keyRule.isDemandedLocally(hasKeys: !new.isEmpty, isExposed: isExposed)
        if tells { tell(hasKeys: !new.isEmpty) }
    }

    private func tell(hasKeys: Bool) {
        let (who, why): (String, String) =
            switch settings.keyRule {
            case .always: ("everybody", "CODEX_LB_REQUIRE_KEYS=always")
            case .never: ("nobody", "CODEX_LB_REQUIRE_KEYS=never")
            case .auto where hasKeys: ("everybody", "a key exists")
            case .auto where isExposed: ("everybody", "an address beyond loopback listens")
            case .auto: ("everybody but direct callers on this host", "no key exists and only loopback listens")
            }
        log.notice("client keys are demanded", metadata: ["from": "\(who)", "because": "\(why)"])
    }

    /// Nil where none is needed.
    func admit(_ head: RequestHead, isLocalPeer: Bool) -> Result<ClientKey?, ProxyError> {
        let isLocal = isLocalPeer && !isKeyDemandedLocally && Locality.isDirect(head.fields)
        let caller = Caller(isLocal: isLocal, authorization: head.fields.first(.authorization))
        return ClientAdmission.check(caller, rule: settings.keyRule, isDemandedLocally: isKeyDemandedLocally, now: Clock.wall) {
            presented in
            let digest = HMAC.sha256(key: pepper, message: Array(presented.utf8))
            guard let key = keys[digest], HMAC.equal(key.digest, digest) else { return nil }
            return key
        }
    }

    /// Whether the caller may see metrics and the details of health: with the token, or, where none is set, as a direct caller on this
    /// host while such callers are trusted without a key.
    func mayObserve(_ head: RequestHead, isLocalPeer: Bool) -> Bool {
        guard let token = settings.metricsToken else { return isLocalPeer && !isKeyDemandedLocally && Locality.isDirect(head.fields) }
        let presented = ClientAdmission.bearer(head.fields.first(.authorization)) ?? ""
        return HMAC.equal(HMAC.sha256(key: pepper, message: Array(presented.utf8)), HMAC.sha256(key: pepper, message: Array(token.utf8)))
    }
}
