internal import CUV
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// Who is told of a stream's events. The bytes given live only during the call.
public protocol ByteStreamDelegate: AnyObject {
    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer)
    /// The peer sent its end; the other direction may still be open.
    func streamEnded(_ stream: ByteStream)
    /// The connection is lost; only `close()` remains.
    func streamFailed(_ stream: ByteStream, _ error: LoopError)
    /// The peer takes nothing more. What it has sent may still be read, up to the end or failure that reading then meets.
    func streamWriteFailed(_ stream: ByteStream, _ error: LoopError)
    /// Everything written has been taken by the kernel, after it once had not.
    func streamDrained(_ stream: ByteStream)
}

extension ByteStreamDelegate {
    public func streamWriteFailed(_ stream: ByteStream, _ error: LoopError) { streamFailed(stream, error) }
}

/// A connected TCP or Unix-domain stream on the loop. Closing releases the handle in libuv's close callback, never before.
public final class ByteStream {
    public enum Kind { case tcp, unix }

    let kind: Kind
    private let storage: UnsafeMutableRawPointer
    /// Held until the stream is closed.
    public var delegate: (any ByteStreamDelegate)?
    public let loop: EventLoop
    public private(set) var isClosed = false
    private var isReading = false
    /// Bytes that were written but not yet taken by the kernel.
    public private(set) var queuedBytes = 0
    private var connected: ((LoopError?) -> Void)?

    private var stream: UnsafeMutablePointer<uv_stream_t> { storage.assumingMemoryBound(to: uv_stream_t.self) }

    public init(_ loop: EventLoop, _ kind: Kind) {
        self.loop = loop
        self.kind = kind
        switch kind {
        case .tcp:
            let tcp = UnsafeMutablePointer<uv_tcp_t>.allocate(capacity: 1)
            uv_tcp_init(loop.uv, tcp)
            storage = UnsafeMutableRawPointer(tcp)
        case .unix:
            let pipe = UnsafeMutablePointer<uv_pipe_t>.allocate(capacity: 1)
            uv_pipe_init(loop.uv, pipe, 0)
            storage = UnsafeMutableRawPointer(pipe)
        }
        stream.pointee.data = Unmanaged.passRetained(self).toOpaque()
    }

    deinit { storage.deallocate() }

    /// Takes over an open descriptor.
    public func open(_ descriptor: Int32) throws(LoopError) {
        switch kind {
        case .tcp: try check(uv_tcp_open(storage.assumingMemoryBound(to: uv_tcp_t.self), descriptor))
        case .unix: try check(uv_pipe_open(storage.assumingMemoryBound(to: uv_pipe_t.self), descriptor))
        }
    }

    func accept(from listener: UnsafeMutablePointer<uv_stream_t>) throws(LoopError) {
        try check(uv_accept(listener, stream))
        if kind == .tcp { uv_tcp_nodelay(storage.assumingMemoryBound(to: uv_tcp_t.self), 1) }
    }

    public var descriptor: Int32 {
        var fd: Int32 = -1
        storage.withMemoryRebound(to: uv_handle_t.self, capacity: 1) { _ = uv_fileno($0, &fd) }
        return fd
    }

    public var peer: SocketAddress? {
        guard kind == .tcp else { return SocketAddress(host: .unix(""), port: 0) }
        var raw = sockaddr_storage()
        var size = Int32(MemoryLayout<sockaddr_storage>.size)
        return withUnsafeMutablePointer(to: &raw) { p in
            p.withMemoryRebound(to: sockaddr.self, capacity: 1) { a in
                uv_tcp_getpeername(storage.assumingMemoryBound(to: uv_tcp_t.self), a, &size) == 0 ? SocketAddress(a) : nil
            }
        }
    }

