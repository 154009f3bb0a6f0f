import ArgumentParser
import HTTPWire
import JSONWire
import Loop
import Settings
import Upstream
import Vocabulary

/// Requests of a command, one at a time: to an issuer, or to an account's upstream.
final class BlockingFetch {
    let loop = EventLoop(threads: 2)
    private let pool: UpstreamPool

    init(_ settings: Settings) {
        pool = UpstreamPool(
            loop, proxy: settings.httpsProxy, connectMilliseconds: settings.times.connect,
            connectionsMax: 16)
    }

    func perform(_ request: Fetch.Request, bytesMax: Int, milliseconds: Int) throws(Fetch.Problem) -> Fetch.Answer {
        let fetch = Fetch(pool, request, bytesMax: bytesMax, milliseconds: milliseconds)
        var result: Result<Fetch.Answer, Fetch.Problem>?
        fetch.start { [loop] in
            result = $0
            loop.stop()
        }
        let timer = LoopTimer(loop) { [loop, pool] in
            pool.sweep(loop.now)
            fetch.sweep(loop.now)
        }
        timer.start(milliseconds: 50, repeating: 50)
        while result == nil { loop.run() }
        timer.close()
        return try result!.get()
    }

    func wait(seconds: Int) {
        let timer = LoopTimer(loop) { [loop] in loop.stop() }
        timer.start(milliseconds: seconds * 1000)
        loop.run()
        timer.close()
    }
}

/// The issuer of ChatGPT logins, as a command talks to it.
struct IssuerClient {
    struct Tokens {
        var access, refresh, id: String
    }

    let issuer: String
    let clientID: String
    let fetch: BlockingFetch
    private let origin: Origin
    private let prefix: String

    /// `proxy`: what it is reached through, else as the environment says.
    init(_ settings: Settings, issuer given: String?, proxy: EgressProxy?) throws {
        var text = given ?? settings.issuer
        while text.hasSuffix("/") { text.removeLast() }
        guard let (place, prefix) = Origin.parse(text) else {
            complain("issuer \"\(text)\": expected https://HOST[:PORT]")
            throw ExitCode(2)
        }
        var origin = place
        origin.proxy = proxy
        (self.origin, self.prefix, issuer, clientID) = (origin, prefix, text, settings.issuerClientID)
        fetch = BlockingFetch(settings)
    }

    func post(_ path: String, _ type: String, _ body: [UInt8]) throws -> Fetch.Answer {
        let fields: [(name: String, value: String)] = [("Content-Type", type), ("Accept", "application/json")]
        let request = Fetch.Request(.post, origin, prefix + path, fields: fields, body: body)
        do throws(Fetch.Problem) {
            return try fetch.perform(request, bytesMax: Limits.renewalAnswerBytesMax, milliseconds: Limits.loginRequestMilliseconds)
        } catch { throw refuse("\(issuer): \(error.reason)") }
    }

    /// Tokens for the code that the issuer gave to a browser.
    func exchange(_ code: String, verifier: String, redirect: String) throws -> Tokens {
        let form = Self.form([
            ("grant_type", "authorization_code"), ("client_id", clientID), ("code", code), ("code_verifier", verifier),
            ("redirect_uri", redirect),
        ])
        let answer = try post("/oauth/token", "application/x-www-form-urlencoded", Array(form.utf8))
        guard let tokens = tokens(answer) else { throw refuse("\(issuer) gave no tokens for the code (status \(answer.status))") }
        return tokens
    }

    func tokens(_ answer: Fetch.Answer) -> Tokens? {
        guard answer.status == 200, let access = text(answer, "access_token"), let refresh = text(answer, "refresh_token"),
            let id = text(answer, "id_token"), (access + refresh + id).utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F })
        else { return nil }
        return Tokens(access: access, refresh: refresh, id: id)
    }

    func text(_ answer: Fetch.Answer, _ name: StaticString) -> String? {
        let json = answer.body.span.bytes
        return JSONScan.find(json, name).flatMap { JSONScan.string(json, $0) }.flatMap { $0.isEmpty ? nil : $0 }
    }

    func refuse(_ why: String) -> ExitCode {
        complain(why)
        return ExitCode(1)
    }

    /// `a=b&c=d`, percent-encoded.
    static func form(_ members: [(String, String)]) -> String {
        members.map { "\($0)=\(percentEncoded($1))" }.joined(separator: "&")
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
}
