import Exchange
import HTTPWire
import JSONWire
import Logging
import Metering
import Settings
import Translation
import Vocabulary

/// The events of a stream: which are passed on, kept back, told otherwise or end the turn.
extension Turn {
    private enum Kind {
        case opening  // response.created, queued, in_progress: nothing of the answer yet
        case vendor  // codex.*
        case completed, failed, error
        case itemDone
        case other
    }

    func received(event: RawSpan) {
        guard !exchange.isFinished else { return }
        if hasSettled {
            // An answer of our making ended with the terminal event.
            switch answer {
            case .assembled, .chatEvents: return
            default: break
            }
        }
        if request.route == .chatCompletions, !isChatGPT { return receivedChat(event) }
        if let range = EventFields.data(of: event) { return responses(event, event.extracting(range)) }
        let joined = EventFields.joinedData(of: event)
        if joined.isEmpty { return pass(event) }  // a comment or an empty event
        responses(event, joined.span.bytes)
    }

    private func kind(_ json: RawSpan) -> Kind {
        guard let type = JSONScan.find(json, "type") else { return .other }
        if JSONScan.equals(json, type, "response.output_text.delta") { return .other }
        if JSONScan.equals(json, type, "response.output_item.done") { return .itemDone }
        if JSONScan.equals(json, type, "response.completed") || JSONScan.equals(json, type, "response.incomplete") { return .completed }
        if JSONScan.equals(json, type, "response.failed") { return .failed }
        if JSONScan.equals(json, type, "error") { return .error }
        if JSONScan.equals(json, type, "response.created") || JSONScan.equals(json, type, "response.in_progress")
            || JSONScan.equals(json, type, "response.queued")
        {
            return .opening
        }
        return JSONScan.string(json, type)?.hasPrefix("codex.") == true ? .vendor : .other
    }

    private func responses(_ event: RawSpan, _ json: RawSpan) {
        switch kind(json) {
        case .opening:
            sawCreated = true
            if let id = JSONScan.find(json, "response", "id") { findings.responseID = JSONScan.string(json, id) }
            forward(event, json, mayHold: true)
        case .vendor:
            if request.route == .codexResponses { forward(event, json, mayHold: true) }
        case .itemDone:
            if isChatGPT, let item = JSONScan.find(json, "item") { keep(item: json.extracting(item)) }
            forward(event, json)
        case .other:
            outputEvents += 1
            forward(event, json)
        case .completed:
            UsageTap.responsesEvent(json, into: &findings)
            complete(event, json)
        case .failed, .error:
            UsageTap.responsesEvent(json, into: &findings)
            let refusal = UpstreamRefusal(event: json)
            if exchange.isInvisible {
                // Only what the table lets go to another account ends the attempt; the rest is the answer.
                let verdict = FailoverTable.verdict(.failedEvent(refusal), attemptsOnAccount: 1, now: Clock.wall, jitter: 0)
                if verdict.next == .nextAccount {
                    return failedBeforeVisible(refusal)
                }
            }
            failed(event, json, refusal)
        }
    }

    /// A list with a gap would be told as the whole output: when one item doesn't fit, none is kept.
    private func keep(item: RawSpan) {
        guard !itemsLost else { return }
        guard itemsBytes + item.byteCount <= Limits.assembledBodyBytesMax else {
            (items, itemsBytes, itemsLost) = ([], 0, true)
            return
        }
        itemsBytes += item.byteCount
        items.append(item.withUnsafeBytes { Array($0) })
    }

    private static let outputLost = ProxyError(
        status: 503, code: "server_overloaded", type: "server_error",
        message: "The answer's items did not fit into codex-lb's memory (CODEX_LB_MEMORY_LIMIT); ask for a stream, or again later",
        origin: .ourselves)

    /// Passes an event on, in the form the client asked for.
    private func forward(_ event: RawSpan, _ json: RawSpan, mayHold: Bool = false) {
        switch answer {
        case .assembled: return
        case .chatEvents(var translator):
            answer = .none
            var out: [UInt8] = []
            translator.event(json, into: &out)
            answer = .chatEvents(translator)
            if !out.isEmpty {
                beginStream()
                client?.append(out.span.bytes)
            }
            return
        default: break
        }
        pass(event, mayHold: mayHold)
    }

