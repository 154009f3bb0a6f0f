import DaemonHarness
import Foundation
import Testing

#if canImport(Glibc)
    import Glibc
#endif

extension Integration {
    /// What `make install` puts where, and the man page.
    @Suite struct Install {
        static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent()
            .path

        /// Output and errors of a program that ends well.
        private static func run(_ program: String, _ arguments: [String], in directory: String, from place: String = root) throws -> String
        {
            let (output, errors) = (directory + "/out", directory + "/err")
            unlink(output)
            unlink(errors)
            let child = try Child(
                program, arguments, environment: ["PATH": "/usr/bin:/bin", "HOME": directory], output: output, errors: errors,
                directory: place)
            let exit = child.wait(60)
            let (text, complaints) = (procText(output), procText(errors))
            #expect(exit == .code(0), "\(program) \(arguments): \(text)\(complaints)")
            return text + complaints
        }

        private static func make(_ target: String, _ daemon: Daemon) throws {
            // Whoever installs may have a mask of his own.
            let command = "umask 077; exec make \(target) BINARY=\(Daemon.binary) DESTDIR=\(daemon.directory)/root PREFIX=/opt/it"
            _ = try run("/bin/sh", ["-c", command], in: daemon.directory)
        }

        private static func files(_ directory: String) -> [String] {
            let all = FileManager.default.enumerator(atPath: directory)?.compactMap { $0 as? String } ?? []
            return all.filter {
                !((try? FileManager.default.attributesOfItem(atPath: directory + "/" + $0)[.type] as? FileAttributeType) == .typeDirectory)
            }
            .sorted()
        }

