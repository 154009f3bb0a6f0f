import FoundationEssentials
import SwiftProtobuf
import Testing
import Vocabulary

@testable import ControlWire

/// Goal: the bytes of a record are protocol buffers', as the library of that name writes and reads them.
@Suite struct UsageRecordWireTests {
    private struct Seeded: RandomNumberGenerator {
        var state: UInt64
        mutating func next() -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return state ^ state >> 29
        }
    }

    private static func record(_ random: inout Seeded) -> UsageRecord {
        func number() -> Int64 {
            let edges: [Int64] = [0, 1, 127, 128, -1, .max, .min, 1 << 35]
            return Bool.random(using: &random) ? edges.randomElement(using: &random)! : Int64.random(in: .min ... .max, using: &random)
        }
        func text() -> String {
            ["", "m", "gpt-5.4", "Ünïcödé 🙂", "\0", String(repeating: "x", count: 300)].randomElement(using: &random)!
        }
        var r = UsageRecord(
            id: RecordID(high: random.next(), low: Bool.random(using: &random) ? 0 : random.next()), time: WallTime(milliseconds: number()),
            route: text(), requestID: text())
        r.transport = Bool.random(using: &random) ? .http : .websocket
        r.keyID = Bool.random(using: &random) ? number() : nil
        r.accountID = Bool.random(using: &random) ? number() : nil
        (r.modelAsked, r.modelServed, r.errorCode) = (text(), text(), text())
        r.status = Int(Int32.random(in: .min ... .max, using: &random))
        (r.inputTokens, r.cachedInputTokens, r.outputTokens, r.reasoningTokens) = (number(), number(), number(), number())
        r.costMicrodollars = Bool.random(using: &random) ? number() : nil
        r.firstByteMilliseconds = Bool.random(using: &random) ? number() : nil
        (r.durationMilliseconds, r.attempts) = (number(), Int(Int32.random(in: .min ... .max, using: &random)))
        (r.requestBytes, r.responseBytes) = (number(), number())
        return r
    }

    @Test("SwiftProtobuf writes the same bytes, and each reads what the other wrote", arguments: 1...20)
    func library(_ seed: UInt64) throws {
        var random = Seeded(state: seed)
        for _ in 0..<100 {
            let record = Self.record(&random)
            let theirs: [UInt8] = try UsageRecordMessage(record).serializedBytes()
            #expect(record.journalBytes == theirs)
            #expect(try UsageRecord(journalBytes: theirs) == record)
            #expect(try UsageRecord(UsageRecordMessage(serializedBytes: record.journalBytes)) == record)
        }
    }

    @Test("A batch is the frame that SwiftProtobuf would write")
    func batch() throws {
        var random = Seeded(state: 7)
        for (count, end) in [(0, 0), (0, 5), (1, 127), (3, 1 << 40), (200, .max)] as [(Int, UInt64)] {
            let entries = (0..<count).map { _ in Self.record(&random).journalBytes }
            var records: [UInt8] = []
            for entry in entries { FrameCodec.append(record: entry.span.bytes, to: &records) }
            var ours: [UInt8] = []
            FrameCodec.encodeBatch(end: end, records: records, into: &ours)
            #expect(ours == FrameCodec.encode(Frame(.usageBatch(UsageBatch(end: end, records: entries)))))
        }
    }

    @Test("An acknowledgement is the frame that SwiftProtobuf would write", arguments: [0, 1, 127, 128, 1 << 40, .max] as [UInt64])
    func acknowledgement(_ end: UInt64) {
        var ack = UsageAck()
        ack.end = end
        #expect(FrameCodec.encodeAck(end: end) == FrameCodec.encode(Frame(.usageAck(ack))))
    }

    @Test("Batches are read as SwiftProtobuf reads them, and broken ones are refused: 20,000 mutations")
    func batchMutations() throws {
        var random = Seeded(state: 13)
        var (taken, refused, unreadable) = (0, 0, 0)
        for _ in 0..<20_000 {
            var records: [UInt8] = []
            for _ in 0..<Int.random(in: 0...3, using: &random) {
                FrameCodec.append(record: Self.record(&random).journalBytes.span.bytes, to: &records)
            }
            var frame: [UInt8] = []
            FrameCodec.encodeBatch(end: random.next() >> UInt64.random(in: 0...63, using: &random), records: records, into: &frame)
            var body = Array(frame[4...])
            for _ in 0..<Int.random(in: 0...2, using: &random) {
                // What a batch consists of is at its beginning and between the records.
                let at =
                    Bool.random(using: &random)
                    ? Int.random(in: 0..<min(16, body.count), using: &random) : Int.random(in: 0..<body.count, using: &random)
                body[at] = UInt8.random(in: 0...255, using: &random)
            }
            guard let place = FrameCodec.usageBatch(in: body.span.bytes) else { continue }
            var (rows, notRead): (JournalRows, [String]) = (JournalRows(), [])
            let end = rows.append(batch: body.span.bytes.extracting(place)) { hex, _ in notRead.append(hex) }
            guard let end else {
                refused += 1
                if let theirs = try? UsageBatch(serializedBytes: Array(body[place])) {  // groups are all that only the library takes
                    #expect(!theirs.unknownFields.data.isEmpty, "\(body)")
                }
                continue
            }
            taken += 1
            unreadable += notRead.count
            let theirs = try Frame(body: body.span.bytes).usageBatch
            let entries = theirs.records.map { [UInt8]($0) }
            let readable = entries.filter { (try? UsageRecord(journalBytes: $0)) != nil }
            #expect(theirs.end == end && entries.count == rows.rows.count + notRead.count, "\(body)")
            #expect(rows.rows.indices.map { rows.journalBytes($0) } == readable)
            #expect(rows.records == readable.compactMap { try? UsageRecord(journalBytes: $0) })
        }
        #expect(taken > 5_000 && refused > 100 && unreadable > 100)
    }

    @Test("A frame with more in it than a batch is left to SwiftProtobuf")
    func otherFrames() throws {
        let batch = UsageBatch(end: 3, records: [[1, 2]])
        let plain = FrameCodec.encode(Frame(.usageBatch(batch)))
        #expect(FrameCodec.usageBatch(in: Array(plain[4...]).span.bytes) == 2..<plain.count - 4)
        for other in [Frame(.usageBatch(batch), correlation: 9), Frame(.hello(Hello())), Frame()] {
            #expect(FrameCodec.usageBatch(in: Array(FrameCodec.encode(other)[4...]).span.bytes) == nil)
        }
        var (ours, theirs) = (JournalRows(), JournalRows())
        let body = Array(plain[4...])
        #expect(ours.append(batch: body.span.bytes.extracting(2..<body.count)) { _, _ in } == 3)
        #expect(theirs.append(batch: FrameCodec.bytes(of: batch).span.bytes) { _, _ in } == 3)
    }

    @Test("What SwiftProtobuf refuses is refused, and what it takes is taken for the same: 20,000 mutations")
    func mutations() throws {
        var random = Seeded(state: 11)
        var (taken, refused) = (0, 0)
        for _ in 0..<20_000 {
            var bytes = Self.record(&random).journalBytes
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                switch Int.random(in: 0...2, using: &random) {
                case 0: bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes.removeLast(Int.random(in: 1...bytes.count, using: &random))
                default: bytes.insert(UInt8.random(in: 0...255, using: &random), at: Int.random(in: 0...bytes.count, using: &random))
                }
                if bytes.isEmpty { bytes = [8] }
            }
            let theirs = try? UsageRecord(UsageRecordMessage(serializedBytes: bytes))
            let ours = try? UsageRecord(journalBytes: bytes)
            // Groups (wire types 3 and 4), which no version of ours has written, are all that only the library takes.
            if ours != nil || theirs == nil { #expect(ours == theirs, "\(bytes)") }
            if ours == nil { refused += 1 } else { taken += 1 }
        }
        #expect(taken > 1_000 && refused > 1_000)
    }
}

