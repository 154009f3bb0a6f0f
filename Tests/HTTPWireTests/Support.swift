import Testing

@testable import HTTPWire

func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }
func text(_ span: RawSpan) -> String { span.withUnsafeBytes { String(decoding: $0, as: UTF8.self) } }

/// `RawSpan` can't go through the macros of Testing: parse first, require then.
func whole<T>(_ head: T?) throws -> T { try #require(head) }

struct Parsed: Equatable {
    var method = ""
    var target = ""
    var version = 0
    var status = 0
    var fields: [String] = []
    var framing = BodyFraming.none
    var keepsAlive = false
    var expectsContinue = false
    var consumed = 0
}

enum Outcome: Equatable {
    case incomplete
    case refused(WireError)
    case parsed(Parsed)
}

func list(_ fields: HeaderFields) -> [String] {
    var all: [String] = []
    fields.forEach { all.append(text($1) + ": " + text($2)) }
    return all
}

/// Gives the parser the first `lengths[0]` bytes, then the first `lengths[1]` …, as a connection would.
func request(_ input: [UInt8], prefixes lengths: [Int]) -> Outcome {
    var scanned = 0
    for length in lengths {
        do {
            guard let (head, consumed) = try RequestHead.parse(input.span.bytes.extracting(0..<length), scanned: &scanned) else { continue }
            return .parsed(
                Parsed(
                    method: head.method.text, target: head.target, version: head.minorVersion, fields: list(head.fields),
                    framing: head.framing,
                    keepsAlive: head.keepsAlive, expectsContinue: head.expectsContinue, consumed: consumed))
        } catch { return .refused(error) }
    }
    return .incomplete
}

func request(_ head: String) -> Outcome { request(bytes(head), prefixes: [head.utf8.count]) }

func response(_ input: [UInt8], prefixes lengths: [Int]) -> Outcome {
    var scanned = 0
    for length in lengths {
        do {
            guard let (head, consumed) = try ResponseHead.parse(input.span.bytes.extracting(0..<length), scanned: &scanned) else {
                continue
            }
            return .parsed(
                Parsed(
                    version: head.minorVersion, status: head.status, fields: list(head.fields), framing: head.framing(toMethod: .get),
                    keepsAlive: head.keepsAlive, consumed: consumed))
        } catch { return .refused(error) }
    }
    return .incomplete
}

struct Body: Equatable {
    var data: [UInt8] = []
    var complete = false
    var consumed = 0
    var fault: WireError?
}

func body(_ input: [UInt8], _ framing: BodyFraming, cuts: [Int]) -> Body {
    var decoder = BodyDecoder(framing)
    var result = Body()
    var start = 0
    for cut in cuts + [input.count] {
        let part = Array(input[start..<cut])
        var offset = 0
        do {
            while let piece = try decoder.next(part.span.bytes, &offset) {
                switch piece {
                case .data(let range): result.data += part[range]
                case .end:
                    result.complete = decoder.isComplete
                    result.consumed = start + offset
                    return result
                }
            }
        } catch {
            result.fault = error
            return result
        }
        start = cut
    }
    result.consumed = start
    return result
}

/// SplitMix64: the same numbers for the same seed, everywhere.
struct Seeded: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
