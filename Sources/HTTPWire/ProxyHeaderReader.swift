import Bytes
public import Vocabulary

/// What a PROXY header says (haproxy.org, proxy-protocol.txt).
public enum ProxyHeader: Sendable, Equatable {
    /// The proxy's own connection, a health check: nobody is behind it (v2 LOCAL).
    case local
    /// A client whose address it can't tell: v1 UNKNOWN, v2 AF_UNSPEC and AF_UNIX.
    case unknown
    case client(IPAddress, port: UInt16)
}

/// Reads the PROXY header, version 1 or 2, that stands before the first byte of a connection.
///
/// Takes bytes in any pieces and says `wrong` at the first one that can't belong to a header: on a listener where a header is due everything
/// else is an attempt to be taken for somebody behind the proxy.
public struct ProxyHeaderReader: Sendable {
    public enum Outcome: Sendable, Equatable {
        /// The header is not complete.
        case more
        /// It is; so many of the bytes given last belonged to it.
        case header(ProxyHeader, consumed: Int)
        /// The connection is to be ended, for this reason.
        case wrong(String)
    }

    /// A v1 line with its CR LF is never longer (proxy-protocol.txt §2.1).
    public static let lineBytesMax = 107
    static let signature: [UInt8] = [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A]
    private static let word = Array("PROXY ".utf8)
    private static let fixedBytes = 16

    private var held: [UInt8] = []

    public init() {}

    /// Bytes of it have come.
    public var hasBegun: Bool { !held.isEmpty }

    public mutating func take(_ bytes: RawSpan) -> Outcome {
        let before = held.count
        // More than this can't be needed to see the end of any header.
        let wanted = min(bytes.byteCount, Limits.proxyHeaderBytesMax - before)
        if wanted > 0 { held.append(bytes.extracting(first: wanted)) }
        guard !held.isEmpty else { return .more }
        let result: Parsed
        if held[0] == Self.word[0] {
            result = Self.line(held)
        } else {
            result = Self.binary(held)
        }
        switch result {
        case .more: return .more
        case .wrong(let why): return .wrong(why)
        case .whole(let header, let count): return .header(header, consumed: count - before)
        }
    }

    private enum Parsed {
        case more
        case whole(ProxyHeader, Int)
        case wrong(String)
    }

    // MARK: Version 1

    /// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443`, CR LF.
    private static func line(_ held: [UInt8]) -> Parsed {
        for (a, b) in zip(held, word) where a != b { return .wrong("it does not begin with a PROXY header") }
        let (cr, lf) = (UInt8(ascii: "\r"), UInt8(ascii: "\n"))
        guard let end = held.prefix(lineBytesMax).firstIndex(where: { $0 == cr || $0 == lf }), end + 1 < held.count || held[end] == lf
        else {
            return held.count < lineBytesMax ? .more : .wrong("its PROXY line is longer than \(lineBytesMax) bytes")
        }
        guard held[end] == cr, held[end + 1] == lf, end + 2 <= lineBytesMax else { return .wrong("its PROXY line does not end with CR LF") }
        let words = held[word.count..<max(end, word.count)].split(separator: UInt8(ascii: " "), omittingEmptySubsequences: false)
        let count = end + 2
        func text(_ i: Int) -> String { String(decoding: words[i], as: UTF8.self) }
        if text(0) == "UNKNOWN" { return .whole(.unknown, count) }
        guard words.count == 5, text(0) == "TCP4" || text(0) == "TCP6",
            let source = address(text(1), of: text(0)), address(text(2), of: text(0)) != nil,
            let port = port(words[3]), self.port(words[4]) != nil
        else { return .wrong("its PROXY line is malformed") }
        return .whole(.client(source, port: port), count)
    }

    private static func address(_ text: String, of family: String) -> IPAddress? {
        text.utf8.contains(UInt8(ascii: ":")) == (family == "TCP6") ? IPAddress(text) : nil
    }

    /// Digits without a leading zero.
    private static func port(_ text: ArraySlice<UInt8>) -> UInt16? {
        guard (1...5).contains(text.count), text.count == 1 || text.first != 0x30, text.allSatisfy({ (0x30...0x39).contains($0) }) else {
            return nil
        }
        return UInt16(String(decoding: text, as: UTF8.self))
    }

    // MARK: Version 2

    private static func binary(_ held: [UInt8]) -> Parsed {
        for (a, b) in zip(held, signature) where a != b { return .wrong("it does not begin with a PROXY header") }
        guard held.count > signature.count else { return .more }
        let command = held[12]
        guard command == 0x20 || command == 0x21 else {
            return .wrong("its PROXY header has version and command 0x\(String(command, radix: 16))")
        }
        guard held.count >= fixedBytes else { return .more }
        let count = fixedBytes + Int(held[14]) << 8 + Int(held[15])
        guard count <= Limits.proxyHeaderBytesMax else {
            return .wrong("its PROXY header is longer than \(Limits.proxyHeaderBytesMax) bytes")
        }
        guard held.count >= count else { return .more }
        if command == 0x20 { return .whole(.local, count) }
        // Behind the addresses come TLVs, none of which is needed here.
        switch held[13] {
        case 0x00,
            0x31 where count >= fixedBytes + 216:
            return .whole(.unknown, count)
        case 0x11 where count >= fixedBytes + 12:
            return .whole(.client(IPAddress(bytes: held[16..<20])!, port: UInt16(held[24]) << 8 | UInt16(held[25])), count)
        case 0x21 where count >= fixedBytes + 36:
            return .whole(.client(IPAddress(bytes: held[16..<32])!, port: UInt16(held[48]) << 8 | UInt16(held[49])), count)
        case 0x11, 0x21, 0x31: return .wrong("its PROXY header is too short for its addresses")
        case let family: return .wrong("its PROXY header has address family and protocol 0x\(String(family, radix: 16))")
        }
    }
}
