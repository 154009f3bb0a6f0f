import Bytes
internal import COpenSSL

/// Why something could not be sealed, opened or keyed: one line that says what, where and what to do. Holds no secret.
public struct SealingError: Error, Equatable, Sendable, CustomStringConvertible {
    public enum Kind: Sendable, Equatable { case keyFile, wrongKey, damaged, library }
    public var kind: Kind
    public var description: String
    init(_ kind: Kind, _ text: String) { (self.kind, description) = (kind, text) }
}

/// Random bytes from OpenSSL's generator.
public enum SecureRandom {
    public static func bytes(_ count: Int) -> [UInt8] {
        var out = [UInt8](repeating: 0, count: count)
        precondition(RAND_bytes(&out, Int32(count)) == 1, "the system has no random bytes")
        return out
    }
}

public enum SHA256 {
    /// FIPS 180-4: 32 bytes.
    public static func digest(_ message: [UInt8]) -> [UInt8] {
        var out = [UInt8](repeating: 0, count: 32)
        var count: UInt32 = 0
        precondition(EVP_Digest(message, message.count, &out, &count, EVP_sha256(), nil) == 1 && count == 32, "SHA-256 failed")
        return out
    }
}

public enum HMAC {
    /// HMAC-SHA-256 (RFC 2104): 32 bytes.
    public static func sha256(key: [UInt8], message: [UInt8]) -> [UInt8] {
        var out = [UInt8](repeating: 0, count: 32)
        var count: UInt32 = 0
        let done = COpenSSL.HMAC(EVP_sha256(), key, Int32(key.count), message, message.count, &out, &count)
        precondition(done != nil && count == 32, "HMAC-SHA-256 failed")
        return out
    }

    /// Compares without telling by its time where the difference is. Different lengths are unequal at once.
    public static func equal(_ a: [UInt8], _ b: [UInt8]) -> Bool { a.count == b.count && CRYPTO_memcmp(a, b, a.count) == 0 }
}

/// The key of everything sealed at rest. Sealing is AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce.
///
/// ```
/// version 1 │ key id, 8 bytes │ nonce, 12 bytes │ ciphertext │ tag, 16 bytes
/// ```
/// The context names the place (`table|row id|column|version`) and is authenticated: a value moved to another row or column does not open.
public struct SealingKey: Sendable, CustomStringConvertible {
    public static let byteCount = 32
    private static let version: UInt8 = 1
    private static let (idBytes, nonceBytes, tagBytes) = (8, 12, 16)
    private static var headBytes: Int { 1 + idBytes + nonceBytes }

    private let bytes: [UInt8]
    private let id: [UInt8]

    public init(_ bytes: [UInt8]) {
        precondition(bytes.count == Self.byteCount)
        self.bytes = bytes
        id = Array(HMAC.sha256(key: bytes, message: Array("codex-lb key fingerprint".utf8)).prefix(Self.idBytes))
    }

    public static func random() -> SealingKey { SealingKey(SecureRandom.bytes(byteCount)) }

    /// Sixteen hex digits to recognise the key by; they tell nothing about it.
    public var fingerprint: String { Self.hex(id) }
    public var description: String { "SealingKey(\(fingerprint))" }
    var text: String { Base64.url.encode(bytes) }

    private static func hex(_ bytes: some Sequence<UInt8>) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }

    public func seal(_ plain: [UInt8], context: String) throws(SealingError) -> [UInt8] {
        let nonce = SecureRandom.bytes(Self.nonceBytes)
        let sealed = crypt(plain, nonce: nonce, context: context, tag: nil)
        guard let sealed else { throw SealingError(.library, "AES-256-GCM failed to seal \(context)") }
        return [Self.version] + id + nonce + sealed
    }

    public func open(_ sealed: [UInt8], context: String) throws(SealingError) -> [UInt8] {
        guard sealed.count >= Self.headBytes + Self.tagBytes, sealed[0] == Self.version else {
            throw SealingError(.damaged, "the sealed value of \(context) is no sealed value of this program (\(sealed.count) bytes)")
        }
        let theirs = sealed[1..<1 + Self.idBytes]
        guard Array(theirs) == id else {
            throw SealingError(
                .wrongKey, "the sealed value of \(context) needs the encryption key \(Self.hex(theirs)), this one is \(fingerprint)")
        }
        let nonce = Array(sealed[1 + Self.idBytes..<Self.headBytes])
        let cipher = Array(sealed[Self.headBytes..<sealed.count - Self.tagBytes])
        guard let plain = crypt(cipher, nonce: nonce, context: context, tag: Array(sealed.suffix(Self.tagBytes))) else {
            throw SealingError(.damaged, "the sealed value of \(context) is damaged or belongs to another place")
        }
        return plain
    }

    /// With a tag: opens. Without: seals and appends the tag. Nil when the tag does not hold.
    private func crypt(_ input: [UInt8], nonce: [UInt8], context: String, tag: [UInt8]?) -> [UInt8]? {
        guard let state = EVP_CIPHER_CTX_new() else { return nil }
        defer { EVP_CIPHER_CTX_free(state) }
        let encrypting: Int32 = tag == nil ? 1 : 0
        guard EVP_CipherInit_ex(state, EVP_aes_256_gcm(), nil, bytes, nonce, encrypting) == 1 else { return nil }
        let associated = Array(context.utf8)
        var count: Int32 = 0
        guard EVP_CipherUpdate(state, nil, &count, associated, Int32(associated.count)) == 1 else { return nil }
        var out = [UInt8](repeating: 0, count: input.count + 16)
        var written: Int32 = 0
        guard EVP_CipherUpdate(state, &out, &written, input, Int32(input.count)) == 1 else { return nil }
        if var tag {
            guard EVP_CIPHER_CTX_ctrl(state, EVP_CTRL_AEAD_SET_TAG, Int32(Self.tagBytes), &tag) == 1 else { return nil }
        }
        var last = [UInt8](repeating: 0, count: 16)
        guard EVP_CipherFinal_ex(state, &last, &count) == 1 else { return nil }
        out.removeSubrange(Int(written)...)
        if tag == nil {
            var made = [UInt8](repeating: 0, count: Self.tagBytes)
            guard EVP_CIPHER_CTX_ctrl(state, EVP_CTRL_AEAD_GET_TAG, Int32(Self.tagBytes), &made) == 1 else { return nil }
            out += made
        }
        return out
    }
}
