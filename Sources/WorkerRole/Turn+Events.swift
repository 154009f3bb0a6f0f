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
        case aside  // pings and the like: nothing of the answer at all
        case completed, failed, error
        case itemDone
        case other
    }

    func received(event: RawSpan) {
        guard !exchange.isFinished else { return }
        if hasSettled, !isAfterword(event) { return }
        if let data = EventFields.data(of: event) { return received(event, event.extracting(data)) }
        let joined = EventFields.joinedData(of: event)
        if !joined.isEmpty { return received(event, joined.span.bytes) }
        // A bare `event:`, `id:` or `retry:` is no event (WHATWG HTML §9.2.6), but OpenAI's SDK takes it for one without JSON and fails.
        if EventFields.isComment(event) { pass(event, mayHold: true) }
    }

    private func received(_ event: RawSpan, _ json: RawSpan) {
        if request.route == .chatCompletions, !isChatGPT { chat(event, json) } else { responses(event, json) }
    }

    /// A JSON answer where events belong, told in the form that was asked for.
    func tell(gathered body: [UInt8]) {
        let json = body.span.bytes
        if let refusal = UpstreamRefusal(answer: json) {
            if goesToAnotherAccount(refusal) { return }
            let error = ErrorEnvelope.error(for: .failedEvent(refusal))
            return exchange.isInvisible ? fail(error, inStream: true) : streamBroke(error)
        }
        guard (try? JSONDocument(body)) != nil else {  // what is wrong with it says nothing more
            return streamBroke(code: "upstream_stream_truncated", message: "The upstream's answer is no whole JSON")
        }
        let isChat = request.route == .chatCompletions
        if isChat, !isChatGPT { UsageTap.chatChunk(json, into: &findings) } else { UsageTap.responsesBody(json, into: &findings) }
        let chat =
            isChat && isChatGPT
            ? ChatTranslation.chatCompletion(
                fromResponse: json, model: ask.model, created: request.time.seconds, id: "chatcmpl-" + request.id) : body
        guard ask.wantsStream else {
            answerWhole(chat)
            return finishAnswer()
        }
        if isChat {
            guard let chunk = ChatTranslation.chunk(fromCompletion: chat.span.bytes) else {
                return streamBroke(code: "upstream_stream_truncated", message: "The upstream's answer is no chat completion")
            }
            beginStream()
            client?.append((Array("data: ".utf8) + chunk + Array("\n\ndata: [DONE]\n\n".utf8)).span.bytes)
        } else {
            begin()
            let end = Array("event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":1,\"response\":".utf8)
            client?.append((end + body + Array("}\n\n".utf8)).span.bytes)
        }
        settle(status: 200, errorCode: "")
        finishAnswer()
    }

    /// What may still follow the terminal event: comments and `[DONE]`, where the answer is the upstream's own. One end is told, not two.
    private func isAfterword(_ event: RawSpan) -> Bool {
        guard case .events = answer, request.route != .chatCompletions else { return false }
        guard let data = EventFields.data(of: event) else { return EventFields.isComment(event) }
        return Self.isDone(event.extracting(data))
    }

    private static func isJSON(_ data: RawSpan) -> Bool {
        data.withUnsafeBytes { $0.first { $0 > 0x20 } }.map { $0 == UInt8(ascii: "{") || $0 == UInt8(ascii: "[") } ?? false
    }

    /// `[DONE]`, with space around it or none.
    private static func isDone(_ data: RawSpan) -> Bool {
        data.withUnsafeBytes { raw in
            var text = raw[...]
            while text.first == 0x20 || text.first == 0x09 { text.removeFirst() }
            while text.last == 0x20 || text.last == 0x09 { text.removeLast() }
            return text.elementsEqual("[DONE]".utf8)
        }
    }

    /// The type stands in the JSON; some upstreams have it in the `event:` line alone.
    private func kind(_ event: RawSpan, _ json: RawSpan) -> Kind {
        let type = JSONScan.find(json, "type").flatMap { JSONScan.kind(json, $0) == .string ? $0 : nil }
        if let type {
            let kind = kind(json, { JSONScan.equals(json, type, $0) }, prefix: { JSONScan.string(json, type)?.hasPrefix($0) == true })
            if kind != .aside, kind != .error { return kind }
        }
        if isFailure(event, json) { return .error }
        guard type == nil, let name = EventFields.name(of: event) else { return .aside }
        let text = event.extracting(name).withUnsafeBytes { String(decoding: $0, as: UTF8.self) }
        return kind(json, { $0.withUTF8Buffer { text.utf8.elementsEqual($0) } }, prefix: { text.hasPrefix($0) })
    }

    private func isFailure(_ event: RawSpan, _ json: RawSpan) -> Bool {
        guard let name = EventFields.name(of: event) else { return UpstreamRefusal.isTold(json) }
        return UpstreamRefusal.isTold(json, name: event.extracting(name))
    }

    private func kind(_ json: RawSpan, _ equals: (StaticString) -> Bool, prefix: (String) -> Bool) -> Kind {
        if equals("response.output_text.delta") { return .other }
        if equals("response.output_item.done") { return .itemDone }
        if equals("response.completed") || equals("response.incomplete") || equals("response.cancelled") { return .completed }
        if equals("response.failed") { return .failed }
        if equals("error") || equals("response.error") { return .error }
        if equals("response.created") || equals("response.in_progress") || equals("response.queued") { return .opening }
        if prefix("response.") { return .other }
        return prefix("codex.") ? .vendor : .aside
    }

    private func responses(_ event: RawSpan, _ json: RawSpan) {
        switch kind(event, json) {
        case .opening:
            sawCreated = true
            if let id = JSONScan.find(json, "response", "id") { findings.responseID = JSONScan.string(json, id) }
            forward(event, json, mayHold: true)
        case .aside:
            forward(event, json, mayHold: true)
        case .vendor:
            if request.route == .codexResponses { forward(event, json, mayHold: true) }
        case .itemDone:
            outputEvents += 1
            if needsItems, let item = JSONScan.find(json, "item") { keep(item: json.extracting(item)) }
            forward(event, json)
        case .other:
            outputEvents += 1
            forward(event, json)
        case .completed:
            UsageTap.responsesEvent(json, into: &findings)
            if let status = JSONScan.find(json, "response", "status"), JSONScan.equals(json, status, "failed") {
                return failed(event, json)
            }
            complete(event, json)
        case .failed, .error:
            UsageTap.responsesEvent(json, into: &findings)
            failed(event, json)
        }
    }

    private func failed(_ event: RawSpan, _ json: RawSpan) {
        let refusal = UpstreamRefusal(event: json)
        if !goesToAnotherAccount(refusal) { failed(event, json, refusal) }
    }

    /// Only what the table lets go to another account ends the attempt, and only while nothing of the answer has been worked out: that would
    /// be paid for twice. The rest is the answer; what it tells of the account counts all the same.
    func goesToAnotherAccount(_ refusal: UpstreamRefusal) -> Bool {
        let verdict = FailoverTable.verdict(.failedEvent(refusal), attemptsOnAccount: 1, now: Clock.wall, jitter: 0, model: ask.model)
        if exchange.isInvisible, outputEvents == 0, verdict.next == .nextAccount {
            failedBeforeVisible(refusal)
            return true
        }
        penalise(refusal, verdict.penalty)
        return false
    }

    /// A login's terminal event may leave the output out; then what is told whole needs the items that came before it.
    private var needsItems: Bool {
        guard isChatGPT else { return false }
        switch answer {
        case .assembled: return true
        case .events: return request.route == .responses
        case .none, .undecided, .gathered, .refusal, .body, .chatEvents: return false
        }
    }

    /// A list with a gap would be told as the whole output: when one item doesn't fit, none is kept.
    private func keep(item: RawSpan) {
        guard !itemsLost else { return }
        let cost = item.byteCount + Limits.itemOverheadBytes
        guard itemsBytes + cost <= Limits.assembledBodyBytesMax else {
            (items, itemsBytes, itemsLost) = ([], 0, true)
            return
        }
        itemsBytes += cost
        items.append(item.withUnsafeBytes { Array($0) })
    }

    private static let outputLost = ProxyError(
        status: 503, code: "server_overloaded", type: "server_error",
        message:
            "The answer's items did not fit into codex-lb's memory (CODEX_LB_MEMORY_LIMIT), so its end can't be told whole. Try again later",
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
        if exchange.isInvisible, mayHold {
            event.withUnsafeBytes { heldBack += $0 }
            if heldBack.count > Limits.heldBackBytesMax { beginStream() }
            return
        }
        if !mayHold { begin() }
        client?.append(event)
    }

    /// Something of the answer is about to be told. SDKs insist on `response.created` as the first event; where the upstream left it out it
    /// is put in.
    private func begin() {
        beginStream()
        guard request.route == .responses, !sawCreated else { return }
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
                begin()
                client?.append(rebuilt.span.bytes)
            } else {
                pass(event)
            }
            // What was appended goes out at the end of this call: after the record.
            settle(status: 200, errorCode: findings.errorCode ?? "")
        }
        (items, itemsBytes) = ([], 0)
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
            if JSONScan.find(json, "type").map({ JSONScan.equals(json, $0, "response.failed") }) != true {
                // SDKs and Codex know `response.failed`: every other form is told as that.
                beginStream()
                let events = ErrorEnvelope.failedEvents(
                    error, responseID: findings.responseID ?? request.id, model: ask.model, createdSeconds: request.time.seconds,
                    createdFirst: !sawCreated && request.route == .responses)
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

    /// An event of a chat stream of an OpenAI-compatible upstream.
    private func chat(_ event: RawSpan, _ json: RawSpan) {
        if Self.isDone(json) {
            pass(event)
            return settle(status: 200, errorCode: findings.errorCode ?? "")
        }
        var (usage, choices, mayFail): (Range<Int>?, Range<Int>?, Bool) = (nil, nil, false)
        JSONScan.members(json, nil) { key, value in
            if JSONScan.keyEquals(json, key, "error") || JSONScan.keyEquals(json, key, "type") { mayFail = true }
            if JSONScan.keyEquals(json, key, "usage") { usage = value }
            if JSONScan.keyEquals(json, key, "choices") { choices = value }
            if findings.modelServed.isEmpty, JSONScan.keyEquals(json, key, "model") {
                findings.modelServed = JSONScan.string(json, value) ?? ""
            }
            return true
        }
        var hasChoices = false
        if let choices {
            JSONScan.elements(json, choices) { choice in
                hasChoices = true
                let index = JSONScan.find(json, in: choice, "index").flatMap { JSONScan.int(json, $0) } ?? 0
                let reason = JSONScan.find(json, in: choice, "finish_reason").flatMap { JSONScan.string(json, $0) } ?? ""
                if openChoices[index] != nil || openChoices.count < Limits.choicesMax { openChoices[index] = reason.isEmpty }
                return true
            }
        }
        // What has choices and none of these words is no failure, whatever it is in: most chunks are not looked at twice.
        if choices == nil || mayFail || EventFields.name(of: event) != nil, isFailure(event, json) || !Self.isJSON(json) {
            guard findings.errorCode == nil else { return }  // told, and counted against the account, once
            let refusal = UpstreamRefusal(event: json)
            if goesToAnotherAccount(refusal) { return }
            let error = ErrorEnvelope.error(for: .failedEvent(refusal))
            findings.errorCode = error.code
            // SDKs look for an object `error` in the chunk.
            if let told = JSONScan.find(json, "error"), JSONScan.kind(json, told) == .object { return pass(event) }
            begin()
            client?.append((Array("data: ".utf8) + ErrorEnvelope.body(error) + Array("\n\n".utf8)).span.bytes)
            return
        }
        if let usage, JSONScan.kind(json, usage) == .object {
            UsageTap.chatChunk(json, into: &findings)
            if !hasChoices { hasFinalUsage = true }
            // The usage was asked for by us, not by the client: it gets the stream it asked for.
            if !ask.includesUsage, choices != nil, !hasChoices { return }
        }
        if hasChoices { outputEvents += 1 }
        pass(event, mayHold: !hasChoices)
    }

    /// An upstream that ends its body right behind its last event, without the blank line, has said all of it when that event is whole.
    private func takeUnfinishedEvent() {
        let rest = splitter.held
        guard !hasSettled, !rest.isEmpty else { return }
        let data = EventFields.joinedData(of: rest.span.bytes)
        guard Self.isDone(data.span.bytes) || (try? JSONDocument(data)) != nil else { return }  // cut in the middle
        splitter = EventSplitter(eventBytesMax: Limits.eventBytesMax)
        received(event: (rest + [0x0A, 0x0A]).span.bytes)
    }

    /// The body ended. After a terminal event that is the good end; before one the stream is cut.
    func endOfEvents() {
        takeUnfinishedEvent()
        guard !exchange.isFinished else { return worker.ended(self) }
        if hasSettled { return finishAnswer() }
        let isEnding = !openChoices.isEmpty && !openChoices.values.contains(true)
        if request.route == .chatCompletions, !isChatGPT, isEnding || hasFinalUsage || findings.errorCode != nil {
            // An upstream that sends no [DONE]: clients wait for it.
            if findings.errorCode == nil { pass("data: [DONE]\n\n".utf8Span.span.bytes) }
            settle(status: 200, errorCode: findings.errorCode ?? "")
            return finishAnswer()
        }
        streamBroke(
            code: isBare || request.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated",
            message: "The upstream's stream ended before the response was complete")
    }
}
