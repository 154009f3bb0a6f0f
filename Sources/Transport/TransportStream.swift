public import Loop
public import TLS
internal import Vocabulary

/// Hears of one transport. Calls come on the loop's thread, never from inside a call to the transport, but for `resume`.
public protocol TransportDelegate: AnyObject {
    /// The handshake is done; nothing has been read of what may stand behind it.
    func transportSecured()
    /// Plaintext; lives only during the call.
    func transportReceived(_ bytes: RawSpan)
    /// What one read brought has all been given.
    func transportPaused()
    /// The peer's end. `isWhole`: it said so itself; a bare end under TLS may be a cut.
    func transportEnded(isWhole: Bool)
    /// Nothing more can be read. `isResetAfterEnd`: the peer had sent its end before.
    func transportFailed(_ why: TransportFailure)
    /// Nothing more can be written; what the peer has sent may still be read.
    func transportWriteFailed(_ why: String)
    /// Everything written has been taken by the kernel, after it once had not.
    func transportDrained()
}

public struct TransportFailure: Error, Sendable, CustomStringConvertible {
    public var description: String
    /// The peer had sent its end before.
    public var isResetAfterEnd = false
    /// Its certificate is not trusted.
    public var isUntrusted = false
}

/// A byte stream, plain or with TLS over it. Whoever uses it sees plaintext, and none of it while the stream is paused.
public final class TransportStream: ByteStreamDelegate {
    public let stream: ByteStream
    public var delegate: (any TransportDelegate)?
    private var tls: TLSClient?
    /// Of a proxy on the way, which the other one's records travel in.
    private var outer: TLSClient?
    private var isPaused = true
    /// Bytes given to the socket since `countFromHere`, as they travel.
    public private(set) var sentBytes = 0
    /// Where TLS records are decrypted into; the caller's, lives only during a callback.
    private let buffer: UnsafeMutableRawBufferPointer
    private var isEndTold = false

    /// Takes over a connected stream; nothing is read before `resume`. `buffer` is shared by the streams of one loop.
    public init(_ stream: ByteStream, buffer: UnsafeMutableRawBufferPointer) {
        (self.stream, self.buffer) = (stream, buffer)
        stream.delegate = self
    }

    public var loop: EventLoop { stream.loop }
    public var isSecure: Bool { tls != nil }
    public var session: TLSSession? { tls?.session() }
    /// Bytes that the kernel has not taken yet.
    public var queuedBytes: Int { stream.queuedBytes }
    public var unacknowledgedBytes: Int { stream.unacknowledgedBytes }
    /// What has been read from the socket may still hold plaintext that nobody has seen.
    public var hasUnseen: Bool { tls?.hasPending ?? false }

    // MARK: TLS

    /// Begins the handshake; `transportSecured` or `transportFailed` follows. Once the stream is secure: another one inside it.
    public func secure(_ tls: TLSClient) {
        (outer, self.tls) = (self.tls, tls)
        resume()
        shake(tls)
    }

    private func shake(_ tls: TLSClient) {
        let isDone: Bool
        do throws(TLSError) { isDone = try tls.handshake() } catch {
            send(tls.takeOutgoing())  // the alert
            return fail(error)
        }
        send(tls.takeOutgoing())
        guard isDone else { return }
        pause()
        delegate?.transportSecured()
    }

    private func fail(_ error: TLSError) {
        delegate?.transportFailed(TransportFailure(description: error.description, isUntrusted: error.isUntrusted))
    }

    private func send(_ records: [UInt8]) {
        guard !records.isEmpty else { return }
        var bytes = records
        if let outer {
            let problem = records.withUnsafeBytes { records -> TLSError? in
                do throws(TLSError) { try outer.write(records) } catch { return error }
                return nil
            }
            if let problem { return fail(problem) }
            bytes = outer.takeOutgoing()
        }
        sentBytes += bytes.count
        stream.write(bytes)
    }

