/// Where the store is. `description` never shows a password.
public enum DatabaseURL: Sendable, Equatable, CustomStringConvertible {
    /// An absolute path.
    case sqlite(path: String)
    case postgresql(PostgresURL)

    /// `sqlite:///PATH`, `postgresql://[USER[:PASSWORD]@][HOST[:PORT][,…]]/[DATABASE][?NAME=VALUE[&…]]`. The schemes of SQLAlchemy
    /// (`sqlite+aiosqlite`, `postgresql+asyncpg`, …) mean the same. `absolute` makes a relative path absolute.
    ///
    /// Errors name the part that is wrong and never repeat user information.
    public static func parse(_ text: String, setting: String, absolute: (String) throws(SettingsError) -> String)
        throws(SettingsError) -> DatabaseURL
    {
        let forms =
            "expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/DATABASE, for example sqlite:///~/.codex-lb/store.db"
        guard let colon = text.firstRange(of: "://") else { throw SettingsError(setting, "there is no \"://\" in the URL; \(forms)") }
        let scheme = String(text[..<colon.lowerBound])
        let rest = text[colon.upperBound...]
        switch scheme.prefix(while: { $0 != "+" }) {
        case "sqlite":
            guard rest.hasPrefix("/") else {
                throw SettingsError(setting, "SQLite has no host: write three slashes, sqlite:///\(rest)")
            }
            guard !rest.contains("?") else { throw SettingsError(setting, "SQLite takes no parameters: leave out what follows the \"?\"") }
            let path = try decoded(rest.dropFirst(), "path", setting)
            guard !path.isEmpty, !path.hasSuffix("/"), path != ":memory:" else {
                throw SettingsError(setting, "the path is empty or no file; \(forms)")
            }
            let isPlaced = path.hasPrefix("~") || path.hasPrefix("./") || path.hasPrefix("../") || path.hasPrefix("/")
            return .sqlite(path: try absolute(isPlaced ? path : "/" + path))
        case "postgresql", "postgres":
            return .postgresql(try PostgresURL(rest, setting))
        default:
            throw SettingsError(setting, "unknown scheme \"\(scheme)\"; \(forms)")
        }
    }

    public var description: String {
        switch self {
        case .sqlite(let path): "sqlite://" + path
        case .postgresql(let url): url.description
        }
    }

    /// RFC 3986 §2.1.
    static func decoded(_ text: Substring, _ part: String, _ setting: String) throws(SettingsError) -> String {
        var bytes: [UInt8] = []
        var rest = text.utf8[...]
        while let byte = rest.popFirst() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard rest.count >= 2, let value = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16), value != 0 else {
                throw SettingsError(setting, "the \(part) has a \"%\" without two hexadecimal digits after it; write a percent sign as %25")
            }
            rest = rest.dropFirst(2)
            bytes.append(value)
        }
        guard let out = String(validating: bytes, as: UTF8.self) else {
            throw SettingsError(setting, "the \(part) is no UTF-8 after percent-decoding")
        }
        return out
    }
}

/// A PostgreSQL database and how to reach it. Hosts are tried in their order.
public struct PostgresURL: Sendable, Equatable, CustomStringConvertible {
    public struct Host: Sendable, Equatable, CustomStringConvertible {
        /// A name, an address without brackets, or the directory of a Unix-domain socket.
        public var name: String
        public var port: UInt16
        public init(name: String, port: UInt16) { (self.name, self.port) = (name, port) }
        public var isDirectory: Bool { name.hasPrefix("/") || name.hasPrefix("@") }
        public var description: String {
            isDirectory ? "\(name) port \(port)" : name.contains(":") ? "[\(name)]:\(port)" : "\(name):\(port)"
        }
    }

    /// Where Debian's PostgreSQL has its socket: the host of a URL that names none.
    public static let defaultHost = "/var/run/postgresql"

    public var hosts: [Host]
    public var user: String?
    public var password: String?
    public var database: String?
    /// libpq parameters (`sslmode`, `target_session_attrs`, …), in order.
    public var parameters: [(name: String, value: String)]

