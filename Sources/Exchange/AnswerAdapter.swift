import Bytes
import HTTPWire
import JSONWire
public import Metering
import Translation
public import Vocabulary

/// What shapes the answer that a client gets.
public struct AnswerForm: Sendable {
    public let route: Route
    /// What the client asked for.
    public let wantsStream: Bool
    public let includesUsage: Bool
    public let model: String
    /// A login always answers with the events of the Responses API.
    public internal(set) var isChatGPT: Bool
    public let requestID: String
    public let createdSeconds: Int64

    public init(_ ask: TurnRequest, isChatGPT: Bool, requestID: String, createdSeconds: Int64) {
        (route, wantsStream, includesUsage, model) = (ask.route, ask.wantsStream, ask.includesUsage, ask.model)
        (self.isChatGPT, self.requestID, self.createdSeconds) = (isChatGPT, requestID, createdSeconds)
    }

    /// The upstream answers in the terms of chat completions.
    var isChatUpstream: Bool { route == .chatCompletions && !isChatGPT }
    var chatID: String { "chatcmpl-" + requestID }
}

/// One upstream answer on its way to the client: takes its bytes as they come, gives what the client gets of them and says what they mean
/// for the turn. Knows no socket, no time and no account.
///
/// ```
///  bytes ─▶ refusal                  an error status: its body is read to decide
///           undecided ─▶ events ─▶   passed on one by one, told as a chat stream, or assembled to one JSON answer
///                      ─▶ gathered   JSON where events belong: read whole before anything of it is told
///                      ─▶ body       passed on as it comes
/// ```
/// Nothing is in `out` before the answer tells something: up to then another account may still be asked, and what came is kept here.
public struct AnswerAdapter: Sendable {
    /// What the turn has to decide before more is fed.
    public enum Signal: Sendable, Equatable {
        /// The answer is whole. Its record is due before its end, which is in `out`, goes out; the code is empty when it is good.
        case complete(errorCode: String)
        /// The upstream tells a failure; `tellFailure` goes on with this answer. `mayMove`: nothing of the answer has been worked out, so that
        /// another account may be asked instead.
        case failed(UpstreamRefusal, mayMove: Bool)
        /// Nothing has been told, and the client gets this error in place of the answer. `inStream`: as an event, where it wants events.
        case refuse(ProxyError, inStream: Bool)
        /// The answer can't be told to its end; `tellBroken` says so.
        case broken(ProxyError)
        /// No API's answer but some gateway's page.
        case page
        /// More of an error answer's body than is read.
        case refused
    }

    /// How the client's answer begins.
    public enum Head: Sendable, Equatable {
        /// With the upstream's own fields and length.
        case received
        case stream
        /// A JSON answer of so many bytes.
        case whole(bytes: Int)
    }

    enum Mode: Sendable { case refusal, undecided, gathered, events, chatEvents, assembled, body }

    let form: AnswerForm
    var mode: Mode
    public private(set) var head = Head.stream
    /// Something of the answer, if only its head, is for the client: from here on no other account.
    public private(set) var isTelling = false
    /// What the answer told about itself.
    public var findings = UsageFindings()
    /// The answer's end has been seen.
    var isComplete = false

    var splitter = EventSplitter(eventBytesMax: Limits.eventBytesMax)
    /// Events that say nothing of the answer yet.
    private var heldBack: [UInt8] = []
    /// The body of an error, or JSON where events belong.
    private var gathered: [UInt8] = []
    private var copy = AnswerCopy()
    /// Bytes of the body before those that `copy` has.
    private var blankBytes = 0
    var translator: ChatStreamTranslator?
    var sawCreated = false
    /// Events of the answer that tell something of its text: about as many tokens.
    var outputEvents = 0
    /// The last event that told of the account's quotas, until it is taken; empty when there is none.
    private var quotaEvent: [UInt8] = []
    /// The failure that `tellFailure` tells.
    private var failure: (refusal: UpstreamRefusal, event: [UInt8])?

