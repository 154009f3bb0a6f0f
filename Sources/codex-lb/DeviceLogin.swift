import ArgumentParser
import JSONWire
import Loop
import Upstream
import Vocabulary

/// A login by device code, as Codex's own client does it: the issuer gives a code, a person types it into a browser anywhere, and the issuer
/// then gives the tokens to whoever holds the other half (after RFC 8628, with OpenAI's paths).
struct DeviceLogin {
    private let client: IssuerClient
    private var issuer: String { client.issuer }

    init(_ client: IssuerClient) { self.client = client }

    /// Tells where to type which code, and waits until somebody has or its time is over.
    func run(_ tell: (String) -> Void) throws -> IssuerClient.Tokens {
        var asked: [UInt8] = Array("{\"client_id\":".utf8)
        JSONWriter.string(client.clientID, into: &asked)
        let start = try client.post("/api/accounts/deviceauth/usercode", "application/json", asked + Array("}".utf8))
        if start.status == 404 {
            throw client.refuse("\(issuer) does not give device codes; log in with: codex-lb accounts login --browser")
        }
        guard start.status == 200, let device = client.text(start, "device_auth_id"),
            let code = client.text(start, "user_code") ?? client.text(start, "usercode")
        else {
            throw client.refuse("\(issuer) gave no device code (status \(start.status))")
        }
        let lifetime = min(max(number(start, "expires_in") ?? 900, 1), 3_600)
        var interval = min(max(number(start, "interval") ?? 5, 1), 60)
        tell("Open \(issuer)/codex/device in a browser and enter the code \(code) (good for \(max(1, lifetime / 60)) minutes).")

        var poll: [UInt8] = Array("{\"device_auth_id\":".utf8)
        JSONWriter.string(device, into: &poll)
        poll += ",\"user_code\":".utf8
        JSONWriter.string(code, into: &poll)
        poll += "}".utf8
        let end = client.fetch.loop.now.adding(milliseconds: lifetime * 1000)
        while client.fetch.loop.now < end {
            client.fetch.wait(seconds: interval)
            let answer = try client.post("/api/accounts/deviceauth/token", "application/json", poll)
            if let tokens = client.tokens(answer) { return tokens }
            if answer.status == 200, let code = client.text(answer, "authorization_code"),
                let verifier = client.text(answer, "code_verifier")
            {
                return try client.exchange(code, verifier: verifier, redirect: issuer + "/deviceauth/callback")
            }
            let error = client.text(answer, "error") ?? ""
            if error == "slow_down" { interval = min(60, interval + 5) }
            let isPending =
                [403, 404, 429].contains(answer.status) || answer.status >= 500 || ["authorization_pending", "slow_down"].contains(error)
            guard isPending else { throw client.refuse("\(issuer) ended the login: status \(answer.status) \(error)") }
        }
        throw client.refuse("nobody entered the code in time")
    }

    /// Some issuers write numbers as text.
    private func number(_ answer: Fetch.Answer, _ name: StaticString) -> Int? {
        let json = answer.body.span.bytes
        guard let place = JSONScan.find(json, name) else { return nil }
        return JSONScan.int(json, place).flatMap { Int(exactly: $0) } ?? JSONScan.string(json, place).flatMap { Int($0) }
    }
}