        /// Every part is there, readable for all and speaking of its own place; settings that somebody has changed outlive a second
        /// install and the uninstall, which leaves nothing else.
        @Test func install() throws {
            let daemon = try Daemon()
            let place = daemon.directory + "/root"
            try Self.make("install", daemon)
            let parts = [
                "bin/codex-lb": "", "share/man/man1/codex-lb.1": ".Dt CODEX-LB 1", "share/codex-lb/codex-lb.env": "#CODEX_LB_LISTEN=",
                "share/bash-completion/completions/codex-lb": "complete -o filenames -F _codex-lb codex-lb",
                "share/zsh/site-functions/_codex-lb": "#compdef codex-lb",
                "share/fish/vendor_completions.d/codex-lb.fish": "complete -c 'codex-lb'",
                "lib/systemd/system/codex-lb.service": "ExecStart=/opt/it/bin/codex-lb serve",
                "lib/systemd/system/codex-lb.socket": "ListenStream=",
                "lib/systemd/system/codex-lb-proxy.socket": "FileDescriptorName=proxy",
                "lib/systemd/system/codex-lb@.service": "ExecStart=/opt/it/bin/codex-lb serve",
                "lib/systemd/system/codex-lb@.socket": "127.0.0.1:%i",
                "lib/systemd/system/codex-lb-backup.service": "/opt/it/bin/codex-lb db backup",
                "lib/systemd/system/codex-lb-backup.timer": "OnCalendar=", "lib/sysusers.d/codex-lb.conf": "u codex-lb",
                "lib/tmpfiles.d/codex-lb.conf": "/etc/codex-lb", "share/codex-lb/systemd/notify-reload.conf": "Type=notify-reload",
                "share/doc/codex-lb/README.md": "# codex-lb",
                "share/doc/codex-lb/docs/settings.md": "# Settings",
            ]
            for (part, text) in parts {
                let path = "\(place)/opt/it/\(part)"
                let mode = (try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int) ?? 0
                #expect(mode == (part.hasPrefix("bin/") ? 0o755 : 0o644), "\(part): \(String(mode, radix: 8))")
                if !text.isEmpty { #expect(procText(path).contains(text), "\(part) lacks \"\(text)\"") }
            }
            #expect(!procText(place + "/opt/it/lib/systemd/system/codex-lb.service").contains("/usr/local"))
            let settings = place + "/etc/codex-lb/codex-lb.env"
            #expect(procText(settings) == procText(Self.root + "/etc/codex-lb.env"))
            #expect(try FileManager.default.attributesOfItem(atPath: settings)[.posixPermissions] as? Int == 0o600)
            daemon.binary = place + "/opt/it/bin/codex-lb"
            #expect(try daemon.run("--version").output.hasPrefix("codex-lb "))
            // The shells take what is meant for them.
            _ = try Self.run("/bin/bash", ["-n", place + "/opt/it/share/bash-completion/completions/codex-lb"], in: daemon.directory)

            try Data("CODEX_LB_WORKERS=3\n".utf8).write(to: URL(fileURLWithPath: settings))
            try Self.make("install", daemon)
            #expect(procText(settings) == "CODEX_LB_WORKERS=3\n")
            try Self.make("uninstall", daemon)
            #expect(Self.files(place) == ["etc/codex-lb/codex-lb.env"])

            // Settings as they came go too.
            unlink(settings)
            try Self.make("install", daemon)
            try Self.make("uninstall", daemon)
            #expect(Self.files(place) == [])
        }

        /// Missing packages are installed without a question, also by a user with sudo, whose variables do not get through.
        @Test func packagesWithoutQuestions() throws {
            let daemon = try Daemon()
            let bin = daemon.directory + "/bin"
            try FileManager.default.createDirectory(atPath: bin, withIntermediateDirectories: false)
            let programs = [
                "id": "echo 1000", "dpkg-query": "exit 1", "sudo": "exec env -i PATH=\"$PATH\" \"$@\"",
                "apt-get": "echo \"frontend=$DEBIAN_FRONTEND $*\"",
            ]
            for (name, text) in programs {
                try Data("#!/bin/sh\n\(text)\n".utf8).write(to: URL(fileURLWithPath: "\(bin)/\(name)"))
                chmod("\(bin)/\(name)", 0o755)
            }
            let command = "PATH=\(bin):$PATH exec sh etc/dev/install-packages.sh first second"
            let said = try Self.run("/bin/sh", ["-c", command], in: daemon.directory)
            #expect(said.contains("frontend=noninteractive install ") && said.contains(" first second\n"), "\(said)")
        }

        /// Bash, asked as at a prompt, offers the program's commands and options.
        @Test func bashCompletes() throws {
            let daemon = try Daemon()
            try Self.make("install", daemon)
            let script = """
                shopt -s extglob
                source \(daemon.directory)/root/opt/it/share/bash-completion/completions/codex-lb
                COMP_LINE="$1"; read -ra COMP_WORDS <<<"$1"; [[ "$1" != *" " ]] || COMP_WORDS+=("")
                COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_POINT=${#COMP_LINE}; COMPREPLY=()
                _codex-lb codex-lb "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
                printf '%s\\n' "${COMPREPLY[@]}"
                """
            func offered(_ line: String) throws -> Set<Substring> {
                Set(try Self.run("/bin/bash", ["-c", script, "bash", line], in: daemon.directory).split(separator: "\n"))
            }
            #expect(try offered("codex-lb ").isSuperset(of: ["serve", "accounts", "keys", "db"]))
            #expect(try offered("codex-lb db ").isSuperset(of: ["backup", "restore", "spool"]))
            #expect(try offered("codex-lb accounts add x --").isSuperset(of: ["--base-url", "--key-file", "--replace"]))
        }

        /// The page names the commands and options that this program has, and both readers of man pages find nothing to complain of.
        @Test func manPage() throws {
            let daemon = try Daemon()
            let page = Self.root + "/docs/codex-lb.1"
            let made = try Self.run("/usr/bin/python3", [Self.root + "/etc/dev/manpage.py", Daemon.binary], in: daemon.directory)
            #expect(made == procText(page), "docs/codex-lb.1 is not what the program says: make man")
            // Not only the script's word for it: what `--help` of each command shows is on the page as it is read.
            let read = try Self.run("/usr/bin/mandoc", ["-T", "ascii", page], in: daemon.directory)
                .replacing(/.\u{8}/, with: "")
            var commands = 0
            func look(_ path: [String]) throws {
                let help = try daemon.run(path + ["--help"]).output
                for option in help.matches(of: /(?m)^ +(?:-h, )?(--[a-z-]+)/) {
                    #expect(read.contains(option.output.1), "the page lacks \(option.output.1) of \(path)")
                }
                guard let list = help.range(of: "SUBCOMMANDS:\n") else {
                    commands += 1
                    #expect(read.contains("\n     " + path.joined(separator: " ")), "the page lacks \(path)")
                    return
                }
                for name in help[list.upperBound...].matches(of: /(?m)^  ([a-z-]+)/) { try look(path + [String(name.output.1)]) }
            }
            try look([])
            #expect(commands > 20)
            #expect(try Self.run("/usr/bin/mandoc", ["-T", "lint", page], in: daemon.directory) == "")
        }
    }
}
