public import Vocabulary

/// What is wrong with a setting: its name, the value given, and what would be right.
public struct SettingsError: Error, Sendable, Equatable, CustomStringConvertible {
    public var name: String
    public var problem: String
    public init(_ name: String, _ problem: String) { (self.name, self.problem) = (name, problem) }
    public var description: String { "\(name): \(problem)" }
}

/// The configuration of one instance, read at start and at each reload. Flags win over the environment; docs/settings.md lists every name.
public struct Settings: Sendable, Equatable {
    /// Where a line for each request goes; a file's path is absolute.
    public enum AccessLogPlace: Sendable, Equatable {
        case off, stderr
        case file(String)
    }

    public enum LogFormat: String, Sendable, CaseIterable { case logfmt, json }

    /// Read instead of the usual files.
    public var settingsFile: String?
    /// Absolute. `CODEX_LB_DATA_DIR`, else `$STATE_DIRECTORY`, else `~/.codex-lb`.
    public var dataDirectory: String
    /// Sockets of the running instance. `CODEX_LB_RUNTIME_DIR`, else `$RUNTIME_DIRECTORY`, else `<data>/run`.
    public var runtimeDirectory: String
    public var database: DatabaseSettings
    public var keyFile: String
    /// Addresses, each with its options behind it: `0.0.0.0:2455,proxy`.
    public var listen: [String]
    /// Somebody asked for them; else they are the default.
    public var isListenGiven: Bool
    public var workers: Int
    /// Whose word on those behind them is believed.
    public var trustedProxies: TrustedProxies
    public var logFormat: LogFormat
    public var logLevel: String
    /// Absolute; nil: standard error.
    public var logFile: String?
    public var accessLog: AccessLogPlace
    /// The journal's stream as systemd names it, `device:inode`; log lines carry `<N>` priorities when stderr is that stream.
    public var journalStream: String?
    public var times: TimeLimits
    /// For https upstreams whose account has no proxy of its own.
    public var httpsProxy: EnvironmentProxy?
    /// A CA file instead of the system's.
    public var certificateFile: String?
    /// The same of a directory; OpenSSL looks for it itself.
    public var certificateDirectory: String?
    public var keyRule: KeyRule
    /// `scheme://host[:port]` of web pages that may call, in lower case.
    public var allowedOrigins: Set<String>
    /// What `Authorization: Bearer` must bring for `/metrics` and the details of `/health/ready`; nil: only direct callers on this host
    /// get them, and only while no key is demanded of them.
    public var metricsToken: String?
    /// Names of accounts whose clients may choose organization and project themselves.
    public var accountsPassingOrganization: Set<String>
    /// Conversations go back to the account that they are with.
    public var isSticky: Bool
    /// Bodies and unsent bytes that all workers together hold, bytes; nil: a part of the machine's memory (`Limits.memoryPart`).
    public var memoryBytesMax: Int?
    /// Where ChatGPT logins are refreshed: `<issuer>/oauth/token`.
    public var issuer: String
    public var issuerClientID: String
    /// `client_version` of requests for ChatGPT's list of models.
    public var codexClientVersion: String
    /// Between two questions for a login's figures; 0: they are not asked for.
    public var usagePollMilliseconds: Int
    /// An account's list of models is asked for anew when it is so old.
    public var modelListMilliseconds: Int
    /// For benchmarks: worker N runs on CPU N + this.
    public var pinFirstCPU: Int?

    /// Durations that an operator may change, in milliseconds. Defaults: `Limits`.
    public struct TimeLimits: Sendable, Equatable {
        public var head = Limits.headMilliseconds
        public var bodyProgress = Limits.bodyProgressMilliseconds
        public var idle = Limits.idleMilliseconds
        public var writeStalled = Limits.writeStalledMilliseconds
        public var keepaliveComment = Limits.keepaliveCommentMilliseconds
        public var connect = Limits.connectMilliseconds
        public var firstByte = Limits.firstByteMilliseconds
        public var upstreamIdle = Limits.upstreamIdleMilliseconds
        public var drain = Limits.drainMilliseconds
        public var reloadDrain = Limits.reloadDrainMilliseconds
        public var holdBack = Limits.holdBackMilliseconds
        public init() {}
    }

