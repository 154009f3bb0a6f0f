import Bytes
import HTTPWire
import Routing
import Testing
import Vocabulary

@testable import Exchange

/// Goal: turns of one conversation have a key in common, and turns of two have none.
@Suite struct AffinityTests {
    private let hash = SipHash(key: (1, 2))

    private func keys(_ body: String, _ fields: String = "", route: Route = .responses, client: Int64 = 0) throws -> [Affinity.Key] {
        let head = Array("POST / HTTP/1.1\r\nHost: h\r\n\(fields)\r\n".utf8)
        var scanned = 0
        let request = try #require(try RequestHead.parse(head.span.bytes, scanned: &scanned))
        return Affinity(try TurnRequest(Array(body.utf8), route: route), request.head.fields, client: client, hash).keys
    }

    @Test("Response, turn's state, thread, session, prompt cache: in this order")
    func order() throws {
        let body = "{\"model\":\"m\",\"input\":\"x\",\"previous_response_id\":\"resp_1\",\"prompt_cache_key\":\"c\"}"
        let found = try keys(body, "X-Codex-Turn-State: s\r\nsession_id: a\r\nthread-id: t\r\n")
        #expect(found.map(\.strength) == [.only, .owner, .prefer, .prefer, .prefer])
        #expect(found.map(\.seconds) == [86_400, 86_400, 86_400, 86_400, 1_800])
        #expect(found[0].hash == Affinity.response("resp_1", hash) && found[1].hash == Affinity.turnState("s", hash))
        #expect(Set(found.map(\.hash)).count == 5)
        let known = found.filter(\.isKnown)
        #expect(known.count == 5)
    }

