import ArgumentParser
import ControlWire
import Settings
import Store
import Vocabulary
import WriterRole

/// What an account can be given when it is added, imported or logged in, and by `accounts set`.
struct AccountOptions: ParsableArguments {
    @Option(name: .long, help: "normal, burn_first (before all others, up to its limit) or preserve (when no other has quota to spare).")
    var policy: String?
    @Option(name: .long, help: "Its size next to other accounts of its plan, 1 to 1000 (default: 100).") var weight: Int?
    @Option(name: .customLong("streams-max"), help: "Turns open on it at a time in an instance; 0: no limit (the default).")
    var streamsMax: Int?
    @Option(name: .long, help: "Models it is asked for, separated by commas; any: no limit (the default).") var models: String?
    @Flag(
        name: .long, inversion: .prefixedNo, help: "Use it only when no other account can serve.")
    var overflow: Bool?
    @Option(
        name: .long,
        help:
            "NAME=VALUE: a field that goes with each request, such as api-key; NAME=@FILE reads the value from a file (- is standard input). May be given several times; they take the place of those before."
    )
    var header: [String] = []
    @Option(
        name: .long,
        help:
            "A proxy that its upstream is reached through, and never without: SCHEME://[USER:PASSWORD@]HOST[:PORT], SCHEME one of http, https, socks5, socks5h; @FILE reads it from a file (@- is standard input)."
    )
    var proxy: String?

    func validate() throws {
        if let policy, Account.Policy(rawValue: policy) == nil {
            throw ValidationError("policy \"\(policy)\": give \(Account.Policy.allCases.map(\.rawValue).joined(separator: ", "))")
        }
        if let weight, !Limits.accountWeights.contains(weight) {
            throw ValidationError("weight \(weight): give \(Limits.accountWeights.lowerBound) to \(Limits.accountWeights.upperBound)")
        }
        if let streamsMax, !(0...Limits.streamsMaxMax).contains(streamsMax) {
            throw ValidationError("streams-max \(streamsMax): give 1 to \(Limits.streamsMaxMax), or 0 for no limit")
        }
        for text in header where !text.contains("=") {
            throw ValidationError("header \"\(text.prefix { $0 != ":" })\": give NAME=VALUE or NAME=@FILE")
        }
    }

    /// Something of it is read from standard input, which can be read once.
    var readsStandardInput: Bool { proxy == "@-" || header.contains { $0.hasSuffix("=@-") } }

    /// `--proxy`'s value, or what its file holds.
    static func egressProxy(_ text: String) throws -> EgressProxy {
        let url = text.hasPrefix("@") ? try readSecret(String(text.dropFirst()), what: "proxy") : text
        guard let proxy = EgressProxy(url) else {
            complain("--proxy: \(EgressProxy.expected)")
            throw ExitCode(2)
        }
        return proxy
    }

    /// Reads what files hold.
    func change() throws -> AccountChangeMessage {
        var out = AccountChangeMessage()
        if let policy { out.policy = policy }
        if let weight { out.weight = UInt32(weight) }
        if let streamsMax { out.streamsMax = UInt32(streamsMax) }
        if let models {
            out.setsModels = true
            out.models = models == "any" ? [] : models.split(separator: ",").map { String($0.filter { $0 != " " }) }.filter { !$0.isEmpty }
            guard models == "any" || !out.models.isEmpty else {
                complain("--models is empty; give any to allow any model")
                throw ExitCode(2)
            }
        }
        if let overflow { out.overflow = overflow }
        if let proxy { out.proxy = try Self.egressProxy(proxy).url }
        out.setsHeaders = !header.isEmpty
        out.headers = try header.map { text in
            let name = text.prefix { $0 != "=" }
            let value = text.dropFirst(name.count + 1)
            var field = HeaderMessage()
            field.name = String(name)
            field.value = value.hasPrefix("@") ? try readSecret(String(value.dropFirst()), what: "header \(name)") : String(value)
            return field
        }
        // Before anything is asked of anybody.
        do throws(StoreError) { try AccountChange(out).check() } catch {
            complain("\(error)")
            throw ExitCode(2)
        }
        return out
    }
}

