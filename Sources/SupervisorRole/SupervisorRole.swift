public import ControlWire
public import Logging
import Loop
import Platform
public import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

public enum SupervisorRole {
    /// Runs `codex-lb serve` until it is told to stop. Returns the exit code.
    /// `left`: what another program has left in this process, which then goes on serving.
    public static func run(
        settings: Settings, environment: [String: String], source: SettingsSource, succeeding left: Succession? = nil, log: Logger
    ) -> Int32 {
        Process.name("codex-lb")
        signal(SIGPIPE, SIG_IGN)
        _ = Process.descriptorLimit  // raised: each generation that drains keeps its sockets and journals
        if let left { return goOn(left, settings, source, log) }
        log.notice(
            "codex-lb \(Version.text)",
            metadata: [
                "data_directory": "\(settings.dataDirectory)", "database": "\(settings.database.url)", "workers": "\(settings.workers)",
            ])
        do throws(SystemError) {
            try Directory.make(settings.dataDirectory)
            try Directory.make(settings.runtimeDirectory)
            // Before anything is bound: of two that start at the same moment one ends here.
            let lock = try InstanceLock.take([settings.dataDirectory, settings.runtimeDirectory])
            do throws(SystemError) { try Spool.reserveRoom(in: settings.dataDirectory) } catch {
                log.notice("no room is kept for records of a stop on a full disk", metadata: ["error": "\(error)"])
            }
            let loop = EventLoop()
            let plan = Plan(settings: settings, environment: environment, sockets: try sockets(settings, environment, log))
            let supervisor = try Supervisor(loop, plan, source, lock, log: log)
            supervisor.start()
            loop.run()
            return supervisor.result
        } catch {
            log.critical("cannot start: \(explained(error, settings))")
            return 1
        }
    }

    private static func goOn(_ left: Succession, _ settings: Settings, _ source: SettingsSource, _ log: Logger) -> Int32 {
        do throws(SystemError) {
            let loop = EventLoop()
            let supervisor = try Supervisor(loop, adopting: left, settings, source, InstanceLock(adopting: left.locks), log: log)
            // They were blocked by the program before us, until somebody knows what to do about them.
            Process.blockSignals(false)
            supervisor.takeOver(from: left.versionBefore)
            loop.run()
            return supervisor.result
        } catch {
            log.critical("cannot go on with what codex-lb \(left.versionBefore) has left: \(error)")
            return 1
        }
    }

    /// Sockets of systemd's socket units if it gave any, else bound here, or by a predecessor whose sockets systemd kept.
    private static func sockets(_ settings: Settings, _ environment: [String: String], _ log: Logger) throws(SystemError)
        -> [ListeningSocket]
    {
        var out: [ListeningSocket] = []
        var kept: [String: Int32] = [:]
        for (name, descriptor) in ServiceManager.listenSockets(environment) {
            guard Sockets.isListening(descriptor) else {
                throw SystemError(ENOTSOCK, "descriptor \(descriptor) of the service manager, \(name), is no listening stream socket")
            }
            if name.hasPrefix(ServiceManager.storedPrefix) {
                if let twin = kept.updateValue(descriptor, forKey: name) { Descriptor.close(twin) }
            } else {
                out.append(ListeningSocket(given: descriptor, name: name))
            }
        }
        let isGiven = !out.isEmpty
        if !isGiven {
            for text in settings.listen {
                let spec = try ListeningSocket.spec(text)
                if out.contains(where: { $0.spec == spec }) { continue }
                if let descriptor = kept.removeValue(forKey: ServiceManager.storedName(spec.address)) {
                    out.append(ListeningSocket(spec, descriptor: descriptor))
                } else {
                    out.append(try bind(spec))
                }
            }
        } else if settings.isListenGiven {
            log.warning(
                "the addresses of --listen, CODEX_LB_LISTEN or PORT are not used: the service manager has given its own sockets",
                metadata: ["not_used": "\(settings.listen.joined(separator: " "))"])
        }
        if out.contains(where: \.isProxied), settings.trustedProxies.isEmpty {
            throw SystemError(EINVAL, "a socket unit with FileDescriptorName=proxy needs CODEX_LB_TRUSTED_PROXIES")
        }
        for (name, descriptor) in kept {
            Descriptor.close(descriptor)
            ServiceManager.notify("FDSTOREREMOVE=1\nFDNAME=\(name)")
        }
        for socket in out {
            log.notice(
                "listening",
                metadata: ["address": "\(socket.name)", "from": "\(isGiven ? "systemd" : "bind")", "proxy_header": "\(socket.isProxied)"])
        }
        return out
    }

    /// Workers that a dead supervisor has left close its listeners within milliseconds of its end: an address in use is tried again for
    /// that long. We hold the instance's lock, so nobody else of ours waits for it.
    private static func bind(_ spec: ListenerSpec) throws(SystemError) -> ListeningSocket {
        let by = Clock.now.adding(milliseconds: Limits.addressWaitMilliseconds)
        while true {
            do throws(SystemError) { return try ListeningSocket.bound(spec) } catch {
                guard error.code == EADDRINUSE, Clock.now < by else { throw error }
            }
            usleep(10_000)
        }
    }

    private static func explained(_ error: SystemError, _ settings: Settings) -> String {
        switch error.code {
        case EWOULDBLOCK: "Another codex-lb, \(error.what), already; see it with: codex-lb ctl status"
        case EADDRINUSE where error.what.contains(settings.controlSocket):
            "\(error). Another codex-lb serves this runtime directory; see it with: codex-lb ctl status"
        case EADDRINUSE: "\(error). Another program has this port; give another address with --listen"
        case EACCES: "\(error). Give this user the right to it, or choose another place (--data-dir, --listen)"
        default: "\(error)"
        }
    }
}