    /// An input, and whether another account can go on with it. Without `previous_response_id` nobody asks.
    private static let histories: [(String, Bool)] = [
        (#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"role":"user","content":"r"}]"#, true),
        (
            #"[{"type":"message","role":"developer","content":"d"},{"role":"user","content":"q"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"x"}]"#,
            true
        ),
        (
            #"[{"role":"user","content":"q"},{"type":"reasoning","summary":[],"encrypted_content":null},{"role":"assistant","content":"a"}]"#,
            true
        ),
        // What is new alone, as clients send it.
        (#""r""#, false), (#"[{"role":"user","content":"r"}]"#, false),
        (#"[{"type":"function_call_output","call_id":"c","output":"x"}]"#, false),
        (#"[{"role":"user","content":"q"},{"type":"function_call_output","call_id":"c","output":"x"}]"#, false),
        (#"[{"role":"assistant","content":"a"},{"role":"user","content":"r"}]"#, false), ("[]", false),
        (
            #"[{"role":"user","content":"q"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"d","output":"x"}]"#,
            false
        ),
        // What another reader takes for something else.
        (
            #"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"type":"message","type":"item_reference","role":"user","id":"m"}]"#,
            false
        ),
        (#"[{"role":"Assistant","content":"a"},{"role":"assistant","content":"a"}]"#, false),
        (#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"type":7,"role":"user","content":"r"}]"#, false),
        (
            #"[{"role":"user","content":"q"},{"type":"reasoning","summary":[],"encrypted_content":null,"encrypted_content":"g"},{"role":"assistant","content":"a"}]"#,
            false
        ),
        // What only its account can read.
        (#"[{"role":"user","content":"q"},{"type":"reasoning","id":"rs_1","summary":[]},{"role":"assistant","content":"a"}]"#, false),
        (
            #"[{"role":"user","content":"q"},{"type":"reasoning","summary":[],"encrypted_content":"gAAA"},{"role":"assistant","content":"a"}]"#,
            false
        ),
        (#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"type":"item_reference","id":"msg_1"}]"#, false),
        (#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},{"type":"of_next_year"}]"#, false),
        (#"[{"role":"user","content":"q"},{"role":"assistant","content":"a"},7]"#, false),
        (#"[{"role":"user","content":[{"type":"input_file","file_id":"f"}]},{"role":"assistant","content":"a"}]"#, false),
    ]

    @Test("A turn that says its whole conversation can do without its previous response; one that says less can't", arguments: histories)
    func whole(_ input: String, _ isWhole: Bool) throws {
        func affinity(_ more: String) throws -> (Affinity, TurnRequest) {
            var scanned = 0
            let request = try #require(
                try RequestHead.parse(Array("POST / HTTP/1.1\r\nHost: h\r\n\r\n".utf8).span.bytes, scanned: &scanned))
            let ask = try TurnRequest(Array("{\"model\":\"m\",\(more)\"input\":\(input)}".utf8), route: .responses)
            return (Affinity(ask, request.head.fields, client: 0, hash), ask)
        }
        #expect(try affinity("\"previous_response_id\":\"resp_1\",").0.isWhole == isWhole)
        // A chat has its conversation elsewhere.
        let chat = "{\"model\":\"m\",\"previous_response_id\":\"resp_1\",\"messages\":[],\"input\":\(input)}"
        #expect(try !TurnRequest(Array(chat.utf8), route: .chatCompletions).isWhole)
        var (plain, ask) = try affinity("")
        #expect(!plain.isWhole)
        (_, ask) = try affinity("\"previous_response_id\":\"resp_1\",\"store\":true,")
        guard ask.isWhole else { return }
        ask.releasePreviousResponse()
        #expect(ask.previousResponseID == nil)
        let body = String(decoding: try ask.upstreamBody(.apiKey), as: UTF8.self)
        #expect(body == "{\"model\":\"m\",\"store\":true,\"input\":\(input)}")
        #expect(try !String(decoding: ask.upstreamBody(.chatGPT), as: UTF8.self).contains("previous_response_id"))
    }

    @Test("Files that the input names come behind the response, before whatever else another account could go on with")
    func files() throws {
        let parts =
            #"{"type":"input_file","file_id":"file-1"},{"type":"input_image","image_url":"sediment://file-2?x=1"},{"type":"input_text","text":"\"file_id\":\"no\""},{"type":"input_file","file_\u0069d":"file-3"},{"type":"input_file","file_id":"file-1"}"#
        let body = #"{"model":"m","previous_response_id":"r","prompt_cache_key":"c","input":[{"role":"user","content":["# + parts + "]}]}"
        let found = try keys(body, "session-id: a\r\n")
        #expect(found.map(\.strength) == [.only, .only, .only, .only, .prefer, .prefer])
        #expect(found[1...3].map(\.hash) == ["file-1", "file-2", "file-3"].map { Affinity.file($0, hash) })
        #expect(found.map(\.isFile) == [false, true, true, true, false, false])
        let output =
            #"{"model":"m","input":[{"type":"function_call_output","output":[{"type":"input_image","file_id":"file-9"}]},{"output":"file_id"}]}"#
        #expect(try keys(output).filter(\.isFile).map(\.hash) == [Affinity.file("file-9", hash)])
        // One that was made elsewhere says nothing: the beginning does.
        let alone = #"{"model":"m","input":[{"role":"user","content":["# + parts + "]},{\"role\":\"assistant\",\"content\":\"x\"}]}"
        #expect(try keys(alone).map(\.strength) == [.only, .only, .only, .prefer])
        let shapes = [
            #""file_id""#, #"[{"content":"file_id","file_id":"f"}]"#,
            #"[{"content":[1,"file_id",{"file_id":5},{"file_id":null},{"image_url":{"url":"sediment://x"}}]}]"#,
            #"[{"content":[{"image_url":"data:,file_id"}]},{"content":[{"file_id":""}]}]"#,
        ]
        for input in shapes { #expect(try !keys("{\"model\":\"m\",\"input\":\(input)}").contains { $0.isFile }, "\(input)") }
        let many = (0..<40).map { "{\"file_id\":\"f\($0)\"}" }.joined(separator: ",")
        #expect(try keys("{\"model\":\"m\",\"input\":[{\"content\":[\(many)]}]}").count { $0.isFile } == Limits.turnFilesMax)
    }

    @Test(
        "A session is the same under each of its names, and another client's is another one",
        arguments: [
            "session-id", "session_id", "X-Codex-Session-Id", "x-codex-conversation-id", "Conversation_Id",
        ])
    func sessions(_ name: String) throws {
        let body = "{\"model\":\"m\",\"input\":\"x\"}"
        let found = try keys(body, "\(name): abc\r\n")
        let (usual, other) = (try keys(body, "session-id: abc\r\n"), try keys(body, "\(name): abd\r\n"))
        let stranger = try keys(body, "\(name): abc\r\n", client: 7)
        #expect(found == usual && found != other && found != stranger && found.count == 1)
    }

    @Test("Without a key the beginning of the conversation is one, from its second turn on")
    func beginning() throws {
        func responses(_ input: String, _ instructions: String = "Be kind") -> String {
            "{\"model\":\"m\",\"instructions\":\"\(instructions)\",\"input\":\(input)}"
        }
        let first = "{\"role\":\"user\",\"content\":\"Hello\"}"
        let answer = "{\"role\":\"assistant\",\"content\":\"Hi\"}"
        let second = "{\"role\":\"user\",\"content\":\"And?\"}"
        let one = try keys(responses("[\(first)]"))
        let two = try keys(responses("[\(first),\(answer),\(second)]"))
        let three = try keys(responses("[\(first),\(answer),\(second),{\"type\":\"function_call\"},\(first)]"))
        #expect(one.map(\.hash) == two.map(\.hash) && two == three)
        #expect(one.map(\.isKnown) == [false] && two.map(\.isKnown) == [true])
        let others = [
            try keys(responses("[\(second),\(answer),\(first)]")), try keys(responses("[\(first),\(answer)]", "Be rude")),
            try keys(responses("[\(first),\(answer)]"), client: 3),
        ]
        #expect(!others.contains(two))
        #expect(try keys(responses("[]")).isEmpty)
        #expect(try keys(responses("[" + Array(repeating: first, count: 9).joined(separator: ",") + "]")).isEmpty)
        let chat = "{\"model\":\"m\",\"messages\":[\(first),\(answer),\(second)]}"
        let ofChat = try keys(chat, route: .chatCompletions)
        #expect(ofChat.map(\.isKnown) == [true])
        #expect(try keys("{\"model\":\"m\",\"input\":\"x\"}", route: .embeddings).isEmpty)
        // Its own name for it is better than ours.
        #expect(try keys(responses("[\(first),\(answer)]"), "session-id: s\r\n").count == 1)
    }

    @Test("What is no name is no key", arguments: ["7", "null", "\"\"", "{}", "\"" + String(repeating: "x", count: 600) + "\""])
    func unusable(_ value: String) throws {
        #expect(try keys("{\"model\":\"m\",\"input\":[],\"previous_response_id\":\(value),\"prompt_cache_key\":\(value)}").isEmpty)
    }
}
