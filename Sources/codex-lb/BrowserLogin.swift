import ArgumentParser
import Bytes
import HTTPWire
import Loop
import Platform
import Sealing
import Upstream
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A login by browser, as Codex's own client does it: the issuer sends the browser back to this machine with a code, which is changed for tokens
/// together with a secret that only this process has (RFC 6749 §4.1, RFC 7636). Where the browser is on another machine the address that it
/// was sent to is pasted here.
final class BrowserLogin {
    private let client: IssuerClient
    private let port: UInt16
    private let verifier = Base64.url.encode(SecureRandom.bytes(32))
    private let state = Base64.url.encode(SecureRandom.bytes(32))
    private var visitors: [ObjectIdentifier: BrowserVisitor] = [:]
    private var typed: [UInt8] = []
    private var outcome: CallbackURL.Outcome?

    private var loop: EventLoop { client.fetch.loop }
    private var redirect: String { "http://localhost:\(port)\(CallbackURL.path)" }

    init(_ client: IssuerClient, port: UInt16) { (self.client, self.port) = (client, port) }

    /// Tells which address to open, and waits until the issuer has answered or its time is over.
    func run(_ tell: (String) -> Void) throws -> IssuerClient.Tokens {
        let listener = listen(tell)
        defer {
            listener?.close()
            for visitor in visitors.values { visitor.end() }
        }
        tell("Open this in a browser: \(authorizeURL)")
        tell(
            listener == nil
                ? "When the login is done the browser shows an error; paste the address that it was sent to here."
                : "Waiting for the browser. If it runs on another machine, paste the address that it was sent to at the end here.")
        let poll = readTyped()
        defer { poll?.close() }
        let timer = LoopTimer(loop) { [unowned self] in outcome = outcome ?? .refused("nobody logged in in time") }
        timer.start(milliseconds: Limits.browserLoginMilliseconds)
        let tick = LoopTimer(loop) { [unowned self] in
            for visitor in visitors.values { visitor.sweep() }
            loop.stop()
        }
        tick.start(milliseconds: 50, repeating: 50)
        defer {
            timer.close()
            tick.close()
        }
        while outcome == nil { loop.run() }
        switch outcome {
        case .code(let code): return try client.exchange(code, verifier: verifier, redirect: redirect)
        case .refused(let why): throw client.refuse(why)
        case .ignored, nil: throw client.refuse("the login did not end")
        }
    }

    private var authorizeURL: String {
        client.issuer + "/oauth/authorize?"
            + IssuerClient.form([
                ("response_type", "code"), ("client_id", client.clientID), ("redirect_uri", redirect),
                ("scope", "openid profile email offline_access"),
                ("code_challenge", Base64.url.encode(SHA256.digest(Array(verifier.utf8)))), ("code_challenge_method", "S256"),
                ("id_token_add_organizations", "true"), ("codex_cli_simplified_flow", "true"), ("state", state),
                ("originator", "codex_chatgpt_desktop"),
            ])
    }

    // MARK: The callback

    /// Nil when the port can't be had: then the address is pasted.
    private func listen(_ tell: (String) -> Void) -> Listener? {
        do {
            let descriptor = try Sockets.listen(.tcp(host: "127.0.0.1", port: port))
            return try Listener(loop, descriptor: descriptor, kind: .tcp) { [unowned self] stream in
                guard visitors.count < Limits.browserVisitorsMax else { return stream.close() }
                let visitor = BrowserVisitor(self, stream)
                visitors[ObjectIdentifier(visitor)] = visitor
            }
        } catch {
            tell("127.0.0.1:\(port), where the browser would come back to, can't be used: \(error)")
            return nil
        }
    }

    fileprivate func gone(_ visitor: BrowserVisitor) { visitors[ObjectIdentifier(visitor)] = nil }

    /// What the browser is shown.
    fileprivate func called(_ target: String) -> (status: Int, text: String) {
        let told = CallbackURL.outcome(target, state: state)
        switch told {
        case .ignored(let why): return (why.isEmpty ? 404 : 400, why.isEmpty ? "There is nothing here." : "Refused: \(why).")
        case .code:
            // The page is to be out before the process goes on.
            loop.later { [unowned self] in outcome = outcome ?? told }
            return (200, "The login is done. This page can be closed.")
        case .refused(let why):
            loop.later { [unowned self] in outcome = outcome ?? told }
            return (200, "The login failed: \(why).")
        }
    }

    // MARK: What is pasted

    private func readTyped() -> DescriptorPoll? {
        do throws(LoopError) {
            let poll = try DescriptorPoll(loop, 0) { [unowned self] _ in if !readSome() { typedPoll?.close() } }
            typedPoll = poll
            poll.watch(.readable)
            return poll
        } catch {
            while readSome() {}  // a file can't be waited for: it is there
            return nil
        }
    }
    private var typedPoll: DescriptorPoll?

