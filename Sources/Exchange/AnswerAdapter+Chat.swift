import Bytes
import HTTPWire
import JSONWire
import Metering
import Vocabulary

/// Chat streams of OpenAI-compatible upstreams.
extension AnswerAdapter {
    mutating func takeChunk(_ event: RawSpan, _ json: RawSpan, into out: inout [UInt8]) -> Signal? {
        if Self.isDone(json) {
            pass(event, into: &out)
            return complete()
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
        if choices == nil || mayFail || EventFields.name(of: event) != nil, Self.isFailure(event, json) || !Self.isJSON(json) {
            guard findings.errorCode == nil else { return nil }  // told, and counted against the account, once
            return fail(UpstreamRefusal(event: json), event.array(0..<event.byteCount))
        }
        if let usage, JSONScan.kind(json, usage) == .object {
            UsageTap.chatChunk(json, into: &findings)
            if !hasChoices { hasFinalUsage = true }
            // The usage was asked for by us, not by the client: it gets the stream it asked for.
            if !form.includesUsage, choices != nil, !hasChoices { return nil }
        }
        if hasChoices { countOutput() }
        pass(event, mayHold: !hasChoices, into: &out)
        return nil
    }

    /// The stream goes on behind a failure that it tells.
    mutating func tellChunk(failure error: ProxyError, _ event: RawSpan, into out: inout [UInt8]) {
        findings.errorCode = error.code
        // SDKs look for an object `error` in the chunk.
        let json = EventFields.joinedData(of: event)
        if let told = JSONScan.find(json.span.bytes, "error"), JSONScan.kind(json.span.bytes, told) == .object {
            return pass(event, into: &out)
        }
        begin(into: &out)
        out += "data: ".utf8
        out += ErrorEnvelope.body(error)
        out += "\n\n".utf8
    }

    private static func isJSON(_ data: RawSpan) -> Bool {
        let i = data.skippingSpace(0)
        return i < data.byteCount && (data[i] == Ascii.openBrace || data[i] == Ascii.openBracket)
    }
}