    /// Passes an event on as it is.
    private func pass(_ event: RawSpan, mayHold: Bool = false) {
        guard case .events = answer else { return }
        if exchange.isInvisible {
            if mayHold || EventFields.isComment(event) {
                event.withUnsafeBytes { heldBack += $0 }
                if heldBack.count > Limits.heldBackBytesMax { beginStream() }
                return
            }
            if request.route == .responses, !sawCreated { beginWithCreated() } else { beginStream() }
        }
        client?.append(event)
    }

    /// SDKs insist on `response.created` as the first event; an upstream that leaves it out gets it put in.
    private func beginWithCreated() {
        beginStream()
        var out: [UInt8] = Array(
            "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":".utf8)
        JSONWriter.string(request.id, into: &out)
        out += ",\"object\":\"response\",\"created_at\":\(request.time.seconds),\"status\":\"in_progress\",\"model\":".utf8
        JSONWriter.string(ask.model, into: &out)
        out += ",\"output\":[],\"error\":null}}\n\n".utf8
        client?.append(out.span.bytes)
        sawCreated = true
    }

    private func complete(_ event: RawSpan, _ json: RawSpan) {
        switch answer {
        case .assembled:
            guard let range = JSONScan.find(json, "response") else {
                return streamBroke(code: "upstream_stream_truncated", message: "The upstream's terminal event has no response")
            }
            guard let body = withOutput(json.extracting(range)) else { return fail(Self.outputLost) }
            if request.route == .chatCompletions {
                let chat = ChatTranslation.chatCompletion(
                    fromResponse: body.span.bytes, model: ask.model, created: request.time.seconds, id: "chatcmpl-" + request.id)
                answerWhole(chat)
            } else {
                answerWhole(body)
            }
        case .chatEvents(var translator):
            answer = .none
            var out: [UInt8] = []
            translator.event(json, into: &out)
            translator.finish(into: &out)
            answer = .chatEvents(translator)
            beginStream()
            client?.append(out.span.bytes)
            settle(status: 200, errorCode: findings.errorCode ?? "")
        default:
            if isChatGPT, request.route == .responses, let response = JSONScan.find(json, "response"),
                lacksOutput(json.extracting(response))
            {
                guard let rebuilt = withRebuiltOutput(json, response) else { return streamBroke(Self.outputLost) }
                if exchange.isInvisible, !sawCreated { beginWithCreated() } else { beginStream() }
                client?.append(rebuilt.span.bytes)
            } else {
                pass(event)
            }
            // What was appended goes out at the end of this call: after the record.
            settle(status: 200, errorCode: findings.errorCode ?? "")
        }
    }

    private func failed(_ event: RawSpan, _ json: RawSpan, _ refusal: UpstreamRefusal) {
        let error = ErrorEnvelope.error(for: .failedEvent(refusal))
        switch answer {
        case .assembled:
            fail(error)
        case .chatEvents:
            if exchange.isInvisible { return fail(error) }
            settle(status: 200, errorCode: error.code)
            client?.append(ErrorEnvelope.chatFailure(error).span.bytes)
        default:
            settle(status: 200, errorCode: error.code)
            if request.route == .responses, JSONScan.find(json, "type").map({ JSONScan.equals(json, $0, "error") }) == true {
                // The SDK's stream knows `response.failed`; a bare `error` event is told as that.
                let isFirst = exchange.isInvisible && heldBack.isEmpty
                beginStream()
                let events = ErrorEnvelope.failedEvents(
                    error, responseID: findings.responseID ?? request.id, model: ask.model, createdSeconds: request.time.seconds,
                    createdFirst: isFirst)
                client?.append(events.span.bytes)
            } else {
                pass(event)
            }
        }
    }

    /// Its terminal event tells no output, and the items seen make one.
    private func lacksOutput(_ response: RawSpan) -> Bool {
        guard !items.isEmpty || itemsLost else { return false }
        guard let output = JSONScan.find(response, "output"), JSONScan.kind(response, output) == .array else { return true }
        return JSONScan.elements(response, output) { _ in false }
    }

    /// The response object with its output filled from the items seen, when its own is empty; nil when they were lost.
    private func withOutput(_ response: RawSpan) -> [UInt8]? {
        guard lacksOutput(response) else { return response.withUnsafeBytes { Array($0) } }
        guard !itemsLost else { return nil }
        var list: [UInt8] = [UInt8(ascii: "[")]
        for (i, item) in items.enumerated() {
            if i > 0 { list.append(UInt8(ascii: ",")) }
            list += item
        }
        list.append(UInt8(ascii: "]"))
        return JSONEdit.setting(response, [("output", list)])
    }

    /// The terminal event with a filled output; nil when its items were lost.
    private func withRebuiltOutput(_ json: RawSpan, _ range: Range<Int>) -> [UInt8]? {
        guard let response = withOutput(json.extracting(range)), let edited = JSONEdit.setting(json, [("response", response)]) else {
            return nil
        }
        let name = JSONScan.find(json, "type").flatMap { JSONScan.string(json, $0) } ?? "response.completed"
        return Array("event: \(name)\ndata: ".utf8) + edited + Array("\n\n".utf8)
    }

    /// The answer that was gathered, whole. The turn goes on until the upstream's body has ended, so that its connection can be kept.
    private func answerWhole(_ body: [UInt8]) {
        becomeVisible()
        client?.beginAnswer(status: 200, length: body.count) { head in
            HeadWriter.field("Content-Type", "application/json", into: &head)
            HeadWriter.field("X-Request-Id", request.id, into: &head)
        }
        client?.append(body.span.bytes)
        settle(status: 200, errorCode: findings.errorCode ?? "")
    }

    /// A chat stream of an OpenAI-compatible upstream.
    private func receivedChat(_ event: RawSpan) {
        guard let range = EventFields.data(of: event) else { return pass(event, mayHold: true) }
        let json = event.extracting(range)
        let isDone = json.withUnsafeBytes { $0.elementsEqual("[DONE]".utf8) }
        if isDone {
            pass(event)
            return settle(status: 200, errorCode: findings.errorCode ?? "")
        }
        var (usage, choices, isFailure): (Range<Int>?, Range<Int>?, Bool) = (nil, nil, false)
        JSONScan.members(json, nil) { key, value in
            if JSONScan.keyEquals(json, key, "usage") { usage = value }
            if JSONScan.keyEquals(json, key, "choices") { choices = value }
            if JSONScan.keyEquals(json, key, "error") { isFailure = isFailure || JSONScan.kind(json, value) != .null }
            if JSONScan.keyEquals(json, key, "type") { isFailure = isFailure || JSONScan.equals(json, value, "error") }
            return true
        }
        if isFailure {
            let refusal = UpstreamRefusal(event: json)
            if exchange.isInvisible {
                let verdict = FailoverTable.verdict(.failedEvent(refusal), attemptsOnAccount: 1, now: Clock.wall, jitter: 0)
                if verdict.next == .nextAccount { return failedBeforeVisible(refusal) }
            }
            findings.errorCode = refusal.code.isEmpty ? "upstream_error" : refusal.code
        } else if let usage, JSONScan.kind(json, usage) == .object {
            UsageTap.chatChunk(json, into: &findings)
            // The usage was asked for by us, not by the client: it gets the stream it asked for.
            if !ask.includesUsage, let choices {
                var isEmpty = true
                _ = JSONScan.elements(json, choices) { _ in
                    isEmpty = false
                    return false
                }
                if isEmpty { return }
            }
        }
        outputEvents += 1
        pass(event)
    }

    /// The body ended. After a terminal event that is the good end; before one the stream is cut.
    func endOfEvents() {
        guard !exchange.isFinished else { return worker.ended(self) }
        if hasSettled { return finishAnswer() }
        if request.route == .chatCompletions, !isChatGPT, findings.usage != nil || exchange.state == .visible && findings.errorCode != nil {
            settle(status: 200, errorCode: findings.errorCode ?? "")  // an upstream that sends no [DONE]
            return finishAnswer()
        }
        let isEmpty = exchange.isInvisible && heldBack.isEmpty
        streamBroke(
            code: isEmpty || request.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated",
            message: "The upstream's stream ended before the response was complete")
    }
}
