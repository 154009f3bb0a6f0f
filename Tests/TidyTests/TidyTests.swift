import Foundation
import Testing

/// Rules of docs and STYLE that a reader would else have to check by eye.
@Suite struct TidyTests {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

    /// Swift and C sources of the product: path below `Sources`, and text.
    static let sources: [(path: String, text: String)] = {
        let base = root.appendingPathComponent("Sources")
        let all = FileManager.default.enumerator(at: base, includingPropertiesForKeys: nil)?.compactMap { $0 as? URL } ?? []
        return all.filter { ["swift", "c", "h"].contains($0.pathExtension) && !$0.lastPathComponent.hasSuffix(".pb.swift") }.map {
            (String($0.path.dropFirst(base.path.count + 1)), (try? String(contentsOf: $0, encoding: .utf8)) ?? "")
        }
    }()

    private func offenders(_ isBad: (_ path: String, _ line: Substring) -> Bool) -> [String] {
        Self.sources.flatMap { path, text in
            text.split(separator: "\n", omittingEmptySubsequences: false).enumerated().filter { isBad(path, $0.element) }.map {
                "\(path):\($0.offset + 1)"
            }
        }
    }

    private func imports(_ line: Substring) -> Substring? {
        let words = line.split(separator: " ")
        guard let i = words.firstIndex(of: "import"), i <= 1, i + 1 < words.count else { return nil }
        return words[i + 1]
    }

