import ControlWire
import SwiftProtobuf
import Testing
import Vocabulary

@Suite struct FrameReaderTests {
    static let record: UsageRecord = {
        var r = UsageRecord(
            id: RecordID(high: 0x0190_0000_0000_7001, low: 0x8000_0000_0000_0002), time: WallTime(milliseconds: 1_800_000_000_123),
            route: "/v1/responses", requestID: "req-1")
        (r.keyID, r.accountID, r.costMicrodollars, r.firstByteMilliseconds) = (3, nil, 0, nil)
        (r.modelAsked, r.modelServed, r.status, r.errorCode) = ("gpt-5", "gpt-5-2026", 200, "")
        (r.inputTokens, r.cachedInputTokens, r.outputTokens, r.reasoningTokens) = (10, 4, 20, 5)
        (r.durationMilliseconds, r.attempts, r.requestBytes, r.responseBytes, r.transport) = (77, 2, 1000, 2000, .websocket)
        return r
    }()

    @Test("Frames come out whole and in order wherever the stream is cut")
    func splitAtEveryByte() throws {
        var bytes: [UInt8] = []
        let frames: [Frame] = [
            Frame(.refused(Refused())), Frame(.usageBatch(UsageBatch(end: 99, records: [Self.record.journalBytes])), correlation: 7),
            Frame(),
        ]
        for frame in frames { FrameCodec.encode(frame, into: &bytes) }
        for cut in 0...bytes.count {
            var reader = FrameReader()
            var got: [Frame] = []
            for piece in [bytes[..<cut], bytes[cut...]] {
                try Array(piece).withUnsafeBytes { try reader.feed($0.bytes) { frame throws(FrameError) in got.append(frame) } }
            }
            #expect(got == frames)
            #expect(reader.pendingBytes == 0)
        }
        var reader = FrameReader()
        var got: [Frame] = []
        for byte in bytes { try [byte].withUnsafeBytes { try reader.feed($0.bytes) { frame throws(FrameError) in got.append(frame) } } }
        #expect(got == frames)
    }

    @Test("A length above the limit is refused before its bytes are gathered")
    func tooLarge() {
        var reader = FrameReader(frameBytesMax: 10)
        #expect(throws: FrameError.tooLarge(bytes: 11)) {
            try [UInt8]([0, 0, 0, 11]).withUnsafeBytes { try reader.feed($0.bytes) { _ throws(FrameError) in } }
        }
    }

    @Test("Bytes that are no frame are an error")
    func garbage() {
        var reader = FrameReader()
        #expect(throws: FrameError.undecodable(bytes: 2)) {
            try [UInt8]([0, 0, 0, 2, 0xFF, 0xFF]).withUnsafeBytes { try reader.feed($0.bytes) { _ throws(FrameError) in } }
        }
    }

    @Test("Values survive their messages")
    func mappings() throws {
        #expect(try UsageRecord(journalBytes: Self.record.journalBytes) == Self.record)
        let account = Account(
            id: 4, slot: 2, name: "a", kind: .chatGPT, state: .paused, baseURL: "https://x/y",
            credentials: .init(bearer: "b", refreshToken: "r", idToken: nil, chatGPTAccountID: "c"),
            createdAt: WallTime(milliseconds: 5), changedAt: WallTime(milliseconds: 6))
        let key = ClientKey(
            id: 1, name: "k", digest: [1, 2], prefix: "sk-clb-A", models: [], expiresAt: WallTime(milliseconds: 9), revokedAt: nil,
            createdAt: WallTime(milliseconds: 1))
        let snapshot = Snapshot(version: 3, accounts: [account], clientKeys: [key], pepper: [9], settings: ["x": "y"])
        #expect(try Snapshot(SnapshotMessage(snapshot)) == snapshot)
        #expect(AccountMessage(withoutSecrets: account).bearer == "")
        #expect(throws: MappingError.self) { try UsageRecord(UsageRecordMessage()) }
        #expect(throws: MappingError.self) { try UsageRecord(journalBytes: [0xFF]) }
    }
}
