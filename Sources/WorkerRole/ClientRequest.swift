import Exchange
import HTTPWire
import Inflate
import Loop
import Vocabulary

/// A client's request, from its complete head on.
final class ClientRequest {
    let head: RequestHead
    let route: Route
    /// Of its usage record.
    let recordID: RecordID
    /// The client's `x-request-id`, or `req_` and the record's id.
    let id: String
    let time: WallTime
    let start: Instant
    let key: ClientKey?
    /// Its line in the access log.
    var access: AccessEntry?
    /// As received; decoded once complete.
    var body: [UInt8] = []
    private(set) var receivedBytes = 0
    /// What `body` takes of the instance's memory.
    let memory: MemoryShare

    init(
        _ head: RequestHead, _ route: Route, recordID: RecordID, id: String, time: WallTime, start: Instant, key: ClientKey?,
        _ budget: MemoryBudget
    ) {
        (self.head, self.route, self.recordID, self.id) = (head, route, recordID, id)
        (self.time, self.start, self.key) = (time, start, key)
        memory = MemoryShare(budget, for: .request)
        if case .length(let count) = head.framing { body.reserveCapacity(min(count, Limits.memoryStepBytes)) }
    }

    /// Takes a piece of the body; an error when it is too large or the instance has no room for it.
    func append(_ bytes: RawSpan) throws(ProxyError) {
        receivedBytes += bytes.byteCount
        guard receivedBytes <= route.bodyBytesMax else { throw Self.tooLarge(route.bodyBytesMax) }
        guard makeRoom(bytes.byteCount) else { throw MemoryBudget.overloaded("the request body does not fit") }
        bytes.withUnsafeBytes { body += $0 }
    }

    private func makeRoom(_ count: Int) -> Bool {
        let needed = body.count + count
        // Room that nothing has been written to yet is no memory: what has come is what counts.
        if needed > max(memory.bytes, Limits.memoryStepBytes), !memory.grow(to: needed + Limits.memoryStepBytes) { return false }
        if needed > Limits.bodyReservedBytes, body.count <= Limits.bodyReservedBytes, case .length(let whole) = head.framing {
            body.reserveCapacity(whole)
        }
        return true
    }

    // MARK: Reading the body

    typealias Reading = Result<TurnRequest, ProxyError>

    /// What beside its bytes decides how a body is read.
    private struct Terms: Sendable {
        var route: Route
        var aliases: [String: String]
        /// Of the path.
        var fileID: String?
    }

    /// Unpacks and reads the whole body, a large one on the thread pool; `done` is called at once or from the loop.
    func read(on queue: WorkQueue, aliases: [String: String], _ done: @escaping (Reading) -> Void) {
        let encodings = head.fields.contentEncodings
        let terms = Terms(route: route, aliases: aliases, fileID: route == .fileUploaded ? Route.fileID(ofPath: head.path) : nil)
        let body = self.body
        self.body = []
        let inline = Limits.inlineBodyBytesMax
        if body.count <= inline {
            // A small body may unpack to a large one: then the attempt ends early and the thread pool does it.
            let (reading, isLarger) = Self.read(
                body, encodings, terms, bytesMax: encodings.isEmpty ? inline : min(inline, route.bodyBytesMax))
            if !isLarger { return done(counted(reading)) }
        }
        unpack(body, encodings, room: encodings.isEmpty ? body.count : max(1 << 20, 8 * body.count), terms, on: queue, done)
    }

    /// What a packed body unpacks to has its room before it is unpacked: more is tried with more.
    private func unpack(
        _ body: [UInt8], _ encodings: [String], room: Int, _ terms: Terms, on queue: WorkQueue,
        _ done: @escaping (Reading) -> Void
    ) {
        let room = min(room, route.bodyBytesMax)
        guard encodings.isEmpty || memory.resize(to: body.count + room) else {
            return done(.failure(MemoryBudget.overloaded("the request body does not fit when it is unpacked")))
        }
        queue.run({ Self.read(body, encodings, terms, bytesMax: room) }) { [self] reading, isLarger in
            guard isLarger, room < route.bodyBytesMax else { return done(counted(reading)) }
            unpack(body, encodings, room: 4 * room, terms, on: queue, done)
        }
    }

    private func counted(_ reading: Reading) -> Reading {
        guard case .success(let ask) = reading, ask.memoryBytes > Limits.memoryStepBytes, !memory.resize(to: ask.memoryBytes) else {
            return reading
        }
        return .failure(MemoryBudget.overloaded("the request body does not fit"))
    }

    /// `isLarger`: more than `bytesMax` came out.
    private static func read(
        _ body: [UInt8], _ encodings: [String], _ terms: Terms, bytesMax: Int
    ) -> (reading: Reading, isLarger: Bool) {
        do throws(InflateError) {
            let whole = encodings.isEmpty ? body : try Inflate.decode(body, encodings: encodings, bytesMax: bytesMax)
            let reading = Result { () throws(ProxyError) in
                try TurnRequest(whole, route: terms.route, aliases: terms.aliases, fileID: terms.fileID)
            }
            return (reading, false)
        } catch {
            return (.failure(problem(error, bytesMax)), error == .tooLarge)
        }
    }

    private static func problem(_ error: InflateError, _ limit: Int) -> ProxyError {
        func invalid(_ message: String) -> ProxyError {
            ProxyError(status: 400, code: "invalid_request_error", type: "invalid_request_error", message: message, origin: .downstream)
        }
        switch error {
        case .unsupported(let name):
            return invalid("Content-Encoding \"\(name)\" is not supported; send gzip, deflate, zstd or no encoding")
        case .malformed(let name): return invalid("The request body is no valid \(name) data")
        case .tooLarge: return tooLarge(limit, " after decompression")
        }
    }

    static func tooLarge(_ limit: Int, _ when: String = "") -> ProxyError {
        ProxyError(
            status: 413, code: "payload_too_large", type: "invalid_request_error",
            message: "The request body is larger than \(limit) bytes\(when)", origin: .downstream)
    }
}
