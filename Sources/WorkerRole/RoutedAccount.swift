import Admission
import Bytes
import HTTPWire
import Store
import Upstream
import Vocabulary

/// An account of the snapshot with what a turn would else derive each time.
final class RoutedAccount {
    let value: Account
    let origin: Origin
    /// Path of the base URL.
    private let prefix: String
    /// Its query, with the `?`; mostly empty.
    private let query: String
    /// What proves whose account it is: `Authorization`, and the account's own fields.
    let credentials: [(name: String, value: String)]
    /// The fields of each request to it that depend on nothing else.
    let headFields: [UInt8]
    /// The same of a request whose answer is JSON from either kind of account.
    var fileFields: [UInt8] { Self.fields(value, origin, credentials, accept: "application/json") }
    /// When its login is to be renewed; nil of one that can't be.
    let renewsAt: WallTime?
    /// As its id token has it.
    var plan: Plan? { value.credentials.idToken.flatMap { LoginIdentity.plan(ofToken: $0) } }
    /// Its clients may choose whom a request is charged to.
    let passesOrganization: Bool

    /// The value of `chatgpt-account-id`; ids that were made up for a login without one are not sent.
    var chatGPTAccountID: String? { Self.accountID(value) }

    private static func accountID(_ account: Account) -> String? {
        account.credentials.chatGPTAccountID.flatMap { $0.hasPrefix("email_") || $0.hasPrefix("local_") ? nil : $0 }
    }

    init?(_ account: Account, passesOrganization: Bool) {
        guard let (address, prefix, query) = Origin.parse(base: account.baseURL) else { return nil }
        var origin = address
        origin.proxy = account.credentials.proxy
        value = account
        (self.origin, self.prefix, self.query) = (origin, prefix, query)
        renewsAt = LoginAge.renewal(of: account)
        let bearer = account.credentials.bearer
        credentials =
            (bearer.isEmpty ? [] : [("Authorization", "Bearer " + bearer)]) + account.credentials.headers.map { ($0.name, $0.value) }
        self.passesOrganization = passesOrganization && account.kind == .apiKey
        headFields = Self.fields(account, origin, credentials, accept: account.kind == .chatGPT ? "text/event-stream" : nil)
    }

    private static func fields(
        _ account: Account, _ origin: Origin, _ credentials: [(name: String, value: String)], accept: String?
    ) -> [UInt8] {
        var fields: [UInt8] = []
        HeadWriter.field("Host", origin.authority, into: &fields)
        for (name, value) in credentials { HeadWriter.field(named: name, value, into: &fields) }
        HeadWriter.field("Content-Type", "application/json", into: &fields)
        // What comes is read here; packed answers are unpacked, but nobody need pack them.
        HeadWriter.field("Accept-Encoding", "identity", into: &fields)
        if let accept { HeadWriter.field("Accept", accept, into: &fields) }
        if account.kind == .chatGPT, let id = accountID(account) { HeadWriter.field("chatgpt-account-id", id, into: &fields) }
        return fields
    }

    /// A field of this name is the account's own: a client's would be a second one.
    func owns(_ name: RawSpan) -> Bool {
        value.credentials.headers.contains { header in
            let bytes = header.name.utf8
            guard bytes.count == name.byteCount else { return false }
            return zip(bytes, 0..<name.byteCount).allSatisfy { lowered($0) == lowered(name[$1]) }
        }
    }

    /// Where a path below the base URL is.
    func target(_ path: String) -> String {
        guard !query.isEmpty else { return prefix + path }
        return prefix + path + (path.contains("?") ? "&" + query.dropFirst() : query)
    }
}
