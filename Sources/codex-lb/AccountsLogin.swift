import ArgumentParser
import ControlWire
import JSONWire
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// ChatGPT logins: made here, brought from Codex, and given back.
extension Accounts {
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
            abstract: "Import ChatGPT logins from Codex CLI's auth.json, or renew those that are known.",
            discussion: """
                Codex keeps the file at ~/.codex/auth.json. A login that is known (the same person in the same workspace) gets the file's tokens. \
                A second workspace of the same e-mail address needs a name of its own: --name. Of several files each is imported on its own; \
                one that can't be does not keep out the others. What is given of routing, headers and the proxy counts for each of them, \
                from the first request on.
                """)
        @Argument(help: "Files, directories (their *.json), or - for standard input.") var files: [String]
        @Option(name: .long, help: "A name of your choice (default: the login's e-mail address).") var name: String?
        @OptionGroup var place: LoginPlace
        @OptionGroup var options: AccountOptions
        @OptionGroup var data: DataOptions

        func validate() throws {
            if files.count > 1, name != nil || place.replace {
                throw ValidationError("--name and --replace are for one file; leave them out, or import the files one by one")
            }
            if files.contains("-"), options.readsStandardInput {
                throw ValidationError("standard input can be read once: give the login or the secret in a file")
            }
        }

        func run() throws {
            let settings = try data.settings()
            var failures = 0
            let all = try files.flatMap { try Self.expanded($0) }
            guard all.count == 1 || name == nil && !place.replace else {
                complain("--name and --replace are for one file, and \(files[0]) has \(all.count)")
                throw ExitCode(2)
            }
            let change = try options.change()
            for file in all {
                do {
                    let login = try AuthFile(readFile(file, what: "auth.json", bytesMax: 1 << 20), file: file)
                    try Accounts.store(login, name: name, place, change, settings: settings, said: "imported", mend: "give one with --name")
                } catch let code as ExitCode {
                    if all.count == 1 { throw code }
                    failures += 1
                }
            }
            guard failures == 0 else {
                complain("\(failures) of \(all.count) files could not be imported; the lines above say why")
                throw ExitCode(1)
            }
        }

        /// The files that an argument stands for.
        private static func expanded(_ path: String) throws -> [String] {
            guard path != "-", let directory = opendir(path) else { return [path] }  // what is wrong with it the reading says
            defer { closedir(directory) }
            var names: [String] = []
            while let entry = readdir(directory) {
                let name = withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                }
                if name.hasSuffix(".json"), !name.hasPrefix(".") { names.append(name) }
            }
            guard !names.isEmpty else {
                complain("directory \(path) has no file that ends in .json")
                throw ExitCode(1)
            }
            // Whoever opened a pipe would wait for its other end.
            return names.sorted().map { path.hasSuffix("/") ? path + $0 : "\(path)/\($0)" }.filter { file in
                var info = stat()
                guard stat(file, &info) == 0, info.st_mode & S_IFMT != S_IFREG else { return true }
                complain("\(file) is no file; it is left out")
                return false
            }
        }
    }

    struct Login: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Log in to ChatGPT with a code that is typed into a browser, here or anywhere.",
            discussion: """
                The login is codex-lb's own: no Codex CLI uses the same tokens. One that is known already (the same person in the same workspace) \
                is renewed. With --browser the browser comes back by itself, or the address that it was sent to is pasted. The issuer is reached \
                through --proxy too, else through the proxy that the account of this NAME has.
                """)
        @Argument(help: "A name of your choice (default: the login's e-mail address).") var name: String?
        @Option(name: .long, help: "The issuer (default: CODEX_LB_AUTH_BASE_URL, or https://auth.openai.com).") var issuer: String?
        @Flag(name: .long, help: "Without a code: the browser comes back to this machine.") var browser = false
        @Option(name: .long, help: "Where the browser comes back to; the issuer knows Codex's own client by it.")
        var port: UInt16 = 1455
        @OptionGroup var place: LoginPlace
        @OptionGroup var options: AccountOptions
        @OptionGroup var data: DataOptions

        func run() throws {
            let settings = try data.settings()
            let change = try options.change()
            let client = try IssuerClient(settings, issuer: issuer, proxy: EgressProxy(change.proxy) ?? known(settings))
            let tokens = browser ? try BrowserLogin(client, port: port).run { tell($0) } : try DeviceLogin(client).run { tell($0) }
            let login = AuthFile(access: tokens.access, refresh: tokens.refresh, id: tokens.id)
            try Accounts.store(
                login, name: name, place, change, settings: settings, said: "logged in",
                mend: "give one: codex-lb accounts login NAME")
        }

        /// Of the account that is logged in anew: the issuer is to see it from where it is used.
        private func known(_ settings: Settings) -> EgressProxy? {
            guard let name, let store = try? LocalStore.openReadOnly(settings) else { return nil }  // there is none yet
            defer { store.close() }
            return (try? store.account(named: name, keyPath: settings.keyFile))?.credentials.proxy  // see above
        }
    }

    /// Gives the store a login that somebody has made; `mend` says what to do when it can't be named.
    private static func store(
        _ login: AuthFile, name: String?, _ place: LoginPlace, _ change: AccountChangeMessage, settings: Settings, said: String,
        mend: String
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
        command.addAccount.change = change
        command.addAccount.bearer = login.accessToken
        command.addAccount.refreshToken = login.refreshToken
        command.addAccount.idToken = login.idToken
        if let id = login.accountID { command.addAccount.chatgptAccountID = id }
        let reply = try StoreClient.perform(command, settings)
        print("account \(reply.accounts.first?.name ?? called) \(reply.renewed ? "renewed" : said)")
    }

    struct Export: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Write an account's credentials to a file as Codex CLI keeps them.",
            discussion: """
                The file is made with mode 0600 and must not be there. A login's refresh token works once: as soon as Codex CLI or codex-lb \
                renews it, the other one's is worth nothing. Remove the account here, or use the file nowhere else.
                """)
        @Argument(help: "The account's name.") var name: String
        @Option(name: .customLong("to"), help: "The file to be made.") var file: String
        @OptionGroup var data: DataOptions

        func run() throws {
            let account = try LocalStore.account(name, data.settings())
            try Self.write(Self.authFile(of: account), file)
            print("account \(account.name) written to \(file)")
            guard account.kind == .chatGPT else { return }
            tell(
                "These tokens now belong to two: whichever renews them first ends the login of the other. To let Codex CLI have them: codex-lb accounts remove \(account.name)"
            )
        }

        /// `auth.json` as Codex CLI writes it.
        private static func authFile(of account: Account) -> [UInt8] {
            let credentials = account.credentials
            guard account.kind == .chatGPT else {
                let json: JSONValue = ["auth_mode": "apikey", "OPENAI_API_KEY": .string(credentials.bearer), "tokens": nil]
                return json.serialized() + [0x0A]
            }
            let json: JSONValue = [
                "OPENAI_API_KEY": nil, "auth_mode": "chatgpt",
                "tokens": [
                    "id_token": .string(credentials.idToken ?? ""), "access_token": .string(credentials.bearer),
                    "refresh_token": .string(credentials.refreshToken ?? ""),
                    "account_id": credentials.chatGPTAccountID.map { .string($0) } ?? nil,
                ],
                "last_refresh": .string(account.changedAt.rfc3339),
            ]
            return json.serialized() + [0x0A]
        }

        private static func write(_ bytes: [UInt8], _ path: String) throws {
            let fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
            func refuse(_ code: Int32) -> ExitCode {
                let why = code == EEXIST ? "it is there already; remove it or choose another name" : String(cString: strerror(code))
                complain("file \(path): \(why)")
                return ExitCode(1)
            }
            guard fd >= 0 else { throw refuse(errno) }
            defer { close(fd) }
            var written = 0
            while written < bytes.count {
                let n = bytes.withUnsafeBytes { Glibc.write(fd, $0.baseAddress! + written, bytes.count - written) }
                if n < 0, errno == EINTR { continue }
                guard n > 0 else {
                    let code = errno
                    unlink(path)  // half of a login is none
                    throw refuse(code)
                }
                written += n
            }
        }
    }
}