    /// Environment names of the time limits, in seconds (fractions allowed).
    static let timeNames: [(String, any WritableKeyPath<TimeLimits, Int> & Sendable)] = [
        ("CODEX_LB_HEAD_TIMEOUT_SECONDS", \.head),
        ("CODEX_LB_BODY_PROGRESS_TIMEOUT_SECONDS", \.bodyProgress),
        ("CODEX_LB_IDLE_TIMEOUT_SECONDS", \.idle),
        ("CODEX_LB_WRITE_STALLED_TIMEOUT_SECONDS", \.writeStalled),
        ("CODEX_LB_SSE_KEEPALIVE_INTERVAL_SECONDS", \.keepaliveComment),
        ("CODEX_LB_UPSTREAM_CONNECT_TIMEOUT_SECONDS", \.connect),
        ("CODEX_LB_UPSTREAM_FIRST_BYTE_TIMEOUT_SECONDS", \.firstByte),
        ("CODEX_LB_STREAM_IDLE_TIMEOUT_SECONDS", \.upstreamIdle),
        ("CODEX_LB_SHUTDOWN_DRAIN_TIMEOUT_SECONDS", \.drain),
        ("CODEX_LB_RELOAD_DRAIN_TIMEOUT_SECONDS", \.reloadDrain),
        ("CODEX_LB_FAILOVER_HOLD_BACK_SECONDS", \.holdBack),
    ]

    /// Flags of `serve`; nil and empty where not given.
    public struct Flags: Sendable {
        public var listen: [String] = []
        /// A number or `auto`.
        public var workers: String?
        public var dataDirectory: String?
        public init() {}
    }

