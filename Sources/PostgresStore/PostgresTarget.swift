public import Settings
internal import Store

/// A database and how connections to it are made.
public struct PostgresTarget: Sendable {
    public var url: PostgresURL
    /// Whether only a server that takes writes will do; a standby is passed over.
    public var needsWrites: Bool

    /// One host's answer to a connection, its TLS and login included; also what the URL's `connect_timeout` replaces.
    public static let connectMilliseconds = 5_000

    public init(_ url: PostgresURL, needsWrites: Bool = true) { (self.url, self.needsWrites) = (url, needsWrites) }

    var connectMilliseconds: Int {
        let given = url.parameters.last { $0.name == "connect_timeout" }.flatMap { Int($0.value) }
        return given.map { max(1, $0) * 1000 } ?? Self.connectMilliseconds
    }

    /// libpq's parameters for one host. `address` is the host's numeric address: libpq would look the name up itself and block.
    func parameters(_ host: PostgresURL.Host, address: String?) -> [(name: String, value: String)] {
        var out: [(name: String, value: String)] = [
            ("host", host.name), ("port", String(host.port)), ("fallback_application_name", "codex-lb"), ("client_encoding", "UTF8"),
            // A peer that went away without a word is noticed within about 20 s even when nothing is being asked.
            ("keepalives", "1"), ("keepalives_idle", "10"), ("keepalives_interval", "3"), ("keepalives_count", "3"),
            ("tcp_user_timeout", "10000"), ("target_session_attrs", needsWrites ? "read-write" : "any"),
        ]
        if let address { out.append(("hostaddr", address)) }
        if let user = url.user { out.append(("user", user)) }
        if let password = url.password { out.append(("password", password)) }
        if let database = url.database { out.append(("dbname", database)) }
        for (name, value) in url.parameters where name != "connect_timeout" {
            // Which host is up to us, one at a time: what is left of these is whether writes are needed.
            if name == "target_session_attrs", !["read-write", "primary", "any", "read-only", "standby"].contains(value) { continue }
            out.removeAll { $0.name == name }
            out.append((name, value))
        }
        return out
    }

    /// How messages name one host of it.
    func place(_ host: PostgresURL.Host) -> String {
        var one = url
        one.hosts = [host]
        return one.description
    }
}
