import Exchange
import Foundation
import Testing
import Vocabulary

/// Goal: what is decided on is what is sent on. A second reader, Python's json as a child process, reads the bytes that the upstream gets, once as
/// one who takes the first of two equal keys and once as one who takes the last.
@Suite struct TurnRequestTests {
    struct Case: CustomTestStringConvertible {
        var route: Route
        var body: String
        /// Of the refusal; nil: it is taken.
        var param: String?
        var isRefused: Bool
        var testDescription: String { "\(route.rawValue) \(body.prefix(90))" }

        static func taken(_ body: String, _ route: Route = .chatCompletions) -> Case {
            Case(route: route, body: body, param: nil, isRefused: false)
        }
        static func refused(_ param: String?, _ body: String, _ route: Route = .chatCompletions) -> Case {
            Case(route: route, body: body, param: param, isRefused: true)
        }
    }

    private static let m = #""messages":[{"role":"user","content":"hi"}]"#
    /// A prefix in letters that JSON can escape.
    static let cases: [Case] = [
        // Keys that occur twice, plainly and escaped.
        .refused("model", #"{"model":"a","model":"b",\#(m)}"#),
        .refused("model", #"{"model":"a","mod\u0065l":"b",\#(m)}"#),
        .refused("model", #"{"\u006dodel":"a","model":"b",\#(m)}"#),
        .refused("model", #"{"\u006d\u006f\u0064\u0065\u006c":"a","\u006Dodel":"b",\#(m)}"#),
        .refused("model", #"{"model":"a","input":"x","model":"a"}"#, .responses),
        .refused("model", #"{"model":"a","input":"x","model":null}"#, .codexResponses),
        .refused("model", #"{"model":"a","input":"x","model":7}"#, .embeddings),
        .refused("stream", #"{"model":"a","stream":true,"stream":false,\#(m)}"#),
        .refused("stream", #"{"model":"a","stream":true,"str\u0065am":false,\#(m)}"#),
        .refused("stream_options", #"{"model":"a","stream":true,"stream_options":{"include_usage":true},"stream_options":null,\#(m)}"#),
        .refused("stream_options", #"{"model":"a","stream":true,"stream_options":{},"stream\u005foptions":{"include_usage":false},\#(m)}"#),
        .refused(
            "stream_options.include_usage",
            #"{"model":"a","stream":true,"stream_options":{"include_usage":true,"include_usage":false},\#(m)}"#),
        .refused(
            "stream_options.include_usage",
            #"{"model":"a","stream":true,"stream_options":{"include_usage":true,"include\u005fusage":false},\#(m)}"#),
        .refused("messages", #"{"model":"a",\#(m),\#(m)}"#),
        .refused("x", #"{"model":"a","x":1,"x":2,\#(m)}"#),
        .refused("k9", "{\"model\":\"a\",\((0..<30).map { "\"k\($0)\":0" }.joined(separator: ",")),\"\\u006b9\":1,\(m)}"),
        // Keys that some readers fold or cut to one that decides.
        .refused("Model", #"{"model":"a","Model":"b",\#(m)}"#),
        .refused("MODEL", #"{"MODEL":"b",\#(m)}"#),
        .refused("\u{17F}tream", #"{"model":"a","\u017ftream":true,\#(m)}"#),
        .refused("Stream_Options", #"{"model":"a","Stream_Options":{"include_usage":false},\#(m)}"#),
        .refused("stream_options.Include_usage", #"{"model":"a","stream":true,"stream_options":{"Include_usage":false},\#(m)}"#),
        .refused("model\0", #"{"model":"a","model\u0000":"b",\#(m)}"#),
        .refused("model\u{FFFD}", #"{"model":"a","model\ud800":"b",\#(m)}"#),
        .refused("mod\u{FFFD}el", #"{"model":"a","mod\udc00el":"b",\#(m)}"#),
        // Values that read differently.
        .refused("model", #"{"model":"a\ud800",\#(m)}"#),
        .refused("model", #"{"model":"a\udc00\ud800",\#(m)}"#),
        .refused("model", #"{"model":"a\u0000b",\#(m)}"#),
        .refused("model", #"{"model":"a\nb",\#(m)}"#),
        .refused("model", #"{"model":["a"],\#(m)}"#),
        .refused("model", #"{"model":null,\#(m)}"#),
        .refused("model", #"{"model":"",\#(m)}"#),
        .refused("model", "{\"model\":\"\(String(repeating: "a", count: 257))\",\(m)}"),
        .refused("stream", #"{"model":"a","stream":1,\#(m)}"#),
        .refused("stream", #"{"model":"a","stream":"true",\#(m)}"#),
        .refused("stream_options", #"{"model":"a","stream":true,"stream_options":[],\#(m)}"#),
        .refused("stream_options", #"{"model":"a","stream":true,"stream_options":"x",\#(m)}"#),
        .refused("stream_options", #"{"model":"a","stream":true,"stream_options":false,\#(m)}"#),
        .refused("stream_options.include_usage", #"{"model":"a","stream":true,"stream_options":{"include_usage":0},\#(m)}"#),
        .refused("stream_options.include_usage", #"{"model":"a","stream":true,"stream_options":{"include_usage":"false"},\#(m)}"#),
        // No JSON that all readers share.
        .refused(nil, "\u{FEFF}{\"model\":\"a\"}"), .refused(nil, #"{"model":"a"}{"model":"b"}"#), .refused(nil, #"{'model':'a'}"#),
        .refused(nil, #"{"model":"a",/*c*/"x":1}"#), .refused(nil, #"{"model":"a","x":NaN}"#), .refused(nil, #"["model"]"#),
        .refused(nil, #""model""#), .refused(nil, ""), .refused("model", "{}"),
        .refused(nil, "{\"model\":\"a\",\"x\":\(String(repeating: "[", count: 128))\(String(repeating: "]", count: 128))}"),
        // What is taken means the same on both sides.
        .taken(#"{"mod\u0065l":"gpt-\u0061",\#(m)}"#), .taken(#"{"model":"a\ud83d\ude00",\#(m)}"#), .taken(#"{"model":"é",\#(m)}"#),
        .taken(#" { "model" : "a" , "stream" : true , \#(m) } "#), .taken(#"{"model":"a","stream":true,\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":null,\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":{},\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":{"include_usage":null},\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":{"include_usage":false},\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":{"include\u005fusage":false,"x":[1]},\#(m)}"#),
        .taken(#"{"model":"a","str\u0065am":true,"stream\u005foptions":{"include_usage":false},\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"stream_options":{"include_usage":true},\#(m)}"#),
        .taken(#"{"model":"a","stream":null,"stream_options":{"include_usage":false},\#(m)}"#),
        .taken(#"{"model":"a","stream":false,\#(m)}"#), .taken(#"{"model":"a","metadata":{"model":"b","stream":true},\#(m)}"#),
        .taken(#"{"model":"a","tools":[{"model":"b"}],\#(m)}"#),
        .taken(#"{"model":"a","stream":true,"input":"{\"model\":\"b\"}"}"#, .responses),
        .taken(#"{"model":"a","stream":false,"input":[]}"#, .codexResponses), .taken(#"{"model":"a","input":[]}"#, .codexResponses),
        .taken(#"{"model":"a","input":["x"]}"#, .embeddings),
        .taken(
            "{\"model\":\"a\",\"x\":\(String(repeating: "[", count: 127))\(String(repeating: "]", count: 127)),\"input\":1}", .embeddings),
    ]

    @Test("A body that two readers could take for different requests is refused, with its key", arguments: cases.filter(\.isRefused))
    func refused(_ c: Case) throws {
        #expect {
            _ = try TurnRequest(Array(c.body.utf8), route: c.route)
        } throws: {
            guard let error = $0 as? ProxyError else { return false }
            return error.status == 400 && error.param == c.param
        }
    }

    @Test("A body nested deeper than the limit is refused, and the limit is named")
    func depth() {
        let body = "{\"model\":\"a\",\"x\":\(String(repeating: "[", count: 480))\(String(repeating: "]", count: 480))}"
        #expect { try TurnRequest(Array(body.utf8), route: .responses) } throws: { "\($0)".contains("\(Limits.jsonDepthMax) levels") }
    }

    private struct Reading: Codable, Equatable {
        var model: String
        var stream: Bool
        var usage: Bool
    }

    private static let reader = """
        import sys, json, base64
        def read(text, last):
            def pairs(p):
                d = {}
                for k, v in p:
                    if last or k not in d: d[k] = v
                return d
            d = json.loads(text, object_pairs_hook=pairs)
            o = d.get("stream_options") or {}
            return {"model": d.get("model"), "stream": bool(d.get("stream")), "usage": bool(o.get("include_usage"))}
        for line in sys.stdin:
            text = base64.b64decode(line).decode()
            print(json.dumps([read(text, True), read(text, False)]))
        """

    @Test("A second reader finds the model and the flags that were decided on in the bytes that the upstream gets")
    func sameReading() throws {
        var sent: [(what: String, bytes: [UInt8], ours: Reading)] = []
        for c in Self.cases where !c.isRefused {
            let ask = try TurnRequest(Array(c.body.utf8), route: c.route)
            for kind in Account.Kind.allCases where c.route.upstreamPath(kind) != nil {
                let isLogin = kind == .chatGPT
                let bytes = try ask.upstreamBody(kind)
                // A login's upstream always streams and always tells usage; a chat stream tells it because we ask.
                let usage = isLogin ? false : c.route == .chatCompletions && ask.wantsStream || ask.includesUsage
                sent.append(("\(kind) \(c.body)", bytes, Reading(model: ask.model, stream: isLogin || ask.wantsStream, usage: usage)))
            }
        }
        let lines = try Self.python(Self.reader, sent.map { Data($0.bytes).base64EncodedString() })
        #expect(lines.count == sent.count && sent.count > 25)
        for (line, sent) in zip(lines, sent) {
            let readings = try JSONDecoder().decode([Reading].self, from: Data(line.utf8))
            for reading in readings { #expect(reading == sent.ours, "\(sent.what)") }
        }
    }

    static func python(_ program: String, _ lines: [String]) throws -> [String] {
        let (process, input, output) = (Process(), Pipe(), Pipe())
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = ["python3", "-c", program]
        (process.standardInput, process.standardOutput) = (input, output)
        try process.run()
        input.fileHandleForWriting.write(Data((lines.joined(separator: "\n") + "\n").utf8))
        try input.fileHandleForWriting.close()
        let data = output.fileHandleForReading.readDataToEndOfFile()
        process.waitUntilExit()
        return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
    }
}
