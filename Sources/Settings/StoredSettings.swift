public import Vocabulary

/// Settings that live in the store and count for all instances at once: `codex-lb settings`. Each snapshot brings them.
public struct StoredSettings: Sendable, Equatable {
    public var strategy = RoutingStrategy.standard
    /// The name of the account of `single_account`.
    public var singleAccount: String?
    /// Model names of ours, and what goes upstream instead.
    public var aliases: [String: String] = [:]

    public init() {}

    /// What is in the store. A value that this build does not know counts as unset: a newer one may have stored it.
    public init(_ stored: [String: String]) {
        for (name, value) in stored {
            guard let setting = Self.setting(name), setting.problem(value) == nil else { continue }
            switch setting.place {
            case .strategy: strategy = RoutingStrategy(rawValue: value) ?? .standard
            case .singleAccount: singleAccount = value
            case .alias(let model): aliases[model] = value
            }
        }
    }

    /// A setting that can be set.
    public struct Setting: Sendable {
        enum Place: Sendable, Equatable {
            case strategy, singleAccount
            case alias(String)
        }
        public var name: String
        /// What counts while it is not set.
        public var standard: String
        public var meaning: String
        var place: Place

        /// Why it can't have this value; nil when it can.
        public func problem(_ value: String) -> String? {
            switch place {
            case .strategy:
                guard RoutingStrategy(rawValue: value) == nil else { return nil }
                let names = RoutingStrategy.allCases.map(\.rawValue)
                let near = NearNames.nearest(to: value, in: names).first.map { "; did you mean \($0)?" } ?? ""
                return "\"\(value.printable)\" is none of \(names.joined(separator: ", "))\(near)"
            case .singleAccount:
                return value.isEmpty || value.utf8.count > 64 ? "\"\(value.printable)\" is no account's name" : nil
            case .alias(let model):
                if let problem = ModelName.problem(value) { return problem }
                return value == model ? "\"\(value)\" can't stand for itself" : nil
            }
        }
    }

    private static let aliasPrefix = "models.alias."

    /// Those with a name of their own.
    public static let fixed = [
        Setting(
            name: "routing.strategy", standard: RoutingStrategy.standard.rawValue, meaning: "how an account is chosen", place: .strategy),
        Setting(
            name: "routing.single_account", standard: "", meaning: "the account of the strategy single_account", place: .singleAccount),
    ]

    /// Nil: there is no such setting.
    public static func setting(_ name: String) -> Setting? {
        if let fixed = fixed.first(where: { $0.name == name }) { return fixed }
        guard name.hasPrefix(aliasPrefix) else { return nil }
        let model = String(name.dropFirst(aliasPrefix.count))
        guard ModelName.problem(model) == nil else { return nil }
        return Setting(name: name, standard: "", meaning: "what \(model) goes upstream as", place: .alias(model))
    }

    /// What is wrong with a name that is no setting, in one line.
    public static func unknown(_ name: String) -> String {
        if name.hasPrefix(aliasPrefix) {
            return "\(aliasPrefix)NAME: \(ModelName.problem(String(name.dropFirst(aliasPrefix.count))) ?? "not a model's name")"
        }
        let known = fixed.map(\.name) + [aliasPrefix + "NAME"]
        let near = NearNames.nearest(to: name, in: known).first.map { "; did you mean \($0)?" } ?? ""
        return "there is no setting \"\(name.printable)\"; there are \(known.joined(separator: ", "))\(near)"
    }

    /// Why `name` can't be set to `value` while `stored` holds; nil when it can. An alias of an alias would never end, or mean something else
    /// than it says.
    public static func problem(_ name: String, _ value: String, among stored: [String: String]) -> String? {
        guard let setting = setting(name) else { return unknown(name) }
        guard value.utf8.count <= Limits.settingBytesMax else { return "\(name): the value is longer than \(Limits.settingBytesMax) bytes" }
        if let problem = setting.problem(value) { return "\(name): \(problem)" }
        guard case .alias(let model) = setting.place else { return nil }
        let aliases = StoredSettings(stored).aliases
        if aliases[value] != nil { return "\(name): \"\(value)\" is an alias itself; give the model that it stands for" }
        if let other = aliases.first(where: { $0.value == model && $0.key != model })?.key {
            return "\(name): the alias \(other) stands for \"\(model)\", which can't be an alias then"
        }
        return nil
    }
}

/// Names of models that operators give.
public enum ModelName {
    /// Why it is none; nil when it is one.
    public static func problem(_ name: String) -> String? {
        let isVisible = name.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F && $0 != UInt8(ascii: "\"") && $0 != UInt8(ascii: "\\") }
        guard !name.isEmpty, isVisible, name.utf8.count <= Limits.modelBytesMax else {
            return
                "\"\(name.printable)\" is no model's name: expected 1 to \(Limits.modelBytesMax) visible ASCII characters without quotes and spaces"
        }
        return nil
    }
}
