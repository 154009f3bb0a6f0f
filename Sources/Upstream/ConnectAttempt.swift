internal import Bytes
internal import HTTPWire
internal import Loop
internal import TLS
public import Transport
internal import Vocabulary

/// One new connection: name, addresses in a race (RFC 8305), tunnel, handshake. All of it within one deadline.
public final class ConnectAttempt: TransportDelegate {
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
    private var transport: TransportStream?
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
            stream.watchPeer(silentMilliseconds: Limits.peerSilentMilliseconds)
            connected(TransportStream(stream, buffer: pool.plaintext))
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

    private func connected(_ transport: TransportStream) {
        self.transport = transport
        transport.delegate = self
        if let proxy {
            isTunnelling = true
            var head: [UInt8] = []
            let target = "\(origin.host.contains(":") ? "[\(origin.host)]" : origin.host):\(origin.port)"
            head += "CONNECT \(target) HTTP/1.1\r\nHost: \(target)\r\n".utf8
            if let authorization = proxy.authorization { HeadWriter.field("Proxy-Authorization", authorization, into: &head) }
            HeadWriter.end(into: &head)
            do throws(TransportFailure) { try transport.write(head.span.bytes) } catch {
                return lost("\(origin.authority): \(error)")
            }
            transport.resume()
        } else if origin.isTLS {
            secure(transport)
        } else {
            succeed(transport)
        }
    }

    private func secure(_ transport: TransportStream) {
        do throws(TLSError) { transport.secure(try pool.client(origin)) } catch { lost("\(origin.authority): \(error)") }
    }

    public func transportSecured() { if let transport { succeed(transport) } }

    public func transportReceived(_ bytes: RawSpan) {
        guard isTunnelling, let transport else { return }
        tunnelBytes.append(bytes)
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
        transport.pause()
        secure(transport)
    }

    public func transportPaused() {}
    public func transportEnded(isWhole: Bool) { lost("\(origin.authority): closed while connecting") }
    public func transportFailed(_ why: TransportFailure) {
        if transport?.isSecure == true { pool.distrust(origin) }
        if why.isUntrusted { fail(.untrusted("\(origin.authority): \(why)")) } else { lost("\(origin.authority): \(why)") }
    }
    public func transportWriteFailed(_ why: String) { lost("\(origin.authority): \(why)") }
    public func transportDrained() {}

    /// An address that took the connection and then failed: the next one may do better.
    private func lost(_ why: String) {
        lastProblem = why
        transport?.close()
        (transport, isTunnelling, tunnelBytes) = (nil, false, [])
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
