/// `NAME=VALUE` lines: `.env`, `.env.local`, `etc/codex-lb.env`.
public enum EnvironmentFile {
    /// A value, and the line that it stands in, from 1.
    public struct Assignment: Equatable, Sendable {
        public var value: String
        public var line: Int
        public init(_ value: String, line: Int) { (self.value, self.line) = (value, line) }
    }

    /// Of the environment: the absolute path of the one file to read instead of `names`. With `-` before it that file may be missing.
    public static let variable = "CODEX_LB_SETTINGS_FILE"
    /// Files below the working directory, the most specific first: a name that stands in several has its value from the first.
    /// `/etc/codex-lb/codex-lb.env` is where the packaged units have it, so that commands by hand see what the service sees.
    public static let names = [".env.local", ".env", "etc/codex-lb.env", "/etc/codex-lb/codex-lb.env"]
    /// What this program shares with others.
    static let sharedNames: Set<String> = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "PORT"]
    /// A larger file is refused.
    public static let bytesMax = 64 * 1024

    /// The settings of this program in the file; other names belong to other programs and are left out. In a file that is named for this
    /// program those count too that it shares with others (`sharedNames`), and in one that is this program's alone, by its absolute path, any other is refused:
    /// whoever wrote it there expects something of it.
    ///
    /// Blank lines and lines that start with `#` are comments; a byte order mark, `export` before a name and quotes around a value are taken
    /// off. In double quotes `\\"`, `\\\\` and `\\$` stand for their second character. Behind a value only a comment may follow.
    public static func parse(_ text: String, file: String, isNamed: Bool = false) throws(SettingsError) -> [String: Assignment] {
        var out: [String: Assignment] = [:]
        var number = 0
        let isOurs = isNamed || !file.hasSuffix(".env.local") && !file.hasSuffix("/.env") && file != ".env"
        guard !text.utf8.contains(0) else { throw SettingsError(file, "is not UTF-8; save it as UTF-8") }
        let text = text.hasPrefix("\u{FEFF}") ? text.dropFirst() : text[...]
        for raw in text.split(omittingEmptySubsequences: false, whereSeparator: \.isNewline) {
            number += 1
            var line = trimmed(raw)
            if line.isEmpty || line.hasPrefix("#") { continue }
            if line.hasPrefix("export"), line.dropFirst(6).first?.isWhitespace == true { line = trimmed(line.dropFirst(6)) }
            guard let equals = line.firstIndex(of: "=") else {
                guard line.hasPrefix("CODEX_LB_") else { continue }
                throw SettingsError("\(file):\(number)", "\"\(visible(line))\" has no value; expected NAME=VALUE")
            }
            let name = trimmed(line[..<equals])
            guard name.hasPrefix("CODEX_LB_") || isOurs && sharedNames.contains(String(name)) else {
                guard !line[..<equals].contains("CODEX_LB_") else {
                    throw SettingsError(
                        "\(file):\(number)",
                        "something stands before CODEX_LB_… that is not \"export\", maybe a character that can't be seen; expected NAME=VALUE"
                    )
                }
                guard !isOurs || !file.hasPrefix("/") else {
                    throw SettingsError(
                        "\(file):\(number)",
                        "\"\(visible(name))\" is not read from here; give it to the process itself, under systemd with Environment= (systemctl edit)"
                    )
                }
                continue
            }
            guard name != variable else { throw SettingsError("\(file):\(number)", "\(variable) is read from the environment alone") }
            guard
                sharedNames.contains(String(name)) || name.utf8.allSatisfy({ (65...90).contains($0) || (48...57).contains($0) || $0 == 95 })
            else {
                throw SettingsError("\(file):\(number)", "\"\(visible(name))\" is no name of a setting; expected NAME=VALUE")
            }
            let behind = line[line.index(after: equals)...]
            var value = trimmed(behind)
            if value.hasPrefix("#"), behind.first?.isWhitespace == true { value = "" }  // a comment behind nothing
            if let quote = value.first, quote == "\"" || quote == "'" {
                guard let (inside, rest) = quoted(value.dropFirst(), quote) else {
                    throw SettingsError("\(file):\(number)", "the value of \(name) lacks its closing \(quote)")
                }
                let more = trimmed(rest)
                guard more.isEmpty || more.hasPrefix("#") && rest.first != "#" else {
                    throw SettingsError("\(file):\(number)", "something follows the closing \(quote) of \(name)")
                }
                out[String(name)] = Assignment(inside, line: number)
                continue
            }
            if let comment = value.indices.dropFirst().first(where: { value[$0] == "#" && value[value.index(before: $0)].isWhitespace }) {
                value = trimmed(value[..<comment])
            }
            if let odd = value.first, "\u{201C}\u{201D}\u{2018}\u{2019}".contains(odd) {
                throw SettingsError("\(file):\(number)", "the value of \(name) is in typographic quotes; use \" or '")
            }
            out[String(name)] = Assignment(String(value), line: number)
        }
        return out
    }

    /// Of a line that can't be read as far as a name goes: what follows may be a secret.
    private static func visible(_ line: Substring) -> Substring { line.prefix { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "_") } }

    /// What stands before the closing quote, and what behind it.
    private static func quoted(_ text: Substring, _ quote: Character) -> (inside: String, rest: Substring)? {
        var inside = ""
        var rest = text
        while let c = rest.popFirst() {
            if c == quote { return (inside, rest) }
            if quote == "\"", c == "\\", let next = rest.first, "\"\\$".contains(next) {
                rest.removeFirst()
                inside.append(next)
            } else {
                inside.append(c)
            }
        }
        return nil
    }

    private static func trimmed(_ text: Substring) -> Substring {
        var text = text
        while let c = text.first, c.isWhitespace { text.removeFirst() }
        while let c = text.last, c.isWhitespace { text.removeLast() }
        return text
    }
}
