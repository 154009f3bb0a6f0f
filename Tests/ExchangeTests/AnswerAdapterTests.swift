import Metering
import Testing
import Vocabulary

@testable import Exchange

/// One answer fed in pieces: all that came out, and each signal with how much had come out by then.
private struct Told: Equatable {
    var out: [UInt8] = []
    var signals: [AnswerAdapter.Signal] = []
    var places: [Int] = []
    var text: String { String(decoding: out, as: UTF8.self) }
}

private func form(_ route: Route, stream: Bool = true, login: Bool = false) throws -> AnswerForm {
    let body = "{\"model\":\"m\",\"stream\":\(stream),\"input\":\"x\"}"
    return AnswerForm(try TurnRequest(Array(body.utf8), route: route), isChatGPT: login, requestID: "req_1", createdSeconds: 1_800_000_000)
}

/// Feeds `input` cut at `cuts`; failures are told, as a turn does that has no other account.
private func tell(_ form: AnswerForm, _ input: String, cuts: [Int] = [], status: Int = 200, type: String = "text/event-stream") -> (
    told: Told, adapter: AnswerAdapter
) {
    var adapter = AnswerAdapter(form, status: status, contentType: type)
    var told = Told()
    func note(_ signal: AnswerAdapter.Signal) -> Bool {
        told.signals.append(signal)
        told.places.append(told.out.count)
        switch signal {
        case .failed:
            if let next = adapter.tellFailure(into: &told.out) { return note(next) }
            return true
        case .complete: return true
        case .refuse, .broken, .page, .refused: return false
        }
    }
    let bytes = Array(input.utf8)
    var start = 0
    for cut in cuts + [bytes.count] {
        var offset = 0
        while let signal = adapter.feed(bytes.span.bytes.extracting(start..<cut), &offset, into: &told.out) {
            if !note(signal) { return (told, adapter) }
        }
        start = cut
    }
    while let signal = adapter.end(into: &told.out) { if !note(signal) { break } }
    return (told, adapter)
}

private func event(_ type: String, _ rest: String = "", lineEnd: String = "\n", named: Bool = true) -> String {
    (named ? "event: \(type)\(lineEnd)" : "") + "data: {\"type\":\"\(type)\"\(rest.isEmpty ? "" : "," + rest)}" + lineEnd + lineEnd
}

private let created = event("response.created", "\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\"}")
private let item = event(
    "response.output_item.done", "\"item\":{\"type\":\"message\",\"content\":[{\"type\":\"output_text\",\"text\":\"Hi\"}]}")
private let usage = "\"usage\":{\"input_tokens\":11,\"output_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":3}}"
private let completed = event("response.completed", "\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",\(usage)}")
private let failed = event("response.failed", "\"response\":{\"error\":{\"code\":\"rate_limit_exceeded\",\"message\":\"slow down\"}}")
private func deltas(_ count: Int, lineEnd: String = "\n", named: Bool = true) -> String {
    (0..<count).map {
        event("response.output_text.delta", "\"sequence_number\":\($0),\"delta\":\"w\($0)\\n\"", lineEnd: lineEnd, named: named)
    }.joined()
}
private let chatChunks =
    (0..<5).map { "data: {\"id\":\"c\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w\($0)\"}}]}\n\n" }.joined()
    + "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
private let chatUsage = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":7}}\n\n"

/// Goal: what a client gets of an answer is decided by its bytes alone, never by how the network cut them.
@Suite struct AnswerAdapterTests {
    private static let streams: [String] = [
        created + deltas(8) + item + completed,
        created + deltas(8, lineEnd: "\r\n") + item + completed + "data: [DONE]\n\n: bye\n\n",
        deltas(3, named: false) + completed,  // no response.created: one is put in
        created + deltas(4, lineEnd: "\r") + ": comment\n\n" + completed,
        created + failed, created + deltas(2) + failed + "data: [DONE]\n\n",
        created + deltas(2),  // cut
        "data: {\"type\":\"error\",\"code\":\"insufficient_quota\",\"message\":\"m\"}\n\n",
        "{\"id\":\"resp_1\",\"status\":\"completed\",\"output\":[],\(usage)}",
        "<html><title>502</title></html>", " \r\n", "",
        chatChunks + chatUsage + "data: [DONE]\n\n", chatChunks,
        chatChunks + "data: {\"error\":{\"message\":\"m\",\"code\":\"x\"}}\n\n" + chatUsage,
        created + "data: {\"type\":\"response.output_text.delta\",\ndata: \"delta\":\"two lines\"}\n\n" + completed,
        created + "event: x\nevent: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\"}\nid: 1\n\n" + completed,
    ]
    private static let forms: [(Route, Bool, Bool)] = [
        (.responses, true, false), (.responses, true, true), (.responses, false, true), (.codexResponses, true, true),
        (.chatCompletions, true, false), (.chatCompletions, true, true), (.chatCompletions, false, true), (.embeddings, false, false),
        (.responses, false, false),
    ]

