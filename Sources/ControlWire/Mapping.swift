internal import FoundationEssentials
internal import SwiftProtobuf
public import Vocabulary

/// A message whose fields make no value: what and where.
public struct MappingError: Error, Equatable, Sendable, CustomStringConvertible {
    public var description: String
    init(_ text: String) { description = text }
}

extension UsageRecordMessage {
    public init(_ r: UsageRecord) {
        self.init()
        (idHigh, idLow, timeMs) = (r.id.high, r.id.low, r.time.milliseconds)
        (route, requestID, websocket) = (r.route, r.requestID, r.transport == .websocket)
        if let id = r.keyID { keyID = id }
        if let id = r.accountID { accountID = id }
        (modelAsked, modelServed, status, errorCode) = (r.modelAsked, r.modelServed, Int32(clamping: r.status), r.errorCode)
        (inputTokens, cachedInputTokens) = (r.inputTokens, r.cachedInputTokens)
        (outputTokens, reasoningTokens) = (r.outputTokens, r.reasoningTokens)
        if let cost = r.costMicrodollars { costMicrodollars = cost }
        if let first = r.firstByteMilliseconds { firstByteMs = first }
        (durationMs, attempts) = (r.durationMilliseconds, Int32(clamping: r.attempts))
        (requestBytes, responseBytes) = (r.requestBytes, r.responseBytes)
    }
}

extension Account {
    public init(_ m: AccountMessage) throws(MappingError) {
        guard let kind = Kind(rawValue: m.kind) else { throw MappingError("account \(m.name): unknown kind \"\(m.kind)\"") }
        guard let state = State(rawValue: m.state) else { throw MappingError("account \(m.name): unknown state \"\(m.state)\"") }
        guard m.slot < Limits.accountsMax else {
            throw MappingError("account \(m.name): slot \(m.slot) is above \(Limits.accountsMax - 1)")
        }
        self.init(
            id: m.id, slot: Int(m.slot), name: m.name, kind: kind, state: state, baseURL: m.baseURL,
            credentials: Credentials(
                bearer: m.bearer, refreshToken: m.hasRefreshToken ? m.refreshToken : nil, idToken: m.hasIDToken ? m.idToken : nil,
                chatGPTAccountID: m.hasChatgptAccountID ? m.chatgptAccountID : nil),
            createdAt: WallTime(milliseconds: m.createdAtMs), changedAt: WallTime(milliseconds: m.changedAtMs))
        credentials.headers = m.headers.map { Header($0.name, $0.value) }
        if !m.proxy.isEmpty {
            guard let proxy = EgressProxy(m.proxy) else { throw MappingError("account \(m.name): its proxy can't be read") }
            credentials.proxy = proxy
        }
        if m.hasOptions { options = try Options(m.options, of: m.name) }
    }
}

extension Account.Options {
    init(_ m: AccountOptionsMessage, of name: String) throws(MappingError) {
        self.init()
        guard let policy = Account.Policy(rawValue: m.policy) else { throw MappingError("account \(name): unknown policy \"\(m.policy)\"") }
        guard Limits.accountWeights.contains(Int(m.weight)) else { throw MappingError("account \(name): weight \(m.weight)") }
        (self.policy, weight, isOverflow) = (policy, Int(m.weight), m.overflow)
        streamsMax = m.streamsMax == 0 ? nil : Int(m.streamsMax)
        models = m.limitsModels ? m.models : nil
    }
}

extension AccountOptionsMessage {
    init(_ o: Account.Options) {
        self.init()
        (policy, weight, overflow) = (o.policy.rawValue, UInt32(o.weight), o.isOverflow)
        streamsMax = UInt32(clamping: o.streamsMax ?? 0)
        (limitsModels, models) = (o.models != nil, o.models ?? [])
    }
}

extension HeaderMessage {
    public init(_ header: Account.Header) {
        self.init()
        (name, value) = (header.name, header.value)
    }
}

extension AccountMessage {
    /// With the credentials: only for `SnapshotMessage`.
    public init(_ a: Account) {
        self.init(withoutSecrets: a)
        bearer = a.credentials.bearer
        if let token = a.credentials.refreshToken { refreshToken = token }
        if let token = a.credentials.idToken { idToken = token }
        headers = a.credentials.headers.map { HeaderMessage($0) }
        proxy = a.credentials.proxy?.url ?? ""
    }