    // Of a chat stream
    /// Choices that have begun, and whether each goes on.
    var openChoices: [Int64: Bool] = [:]
    /// A chunk without choices has told the usage of the whole chat.
    var hasFinalUsage = false

    /// Output items of a login's stream, for answers whose terminal event leaves them out.
    var items: [[UInt8]] = []
    var itemsBytes = 0
    /// There was no room for some of them.
    var itemsLost = false

    public init(_ form: AnswerForm, status: Int, contentType: String) {
        self.form = form
        guard (200..<300).contains(status) else {
            mode = .refusal
            return
        }
        let type = contentType.lowercased()
        let mayBeEvents = form.wantsStream || form.isChatGPT && !form.route.isFile || type.hasPrefix("text/event-stream")
        mode = mayBeEvents || type.hasPrefix("text/html") ? .undecided : .body
    }

    // MARK: What it is

    /// An answer with an error status.
    public var isRefusal: Bool { mode == .refusal }
    /// Its body so far; nil of any other.
    public var refusalBody: [UInt8]? { mode == .refusal ? gathered : nil }
    public var isBody: Bool { mode == .body }
    /// Of a body that is passed on as it comes: bytes so far.
    public var bodyBytes: Int { blankBytes + copy.count }
    /// Its client can be told in between that the answer goes on.
    public var takesComments: Bool {
        switch mode {
        case .undecided, .gathered, .events, .chatEvents: true
        case .refusal, .assembled, .body: false
        }
    }
    public var isAssembled: Bool { mode == .assembled }
    /// No event has told anything of the answer yet.
    public var isBare: Bool { !sawCreated && outputEvents == 0 }
    /// A guess at the tokens that were told, for an answer that tells no usage: one event or four bytes to a token.
    public var tokensGuess: Int {
        switch mode {
        case .body: form.route == .embeddings ? 0 : copy.count / 4
        case .gathered: gathered.count / 4
        default: outputEvents
        }
    }

    /// Bytes of the answer that are held here.
    public var keptBytes: Int { copy.bytes.count + gathered.count + splitter.held.count + heldBack.count + itemsBytes }

    /// The instance has no room for what is kept: gives up what the client's answer can do without. Nil: the rest is small; else why the
    /// answer can't go on if that was not enough.
    public mutating func shed() -> String? {
        switch mode {
        case .body:
            copy.giveUp()  // its usage stands near its end, or is estimated
            return nil
        case .events, .chatEvents, .assembled:
            loseItems()
            return "an event of the answer does not fit"
        case .gathered: return "the answer does not fit"
        case .undecided, .refusal: return nil
        }
    }

    // MARK: Bytes

    /// Takes `bytes` from `offset` on. To be called again, with what `offset` says, after each signal; nil: all of them have been taken.
    public mutating func feed(_ bytes: RawSpan, _ offset: inout Int, into out: inout [UInt8]) -> Signal? {
        switch mode {
        case .events, .chatEvents, .assembled: return feedEvents(bytes, &offset, into: &out)
        case .undecided: return decide(bytes, &offset, into: &out)
        case .body:
            let piece = bytes.extracting(droppingFirst: offset)
            offset = bytes.byteCount
            open(.received, into: &out)
            copy.append(piece)
            out.append(piece)
        case .refusal:
            let piece = bytes.extracting(droppingFirst: offset)
            offset = bytes.byteCount
            let room = max(0, Limits.errorBodyBytesMax - gathered.count)
            gathered.append(piece.extracting(first: room))
            if piece.byteCount > room { return .refused }
        case .gathered:
            let piece = bytes.extracting(droppingFirst: offset)
            offset = bytes.byteCount
            guard gathered.count + piece.byteCount <= Limits.eventBytesMax else {
                return .broken(upstreamFault("upstream_unavailable", "The upstream's JSON answer is too large"))
            }
            gathered.append(piece)
        }
        return nil
    }

