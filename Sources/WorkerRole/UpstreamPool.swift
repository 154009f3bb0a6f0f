import HTTPWire
import Loop
import TLS
import Vocabulary

/// Why no connection could be had.
enum ConnectFailure: Error {
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
final class UpstreamPool {
    let loop: EventLoop
    private let resolver: Resolver
    private let tls: TLSContext?
    private let tlsProblem: String
    private let proxy: OutboundProxy?
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
    var counted: (_ reused: Bool) -> Void = { _ in }

    init(_ loop: EventLoop, proxy: OutboundProxy?, connectMilliseconds: Int, connectionsMax: Int) {
        (self.loop, self.proxy) = (loop, proxy)
        (self.connectMilliseconds, self.connectionsMax) = (connectMilliseconds, connectionsMax)
        resolver = Resolver(loop)
        do throws(TLSError) {
            (tls, tlsProblem) = (try TLSContext(), "")
        } catch {
            (tls, tlsProblem) = (nil, error.description)
        }
    }

    /// Gives a connection, kept or fresh. `done` may be called at once. The token cancels a connection being made.
    @discardableResult
    func connection(
        to origin: Origin, fresh: Bool = false, _ done: @escaping (Result<UpstreamConnection, ConnectFailure>) -> Void
    ) -> ConnectAttempt? {
        if !fresh, let kept = origins[origin]?.idle.popLast() {
            counted(true)
            done(.success(kept))
            return nil
        }
        counted(false)
        if origin.isTLS, tls == nil {
            done(.failure(.untrusted(tlsProblem)))
            return nil
        }
        if all.count + attempts.count >= connectionsMax { closeIdle(1) }
        let attempt = ConnectAttempt(self, origin, proxy: proxy.flatMap { $0.serves(origin) ? $0 : nil }, done)
        attempts[ObjectIdentifier(attempt)] = attempt
        attempt.start(resolver, milliseconds: connectMilliseconds)
        return attempt
    }

    fileprivate func finished(_ attempt: ConnectAttempt) { attempts[ObjectIdentifier(attempt)] = nil }

    fileprivate func made(_ origin: Origin, _ stream: ByteStream, _ tls: TLSClient?) -> UpstreamConnection {
        let connection = UpstreamConnection(connections(of: origin), stream, tls, self)
        all[ObjectIdentifier(connection)] = connection
        return connection
    }

    private func connections(of origin: Origin) -> OriginConnections {
        if let known = origins[origin] { return known }
        let new = OriginConnections(origin)
        origins[origin] = new
        return new
    }

    fileprivate func client(_ origin: Origin) throws(TLSError) -> TLSClient {
        let isAddress = SocketAddress(numeric: origin.host, port: 0) != nil
        return try TLSClient(tls!, host: origin.host, isAddress: isAddress, resuming: origins[origin]?.session)
    }

