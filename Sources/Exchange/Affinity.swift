public import Bytes
public import HTTPWire
public import Routing
internal import Vocabulary

/// What ties a turn to the account that has its conversation: its response, its login's state, its cached prompt (docs/routing.md).
public struct Affinity: Sendable {
    public struct Key: Sendable, Equatable {
        /// Under which the account is known; what a client calls its own is kept apart by its key.
        public var hash: UInt64
        public var strength: Pin.Strength
        /// Is remembered for so long.
        public var seconds: Int
        /// The account is looked up by it; else it is only remembered.
        public var isKnown = true
        /// Only its account has a file that the turn names.
        public var isFile = false
    }

    /// In the order in which they are looked up.
    public private(set) var keys: [Key] = []
    /// The turn can do without its previous response when the account that has it can't serve.
    public private(set) var isWhole = false

    private enum Kind: UInt64 {
        case response = 1
        case turnState, thread, session, cache, beginning, file
    }

    /// `client`: the id of the client's key; 0 of one that needs none.
    public init(_ ask: TurnRequest, _ fields: HeaderFields, client: Int64, _ hash: SipHash) {
        func own(_ kind: Kind) -> UInt64 { kind.rawValue | UInt64(truncatingIfNeeded: client) << 8 }
        func add(_ word: UInt64, _ text: String?, _ strength: Pin.Strength, seconds: Int) {
            guard let text, !text.isEmpty, text.utf8.count <= Limits.affinityKeyBytesMax else { return }
            keys.append(Key(hash: hash.hash(word, text), strength: strength, seconds: seconds))
        }
        isWhole = ask.isWhole && ask.fileIDs.isEmpty
        if let id = ask.previousResponseID { keys.append(Key(hash: Self.response(id, hash), strength: .only, seconds: Limits.pinSeconds)) }
        for id in ask.fileIDs {
            keys.append(Key(hash: Self.file(id, hash), strength: .only, seconds: Limits.pinSeconds, isFile: true))
        }
        add(Kind.turnState.rawValue, fields.first(.turnState), .owner, seconds: Limits.pinSeconds)
        add(own(.thread), fields.first(.threadID), .prefer, seconds: Limits.pinSeconds)
        for name in Self.sessionNames where fields.has(name) {
            add(own(.session), fields.first(name), .prefer, seconds: Limits.pinSeconds)
            break
        }
        add(own(.cache), ask.promptCacheKey, .prefer, seconds: Limits.cachePinSeconds)
        // Who made a file that nobody remembers, nobody knows: the conversation is told by how it begins.
        if keys.allSatisfy(\.isFile), let (start, isContinued) = ask.beginning(own(.beginning), hash) {
            keys.append(Key(hash: start, strength: .prefer, seconds: Limits.cachePinSeconds, isKnown: isContinued))
        }
    }

    /// As of a turn whose `session-id` is this.
    public init(session: String, client: Int64, _ hash: SipHash) {
        let word = Kind.session.rawValue | UInt64(truncatingIfNeeded: client) << 8
        keys = [Key(hash: hash.hash(word, session), strength: .prefer, seconds: Limits.pinSeconds)]
    }

    private static let sessionNames: [KnownHeader] = [
        .sessionID, .sessionIDUnderscored, .codexSessionID, .codexConversationID, .conversationIDUnderscored,
    ]

    /// What is learned from an answer: whoever comes back with its id, with the id of a file that it made, or with the state that its head gave,
    /// belongs to the same account.
    public static func response(_ id: String, _ hash: SipHash) -> UInt64 { hash.hash(Kind.response.rawValue, id) }
    public static func file(_ id: String, _ hash: SipHash) -> UInt64 { hash.hash(Kind.file.rawValue, id) }
    public static func turnState(_ state: String, _ hash: SipHash) -> UInt64 { hash.hash(Kind.turnState.rawValue, state) }
}