    @Test("There are sources to look at")
    func found() { #expect(Self.sources.count > 80) }

    @Test("Processes are started in one place: fork is called in CPlatform only")
    func fork() {
        #expect(offenders { path, line in line.contains("fork(") && !path.hasPrefix("CPlatform/") } == [])
    }

    @Test("One target per C library")
    func doors() {
        let doors = [
            "CUV": ["Loop"], "COpenSSL": ["TLS", "Sealing"], "CSQLite": ["SQLiteStore"], "CPostgres": ["PostgresStore"],
            "CZlib": ["Inflate"], "CZstd": ["Inflate"],
        ]
        let bad = offenders { path, line in
            guard let name = imports(line), let allowed = doors[String(name)] else { return false }
            return !allowed.contains { path.hasPrefix($0 + "/") }
        }
        #expect(bad == [])
    }

    /// `Package.swift`, read as text: of each target its layer and what it depends on.
    private static let targets: [String: (layer: Int, dependencies: Set<String>)] = {
        let text = (try? String(contentsOf: root.appendingPathComponent("Package.swift"), encoding: .utf8)) ?? ""
        let layers = text.split(separator: "// tests")[0].split(separator: /\n\s+\/\/ (?=\d)/).dropFirst()
        let products = ["log": "Logging", "protobuf": "SwiftProtobuf", "arguments": "ArgumentParser"]
        var out: [String: (layer: Int, dependencies: Set<String>)] = [:]
        for part in layers {
            guard let layer = part.first?.wholeNumberValue else { continue }
            let pattern = /(?:part|library|\.target|\.executableTarget)\(\s*(?:name: )?"([\w-]+)"(?:,\s*(?:dependencies: )?\[([^\]]*)\])?/
            for match in part.matches(of: pattern) {
                let names = (match.output.2 ?? "").matches(of: /[\w-]+/).map { String($0.output) }
                out[String(match.output.1)] = (layer, Set(names.map { products[$0] ?? $0 }))
            }
        }
        return out
    }()

    @Test("The import table is Package.swift's: what is imported is declared, what is declared is imported, and nothing imports upwards")
    func importTable() {
        #expect(Self.targets.count > 25 && Self.targets["Loop"]?.layer == 4 && Self.targets["Loop"]?.dependencies.contains("CUV") == true)
        var imported: [String: Set<String>] = [:]
        for (path, text) in Self.sources where path.hasSuffix(".swift") {
            for line in text.split(separator: "\n") {
                guard let name = imports(line) else { continue }
                imported[String(path.prefix { $0 != "/" }), default: []].insert(String(name))
            }
        }
        let system: Set<String> = ["Glibc", "Synchronization", "FoundationEssentials"]
        for (target, (layer, declared)) in Self.targets where imported[target] != nil {
            let used = imported[target, default: []].subtracting(system)
            #expect(used.subtracting(declared) == [], "\(target) imports what Package.swift does not give it")
            #expect(declared.subtracting(used) == [], "\(target) has dependencies that it does not import")
            for name in declared { #expect(Self.targets[name].map { $0.layer <= layer } ?? true, "\(target) imports \(name) upwards") }
        }
    }

    @Test("Decisions do no I/O: layers 1 to 3 import neither the loop, the system nor the log")
    func decisions() {
        let decisions = [
            "HTTPWire", "JSONWire", "ControlWire", "Settings", "Schema", "Admission", "Routing", "Exchange", "Metering", "Translation",
            "Fleet",
        ]
        let forbidden: Set<Substring> = [
            "Loop", "Platform", "Logging", "Foundation", "Glibc", "Diagnostics", "TLS", "SQLiteStore", "PostgresStore",
        ]
        let bad = offenders { path, line in
            decisions.contains { path.hasPrefix($0 + "/") } && imports(line).map { forbidden.contains($0) } ?? false
        }
        #expect(bad == [])
    }

    @Test("No Foundation in the product, and time is read through Clock")
    func foundation() {
        #expect(offenders { _, line in imports(line) == "Foundation" } == [])
        #expect(offenders { path, line in line.contains("clock_gettime(") && path != "Vocabulary/Time.swift" } == [])
    }

    @Test("try? has a reason beside it; nothing unfinished is left")
    func reasons() {
        #expect(offenders { _, line in line.contains("try? ") && !line.contains("//") } == [])
        #expect(
            offenders { path, line in line.contains("TODO") || line.contains("FIXME") || line.contains("XXX") && !line.contains("XXXXXX") }
                == [])
        #expect(offenders { _, line in line.contains("try!") } == [])
    }

    @Test("Every line that is logged as a notice or worse is in docs/log-lines.md")
    func logLines() throws {
        let page = try String(contentsOf: Self.root.appendingPathComponent("docs/log-lines.md"), encoding: .utf8)
        var count = 0
        for (path, text) in Self.sources {
            for match in text.matches(of: /\.(?:notice|warning|error|critical)\(\s*"((?:[^"\\]|\\.)+)"/) {
                // As far as it is the same each time.
                let parts = match.output.1.split(separator: /\\\([^"]*?\)/)
                guard let words = parts.map({ $0.trimmingCharacters(in: .whitespaces) }).max(by: { $0.count < $1.count }), words.count > 3
                else { continue }
                count += 1
                let isThere = page.contains(words.drop { !$0.isLetter }.prefix(28))
                #expect(isThere, "docs/log-lines.md lacks the line of \(path): \(match.output.1)")
            }
        }
        #expect(count > 90)
    }

    @Test("Every setting in the code is in docs/settings.md and in the sample file")
    func settings() throws {
        let documented = try String(contentsOf: Self.root.appendingPathComponent("docs/settings.md"), encoding: .utf8)
        let sample = try String(contentsOf: Self.root.appendingPathComponent("etc/codex-lb.env"), encoding: .utf8)
        let code = Self.sources.filter { $0.path.hasPrefix("Settings/") }.map(\.text).joined()
        let names = Set(code.matches(of: /"(CODEX_LB_[A-Z_]+)"/).map { String($0.output.1) }).subtracting([
            "CODEX_LB_PIN_FIRST_CPU", "CODEX_LB_", "CODEX_LB_SETTINGS_FILE",
        ])
        #expect(names.count > 15)
        for name in names {
            #expect(documented.contains("`\(name)`"), "docs/settings.md lacks \(name)")
            #expect(sample.contains("#\(name)="), "etc/codex-lb.env lacks \(name)")
        }
    }
}
