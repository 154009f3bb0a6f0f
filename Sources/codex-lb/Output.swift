import ArgumentParser
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// A table on standard output, once or again and again.
struct LiveTable: ParsableArguments {
    @Flag(name: .long, help: "Show it anew every two seconds, until ctrl-C.") var watch = false

    func check(json: Bool) throws {
        if json, watch { throw ValidationError("--json and --watch exclude each other; for a live figure ask --json again") }
    }

    func show(_ lines: () throws -> [String]) throws {
        guard watch else {
            for line in try lines() { print(line) }
            return
        }
        guard isatty(1) == 1 else {
            complain("--watch needs a terminal; leave it out, or ask for --json again and again")
            throw ExitCode(2)
        }
        Self.draw(try lines())
        while true {
            usleep(2_000_000)
            // Whatever was wrong has been told; a server that starts anew is found again.
            do { Self.draw(try lines()) } catch is ExitCode {}
        }
    }

    /// From the top of the terminal, as many lines as it has.
    private static func draw(_ lines: [String]) {
        var size = winsize()
        _ = ioctl(1, UInt(TIOCGWINSZ), &size)
        let (rows, columns) = (max(4, Int(size.ws_row)), Int(size.ws_col))
        let shown = lines.count < rows ? lines : Array(lines.prefix(rows - 2)) + ["… and \(lines.count - rows + 2) more"]
        let text = shown.map { columns > 0 ? String($0.prefix(columns)) : $0 }.joined(separator: "\n")
        print("\u{1B}[H\u{1B}[2J\(text)")
        fflush(nil)
    }
}

/// JSON for `--json` outputs: flat objects in a fixed order of keys.
enum JSONText {
    enum Value {
        case string(String), int(Int64), bool(Bool), null, raw(String)
        static func optional(_ text: String?) -> Value { text.map { .string($0) } ?? .null }
        static func optional(_ number: Int64?) -> Value { number.map { .int($0) } ?? .null }
    }

    static func object(_ members: [(String, Value)]) -> String {
        "{"
            + members.map { name, value in
                let text =
                    switch value {
                    case .string(let s): s.jsonQuoted
                    case .int(let n): String(n)
                    case .bool(let b): b ? "true" : "false"
                    case .null: "null"
                    case .raw(let r): r
                    }
                return name.jsonQuoted + ":" + text
            }.joined(separator: ",") + "}"
    }

    /// Of members that are JSON already.
    static func array(_ members: [String]) -> String { "[" + members.joined(separator: ",") + "]" }
}

/// Columns as wide as their longest cell. What clients and upstreams wrote must not command the terminal.
func printTable(_ titles: [String], _ rows: [[String]]) {
    for line in tableLines(titles, rows) { print(line) }
}

func tableLines(_ titles: [String], _ rows: [[String]]) -> [String] {
    let rows = rows.map { row in row.map(\.printable) }
    let widths = titles.indices.map { i in ([titles] + rows).map { $0[i].count }.max() ?? 0 }
    return ([titles] + rows).map { row in
        var line = ""
        for (i, cell) in row.enumerated() {
            line += i == row.count - 1 ? cell : cell + String(repeating: " ", count: widths[i] - cell.count + 2)
        }
        return line
    }
}