    /// Gives what has come to the innermost TLS.
    private func take(_ bytes: UnsafeRawBufferPointer, _ tls: TLSClient) throws(TLSError) {
        guard let outer else { return tls.receive(bytes) }
        outer.receive(bytes)
        while case let count = try outer.read(into: buffer), count > 0 {
            tls.receive(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
        let records = outer.takeOutgoing()  // key updates
        if !records.isEmpty { stream.write(records) }
    }

    // MARK: Use

    public func countFromHere() { sentBytes = 0 }

    /// Writes; what the kernel does not take at once is queued.
    public func write(_ bytes: RawSpan) throws(TransportFailure) {
        guard let tls else {
            sentBytes += bytes.byteCount
            return bytes.withUnsafeBytes { stream.write($0) }
        }
        let problem = bytes.withUnsafeBytes { bytes -> TLSError? in
            do throws(TLSError) { try tls.write(bytes) } catch { return error }
            return nil
        }
        if let problem { throw TransportFailure(description: problem.description) }
        send(tls.takeOutgoing())
    }

    public func pause() {
        isPaused = true
        stream.stopReading()
    }

    /// What was read and not seen comes first, at once; then the network.
    public func resume() {
        guard isPaused, !stream.isClosed else { return }
        isPaused = false
        if let tls, tls.isEstablished, tls.hasPending {
            read(tls)
            delegate?.transportPaused()
            endWithProxy()
        }
        if !isPaused { stream.startReading() }
    }

    /// Looks at the socket of a stream that has nothing to say but TLS's own records. False: the peer has ended it, or sent bytes.
    public func isQuiet() -> Bool {
        guard !stream.isClosed else { return false }
        // Records that came with the handshake's last one are with OpenSSL already.
        if let tls, !isQuiet(tls) { return false }
        return withUnsafeTemporaryAllocation(byteCount: 8 * 1024, alignment: 16) { buffer in
            while true {
                switch stream.takeArrived(into: buffer) {
                case .nothing: return true
                case .bytes(let count):
                    guard let tls else { return false }
                    do throws(TLSError) { try take(UnsafeRawBufferPointer(rebasing: buffer[..<count]), tls) } catch { return false }
                    if !isQuiet(tls) || outer?.isPeerClosed == true { return false }
                case .end: return false
                }
            }
        }
    }

    private func isQuiet(_ tls: TLSClient) -> Bool {
        guard tls.hasPending else { return true }
        do throws(TLSError) { if try tls.read(into: buffer) > 0 { return false } } catch { return false }
        send(tls.takeOutgoing())  // key updates
        return !tls.isPeerClosed
    }

    public func close() {
        delegate = nil
        (tls, outer) = (nil, nil)
        stream.close()
    }

    // MARK: ByteStreamDelegate

    public func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        guard let tls else {
            delegate?.transportReceived(bytes.bytes)
            delegate?.transportPaused()
            return
        }
        do throws(TLSError) { try take(bytes, tls) } catch { return fail(error) }
        guard tls.isEstablished else { return shake(tls) }
        read(tls)
        delegate?.transportPaused()
        endWithProxy()
    }

    /// The proxy's end is the stream's, when all that came before it has been seen.
    private func endWithProxy() {
        guard let outer, outer.isPeerClosed, !isPaused, !stream.isClosed else { return }
        end(isWhole: tls?.isPeerClosed ?? false)
    }

    private func read(_ tls: TLSClient) {
        while !isPaused, !stream.isClosed, self.tls === tls {
            let count: Int
            do throws(TLSError) { count = try tls.read(into: buffer) } catch { return fail(error) }
            if count == 0 { break }
            delegate?.transportReceived(UnsafeRawBufferPointer(rebasing: buffer[..<count]).bytes)
        }
        guard !stream.isClosed, self.tls === tls else { return }  // else it has become the outer one meanwhile
        send(tls.takeOutgoing())  // key updates
        if tls.isPeerClosed { end(isWhole: true) }
    }

    private func end(isWhole: Bool) {
        guard !isEndTold else { return }
        isEndTold = true
        delegate?.transportEnded(isWhole: isWhole)
    }

    public func streamEnded(_ stream: ByteStream) { end(isWhole: tls == nil) }
    public func streamFailed(_ stream: ByteStream, _ error: LoopError) {
        delegate?.transportFailed(TransportFailure(description: error.description, isResetAfterEnd: error.isResetAfterEnd))
    }
    public func streamWriteFailed(_ stream: ByteStream, _ error: LoopError) { delegate?.transportWriteFailed(error.description) }
    public func streamDrained(_ stream: ByteStream) { delegate?.transportDrained() }
}