    /// Connects; `done` is called once on the loop, with nil when it worked. `close()` before that calls it with ECANCELED.
    public func connect(to address: SocketAddress, _ done: @escaping (LoopError?) -> Void) {
        connected = done
        let request = UnsafeMutablePointer<uv_connect_t>.allocate(capacity: 1)
        request.pointee.data = Unmanaged.passRetained(self).toOpaque()
        let callback: uv_connect_cb = { request, status in
            let stream = Unmanaged<ByteStream>.fromOpaque(request!.pointee.data).takeRetainedValue()
            request!.deallocate()
            if status == 0, stream.kind == .tcp { uv_tcp_nodelay(stream.storage.assumingMemoryBound(to: uv_tcp_t.self), 1) }
            let done = stream.connected
            stream.connected = nil
            done?(status == 0 ? nil : LoopError(code: status))
        }
        var code: Int32 = 0
        if case .unix(let path) = address.host {
            uv_pipe_connect(request, storage.assumingMemoryBound(to: uv_pipe_t.self), path, callback)
        } else {
            code = address.withSockaddr { uv_tcp_connect(request, storage.assumingMemoryBound(to: uv_tcp_t.self), $0, callback) }
        }
        if code < 0 {
            Unmanaged<ByteStream>.fromOpaque(request.pointee.data).release()
            request.deallocate()
            connected = nil
            let (box, error) = (UncheckedBox(done), LoopError(code: code))
            loop.post { box.value(error) }
        }
    }

    public func startReading() {
        guard !isClosed, !isReading else { return }
        isReading = true
        uv_read_start(
            stream,
            { handle, _, buffer in
                let me = Unmanaged<ByteStream>.fromOpaque(handle!.pointee.data).takeUnretainedValue()
                buffer!.pointee = uv_buf_init(
                    me.loop.readBuffer.baseAddress!.assumingMemoryBound(to: CChar.self), UInt32(me.loop.readBuffer.count))
            },
            { handle, count, buffer in
                let me = Unmanaged<ByteStream>.fromOpaque(handle!.pointee.data).takeUnretainedValue()
                if count > 0 {
                    me.delegate?.streamReceived(me, UnsafeRawBufferPointer(start: buffer!.pointee.base, count: count))
                } else if count == Int(UV_EOF.rawValue) {
                    me.stopReading()
                    me.delegate?.streamEnded(me)
                } else if count < 0 {
                    me.stopReading()
                    me.delegate?.streamFailed(me, LoopError(code: Int32(count)))
                }
            })
    }

    public func stopReading() {
        guard !isClosed, isReading else { return }
        isReading = false
        uv_read_stop(stream)
    }

    private final class Write {
        let bytes: [UInt8]
        let stream: ByteStream
        let request = UnsafeMutablePointer<uv_write_t>.allocate(capacity: 1)
        init(_ bytes: [UInt8], _ stream: ByteStream) { (self.bytes, self.stream) = (bytes, stream) }
        deinit { request.deallocate() }
    }

    /// Writes what the kernel takes at once and queues a copy of the rest. A failed write arrives as `streamFailed`.
    public func write(_ bytes: UnsafeRawBufferPointer) {
        guard !isClosed, bytes.count > 0 else { return }
        var sent = 0
        if queuedBytes == 0 {
            var buffer = uv_buf_init(
                UnsafeMutablePointer(mutating: bytes.baseAddress!.assumingMemoryBound(to: CChar.self)), UInt32(bytes.count))
            let n = uv_try_write(stream, &buffer, 1)
            if n == bytes.count { return }
            if n > 0 { sent = Int(n) } else if n != UV_EAGAIN.rawValue && n < 0 { return failLater(n) }
        }
        enqueue(Array(bytes[sent...]))
    }

    public func write(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { write($0) }
    }

