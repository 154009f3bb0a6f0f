import Bytes
import Sealing
import Testing

#if canImport(Glibc)
    import Glibc
#endif

@Suite struct SealingTests {
    let key = SealingKey(Array(0..<32))

    @Test("What is sealed opens again, in its own place and under its own key only")
    func bound() throws {
        let plain = Array("sk-secret".utf8)
        let sealed = try key.seal(plain, context: "accounts|1|credentials|1")
        #expect(try key.open(sealed, context: "accounts|1|credentials|1") == plain)
        #expect(sealed.count == 1 + 8 + 12 + plain.count + 16)
        for other in ["accounts|2|credentials|1", "accounts|1|name|1", ""] {
            #expect(throws: SealingError.self) { try key.open(sealed, context: other) }
        }
        for i in sealed.indices {
            var damaged = sealed
            damaged[i] ^= 1
            #expect(throws: SealingError.self) { try key.open(damaged, context: "accounts|1|credentials|1") }
        }
        do {
            _ = try SealingKey.random().open(sealed, context: "accounts|1|credentials|1")
            Issue.record("opened with another key")
        } catch { #expect(error.kind == .wrongKey) }
        #expect(try key.seal(plain, context: "x") != key.seal(plain, context: "x"))
        #expect(try key.open(key.seal([], context: "e"), context: "e") == [])
    }

    @Test("HMAC-SHA-256 is RFC 4231's, and base64url is RFC 4648's")
    func vectors() {
        let mac = HMAC.sha256(key: Array("Jefe".utf8), message: Array("what do ya want for nothing?".utf8))
        #expect(mac.prefix(4) == [0x5B, 0xDC, 0xC1, 0x46] && mac.suffix(2) == [0x38, 0x43])
        #expect(HMAC.equal(mac, mac) && !HMAC.equal(mac, Array(mac.dropLast())) && !HMAC.equal(mac, mac.reversed()))
        #expect(Base64.url.encode([0xFB, 0xFF, 0xFE]) == "-__-")
        #expect(Base64.url.encode(Array("fooba".utf8)) == "Zm9vYmE")
        #expect(Base64.url.decode("Zm9vYmE=") == Array("fooba".utf8))
        #expect(Base64.url.decode("Zm+v") == nil)
        #expect(Base64.url.encode(SecureRandom.bytes(32)).utf8.count == 43)
    }

    @Test("The key file is made once, for its owner alone; one that others can read is refused")
    func file() throws {
        let path = "/tmp/codexlb-key-\(getpid())-\(Int.random(in: 0..<1 << 40))"
        defer { unlink(path) }
        #expect(try KeyFile.load(path: path) == nil)
        let made = try KeyFile.loadOrCreate(path: path)
        var info = stat()
        #expect(stat(path, &info) == 0 && info.st_mode & 0o777 == 0o600)
        #expect(try KeyFile.loadOrCreate(path: path).fingerprint == made.fingerprint)
        chmod(path, 0o640)
        do {
            _ = try KeyFile.loadOrCreate(path: path)
            Issue.record("took a key that the group can read")
        } catch { #expect(error.description.contains("chmod 600")) }
    }

    @Test("SHA-256 gives the challenge of RFC 7636 Appendix B")
    func challenge() {
        let digest = SHA256.digest(Array("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".utf8))
        #expect(Base64.url.encode(digest) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")
    }
}
