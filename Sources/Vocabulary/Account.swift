/// An upstream identity with its credentials, as a worker needs it for a turn.
public struct Account: Sendable, Equatable {
    public enum Kind: String, Sendable, CaseIterable {
        /// An OpenAI-compatible base URL and a key.
        case apiKey = "api_key"
        /// A ChatGPT login: tokens from Codex's `auth.json`.
        case chatGPT = "chatgpt"
    }

    public enum State: String, Sendable, CaseIterable {
        case active
        /// The operator took it out of routing.
        case paused
        /// Upstream refuses its credentials; an operator must log in again.
        case reauthRequired = "reauth_required"
        /// Upstream or issuer say that the person's or the workspace's account is closed; a login to another one may take its place.
        case deactivated

        /// Somebody has to log in again.
        public var needsLogin: Bool { self == .reauthRequired || self == .deactivated }
    }

    /// How readily an account is used beside others that can serve as well.
    public enum Policy: String, Sendable, CaseIterable {
        case normal
        /// Before all others, up to its limit: what it has left would be lost.
        case burnFirst = "burn_first"
        /// When no other one has quota to spare.
        case preserve
    }

    /// What an operator sets for an account's part in routing.
    public struct Options: Sendable, Equatable {
        public var policy = Policy.normal
        /// Its size next to other accounts, `Limits.accountWeights`.
        public var weight = Limits.accountWeightDefault
        /// Turns open on it at a time, over all workers of an instance; nil: no limit.
        public var streamsMax: Int?
        /// Models that it is asked for; nil: any.
        public var models: [String]?
        /// It is used only when no other account can serve.
        public var isOverflow = false
        public init() {}
    }

    /// A field that goes with each request to the account's upstream.
    public struct Header: Sendable, Equatable {
        public var name: String
        public var value: String
        public init(_ name: String, _ value: String) { (self.name, self.value) = (name, value) }
    }

    /// What `Authorization` is made of, and further fields that may hold secrets. Never logged, never in a description.
    public struct Credentials: Sendable, Equatable, CustomStringConvertible {
        /// The API key or the access token; empty where `headers` have the key.
        public var bearer: String
        public var refreshToken: String?
        public var idToken: String?
        /// The value of `chatgpt-account-id`.
        public var chatGPTAccountID: String?
        public var headers: [Header] = []
        /// What the account's upstream, and the issuer of its login, are reached through; nil: as the environment says.
        public var proxy: EgressProxy?
        public init(bearer: String, refreshToken: String? = nil, idToken: String? = nil, chatGPTAccountID: String? = nil) {
            (self.bearer, self.refreshToken, self.idToken, self.chatGPTAccountID) = (bearer, refreshToken, idToken, chatGPTAccountID)
        }
        public var description: String { "Credentials(…)" }

        /// These are of the same login, or the same key.
        public func hasTokens(of other: Credentials) -> Bool {
            (bearer, refreshToken, idToken) == (other.bearer, other.refreshToken, other.idToken)
        }
        /// With another's tokens; how the upstream is reached stays.
        public func withTokens(of other: Credentials) -> Credentials {
            var new = other
            (new.headers, new.proxy) = (headers, proxy)
            return new
        }
    }

    /// The number of the row; never used twice.
    public var id: Int64
    /// The place in the scoreboard, `0 ..< Limits.accountsMax`; free again when the account is removed.
    public var slot: Int
    public var name: String
    public var kind: Kind
    public var state: State
    /// Without a slash at the end: `https://api.openai.com/v1`; a query (`?api-version=…`) goes with each request.
    public var baseURL: String
    public var credentials: Credentials
    public var options = Options()
    public var createdAt: WallTime
    /// Of its state, credentials or place.
    public var changedAt: WallTime

    public init(
        id: Int64, slot: Int, name: String, kind: Kind, state: State, baseURL: String, credentials: Credentials, createdAt: WallTime,
        changedAt: WallTime
    ) {
        (self.id, self.slot, self.name, self.kind) = (id, slot, name, kind)
        (self.state, self.baseURL, self.credentials) = (state, baseURL, credentials)
        (self.createdAt, self.changedAt) = (createdAt, changedAt)
    }
}

/// A key that codex-lb gave to a client. Only its HMAC is kept.
public struct ClientKey: Sendable, Equatable {
    public var id: Int64
    public var name: String
    /// HMAC-SHA-256 of the whole key under the pepper: 32 bytes.
    public var digest: [UInt8]
    /// The first characters, to recognise it by: `sk-clb-AbCd…`.
    public var prefix: String
    /// Models it may ask for; nil is any.
    public var models: [String]?
    public var expiresAt: WallTime?
    public var revokedAt: WallTime?
    public var createdAt: WallTime

    public init(
        id: Int64, name: String, digest: [UInt8], prefix: String, models: [String]?, expiresAt: WallTime?, revokedAt: WallTime?,
        createdAt: WallTime
    ) {
        (self.id, self.name, self.digest, self.prefix) = (id, name, digest, prefix)
        (self.models, self.expiresAt, self.revokedAt, self.createdAt) = (models, expiresAt, revokedAt, createdAt)
    }
}

/// Everything of the store that a turn needs, as one immutable value. Each change of accounts, keys or settings makes a higher version.
public struct Snapshot: Sendable, Equatable {
    public var version: Int64
    public var accounts: [Account]
    public var clientKeys: [ClientKey]
    /// What client keys are hashed with: 32 bytes.
    public var pepper: [UInt8]
    public var settings: [String: String]
    /// What is known of the accounts beside their rows. A change of it alone makes no version.
    public var facts: [AccountFact]

    public init(
        version: Int64, accounts: [Account], clientKeys: [ClientKey], pepper: [UInt8], settings: [String: String],
        facts: [AccountFact] = []
    ) {
        (self.version, self.accounts, self.clientKeys) = (version, accounts, clientKeys)
        (self.pepper, self.settings, self.facts) = (pepper, settings, facts)
    }

    /// Facts that were learned since it was made.
    public mutating func learn(_ new: [AccountFact]) {
        for fact in new {
            if let known = facts.firstIndex(where: { $0.accountID == fact.accountID && $0.subject == fact.subject }) {
                if facts[known].at < fact.at { facts[known] = fact }
            } else {
                facts.append(fact)
            }
        }
    }
}
