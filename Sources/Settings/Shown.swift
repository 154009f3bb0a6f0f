internal import Vocabulary

extension Settings {
    /// What each setting amounts to, in the order of docs/settings.md. Secrets are not shown, only that there are any.
    public var shown: [(name: String, value: String)] {
        func seconds(_ milliseconds: Int) -> String {
            milliseconds % 1000 == 0 ? String(milliseconds / 1000) : String(Double(milliseconds) / 1000)
        }
        func list(_ values: some Sequence<String>) -> String { values.sorted().joined(separator: ",") }
        var out: [(String, String)] = [
            (EnvironmentFile.variable, settingsFile ?? ""), ("CODEX_LB_LISTEN", listen.joined(separator: ",")),
            ("CODEX_LB_WORKERS", String(workers)), ("CODEX_LB_DATA_DIR", dataDirectory),
            ("CODEX_LB_RUNTIME_DIR", runtimeDirectory), ("CODEX_LB_DATABASE_URL", database.url.description),
            ("CODEX_LB_DATABASE_POOL_SIZE", String(database.poolSize)), ("CODEX_LB_DATABASE_MAX_OVERFLOW", String(database.poolOverflow)),
            ("CODEX_LB_DATABASE_POOL_TIMEOUT_SECONDS", seconds(database.poolTimeoutMilliseconds)),
            ("CODEX_LB_DATABASE_MIGRATE_ON_STARTUP", String(database.migratesOnStartup)),
            ("CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST", String(database.failsFast)),
            ("CODEX_LB_DATABASE_MIGRATION_LOCK_TIMEOUT_SECONDS", seconds(database.lockTimeoutMilliseconds)),
            ("CODEX_LB_DATABASE_STARTUP_WAIT_SECONDS", seconds(database.startupWaitMilliseconds)),
            ("CODEX_LB_DATABASE_SQLITE_PRE_MIGRATE_BACKUP_ENABLED", String(database.preMigrateBackups > 0)),
            ("CODEX_LB_DATABASE_SQLITE_PRE_MIGRATE_BACKUP_MAX_FILES", String(max(1, database.preMigrateBackups))),
            ("CODEX_LB_DATABASE_SQLITE_STARTUP_CHECK_MODE", database.startupCheck.rawValue),
            ("CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS", database.backupIntervalMilliseconds.map { String(Double($0) / 3_600_000) } ?? "0"),
            ("CODEX_LB_USAGE_RETENTION_DAYS", String(database.retentionDays ?? 0)),
            ("CODEX_LB_DATABASE_BACKUP_MAX_FILES", String(database.scheduledBackups)), ("CODEX_LB_ENCRYPTION_KEY_FILE", keyFile),
            ("CODEX_LB_LOG_FORMAT", logFormat.rawValue), ("CODEX_LB_LOG_LEVEL", logLevel), ("CODEX_LB_LOG_FILE", logFile ?? ""),
            ("CODEX_LB_ACCESS_LOG", accessLogShown),
            ("CODEX_LB_TRUSTED_PROXIES", trustedProxies.description), ("CODEX_LB_REQUIRE_KEYS", keyRule.rawValue),
            ("CODEX_LB_ALLOWED_ORIGINS", list(allowedOrigins)), ("CODEX_LB_METRICS_TOKEN", metricsToken == nil ? "" : "***"),
            ("CODEX_LB_ACCOUNTS_PASSING_ORGANIZATION", list(accountsPassingOrganization)),
            ("CODEX_LB_STICKINESS", String(isSticky)),
            ("CODEX_LB_AUTH_BASE_URL", Self.withoutUser(issuer)), ("CODEX_LB_AUTH_CLIENT_ID", issuerClientID),
            ("CODEX_LB_MEMORY_LIMIT", memoryBytesMax.map { String($0) } ?? ""), ("CODEX_LB_CODEX_CLIENT_VERSION", codexClientVersion),
            ("CODEX_LB_MODEL_LIST_SECONDS", seconds(modelListMilliseconds)),
            ("CODEX_LB_USAGE_POLL_SECONDS", usagePollMilliseconds == 0 ? "0" : seconds(usagePollMilliseconds)),
        ]
        out += [
            ("HTTPS_PROXY", httpsProxy == nil ? "" : "***"), ("NO_PROXY", httpsProxy?.exceptions.joined(separator: ",") ?? ""),
            ("SSL_CERT_FILE", certificateFile ?? ""), ("SSL_CERT_DIR", certificateDirectory ?? ""),
        ]
        for (name, path) in Self.timeNames { out.append((name, seconds(times[keyPath: path]))) }
        return out
    }

    private static func withoutUser(_ url: String) -> String {
        guard let start = url.firstRange(of: "://")?.upperBound, let at = url[start...].prefix(while: { $0 != "/" }).lastIndex(of: "@")
        else {
            return url
        }
        return url[..<start] + "***" + url[at...]
    }

    private var accessLogShown: String {
        switch accessLog {
        case .off: "off"
        case .stderr: "stderr"
        case .file(let path): path
        }
    }

    /// Names that begin as ours do and are none, each with the nearest that is.
    public func unknown(in environment: [String: String]) -> [(name: String, nearest: String)] {
        let known = shown.map(\.name)
        let strangers = environment.keys.filter { name in
            name.hasPrefix("CODEX_LB_") && !known.contains(name) && !Self.ownPrefixes.contains { name.hasPrefix($0) }
        }
        return strangers.sorted().map { name in
            (name, known.min { NearNames.distance(name, $0) < NearNames.distance(name, $1) } ?? "")
        }
    }

    /// What a server gives its children, and what tests and benchmarks use.
    private static let ownPrefixes = ["HERITAGE", "OF_SERVER", "ENVIRONMENT_IS_COMPLETE", "TEST_", "BENCH_", "PIN_"].map {
        "CODEX_LB_" + $0
    }
}