extension UsageBatch {
    init(end: UInt64, records: [[UInt8]]) {
        self.init()
        self.end = end
        self.records = records.map { Data($0) }
    }
}

/// What SwiftProtobuf read, as a record: the second opinion of these tests.
extension UsageRecord {
    init(_ m: UsageRecordMessage) throws(MappingError) {
        guard m.idHigh != 0 || m.idLow != 0 else { throw MappingError("usage record without an id") }
        self.init(
            id: RecordID(high: m.idHigh, low: m.idLow), time: WallTime(milliseconds: m.timeMs), route: m.route, requestID: m.requestID)
        transport = m.websocket ? .websocket : .http
        keyID = m.hasKeyID ? m.keyID : nil
        accountID = m.hasAccountID ? m.accountID : nil
        (modelAsked, modelServed, status, errorCode) = (m.modelAsked, m.modelServed, Int(m.status), m.errorCode)
        (inputTokens, cachedInputTokens) = (m.inputTokens, m.cachedInputTokens)
        (outputTokens, reasoningTokens) = (m.outputTokens, m.reasoningTokens)
        costMicrodollars = m.hasCostMicrodollars ? m.costMicrodollars : nil
        firstByteMilliseconds = m.hasFirstByteMs ? m.firstByteMs : nil
        (durationMilliseconds, attempts) = (m.durationMs, Int(m.attempts))
        (requestBytes, responseBytes) = (m.requestBytes, m.responseBytes)
    }
}
