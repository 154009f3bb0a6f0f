import Bytes
import HTTPWire
import JSONWire
import Metering
import Translation
import Vocabulary

/// Streams of the Responses API.
extension AnswerAdapter {
    private enum Kind {
        case opening  // response.created, queued, in_progress: nothing of the answer yet
        case vendor  // codex.*
        case quota  // codex.rate_limits
        case aside  // pings and the like: nothing of the answer at all
        case completed, failed, error
        case itemDone
        case other
    }

    mutating func takeResponses(_ event: RawSpan, _ json: RawSpan, into out: inout [UInt8]) -> Signal? {
        let kind = Self.kind(event, json)
        switch kind {
        case .opening:
            sawCreated = true
            if let id = JSONScan.find(json, "response", "id") { findings.responseID = JSONScan.string(json, id) }
            forward(event, json, mayHold: true, into: &out)
        case .aside:
            forward(event, json, mayHold: true, into: &out)
        case .vendor, .quota:
            if kind == .quota { keepQuotaEvent(json) }
            if form.route == .codexResponses { forward(event, json, mayHold: true, into: &out) }
        case .itemDone:
            outputEvents += 1
            if needsItems, let item = JSONScan.find(json, "item") { keep(item: json.extracting(item)) }
            forward(event, json, into: &out)
        case .other:
            outputEvents += 1
            forward(event, json, into: &out)
        case .completed:
            let response = UsageTap.responsesEvent(json, into: &findings)
            if findings.status == "failed" { return fail(UpstreamRefusal(event: json), event.array(0..<event.byteCount)) }
            return complete(event, json, response, into: &out)
        case .failed, .error:
            UsageTap.responsesEvent(json, into: &findings)
            return fail(UpstreamRefusal(event: json), event.array(0..<event.byteCount))
        }
        return nil
    }

    /// The type stands in the JSON; some upstreams have it in the `event:` line alone.
    private static func kind(_ event: RawSpan, _ json: RawSpan) -> Kind {
        let type = JSONScan.member(json, "type").flatMap { JSONScan.kind(json, $0) == .string ? $0 : nil }
        if let type {
            let inner = type.lowerBound + 1..<type.upperBound - 1
            let kind: Kind
            if json.first(Ascii.backslash, from: inner.lowerBound, to: inner.upperBound) == nil {
                kind = Self.kind(named: json.extracting(inner))
            } else {
                let text = Array((JSONScan.string(json, type) ?? "").utf8)
                kind = Self.kind(named: text.span.bytes)
            }
            if kind != .aside, kind != .error { return kind }
        }
        if isFailure(event, json) { return .error }
        guard type == nil, let name = EventFields.name(of: event) else { return .aside }
        return kind(named: event.extracting(name))
    }

    private static func kind(named name: RawSpan) -> Kind {
        guard name.hasPrefix("response.") else {
            guard name.hasPrefix("codex.") else { return name.equals("error") ? .error : .aside }
            return name.equals("codex.rate_limits") ? .quota : .vendor
        }
        let rest = name.extracting(droppingFirst: 9)
        switch rest.byteCount {
        case 5: return rest.equals("error") ? .error : .other
        case 6: return rest.equals("failed") ? .failed : rest.equals("queued") ? .opening : .other
        case 7: return rest.equals("created") ? .opening : .other
        case 9: return rest.equals("completed") || rest.equals("cancelled") ? .completed : .other
        case 10: return rest.equals("incomplete") ? .completed : .other
        case 11: return rest.equals("in_progress") ? .opening : .other
        case 16: return rest.equals("output_item.done") ? .itemDone : .other
        default: return .other
        }
    }

    static func isFailure(_ event: RawSpan, _ json: RawSpan) -> Bool {
        guard let name = EventFields.name(of: event) else { return UpstreamRefusal.isTold(json) }
        return UpstreamRefusal.isTold(json, name: event.extracting(name))
    }

    private mutating func complete(_ event: RawSpan, _ json: RawSpan, _ response: Range<Int>?, into out: inout [UInt8]) -> Signal {
        switch mode {
        case .assembled:
            guard let response else {
                return .broken(upstreamFault("upstream_stream_truncated", "The upstream's terminal event has no response"))
            }
            guard let body = withOutput(json.extracting(response)) else { return .refuse(Self.outputLost, inStream: false) }
            return tellWhole(form.route == .chatCompletions ? chatCompletion(body.span.bytes) : body, into: &out)
        case .chatEvents:
            open(into: &out)
            translator!.event(json, into: &out)
            translator!.finish(into: &out)
        default:
            if form.isChatGPT, form.route == .responses, let response,
                lacksOutput(json.extracting(response))
            {
                guard let rebuilt = withRebuiltOutput(json, response) else { return .broken(Self.outputLost) }
                begin(into: &out)
                out += rebuilt
            } else {
                pass(event, into: &out)
            }
        }
        return complete()
    }

    // MARK: Output items

    /// A login's terminal event may leave the output out; then what is told whole needs the items that came before it.
    private var needsItems: Bool { form.isChatGPT && (mode == .assembled || mode == .events && form.route == .responses) }

    /// A list with a gap would be told as the whole output: when one item doesn't fit, none is kept.
    private mutating func keep(item: RawSpan) {
        guard !itemsLost else { return }
        let cost = item.byteCount + Limits.itemOverheadBytes
        guard itemsBytes + cost <= Limits.assembledBodyBytesMax else {
            (items, itemsBytes, itemsLost) = ([], 0, true)
            return
        }
        itemsBytes += cost
        items.append(item.array(0..<item.byteCount))
    }

    mutating func loseItems() { (items, itemsBytes, itemsLost) = ([], 0, itemsLost || !items.isEmpty) }

    private static let outputLost = ProxyError(
        status: 503, code: "server_overloaded", type: "server_error",
        message:
            "The answer's items did not fit into codex-lb's memory (CODEX_LB_MEMORY_LIMIT), so its end can't be told whole. Try again later",
        origin: .ourselves)

    /// Its terminal event tells no output, and the items seen make one.
    private func lacksOutput(_ response: RawSpan) -> Bool {
        guard !items.isEmpty || itemsLost else { return false }
        guard let output = JSONScan.find(response, "output"), JSONScan.kind(response, output) == .array else { return true }
        return JSONScan.elements(response, output) { _ in false }
    }

    /// The response object with its output filled from the items seen, when its own is empty; nil when they were lost.
    private func withOutput(_ response: RawSpan) -> [UInt8]? {
        guard lacksOutput(response) else { return response.array(0..<response.byteCount) }
        guard !itemsLost else { return nil }
        var list: [UInt8] = [Ascii.openBracket]
        for (i, item) in items.enumerated() {
            if i > 0 { list.append(Ascii.comma) }
            list += item
        }
        list.append(Ascii.closeBracket)
        return JSONEdit.setting(response, [("output", list)])
    }

    /// The terminal event with a filled output; nil when its items were lost.
    private func withRebuiltOutput(_ json: RawSpan, _ place: Range<Int>) -> [UInt8]? {
        guard let response = withOutput(json.extracting(place)), let edited = JSONEdit.setting(json, [("response", response)]) else {
            return nil
        }
        let name = JSONScan.find(json, "type").flatMap { JSONScan.string(json, $0) } ?? "response.completed"
        return Array("event: \(name)\ndata: ".utf8) + edited + Array("\n\n".utf8)
    }
}
