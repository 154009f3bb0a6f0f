import Bytes
import JSONWire
import Translation
public import Vocabulary

/// What of a request's body decides about its turn, and the body that an upstream gets for it: both come from one reading.
///
/// Upstreams read JSON with many readers. A body that two of them could take for different requests (a key twice, a key that some readers
/// fold or cut) is refused here, so that the model that was allowed is the model that is asked, and the usage that is asked for is told.
public struct TurnRequest: Sendable {
    /// As it goes upstream, and as limits and prices know it.
    public let model: String
    /// As the client wrote it: the same, or an alias of it.
    public let modelAsked: String
    public let wantsStream: Bool
    /// The client asked for the usage chunk of a chat stream.
    public let includesUsage: Bool
    public let route: Route
    /// The response that it goes on from, which only the account that made it has.
    public private(set) var previousResponseID: String?
    /// Its input says all that the previous response is about: another account can go on without that.
    public let isWhole: Bool
    /// The client's own name for what its prompts have in common.
    public let promptCacheKey: String?
    /// Files that it is about, or that its input names: only the account that has them can serve it.
    public let fileIDs: [String]
    /// Of the body as it was read, unpacked.
    public let bodyBytes: Int
    /// What is held for it.
    public let memoryBytes: Int
    private let (instructions, conversation): (JSONDocument.Value?, JSONDocument.Value?)
    /// How a large body's conversation begins, found where it was read: not on a loop.
    private var opening: Opening?
    private var isOpeningLookedFor = false
    /// The previous response is taken out of what goes upstream.
    private var isReleased = false
    /// Nil once it can't be asked for any more.
    private var document: JSONDocument?

    /// Keys at the top that decide. Some readers take them in any case (Go's encoding/json folds letters): a near one is refused.
    private static let decisive = ["model", "stream", "stream_options"]

    /// Reads the body; one that is no JSON object with a model, or not the same to every reader, is refused with 400. `aliases`: names of
    /// models, and what is asked for instead. `fileID`: of the path.
    public init(_ body: [UInt8], route: Route, aliases: [String: String] = [:], fileID: String? = nil) throws(ProxyError) {
        if route.isFile {
            self = try Self(ofFile: body.isEmpty && route == .fileUploaded ? Array("{}".utf8) : body, route: route, fileID: fileID)
            return
        }
        let asked = try Self(reading: body, route: route)
        guard let model = aliases[asked.model] else {
            self = asked
            return
        }
        var name: [UInt8] = []
        JSONWriter.string(model, into: &name)
        guard let edited = JSONEdit.setting(body.span.bytes, [("model", name)]) else {
            throw Self.invalid("\"model\" can't be replaced by what it is an alias of", "model")
        }
        self = try Self(reading: edited, route: route, asked: asked.model)
    }

    private init(reading body: [UInt8], route: Route, asked: String? = nil) throws(ProxyError) {
        self.route = route
        bodyBytes = body.count
        let document = try Self.document(body)
        guard let fields = try Self.fields(document, document.root, at: "", decisive: Self.decisive) else {
            throw Self.invalid("The request body must be a JSON object", nil)
        }
        guard let name = fields["model"] else { throw Self.invalid("\"model\" is missing", "model") }
        guard let model = document.string(name) else { throw Self.invalid("\"model\" must be a string", "model") }
        guard !model.isEmpty else { throw Self.invalid("\"model\" is missing", "model") }
        guard model.utf8.count <= Limits.modelBytesMax else {
            throw Self.invalid("\"model\" is longer than \(Limits.modelBytesMax) bytes", "model")
        }
        guard document.isSound(name), !model.unicodeScalars.contains(where: { $0.value < 0x20 || $0.value == 0x7F }) else {
            throw Self.invalid("\"model\" has a control character or half of a surrogate pair", "model")
        }
        var stream: Bool?
        if let value = fields["stream"], document.kind(value) != .null {
            stream = document.bool(value)
            if stream == nil { throw Self.invalid("\"stream\" must be true or false", "stream") }
        }
        (self.model, modelAsked) = (model, asked ?? model)
        // Codex clients always get a stream, whatever the body says.
        wantsStream = route == .codexResponses ? true : route == .embeddings ? false : stream ?? false
        includesUsage = try Self.includesUsage(document, fields["stream_options"])
        previousResponseID = Self.name(document, fields["previous_response_id"])
        promptCacheKey = Self.name(document, fields["prompt_cache_key"])
        (instructions, conversation) = (fields["instructions"], fields[route == .chatCompletions ? "messages" : "input"])
        fileIDs = route.isResponses ? InputFiles.ids(in: document, fields["input"]) : []
        isWhole = route.isResponses && previousResponseID != nil && WholeConversation.isWhole(document, fields["input"])
        self.document = document
        memoryBytes = document.memoryBytes
        if bodyBytes > Limits.inlineBodyBytesMax { (opening, isOpeningLookedFor) = (makeOpening(), true) }
    }

