import DaemonHarness
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// The recipes of docs/database.md are carried out as they stand there.
    @Suite struct Recipes {
        /// Shell blocks of the page that have `<!-- test: KIND -->` on the line above them, with the lines they begin at.
        private static func blocks(_ kind: Database) throws -> [(line: Int, text: String)] {
            let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
                .appendingPathComponent("docs/database.md")
            let lines = try String(contentsOf: page, encoding: .utf8).components(separatedBy: "\n")
            return lines.indices.filter { lines[$0] == "<!-- test: \(kind) -->" }.compactMap { mark in
                let first = mark + 2
                guard first < lines.count, lines[mark + 1] == "```sh", let end = lines[first...].firstIndex(of: "```") else {
                    Issue.record("docs/database.md:\(mark + 1): no shell block follows the mark")
                    return nil
                }
                return (first + 1, lines[first..<end].joined(separator: "\n") + "\n")
            }
        }

        /// Each block in its turn, in one home: every command of it ends well.
        /// With the data directory in a variable, and with none set, as most who read the page have it.
        @Test(arguments: Database.both, [true, false]) func database(_ kind: Database, _ isSet: Bool) throws {
            let blocks = try Self.blocks(kind)
            try #require(!blocks.isEmpty, "docs/database.md has no block marked \"test: \(kind)\"")
            let daemon = try Daemon(on: kind)
            let bin = daemon.directory + "/bin"
            try FileManager.default.createDirectory(atPath: bin, withIntermediateDirectories: false)
            try FileManager.default.createSymbolicLink(atPath: bin + "/codex-lb", withDestinationPath: Daemon.binary)
            var environment = daemon.environment
            environment["CODEX_LB_LOG_LEVEL"] = nil
            if !isSet {
                environment["HOME"] = daemon.directory
                environment["CODEX_LB_DATA_DIR"] = nil
                environment["CODEX_LB_RUNTIME_DIR"] = nil
            }
            let home = isSet ? daemon.data : daemon.directory + "/.codex-lb"
            // There is something to lose: an account.
            let seed = try Child(
                Daemon.binary,
                ["accounts", "add", "a", "--base-url", "http://127.0.0.1:1/v1", "--key-file", "/etc/hostname"],
                environment: environment.merging(["CODEX_LB_DATABASE_URL": "sqlite:///\(home)/store.db"]) { $1 })
            #expect(seed.wait(20) == .code(0))
            var path = [bin, "/usr/bin", "/bin"]
            if kind == .postgresql {
                let cluster = try PostgresCluster.shared()
                // As the server's owner over its socket, where no password is asked for.
                environment.merge(["PGHOST": cluster.directory, "PGPORT": String(cluster.port), "PGUSER": "postgres"]) { $1 }
                path.insert((PostgresCluster.tool("psql") as NSString).deletingLastPathComponent, at: 1)
            }
            environment["PATH"] = path.joined(separator: ":")
            for (line, text) in blocks {
                let file = "\(daemon.directory)/block-\(line)"
                try Data(text.utf8).write(to: URL(fileURLWithPath: file))
                let shell = try Child(
                    "/bin/sh", ["-eu", file], environment: environment, output: file + ".out", errors: file + ".err",
                    directory: daemon.directory)
                #expect(
                    shell.wait(60) == .code(0), "docs/database.md:\(line):\n\(text)--\n\(procText(file + ".out"))\(procText(file + ".err"))"
                )
            }
        }
    }
}
