import Admission
import Testing
import Vocabulary

private let now = WallTime(milliseconds: 1_000_000)
private func key(models: [String]? = nil, expires: Int64? = nil, revoked: Int64? = nil) -> ClientKey {
    ClientKey(
        id: 1, name: "k", digest: [], prefix: "sk-clb-", models: models, expiresAt: expires.map { WallTime(milliseconds: $0) },
        revokedAt: revoked.map { WallTime(milliseconds: $0) }, createdAt: now)
}
private func check(local: Bool, forwarded: Bool = false, _ authorization: String?, known: ClientKey? = nil) -> Result<
    ClientKey?, ProxyError
> {
    ClientAdmission.check(Caller(isLocalPeer: local, isForwarded: forwarded, authorization: authorization), now: now) {
        $0 == "sk-clb-good" ? known : nil
    }
}

@Suite struct ClientAdmissionTests {
    @Test("A local caller needs no key, and some other program's key does not matter")
    func local() throws {
        #expect(try check(local: true, nil).get() == nil)
        #expect(try check(local: true, "Bearer sk-anything").get() == nil)
        #expect(try check(local: true, "Basic abc").get() == nil)
    }

    @Test("A key of ours is checked wherever it comes from")
    func ours() throws {
        #expect(try check(local: true, "Bearer sk-clb-good", known: key()).get() == key())
        #expect(try check(local: false, "bearer   sk-clb-good", known: key()).get() == key())
        #expect(throws: ProxyError.self) { try check(local: true, "Bearer sk-clb-bad").get() }
    }

    @Test("Remote and forwarded callers need a good key: 401 invalid_api_key")
    func remote() {
        for (forwarded, local) in [(false, false), (true, true)] {
            for authorization in [nil, "Bearer", "Bearer sk-other", "Bearer sk-clb-bad", "sk-clb-good"] {
                guard case .failure(let error) = check(local: local, forwarded: forwarded, authorization, known: key()) else {
                    Issue.record("let in: \(authorization ?? "nothing")")
                    continue
                }
                #expect(error.status == 401 && error.code == "invalid_api_key" && error.type == "authentication_error")
            }
        }
    }

    @Test("Expired and revoked keys are refused")
    func ended() {
        #expect(throws: ProxyError.self) { try check(local: false, "Bearer sk-clb-good", known: key(expires: 1_000_000)).get() }
        #expect(throws: ProxyError.self) { try check(local: false, "Bearer sk-clb-good", known: key(revoked: 1)).get() }
        #expect(throws: Never.self) { try check(local: false, "Bearer sk-clb-good", known: key(expires: 1_000_001)).get() }
    }

    @Test("A key with a list of models may ask for those only")
    func models() {
        #expect(ClientAdmission.checkModel("a", key: nil) == nil)
        #expect(ClientAdmission.checkModel("a", key: key()) == nil)
        #expect(ClientAdmission.checkModel("a", key: key(models: ["a", "b"])) == nil)
        #expect(ClientAdmission.checkModel("c", key: key(models: ["a", "b"]))?.code == "model_not_allowed")
        #expect(ClientAdmission.checkModel("c", key: key(models: []))?.status == 403)
    }
}
