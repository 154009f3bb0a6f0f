internal import Vocabulary

/// How the store is opened, kept and looked after.
public struct DatabaseSettings: Sendable, Equatable {
    public enum CheckMode: String, Sendable, CaseIterable { case quick, full, off }

    public var url: DatabaseURL
    /// Connections of the instance that stay open, and those opened beyond them under load; shared out over the workers.
    public var poolSize: Int
    public var poolOverflow: Int
    /// A caller that gets no connection for this long gets an error.
    public var poolTimeoutMilliseconds: Int
    public var migratesOnStartup: Bool
    /// Whether a failed migration ends the start.
    public var failsFast: Bool
    public var lockTimeoutMilliseconds: Int
    /// How long the start waits for a database that can't be reached.
    public var startupWaitMilliseconds: Int
    /// Copies made before migrations that are kept; 0: none is made.
    public var preMigrateBackups: Int
    public var startupCheck: CheckMode
    /// Between scheduled backups; nil: there are none.
    public var backupIntervalMilliseconds: Int?
    /// Usage records that are older are deleted; nil: they are kept for ever.
    public var retentionDays: Int?
    public var scheduledBackups: Int

    init(_ read: SettingsReader, defaultPath: String) throws(SettingsError) {
        let name = "CODEX_LB_DATABASE_URL"
        if let text = read.value(name) {
            url = try DatabaseURL.parse(text, setting: name) { path throws(SettingsError) in try read.absolute(path, name) }
        } else {
            url = .sqlite(path: defaultPath)
        }
        poolSize = try read.int("CODEX_LB_DATABASE_POOL_SIZE", 15, 1...10_000)
        poolOverflow = try read.int("CODEX_LB_DATABASE_MAX_OVERFLOW", 10, 0...10_000)
        poolTimeoutMilliseconds = try read.milliseconds("CODEX_LB_DATABASE_POOL_TIMEOUT_SECONDS", 30_000)
        migratesOnStartup = try read.bool("CODEX_LB_DATABASE_MIGRATE_ON_STARTUP", true)
        failsFast = try read.bool("CODEX_LB_DATABASE_MIGRATIONS_FAIL_FAST", true)
        lockTimeoutMilliseconds = try read.milliseconds("CODEX_LB_DATABASE_MIGRATION_LOCK_TIMEOUT_SECONDS", 300_000)
        startupWaitMilliseconds = try read.milliseconds("CODEX_LB_DATABASE_STARTUP_WAIT_SECONDS", 60_000)
        let isCopying = try read.bool("CODEX_LB_DATABASE_SQLITE_PRE_MIGRATE_BACKUP_ENABLED", true)
        let kept = try read.int("CODEX_LB_DATABASE_SQLITE_PRE_MIGRATE_BACKUP_MAX_FILES", 5, 1...1000)
        preMigrateBackups = isCopying ? kept : 0
        startupCheck = try read.choice("CODEX_LB_DATABASE_SQLITE_STARTUP_CHECK_MODE", .quick)
        let interval = "CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS"
        if let text = read.value(interval), text != "0" {
            guard let hours = Double(text), hours >= 0.0001, hours <= 8_760 else {
                throw SettingsError(interval, "\"\(text)\"; give hours above 0 and up to 8760, or 0 for none")
            }
            backupIntervalMilliseconds = Int(hours * 3_600_000)
        }
        let days = try read.int("CODEX_LB_USAGE_RETENTION_DAYS", 0, 0...Limits.retentionDays.upperBound)
        retentionDays = days == 0 ? nil : days
        scheduledBackups = try read.int("CODEX_LB_DATABASE_BACKUP_MAX_FILES", 7, 1...1000)
    }

    /// The file of an SQLite store.
    public var sqlitePath: String? { if case .sqlite(let path) = url { path } else { nil } }

    /// Persistent and further connections of one worker of `workers`: the instance's numbers shared out, at least one persistent each.
    public func poolShare(worker: Int, workers: Int) -> (size: Int, overflow: Int) {
        func share(_ total: Int) -> Int { total / workers + (worker < total % workers ? 1 : 0) }
        return (max(1, share(poolSize)), share(poolOverflow))
    }

