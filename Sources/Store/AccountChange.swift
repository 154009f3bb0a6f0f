internal import Settings
public import Vocabulary

/// What an operator changes of an account; nil stays as it is.
public struct AccountChange: Sendable, Equatable {
    public var policy: Account.Policy?
    public var weight: Int?
    /// 0: no limit.
    public var streamsMax: Int?
    /// Empty: any.
    public var models: [String]?
    public var isOverflow: Bool?
    /// Empty: none.
    public var headers: [Account.Header]?
    /// A URL; empty: none.
    public var proxy: String?
    public init() {}

    public var isNothing: Bool { self == AccountChange() }

    /// What of it is kept with the credentials.
    public func credentials(from old: Account.Credentials) -> Account.Credentials {
        var new = old
        if let headers { new.headers = headers }
        if let proxy { new.proxy = EgressProxy(proxy) }
        return new
    }

    public func options(from old: Account.Options) -> Account.Options {
        var new = old
        if let policy { new.policy = policy }
        if let weight { new.weight = weight }
        if let streamsMax { new.streamsMax = streamsMax == 0 ? nil : streamsMax }
        if let models { new.models = models.isEmpty ? nil : models }
        if let isOverflow { new.isOverflow = isOverflow }
        return new
    }

    /// Throws what can't be stored.
    public func check() throws(StoreError) {
        if let weight, !Limits.accountWeights.contains(weight) {
            throw StoreError(
                .invalid, "weight \(weight): give \(Limits.accountWeights.lowerBound) to \(Limits.accountWeights.upperBound)")
        }
        if let streamsMax, !(0...Limits.streamsMaxMax).contains(streamsMax) {
            throw StoreError(.invalid, "streams-max \(streamsMax): give 1 to \(Limits.streamsMaxMax), or 0 for no limit")
        }
        if let models {
            guard models.count <= Limits.accountModelsMax else {
                throw StoreError(.invalid, "\(models.count) models: an account takes \(Limits.accountModelsMax)")
            }
            for model in models { if let problem = ModelName.problem(model) { throw StoreError(.invalid, problem) } }
        }
        if let proxy, !proxy.isEmpty, EgressProxy(proxy) == nil { throw StoreError(.invalid, "the proxy: \(EgressProxy.expected)") }
        if let headers {
            guard headers.count <= Limits.accountHeadersMax else {
                throw StoreError(.invalid, "\(headers.count) headers: an account takes \(Limits.accountHeadersMax)")
            }
            for header in headers { if let problem = header.problem { throw StoreError(.invalid, problem) } }
            let names = headers.map { $0.name.lowercased() }
            if let twice = names.first(where: { name in names.count { $0 == name } > 1 }) {
                throw StoreError(.invalid, "header \(twice) is given twice")
            }
        }
    }
}

extension Account.Header {
    /// Fields that are written for each request, or belong to one connection; a second one would make it ambiguous.
    private static let own: Set<String> = [
        "host", "authorization", "content-length", "content-type", "content-encoding", "accept-encoding", "transfer-encoding",
        "connection", "keep-alive", "te", "trailer", "upgrade", "expect", "proxy-connection", "proxy-authenticate", "proxy-authorization",
        "user-agent", "x-request-id", "chatgpt-account-id", "date", "via", "forwarded", "cookie",
    ]

    /// Why it can't go with a request (RFC 9110 §5.1, §5.5); nil when it can. Its value is not told: it may be a secret.
    public var problem: String? {
        let isToken = { (byte: UInt8) in
            switch byte {
            case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"), UInt8(ascii: "0")...UInt8(ascii: "9"): true
            default: "!#$%&'*+-.^_`|~".utf8.contains(byte)
            }
        }
        guard !name.isEmpty, name.utf8.allSatisfy(isToken) else {
            return "header \"\(name.printable)\": no name of a field (letters, digits and !#$%&'*+-.^_`|~)"
        }
        guard !Self.own.contains(name.lowercased()) else {
            return "header \(name) is codex-lb's own to write; an account may add others, such as api-key"
        }
        guard name.utf8.count + value.utf8.count <= Limits.accountHeaderBytesMax else {
            return "header \(name) is longer than \(Limits.accountHeaderBytesMax) bytes"
        }
        let bytes = Array(value.utf8)
        guard !bytes.isEmpty, bytes.allSatisfy({ $0 >= 0x20 && $0 < 0x7F }), bytes.first != 0x20, bytes.last != 0x20 else {
            return "header \(name): the value must be visible ASCII, with no space at its ends"
        }
        return nil
    }
}

extension Account.Options {
    /// The list as the store has it.
    var modelsJSON: String? { models.map { "[" + $0.map { "\"\($0)\"" }.joined(separator: ",") + "]" } }

    /// Out of a row; throws for what no build stores.
    init(name: String, policy: String, weight: Int64, streamsMax: Int64?, models: String?, isOverflow: Int64) throws(StoreError) {
        self.init()
        if let problem = Self.fault(policy: policy, weight: weight, streamsMax: streamsMax) {
            throw StoreError(.corrupt, "the account \(name): \(problem); restore a backup")
        }
        self.policy = Account.Policy(rawValue: policy) ?? .normal
        self.weight = Int(weight)
        self.streamsMax = streamsMax.map { Int($0) }
        self.models = try models.map { json throws(StoreError) in try Queries.models(json) }
        self.isOverflow = isOverflow != 0
    }

    static func fault(policy: String, weight: Int64, streamsMax: Int64?) -> String? {
        if Account.Policy(rawValue: policy) == nil { return "policy is \"\(policy.printable)\"" }
        if !(Int64(Limits.accountWeights.lowerBound)...Int64(Limits.accountWeights.upperBound)).contains(weight) {
            return "weight is \(weight)"
        }
        if let streamsMax, !(1...Int64(Limits.streamsMaxMax)).contains(streamsMax) { return "streams_max is \(streamsMax)" }
        return nil
    }
}
