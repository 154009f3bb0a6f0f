import JSONWire
import Testing
import Translation
import Vocabulary

private func value(_ bytes: [UInt8]) throws -> JSONValue { try JSONValue(parsing: bytes.span.bytes) }
private func fromChat(_ json: String) throws -> JSONValue {
    try value(ChatTranslation.responsesRequest(fromChat: JSONDocument(Array(json.utf8))).bytes)
}
private func codex(_ json: String) throws -> JSONValue {
    try value(ResponsesTranslation.codexRequest(from: JSONDocument(Array(json.utf8))))
}
private func json(_ text: String) throws -> JSONValue { try value(Array(text.utf8)) }

@Suite struct ChatRequestTests {
    @Test("Roles, parts, tools and formats find their place in a Responses request")
    func request() throws {
        let out = try fromChat(
            """
            {"model":"m","stream":true,"max_tokens":5,"temperature":0.5,"messages":[
              {"role":"system","content":"be brief"},{"role":"developer","content":[{"type":"text","text":"and kind"}]},
              {"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:x","detail":"low"}}]},
              {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
              {"role":"tool","tool_call_id":"c1","content":"42"}],
             "tools":[{"type":"function","function":{"name":"f","strict":true,"parameters":{}}}],
             "tool_choice":{"type":"function","function":{"name":"f"}},
             "response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{}}},"metadata":{"x":"1.50"}}
            """)
        #expect(
            try out
                == json(
                    """
                    {"model":"m","stream":true,"temperature":0.5,"metadata":{"x":"1.50"},"instructions":"be brief\\nand kind","input":[
                      {"role":"user","content":[{"type":"input_text","text":"hi"},{"type":"input_image","image_url":"data:x","detail":"low"}]},
                      {"type":"function_call","call_id":"c1","name":"f","arguments":"{}"},
                      {"type":"function_call_output","call_id":"c1","output":"42"}],
                     "tools":[{"type":"function","name":"f","strict":true,"parameters":{}}],"tool_choice":{"type":"function","name":"f"},
                     "text":{"format":{"type":"json_schema","name":"s","schema":{}}}}
                    """))
    }

    @Test(
        "What can't be told is refused with the place",
        arguments: [
            (#"{"model":"m"}"#, "messages"), (#"{"messages":[],"n":2}"#, "n"), (#"{"messages":[{"role":"robot"}]}"#, "messages.0.role"),
            (#"{"messages":[{"role":"tool","content":"x"}]}"#, "messages.0.tool_call_id"),
            (#"{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}"#, "messages.0.content.0"),
        ])
    func refused(_ body: String, _ place: String) {
        #expect { try fromChat(body) } throws: { ($0 as? ProxyError)?.param == place && ($0 as? ProxyError)?.status == 400 }
    }
}

/// Goal: docs/upstreams.md, "Chat completions on a login", row by row.
@Suite struct LackingParameterTests {
    private func chat(_ more: String) throws -> JSONValue {
        try fromChat(#"{"model":"m","messages":[{"role":"user","content":"hi"}],\#(more)}"#)
    }

    @Test(
        "Values that ask for nothing are dropped",
        arguments: [
            ("n", "1"), ("n", "1.0"), ("frequency_penalty", "0"), ("frequency_penalty", "0.0"), ("presence_penalty", "0"), ("seed", "null"),
            ("stop", "[]"), ("stop", "null"), ("logit_bias", "{}"), ("logprobs", "false"), ("top_logprobs", "0"),
            ("modalities", "[\"text\"]"),
            ("audio", "null"), ("prediction", "null"), ("web_search_options", "null"), ("functions", "null"), ("function_call", "null"),
            ("max_tokens", "5"), ("max_completion_tokens", "5"), ("store", "true"),
        ])
    func dropped(_ name: String, _ value: String) throws {
        let out = try chat("\"\(name)\":\(value)")
        #expect(out[name] == nil && out["tools"] == nil && out["tool_choice"] == nil)
    }

    @Test(
        "Others are refused with their name",
        arguments: [
            ("n", "2"), ("frequency_penalty", "0.5"), ("presence_penalty", "-1"), ("seed", "7"), ("stop", "\"x\""), ("stop", "[\"x\"]"),
            ("logit_bias", "{\"1\":2}"), ("logprobs", "true"), ("top_logprobs", "3"), ("modalities", "[\"text\",\"audio\"]"),
            ("audio", "{\"voice\":\"x\"}"),
            ("prediction", "{}"), ("web_search_options", "{}"), ("functions", "1"), ("best_of", "2"), ("suffix", "\"x\""), ("echo", "true"),
            ("top_k", "40"), ("min_p", "0.1"), ("repetition_penalty", "1.1"), ("extra_body", "{\"a\":1}"),
            ("chat_template_kwargs", "{\"a\":1}"),
            ("x_unknown", "1"), ("input", "\"x\""),
        ])
    func refused(_ name: String, _ value: String) {
        #expect {
            try chat("\"\(name)\":\(value)")
        } throws: {
            ($0 as? ProxyError)?.param == name && ($0 as? ProxyError)?.status == 400
        }
    }

    @Test("functions and function_call are told as tools, in the request and in its messages")
    func functions() throws {
        let out = try fromChat(
            """
            {"model":"m","functions":[{"name":"f","parameters":{"type":"object"}}],"function_call":{"name":"f"},"messages":[
              {"role":"user","content":"hi"},{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},
              {"role":"function","name":"f","content":"42"}]}
            """)
        #expect(try out["tools"] == json(#"[{"type":"function","name":"f","parameters":{"type":"object"},"strict":false}]"#))
        #expect(try out["tool_choice"] == json(#"{"type":"function","name":"f"}"#))
        #expect(out["functions"] == nil && out["function_call"] == nil)
        #expect(
            try out["input"]
                == json(
                    """
                    [{"role":"user","content":[{"type":"input_text","text":"hi"}]},
                     {"type":"function_call","call_id":"call_1","name":"f","arguments":"{}"},
                     {"type":"function_call_output","call_id":"call_1","output":"42"}]
                    """))
        #expect(try chat(#""functions":[{"name":"f"}],"function_call":"auto""#)["tool_choice"] == "auto")
    }

    @Test("A tool that does not say strict is not strict")
    func strict() throws {
        for (told, wanted) in [("", false), (",\"strict\":null", false), (",\"strict\":true", true), (",\"strict\":false", false)] {
            let out = try chat(#""tools":[{"type":"function","function":{"name":"f"\#(told)}}]"#)
            #expect(out["tools"]?[0]?["strict"] == .bool(wanted))
        }
    }

    @Test("json_object keeps the word in the input, where the upstream looks for it")
    func word() throws {
        func input(_ messages: String) throws -> String {
            let body = #"{"model":"m","response_format":{"type":"json_object"},"messages":[\#(messages)]}"#
            let out = try value(
                ResponsesTranslation.codexRequest(from: ChatTranslation.responsesRequest(fromChat: JSONDocument(Array(body.utf8)))))
            return String(decoding: try #require(out["input"]).serialized(), as: UTF8.self)
        }
        let user = #"{"role":"user","content":"hi"}"#
        #expect(try input(#"{"role":"system","content":"Reply in JSON"},\#(user)"#).lowercased().contains("json"))
        #expect(
            try input(#"{"role":"user","content":"as json"}"#) == #"[{"role":"user","content":[{"type":"input_text","text":"as json"}]}]"#)
        #expect(try !input(user).lowercased().contains("json"))
    }
}

@Suite struct CodexRequestTests {
    @Test("store, stream and refused members are set; everything else keeps its bytes")
    func members() throws {
        let body = #"{"model":"m","temperature":1,"tools":[ {"b" : 1.0e3,"a":[]} ],"store":true,"input":"hi","new_thing":{"x":"\u00e9"}}"#
        let bytes = try ResponsesTranslation.codexRequest(from: JSONDocument(Array(body.utf8)))
        let text = String(decoding: bytes, as: UTF8.self)
        #expect(text.contains(#""tools":[ {"b" : 1.0e3,"a":[]} ]"#) && text.contains(#""new_thing":{"x":"\u00e9"}"#))
        let out = try value(bytes)
        #expect(out["store"] == false && out["stream"] == true && out["temperature"] == nil && out["instructions"] == "")
        #expect(try out["input"] == json(#"[{"role":"user","content":[{"type":"input_text","text":"hi"}]}]"#))
    }

    @Test("System and developer items become instructions, assistants' text output, tools' answers outputs; other items stay byte by byte")
    func items() throws {
        let out = try codex(
            """
            {"model":"m","instructions":"first","input":[{"role":"system","content":"second"},
             {"role":"assistant","content":"a","reasoning_content":"z"},{"role":"tool","call_id":"c","content":"o"},
             {"type":"custom_tool_call","namespace":"n","input":"x"}]}
            """)
        #expect(out["instructions"] == "first\nsecond")
        #expect(
            try out["input"]
                == json(
                    """
                    [{"role":"assistant","content":[{"type":"output_text","text":"a"}]},{"type":"function_call_output","call_id":"c","output":"o"},
                     {"type":"custom_tool_call","namespace":"n","input":"x"}]
                    """))
        let lite = #"{"input":[{"type":"additional_tools","tools":[]},{"role":"developer","content":"d"}]}"#
        #expect(try codex(lite)["input"] == json(#"[{"type":"additional_tools","tools":[]},{"role":"developer","content":"d"}]"#))
    }
}

@Suite struct ChatStreamTests {
    private func stream(_ events: [String], usage: Bool) throws -> [JSONValue] {
        var translator = ChatStreamTranslator(model: "m", includeUsage: usage, created: 7, id: "chatcmpl-1")
        var out: [UInt8] = []
        for event in events { translator.event(Array(event.utf8).span.bytes, into: &out) }
        translator.finish(into: &out)
        let lines = String(decoding: out, as: UTF8.self).split(separator: "\n").map { $0.dropFirst(6) }
        #expect(lines.last == "[DONE]")
        return try lines.dropLast().map { try json(String($0)) }
    }

    @Test("Text comes as chunks: the role once, a finish reason, usage when asked for")
    func text() throws {
        let chunks = try stream(
            [
                #"{"type":"response.created","response":{}}"#, #"{"type":"response.output_text.delta","delta":"a"}"#,
                #"{"type":"response.output_text.delta","delta":"b"}"#,
                #"{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}}}"#,
            ], usage: true)
        #expect(chunks.count == 4)
        #expect(try chunks[0]["choices"]?[0]?["delta"] == json(#"{"role":"assistant","content":"a"}"#))
        #expect(try chunks[1]["choices"]?[0]?["delta"] == json(#"{"content":"b"}"#))
        #expect(chunks[2]["choices"]?[0]?["finish_reason"] == "stop" && chunks[2]["usage"] == .null)
        #expect(chunks[3]["choices"] == [] && chunks[3]["usage"]?["total_tokens"] == 5)
    }

    @Test("Numbers of tokens that nobody can count with are cut, not added up", arguments: ["9223372036854775807", "1e999", "-5", "9e18"])
    func absurdUsage(_ number: String) throws {
        let event = #"{"type":"response.completed","response":{"usage":{"input_tokens":\#(number),"output_tokens":\#(number)}}}"#
        let usage = try #require(try stream([event], usage: true).last?["usage"])
        #expect(usage["total_tokens"]?.intValue == (number == "-5" ? 0 : 2 * Limits.turnTokensMax))
    }

    @Test("Arguments of a tool call are append-only and told once, whether by deltas, at the end, or both")
    func calls() throws {
        let chunks = try stream(
            [
                #"{"type":"response.output_item.added","output_index":1,"item":{"type":"function_call","call_id":"c1","name":"f","arguments":""}}"#,
                #"{"type":"response.function_call_arguments.delta","output_index":1,"delta":"{\"a\""}"#,
                #"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","call_id":"c1","name":"f","arguments":"{\"a\":1}"}}"#,
                #"{"type":"response.output_item.done","output_index":1,"item":{"type":"function_call","call_id":"c1","name":"f","arguments":"{\"a\":1}"}}"#,
                #"{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","call_id":"c2","name":"g","arguments":"{}"}}"#,
                #"{"type":"response.completed","response":{}}"#,
            ], usage: false)
        var arguments = ["", ""]
        for chunk in chunks {
            for call in chunk["choices"]?[0]?["delta"]?["tool_calls"]?.arrayValue ?? [] {
                arguments[Int(call["index"]?.intValue ?? 0)] += call["function"]?["arguments"]?.stringValue ?? ""
            }
        }
        #expect(arguments == [#"{"a":1}"#, "{}"])
        #expect(chunks.last?["choices"]?[0]?["finish_reason"] == "tool_calls" && chunks.last?["usage"] == nil)
    }

    @Test("A finished response becomes one chat completion")
    func whole() throws {
        let response =
            #"{"model":"served","output":[{"type":"reasoning"},{"type":"message","content":[{"type":"output_text","text":"hi"}]}],"usage":{"input_tokens":1,"output_tokens":2}}"#
        let out = try value(ChatTranslation.chatCompletion(fromResponse: Array(response.utf8).span.bytes, model: "m", created: 7, id: "x"))
        #expect(out["object"] == "chat.completion" && out["model"] == "served" && out["choices"]?[0]?["message"]?["content"] == "hi")
        #expect(out["usage"]?["prompt_tokens"] == 1 && out["usage"]?["completion_tokens"] == 2)
    }
}