    /// What the workers of this instance may open together.
    public func poolTotal(workers: Int) -> Int {
        (0..<workers).map { poolShare(worker: $0, workers: workers) }.reduce(0) { $0 + $1.size + $1.overflow }
    }
}

/// Reads values out of the environment; errors name the setting.
struct SettingsReader {
    let environment: [String: String]

    func value(_ name: String) -> String? { environment[name].flatMap { $0.isEmpty ? nil : $0 } }

    func int(_ name: String, _ standard: Int, _ range: ClosedRange<Int>) throws(SettingsError) -> Int {
        guard let text = value(name) else { return standard }
        guard let number = Int(text), range.contains(number) else {
            throw SettingsError(name, "\"\(text)\"; give \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func bool(_ name: String, _ standard: Bool) throws(SettingsError) -> Bool {
        switch value(name)?.lowercased() {
        case nil: return standard
        case "true", "1", "yes", "on": return true
        case "false", "0", "no", "off": return false
        case let other?: throw SettingsError(name, "\"\(other)\"; give true or false")
        }
    }

    /// A span given in seconds, fractions allowed.
    func milliseconds(_ name: String, _ standard: Int) throws(SettingsError) -> Int {
        guard let text = value(name) else { return standard }
        guard let seconds = Double(text), seconds > 0, seconds <= 86_400 else {
            throw SettingsError(name, "\"\(text)\"; give seconds above 0 and up to 86400")
        }
        return max(1, Int(seconds * 1000))
    }

    /// Bytes: a number, or one with K, M or G for powers of 1024. Nil when not given.
    func bytes(_ name: String, least: Int) throws(SettingsError) -> Int? {
        guard let text = value(name) else { return nil }
        let shift = ["K": 10, "M": 20, "G": 30][text.suffix(1).uppercased()]
        guard let number = Int(shift == nil ? text[...] : text.dropLast()), number > 0, number <= Int.max >> (shift ?? 0),
            number << (shift ?? 0) >= least
        else { throw SettingsError(name, "\"\(text)\"; give bytes, at least \(least >> 20)M: for example 512M or 2G") }
        return number << (shift ?? 0)
    }

    func choice<T: RawRepresentable & CaseIterable>(_ name: String, _ standard: T) throws(SettingsError) -> T where T.RawValue == String {
        guard let text = value(name)?.lowercased() else { return standard }
        guard let known = T(rawValue: text) else {
            throw SettingsError(name, "\"\(text)\"; give \(T.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        return known
    }

    /// `~` is the home directory; what is relative starts at the working directory.
    func absolute(_ path: String, _ name: String) throws(SettingsError) -> String {
        // Nobody expands these here: they would become names of directories.
        guard !path.contains("$"), !path.hasPrefix("~") || path == "~" || path.hasPrefix("~/") else {
            throw SettingsError(name, "\"\(path)\": only ~/ is expanded, not variables or other users' homes; give the path itself")
        }
        let expanded = try path == "~" ? home(name) : path.hasPrefix("~/") ? home(name) + path.dropFirst(1) : path
        if expanded.hasPrefix("/") { return Self.trimmed(expanded) }
        guard let here = value("PWD"), here.hasPrefix("/") else { throw SettingsError(name, "\"\(path)\" must be an absolute path") }
        return Self.trimmed(here + "/" + expanded)
    }

    private func home(_ name: String) throws(SettingsError) -> String {
        if let told = value("HOME"), told.hasPrefix("/") { return told }
        throw SettingsError(
            name, "this user has no home directory (HOME is unset, and the password database has none); set \(name) to an absolute path")
    }

    private static func trimmed(_ path: String) -> String {
        var parts: [Substring] = []
        for part in path.split(separator: "/") {
            if part == ".." { _ = parts.popLast() } else if part != "." { parts.append(part) }
        }
        return "/" + parts.joined(separator: "/")
    }
}