    private func enqueue(_ bytes: [UInt8]) {
        let write = Write(bytes, self)
        queuedBytes += bytes.count
        write.request.pointee.data = Unmanaged.passRetained(write).toOpaque()
        let code = write.bytes.withUnsafeBytes { raw in
            // The array lives in `write` until the callback; its storage does not move while nothing mutates it.
            var buffer = uv_buf_init(
                UnsafeMutablePointer(mutating: raw.baseAddress!.assumingMemoryBound(to: CChar.self)), UInt32(raw.count))
            return uv_write(write.request, stream, &buffer, 1) { request, status in
                let write = Unmanaged<Write>.fromOpaque(request!.pointee.data).takeRetainedValue()
                let me = write.stream
                me.queuedBytes -= write.bytes.count
                if status < 0 {
                    if status != UV_ECANCELED.rawValue, !me.isClosed { me.delegate?.streamWriteFailed(me, LoopError(code: status)) }
                } else if me.queuedBytes == 0, !me.isClosed {
                    me.delegate?.streamDrained(me)
                }
            }
        }
        if code < 0 {
            queuedBytes -= bytes.count
            Unmanaged<Write>.fromOpaque(write.request.pointee.data).release()
            failLater(code)
        }
    }

    /// A write's failure is told from the loop, never from inside the writer's own call.
    private func failLater(_ code: Int32) {
        let box = UncheckedBox(self)
        loop.post {
            guard !box.value.isClosed else { return }
            box.value.delegate?.streamWriteFailed(box.value, LoopError(code: code))
        }
    }

    /// Bytes the kernel holds that the peer has not acknowledged; shows whether a slow peer takes anything (SIOCOUTQ).
    public var unacknowledgedBytes: Int {
        var n: Int32 = 0
        return ioctl(descriptor, UInt(TIOCOUTQ), &n) == 0 ? Int(n) : 0
    }

    /// What the kernel has received and nobody has read.
    public enum Arrived: Equatable {
        case nothing
        /// So many bytes were taken into the buffer, or are there at least.
        case bytes(Int)
        /// The peer's end, or a failure.
        case end
    }

    /// Takes what has arrived, without waiting for the loop.
    public func takeArrived(into buffer: UnsafeMutableRawBufferPointer) -> Arrived {
        while true {
            let n = recv(descriptor, buffer.baseAddress, buffer.count, Int32(MSG_DONTWAIT))
            if n > 0 { return .bytes(n) }
            if n < 0, errno == EINTR { continue }
            return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? .nothing : .end
        }
    }

    /// Notices a peer that has vanished: an idle one by keep-alive probes, one that acknowledges nothing after `silentMilliseconds`.
    public func watchPeer(silentMilliseconds: Int) {
        if kind == .tcp { watchForVanishedPeer(descriptor, silentMilliseconds: silentMilliseconds) }
    }

    /// Bytes that have come and were not read yet (SIOCINQ).
    public var unreadBytes: Int {
        var n: Int32 = 0
        return ioctl(descriptor, UInt(FIONREAD), &n) == 0 ? Int(n) : 0
    }

    /// The kernel has given the connection up: its peer vanished or reset it, whether or not anybody has read of it.
    public var isLost: Bool {
        var info = tcp_info()
        var size = socklen_t(MemoryLayout<tcp_info>.size)
        guard kind == .tcp, getsockopt(descriptor, Int32(IPPROTO_TCP), TCP_INFO, &info, &size) == 0 else { return false }
        return info.tcpi_state == UInt8(TCP_CLOSE)
    }

    /// Sends our end after everything queued; reading goes on.
    public func shutdown() {
        guard !isClosed else { return }
        let request = UnsafeMutablePointer<uv_shutdown_t>.allocate(capacity: 1)
        if uv_shutdown(request, stream, { r, _ in r!.deallocate() }) < 0 { request.deallocate() }
    }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        delegate = nil
        storage.withMemoryRebound(to: uv_handle_t.self, capacity: 1) { h in
            uv_close(h) { Unmanaged<ByteStream>.fromOpaque($0!.pointee.data).release() }
        }
    }

    /// Closes with RST, so that the peer can't take a cut body for a whole one.
    public func reset() {
        guard !isClosed else { return }
        guard kind == .tcp else { return close() }
        isClosed = true
        delegate = nil
        let code = uv_tcp_close_reset(storage.assumingMemoryBound(to: uv_tcp_t.self)) {
            Unmanaged<ByteStream>.fromOpaque($0!.pointee.data).release()
        }
        if code < 0 {
            isClosed = false
            close()
        }
    }
}

