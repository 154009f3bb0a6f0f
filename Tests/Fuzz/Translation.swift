/// Nothing traps; what a translation makes is JSON, and it asks for the model that the client asked for, once.
@_cdecl("LLVMFuzzerTestOneInput") public func fuzz(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = Array(UnsafeBufferPointer(start: start, count: count))
    var translator = ChatStreamTranslator(model: "m", includeUsage: true, created: 0, id: "x")
    var chunks: [UInt8] = []
    translator.event(input.span.bytes, into: &chunks)
    translator.finish(into: &chunks)
    _ = ChatTranslation.chatCompletion(fromResponse: input.span.bytes, model: "m", created: 0, id: "x")
    guard let document = try? JSONDocument(input) else { return 0 }  // No JSON: not trapping was the test.
    check(document, try? ResponsesTranslation.codexRequest(from: document))
    if let responses = try? ChatTranslation.responsesRequest(fromChat: document) {
        check(document, try? ResponsesTranslation.codexRequest(from: responses))
    }
    return 0
}

private func check(_ document: JSONDocument, _ out: [UInt8]?) {
    guard let out else { return }  // refused
    guard let made = try? JSONDocument(out), let fields = try? made.fields(made.root) else { preconditionFailure("made what isn't JSON") }
    guard let asked = try? document.fields(document.root), let model = asked["model"].flatMap({ document.string($0) }) else { return }
    precondition(fields["model"].flatMap { made.string($0) } == model)
    precondition(fields["stream"].flatMap { made.bool($0) } == true)
}
