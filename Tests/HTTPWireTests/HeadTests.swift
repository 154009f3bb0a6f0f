import Testing
import Vocabulary

@testable import HTTPWire

/// Goal: a head means the same however the network cut it, and nothing ambiguous is taken.
@Suite struct HeadTests {
    static let accepted = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET /v1/models?x=1&y HTTP/1.1\r\nhOsT:a.example:80\r\nAccept: */*  \r\nX-Empty:\r\n\r\nrest",
        "POST /v1/responses HTTP/1.1\r\nHost: [::1]:8080\r\nContent-Length: 12\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        "GET http://a.example/x?y HTTP/1.1\r\nHost: A.example\r\n\r\n",
        "GET http://a?y HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n",
        "BREW /pot HTTP/1.1\r\nHost: a\r\nx: \u{e9}\ttab\r\n\r\n",
    ]

    static let refused: [(Int, String)] = [
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{b}chunked\r\n\r\n"),
        (400, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\tfolded\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\t: 1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n"),
        (400, "GET / HTTP/1.1\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n\n"),
        (400, "GET / HTTP/1.1\n\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: \u{0}\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: \u{1}\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX: \u{7f}\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX@Y: 1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nX\u{e9}: 1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
        (400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        (400, "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET http://a:80/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /# HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        (400, "GET /\r\nHost: a\r\n\r\n"),
        (400, "GET\r\n\r\n"),
        (400, " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "G@T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/11\r\nHost: a\r\n\r\n"),
        (400, "GET / http/1.1\r\nHost: a\r\n\r\n"),
        (400, "GET / HTTP/1.1x\r\nHost: a\r\n\r\n"),
        (505, "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (505, "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        (505, "GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
        (501, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (417, "GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n"),
        (417, "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x\r\n\r\n"),
        (414, "GET /" + String(repeating: "a", count: Limits.requestLineBytesMax) + " HTTP/1.1\r\nHost: a\r\n\r\n"),
        (431, "GET / HTTP/1.1\r\nHost: a\r\nX: " + String(repeating: "a", count: Limits.headBytesMax) + "\r\n\r\n"),
        (431, "GET / HTTP/1.1\r\nHost: a\r\n" + String(repeating: "X: 1\r\n", count: Limits.headerFieldsMax) + "\r\n"),
    ]

    @Test(arguments: refused) func refusesAmbiguousHeads(status: Int, head: String) {
        guard case .refused(let error) = request(head) else {
            Issue.record("taken or incomplete: \(head.debugDescription)")
            return
        }
        #expect(error.status == status, "\(error.reason)")
        // However it is cut, it is refused with the same words.
        let all = bytes(head)
        #expect(request(all, prefixes: Array(0...all.count)) == .refused(error))
    }

    @Test(arguments: accepted) func meansTheSameHoweverItIsCut(head: String) {
        let all = bytes(head)
        let whole = request(head)
        guard case .parsed = whole else {
            Issue.record("not taken: \(whole)")
            return
        }
        #expect(request(all, prefixes: Array(0...all.count)) == whole)
        for cut in 0...all.count { #expect(request(all, prefixes: [cut, all.count]) == whole) }
    }

    @Test func readsWhatWasSent() {
        guard case .parsed(let first) = request(Self.accepted[1]) else { return #expect(Bool(false)) }
        #expect(first.method == "GET")
        #expect(first.target == "/v1/models?x=1&y")
        #expect(first.fields == ["hOsT: a.example:80", "Accept: */*", "X-Empty: "])
        #expect(first.keepsAlive)
        #expect(first.consumed == Self.accepted[1].utf8.count - 4)
        guard case .parsed(let second) = request(Self.accepted[2]) else { return #expect(Bool(false)) }
        #expect(second.framing == .length(12))
        #expect(second.expectsContinue)
        #expect(!second.keepsAlive)
        guard case .parsed(let third) = request(Self.accepted[3]) else { return #expect(Bool(false)) }
        #expect(third.framing == .chunked)
        guard case .parsed(let absolute) = request(Self.accepted[4]) else { return #expect(Bool(false)) }
        #expect(absolute.target == "/x?y")
        guard case .parsed(let bare) = request(Self.accepted[5]) else { return #expect(Bool(false)) }
        #expect(bare.target == "/?y")
        guard case .parsed(let old) = request(Self.accepted[8]) else { return #expect(Bool(false)) }
        #expect(old.keepsAlive && !old.expectsContinue)
    }

    @Test func splitsThePathFromTheQuery() throws {
        let input = bytes("GET /a/b?c=?d HTTP/1.1\r\nHost: a\r\n\r\n")
        var scanned = 0
        let head = try whole(RequestHead.parse(input.span.bytes, scanned: &scanned)?.head)
        #expect(head.path == "/a/b")
        #expect(head.query == "c=?d")
    }

    @Test func limitsAreExact() {
        let line = "GET / HTTP/1.1\r\n"
        let fill = Limits.requestLineBytesMax - (line.utf8.count - 2)
        func withTarget(_ n: Int) -> String { "GET /" + String(repeating: "a", count: n) + " HTTP/1.1\r\nHost: a\r\n\r\n" }
        guard case .parsed = request(withTarget(fill)) else { return #expect(Bool(false)) }
        guard case .refused = request(withTarget(fill + 1)) else { return #expect(Bool(false)) }
        let frame = line + "Host: a\r\nX: \r\n\r\n"
        func withValue(_ n: Int) -> String { line + "Host: a\r\nX: " + String(repeating: "a", count: n) + "\r\n\r\n" }
        let room = Limits.headBytesMax - frame.utf8.count
        guard case .parsed = request(withValue(room)) else { return #expect(Bool(false)) }
        guard case .refused = request(withValue(room + 1)) else { return #expect(Bool(false)) }
        let many = line + "Host: a\r\n" + String(repeating: "X: 1\r\n", count: Limits.headerFieldsMax - 1) + "\r\n"
        guard case .parsed = request(many) else { return #expect(Bool(false)) }
    }

    @Test(arguments: [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 404 Not \u{e9} Found\r\n\r\n",
        "HTTP/1.1 204 \r\nServer: x\r\n\r\n",
    ]) func responsesMeanTheSameHoweverTheyAreCut(head: String) {
        let all = bytes(head)
        let whole = response(all, prefixes: [all.count])
        guard case .parsed = whole else {
            Issue.record("not taken: \(whole)")
            return
        }
        #expect(response(all, prefixes: Array(0...all.count)) == whole)
        for cut in 0...all.count { #expect(response(all, prefixes: [cut, all.count]) == whole) }
    }

    @Test(arguments: [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \r\n y\r\n\r\n",
        "HTTP/1.1 200 OK\nX: y\r\n\r\n",
        "HTTP/1.1 099 OK\r\nX: y\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nX: y\r\n\r\n",
        "HTTP/2.0 200 OK\r\nX: y\r\n\r\n",
        "HTTP/1.1 200OK\r\nX: y\r\n\r\n",
        "HTTP/1.1  200 OK\r\nX: y\r\n\r\n",
        "ICY 200 OK\r\nX: y\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: " + String(repeating: "a", count: Limits.upstreamHeadBytesMax) + "\r\n\r\n",
    ]) func refusesAmbiguousResponses(head: String) {
        let all = bytes(head)
        guard case .refused(let error) = response(all, prefixes: [all.count]) else {
            Issue.record("taken: \(head.debugDescription)")
            return
        }
        #expect(error.status == 502)
        #expect(response(all, prefixes: Array(0...all.count)) == .refused(error))
    }

    @Test func responsesWithoutABody() throws {
        var scanned = 0
        let input = bytes("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")
        let head = try whole(ResponseHead.parse(input.span.bytes, scanned: &scanned)?.head)
        #expect(head.framing(toMethod: .get) == .none)
        let ok = bytes("HTTP/1.1 200 OK\r\n\r\n")
        let until = try whole(ResponseHead.parse(ok.span.bytes, scanned: &scanned)?.head)
        #expect(until.framing(toMethod: .get) == .untilClose)
        #expect(until.framing(toMethod: .head) == .none)
    }

    @Test func everyKnownHeaderIsRecognised() {
        for known in KnownHeader.allCases where known != .other {
            for name in ["\(known.name)", "\(known.name)".uppercased()] {
                var fields = HeaderFields()
                fields.append(name, " v ")
                #expect(fields.first(known) == "v", "\(known)")
            }
        }
        var fields = HeaderFields()
        fields.append("hosts", "v")
        #expect(fields.first(.host) == nil)
        #expect(fields.first(named: "HOSTS") == "v")
    }

    @Test func nominatedFieldsStayOnTheirHop() {
        var fields = HeaderFields()
        fields.append("Connection", "close, X-Secret")
        fields.append("x-secret", "1")
        fields.append("Connection", "x-other")
        fields.append("X-Other", "1")
        fields.append("TE", "trailers")
        fields.append("Keep-Alive", "timeout=5")
        fields.append("Accept", "a")
        fields.append("x-last", "z")
        var seen: [String] = []
        fields.forEachEndToEnd { seen.append(text($1) + "=" + text($2)) }
        #expect(seen == ["Accept=a", "x-last=z"])
        #expect(fields.hasToken(.connection, "x-other"))
        #expect(!fields.hasToken(.connection, "x-oth"))
    }

    @Test func noValueEndsItsLine() {
        var out: [UInt8] = []
        for evil in ["a\r\nX: 1", "a\nX: 1", "a\rX", "a\0"] {
            HeadWriter.field("x-safe" as StaticString, evil, into: &out)
            HeadWriter.field(named: "x-safe", evil, into: &out)
            let (name, value) = (bytes("x-safe"), bytes(evil))
            HeadWriter.field(name.span.bytes, value.span.bytes, into: &out)
            HeadWriter.field(named: evil, "v", into: &out)
            var fields = HeaderFields()
            fields.append("x-safe", evil)
            #expect(fields.count == 0)
        }
        #expect(out.isEmpty)
        HeadWriter.request(.other("G\r\nT"), target: "/a\r\nX: 1", into: &out)
        #expect(out == bytes("GT /a%0D%0AX:%201 HTTP/1.1\r\n"))
    }

    @Test func writtenHeadsAreReadBack() {
        var out: [UInt8] = []
        HeadWriter.status(429, into: &out)
        HeadWriter.field("retry-after", 7, into: &out)
        HeadWriter.field("content-type", "text/event-stream", into: &out)
        HeadWriter.end(into: &out)
        guard case .parsed(let head) = response(out, prefixes: [out.count]) else { return #expect(Bool(false)) }
        #expect(head.status == 429)
        #expect(head.fields == ["retry-after: 7", "content-type: text/event-stream"])
        out = []
        HeadWriter.chunkStart(count: 26, into: &out)
        out += bytes("abcdefghijklmnopqrstuvwxyz")
        HeadWriter.chunkEnd(into: &out)
        out += HeadWriter.lastChunk
        #expect(body(out, .chunked, cuts: []).data == bytes("abcdefghijklmnopqrstuvwxyz"))
    }
}