    /// The first byte that means something tells what it is: white space and a byte order mark mean nothing to either kind. What came before
    /// it is kept: a body is passed on as it is.
    private mutating func decide(_ bytes: RawSpan, _ offset: inout Int, into out: inout [UInt8]) -> Signal? {
        let start = offset
        let mark: [UInt8] = [0xEF, 0xBB, 0xBF]
        var i = start
        if gathered.count < mark.count, gathered.elementsEqual(mark.prefix(gathered.count)) {
            while i < bytes.byteCount, gathered.count + i - start < mark.count, bytes[i] == mark[gathered.count + i - start] { i += 1 }
            let matched = gathered.count + i - start
            if matched > 0, matched < mark.count, i < bytes.byteCount { i = start }  // no mark after all
        }
        while i < bytes.byteCount, bytes[i] == 0x20 || bytes[i] >= 0x09 && bytes[i] <= 0x0D { i += 1 }
        guard i < bytes.byteCount else {
            offset = bytes.byteCount
            gathered.append(bytes.extracting(start..<i))
            guard gathered.count <= Limits.heldBackBytesMax else {
                return .broken(upstreamFault("upstream_unavailable", "The upstream's answer begins with nothing but white space"))
            }
            return nil
        }
        offset = i
        let blank = gathered + bytes.array(start..<i)
        gathered = []
        switch bytes[i] {
        case UInt8(ascii: "<"):
            offset = bytes.byteCount
            return .page
        case UInt8(ascii: "{"), UInt8(ascii: "["):
            guard !form.wantsStream, !form.isChatGPT || form.route.isFile else {
                mode = .gathered
                break
            }
            mode = .body
            blankBytes = blank.count
            open(.received, into: &out)
            out += blank
        default: beginEvents()
        }
        return feed(bytes, &offset, into: &out)
    }

    private mutating func beginEvents() {
        if !form.wantsStream, form.isChatGPT {
            mode = .assembled
        } else if form.route == .chatCompletions, form.isChatGPT {
            mode = .chatEvents
            translator = ChatStreamTranslator(
                model: form.model, includeUsage: form.includesUsage, created: form.createdSeconds, id: form.chatID)
        } else {
            mode = .events
        }
    }

    private mutating func feedEvents(_ bytes: RawSpan, _ offset: inout Int, into out: inout [UInt8]) -> Signal? {
        // Deltas that pass as they are pass as one run of bytes.
        let mayRun = mode == .events && form.route.isResponses
        var run = offset..<offset
        while true {
            let next: EventSplitter.Event?
            do throws(WireError) { next = try splitter.next(bytes, &offset) } catch {
                out.append(bytes.extracting(run))
                return .broken(upstreamFault("stream_event_too_large", error.reason))
            }
            let signal: Signal?
            switch next {
            case .here(let place):
                if mayRun, hasBegun, !isComplete, Self.isDelta(bytes, place, line: splitter.lastLine) {
                    outputEvents += 1
                    run = run.lowerBound..<place.upperBound
                    continue
                }
                if !run.isEmpty { out.append(bytes.extracting(run)) }
                signal = take(event: bytes.extracting(place), into: &out)
            case .held:
                let whole = splitter.takeHeld()
                signal = take(event: whole.span.bytes, into: &out)
            case nil:
                if !run.isEmpty { out.append(bytes.extracting(run)) }
                return nil
            }
            run = offset..<offset
            if let signal { return signal }
        }
    }

