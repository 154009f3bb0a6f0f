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
        abstract: "Add, list, test, pause and remove upstream accounts.",
        subcommands: [
            Add.self, Import.self, Login.self, List.self, Set.self, Explain.self, Test.self, Pause.self, Resume.self, Export.self,
            Remove.self,
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
