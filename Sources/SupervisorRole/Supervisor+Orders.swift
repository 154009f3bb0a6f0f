import ControlWire
import Diagnostics
import Fleet
import Logging
import Loop
import Platform
import Settings
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Somebody who wants to hear how a reload ends.
struct ReloadWaiter {
    /// The first reload that answers the question: one that had begun before may not have seen what changed.
    var number: Int
    var since: Instant
    /// It waits for an upgrade: for the first reload of the other program.
    var isUpgrade = false
    var notes: [String] = []
    var answer: (FleetReply) -> Void
}

extension Fleet.Times {
    init(_ settings: Settings) { self.init(drain: settings.times.drain, reloadDrain: settings.times.reloadDrain) }
}

/// What an operator asks for: by a signal (docs/signals.md) or over the control socket.
extension Supervisor {
    func obeySignals() {
        let orders: [(Int32, (Supervisor) -> Void)] = [
            (SIGHUP, { $0.perform($0.fleet.reload(now: $0.loop.now)) }),
            (SIGQUIT, { $0.quit() }),
            (SIGUSR1, { $0.reopenLogs() }),
            (SIGWINCH, { $0.obey("SIGWINCH", $0.fleet.drainAll(now: $0.loop.now)) }),
            (SIGTTIN, { $0.scale("SIGTTIN", by: 1) }),
            (SIGTTOU, { $0.scale("SIGTTOU", by: -1) }),
            (SIGUSR2, { $0.upgrade(by: "SIGUSR2") }),
        ]
        for (number, order) in orders { _ = LoopSignal(loop, number) { [unowned self] in order(self) } }
        _ = LoopSignal(loop, SIGCHLD) { [unowned self] in reap() }
        for number in [SIGTERM, SIGINT] { _ = LoopSignal(loop, number) { [unowned self] in stopRequested(number) } }
    }

    private func quit() {
        log.warning("SIGQUIT: ending at once")
        stopAtOnce()
    }

    private func reopenLogs() {
        if let problem = LogSink.standard.reopen() { log.error("\(problem); lines go on to the file that was open") }
        tell { $0.reopen = true }
        log.notice("log files are opened anew")
    }

    private func scale(_ signal: String, by change: Int) {
        obey(signal, fleet.scale(to: fleet.workers + change, now: loop.now))
    }

    private func obey(_ signal: String, _ result: Result<[Fleet.Action], FleetRefusal>) {
        switch result {
        case .success(let actions):
            countWorkers()
            log.notice("the number of workers changes", metadata: ["by": "\(signal)", "workers": "\(fleet.workers)"])
            perform(actions)
        case .failure(let why): log.warning("\(signal) is not obeyed", metadata: ["reason": "\(why)"])
        }
    }

    // MARK: Over the control socket

    /// `answer` is called once, for a reload when it is over.
    func obey(_ order: FleetOrder, _ answer: @escaping (FleetReply) -> Void) {
        let now = loop.now
        switch order.body {
        case .reload:
            waiting.append(ReloadWaiter(number: reloads + 1, since: now, answer: answer))
            perform(fleet.reload(isUrgent: true, now: now))
        case .upgrade:
            switch fleet.upgrade(now: now) {
            case .success(let actions):
                waiting.append(ReloadWaiter(number: .max, since: now, isUpgrade: true, answer: answer))
                perform(actions)
            case .failure(let why): answer(reply(error: why.description))
            }
        case .scale(let scale):
            let count = scale.hasWorkers ? Int(scale.workers) : fleet.workers + Int(scale.change)
            obey(fleet.scale(to: count, now: now), answer)
        case .drain(let drain):
            obey(drain.hasWorker ? fleet.replace(worker: Int(drain.worker), now: now) : fleet.drainAll(now: now), answer)
        case .stop:
            answer(reply())
            stopRequested(SIGTERM)
        case .log(let order):
            guard Settings.logLevels.contains(order.level) else {
                return answer(reply(error: "\"\(order.level)\" is no level; give \(Settings.logLevelNames)"))
            }
            Logs.setLevel(order.level)
            tell { $0 = order }
            log.notice("the log level changes, until the next reload", metadata: ["level": "\(order.level)"])
            answer(reply())
        case nil: answer(reply(error: "the server does not know this order: its build is older than that of the command"))
        }
    }

    private func obey(_ result: Result<[Fleet.Action], FleetRefusal>, _ answer: (FleetReply) -> Void) {
        switch result {
        case .success(let actions):
            countWorkers()
            perform(actions)
            answer(reply())
        case .failure(let why): answer(reply(error: why.description))
        }
    }

    private func reply(error: String = "") -> FleetReply {
        var reply = FleetReply()
        reply.error = error
        reply.generation = fleet.generation
        reply.workers = UInt32(fleet.workers)
        reply.version = Version.text
        return reply
    }

    // MARK: Reload

    func readSettings(_ source: SettingsSource) {
        reloads += 1
        log.notice("reloading: the settings are read", metadata: ["generation": "\(fleet.generation)"])
        ServiceManager.notify("RELOADING=1\nMONOTONIC_USEC=\(loop.now.nanoseconds / 1000)\nSTATUS=reloading")
        do throws(SystemError) {
            try read(
                source.arguments, environment: source.environment, what: "reading the settings",
                milliseconds: Limits.reloadCheckMilliseconds
            ) { [unowned self] result in
                switch result {
                case .success(let environment): settingsRead(environment)
                case .failure(let failure): perform(fleet.settingsRefused(reason: failure.reason, now: loop.now))
                }
            }
        } catch {
            perform(fleet.settingsRefused(reason: "\(error)", now: loop.now))
        }
    }

    /// Starts a child that reports settings.
    func read(
        _ arguments: [String], environment: [String: String], what: String, milliseconds: Int, program: String? = nil,
        passing: Int32? = nil, _ done: @escaping (Result<[String: String], SettingsReading.Failure>) -> Void
    ) throws(SystemError) {
        let (ours, theirs) = try Descriptor.socketPair()
        defer { Descriptor.close(theirs) }
        let pid: Int32
        do throws(SystemError) {
            pid = try Process.spawnSelf(
                arguments, heritage: nil, environment: environment, output: theirs, program: program, passing: passing)
        } catch {
            Descriptor.close(ours)
            throw error
        }
        do throws(LoopError) {
            readings.append(try SettingsReading(self, pid: pid, output: ours, what: what, milliseconds: milliseconds, done))
        } catch {
            Process.signal(pid, SIGKILL)
            strays.append(pid)
            throw SystemError(-error.code, what)
        }
    }

    func tightened(_ generation: UInt64, _ milliseconds: Int) {
        let note =
            "\(Limits.drainingGenerationsMax) generations drain already: generation \(generation) has to end within \(milliseconds / 1000) s, then the reload goes on"
        log.warning("\(note)")
        for i in waiting.indices where waiting[i].number <= reloads { waiting[i].notes.append(note) }
    }

    func reloadEnded(error: String) {
        // A server that stops begins no further one.
        let isLast = fleet.phase != .serving && fleet.phase != .starting
        answer(error: error) { isLast || $0.number <= reloads }
    }

    /// The other program can't take over.
    func upgradeEnded(error: String) { answer(error: error, \.isUpgrade) }

    private func answer(error: String, _ concerns: (ReloadWaiter) -> Bool) {
        let done = waiting.filter(concerns)
        waiting.removeAll(where: concerns)
        for waiter in done {
            var reply = reply(error: error)
            reply.milliseconds = UInt64(loop.now.milliseconds(since: waiter.since))
            reply.notes = waiter.notes
            waiter.answer(reply)
        }
    }
}