    /// What is asked of a file (reference: Codex's `files` calls). The upload itself goes to where the answer says, past us.
    private init(ofFile body: [UInt8], route: Route, fileID: String?) throws(ProxyError) {
        let document = try Self.document(body)
        guard let fields = try Self.fields(document, document.root, at: "", decisive: Self.decisiveOfFiles) else {
            throw Self.invalid("The request body must be a JSON object", nil)
        }
        if route == .files {
            let bytes = fields["file_size"].flatMap { document.int($0) }
            guard let bytes, (1...Int64(Limits.fileBytesMax)).contains(bytes) else {
                throw Self.invalid("\"file_size\" must be a number of bytes from 1 to \(Limits.fileBytesMax)", "file_size")
            }
            guard fields["file_name"].flatMap({ document.string($0) })?.isEmpty == false else {
                throw Self.invalid("\"file_name\" must be a string", "file_name")
            }
        }
        (self.route, bodyBytes, model, modelAsked) = (route, body.count, "", "")
        (wantsStream, includesUsage, previousResponseID, promptCacheKey, isWhole) = (false, false, nil, nil, false)
        (instructions, conversation) = (nil, nil)
        fileIDs = fileID.map { [$0] } ?? []
        memoryBytes = document.memoryBytes
        self.document = document
    }

    private static let decisiveOfFiles = ["file_name", "file_size", "use_case"]

    private static func document(_ body: [UInt8]) throws(ProxyError) -> JSONDocument {
        do throws(JSONError) {
            return try JSONDocument(body)
        } catch {
            throw invalid(
                body.isEmpty
                    ? "The request body is empty; send a JSON object"
                    : "The request body is no valid JSON: \(error.reason) at byte \(error.offset)", nil)
        }
    }

    /// The path below an account's base URL; nil: that kind of account does not serve it.
    public func upstreamPath(_ kind: Account.Kind) -> String? {
        guard let path = route.upstreamPath(kind), route == .fileUploaded else { return route.upstreamPath(kind) }
        return path.replacing("{id}", with: fileIDs.first ?? "")
    }

    /// A string that conversations are told by; nil of anything else: whatever it means is the upstream's affair.
    private static func name(_ document: JSONDocument, _ value: JSONDocument.Value?) -> String? {
        guard let value, value.range.count <= Limits.affinityKeyBytesMax, let text = document.string(value), !text.isEmpty else {
            return nil
        }
        return text
    }

    /// A hash of how the conversation begins, up to its first answer, and whether there has been one. Nil: there is nothing to tell it by.
    func beginning(_ word: UInt64, _ hash: SipHash) -> (hash: UInt64, isContinued: Bool)? {
        guard let document, let opening = isOpeningLookedFor ? opening : makeOpening() else { return nil }
        var start = word
        for place in opening.places {
            start = hash.hash(start, document.bytes.span.bytes.extracting(place).extracting(first: Limits.beginningItemBytesMax))
        }
        return (start, opening.isContinued)
    }

    /// Where the parts stand that a conversation is told by.
    private struct Opening: Sendable {
        var places: [Range<Int>] = []
        var isContinued = false
    }

    private func makeOpening() -> Opening? {
        guard let document, let conversation, route != .embeddings, !route.isFile else { return nil }
        var opening = Opening()
        if let instructions { opening.places.append(instructions.range) }
        guard document.kind(conversation) == .array else {
            opening.places.append(conversation.range)
            return opening
        }
        var count = 0
        for item in document.elements(conversation) {
            guard count < Limits.beginningItemsMax else { return nil }
            count += 1
            let role = JSONScan.find(document.bytes.span.bytes, in: item.range, "role")
            // What has no role is a call, its output or a thought: something was answered before.
            guard let role, !JSONScan.equals(document.bytes.span.bytes, role, "assistant") else {
                opening.isContinued = true
                return opening
            }
            opening.places.append(item.range)
        }
        return count == 0 ? nil : opening
    }

    /// Its account can't serve it, and another one is to go on: what goes upstream says nothing of the previous response.
    public mutating func releasePreviousResponse() {
        precondition(isWhole, "another account would not know what it is about")
        (previousResponseID, isReleased) = (nil, true)
    }