    /// `processors`: the workers of `auto`.
    public init(environment: [String: String], flags: Flags = Flags(), processors: Int) throws(SettingsError) {
        let read = SettingsReader(environment: environment)
        let value = read.value
        settingsFile = value(EnvironmentFile.variable)
        dataDirectory = try read.absolute(
            flags.dataDirectory ?? value("CODEX_LB_DATA_DIR") ?? value("STATE_DIRECTORY") ?? "~/.codex-lb", "CODEX_LB_DATA_DIR")
        runtimeDirectory = try read.absolute(
            value("CODEX_LB_RUNTIME_DIR") ?? (flags.dataDirectory == nil ? value("RUNTIME_DIRECTORY") : nil) ?? dataDirectory + "/run",
            "CODEX_LB_RUNTIME_DIR")
        database = try DatabaseSettings(read, defaultPath: dataDirectory + "/store.db")
        keyFile = try read.absolute(
            value("CODEX_LB_ENCRYPTION_KEY_FILE") ?? dataDirectory + "/encryption.key", "CODEX_LB_ENCRYPTION_KEY_FILE")

        isListenGiven = !flags.listen.isEmpty || value("CODEX_LB_LISTEN") != nil || value("PORT") != nil
        if !flags.listen.isEmpty {
            listen = flags.listen
        } else if let list = value("CODEX_LB_LISTEN") {
            listen = try Self.addresses(list)
        } else {
            let port = value("PORT") ?? "2455"
            guard UInt16(port) != nil else { throw SettingsError("PORT", "\"\(port)\" is no port from 0 to 65535") }
            listen = ["127.0.0.1:\(port)"]
        }
        trustedProxies = try Self.proxies(value("CODEX_LB_TRUSTED_PROXIES") ?? "")
        guard !trustedProxies.isEmpty || !listen.contains(where: { $0.split(separator: ",").dropFirst().contains("proxy") }) else {
            throw SettingsError(
                "CODEX_LB_TRUSTED_PROXIES",
                "a listener with ,proxy takes connections of these proxies alone, and there are none; give networks, as 10.0.0.0/8")
        }
        let count = flags.workers ?? value("CODEX_LB_WORKERS") ?? "auto"
        guard let number = count.lowercased() == "auto" ? min(processors, Limits.workersMax) : Int(count) else {
            throw SettingsError("CODEX_LB_WORKERS", "\"\(count)\" is no number; give 1 to \(Limits.workersMax), or auto")
        }
        workers = number
        guard (1...Limits.workersMax).contains(workers) else {
            throw SettingsError("CODEX_LB_WORKERS", "\(workers) workers; give 1 to \(Limits.workersMax), or auto")
        }
        let format = value("CODEX_LB_LOG_FORMAT")?.lowercased() ?? "logfmt"
        guard let known = LogFormat(rawValue: format == "text" ? "logfmt" : format) else {
            throw SettingsError("CODEX_LB_LOG_FORMAT", "\"\(format)\"; give logfmt or json")
        }
        logFormat = known
        logLevel = value("CODEX_LB_LOG_LEVEL")?.lowercased() ?? "info"
        guard Self.logLevels.contains(logLevel) else {
            throw SettingsError("CODEX_LB_LOG_LEVEL", "\"\(logLevel)\"; give \(Self.logLevelNames)")
        }
        logFile = try value("CODEX_LB_LOG_FILE").map { path throws(SettingsError) in try read.absolute(path, "CODEX_LB_LOG_FILE") }
        accessLog =
            try value("CODEX_LB_ACCESS_LOG").map { place throws(SettingsError) in
                switch place.lowercased() {
                case "off": .off
                case "stderr": .stderr
                default: .file(try read.absolute(place, "CODEX_LB_ACCESS_LOG"))
                }
            } ?? .off
        journalStream = value("JOURNAL_STREAM")
        keyRule = try read.choice("CODEX_LB_REQUIRE_KEYS", .auto)
        allowedOrigins = []
        for origin in (value("CODEX_LB_ALLOWED_ORIGINS") ?? "").split(whereSeparator: { $0 == "," || $0 == " " }) {
            guard Self.isOrigin(origin) else {
                throw SettingsError(
                    "CODEX_LB_ALLOWED_ORIGINS", "\"\(origin)\"; give origins as browsers send them, SCHEME://HOST[:PORT] without a path")
            }
            allowedOrigins.insert(origin.lowercased())
        }
        metricsToken = value("CODEX_LB_METRICS_TOKEN")
        guard metricsToken.map({ $0.utf8.count >= 16 && $0.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F } }) ?? true else {
            // Not shown: it is a secret.
            throw SettingsError("CODEX_LB_METRICS_TOKEN", "give at least 16 visible ASCII characters")
        }
        accountsPassingOrganization = Set(
            (value("CODEX_LB_ACCOUNTS_PASSING_ORGANIZATION") ?? "").split(whereSeparator: { $0 == "," || $0 == " " }).map(String.init))
        isSticky = try read.bool("CODEX_LB_STICKINESS", true)
        memoryBytesMax = try read.bytes("CODEX_LB_MEMORY_LIMIT", least: 16 << 20)
        issuer = value("CODEX_LB_AUTH_BASE_URL") ?? "https://auth.openai.com"
        guard issuer.hasPrefix("https://") || issuer.hasPrefix("http://") else {
            throw SettingsError("CODEX_LB_AUTH_BASE_URL", "\"\(issuer)\"; give https://HOST[:PORT]")
        }
        issuerClientID = value("CODEX_LB_AUTH_CLIENT_ID") ?? "app_EMoamEEZ73f0CkXaXp7hrann"
        codexClientVersion = value("CODEX_LB_CODEX_CLIENT_VERSION") ?? Version.codexClient
        guard !codexClientVersion.isEmpty, codexClientVersion.utf8.allSatisfy({ (48...57).contains($0) || $0 == 46 }) else {
            throw SettingsError(
                "CODEX_LB_CODEX_CLIENT_VERSION", "\"\(codexClientVersion)\"; give numbers and dots, as \(Version.codexClient)")
        }
        usagePollMilliseconds =
            value("CODEX_LB_USAGE_POLL_SECONDS") == "0"
            ? 0 : try read.milliseconds("CODEX_LB_USAGE_POLL_SECONDS", Limits.usagePollMilliseconds)
        modelListMilliseconds = try read.milliseconds("CODEX_LB_MODEL_LIST_SECONDS", Limits.modelListKeptMilliseconds)
        times = TimeLimits()
        for (name, path) in Self.timeNames {
            times[keyPath: path] = try read.milliseconds(name, times[keyPath: path])
        }
        // Not shown: it may hold a password. Going around a proxy that can't be used would be a leak.
        if let url = value("HTTPS_PROXY") ?? value("https_proxy") {
            guard let proxy = EgressProxy(url.contains("://") ? url : "http://" + url) else {
                throw SettingsError("HTTPS_PROXY", EgressProxy.expected)
            }
            httpsProxy = EnvironmentProxy(
                proxy,
                exceptions: (value("NO_PROXY") ?? value("no_proxy") ?? "").split(separator: ",").map { $0.drop { $0 == " " }.lowercased() })
        }
        (certificateFile, certificateDirectory) = (value("SSL_CERT_FILE"), value("SSL_CERT_DIR"))
        pinFirstCPU = value("CODEX_LB_PIN_FIRST_CPU").flatMap { Int($0) }
    }

    /// Separated by commas or blanks; an option belongs to the address before it.
    private static func addresses(_ list: String) throws(SettingsError) -> [String] {
        var out: [String] = []
        for item in list.split(whereSeparator: { $0 == "," || $0 == " " }) {
            guard item == "proxy" || item.hasPrefix("mode=") || item.hasPrefix("group=") else {
                out.append(String(item))
                continue
            }
            guard let last = out.popLast() else {
                throw SettingsError("CODEX_LB_LISTEN", "\"\(item)\" belongs behind an address, as 127.0.0.1:2455,proxy")
            }
            out.append(last + "," + item)
        }
        return out
    }

    private static func proxies(_ list: String) throws(SettingsError) -> TrustedProxies {
        var proxies = TrustedProxies()
        for item in list.split(whereSeparator: { $0 == "," || $0 == " " }) {
            if item == "unix" {
                proxies.includesUnix = true
            } else if let network = Network(item) {
                proxies.networks.append(network)
            } else {
                throw SettingsError(
                    "CODEX_LB_TRUSTED_PROXIES",
                    "\"\(item)\"; give networks without bits beyond their prefix, as 10.0.0.0/8, 2001:db8::/32, 192.0.2.1, or unix")
            }
        }
        return proxies
    }

    /// From much to little.
    public static let logLevels = ["trace", "debug", "info", "notice", "warning", "error", "critical"]
    public static var logLevelNames: String { logLevels.dropLast().joined(separator: ", ") + " or " + logLevels.last! }

    private static func isOrigin(_ text: Substring) -> Bool {
        guard let colon = text.firstIndex(of: ":"), text[colon...].hasPrefix("://") else { return text == "null" }
        let (scheme, rest) = (text[..<colon], text[colon...].dropFirst(3))
        return !scheme.isEmpty && !rest.isEmpty && !rest.contains("/") && text.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F }
    }

    /// Where records that could not be stored are kept, the first that takes them.
    public var spoolDirectories: [String] { [dataDirectory, runtimeDirectory] }
    public var writerSocket: String { runtimeDirectory + "/writer.sock" }
    public var controlSocket: String { runtimeDirectory + "/control.sock" }
}