    /// An event in its usual form, a line `event: …` before one line of data or that line alone, whose type is a Responses delta's. `line`: where
    /// its last line starts; nil when it has another form.
    private static func isDelta(_ bytes: RawSpan, _ event: Range<Int>, line: Int?) -> Bool {
        guard let line else { return false }
        if line > event.lowerBound {
            // The only other line is the name.
            guard bytes.hasPrefix("event: response.", at: event.lowerBound) else { return false }
        }
        let mark: StaticString = "data: {\"type\":\"response."
        guard bytes.hasPrefix(mark, at: line) else { return false }
        let name = line + mark.utf8CodeUnitCount
        guard let end = bytes.first(Ascii.quote, from: name, to: min(name + 64, event.upperBound)) else { return false }
        return end - name >= 6 && bytes.equals(end - 6..<end, ".delta")
    }

    private mutating func take(event: RawSpan, into out: inout [UInt8]) -> Signal? {
        if isComplete {
            if isAfterword(event) { pass(event, mayHold: true, into: &out) }
            return nil
        }
        if let data = EventFields.data(of: event) { return take(event: event, event.extracting(data), into: &out) }
        let joined = EventFields.joinedData(of: event)
        if !joined.isEmpty { return take(event: event, joined.span.bytes, into: &out) }
        // A bare `event:`, `id:` or `retry:` is no event (WHATWG HTML §9.2.6), but OpenAI's SDK takes it for one without JSON and fails.
        if EventFields.isComment(event) { pass(event, mayHold: true, into: &out) }
        return nil
    }

    private mutating func take(event: RawSpan, _ json: RawSpan, into out: inout [UInt8]) -> Signal? {
        form.isChatUpstream ? takeChunk(event, json, into: &out) : takeResponses(event, json, into: &out)
    }

    /// What may still follow the terminal event: comments and `[DONE]`, where the answer is the upstream's own. One end is told, not two.
    private func isAfterword(_ event: RawSpan) -> Bool {
        guard mode == .events, form.route != .chatCompletions else { return false }
        guard let data = EventFields.data(of: event) else { return EventFields.isComment(event) }
        return Self.isDone(event.extracting(data))
    }

    /// `[DONE]`, with space around it or none.
    static func isDone(_ data: RawSpan) -> Bool { data.equals(data.trimmed(0..<data.byteCount), "[DONE]") }

    // MARK: The end

    /// The upstream's body is whole. To be called again after each signal; nil: the answer has been told.
    public mutating func end(into out: inout [UInt8]) -> Signal? {
        if isComplete { return nil }
        switch mode {
        case .refusal: return .refused
        case .gathered: return tellGathered(into: &out)
        case .body: return endBody(into: &out)
        case .undecided:
            beginEvents()
            return endEvents(into: &out)
        case .events, .chatEvents, .assembled: return endEvents(into: &out)
        }
    }

    private mutating func endEvents(into out: inout [UInt8]) -> Signal? {
        if let signal = takeUnfinished(into: &out) { return signal }
        if isComplete { return nil }
        let isEnding = !openChoices.isEmpty && !openChoices.values.contains(true)
        if form.isChatUpstream, isEnding || hasFinalUsage || findings.errorCode != nil {
            // An upstream that sends no [DONE]: clients wait for it.
            if findings.errorCode == nil { pass("data: [DONE]\n\n".utf8Span.span.bytes, into: &out) }
            return complete()
        }
        return .broken(
            upstreamFault(
                isBare || form.route == .codexResponses ? "stream_incomplete" : "upstream_stream_truncated",
                "The upstream's stream ended before the response was complete"))
    }

    /// An upstream that ends its body right behind its last event, without the blank line, has said all of it when that event is whole.
    private mutating func takeUnfinished(into out: inout [UInt8]) -> Signal? {
        var rest = splitter.takeHeld()
        guard !rest.isEmpty else { return nil }
        splitter = EventSplitter(eventBytesMax: Limits.eventBytesMax)
        let data = EventFields.joinedData(of: rest.span.bytes)
        guard Self.isDone(data.span.bytes) || (try? JSONDocument(data)) != nil else { return nil }  // cut in the middle
        rest += [Ascii.lf, Ascii.lf]
        return take(event: rest.span.bytes, into: &out)
    }

