public import ControlWire
import Platform
public import Store
public import Vocabulary

/// Carries out the commands of the command line, in the writer or, with no server running, in the command itself.
public enum StoreCommands {
    public struct Outcome: Sendable {
        public var reply: StoreReply
        /// The state after a change; nil when nothing changed.
        public var snapshot: Snapshot?
    }

    /// `makesSnapshot`: somebody serves by the state after a change; making it takes as long as there are accounts.
    public static func perform(_ command: StoreCommand, on session: StoreSession, now: WallTime, makesSnapshot: Bool = true) -> Outcome {
        var reply = StoreReply()
        var hasChanged = true
        // Made only for what operators order: a name may take its time.
        var author: Author { Author(actor(command), at: now) }
        do throws(StoreError) {
            switch command.body {
            case .addAccount(let m):
                guard let kind = Account.Kind(rawValue: m.kind) else { throw StoreError(.invalid, "no such kind of account: \(m.kind)") }
                let credentials = Account.Credentials(
                    bearer: m.bearer, refreshToken: m.hasRefreshToken ? m.refreshToken : nil, idToken: m.hasIDToken ? m.idToken : nil,
                    chatGPTAccountID: m.hasChatgptAccountID ? m.chatgptAccountID : nil)
                let known: NewAccount.Known = m.replaces ? .replaced : m.renews ? .renewed(byName: m.nameGiven) : .refused
                let (account, renewed) = try session.putAccount(
                    NewAccount(
                        name: m.name, kind: kind, baseURL: m.baseURL, credentials: credentials, known: known,
                        change: try AccountChange(m.change)), now: now, by: author)
                reply.accounts = [AccountMessage(withoutSecrets: account)]
                reply.renewed = renewed
            case .setAccountState(let m) where m.hasID:
                guard let state = Account.State(rawValue: m.state) else { throw StoreError(.invalid, "no such state: \(m.state)") }
                hasChanged = try session.takeOut(
                    AccountRemoval(
                        accountID: m.id, changedAt: WallTime(milliseconds: m.unchangedSinceMs), state, reason: m.reason), now: now)
            case .learnFacts(let m):
                hasChanged = false
                try session.learn(m.facts.compactMap { AccountFact($0) }, now: now)
            case .setAccountState(let m):
                guard let state = Account.State(rawValue: m.state) else { throw StoreError(.invalid, "no such state: \(m.state)") }
                reply.accounts = [AccountMessage(withoutSecrets: try session.setAccountState(m.name, state, now: now, by: author))]
            case .setAccount(let m):
                reply.accounts = [
                    AccountMessage(withoutSecrets: try session.setAccount(m.name, AccountChange(m.change), now: now, by: author))
                ]
            case .setSetting(let m):
                try session.set(m.name, to: m.value, by: author)
            case .unsetSetting(let m):
                reply.wasSet = try session.unset(m.name, by: author)
            case .listSettings:
                hasChanged = false
                reply.settings = Dictionary(try session.settings(), uniquingKeysWith: { _, new in new })
            case .renewLogin(let m):
                var credentials = Account.Credentials(
                    bearer: m.bearer, refreshToken: m.refreshToken, idToken: m.hasIDToken ? m.idToken : nil,
                    chatGPTAccountID: m.hasChatgptAccountID ? m.chatgptAccountID : nil)
                credentials.headers = m.headers.map { Account.Header($0.name, $0.value) }
                credentials.proxy = EgressProxy(m.proxy)
                hasChanged = try session.renewLogin(
                    account: m.id, changedAt: WallTime(milliseconds: m.unchangedSinceMs), credentials, now: now)
            case .removeAccount(let m):
                reply.accounts = [AccountMessage(withoutSecrets: try session.removeAccount(m.name, now: now, by: author))]
            case .createClientKey(let m):
                let (key, plain) = try session.createClientKey(
                    m.name, models: m.limitsModels ? m.models : nil,
                    expiresAt: m.hasExpiresAtMs ? WallTime(milliseconds: m.expiresAtMs) : nil, now: now, by: author)
                reply.clientKeys = [ClientKeyMessage(key)]
                reply.plainKey = plain
            case .revokeClientKey(let m):
                reply.clientKeys = [ClientKeyMessage(try session.revokeClientKey(m.name, now: now, by: author))]
            case .listAccounts:
                hasChanged = false
                reply.accounts = try session.accounts().map { AccountMessage(withoutSecrets: $0) }
                reply.facts = try session.facts().map { AccountFactMessage($0) }
            case .listClientKeys:
                hasChanged = false
                reply.clientKeys = try session.clientKeys().map { ClientKeyMessage($0) }
            case .listUsage(let m):
                hasChanged = false
                reply.usage = try session.usage(last: Int(m.last)).map { listing in
                    var row = UsageRow()
                    row.record = UsageRecordMessage(listing.record)
                    (row.key, row.account) = (listing.key, listing.account)
                    return row
                }
            case .pruneUsage(let m):
                hasChanged = false
                let before = WallTime(milliseconds: m.beforeMs)
                if m.witnessBeforeMs != 0, try !session.hasUsage(from: before, before: WallTime(milliseconds: m.witnessBeforeMs)) {
                    reply.unwitnessed = true
                } else {
                    let count = try session.pruneUsage(
                        before: before, limit: min(Int(m.limit), Limits.pruneBatchMax), by: m.noted ? author : nil)
                    reply.pruned = UInt32(clamping: count)
                }
            case .listAudit(let m):
                hasChanged = false
                reply.audit = try session.audit(last: Int(m.last)).map { AuditRow($0) }
            case nil:
                throw StoreError(.invalid, "the server does not know this command; is it older than this program?")
            }
            return Outcome(reply: reply, snapshot: hasChanged && makesSnapshot ? try session.snapshot() : nil)
        } catch {
            reply.error = error.message
            return Outcome(reply: reply, snapshot: nil)
        }
    }

    private static func actor(_ command: StoreCommand) -> String {
        guard command.hasGivenBy else { return "unknown" }
        let (user, m) = (command.givenBy.user, command.givenBy)
        let sudoer = m.hasSudoUser ? Operator.User(m.sudoUser, m.sudoName) : nil
        return Operator(Operator.User(user, Process.userName(user) ?? ""), sudoer: sudoer).description
    }
}

extension AuditRow {
    init(_ entry: AuditEntry) {
        self.init()
        (id, atMs, actor, action) = (entry.id, entry.at.milliseconds, entry.actor, entry.action)
        (subject, detail) = (entry.subject, entry.detail)
    }
}

extension AccountChange {
    public init(_ m: AccountChangeMessage) throws(StoreError) {
        self.init()
        if m.hasPolicy {
            guard let policy = Account.Policy(rawValue: m.policy) else {
                let known = Account.Policy.allCases.map(\.rawValue).joined(separator: ", ")
                throw StoreError(.invalid, "policy \"\(m.policy)\": give one of \(known)")
            }
            self.policy = policy
        }
        if m.hasWeight { weight = Int(m.weight) }
        if m.hasStreamsMax { streamsMax = Int(m.streamsMax) }
        if m.setsModels { models = m.models }
        if m.hasOverflow { isOverflow = m.overflow }
        if m.hasProxy { proxy = m.proxy }
        if m.setsHeaders { headers = m.headers.map { Account.Header($0.name, $0.value) } }
    }
}