    /// False at the end.
    private func readSome() -> Bool {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let n = read(0, &buffer, buffer.count)
        if n < 0, errno == EINTR || errno == EAGAIN { return true }
        if n > 0 { typed += buffer[..<n] }
        while let end = typed.firstIndex(of: Ascii.lf) {
            let line = String(decoding: typed[..<end], as: UTF8.self)
            typed.removeSubrange(...end)
            pasted(line)
        }
        if n <= 0, !typed.isEmpty {
            pasted(String(decoding: typed, as: UTF8.self))
            typed = []
        }
        if typed.count > Limits.headBytesMax { typed = [] }  // no address is that long
        return n > 0
    }

    private func pasted(_ line: String) {
        let text = line.filter { !$0.isWhitespace }
        guard !text.isEmpty, outcome == nil else { return }
        switch CallbackURL.outcome(text, state: state) {
        case .ignored(let why): complain(why.isEmpty ? "that is not the address that the browser was sent to" : why)
        case .code(let code): outcome = .code(code)
        case .refused(let why): outcome = .refused(why)
        }
    }
}

/// The address that the issuer sends a browser to.
enum CallbackURL {
    static let path = "/auth/callback"

    enum Outcome: Equatable {
        case code(String)
        /// The issuer ends the login.
        case refused(String)
        /// It has nothing to do with this login; empty: not even with any.
        case ignored(String)
    }

    /// Of a whole URL, or of its path and query.
    static func outcome(_ text: String, state: String) -> Outcome {
        var target = text[...]
        if let scheme = target.range(of: "://") {
            let rest = target[scheme.upperBound...]
            target = rest.firstIndex(of: "/").map { rest[$0...] } ?? ""
        }
        if let fragment = target.firstIndex(of: "#") { target = target[..<fragment] }
        let parts = target.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, parts[0] == path else { return .ignored("") }
        var members: [String: String] = [:]
        for member in parts[1].split(separator: "&") {
            let pair = member.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            guard pair.count == 2, let value = decoded(pair[1]) else { continue }
            members[String(pair[0])] = value
        }
        // A page that somebody else made the browser open must not log a stranger in.
        guard members["state"] == state else { return .ignored("it belongs to another login (its state is not the one of this)") }
        if let error = members["error"] {
            let more = members["error_description"].map { ": \($0)" } ?? ""
            return .refused("the issuer ended the login: \((error + more).cut(utf8: 300).printable)")
        }
        guard let code = members["code"], !code.isEmpty else { return .ignored("it has no code") }
        return .code(code)
    }

    private static func decoded(_ text: Substring) -> String? {
        var (out, rest) = ([UInt8](), Array(text.utf8)[...])
        while let c = rest.popFirst() {
            guard c == UInt8(ascii: "%") else {
                out.append(c == UInt8(ascii: "+") ? 0x20 : c)
                continue
            }
            guard rest.count >= 2, let byte = UInt8(String(decoding: rest.prefix(2), as: UTF8.self), radix: 16) else { return nil }
            out.append(byte)
            rest = rest.dropFirst(2)
        }
        return String(validating: out, as: UTF8.self)
    }
}

extension Substring {
    /// The first occurrence.
    fileprivate func range(of text: String) -> Range<Index>? { firstRange(of: text) }
}

/// One connection of the browser.
private final class BrowserVisitor: ByteStreamDelegate {
    private unowned let login: BrowserLogin
    private let stream: ByteStream
    private var input: [UInt8] = []
    private var scanned = 0
    private var isAnswered = false
    private var endsBy: Instant

    init(_ login: BrowserLogin, _ stream: ByteStream) {
        (self.login, self.stream) = (login, stream)
        endsBy = stream.loop.now.adding(milliseconds: Limits.browserVisitorMilliseconds)
        stream.delegate = self
        stream.startReading()
    }

    func streamReceived(_ stream: ByteStream, _ bytes: UnsafeRawBufferPointer) {
        guard !isAnswered else { return }
        input += bytes
        let input = input
        do throws(WireError) {
            guard let (head, _) = try RequestHead.parse(input.span.bytes, scanned: &scanned) else {
                if input.count > Limits.headBytesMax { end() }
                return
            }
            isAnswered = true
            let (status, text) = login.called(head.target)
            var out: [UInt8] = []
            HeadWriter.status(status, into: &out)
            HeadWriter.field("Content-Type", "text/plain; charset=utf-8", into: &out)
            HeadWriter.field("Content-Length", text.utf8.count + 1, into: &out)
            HeadWriter.field("Connection", "close", into: &out)
            HeadWriter.end(into: &out)
            stream.write(out + Array(text.utf8) + [Ascii.lf])
            stream.shutdown()
            endsBy = stream.loop.now.adding(milliseconds: Limits.browserGoodbyeMilliseconds)
        } catch {
            end()
        }
    }
    func streamEnded(_ stream: ByteStream) { end() }
    func streamFailed(_ stream: ByteStream, _ error: LoopError) { end() }
    func streamDrained(_ stream: ByteStream) {}

    /// One that says nothing, or stays, must not keep the right one out.
    func sweep() { if stream.loop.now >= endsBy { end() } }

    func end() {
        stream.close()
        login.gone(self)
    }
}