    private mutating func endBody(into out: inout [UInt8]) -> Signal? {
        open(.received, into: &out)
        let body = copy.isWhole ? copy.bytes : copy.usageInTail
        switch form.route {
        case .chatCompletions: UsageTap.chatChunk(body.span.bytes, into: &findings)
        case .embeddings: UsageTap.embeddingsBody(body.span.bytes, into: &findings)
        case .files: findings.fileID = JSONScan.find(body.span.bytes, "file_id").flatMap { JSONScan.string(body.span.bytes, $0) }
        case .fileUploaded: break
        default: UsageTap.responsesBody(body.span.bytes, into: &findings)
        }
        // A body that is no object was not looked through.
        let mayFail = findings.mayTellFailure || findings.usage == nil
        if copy.isWhole, mayFail, let failure = UpstreamRefusal(answer: body.span.bytes) {
            findings.errorCode = failure.code.isEmpty ? "upstream_error" : failure.code
        }
        return complete()
    }

    /// A JSON answer where events belong, told in the form that was asked for.
    private mutating func tellGathered(into out: inout [UInt8]) -> Signal? {
        let body = gathered
        let json = body.span.bytes
        if let refusal = UpstreamRefusal(answer: json) { return fail(refusal, []) }
        guard (try? JSONDocument(body)) != nil else {  // what is wrong with it says nothing more
            return .broken(upstreamFault("upstream_stream_truncated", "The upstream's answer is no whole JSON"))
        }
        if form.isChatUpstream { UsageTap.chatChunk(json, into: &findings) } else { UsageTap.responsesBody(json, into: &findings) }
        let isChat = form.route == .chatCompletions
        let told = isChat && form.isChatGPT ? chatCompletion(json) : body
        guard form.wantsStream else { return tellWhole(told, into: &out) }
        if isChat {
            guard let chunk = ChatTranslation.chunk(fromCompletion: told.span.bytes) else {
                return .broken(upstreamFault("upstream_stream_truncated", "The upstream's answer is no chat completion"))
            }
            open(into: &out)
            out += Array("data: ".utf8) + chunk + Array("\n\ndata: [DONE]\n\n".utf8)
        } else {
            begin(into: &out)
            out += "event: response.completed\ndata: {\"type\":\"response.completed\",\"sequence_number\":1,\"response\":".utf8
            out += body
            out += "}\n\n".utf8
        }
        return complete()
    }

    func chatCompletion(_ response: RawSpan) -> [UInt8] {
        ChatTranslation.chatCompletion(fromResponse: response, model: form.model, created: form.createdSeconds, id: form.chatID)
    }

    mutating func countOutput() { outputEvents += 1 }

    mutating func keepQuotaEvent(_ json: RawSpan) {
        guard json.byteCount <= Limits.quotaEventBytesMax else { return }
        quotaEvent = json.array(0..<json.byteCount)
    }

    /// What the upstream told of its quotas since this was called last, as JSON.
    public mutating func takeQuotaEvent() -> [UInt8]? {
        guard !quotaEvent.isEmpty else { return nil }
        defer { quotaEvent = [] }
        return quotaEvent
    }

    mutating func complete() -> Signal {
        (isComplete, items, itemsBytes) = (true, [], 0)
        return .complete(errorCode: findings.errorCode ?? "")
    }

    mutating func tellWhole(_ body: [UInt8], into out: inout [UInt8]) -> Signal {
        open(.whole(bytes: body.count), into: &out)
        out += body
        return complete()
    }

    // MARK: Telling

    /// From here on the client sees this answer: what was held back goes out.
    public mutating func open(into out: inout [UInt8]) { open(.stream, into: &out) }

    private mutating func open(_ head: Head, into out: inout [UInt8]) {
        guard !isTelling else { return }
        (isTelling, self.head) = (true, head)
        out += heldBack
        heldBack = []
    }