    @Test("However an answer is cut, the same bytes and the same signals come of it", arguments: forms.indices)
    func cuts(_ number: Int) throws {
        let (route, stream, login) = Self.forms[number]
        let form = try form(route, stream: stream, login: login)
        var random = SplitMix(state: UInt64(number + 1))
        for (i, input) in Self.streams.enumerated() {
            let count = input.utf8.count
            let whole = tell(form, input).told
            var ways: [[Int]] = [Array(0..<count)]
            for _ in 0..<40 {
                ways.append((0..<Int.random(in: 1...4, using: &random)).map { _ in Int.random(in: 0...count, using: &random) }.sorted())
            }
            for cuts in ways {
                let told = tell(form, input, cuts: cuts).told
                #expect(told.out == whole.out && told.signals == whole.signals, "stream \(i), cuts \(cuts)")
            }
        }
    }

    @Test("An OpenAI-compatible upstream's stream arrives byte for byte", arguments: ["\n", "\r\n", "\r"])
    func unchanged(_ lineEnd: String) throws {
        let input = created + deltas(30, lineEnd: lineEnd) + item + completed + "data: [DONE]\n\n"
        let (told, adapter) = tell(try form(.responses), input)
        #expect(told.text == input)
        #expect(told.signals == [.complete(errorCode: "")])
        #expect(adapter.findings.usage == TokenUsage(input: 11, cachedInput: 3, output: 7))
        #expect(adapter.findings.responseID == "resp_1")
        #expect(adapter.tokensGuess == 31)
    }

    @Test("The record is due before the last event: with it comes the signal, and no byte of it before")
    func recordFirst() throws {
        let input = created + deltas(3) + completed
        for cut in [input.utf8.count - 1, input.utf8.count - completed.utf8.count] {
            let (told, _) = tell(try form(.responses), input, cuts: [cut])
            #expect(told.places == [input.utf8.count])
            var adapter = AnswerAdapter(try form(.responses), status: 200, contentType: "")
            var (out, offset): ([UInt8], Int) = ([], 0)
            let signal = adapter.feed(Array(input.utf8.prefix(cut)).span.bytes, &offset, into: &out)
            #expect(signal == nil && out.count == input.utf8.count - completed.utf8.count)
        }
    }

