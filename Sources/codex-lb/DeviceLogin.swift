import ArgumentParser
import HTTPWire
import JSONWire
import Loop
import Settings
import Upstream
import Vocabulary

/// A login by device code, as Codex's own client does it: the issuer gives a code, a person types it into a browser anywhere, and the issuer
/// then gives the tokens to whoever holds the other half (after RFC 8628, with OpenAI's paths).
struct DeviceLogin {
    struct Tokens {
        var access, refresh, id: String
    }

    private let origin: Origin
    private let prefix: String
    private let issuer: String
    private let clientID: String
    private let loop = EventLoop(threads: 2)
    private let pool: UpstreamPool

    init(_ settings: Settings, issuer given: String?) throws {
        var text = given ?? settings.issuer
        while text.hasSuffix("/") { text.removeLast() }
        guard let (origin, prefix) = Origin.parse(text) else {
            complain("issuer \"\(text)\": expected https://HOST[:PORT]")
            throw ExitCode(2)
        }
        (self.origin, self.prefix, issuer, clientID) = (origin, prefix, text, settings.issuerClientID)
        pool = UpstreamPool(
            loop, proxy: settings.httpsProxy, connectMilliseconds: settings.times.connect,
            connectionsMax: 16)
    }

    /// Tells where to type which code, and waits until somebody has or its time is over.
    func run(_ tell: (String) -> Void) throws -> Tokens {
        var asked: [UInt8] = Array("{\"client_id\":".utf8)
        JSONWriter.string(clientID, into: &asked)
        let start = try post("/api/accounts/deviceauth/usercode", "application/json", asked + Array("}".utf8))
        if start.status == 404 {
            throw refuse("\(issuer) does not give device codes; log in with: codex login, then codex-lb accounts import")
        }
        guard start.status == 200, let device = text(start, "device_auth_id"),
            let code = text(start, "user_code") ?? text(start, "usercode")
        else {
            throw refuse("\(issuer) gave no device code (status \(start.status))")
        }
        let lifetime = min(max(number(start, "expires_in") ?? 900, 1), 3_600)
        var interval = min(max(number(start, "interval") ?? 5, 1), 60)
        tell("Open \(issuer)/codex/device in a browser and enter the code \(code) (good for \(max(1, lifetime / 60)) minutes).")

        var poll: [UInt8] = Array("{\"device_auth_id\":".utf8)
        JSONWriter.string(device, into: &poll)
        poll += ",\"user_code\":".utf8
        JSONWriter.string(code, into: &poll)
        poll += "}".utf8
        let end = loop.now.adding(milliseconds: lifetime * 1000)
        while loop.now < end {
            wait(seconds: interval)
            let answer = try post("/api/accounts/deviceauth/token", "application/json", poll)
            if let tokens = tokens(answer) { return tokens }
            if answer.status == 200, let code = text(answer, "authorization_code"), let verifier = text(answer, "code_verifier") {
                return try exchange(code, verifier)
            }
            let error = text(answer, "error") ?? ""
            if error == "slow_down" { interval = min(60, interval + 5) }
            let isPending =
                [403, 404, 429].contains(answer.status) || answer.status >= 500 || ["authorization_pending", "slow_down"].contains(error)
            guard isPending else { throw refuse("\(issuer) ended the login: status \(answer.status) \(error)") }
        }
        throw refuse("nobody entered the code in time")
    }

    private func exchange(_ code: String, _ verifier: String) throws -> Tokens {
        let form = [
            ("grant_type", "authorization_code"), ("client_id", clientID), ("code", code), ("code_verifier", verifier),
            ("redirect_uri", issuer + "/deviceauth/callback"),
        ].map { "\($0)=\(Self.percentEncoded($1))" }.joined(separator: "&")
        let answer = try post("/oauth/token", "application/x-www-form-urlencoded", Array(form.utf8))
        guard let tokens = tokens(answer) else { throw refuse("\(issuer) gave no tokens for the code (status \(answer.status))") }
        return tokens
    }

    private func tokens(_ answer: Fetch.Answer) -> Tokens? {
        guard answer.status == 200, let access = text(answer, "access_token"), let refresh = text(answer, "refresh_token"),
            let id = text(answer, "id_token"), (access + refresh + id).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
        else { return nil }
        return Tokens(access: access, refresh: refresh, id: id)
    }

    private func text(_ answer: Fetch.Answer, _ name: StaticString) -> String? {
        let json = answer.body.span.bytes
        return JSONScan.find(json, name).flatMap { JSONScan.string(json, $0) }.flatMap { $0.isEmpty ? nil : $0 }
    }

    /// Some issuers write numbers as text.
    private func number(_ answer: Fetch.Answer, _ name: StaticString) -> Int? {
        let json = answer.body.span.bytes
        guard let place = JSONScan.find(json, name) else { return nil }
        return JSONScan.int(json, place).flatMap { Int(exactly: $0) } ?? JSONScan.string(json, place).flatMap { Int($0) }
    }

    /// RFC 3986 §2.3: everything but the unreserved characters.
    private static func percentEncoded(_ text: String) -> String {
        let digits = Array("0123456789ABCDEF".utf8)
        var out: [UInt8] = []
        for c in text.utf8 {
            let isPlain = (48...57).contains(c) || (65...90).contains(c & 0xDF) && c >= 65 && c <= 122 || [45, 46, 95, 126].contains(c)
            out += isPlain ? [c] : [37, digits[Int(c >> 4)], digits[Int(c & 15)]]
        }
        return String(decoding: out, as: UTF8.self)
    }

    private func refuse(_ why: String) -> ExitCode {
        complain(why)
        return ExitCode(1)
    }

    // MARK: The loop, one request at a time

    private func post(_ path: String, _ type: String, _ body: [UInt8]) throws -> Fetch.Answer {
        let fields: [(name: String, value: String)] = [("Content-Type", type), ("Accept", "application/json")]
        let fetch = Fetch(
            pool, Fetch.Request(.post, origin, prefix + path, fields: fields, body: body),
            bytesMax: Limits.renewalAnswerBytesMax, milliseconds: Limits.loginRequestMilliseconds)
        var result: Result<Fetch.Answer, Fetch.Problem>?
        fetch.start {
            result = $0
            loop.stop()
        }
        let timer = LoopTimer(loop) {
            pool.sweep(loop.now)
            fetch.sweep(loop.now)
        }
        timer.start(milliseconds: 50, repeating: 50)
        while result == nil { loop.run() }
        timer.close()
        do throws(Fetch.Problem) { return try result!.get() } catch { throw refuse("\(issuer): \(error.reason)") }
    }

    private func wait(seconds: Int) {
        let timer = LoopTimer(loop) { loop.stop() }
        timer.start(milliseconds: seconds * 1000)
        loop.run()
        timer.close()
    }
}