    /// For the eyes of an operator: bearer and tokens stay empty.
    public init(withoutSecrets a: Account) {
        self.init()
        (id, slot, name, baseURL, createdAtMs) = (a.id, UInt32(a.slot), a.name, a.baseURL, a.createdAt.milliseconds)
        (kind, state, changedAtMs) = (a.kind.rawValue, a.state.rawValue, a.changedAt.milliseconds)
        if let id = a.credentials.chatGPTAccountID { chatgptAccountID = id }
        options = AccountOptionsMessage(a.options)
        proxy = a.credentials.proxy?.description ?? ""
    }
}

extension ClientKey {
    public init(_ m: ClientKeyMessage) {
        self.init(
            id: m.id, name: m.name, digest: [UInt8](m.digest), prefix: m.prefix, models: m.limitsModels ? m.models : nil,
            expiresAt: m.hasExpiresAtMs ? WallTime(milliseconds: m.expiresAtMs) : nil,
            revokedAt: m.hasRevokedAtMs ? WallTime(milliseconds: m.revokedAtMs) : nil, createdAt: WallTime(milliseconds: m.createdAtMs))
    }
}

extension ClientKeyMessage {
    public init(_ k: ClientKey) {
        self.init()
        (id, name, digest, prefix, createdAtMs) = (k.id, k.name, Data(k.digest), k.prefix, k.createdAt.milliseconds)
        (limitsModels, models) = (k.models != nil, k.models ?? [])
        if let time = k.expiresAt { expiresAtMs = time.milliseconds }
        if let time = k.revokedAt { revokedAtMs = time.milliseconds }
    }
}

extension Snapshot {
    public init(_ m: SnapshotMessage) throws(MappingError) {
        var accounts: [Account] = []
        for message in m.accounts { accounts.append(try Account(message)) }
        self.init(
            version: m.version, accounts: accounts, clientKeys: m.clientKeys.map { ClientKey($0) }, pepper: [UInt8](m.pepper),
            settings: m.settings, facts: m.facts.compactMap { AccountFact($0) })
    }
}

extension SnapshotMessage {
    public init(_ s: Snapshot) {
        self.init()
        (version, pepper, settings) = (s.version, Data(s.pepper), s.settings)
        accounts = s.accounts.map { AccountMessage($0) }
        clientKeys = s.clientKeys.map { ClientKeyMessage($0) }
        facts = s.facts.map { AccountFactMessage($0) }
    }
}

extension AccountFact {
    /// Nil of a subject that this build does not know.
    public init?(_ m: AccountFactMessage) {
        guard let subject = Subject(rawValue: m.subject) else { return nil }
        self.init(accountID: m.accountID, subject: subject, at: WallTime(milliseconds: m.atMs), value: m.value)
    }
}

extension AccountFactMessage {
    public init(_ f: AccountFact) {
        self.init()
        (accountID, subject, atMs, value) = (f.accountID, f.subject.rawValue, f.at.milliseconds, f.value)
    }
}

extension SnapshotMessage {
    public init(serialized bytes: [UInt8]) throws(FrameError) {
        do { try self.init(serializedBytes: bytes) } catch { throw .undecodable(bytes: bytes.count) }
    }
}

extension KeptSnapshot {
    public init(fingerprint: String, sealed: [UInt8]) {
        self.init()
        (self.fingerprint, self.sealed) = (fingerprint, Data(sealed))
    }
    public var sealedBytes: [UInt8] { [UInt8](sealed) }
}

extension SuccessionVisitor {
    /// `pending` as `FrameReader.unfinished` has it.
    public var unfinished: [UInt8] {
        get { [UInt8](pending) }
        set { pending = Data(newValue) }
    }
}

extension Succession {
    /// The control socket of the next child of the fleet, with what has come of a frame; -1: it has none.
    public mutating func addLink(_ descriptor: Int32, unfinished: [UInt8]) {
        childLinks.append(descriptor)
        childPending.append(Data(unfinished))
    }
}

extension OperatorMessage {
    public init(_ o: Operator) {
        self.init()
        user = o.user.id
        if let sudoer = o.sudoer { (sudoUser, sudoName) = (sudoer.id, sudoer.name) }
    }
}
