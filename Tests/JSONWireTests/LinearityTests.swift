import Foundation
import JSONWire
import Testing

/// Goal: no shape of a document costs more than its bytes: four times the bytes take about four times the time.
@Suite(.serialized) struct LinearityTests {
    struct Shape: CustomTestStringConvertible {
        let name: String
        /// A document of about so many bytes.
        let make: @Sendable (Int) -> String
        var testDescription: String { name }
    }

    private static func deep(_ count: Int, _ levels: Int, _ filler: (Int) -> String) -> String {
        let pad = max(1, count / levels)
        return (0..<levels).map { "{\"f\($0)\":\(filler(pad)),\"n\":" }.joined() + "0" + String(repeating: "}", count: levels)
    }

    static let shapes: [Shape] = [
        Shape(name: "flat list") { "[" + String(repeating: "0,", count: $0 / 2) + "0]" },
        Shape(name: "list of lists") { "[" + String(repeating: "[],", count: $0 / 3) + "0]" },
        Shape(name: "120 levels, the weight at the bottom") {
            String(repeating: "[", count: 120) + String(repeating: "1,", count: $0 / 2) + "1" + String(repeating: "]", count: 120)
        },
        Shape(name: "120 levels, each with a long string") { deep($0, 120) { "\"\(String(repeating: "a", count: $0))\"" } },
        Shape(name: "120 levels, each with a list") { deep($0, 120) { "[\(String(repeating: "[],", count: $0 / 3))0]" } },
        Shape(name: "many towers") { n in
            let tower = String(repeating: "[", count: 100) + String(repeating: "]", count: 100)
            return "[" + String(repeating: tower + ",", count: n / 201) + "0]"
        },
        Shape(name: "escapes") { "{\"a\":\"" + String(repeating: "\\u0041", count: $0 / 6) + "\"}" },
        Shape(name: "backslashes") { "{\"a\":\"" + String(repeating: "\\\\", count: $0 / 2) + "\"}" },
        Shape(name: "many members") { n in "[{" + (0..<n / 12).map { "\"k\($0)\":0" }.joined(separator: ",") + "}]" },
        Shape(name: "a long number") { "[" + String(repeating: "1", count: $0) + "]" },
    ]

    /// Processor time of this thread for one call, the least of three.
    private func seconds(_ work: () -> Void) -> Double {
        func now() -> Double {
            var t = timespec()
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t)
            return Double(t.tv_sec) + Double(t.tv_nsec) / 1e9
        }
        return (0..<3).map { _ in
            let start = now()
            work()
            return now() - start
        }.min()!
    }

    @Test("Checking, indexing, editing and making a tree are linear", arguments: shapes)
    func linear(_ shape: Shape) throws {
        func work(_ document: [UInt8]) -> () -> Void {
            {
                let indexed = try? JSONDocument(document)
                #expect(indexed != nil)
                let tree = try? JSONValue(parsing: document.span.bytes)
                _ = tree?.ambiguity
                _ = JSONEdit.setting(document.span.bytes, [("zz", [0x30])])
            }
        }
        let (small, large) = (Array(shape.make(50_000).utf8), Array(shape.make(200_000).utf8))
        let (one, four) = (seconds(work(small)), seconds(work(large)))
        #expect(four < 7 * one + 0.002, "\(small.count) bytes: \(one) s, \(large.count) bytes: \(four) s")
    }

    @Test("Beyond the limit of levels nothing is read any further")
    func deepIsRefusedEarly() {
        let document = Array(Self.deep(400_000, 480) { "\"\(String(repeating: "a", count: $0))\"" }.utf8)
        #expect { try JSONDocument(document) } throws: { ($0 as? JSONError)?.reason == "nested deeper than 128 levels" }
    }
}
