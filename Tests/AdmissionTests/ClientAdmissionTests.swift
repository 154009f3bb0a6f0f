import Admission
import HTTPWire
import Testing
import Vocabulary

private let now = WallTime(milliseconds: 1_000_000)
private func key(models: [String]? = nil, expires: Int64? = nil, revoked: Int64? = nil) -> ClientKey {
    ClientKey(
        id: 1, name: "k", digest: [], prefix: "sk-clb-", models: models, expiresAt: expires.map { WallTime(milliseconds: $0) },
        revokedAt: revoked.map { WallTime(milliseconds: $0) }, createdAt: now)
}
private func check(local: Bool, rule: KeyRule = .auto, demanded: Bool = false, _ authorization: String?, known: ClientKey? = nil)
    -> Result<ClientKey?, ProxyError>
{
    ClientAdmission.check(Caller(isLocal: local, authorization: authorization), rule: rule, isDemandedLocally: demanded, now: now) {
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
        for (rule, local) in [(KeyRule.auto, false), (.always, false)] {
            for authorization in [nil, "Bearer", "Bearer sk-other", "Bearer sk-clb-bad", "sk-clb-good"] {
                guard case .failure(let error) = check(local: local, rule: rule, authorization, known: key()) else {
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

    @Test(
        "Who must show a key: rule, whether one was ever made, whether an address beyond loopback listens",
        arguments: [
            (KeyRule.auto, false, false, false), (.auto, true, false, true), (.auto, false, true, true), (.auto, true, true, true),
            (.always, false, false, true), (.never, true, true, false),
        ])
    func rules(_ rule: KeyRule, _ hasKeys: Bool, _ isExposed: Bool, _ demanded: Bool) {
        #expect(rule.isDemandedLocally(hasKeys: hasKeys, isExposed: isExposed) == demanded)
        let local = check(local: true, rule: rule, demanded: demanded, "Bearer other")
        #expect((try? local.get()) == nil || !demanded)
        if case .failure = local { #expect(demanded) }
        // A key of ours that is no good is refused whatever the rule.
        if case .success = check(local: true, rule: rule, demanded: demanded, "Bearer sk-clb-bad") { Issue.record("let in") }
        if case .success = check(local: false, rule: rule, demanded: demanded, nil) { #expect(rule == .never) }
    }

    @Test(
        "Names of this host, as browsers and proxies may write them",
        arguments: [
            ("localhost", true), ("LOCALHOST:2455", true), ("app.localhost", true), ("127.0.0.1", true), ("127.255.3.4:80", true),
            ("[::1]", true), ("[::1]:2455", true), ("[::ffff:127.0.0.1]:1", true), ("[::1].evil.example", false),
            ("[::1]:2455.evil.example", false), ("127.0.0.1.evil.example", false), ("localhost.evil.example", false),
            ("evil-localhost", false),
            ("127.0.0.1:80@evil", false), ("127.1", false), ("127.0.0.256", false), ("10.0.0.1", false), ("0.0.0.0", false),
            ("[::2]", false),
            ("[::1", false), ("localhost:x", false), ("", false), ("[::ffff:10.0.0.1]", false),
        ])
    func localNames(_ authority: String, _ isLocal: Bool) { #expect(Locality.isLocal(authority: authority) == isLocal) }

    private func fields(_ pairs: [(String, String)]) -> HeaderFields {
        var fields = HeaderFields()
        for (name, value) in pairs { fields.append(name, value) }
        return fields
    }

    @Test(
        "Any field that a proxy adds makes a caller indirect",
        arguments: [
            "Via", "Forwarded", "X-Forwarded-For", "x-forwarded-host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-IP",
            "True-Client-IP",
            "CF-Connecting-IP", "cf-ray", "CF-Visitor", "X-Client-IP", "X-Cluster-Client-IP", "Fastly-Client-IP", "Fly-Client-IP",
            "CDN-Loop",
            "X-Envoy-External-Address", "X-Amzn-Trace-Id", "X-Azure-ClientIP", "X-Original-Forwarded-For", "X-ProxyUser-Ip",
        ])
    func forwarded(_ name: String) {
        #expect(Locality.isDirect(fields([("Host", "localhost"), ("Accept", "*/*"), ("x-stainless-lang", "python")])))
        #expect(!Locality.isDirect(fields([("Host", "localhost"), (name, "1")])))
    }

    @Test("Pages of other origins are refused, the list's are let in and told to the browser")
    func origins() {
        let policy = OriginPolicy(allowed: ["https://chat.example", "null"])
        func verdict(_ pairs: (String, String)...) -> OriginPolicy.Verdict { policy.verdict(fields([("Host", "127.0.0.1:2455")] + pairs)) }
        #expect(verdict() == .pass)
        for site in ["none", "same-origin"] { #expect(verdict(("Sec-Fetch-Site", site)) == .pass) }
        for site in ["cross-site", "same-site", "Cross-Site", "other"] { #expect(verdict(("Sec-Fetch-Site", site)) == .refused) }
        #expect(verdict(("Origin", "http://127.0.0.1:2455")) == .pass)
        for origin in ["https://evil.example", "http://127.0.0.1:3000", "http://localhost:2455", "https://127.0.0.1:2455", "", "file://"] {
            #expect(verdict(("Origin", origin)) == .refused, "\(origin)")
        }
        #expect(verdict(("Origin", "https://Chat.example"), ("Sec-Fetch-Site", "cross-site")) == .allowed(origin: "https://Chat.example"))
        #expect(verdict(("Origin", "null")) == .allowed(origin: "null"))
        #expect(verdict(("Origin", "http://127.0.0.1:2455"), ("Origin", "https://evil.example")) == .refused)
        // A name that its owner has pointed to this host.
        #expect(OriginPolicy().verdict(fields([("Host", "evil.example"), ("Origin", "http://evil.example")])) == .refused)
    }
}