    @Test("Nothing goes out before the answer tells something: another account may still be asked")
    func heldBack() throws {
        for login in [false, true] {
            let form = try form(.responses, login: login)
            var adapter = AnswerAdapter(form, status: 200, contentType: "text/event-stream")
            var (out, offset): ([UInt8], Int) = ([], 0)
            let opening = Array((": hello\n\n" + created + "data: {\"type\":\"ping\"}\n\n").utf8)
            #expect(adapter.feed(opening.span.bytes, &offset, into: &out) == nil)
            #expect(out.isEmpty && !adapter.isTelling && adapter.keptBytes == opening.count)
            offset = 0
            let signal = adapter.feed(Array(failed.utf8).span.bytes, &offset, into: &out)
            guard case .failed(let refusal, mayMove: true)? = signal else { return #expect(Bool(false), "\(String(describing: signal))") }
            #expect(refusal.code == "rate_limit_exceeded" && out.isEmpty)
        }
    }

    @Test("A failure behind work that was done stays with its account")
    func staysAfterWork() throws {
        for (route, login, stream) in [(Route.responses, false, true), (.responses, true, false), (.chatCompletions, true, true)] {
            let (told, _) = tell(try form(route, stream: stream, login: login), created + deltas(1) + failed)
            guard case .failed(_, let mayMove)? = told.signals.first else { return #expect(Bool(false), "\(told.signals)") }
            #expect(!mayMove)
        }
    }

    /// An `id:` line changes nothing of an event's meaning, but takes it off the short way.
    @Test("The short way of deltas and the long one come to the same", arguments: 1...300)
    func shortWay(_ seed: UInt64) throws {
        var random = SplitMix(state: seed)
        let types = [
            "response.output_text.delta", "response.reasoning_summary_text.delta", "response.failed.delta", "response.delta",
            "response.output_item.done", "response.in_progress", "delta", "response.output_text.delta\\u0020", "response.error",
        ]
        let rests = ["\"delta\":\"x\"", "\"delta\":\"\\\"}\"", "\"type\":\"response.completed\"", "\"error\":{\"code\":\"x\"}", ""]
        var (short, long) = ("", "")
        for _ in 0..<Int.random(in: 1...6, using: &random) {
            let type = types.randomElement(using: &random)!
            let body = event(
                type, rests.randomElement(using: &random)!, lineEnd: ["\n", "\n", "\r\n"].randomElement(using: &random)!,
                named: Bool.random(using: &random))
            short += body
            long += "id: 1\n" + body
        }
        let form = try form(.codexResponses)
        let (a, first) = tell(form, created + short + completed)
        let (b, second) = tell(form, created + long + completed)
        #expect(a.signals == b.signals)
        #expect(a.text == b.text.replacing("id: 1\n", with: ""))
        #expect(first.tokensGuess == second.tokensGuess && first.findings == second.findings)
    }

    @Test("What an answer keeps is counted, and bounded")
    func kept() throws {
        var adapter = AnswerAdapter(try form(.responses), status: 200, contentType: "application/json")
        var out: [UInt8] = []
        let piece = [UInt8](repeating: 0x20, count: 1 << 20)
        var offset = 0
        #expect(adapter.feed(Array("{".utf8).span.bytes, &offset, into: &out) == nil)
        for i in 1...Limits.eventBytesMax >> 20 {
            offset = 0
            let signal = adapter.feed(piece.span.bytes, &offset, into: &out)
            #expect((signal == nil) == (i < Limits.eventBytesMax >> 20))  // the brace is one byte too many
        }
        #expect(adapter.keptBytes <= Limits.eventBytesMax && adapter.tokensGuess == adapter.keptBytes / 4 && adapter.shed() != nil)
    }

    @Test("A chat stream that tells of its failure twice counts it once")
    func failsOnce() throws {
        let failure = "data: {\"error\":{\"message\":\"m\",\"code\":\"server_error\"}}\n\n"
        let (told, adapter) = tell(try form(.chatCompletions), chatChunks + failure + failure + "data: [DONE]\n\n")
        #expect(told.signals.filter { if case .failed = $0 { true } else { false } }.count == 1)
        #expect(told.signals.last == .complete(errorCode: "server_error") && adapter.findings.errorCode == "server_error")
        #expect(told.text.components(of: "\"error\"") == 1)
    }

    @Test("response.created stands first, also where silence or much that says nothing has opened the answer", arguments: [true, false])
    func createdFirst(_ bySilence: Bool) throws {
        var adapter = AnswerAdapter(try form(.responses), status: 200, contentType: "text/event-stream")
        var out: [UInt8] = []
        var offset = 0
        if bySilence {
            adapter.open(into: &out)
        } else {
            let ping = Array(
                ("data: {\"type\":\"ping\",\"x\":\"" + String(repeating: "x", count: Limits.heldBackBytesMax) + "\"}\n\n").utf8)
            #expect(adapter.feed(ping.span.bytes, &offset, into: &out) == nil)
        }
        #expect(adapter.isTelling)
        let rest = Array((deltas(3) + completed).utf8)
        offset = 0
        #expect(adapter.feed(rest.span.bytes, &offset, into: &out) == .complete(errorCode: ""))
        let text = String(decoding: out, as: UTF8.self)
        let (first, delta) = (text.split(separator: "response.created")[0].utf8.count, text.split(separator: ".delta")[0].utf8.count)
        #expect(text.contains("response.created") && first < delta)
    }

    @Test(
        "A body is passed on with what stands before its JSON: its length was promised", arguments: ["\r\n\r\n", "\u{FEFF}", "\u{FEFF} \n"])
    func blankBefore(_ blank: String) throws {
        let input = blank + "{\"id\":\"resp_1\",\"status\":\"completed\",\(usage)}"
        for cut in 0..<input.utf8.count {
            let (told, adapter) = tell(try form(.responses, stream: false), input, cuts: [cut], type: "text/event-stream")
            #expect(told.text == input, "cut at \(cut)")
            #expect(adapter.bodyBytes == input.utf8.count && adapter.findings.usage == TokenUsage(input: 11, cachedInput: 3, output: 7))
        }
    }

    @Test("A byte order mark before events means nothing, however it is cut")
    func markBefore() throws {
        let input = "\u{FEFF}" + created + deltas(2) + completed
        for cut in 0...4 {
            let (told, _) = tell(try form(.codexResponses), input, cuts: [cut])
            #expect(told.text == String(input.unicodeScalars.dropFirst()), "cut at \(cut)")
        }
    }
}

extension String {
    fileprivate func components(of word: String) -> Int { split(separator: word, omittingEmptySubsequences: false).count - 1 }
}