    /// `rest` is what follows `://`.
    init(_ rest: Substring, _ setting: String) throws(SettingsError) {
        let (address, query) = Self.split(rest, at: "?")
        let (authority, path) = Self.split(address, at: "/")
        var hostList = authority
        if let at = authority.lastIndex(of: "@") {
            let (name, secret) = Self.split(authority[..<at], at: ":")
            guard !name.contains("@"), !(secret ?? "").contains("@") else {
                throw SettingsError(setting, "user or password has an \"@\" in it; write it as %40")
            }
            user = name.isEmpty ? nil : try DatabaseURL.decoded(name, "user", setting)
            password = try secret.map { text throws(SettingsError) in try DatabaseURL.decoded(text, "password", setting) }
            hostList = authority[authority.index(after: at)...]
        }
        // Else a part of the password would be taken for a database or a parameter, and shown.
        guard !(path ?? "").contains("@"), !(query ?? "").contains("@") else {
            throw SettingsError(
                setting,
                "there is an \"@\" after the first \"/\" or \"?\"; in user and password write \"/\" as %2F and \"?\" as %3F, elsewhere \"@\" as %40"
            )
        }
        hosts = []
        if !hostList.isEmpty {
            for entry in hostList.split(separator: ",", omittingEmptySubsequences: false) {
                hosts.append(try Self.host(entry, setting))
            }
        }
        if let path, !path.isEmpty {
            guard !path.contains("/") else { throw SettingsError(setting, "the database name has a \"/\" in it; write it as %2F") }
            database = try DatabaseURL.decoded(path, "database name", setting)
        }
        parameters = []
        var (names, ports): ([String]?, [Substring]?)
        for pair in (query ?? "").split(separator: "&") {
            let (rawName, rawValue) = Self.split(pair, at: "=")
            let name = try DatabaseURL.decoded(rawName, "parameter name", setting)
            guard let rawValue, !name.isEmpty else {
                throw SettingsError(setting, "the parameter \"\(name)\" has no value: write NAME=VALUE")
            }
            let value = try DatabaseURL.decoded(rawValue, "parameter \(name)", setting)
            switch name {
            case "host": names = value.split(separator: ",", omittingEmptySubsequences: false).map(String.init)
            case "port": ports = value.split(separator: ",", omittingEmptySubsequences: false)
            case "user": user = value
            case "password": password = value
            case "dbname": database = value
            case "ssl":
                let modes = ["true": "require", "1": "require", "false": "disable", "0": "disable"]
                parameters.append(("sslmode", modes[value.lowercased()] ?? value))  // as SQLAlchemy's asyncpg dialect calls it
            case "hostaddr": throw SettingsError(setting, "the parameter hostaddr can't be used: write the address as the host")
            default: parameters.append((name, value))
            }
        }
        if let names {
            guard hosts.isEmpty else {
                throw SettingsError(setting, "there is a host before the path and a parameter host: give one of them")
            }
            hosts = names.map { Host(name: $0, port: 5432) }
        }
        if hosts.isEmpty { hosts = [Host(name: Self.defaultHost, port: 5432)] }
        if let ports {
            guard ports.count == 1 || ports.count == hosts.count else {
                throw SettingsError(setting, "\(ports.count) ports for \(hosts.count) hosts: give one port, or one for each host")
            }
            for i in hosts.indices { hosts[i].port = try Self.port(ports[ports.count == 1 ? 0 : i], setting) }
        }
    }

    private static func host(_ entry: Substring, _ setting: String) throws(SettingsError) -> Host {
        if entry.hasPrefix("[") {
            guard let end = entry.firstIndex(of: "]") else { throw SettingsError(setting, "the host \"\(entry)\" lacks its \"]\"") }
            let name = String(entry[entry.index(after: entry.startIndex)..<end])
            guard name.contains(":"), name.utf8.allSatisfy({ $0.isHexadecimalOr(":.%") }) else {
                throw SettingsError(setting, "\"[\(name)]\" is no IPv6 address")
            }
            let tail = entry[entry.index(after: end)...]
            guard tail.isEmpty || tail.hasPrefix(":") else {
                throw SettingsError(setting, "after the host \"[\(name)]\" a port is expected")
            }
            return Host(name: name, port: tail.count < 2 ? 5432 : try port(tail.dropFirst(), setting))
        }
        let (name, portText) = split(entry, at: ":")
        let host = try DatabaseURL.decoded(name, "host", setting)
        guard !(portText ?? "").contains(":") else {
            throw SettingsError(setting, "the host has several colons; write an IPv6 address in brackets: [::1]:5432")
        }
        guard !host.isEmpty else { throw SettingsError(setting, "a host in the list is empty") }
        guard host.utf8.allSatisfy({ $0 > 0x20 && $0 != 0x7F }) else {
            throw SettingsError(setting, "the host has a space or a control character in it")
        }
        return Host(name: host, port: try portText.map { text throws(SettingsError) in try port(text, setting) } ?? 5432)
    }

    private static func port(_ text: Substring, _ setting: String) throws(SettingsError) -> UInt16 {
        guard let port = UInt16(text), port > 0 else {
            throw SettingsError(
                setting,
                "the port is no number from 1 to 65535; if it is part of a password, write \":\" as %3A, \"@\" as %40 and \"/\" as %2F")
        }
        return port
    }

    private static func split(_ text: Substring, at mark: Character) -> (Substring, Substring?) {
        guard let i = text.firstIndex(of: mark) else { return (text, nil) }
        return (text[..<i], text[text.index(after: i)...])
    }

    public static func == (a: PostgresURL, b: PostgresURL) -> Bool {
        a.hosts == b.hosts && a.user == b.user && a.password == b.password && a.database == b.database
            && a.parameters.map(\.name) == b.parameters.map(\.name) && a.parameters.map(\.value) == b.parameters.map(\.value)
    }

    /// Without the password and without parameters, some of which are secrets too.
    public var description: String {
        "postgresql://" + (user.map { $0 + "@" } ?? "") + hosts.map(\.description).joined(separator: ",") + "/" + (database ?? "")
    }
}

extension UInt8 {
    fileprivate func isHexadecimalOr(_ others: StaticString) -> Bool {
        switch self {
        case UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "a")...UInt8(ascii: "f"), UInt8(ascii: "A")...UInt8(ascii: "F"): true
        default: others.withUTF8Buffer { $0.contains(self) }
        }
    }
}
