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

/// Another program takes this process over: it shows that it can (`checkProgram`), then it is put in our place with all that is open
/// (`replaceProgram`). docs/decisions/0020 says why so.
extension Supervisor {
    func upgrade(by asker: String) {
        switch fleet.upgrade(now: loop.now) {
        case .success(let actions): perform(actions)
        case .failure(let why): log.warning("\(asker) is not obeyed", metadata: ["reason": "\(why)"])
        }
    }

    /// The file that our name leads to reads the settings, and rehearses what it will be given.
    func checkProgram() {
        log.notice("upgrading: the other program is asked whether it can take over", metadata: ["program": "\(program ?? "none")"])
        // Not in the middle of the frame that asks for it: the state of every connection is read.
        loop.later { [self] in rehearse() }
    }

    private func rehearse() {
        guard let program else { return upgradeRefused("there is no program at \(source.called)") }
        checkedFile = Descriptor.version(ofFile: program)
        do throws(SystemError) {
            let rehearsal = try MemoryFile.make("codex-lb:rehearsal", FrameCodec.bytes(of: succession([:])))
            defer { Descriptor.close(rehearsal) }
            var environment = source.environment
            environment[Succession.variable] = "3"
            try read(
                source.arguments, environment: environment, what: "asking \(program)", milliseconds: Limits.upgradeCheckMilliseconds,
                program: program, passing: rehearsal
            ) { [unowned self] result in
                switch result {
                case .success(let environment): programReported(environment)
                case .failure(let failure): upgradeRefused(failure.reason)
                }
            }
        } catch {
            upgradeRefused("\(error)")
        }
    }

    private var program: String? { Process.called(source.called, environment: source.environment) }

    private func upgradeRefused(_ reason: String) { perform(fleet.programRefused(reason: reason)) }

    private func programReported(_ environment: [String: String]) {
        var environment = environment
        guard let text = environment.removeValue(forKey: Build.variable), let build = Build(text) else {
            return upgradeRefused("\(program ?? source.called) ended well, but said nothing that a codex-lb says")
        }
        if let obstacle = source.build.obstacle(to: build) { return upgradeRefused(obstacle) }
        // What only the other one understands, only the other one can judge.
        if let settings = try? source.settings(environment), let obstacle = obstacle(to: settings) {  // see above
            return upgradeRefused(obstacle)
        }
        log.notice("upgrading: the other program can take over", metadata: ["version": "\(build.version)"])
        nextEnvironment = environment
        perform(fleet.programChecked(now: loop.now))
    }

    /// Soon, when nothing is half done: signals that have come already are looked at before, those that come from now on wait for the other
    /// program.
    func replaceProgram() {
        guard !isReplacing, isAtRest else { return }
        isReplacing = true
        Process.blockSignals(true)
        // one iteration of the loop sees what the handlers have left, the next one is behind it.
        loop.later { [self] in loop.later { [self] in replaceNow() } }
    }

    private func replaceNow() {
        isReplacing = false
        defer { Process.blockSignals(false) }
        guard case .settling = fleet.upgrade, fleet.reload == .none, isAtRest else { return }
        guard let program, Descriptor.version(ofFile: program) == checkedFile else {
            return upgradeRefused("\(source.called) has changed since it was asked")
        }
        // What the service manager does not take now is lost: the next program does not know of it.
        ServiceManager.flush(milliseconds: Limits.barrierMilliseconds)
        if let prune { Process.signal(prune, SIGTERM) }  // the next program starts one of its own
        let left = succession(nextEnvironment)
        let error: SystemError
        do throws(SystemError) {
            let memory = try MemoryFile.make("codex-lb:succession", FrameCodec.bytes(of: left))
            defer { Descriptor.close(memory) }
            var environment = source.environment
            environment[Succession.variable] = String(memory)
            log.notice("upgrading: the other program takes over", metadata: ["program": "\(program)"])
            LogSink.standard.flush(milliseconds: Limits.logFlushMilliseconds)
            error = Process.replace(with: program, source.commandLine, environment: environment, keeping: left.descriptors + [memory])
        } catch let failure {
            error = failure
        }
        upgradeRefused("\(error)")
    }

    func upgradeFailed(_ reason: String) {
        reloadProblem = "upgrade: \(reason)"
        log.error("the upgrade failed, nothing has changed", metadata: ["reason": "\(reason)", "version": "\(Version.text)"])
        upgradeEnded(error: reason)
    }

    /// All processes are of this program.
    func upgraded() {
        isSuccessor = false
        log.notice("upgraded", metadata: ["version": "\(Version.text)", "generation": "\(fleet.generation)"])
        reloadEnded(error: "")
    }
}
