import ArgumentParser
import ControlWire
import JSONWire
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

struct Accounts: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Add, list, pause and remove upstream accounts.",
        subcommands: [
            Add.self, Import.self, Login.self, List.self, Set.self, Explain.self, Pause.self, Resume.self, Remove.self,
        ])

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Add an OpenAI-compatible upstream with its API key.")
        @Argument(help: "A name of your choice.") var name: String
        @Option(name: .customLong("base-url"), help: "For example https://api.openai.com/v1") var baseURL: String
        @Option(
            name: .customLong("key-file"), help: "File with the API key, or - for standard input; not needed where a --header has the key.")
        var keyFile: String?
        @Flag(name: .long, help: "Give the account of this name, if there is one, this key and base URL.") var replace = false
        @OptionGroup var options: AccountOptions
        @OptionGroup var data: DataOptions

        func validate() throws {
            guard keyFile != nil || !options.header.isEmpty else {
                throw ValidationError("give the API key with --key-file FILE, or a field that has it with --header NAME=@FILE")
            }
        }

        func run() throws {
            let key = try keyFile.map { try readSecret($0, what: "API key") } ?? ""
            var command = StoreCommand()
            command.addAccount.change = try options.change()
            command.addAccount.name = name
            command.addAccount.kind = Account.Kind.apiKey.rawValue
            let settings = try data.settings()
            command.addAccount.baseURL = try BaseURL.checked(baseURL, .apiKey, listen: settings.listen)
            command.addAccount.bearer = key
            command.addAccount.replaces = replace
            let reply = try StoreClient.perform(command, settings)
            print("account \(name) \(reply.renewed ? "has its new key" : "added")")
        }
    }

    /// Where a ChatGPT login is used and whose place it takes.
    struct LoginPlace: ParsableArguments {
        @Option(
            name: .customLong("base-url"), help: "The ChatGPT backend (default: https://chatgpt.com/backend-api, or as the account has it)."
        )
        var baseURL: String?
        @Flag(name: .long, help: "Put this login in the place of the account of this name, whoever's it is.") var replace = false
    }

    struct Import: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Import a ChatGPT login from Codex CLI's auth.json, or renew one that is known.",
            discussion: """
                Codex keeps the file at ~/.codex/auth.json. A login that is known (the same person in the same workspace) gets the file's tokens. \
                A second workspace of the same e-mail address needs a name of its own: --name.
                """)
        @Argument(help: "The file.") var file: String
        @Option(name: .long, help: "A name of your choice (default: the login's e-mail address).") var name: String?
        @OptionGroup var place: LoginPlace
        @OptionGroup var data: DataOptions

        func run() throws {
            let login = try AuthFile(readFile(file, what: "auth.json", bytesMax: 1 << 20), file: file)
            try Accounts.store(
                login, name: name, place, settings: data.settings(), said: "imported",
                mend: "give one with --name")
        }
    }

    struct Login: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Log in to ChatGPT with a code that is typed into a browser, here or anywhere.",
            discussion: """
                The login is codex-lb's own: no Codex CLI uses the same tokens. One that is known already (the same person in the same workspace) \
                is renewed.
                """)
        @Argument(help: "A name of your choice (default: the login's e-mail address).") var name: String?
        @Option(name: .long, help: "The issuer (default: CODEX_LB_AUTH_BASE_URL, or https://auth.openai.com).") var issuer: String?
        @OptionGroup var place: LoginPlace
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let tokens = try DeviceLogin(settings, issuer: issuer).run { tell($0) }
            let login = AuthFile(access: tokens.access, refresh: tokens.refresh, id: tokens.id)
            try Accounts.store(
                login, name: name, place, settings: settings, said: "logged in",
                mend: "give one: codex-lb accounts login NAME")
        }
    }

    /// Gives the store a login that somebody has made; `mend` says what to do when it can't be named.
    private static func store(
        _ login: AuthFile, name: String?, _ place: LoginPlace, settings: Settings, said: String, mend: String
    ) throws {
        guard let called = name ?? login.email else {
            complain("the login tells no e-mail address to name the account by; \(mend)")
            throw ExitCode(2)
        }
        var command = StoreCommand()
        command.addAccount.name = called
        command.addAccount.kind = Account.Kind.chatGPT.rawValue
        command.addAccount.baseURL = try place.baseURL.map { try BaseURL.checked($0, .chatGPT, listen: settings.listen) } ?? ""
        (command.addAccount.renews, command.addAccount.nameGiven, command.addAccount.replaces) = (true, name != nil, place.replace)
        command.addAccount.bearer = login.accessToken
        command.addAccount.refreshToken = login.refreshToken
        command.addAccount.idToken = login.idToken
        if let id = login.accountID { command.addAccount.chatgptAccountID = id }
        let reply = try StoreClient.perform(command, settings)
        print("account \(reply.accounts.first?.name ?? called) \(reply.renewed ? "renewed" : said)")
    }

    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List accounts.")
        @Flag(name: .long, help: "A JSON array.") var json = false
        @OptionGroup var data: DataOptions

        func run() throws {
            var command = StoreCommand()
            command.listAccounts = ListAccounts()
            let reply = try StoreClient.perform(command, data.settings())
            if json {
                print(
                    "["
                        + reply.accounts.map { a in
                            JSONText.object([
                                ("id", .int(a.id)), ("name", .string(a.name)), ("kind", .string(a.kind)), ("state", .string(a.state)),
                                ("base_url", .string(a.baseURL)), ("proxy", .optional(a.proxy.isEmpty ? nil : a.proxy)),
                                ("created_at", .string(WallTime(milliseconds: a.createdAtMs).rfc3339)),
                            ])
                        }.joined(separator: ",") + "]")
            } else if reply.accounts.isEmpty {
                print("no account; add one with: codex-lb accounts add NAME --base-url https://api.openai.com/v1 --key-file FILE")
            } else {
                printTable(
                    ["NAME", "KIND", "STATE", "BASE URL", "ADDED"],
                    reply.accounts.map { [$0.name, $0.kind, $0.state, $0.baseURL, WallTime(milliseconds: $0.createdAtMs).rfc3339] })
            }
        }
    }

    struct Pause: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Take an account out of routing.")
        @Argument(help: "The account's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws { try setState(name, .paused, data, said: "paused") }
    }

    struct Resume: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Put a paused account back into routing.")
        @Argument(help: "The account's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws { try setState(name, .active, data, said: "resumed") }
    }

    struct Remove: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Forget an account and its credentials; its usage stays on record.")
        @Argument(help: "The account's name.") var name: String
        @OptionGroup var data: DataOptions
        func run() throws {
            var command = StoreCommand()
            command.removeAccount.name = name
            _ = try StoreClient.perform(command, data.settings())
            print("account \(name) removed")
        }
    }

    private static func setState(_ name: String, _ state: Account.State, _ data: DataOptions, said: String) throws {
        var command = StoreCommand()
        command.setAccountState.name = name
        command.setAccountState.state = state.rawValue
        _ = try StoreClient.perform(command, data.settings())
        print("account \(name) \(said)")
    }
}

