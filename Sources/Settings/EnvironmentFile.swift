/// `NAME=VALUE` lines: `.env`, `.env.local`, `etc/codex-lb.env`.
public enum EnvironmentFile {
    /// Files below the working directory, the most specific first: a name that stands in several has its value from the first.
    /// `/etc/codex-lb/codex-lb.env` is where the packaged units have it, so that commands by hand see what the service sees.
    public static let names = [".env.local", ".env", "etc/codex-lb.env", "/etc/codex-lb/codex-lb.env"]
    /// A larger file is refused.
    public static let bytesMax = 64 * 1024

    /// The settings of this program in the file; other names belong to other programs and are left out.
    ///
    /// Blank lines and lines that start with `#` are comments; `export ` before a name and quotes around a value are taken off.
    public static func parse(_ text: String, file: String) throws(SettingsError) -> [String: String] {
        var out: [String: String] = [:]
        var number = 0
        for raw in text.split(separator: "\n", omittingEmptySubsequences: false) {
            number += 1
            var line = trimmed(raw)
            if line.isEmpty || line.hasPrefix("#") { continue }
            if line.hasPrefix("export ") { line = trimmed(line.dropFirst(7)) }
            guard let equals = line.firstIndex(of: "=") else {
                guard line.hasPrefix("CODEX_LB_") else { continue }
                throw SettingsError("\(file):\(number)", "\"\(line.prefix { $0 != " " })\" has no value; expected NAME=VALUE")
            }
            let name = trimmed(line[..<equals])
            guard name.hasPrefix("CODEX_LB_") else { continue }
            guard name.utf8.allSatisfy({ (65...90).contains($0) || (48...57).contains($0) || $0 == 95 }) else {
                throw SettingsError("\(file):\(number)", "\"\(name)\" is no name of a setting; expected NAME=VALUE")
            }
            var value = trimmed(line[line.index(after: equals)...])
            if let quote = value.first, quote == "\"" || quote == "'" {
                guard let end = value.dropFirst().firstIndex(of: quote) else {
                    throw SettingsError("\(file):\(number)", "the value of \(name) lacks its closing \(quote)")
                }
                value = value[value.index(after: value.startIndex)..<end]
            } else if let comment = value.firstRange(of: " #") {
                value = trimmed(value[..<comment.lowerBound])
            }
            out[String(name)] = String(value)
        }
        return out
    }

    private static func trimmed(_ text: Substring) -> Substring {
        var text = text
        while let c = text.first, c.isWhitespace { text.removeFirst() }
        while let c = text.last, c.isWhitespace { text.removeLast() }
        return text
    }
}