    fileprivate func distrust(_ origin: Origin) { origins[origin]?.session = nil }

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
    func sweep(_ now: Instant) {
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

/// One new connection: name, addresses in a race (RFC 8305), tunnel, handshake. All of it within one deadline.
final class ConnectAttempt: ByteStreamDelegate {
    private unowned let pool: UpstreamPool
    private let origin: Origin
    private let proxy: OutboundProxy?
    private var done: ((Result<UpstreamConnection, ConnectFailure>) -> Void)?
    private var deadline = Instant.never
    /// Those not tried yet.
    private var addresses: [SocketAddress] = []
    /// Those being tried.
    private var racing: [ByteStream] = []
    private var nextTryAt = Instant.never
    /// The one that won.
    private var stream: ByteStream?
    private var tls: TLSClient?
    private var tunnelBytes: [UInt8] = []
    private var isTunnelling = false
    private var lastProblem = "no address"
    private var resolver: Resolver?

    init(
        _ pool: UpstreamPool, _ origin: Origin, proxy: OutboundProxy?,
        _ done: @escaping (Result<UpstreamConnection, ConnectFailure>) -> Void
    ) {
        (self.pool, self.origin, self.proxy, self.done) = (pool, origin, proxy, done)
    }

    /// Who is connected to: the proxy, else the origin.
    private var peer: (host: String, port: UInt16) { proxy.map { ($0.host, $0.port) } ?? (origin.host, origin.port) }

    func start(_ resolver: Resolver, milliseconds: Int) {
        deadline = pool.loop.now.adding(milliseconds: milliseconds)
        self.resolver = resolver
        let (host, port) = peer
        resolver.resolve(host, port: port) { [weak self] result in
            guard let self, done != nil else { return }
            switch result {
            case .success(let found):
                addresses = Self.alternating(found)
                tryNext()
            case .failure(let error):
                fail(error.isExhaustion ? .exhausted("\(host): \(error)") : .unreachable("\(host): \(error)"))
            }
        }
    }

    /// RFC 8305 §4: the families by turns, beginning with the resolver's first, so that a dead one holds up nothing.
    static func alternating(_ addresses: [SocketAddress]) -> [SocketAddress] {
        guard let first = addresses.first else { return [] }
        let same = addresses.filter { $0.isV6 == first.isV6 }
        let other = addresses.filter { $0.isV6 != first.isV6 }
        return (0..<max(same.count, other.count)).flatMap { i in [same, other].compactMap { i < $0.count ? $0[i] : nil } }
    }

    private func tryNext() {
        nextTryAt = .never
        guard !addresses.isEmpty else {
            if racing.isEmpty { unreachable(lastProblem) }
            return
        }
        let address = addresses.removeFirst()
        if !addresses.isEmpty { nextTryAt = pool.loop.now.adding(milliseconds: Limits.connectStaggerMilliseconds) }
        let stream = ByteStream(pool.loop, .tcp)
        racing.append(stream)
        stream.connect(to: address) { [weak self] error in
            guard let self, done != nil, let place = racing.firstIndex(where: { $0 === stream }) else { return }
            if let error {
                racing.remove(at: place)
                stream.close()
                if error.isExhaustion {
                    // Idle connections are worth less than a turn: one is given up for it, then the address is tried again.
                    guard pool.closeIdle(1) > 0 else { return fail(.exhausted("\(address): \(error)")) }
                    addresses.insert(address, at: 0)
                } else {
                    lastProblem = "\(address): \(error)"
                }
                return tryNext()
            }
            nextTryAt = .never
            for loser in racing where loser !== stream { loser.close() }
            racing = []
            self.stream = stream
            stream.watchPeer(silentMilliseconds: Limits.peerSilentMilliseconds)
            connected(stream)
        }
    }

    func sweep(_ now: Instant) {
        if now >= deadline { return unreachable("\(origin.authority): no connection in time") }
        if now >= nextTryAt { tryNext() }
    }

    /// The name may have other addresses by now: it is asked anew next time.
    private func unreachable(_ why: String) {
        resolver?.forget(peer.host, port: peer.port)
        fail(.unreachable(why))
    }

    private func connected(_ stream: ByteStream) {
        if let proxy {
            isTunnelling = true
            var head: [UInt8] = []
            let target = "\(origin.host.contains(":") ? "[\(origin.host)]" : origin.host):\(origin.port)"
            head += "CONNECT \(target) HTTP/1.1\r\nHost: \(target)\r\n".utf8
            if let authorization = proxy.authorization { HeadWriter.field("Proxy-Authorization", authorization, into: &head) }
            HeadWriter.end(into: &head)
            stream.delegate = self
            stream.write(head)
            stream.startReading()
        } else if origin.isTLS {
            stream.delegate = self
            secure(stream)
        } else {
            succeed(pool.made(origin, stream, nil))
        }
    }

    private func secure(_ stream: ByteStream) {
        do throws(TLSError) {
            tls = try pool.client(origin)
            stream.startReading()
            try shake(stream)
        } catch {
            failHandshake(error)
        }
    }

    private func shake(_ stream: ByteStream) throws(TLSError) {
        guard let tls else { return }
        let isDone = try tls.handshake()
        let outgoing = tls.takeOutgoing()
        if !outgoing.isEmpty { stream.write(outgoing) }
        if isDone { succeed(pool.made(origin, stream, tls)) }
    }

    private func failHandshake(_ error: TLSError) {
        if let alert = tls?.takeOutgoing(), !alert.isEmpty { stream?.write(alert) }
        pool.distrust(origin)
        if error.isUntrusted { fail(.untrusted("\(origin.authority): \(error)")) } else { lost("\(origin.authority): \(error)") }
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if isTunnelling {
            tunnelBytes += bytes
            var scanned = 0
            let answer = tunnelBytes
            do throws(WireError) {
                guard let (head, consumed) = try ResponseHead.parse(answer.span.bytes, scanned: &scanned) else { return }
                guard head.status / 100 == 2 else {
                    return fail(.unreachable("the proxy \(proxy?.host ?? "") answered CONNECT with \(head.status)"))
                }
                guard consumed == answer.count else { return fail(.unreachable("the proxy sent bytes before the tunnel was used")) }
            } catch {
                return fail(.unreachable("the proxy \(proxy?.host ?? "") answered CONNECT with no HTTP: \(error.reason)"))
            }
            isTunnelling = false
            stream.stopReading()
            return secure(stream)
        }
        tls?.receive(bytes)
        do throws(TLSError) { try shake(stream) } catch { failHandshake(error) }
    }

    func streamEnded(_ stream: ByteStream) { lost("\(origin.authority): closed while connecting") }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { lost("\(origin.authority): \(error)") }
    func streamDrained(_ stream: ByteStream) {}

    /// An address that took the connection and then failed: the next one may do better.
    private func lost(_ why: String) {
        lastProblem = why
        stream?.close()
        (stream, tls, isTunnelling, tunnelBytes) = (nil, nil, false, [])
        tryNext()
    }

    /// The turn needs it no more.
    func cancel() {
        done = nil
        end()
    }

    private func end() {
        for stream in racing { stream.close() }
        racing = []
        stream?.close()
        pool.finished(self)
    }

    private func succeed(_ connection: UpstreamConnection) {
        guard let done else { return connection.close() }
        self.done = nil
        stream = nil
        pool.finished(self)
        done(.success(connection))
    }

    private func fail(_ failure: ConnectFailure) {
        guard let done else { return }
        self.done = nil
        end()
        done(.failure(failure))
    }
}
