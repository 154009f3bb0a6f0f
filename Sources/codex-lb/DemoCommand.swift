import ArgumentParser
import DemoUpstream
import Platform

#if canImport(Glibc)
    import Glibc
#endif

/// The built-in upstream with canned text. Hidden: for the demo, tests and benchmarks.
struct DemoUpstreamCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo-upstream", abstract: "Serve canned answers like an OpenAI-compatible upstream.", shouldDisplay: false)

    @Option(name: .long, help: "ADDRESS:PORT.") var listen = "127.0.0.1:0"
    @Option(name: .long, help: "Text events of a stream.") var events = 20
    @Option(name: .customLong("interval-ms"), help: "Milliseconds between events; 0: all at once.") var interval = 60
    @Flag(name: .customLong("stamps"), help: "Events tell when they were sent.") var stamps = false
    @Option(name: .customLong("pin"), help: "CPU to run on.") var pin: Int?

    func validate() throws {
        guard (1...100_000).contains(events), (0...60_000).contains(interval) else {
            throw ValidationError("--events takes 1 to 100000, --interval-ms 0 to 60000")
        }
    }

    func run() throws {
        var options = DemoUpstream.Options()
        options.events = events
        options.intervalMilliseconds = interval
        options.hasStamps = stamps
        if let pin { Process.pin(toCPU: pin) }
        _ = Process.descriptorLimit  // raised to what it may be
        switch ListenAddress.parse(listen) {
        case .failure(let error):
            complain("\(error)")
            throw ExitCode(2)
        case .success(let address):
            do throws(SystemError) {
                try DemoUpstream.run(listen: address, options: options) { name in
                    print("demo upstream on http://\(name)/v1")
                    fflush(nil)
                }
            } catch {
                complain("\(error)")
                throw ExitCode(1)
            }
        }
    }
}

/// `make demo`: everything in a temporary directory, with accounts on the demo upstream.
struct Demo: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo", abstract: "Try it without an account: temporary data, a built-in upstream, a curl line that works.")

    @Option(name: .long, help: "ADDRESS:PORT to serve on.") var listen = "127.0.0.1:2455"
    @Option(name: .long, help: "Proxy workers.") var workers = 2

    func run() throws {
        // Before anything is promised: is the port ours to have?
        switch ListenAddress.parse(listen) {
        case .failure(let error):
            complain("\(error)")
            throw ExitCode(2)
        case .success(let address):
            do throws(SystemError) { Descriptor.close(try Sockets.listen(address)) } catch {
                complain("\(error). Another program has this port; give another address with --listen")
                throw ExitCode(1)
            }
        }
        var template = Array("/tmp/codex-lb-demo.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            complain("cannot make a temporary directory under /tmp: \(String(cString: strerror(errno)))")
            throw ExitCode(1)
        }
        let directory = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
        defer { Directory.remove(directory) }
        var environment = try gatherEnvironment()
        environment["CODEX_LB_DATA_DIR"] = directory
        for name in [
            "CODEX_LB_RUNTIME_DIR", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CODEX_LB_DATABASE_URL", "CODEX_LB_ENCRYPTION_KEY_FILE",
            "CODEX_LB_LISTEN",
        ] {
            environment[name] = nil
        }
        var problem: String?
        attempt: do throws(SystemError) {
            let socket = try Sockets.listen(.tcp(host: "127.0.0.1", port: 0))
            let upstream = Sockets.name(of: socket)
            Descriptor.close(socket)
            let upstreamPID = try Process.spawnSelf(["demo-upstream", "--listen", upstream], heritage: nil, environment: environment)
            defer { end(upstreamPID) }
            environment["CODEX_LB_AUTH_BASE_URL"] = "http://\(upstream)"
            guard try addAccounts(upstream, directory, environment) else {
                problem = "the demo's accounts could not be added; the line above says why"
                break attempt
            }
            print(
                """

                The demo serves on http://\(listen) with data in \(directory). In another terminal:

                  curl -N http://\(listen)/v1/responses -H 'Content-Type: application/json' -d '{"model":"demo-1","input":"Hello","stream":true}'
                  curl -N http://\(listen)/v1/chat/completions -H 'Content-Type: application/json' -d '{"model":"demo-1","messages":[{"role":"user","content":"Hello"}],"stream":true}'

                Two logins serve it. "small" has quota for three turns; then "large" goes on, and nobody notices:

                  for i in 1 2 3 4 5 6 7 8; do curl -s http://\(listen)/v1/responses -H 'Content-Type: application/json' -d '{"model":"demo-1","input":"Hello"}' -o /dev/null -w '%{http_code}\\n'; done
                  CODEX_LB_DATA_DIR=\(directory) \(Process.executable) accounts list
                  CODEX_LB_DATA_DIR=\(directory) \(Process.executable) requests

                Ctrl-C ends it, and its data goes with it.

                """)
            fflush(nil)
            // Signals of the terminal reach the server itself; this process only waits for it.
            signal(SIGINT, SIG_IGN)
            let server = try Process.spawnSelf(
                ["serve", "--listen", listen, "--workers", String(workers), "--data-dir", directory], heritage: nil,
                environment: environment)
            DemoServer.pid = server
            signal(SIGTERM) { _ in _ = kill(DemoServer.pid, SIGTERM) }
            let exit = wait(server)
            if exit != .code(0) { problem = "the server ended with \(exit); its lines above say why" }
        } catch { problem = "\(error)" }
        guard let problem else { return }
        complain(problem)
        throw ExitCode(1)
    }

    /// Two logins, and a key for what logins can't serve.
    private func addAccounts(_ upstream: String, _ directory: String, _ environment: [String: String]) throws(SystemError) -> Bool {
        let key = directory + "/demo.key"
        try write("sk-demo-upstream-key\n", to: key)
        var commands = [["accounts", "add", "key", "--base-url", "http://\(upstream)/v1", "--key-file", key, "--overflow"]]
        for name in ["small", "large"] {
            let file = "\(directory)/\(name).json"
            try write(DemoUpstream.authFile(name), to: file)
            commands.append(["accounts", "import", file, "--name", name, "--base-url", "http://\(upstream)/backend-api"])
        }
        for command in commands {
            guard wait(try Process.spawnSelf(command, heritage: nil, environment: environment)) == .code(0) else { return false }
        }
        return true
    }

    private func wait(_ pid: Int32) -> Process.Exit {
        while true {
            if let exit = Process.reap(pid) { return exit }
            usleep(20_000)
        }
    }

    private func end(_ pid: Int32) {
        Process.signal(pid, SIGTERM)
        _ = wait(pid)
    }

    private func write(_ text: String, to path: String) throws(SystemError) {
        let fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard fd >= 0 else { throw SystemError(errno, "writing \(path)") }
        defer { close(fd) }
        guard Array(text.utf8).withUnsafeBytes({ Glibc.write(fd, $0.baseAddress, $0.count) }) == text.utf8.count else {
            throw SystemError(errno, "writing \(path)")
        }
    }
}

/// What the signal handler needs: it may use nothing but this number.
private enum DemoServer {
    nonisolated(unsafe) static var pid: Int32 = 0
}