    /// `begin` has nothing more to do.
    private var hasBegun: Bool { isTelling && (form.route != .responses || sawCreated) }

    /// Something of the answer is told. SDKs insist on `response.created` as the first event; where the upstream left it out it is put in.
    mutating func begin(into out: inout [UInt8]) {
        open(into: &out)
        guard form.route == .responses, !sawCreated else { return }
        out += "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":".utf8
        JSONWriter.string(form.requestID, into: &out)
        out += ",\"object\":\"response\",\"created_at\":\(form.createdSeconds),\"status\":\"in_progress\",\"model\":".utf8
        JSONWriter.string(form.model, into: &out)
        out += ",\"output\":[],\"error\":null}}\n\n".utf8
        sawCreated = true
    }

    /// Passes an event on as it is.
    mutating func pass(_ event: RawSpan, mayHold: Bool = false, into out: inout [UInt8]) {
        guard mode == .events else { return }
        if !isTelling, mayHold {
            heldBack.append(event)
            if heldBack.count > Limits.heldBackBytesMax { open(into: &out) }
            return
        }
        if !mayHold { begin(into: &out) }
        out.append(event)
    }

    /// Passes an event on, in the form the client asked for.
    mutating func forward(_ event: RawSpan, _ json: RawSpan, mayHold: Bool = false, into out: inout [UInt8]) {
        switch mode {
        case .assembled: return
        case .chatEvents:
            let before = out.count
            translator!.event(json, into: &out)
            if out.count > before { open(into: &out) }
        default: pass(event, mayHold: mayHold, into: &out)
        }
    }

    func upstreamFault(_ code: String, _ message: String) -> ProxyError {
        ProxyError(status: 502, code: code, type: "server_error", message: message, origin: .upstream)
    }

    // MARK: Failures

    mutating func fail(_ refusal: UpstreamRefusal, _ event: [UInt8]) -> Signal {
        failure = (refusal, event)
        return .failed(refusal, mayMove: !isTelling && outputEvents == 0)
    }

    /// Goes on with an answer that told a failure: that is the client's answer.
    public mutating func tellFailure(into out: inout [UInt8]) -> Signal? {
        guard let (refusal, event) = failure else { return nil }
        failure = nil
        let error = ErrorEnvelope.error(for: .failedEvent(refusal))
        if mode == .gathered { return isTelling ? .broken(error) : .refuse(error, inStream: true) }
        if form.isChatUpstream {
            tellChunk(failure: error, event.span.bytes, into: &out)
            return nil
        }
        switch mode {
        case .assembled: return .refuse(error, inStream: false)
        case .chatEvents:
            guard isTelling else { return .refuse(error, inStream: false) }
            out += ErrorEnvelope.chatFailure(error)
        default:
            let json = EventFields.joinedData(of: event.span.bytes)
            if JSONScan.find(json.span.bytes, "type").map({ JSONScan.equals(json.span.bytes, $0, "response.failed") }) == true {
                pass(event.span.bytes, into: &out)
            } else {
                // SDKs and Codex know `response.failed`: every other form is told as that.
                open(into: &out)
                out += failedEvents(error)
            }
        }
        isComplete = true
        return .complete(errorCode: error.code)
    }

    /// Ends an answer that can't be told to its end. What it returns is the code of its record.
    public mutating func tellBroken(_ error: ProxyError, into out: inout [UInt8]) -> String {
        if let told = findings.errorCode { return told }  // the upstream's own word is out: one is enough
        open(into: &out)
        out += form.route.isResponses ? failedEvents(error) : ErrorEnvelope.chatFailure(error)
        return error.code
    }

    private func failedEvents(_ error: ProxyError) -> [UInt8] {
        ErrorEnvelope.failedEvents(
            error, responseID: findings.responseID ?? form.requestID, model: form.model, createdSeconds: form.createdSeconds,
            createdFirst: !sawCreated && form.route == .responses)
    }
}
