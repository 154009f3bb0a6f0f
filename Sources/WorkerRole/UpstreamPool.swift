import HTTPWire
import Loop
import TLS
import Vocabulary

/// Why no connection could be had.
enum ConnectFailure: Error {
    case unreachable(String)
    case untrusted(String)
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
    private var idle: [Origin: [UpstreamConnection]] = [:]
    private var sessions: [Origin: TLSSession] = [:]
    private var all: [ObjectIdentifier: UpstreamConnection] = [:]
    private var attempts: [ObjectIdentifier: ConnectAttempt] = [:]
    /// Where TLS records are decrypted into; lives only during a callback.
    let plaintext = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 16)
    var counted: (_ reused: Bool) -> Void = { _ in }

    init(_ loop: EventLoop, proxy: OutboundProxy?, connectMilliseconds: Int) {
        self.loop = loop
        self.proxy = proxy
        self.connectMilliseconds = connectMilliseconds
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
        if !fresh, let kept = idle[origin]?.popLast() {
            counted(true)
            done(.success(kept))
            return nil
        }
        counted(false)
        if origin.isTLS, tls == nil {
            done(.failure(.untrusted(tlsProblem)))
            return nil
        }
        let attempt = ConnectAttempt(self, origin, proxy: proxy.flatMap { $0.serves(origin) ? $0 : nil }, done)
        attempts[ObjectIdentifier(attempt)] = attempt
        attempt.start(resolver, milliseconds: connectMilliseconds)
        return attempt
    }

    fileprivate func finished(_ attempt: ConnectAttempt) { attempts[ObjectIdentifier(attempt)] = nil }

    fileprivate func made(_ origin: Origin, _ stream: ByteStream, _ tls: TLSClient?) -> UpstreamConnection {
        let connection = UpstreamConnection(origin, stream, tls, self)
        all[ObjectIdentifier(connection)] = connection
        return connection
    }

    fileprivate func client(_ origin: Origin) throws(TLSError) -> TLSClient {
        let isAddress = SocketAddress(numeric: origin.host, port: 0) != nil
        return try TLSClient(tls!, host: origin.host, isAddress: isAddress, resuming: sessions[origin])
    }

    fileprivate func distrust(_ origin: Origin) {
        sessions[origin] = nil
        resolver.forget(origin.host, port: origin.port)
    }

    func returned(_ connection: UpstreamConnection) {
        keepSession(of: connection)
        let waiting = idle[origin(connection), default: []]
        if waiting.count >= Limits.upstreamPoolIdlePerOriginMax {
            waiting.first?.close()
        }
        idle[origin(connection), default: []].append(connection)
    }

    /// Called when an answer is whole: by then a TLS 1.3 server has sent its tickets.
    func keepSession(of connection: UpstreamConnection) {
        if origin(connection).isTLS, let session = connection.session { sessions[origin(connection)] = session }
    }

    private func origin(_ connection: UpstreamConnection) -> Origin { connection.origin }

    func closed(_ connection: UpstreamConnection) {
        all[ObjectIdentifier(connection)] = nil
        idle[connection.origin]?.removeAll { $0 === connection }
        if idle[connection.origin]?.isEmpty == true { idle[connection.origin] = nil }
    }

    /// Closes what has been idle for too long.
    func sweep(_ now: Instant) {
        for list in idle.values {
            for connection in list where now.milliseconds(since: connection.idleSince) > Limits.upstreamPoolIdleMilliseconds {
                connection.close()
            }
        }
        for attempt in attempts.values where attempt.deadline <= now { attempt.timedOut() }
    }

    func closeIdle() { for list in idle.values { for connection in list { connection.close() } } }
}

/// One new connection: name, address, tunnel, handshake. All of it within one deadline.
final class ConnectAttempt: ByteStreamDelegate {
    private unowned let pool: UpstreamPool
    private let origin: Origin
    private let proxy: OutboundProxy?
    private var done: ((Result<UpstreamConnection, ConnectFailure>) -> Void)?
    private(set) var deadline = Instant.never
    private var addresses: [SocketAddress] = []
    private var stream: ByteStream?
    private var tls: TLSClient?
    private var tunnelBytes: [UInt8] = []
    private var isTunnelling = false
    private var lastProblem = "no address"

    init(
        _ pool: UpstreamPool, _ origin: Origin, proxy: OutboundProxy?,
        _ done: @escaping (Result<UpstreamConnection, ConnectFailure>) -> Void
    ) {
        (self.pool, self.origin, self.proxy, self.done) = (pool, origin, proxy, done)
    }

    func start(_ resolver: Resolver, milliseconds: Int) {
        deadline = pool.loop.now.adding(milliseconds: milliseconds)
        let (host, port) = proxy.map { ($0.host, $0.port) } ?? (origin.host, origin.port)
        resolver.resolve(host, port: port) { [weak self] result in
            guard let self, done != nil else { return }
            switch result {
            case .success(let found):
                addresses = found
                tryNext()
            case .failure(let error):
                fail(.unreachable("\(host): \(error)"))
            }
        }
    }

    private func tryNext() {
        guard !addresses.isEmpty else { return fail(.unreachable(lastProblem)) }
        let address = addresses.removeFirst()
        let stream = ByteStream(pool.loop, .tcp)
        self.stream = stream
        stream.connect(to: address) { [weak self] error in
            guard let self, self.stream === stream, done != nil else { return }
            if let error {
                lastProblem = "\(address): \(error)"
                stream.close()
                return tryNext()
            }
            connected(stream)
        }
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
        fail(error.isUntrusted ? .untrusted("\(origin.authority): \(error)") : .unreachable("\(origin.authority): \(error)"))
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        if isTunnelling {
            tunnelBytes += bytes
            var scanned = 0
            do throws(WireError) {
                guard let (head, consumed) = try ResponseHead.parse(tunnelBytes.span.bytes, scanned: &scanned) else { return }
                guard head.status / 100 == 2 else {
                    return fail(.unreachable("the proxy \(proxy?.host ?? "") answered CONNECT with \(head.status)"))
                }
                guard consumed == tunnelBytes.count else { return fail(.unreachable("the proxy sent bytes before the tunnel was used")) }
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

    func streamEnded(_ stream: ByteStream) { fail(.unreachable("\(origin.authority): closed while connecting")) }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { fail(.unreachable("\(origin.authority): \(error)")) }
    func streamDrained(_ stream: ByteStream) {}

    func timedOut() { fail(.unreachable("\(origin.authority): no connection in time")) }

    /// The turn needs it no more.
    func cancel() {
        done = nil
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
        stream?.close()
        pool.finished(self)
        done(.failure(failure))
    }
}