/// Accepts connections on an inherited or own listening socket.
public final class Listener {
    private let storage: UnsafeMutableRawPointer
    private let kind: ByteStream.Kind
    private let loop: EventLoop
    private let accepted: (ByteStream) -> Void
    private var isClosed = false

    private var stream: UnsafeMutablePointer<uv_stream_t> { storage.assumingMemoryBound(to: uv_stream_t.self) }

    /// Takes over the bound descriptor and listens on it. `accepted` gets each connection, open and not yet reading. A client that
    /// acknowledges nothing for `silentMilliseconds` is taken for gone: connections inherit that from the listening socket (socket(7)).
    public init(
        _ loop: EventLoop, descriptor: Int32, kind: ByteStream.Kind, silentMilliseconds: Int = Limits.peerSilentMilliseconds,
        _ accepted: @escaping (ByteStream) -> Void
    ) throws(LoopError) {
        if kind == .tcp { watchForVanishedPeer(descriptor, silentMilliseconds: silentMilliseconds) }
        (self.loop, self.kind, self.accepted) = (loop, kind, accepted)
        switch kind {
        case .tcp:
            let tcp = UnsafeMutablePointer<uv_tcp_t>.allocate(capacity: 1)
            uv_tcp_init(loop.uv, tcp)
            storage = UnsafeMutableRawPointer(tcp)
            try check(uv_tcp_open(tcp, descriptor))
        case .unix:
            let pipe = UnsafeMutablePointer<uv_pipe_t>.allocate(capacity: 1)
            uv_pipe_init(loop.uv, pipe, 0)
            storage = UnsafeMutableRawPointer(pipe)
            try check(uv_pipe_open(pipe, descriptor))
        }
        stream.pointee.data = Unmanaged.passRetained(self).toOpaque()
        try check(
            uv_listen(stream, 4096) { handle, status in
                let me = Unmanaged<Listener>.fromOpaque(handle!.pointee.data).takeUnretainedValue()
                guard status == 0, !me.isClosed else { return }
                let connection = ByteStream(me.loop, me.kind)
                do throws(LoopError) {
                    try connection.accept(from: handle!)
                    me.accepted(connection)
                } catch {
                    connection.close()  // another worker took it first, or the client has gone
                }
            })
    }

    deinit { storage.deallocate() }

    /// Closes this process's descriptor; the socket itself lives on in the supervisor.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        storage.withMemoryRebound(to: uv_handle_t.self, capacity: 1) { h in
            uv_close(h) { Unmanaged<Listener>.fromOpaque($0!.pointee.data).release() }
        }
    }
}

/// Keep-alive probes for a silent connection and a limit for unacknowledged bytes (tcp(7)). Neither can fail on a TCP socket in a way that
/// matters more than serving.
private func watchForVanishedPeer(_ fd: Int32, silentMilliseconds: Int) {
    func set(_ level: Int32, _ name: Int32, _ value: Int) {
        var value = Int32(clamping: value)
        setsockopt(fd, level, name, &value, socklen_t(MemoryLayout<Int32>.size))
    }
    set(SOL_SOCKET, SO_KEEPALIVE, 1)
    set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, Limits.peerProbeAfterSeconds)
    set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, Limits.peerProbeSeconds)
    set(Int32(IPPROTO_TCP), TCP_KEEPCNT, Limits.peerProbesMax)
    set(Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, silentMilliseconds)
}