    private static func includesUsage(_ document: JSONDocument, _ options: JSONDocument.Value?) throws(ProxyError) -> Bool {
        guard let options, document.kind(options) != .null else { return false }
        guard let fields = try fields(document, options, at: "stream_options.", decisive: ["include_usage"]) else {
            throw invalid("\"stream_options\" must be an object", "stream_options")
        }
        guard let value = fields["include_usage"], document.kind(value) != .null else { return false }
        guard let flag = document.bool(value) else {
            throw invalid("\"stream_options.include_usage\" must be true or false", "stream_options.include_usage")
        }
        return flag
    }

    private static func fields(
        _ document: JSONDocument, _ value: JSONDocument.Value, at place: String, decisive: [String]
    ) throws(ProxyError) -> JSONDocument.Fields? {
        do throws(JSONAmbiguity) {
            guard let fields = try document.fields(value) else { return nil }
            for (key, _) in fields.entries where key.utf8.contains(where: { $0 >= 0x80 || $0 >= 0x41 && $0 <= 0x5A }) {
                guard decisive.contains(folded(key)) else { continue }
                throw JSONAmbiguity(key: key, reason: "would be \"\(folded(key))\" to some readers; write it so")
            }
            return fields
        } catch {
            throw invalid("The key \"\(error.key.cut(utf8: 64))\" \(error.reason)", place + error.key.cut(utf8: 64))
        }
    }

    /// As Go's encoding/json compares: ASCII letters without their case, and the two letters beyond ASCII that fold to one of ASCII.
    private static func folded(_ key: String) -> String {
        guard key.utf8.count <= 64 else { return key }
        return key.replacing("\u{17F}", with: "s").replacing("\u{212A}", with: "k").lowercased()
    }

    static func invalid(_ message: String, _ param: String?) -> ProxyError {
        ProxyError(
            status: 400, code: "invalid_request_error", type: "invalid_request_error", message: message, param: param, origin: .downstream)
    }

    /// The body for an account's upstream: as it is, but for what accounting or the upstream's contract needs. Takes as long as the body is
    /// large. Must not be asked for after `forgetBody`.
    public func upstreamBody(_ kind: Account.Kind) throws(ProxyError) -> [UInt8] {
        guard let document = try isReleased ? withoutPreviousResponse() : document else { preconditionFailure("the body was given up") }
        let body = document.bytes
        switch (kind, route) {
        case (_, .files):
            guard JSONScan.find(body.span.bytes, "use_case") == nil else { return body }
            return JSONEdit.setting(body.span.bytes, [("use_case", Array("\"codex\"".utf8))]) ?? body
        case (_, .fileUploaded): return body
        case (.chatGPT, .chatCompletions):
            return try ResponsesTranslation.codexRequest(from: ChatTranslation.responsesRequest(fromChat: document))
        case (.chatGPT, _):
            return try ResponsesTranslation.codexRequest(from: document)
        case (.apiKey, .chatCompletions) where wantsStream && !includesUsage:
            // Without this an OpenAI-compatible stream tells no usage; the extra chunk is taken out again on the way back.
            let bytes = body.span.bytes
            var options = Array("{\"include_usage\":true}".utf8)
            if let present = JSONScan.find(bytes, "stream_options"), JSONScan.kind(bytes, present) == .object,
                let edited = JSONEdit.setting(bytes.extracting(present), [("include_usage", Array("true".utf8))])
            {
                options = edited
            }
            return JSONEdit.setting(bytes, [("stream_options", options)]) ?? body
        case (.apiKey, .codexResponses):
            return JSONEdit.setting(body.span.bytes, [("stream", Array("true".utf8))]) ?? body
        default:
            return body
        }
    }

    private func withoutPreviousResponse() throws(ProxyError) -> JSONDocument? {
        guard let document else { return nil }
        guard let edited = JSONEdit.setting(document.bytes.span.bytes, [("previous_response_id", nil)]) else { return document }
        return try Self.document(edited)
    }

    /// `upstreamBody` would take too long for a loop.
    public func isLongToRewrite(_ kind: Account.Kind) -> Bool {
        guard let document, document.bytes.count > Limits.inlineBodyBytesMax else { return false }
        return isReleased || kind == .chatGPT || route == .codexResponses || route == .chatCompletions && wantsStream && !includesUsage
    }

    /// The answer has begun: no upstream gets this request any more.
    public mutating func forgetBody() { document = nil }
}