extension Accounts {
    struct Set: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Change an account's part in routing, live.",
            discussion: "What is not given stays as it is. Cooldowns, open turns and conversations stay too. docs/routing.md")
        @Argument(help: "The account's name.") var name: String
        @OptionGroup var options: AccountOptions
        @Flag(name: .customLong("no-headers"), help: "Send no fields of the account's own any more.") var noHeaders = false
        @Flag(name: .customLong("no-proxy"), help: "Reach its upstream as the environment says.") var noProxy = false
        @OptionGroup var data: DataOptions

        func validate() throws {
            guard !noProxy || options.proxy == nil else { throw ValidationError("--no-proxy and --proxy exclude each other") }
            guard !noHeaders || options.header.isEmpty else { throw ValidationError("--no-headers and --header exclude each other") }
        }

        func run() throws {
            var command = StoreCommand()
            command.setAccount.name = name
            command.setAccount.change = try options.change()
            if noHeaders { command.setAccount.change.setsHeaders = true }
            if noProxy { command.setAccount.change.proxy = "" }
            let reply = try StoreClient.perform(command, data.settings())
            print("account \(name) has \(Self.described(reply.accounts.first ?? AccountMessage()))")
        }

        static func described(_ account: AccountMessage) -> String {
            let options = account.options
            let streams = options.streamsMax == 0 ? "no cap" : "\(options.streamsMax) turns at most"
            let models = options.limitsModels ? options.models.joined(separator: ",") : "any model"
            return "policy \(options.policy), weight \(options.weight), \(streams), \(models)\(options.overflow ? ", overflow" : "")"
                + (account.proxy.isEmpty ? "" : ", through \(account.proxy)")
        }
    }

    struct Explain: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Show which account a turn would get now, and why each other one would not.",
            discussion: "Asks a worker of the running server, which answers by the code that chooses. Nothing is taken or changed.")
        @Option(name: .long, help: "The model that is asked for.") var model: String?
        @Option(name: .long, help: "The session-id of a conversation.") var session: String?
        @Option(name: .long, help: "The name of the client key that asks; conversations are kept apart by it.") var key: String?
        @Option(name: .long, help: "/v1/responses (the default), /v1/chat/completions or /v1/embeddings.") var route: String?
        @Flag(name: .long, help: "One JSON object.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            var frame = Frame()
            (frame.explainRequest.model, frame.explainRequest.session) = (model ?? "", session ?? "")
            (frame.explainRequest.key, frame.explainRequest.route) = (key ?? "", route ?? "")
            let client = try Ctl.connect(data.settings())
            guard case .explainReply(let reply)? = try client.ask(frame).body else {
                complain("the server gave an answer this build does not know")
                throw ExitCode(1)
            }
            guard reply.error.isEmpty else {
                complain(reply.error)
                throw ExitCode(1)
            }
            if json { print(Self.json(reply)) } else { Self.table(reply) }
        }

        private static func percent(_ isThere: Bool, _ permille: UInt32) -> String {
            isThere ? "\(permille / 10).\(permille % 10)%" : "-"
        }

        /// Three places behind the point.
        private static func short(_ number: Double) -> String {
            let thousandths = Int64((min(max(number, 0), 1e12) * 1000).rounded())
            guard thousandths % 1000 != 0 else { return String(thousandths / 1000) }
            let rest = String(thousandths % 1000)
            return "\(thousandths / 1000).\(String(repeating: "0", count: 3 - rest.count))\(rest)"
        }

        static func table(_ reply: ExplainReply) {
            print("strategy  \(reply.strategy)\(reply.model.isEmpty ? "" : "   model \(reply.model.printable)")   (worker.\(reply.worker))")
            print("a turn    \(reply.outcome.printable)")
            printTable(
                ["ACCOUNT", "VERDICT", "RANK", "LOAD", "SIZE", "SHARE", "OPEN", "CAP", "POLICY", "5H", "WEEK", "WHY"],
                reply.rows.map { row in
                    [
                        row.account, row.verdict, String(row.rank), short(row.load), short(row.size),
                        percent(row.sharePermille > 0, row.sharePermille),
                        String(row.inFlight), row.streamsMax == 0 ? "-" : String(row.streamsMax),
                        row.policy + (row.overflow ? ",overflow" : ""), percent(row.hasPrimaryUsedPermille, row.primaryUsedPermille),
                        percent(row.hasSecondaryUsedPermille, row.secondaryUsedPermille), row.reason,
                    ]
                })
        }

        static func json(_ reply: ExplainReply) -> String {
            let rows = reply.rows.map { row in
                JSONText.object([
                    ("account", .string(row.account)), ("verdict", .string(row.verdict)), ("reason", .string(row.reason)),
                    ("rank", .int(Int64(row.rank))), ("load", .raw(short(row.load))), ("size", .raw(short(row.size))),
                    ("share_permille", .int(Int64(row.sharePermille))),
                    ("in_flight", .int(Int64(row.inFlight))), ("streams_max", row.streamsMax == 0 ? .null : .int(Int64(row.streamsMax))),
                    ("weight", .int(Int64(row.weight))), ("policy", .string(row.policy)), ("overflow", .bool(row.overflow)),
                    ("pinned", .bool(row.pinned)), ("cooldown_ms", .int(Int64(clamping: row.cooldownMs))),
                    ("primary_used_permille", .optional(row.hasPrimaryUsedPermille ? Int64(row.primaryUsedPermille) : nil)),
                    ("secondary_used_permille", .optional(row.hasSecondaryUsedPermille ? Int64(row.secondaryUsedPermille) : nil)),
                ])
            }
            return JSONText.object([
                ("strategy", .string(reply.strategy)), ("model", .optional(reply.model.isEmpty ? nil : reply.model)),
                ("chosen", .optional(reply.chosen.isEmpty ? nil : reply.chosen)), ("outcome", .string(reply.outcome)),
                ("worker", .int(Int64(reply.worker))), ("accounts", .raw(JSONText.array(rows))),
            ])
        }
    }
}
