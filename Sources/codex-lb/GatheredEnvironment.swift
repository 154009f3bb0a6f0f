import ArgumentParser
import Platform
import Settings

#if canImport(Glibc)
    import Glibc
#endif

/// The process's environment, and what files and the service manager add to it: a name that the process has keeps the process's value.
struct GatheredEnvironment {
    var values = Environment.current
    /// Where each setting comes from that the process did not have: `FILE:LINE`, or the variable that leads to it.
    private(set) var sources: [String: String] = [:]

    /// Ends the command with a line where a file can't be read or understood.
    init() throws {
        findDirectories()
        // Children of a server have it all already; their working directory is no place to look for more.
        if values[Heritage.variable] != nil || values[Self.completeVariable] != nil { return }
        values[Self.completeVariable] = "1"
        for (path, isNamed) in try files() { try add(path, isNamed) }
        findCredential()
        // OpenSSL looks for this one itself.
        if let directory = values["SSL_CERT_DIR"] { setenv("SSL_CERT_DIR", directory, 1) }
    }

    /// Where the value of a setting comes from: a file's line, a flag, the environment, or nothing that was given.
    func source(of name: String, _ flags: Settings.Flags) -> String {
        switch name {
        case "CODEX_LB_LISTEN" where !flags.listen.isEmpty: return "--listen"
        case "CODEX_LB_WORKERS" where flags.workers != nil: return "--workers"
        case "CODEX_LB_DATA_DIR" where flags.dataDirectory != nil: return "--data-dir"
        default: break
        }
        if let value = values[name], !value.isEmpty { return sources[name] ?? "environment" }
        let substitutes = [
            "CODEX_LB_LISTEN": "PORT", "HTTPS_PROXY": "https_proxy", "NO_PROXY": "no_proxy", "CODEX_LB_DATA_DIR": "STATE_DIRECTORY",
            "CODEX_LB_RUNTIME_DIR": flags.dataDirectory == nil ? "RUNTIME_DIRECTORY" : "",
        ]
        if let other = substitutes[name], let value = values[other], !value.isEmpty { return sources[other] ?? "$" + other }
        return "default"
    }

    /// The true working directory, which `PWD` may be too old to tell, and the home of who runs this.
    private mutating func findDirectories() {
        var buffer = [CChar](repeating: 0, count: 4096)
        if getcwd(&buffer, buffer.count) != nil {
            values["PWD"] = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
        }
        // Services and cron jobs may lack it; the password database knows, and else it stays unknown: `/` would be somebody else's.
        if values["HOME"]?.isEmpty ?? true, let entry = getpwuid(getuid()), let directory = entry.pointee.pw_dir {
            let path = String(cString: directory)
            if path.hasPrefix("/"), path != "/" { values["HOME"] = path }
        }
    }

    /// The one file that was named, else whichever there are of the usual ones.
    private func files() throws -> [(path: String, isNamed: Bool)] {
        guard var named = values[EnvironmentFile.variable], !named.isEmpty else {
            // One that can't be read is the service's own, when somebody else runs a command.
            return EnvironmentFile.names.filter { access($0, F_OK) == 0 && (access($0, R_OK) == 0 || !$0.hasPrefix("/")) }.map {
                ($0, false)
            }
        }
        let mayLack = named.hasPrefix("-")
        if mayLack { named.removeFirst() }
        guard named.hasPrefix("/") else {
            complain("\(EnvironmentFile.variable): \"\(named)\" is no absolute path")
            throw ExitCode(2)
        }
        guard access(named, R_OK) != 0 else { return [(named, true)] }
        if errno == ENOENT, mayLack { return [] }
        let hint = errno == EACCES ? "; the server's user must be able to read it (as systemd-tmpfiles --create makes it)" : ""
        complain("\(EnvironmentFile.variable): \(named): \(String(cString: strerror(errno)))\(hint)")
        throw ExitCode(2)
    }

    private mutating func add(_ file: String, _ isNamed: Bool) throws {
        var info = stat()
        guard stat(file, &info) == 0, info.st_mode & S_IFMT == S_IFREG, info.st_size <= EnvironmentFile.bytesMax else {
            complain("settings file \(file) is not a regular file, or larger than \(EnvironmentFile.bytesMax) bytes")
            throw ExitCode(2)
        }
        let text = String(decoding: try readFile(file, what: "settings", bytesMax: EnvironmentFile.bytesMax), as: UTF8.self)
        do throws(SettingsError) {
            for (name, found) in try EnvironmentFile.parse(text, file: file, isNamed: isNamed) where values[name] == nil {
                values[name] = found.value
                sources[name] = "\(file):\(found.line)"
            }
        } catch {
            complain("\(error)")
            throw ExitCode(2)
        }
    }

    /// A service manager has given the encryption key (systemd.exec(5), LoadCredential=), and no setting names another one.
    private mutating func findCredential() {
        let name = "CODEX_LB_ENCRYPTION_KEY_FILE"
        guard values[name]?.isEmpty ?? true, let directory = values["CREDENTIALS_DIRECTORY"], !directory.isEmpty else { return }
        let path = directory + "/codex-lb.encryption-key"
        guard access(path, F_OK) == 0 else { return }
        values[name] = path
        sources[name] = "$CREDENTIALS_DIRECTORY"
    }

    private static let completeVariable = "CODEX_LB_ENVIRONMENT_IS_COMPLETE"
}

func gatherEnvironment() throws -> [String: String] { try GatheredEnvironment().values }
