import ControlWire
public import Logging
import Platform
public import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Where a running server's settings come from, each time anew. The command line knows how; the supervisor only asks.
public struct SettingsSource {
    /// Of the child that reads and checks them, and prints the whole environment that they are in.
    public var arguments: [String]
    /// As the supervisor was started with it: what stands there stays, files are read anew.
    public var environment: [String: String]
    /// Of an environment that such a child printed.
    public var settings: ([String: String]) throws(SettingsError) -> Settings
    public var logger: (Settings) -> Logger
    /// As this program was called, its name first: so is the one called that replaces it.
    public var commandLine: [String]
    public var build: Build

    var called: String { commandLine.first ?? "" }

    public init(
        arguments: [String], environment: [String: String], settings: @escaping ([String: String]) throws(SettingsError) -> Settings,
        logger: @escaping (Settings) -> Logger, commandLine: [String], build: Build
    ) {
        (self.arguments, self.environment, self.settings, self.logger) = (arguments, environment, settings, logger)
        (self.commandLine, self.build) = (commandLine, build)
    }
}

/// A listening socket, and whose it is.
struct ListeningSocket: Equatable {
    /// As the settings say it; nil where systemd gave it.
    var spec: ListenerSpec?
    var descriptor: Int32
    /// A PROXY header begins each connection.
    var isProxied: Bool
    /// The name of a Unix-domain socket that is ours to take away.
    var file: SocketFile?
    var name: String

    /// Ours, whether we bound it or a predecessor did.
    init(_ spec: ListenerSpec, descriptor: Int32) {
        (self.spec, self.descriptor, isProxied) = (spec, descriptor, spec.isProxied)
        (file, name) = (SocketFile(of: descriptor), Sockets.name(of: descriptor))
    }

    /// Of a socket unit, whose name for it says what comes in there.
    init(given descriptor: Int32, name: String) {
        (self.descriptor, isProxied) = (descriptor, name == Self.proxiedName)
        self.name = Sockets.name(of: descriptor)
    }

    /// Left by the program before us.
    init(_ left: SuccessionSocket) throws(SystemError) {
        descriptor = left.descriptorNumber
        (isProxied, name) = (left.isProxied, Sockets.name(of: left.descriptorNumber))
        guard !left.address.isEmpty else { return }
        (spec, file) = (try Self.spec(left.address), SocketFile(of: left.descriptorNumber))
    }

    /// `FileDescriptorName=` of a socket whose connections begin with a PROXY header.
    private static let proxiedName = "proxy"

    /// It serves as the settings now want it, without being bound anew.
    func serves(_ new: ListenerSpec) -> ListeningSocket? {
        guard let spec, spec.address == new.address, (spec.mode, spec.group) == (new.mode, new.group) else { return nil }
        var socket = self
        (socket.spec, socket.isProxied) = (new, new.isProxied)
        return socket
    }

    /// Binds the address, and has the service manager keep the socket.
    static func bound(_ spec: ListenerSpec) throws(SystemError) -> ListeningSocket {
        let socket = ListeningSocket(spec, descriptor: try Sockets.listen(spec))
        ServiceManager.store(socket.descriptor, address: spec.address)
        return socket
    }

    /// As settings write it.
    static func spec(_ text: String) throws(SystemError) -> ListenerSpec {
        do throws(ListenAddressError) { return try ListenerSpec.parse(text).get() } catch { throw SystemError(EINVAL, error.description) }
    }

    static func == (a: ListeningSocket, b: ListeningSocket) -> Bool { a.descriptor == b.descriptor }

    func close() {
        Descriptor.close(descriptor)
        file?.remove()
        if let spec { ServiceManager.forget(address: spec.address) }
    }
}

/// What one generation works by.
struct Plan {
    var settings: Settings
    /// Of its children.
    var environment: [String: String]
    var sockets: [ListeningSocket]

    init(settings: Settings, environment: [String: String], sockets: [ListeningSocket]) {
        (self.settings, self.sockets) = (settings, sockets)
        self.environment = environment
        // Children find the same places, whatever flags and relative paths said.
        self.environment["CODEX_LB_DATA_DIR"] = settings.dataDirectory
        self.environment["CODEX_LB_RUNTIME_DIR"] = settings.runtimeDirectory
        self.environment[Heritage.serverVariable] = "1"
        self.environment["CODEX_LB_WORKERS"] = String(settings.workers)
    }

    /// Why a running server can't go on with these instead; nil: it can.
    func obstacle(to new: Settings) -> String? {
        func change(_ name: String, _ what: String) -> String {
            "\(name): \(what) can't be changed while the server runs; restart it, or put the setting back"
        }
        if new.dataDirectory != settings.dataDirectory { return change("CODEX_LB_DATA_DIR", "the data directory") }
        if new.runtimeDirectory != settings.runtimeDirectory { return change("CODEX_LB_RUNTIME_DIR", "the runtime directory") }
        if new.keyFile != settings.keyFile { return change("CODEX_LB_ENCRYPTION_KEY_FILE", "the encryption key") }
        switch (settings.database.url, new.database.url) {
        case (.sqlite(let a), .sqlite(let b)): if a != b { return change("CODEX_LB_DATABASE_URL", "the file of the database") }
        case (.postgresql(let a), .postgresql(let b)):
            // Records of the old generation must come home to where those of the new one go.
            if a.database != b.database { return change("CODEX_LB_DATABASE_URL", "the database") }
        default: return change("CODEX_LB_DATABASE_URL", "the kind of database")
        }
        return nil
    }
}
