extension Unicode.Scalar {
    /// Has a shape of its own in a line of text: no control (C0, DEL, C1), no line or paragraph separator, none of the marks that turn the
    /// direction of what follows (Unicode UAX #9), no invisible one. A name from outside may hold any of them.
    public var isPlain: Bool {
        switch value {
        case 0x20..<0x7F: true
        case 0..<0x20, 0x7F...0x9F, 0x061C, 0x200B...0x200F, 0x2028...0x202E, 0x2060...0x206F, 0xFEFF, 0xFFF9...0xFFFB, 0xE0000...0xE007F:
            false
        default: true
        }
    }

    /// `\u2028`: how JSON and logs write a scalar that can't stand for itself; beyond U+FFFF as two halves.
    public var escaped: String {
        UTF16.encode(self)!.map { unit in
            let hex = String(unit, radix: 16)
            return "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
        }.joined()
    }
}

extension String {
    /// A JSON string with its quotes, all plain text.
    public var jsonQuoted: String {
        var out = "\""
        for scalar in unicodeScalars {
            switch scalar {
            case "\"": out += "\\\""
            case "\\": out += "\\\\"
            case "\n": out += "\\n"
            case _ where !scalar.isPlain: out += scalar.escaped
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out + "\""
    }

    /// The same text with what is not plain escaped: for terminals and logs.
    public var printable: String {
        if utf8.allSatisfy({ $0 >= 0x20 && $0 < 0x7F }) { return self }
        var out = ""
        for scalar in unicodeScalars {
            if scalar.isPlain { out.unicodeScalars.append(scalar) } else { out += scalar.escaped }
        }
        return out
    }
}
