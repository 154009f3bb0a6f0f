/// An IPv4 or IPv6 address. IPv4 is kept in its mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2), so that an address is the same one over
/// whichever socket it came.
public struct IPAddress: Hashable, Sendable, CustomStringConvertible {
    /// The first and the last eight bytes.
    public let high, low: UInt64

    public init(high: UInt64, low: UInt64) { (self.high, self.low) = (high, low) }
    public init(v4: UInt32) { self.init(high: 0, low: 0xFFFF << 32 | UInt64(v4)) }

    /// Four bytes or sixteen, in network order; nil for any other number.
    public init?(bytes: some Sequence<UInt8>) {
        var (high, low, count): (UInt64, UInt64, Int) = (0, 0, 0)
        for byte in bytes { (high, low, count) = (high << 8 | low >> 56, low << 8 | UInt64(byte), count + 1) }
        switch count {
        case 4: self.init(v4: UInt32(low))
        case 16: self.init(high: high, low: low)
        default: return nil
        }
    }

    /// As inet_pton(3) reads it: `192.0.2.1` without leading zeros, `2001:db8::1`, `::ffff:192.0.2.1`; no zone.
    public init?(_ text: some StringProtocol) {
        let bytes = Array(text.utf8)
        guard bytes.count <= 45 else { return nil }
        if let v4 = Self.v4(bytes[...]) {
            self.init(v4: v4)
        } else if let (high, low) = Self.v6(bytes[...]) {
            self.init(high: high, low: low)
        } else {
            return nil
        }
    }

    public var isV4: Bool { high == 0 && low >> 32 == 0xFFFF }
    /// 127.0.0.0/8 and ::1.
    public var isLoopback: Bool { isV4 ? low >> 24 & 0xFF == 127 : high == 0 && low == 1 }

    /// RFC 5952 §4 for IPv6, four numbers for IPv4.
    public var description: String {
        if isV4 { return [24, 16, 8, 0].map { String(low >> $0 & 0xFF) }.joined(separator: ".") }
        let groups = [high, low].flatMap { half in [48, 32, 16, 0].map { half >> $0 & 0xFFFF } }
        var (best, run) = (0..<0, 0..<0)
        for (i, group) in groups.enumerated() {
            run = group == 0 ? (run.isEmpty ? i : run.lowerBound)..<i + 1 : i..<i
            if run.count > best.count { best = run }
        }
        let texts = groups.map { String($0, radix: 16) }
        guard best.count > 1 else { return texts.joined(separator: ":") }
        return texts[..<best.lowerBound].joined(separator: ":") + "::" + texts[best.upperBound...].joined(separator: ":")
    }

    private static func v4(_ text: ArraySlice<UInt8>) -> UInt32? {
        var out: UInt32 = 0
        let parts = text.split(separator: UInt8(ascii: "."), omittingEmptySubsequences: false)
        guard parts.count == 4 else { return nil }
        for part in parts {
            guard (1...3).contains(part.count), part.count == 1 || part.first != UInt8(ascii: "0") else { return nil }
            var number: UInt32 = 0
            for c in part {
                guard (0x30...0x39).contains(c) else { return nil }
                number = number * 10 + UInt32(c - 0x30)
            }
            guard number <= 255 else { return nil }
            out = out << 8 | number
        }
        return out
    }

    private static func v6(_ text: ArraySlice<UInt8>) -> (UInt64, UInt64)? {
        let colon = UInt8(ascii: ":")
        var groups: [UInt64] = []
        /// Where `::` stands, in groups.
        var gap: Int?
        var rest = text
        if rest.starts(with: [colon, colon]) {
            gap = 0
            rest = rest.dropFirst(2)
        }
        while !rest.isEmpty {
            guard groups.count < 8 else { return nil }
            let group = rest.prefix { $0 != colon }
            if group.contains(UInt8(ascii: ".")) {
                guard group.endIndex == rest.endIndex, groups.count <= 6, let v4 = v4(group) else { return nil }
                groups += [UInt64(v4 >> 16), UInt64(v4 & 0xFFFF)]
                break
            }
            guard (1...4).contains(group.count) else { return nil }
            var number: UInt64 = 0
            for c in group {
                guard let digit = hexDigit(c) else { return nil }
                number = number << 4 | UInt64(digit)
            }
            groups.append(number)
            rest = rest[group.endIndex...]
            if rest.isEmpty { break }
            rest = rest.dropFirst()
            if rest.first == colon {
                guard gap == nil else { return nil }
                gap = groups.count
                rest = rest.dropFirst()
            } else if rest.isEmpty {
                return nil  // a colon at the end
            }
        }
        if let gap {
            guard groups.count < 8 else { return nil }
            groups.insert(contentsOf: repeatElement(0, count: 8 - groups.count), at: gap)
        }
        guard groups.count == 8 else { return nil }
        return (groups[..<4].reduce(0) { $0 << 16 | $1 }, groups[4...].reduce(0) { $0 << 16 | $1 })
    }

    private static func hexDigit(_ c: UInt8) -> UInt8? {
        switch c {
        case 0x30...0x39: c - 0x30
        case 0x41...0x46: c - 0x41 + 10
        case 0x61...0x66: c - 0x61 + 10
        default: nil
        }
    }
}

/// The addresses that begin with the same bits: `10.0.0.0/8`, `2001:db8::/32`, or one address.
public struct Network: Hashable, Sendable, CustomStringConvertible {
    public let base: IPAddress
    /// Of 128, also for IPv4, whose mapped form begins with 96.
    private let bits: Int

    /// Nil when the text is no network, or has bits set beyond its prefix.
    public init?(_ text: some StringProtocol) {
        let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        guard let base = IPAddress(parts[0]) else { return nil }
        let most = base.isV4 && !parts[0].contains(":") ? 32 : 128
        var count = most
        if parts.count == 2 {
            guard let number = Int(parts[1]), String(number) == parts[1], (0...most).contains(number) else { return nil }
            count = number
        }
        (self.base, bits) = (base, 128 - most + count)
        guard masked(base) == base else { return nil }
    }

    public func contains(_ address: IPAddress) -> Bool { address.isV4 == base.isV4 && masked(address) == base }

    private func masked(_ address: IPAddress) -> IPAddress {
        func mask(_ bits: Int) -> UInt64 { bits <= 0 ? 0 : bits >= 64 ? .max : ~(.max >> UInt64(bits)) }
        return IPAddress(high: address.high & mask(bits), low: address.low & mask(bits - 64))
    }

    public var description: String { "\(base)/\(base.isV4 && bits >= 96 ? bits - 96 : bits)" }
}

/// Peers that are proxies in front of us: what they say of those behind them is believed.
public struct TrustedProxies: Sendable, Equatable, CustomStringConvertible {
    public var networks: [Network]
    /// Whoever connects over a Unix-domain socket.
    public var includesUnix: Bool

    public init(networks: [Network] = [], includesUnix: Bool = false) { (self.networks, self.includesUnix) = (networks, includesUnix) }

    public var isEmpty: Bool { networks.isEmpty && !includesUnix }

    /// `peer` nil: over a Unix-domain socket.
    public func contains(_ peer: IPAddress?) -> Bool {
        guard let peer else { return includesUnix }
        return networks.contains { $0.contains(peer) }
    }

    public var description: String { (networks.map(\.description) + (includesUnix ? ["unix"] : [])).joined(separator: ",") }
}
