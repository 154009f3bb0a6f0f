import Store
import Testing
import Vocabulary

/// The checksum lies in databases: what it is must never change.
@Suite struct RecordChecksumTests {
    /// The numbers come from a second implementation, bit by bit in Python, of what the comment at `RecordChecksum` says.
    @Test("A record has the checksum that it always had")
    func known() {
        #expect(StoredRecord(sealing: record(5)).columnValues.last == .int(120_402_107))
        var odd = record(5)
        odd.requestID = "a\0b"
        #expect(StoredRecord(sealing: odd).columnValues.last == .int(542_134_509))
        odd.requestID = "a\u{FFFD}b"
        #expect(StoredRecord(sealing: odd).columnValues.last == .int(542_134_509), "PostgreSQL stores this one for that")
        #expect(RecordChecksum([SQLValue]()).value == 0)
    }

    @Test("No value passes for another one or into its neighbour")
    func apart() {
        let rows: [[SQLValue]] = [
            [.text("ab"), .text("c")], [.text("a"), .text("bc")], [.text("abc")], [.blob([0x61]), .text("bc")], [.text(""), .text("abc")],
            [.null], [.int(0)], [.text("")], [.blob([])], [.int(1)], [.int(-1)], [.null, .null], [.text("\0")], [.text("\0\0")],
            [.text("a\0")],
        ]
        #expect(Set(rows.map { RecordChecksum($0).value }).count == rows.count)
    }

    @Test("Every bit of every value counts")
    func bits() {
        let values = record(5).columnValues
        let sum = RecordChecksum(values).value
        for (i, value) in values.enumerated() {
            for bit in 0..<64 {
                var changed = values
                switch value {
                case .null: changed[i] = .int(1 << bit)
                case .int(let n): changed[i] = .int(n ^ 1 << bit)
                case .text(let text):
                    var bytes = Array(text.utf8)
                    guard bit < bytes.count else { continue }
                    bytes[bit] ^= 1
                    changed[i] = .text(String(decoding: bytes, as: UTF8.self))
                case .blob(var bytes):
                    bytes[bit % 16] ^= 1 << UInt8(bit / 16)
                    changed[i] = .blob(bytes)
                }
                #expect(RecordChecksum(changed).value != sum, "\(UsageRecord.columnNames[i]), bit \(bit)")
            }
        }
    }
}