func readFile(_ path: String, what: String, bytesMax: Int) throws -> [UInt8] {
    let fd = path == "-" ? 0 : open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else {
        complain("\(what) file \(path): \(String(cString: strerror(errno)))")
        throw ExitCode(1)
    }
    defer { if fd != 0 { close(fd) } }
    var out: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 64 * 1024)
    while true {
        let n = read(fd, &buffer, buffer.count)
        if n < 0, errno == EINTR { continue }
        guard n >= 0 else {
            complain("\(what) file \(path): \(String(cString: strerror(errno)))")
            throw ExitCode(1)
        }
        if n == 0 { return out }
        out += buffer[..<n]
        guard out.count <= bytesMax else {
            complain("\(what) file \(path) is larger than \(bytesMax) bytes")
            throw ExitCode(1)
        }
    }
}

/// One line of visible characters: what an `Authorization` header can carry.
func readSecret(_ path: String, what: String) throws -> String {
    var text = String(decoding: try readFile(path, what: what, bytesMax: 64 * 1024), as: UTF8.self)[...]
    while let last = text.last, last.isWhitespace { text.removeLast() }
    while let first = text.first, first.isWhitespace { text.removeFirst() }
    guard !text.isEmpty, text.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
        complain("\(what) file \(path): expected one line with the key and nothing else")
        throw ExitCode(1)
    }
    return String(text)
}
