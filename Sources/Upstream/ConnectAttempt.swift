internal import Bytes
internal import HTTPWire
internal import Loop
internal import TLS
public import Transport
internal import Vocabulary

/// One new connection: name, addresses in a race (RFC 8305), tunnel, handshake. All of it within one deadline.
public final class ConnectAttempt: TransportDelegate {
    private enum Phase {
        case connect
        /// TLS to the proxy.
        case secureProxy
        /// What is said to the proxy.
        case tunnel
        /// TLS to the upstream.
        case secure
    }

    private unowned let pool: UpstreamPool
    private let origin: Origin
    private let proxy: EgressProxy?
    private var done: ((Result<UpstreamConnection, ConnectFailure>) -> Void)?
    private var deadline = Instant.never
    /// Those not tried yet.
    private var addresses: [SocketAddress] = []
    /// Those being tried.
    private var racing: [ByteStream] = []
    private var nextTryAt = Instant.never
    /// The one that won.
    private var transport: TransportStream?
    private var tunnel: Tunnel?
    private var phase = Phase.connect
    private var lastProblem = "no address"
    private var resolver: Resolver?

    init(
        _ pool: UpstreamPool, _ origin: Origin, proxy: EgressProxy?,
        _ done: @escaping (Result<UpstreamConnection, ConnectFailure>) -> Void
    ) {
        (self.pool, self.origin, self.proxy, self.done) = (pool, origin, proxy, done)
    }

    /// Who is connected to: the proxy, else the origin.
    private var peer: (host: String, port: UInt16) { proxy.map { ($0.host, $0.port) } ?? (origin.host, origin.port) }

    func start(_ resolver: Resolver, milliseconds: Int) {
        deadline = pool.loop.now.adding(milliseconds: milliseconds)
        self.resolver = resolver
        guard let proxy, proxy.scheme == .socks5 else { return connect(resolver, tunnelTo: origin.host) }
        resolver.resolve(origin.host, port: origin.port) { [weak self] result in
            guard let self, done != nil else { return }
            switch result {
            case .success(let found):
                targets = Self.alternating(found).map(\.hostText)
                connectToNextTarget("\(origin.host): no address")
            case .failure(let error): failResolving(origin.host, error)
            }
        }
    }

    /// Addresses of the origin that a SOCKS proxy has not been asked for yet.
    private var targets: [String] = []

    private func connectToNextTarget(_ why: String) {
        guard let resolver, !targets.isEmpty else { return unreachable(why) }
        connect(resolver, tunnelTo: targets.removeFirst())
    }

    /// To the proxy, if there is one, which connects to `host`; else to the origin.
    private func connect(_ resolver: Resolver, tunnelTo host: String) {
        tunnel = proxy.map { Tunnel(through: $0, to: host, port: origin.port) }
        let (host, port) = peer
        resolver.resolve(host, port: port) { [weak self] result in
            guard let self, done != nil else { return }
            switch result {
            case .success(let found):
                addresses = Self.alternating(found)
                tryNext()
            case .failure(let error): failResolving(host, error)
            }
        }
    }

    private func failResolving(_ host: String, _ error: LoopError) {
        fail(error.isExhaustion ? .exhausted("\(host): \(error)") : .unreachable("\(host): \(error)"))
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
            stream.watchPeer(silentMilliseconds: Limits.peerSilentMilliseconds)
            connected(TransportStream(stream, buffer: pool.plaintext))
        }
    }

    func sweep(_ now: Instant) {
        if now >= deadline { return unreachable("\(peerName): no connection in time") }
        if now >= nextTryAt { tryNext() }
    }

    /// The name may have other addresses by now: it is asked anew next time.
    private func unreachable(_ why: String) {
        resolver?.forget(peer.host, port: peer.port)
        if proxy?.scheme == .socks5 { resolver?.forget(origin.host, port: origin.port) }
        fail(.unreachable(why))
    }

    private func connected(_ transport: TransportStream) {
        self.transport = transport
        transport.delegate = self
        guard let proxy, proxy.scheme == .https else { return beginTunnel(transport) }
        phase = .secureProxy
        do throws(TLSError) { transport.secure(try pool.client(proxy)) } catch { lost("\(proxy): \(error)") }
    }

    private func beginTunnel(_ transport: TransportStream) {
        guard let tunnel else { return reached(transport) }
        phase = .tunnel
        say(tunnel.opening, transport)
        transport.resume()
    }

    private func say(_ bytes: [UInt8], _ transport: TransportStream) {
        do throws(TransportFailure) { try transport.write(bytes.span.bytes) } catch { lost("\(peerName): \(error)") }
    }

    /// What is written now goes to the upstream.
    private func reached(_ transport: TransportStream) {
        guard origin.isTLS else { return succeed(transport) }
        phase = .secure
        do throws(TLSError) { transport.secure(try pool.client(origin)) } catch { lost("\(origin.authority): \(error)") }
    }

    public func transportSecured() {
        guard let transport else { return }
        if phase == .secureProxy { beginTunnel(transport) } else { succeed(transport) }
    }

    public func transportReceived(_ bytes: RawSpan) {
        guard phase == .tunnel, let transport else { return }
        do throws(TunnelError) {
            switch try tunnel?.feed(bytes) {
            case .say(let words): say(words, transport)
            case .open:
                transport.pause()
                reached(transport)
            case .wait, nil: break
            }
        } catch {
            // It may reach another of the origin's addresses.
            self.transport?.close()
            (self.transport, phase) = (nil, .connect)
            connectToNextTarget(error.reason)
        }
    }

    /// Whom the present step is about.
    private var peerName: String {
        guard let proxy, phase != .secure else { return origin.authority }
        return "the proxy \(proxy) on the way to \(origin.authority)"
    }

    public func transportPaused() {}
    public func transportEnded(isWhole: Bool) { lost("\(peerName): closed while connecting") }
    public func transportFailed(_ why: TransportFailure) {
        if phase == .secure { pool.distrust(origin) }
        if why.isUntrusted { fail(.untrusted("\(peerName): \(why)")) } else { lost("\(peerName): \(why)") }
    }
    public func transportWriteFailed(_ why: String) { lost("\(peerName): \(why)") }
    public func transportDrained() {}

    /// An address that took the connection and then failed: the next one may do better.
    private func lost(_ why: String) {
        lastProblem = why
        transport?.close()
        (transport, phase) = (nil, .connect)
        tunnel = tunnel?.anew
        tryNext()
    }

    /// The turn needs it no more.
    public func cancel() {
        done = nil
        end()
    }

    private func end() {
        for stream in racing { stream.close() }
        racing = []
        transport?.close()
        transport = nil
        pool.finished(self)
    }

    private func succeed(_ transport: TransportStream) {
        self.transport = nil
        guard let done else { return transport.close() }
        self.done = nil
        pool.finished(self)
        done(.success(pool.made(origin, transport)))
    }

    private func fail(_ failure: ConnectFailure) {
        guard let done else { return }
        self.done = nil
        end()
        done(.failure(failure))
    }
}
