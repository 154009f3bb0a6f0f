internal import COpenSSL

/// A TLS failure in words.
public struct TLSError: Error, Sendable, CustomStringConvertible {
    public var description: String
    /// The peer's certificate is not trusted, as opposed to a broken handshake.
    public var isUntrusted: Bool

    static func last(_ what: String) -> TLSError {
        var text = [CChar](repeating: 0, count: 256)
        let code = ERR_get_error()
        guard code != 0 else { return TLSError(description: what, isUntrusted: false) }
        ERR_error_string_n(code, &text, text.count)
        ERR_clear_error()
        let words = String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        return TLSError(description: "\(what): \(words)", isUntrusted: false)
    }
}

/// What client connections share: trust, versions. One per process.
public final class TLSContext {
    let raw: OpaquePointer

    /// Trusts the system's certificates, or those of `$SSL_CERT_FILE` and `$SSL_CERT_DIR`, which OpenSSL reads itself. TLS 1.2 or newer.
    public init() throws(TLSError) {
        guard let ctx = SSL_CTX_new(TLS_client_method()) else { throw TLSError.last("TLS could not be set up") }
        raw = ctx
        SSL_CTX_ctrl(ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, Int(TLS1_2_VERSION), nil)
        // Sessions are kept by origin, in `TLSSession`: a second copy of each here would only grow.
        SSL_CTX_ctrl(ctx, SSL_CTRL_SET_SESS_CACHE_MODE, Int(SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL_STORE), nil)
        SSL_CTX_ctrl(ctx, SSL_CTRL_MODE, Int(SSL_MODE_ENABLE_PARTIAL_WRITE) | Int(SSL_MODE_RELEASE_BUFFERS), nil)
        SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, nil)
        guard SSL_CTX_set_default_verify_paths(ctx) == 1 else { throw TLSError.last("the trusted certificates could not be read") }
    }

    deinit { SSL_CTX_free(raw) }
}

/// A session that a later connection to the same origin may resume.
public final class TLSSession {
    let raw: OpaquePointer
    init(_ raw: OpaquePointer) { self.raw = raw }
    deinit { SSL_SESSION_free(raw) }
}

/// One client connection's TLS over memory BIOs: ciphertext in, plaintext out, and back. Knows nothing of sockets.
public final class TLSClient {
    private let ssl: OpaquePointer
    private let incoming: OpaquePointer
    private let outgoing: OpaquePointer
    public private(set) var isEstablished = false
    /// The peer sent close_notify: what came before is complete.
    public private(set) var isPeerClosed = false

    /// `host` is verified against the certificate, and sent as SNI unless it is an address.
    public init(_ context: TLSContext, host: String, isAddress: Bool, resuming session: TLSSession?) throws(TLSError) {
        guard let ssl = SSL_new(context.raw), let incoming = BIO_new(BIO_s_mem()), let outgoing = BIO_new(BIO_s_mem()) else {
            throw TLSError.last("TLS could not be set up")
        }
        (self.ssl, self.incoming, self.outgoing) = (ssl, incoming, outgoing)
        SSL_set_bio(ssl, incoming, outgoing)  // owns both from here on
        SSL_set_connect_state(ssl)
        if isAddress {
            X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), host)
        } else {
            SSL_set1_host(ssl, host)
            _ = host.withCString {
                SSL_ctrl(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, Int(TLSEXT_NAMETYPE_host_name), UnsafeMutableRawPointer(mutating: $0))
            }
        }
        if let session { SSL_set_session(ssl, session.raw) }
    }

    deinit {
        // SSL_free marks the session of a connection without close_notify as not to be resumed (SSL_set_shutdown(3)). A session that
        // must not be used again is marked by the fatal alert itself.
        SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
        SSL_free(ssl)
    }

    /// Goes on with the handshake; true once it is done. Afterwards send what `takeOutgoing` gives.
    public func handshake() throws(TLSError) -> Bool {
        if isEstablished { return true }
        ERR_clear_error()  // SSL_get_error reads the thread's queue, where another call may have left something
        let n = SSL_do_handshake(ssl)
        if n == 1 {
            isEstablished = true
            return true
        }
        switch SSL_get_error(ssl, n) {
        case SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE: return false
        default:
            let verify = SSL_get_verify_result(ssl)
            if verify != Int(X509_V_OK) {
                ERR_clear_error()
                throw TLSError(description: String(cString: X509_verify_cert_error_string(verify)), isUntrusted: true)
            }
            throw TLSError.last("TLS handshake failed")
        }
    }

    /// Takes ciphertext from the network.
    public func receive(_ bytes: UnsafeRawBufferPointer) {
        _ = BIO_write(incoming, bytes.baseAddress, Int32(bytes.count))
    }

    /// Ciphertext has come, or plaintext of it is there, that `read` has not seen.
    public var hasPending: Bool { BIO_ctrl_pending(incoming) > 0 || SSL_has_pending(ssl) == 1 }

    /// Decrypts into `buffer`: the count, or 0 when more ciphertext is needed or the peer closed.
    public func read(into buffer: UnsafeMutableRawBufferPointer) throws(TLSError) -> Int {
        ERR_clear_error()
        let n = SSL_read(ssl, buffer.baseAddress, Int32(buffer.count))
        if n > 0 { return Int(n) }
        switch SSL_get_error(ssl, n) {
        case SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE: return 0
        case SSL_ERROR_ZERO_RETURN:
            isPeerClosed = true
            return 0
        default: throw TLSError.last("TLS connection broken")
        }
    }

    /// Encrypts all of `bytes`; the result is in `takeOutgoing`.
    public func write(_ bytes: UnsafeRawBufferPointer) throws(TLSError) {
        var sent = 0
        while sent < bytes.count {
            let n = SSL_write(ssl, bytes.baseAddress! + sent, Int32(min(bytes.count - sent, 1 << 20)))
            if n <= 0 { throw TLSError.last("TLS connection broken") }  // a memory BIO never asks to wait
            sent += Int(n)
        }
    }

    /// Ciphertext for the network.
    public func takeOutgoing() -> [UInt8] {
        let pending = Int(BIO_ctrl_pending(outgoing))
        if pending == 0 { return [] }
        return [UInt8](unsafeUninitializedCapacity: pending) { buffer, count in
            count = max(0, Int(BIO_read(outgoing, buffer.baseAddress, Int32(pending))))
        }
    }

    /// The session to resume next time; nil if the server gave none that can be.
    public func session() -> TLSSession? {
        guard isEstablished, let raw = SSL_get1_session(ssl) else { return nil }
        guard SSL_SESSION_is_resumable(raw) == 1 else {
            SSL_SESSION_free(raw)
            return nil
        }
        return TLSSession(raw)
    }

    public var isResumed: Bool { SSL_session_reused(ssl) == 1 }
    /// `TLSv1.3`
    public var version: String { String(cString: SSL_get_version(ssl)) }
}
