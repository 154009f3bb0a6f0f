import ArgumentParser
import ControlWire
import JSONWire
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

struct Accounts: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Add, list, pause and remove upstream accounts.",
        subcommands: [Add.self, Import.self, List.self, Pause.self, Resume.self, Remove.self])

    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Add an OpenAI-compatible upstream with its API key.")
        @Argument(help: "A name of your choice.") var name: String
        @Option(name: .customLong("base-url"), help: "For example https://api.openai.com/v1") var baseURL: String
        @Option(name: .customLong("key-file"), help: "File with the API key, or - for standard input.") var keyFile: String
        @OptionGroup var data: DataOptions

        func run() throws {
            let key = try readSecret(keyFile, what: "API key")
            var command = StoreCommand()
            command.addAccount.name = name
            command.addAccount.kind = Account.Kind.apiKey.rawValue
            command.addAccount.baseURL = try checkedBaseURL(baseURL)
            command.addAccount.bearer = key
            _ = try StoreClient.perform(command, data.settings())
            print("account \(name) added")
        }
    }

    struct Import: ParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Import a ChatGPT login from Codex CLI's auth.json.", discussion: "Codex keeps the file at ~/.codex/auth.json.")
        @Argument(help: "The file.") var file: String
        @Option(name: .long, help: "A name of your choice (default: the login's e-mail address).") var name: String?
        @Option(name: .customLong("base-url"), help: "The ChatGPT backend.") var baseURL = "https://chatgpt.com/backend-api"
        @OptionGroup var data: DataOptions

        func run() throws {
            let login = try AuthFile(readFile(file, what: "auth.json", bytesMax: 1 << 20), file: file)
            guard let name = name ?? login.email else {
                complain("\(file) tells no e-mail address to name the account by; give one with --name")
                throw ExitCode(2)
            }
            var command = StoreCommand()
            command.addAccount.name = name
            command.addAccount.kind = Account.Kind.chatGPT.rawValue
            command.addAccount.baseURL = try checkedBaseURL(baseURL)
            command.addAccount.bearer = login.accessToken
            command.addAccount.refreshToken = login.refreshToken
            command.addAccount.idToken = login.idToken
            if let id = login.accountID { command.addAccount.chatgptAccountID = id }
            _ = try StoreClient.perform(command, data.settings())
            print("account \(name) imported")
        }
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
                                ("base_url", .string(a.baseURL)), ("created_at", .string(WallTime(milliseconds: a.createdAtMs).rfc3339)),
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

/// The tokens of a Codex login, snake or camel case; unknown members are ignored.
struct AuthFile {
    var accessToken: String
    var refreshToken: String
    var idToken: String
    var accountID: String?
    var email: String?

    init(_ bytes: [UInt8], file: String) throws {
        func refuse(_ why: String) -> ExitCode {
            complain("\(file) is no auth.json of a ChatGPT login: \(why)")
            return ExitCode(1)
        }
        let document: JSONValue
        do throws(JSONError) { document = try JSONValue(parsing: bytes.span.bytes) } catch {
            throw refuse("\(error.reason) at byte \(error.offset)")
        }
        guard let tokens = document["tokens"], tokens.objectValue != nil else {
            throw refuse("\"tokens\" is missing (log in with: codex login; an API key is added with: codex-lb accounts add)")
        }
        func token(_ snake: String, _ camel: String) throws -> String {
            guard let text = (tokens[snake] ?? tokens[camel])?.stringValue, !text.isEmpty else {
                throw refuse("\"tokens.\(snake)\" is missing")
            }
            return text
        }
        accessToken = try token("access_token", "accessToken")
        refreshToken = try token("refresh_token", "refreshToken")
        idToken = try token("id_token", "idToken")
        accountID = (tokens["account_id"] ?? tokens["accountId"])?.stringValue
        // The claims are only read, not trusted: the upstream checks the token itself.
        let claims = Self.claims(idToken)
        email = claims?["email"]?.stringValue
        if accountID == nil { accountID = claims?["https://api.openai.com/auth"]?["chatgpt_account_id"]?.stringValue }
    }

    static func claims(_ token: String) -> JSONValue? {
        let parts = token.split(separator: ".", omittingEmptySubsequences: false)
        guard parts.count >= 2 else { return nil }
        var bits: UInt32 = 0
        var count = 0
        var bytes: [UInt8] = []
        for c in parts[1].utf8 {
            let value: UInt32
            switch c {
            case UInt8(ascii: "A")...UInt8(ascii: "Z"): value = UInt32(c) - 65
            case UInt8(ascii: "a")...UInt8(ascii: "z"): value = UInt32(c) - 71
            case UInt8(ascii: "0")...UInt8(ascii: "9"): value = UInt32(c) + 4
            case UInt8(ascii: "-"), UInt8(ascii: "+"): value = 62
            case UInt8(ascii: "_"), UInt8(ascii: "/"): value = 63
            case UInt8(ascii: "="): continue
            default: return nil
            }
            bits = bits << 6 | value
            count += 6
            if count >= 8 {
                count -= 8
                bytes.append(UInt8(truncatingIfNeeded: bits >> UInt32(count)))
            }
        }
        return try? JSONValue(parsing: bytes.span.bytes)  // a token without readable claims just has no e-mail address
    }
}

/// `http(s)://host[:port][/path]` without a slash at the end.
func checkedBaseURL(_ url: String) throws -> String {
    var text = url
    while text.hasSuffix("/") { text.removeLast() }
    let rest = text.hasPrefix("https://") ? text.dropFirst(8) : text.hasPrefix("http://") ? text.dropFirst(7) : ""
    let authority = rest.prefix { $0 != "/" }
    let port = authority.lastIndex(of: ":").map { authority.hasSuffix("]") ? "0" : authority[authority.index(after: $0)...] } ?? "0"
    guard UInt16(port) != nil, !authority.hasPrefix(":"), !rest.isEmpty, !rest.hasPrefix("/"), !rest.contains("@"), !rest.contains("?"),
        !rest.contains("#"),
        rest.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
    else {
        complain("base URL \"\(url)\": expected https://HOST[:PORT][/PATH], for example https://api.openai.com/v1")
        throw ExitCode(2)
    }
    return text
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
