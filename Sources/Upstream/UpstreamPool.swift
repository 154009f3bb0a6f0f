public import Loop
internal import TLS
internal import Transport
public import Vocabulary

/// Why no connection could be had.
public enum ConnectFailure: Error, Sendable {
    case unreachable(String)
    case untrusted(String)
    /// This process has no descriptor or memory left for it; the upstream is not to blame.
    case exhausted(String)
}

/// What is kept of one origin between requests.
final class OriginConnections {
    let origin: Origin
    /// The most recently used one last.
    fileprivate(set) var idle: [UpstreamConnection] = []
    fileprivate var session: TLSSession?
    init(_ origin: Origin) { self.origin = origin }
}

/// Keep-alive connections by origin: the most recently used one is given out first. New ones are resolved, connected, tunnelled
/// through the outbound proxy if there is one, and secured.
public final class UpstreamPool {
    let loop: EventLoop
    private let resolver: Resolver
    /// Made when it is needed: to read the system's certificates takes a good part of a worker's start.
    private lazy var tls = Result { () throws(TLSError) in try TLSContext() }
    private let proxy: EnvironmentProxy?
    private let connectMilliseconds: Int
    /// Idle connections are closed before there are more than this, whatever their origin.
    private let connectionsMax: Int
    private var origins: [Origin: OriginConnections] = [:]
    private var all: [ObjectIdentifier: UpstreamConnection] = [:]
    private var attempts: [ObjectIdentifier: ConnectAttempt] = [:]
    /// Where TLS records are decrypted into; lives only during a callback.
    let plaintext = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 16)
    /// Where answers are unpacked into; the same.
    let unpacked = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 16)
    /// Where the chunks of one read are put together; the same.
    var parted: [UInt8] = []
    /// Told of each connection that is given out.
    public var counted: (_ reused: Bool) -> Void = { _ in }

    public init(_ loop: EventLoop, proxy: EnvironmentProxy?, connectMilliseconds: Int, connectionsMax: Int) {
        (self.loop, self.proxy) = (loop, proxy)
        (self.connectMilliseconds, self.connectionsMax) = (connectMilliseconds, connectionsMax)
        resolver = Resolver(loop)
    }

    /// These are what will be connected to.
    public func expect(_ origins: some Sequence<Origin>) {
        if origins.contains(where: { $0.isTLS || $0.proxy?.scheme == .https }) { _ = tls }
    }

    /// Gives a connection, kept or fresh. `done` may be called at once. The token cancels a connection being made.
    @discardableResult
    public func connection(
        to origin: Origin, fresh: Bool = false, _ done: @escaping (Result<UpstreamConnection, ConnectFailure>) -> Void
    ) -> ConnectAttempt? {
        if !fresh, let kept = origins[origin]?.idle.popLast() {
            counted(true)
            done(.success(kept))
            return nil
        }
        counted(false)
        let proxy = self.proxy(for: origin)
        if origin.isTLS || proxy?.scheme == .https, case .failure(let error) = tls {
            done(.failure(.untrusted(error.description)))
            return nil
        }
        if all.count + attempts.count >= connectionsMax { closeIdle(1) }
        let attempt = ConnectAttempt(self, origin, proxy: proxy, done)
        attempts[ObjectIdentifier(attempt)] = attempt
        attempt.start(resolver, milliseconds: connectMilliseconds)
        return attempt
    }

    /// An account's own is never gone around. The environment's is for https alone, as its name says.
    private func proxy(for origin: Origin) -> EgressProxy? {
        origin.proxy ?? proxy.flatMap { origin.isTLS && $0.serves(origin.host) ? $0.proxy : nil }
    }

    func finished(_ attempt: ConnectAttempt) { attempts[ObjectIdentifier(attempt)] = nil }

    func made(_ origin: Origin, _ transport: TransportStream) -> UpstreamConnection {
        let connection = UpstreamConnection(connections(of: origin), transport, self)
        all[ObjectIdentifier(connection)] = connection
        return connection
    }

    private func connections(of origin: Origin) -> OriginConnections {
        if let known = origins[origin] { return known }
        let new = OriginConnections(origin)
        origins[origin] = new
        return new
    }

    func client(_ origin: Origin) throws(TLSError) -> TLSClient { try client(origin.host, resuming: origins[origin]?.session) }
    func client(_ proxy: EgressProxy) throws(TLSError) -> TLSClient { try client(proxy.host, resuming: nil) }

    private func client(_ host: String, resuming session: TLSSession?) throws(TLSError) -> TLSClient {
        let isAddress = SocketAddress(numeric: host, port: 0) != nil
        return try TLSClient(try tls.get(), host: host, isAddress: isAddress, resuming: session)
    }

    func distrust(_ origin: Origin) { origins[origin]?.session = nil }

    func returned(_ connection: UpstreamConnection) {
        keepSession(of: connection)
        if connection.home.idle.count >= Limits.upstreamPoolIdlePerOriginMax { connection.home.idle.first?.close() }
        connection.home.idle.append(connection)
    }

    /// Called when an answer is whole: by then a TLS 1.3 server has sent its tickets.
    func keepSession(of connection: UpstreamConnection) {
        if connection.home.origin.isTLS, let session = connection.session { connection.home.session = session }
    }

    func closed(_ connection: UpstreamConnection) {
        all[ObjectIdentifier(connection)] = nil
        connection.home.idle.removeAll { $0 === connection }
    }

    /// Closes what has been idle for too long.
    public func sweep(_ now: Instant) {
        for home in origins.values {
            for connection in home.idle where now.milliseconds(since: connection.idleSince) > Limits.upstreamPoolIdleMilliseconds {
                connection.close()
            }
        }
        for attempt in attempts.values { attempt.sweep(now) }
    }

    /// Closes up to `count` idle connections, those that wait longest first; how many it closed.
    @discardableResult
    func closeIdle(_ count: Int) -> Int {
        var closed = 0
        while closed < count, let oldest = origins.values.compactMap(\.idle.first).min(by: { $0.idleSince < $1.idleSince }) {
            oldest.close()
            closed += 1
        }
        return closed
    }
}
