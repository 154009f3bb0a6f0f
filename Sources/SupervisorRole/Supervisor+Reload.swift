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

/// What a reload changes, and what becomes of whoever waits for it.
extension Supervisor {
    /// The candidate is in charge: its settings are ours, and where nobody listens any more the sockets close.
    func reloaded(_ generation: UInt64) {
        guard let next = plans[generation] else { return }
        let before = plan
        if fleet.lastGood == planGeneration { goodPlan = before } else if fleet.lastGood == nil { goodPlan = nil }
        (plan, planGeneration) = (next, generation)
        nextPlan = nil
        for socket in before.sockets where !plan.sockets.contains(socket) { socket.close() }
        log = source.logger(settings)
        tell { $0.level = settings.logLevel }
        if let interval = settings.database.backupIntervalMilliseconds {
            let due = loop.now.adding(milliseconds: min(interval, Self.backupLookMilliseconds))
            if backup == nil { backupAt = min(backupAt, due) }
        } else {
            backupAt = .never
        }
        if settings.database.retentionDays != before.settings.database.retentionDays { schedulePrune() }
        (reloadProblem, returnReason) = (returnReason, "")
        log.notice(
            "reloaded",
            metadata: [
                "generation": "\(generation)", "workers": "\(settings.workers)", "listen": "\(listenerNames.joined(separator: " "))",
            ])
        if fleet.upgrade == .none { reloadEnded(error: "") }  // else when the writer is of this program too
        statusTold = "serving on \(listenerNames.joined(separator: ", "))"
        ServiceManager.notify("READY=1\nSTATUS=\(statusTold)")
    }

    func reloadFailed(_ reason: String) {
        for socket in nextPlan?.sockets ?? [] where !plan.sockets.contains(socket) { socket.close() }
        nextPlan = nil
        for reading in readings where reading.exit == nil { Process.signal(reading.pid, SIGKILL) }  // they only read
        var reason = reason
        if isSuccessor {
            // The supervisor is of another program than those that serve; a reload tries again.
            reason = "codex-lb \(Version.text) supervises, but the workers of the program before it go on: \(reason)"
            isSuccessor = false
        }
        if !returnReason.isEmpty { reason = "\(returnReason); they could not be put back: \(reason)" }
        returnReason = ""
        if fleet.phase == .serving { reloadProblem = reason }
        log.error("the reload failed, nothing has changed", metadata: ["reason": "\(reason)", "generation": "\(fleet.generation)"])
        reloadEnded(error: reason)
        guard fleet.phase == .serving else { return }
        statusTold = ""
        ServiceManager.notify("READY=1\nSTATUS=the last reload failed: \(reason.printable)")
    }

    /// The settings are good; what they want of us is done before anything else changes.
    func settingsRead(_ environment: [String: String]) {
        guard fleet.reload == .checking else { return }
        do throws(SettingsError) {
            let new = try source.settings(environment)
            if let obstacle = plan.obstacle(to: new) { return perform(fleet.settingsRefused(reason: obstacle, now: loop.now)) }
            adopt(new, environment)
        } catch {
            perform(fleet.settingsRefused(reason: "\(error)", now: loop.now))
        }
    }

    func adopt(_ new: Settings, _ environment: [String: String]) {
        let sockets: [ListeningSocket]
        do throws(SystemError) { sockets = try open(new.listen) } catch {
            return perform(fleet.settingsRefused(reason: "\(error)", now: loop.now))
        }
        nextPlan = Plan(settings: new, environment: environment, sockets: sockets)
        perform(fleet.settingsChecked(workers: new.workers, times: Fleet.Times(new), now: loop.now))
    }

    /// All workers of a reload fail: what it changed is undone.
    func restore(_ good: UInt64, _ failed: UInt64) {
        reloads += 1
        returnReason =
            "all workers of generation \(failed) failed right after its reload: the settings of generation \(good) are in charge again"
        log.critical("\(returnReason)", metadata: ["failed": "\(failed)", "good": "\(good)"])
        guard let goodPlan else { return perform(fleet.settingsRefused(reason: "they are not known any more", now: loop.now)) }
        adopt(goodPlan.settings, goodPlan.environment)
    }

    /// Those that are open stay; those of systemd are all there is.
    func open(_ addresses: [String]) throws(SystemError) -> [ListeningSocket] {
        guard !plan.sockets.contains(where: { $0.spec == nil }) else { return plan.sockets }
        var sockets: [ListeningSocket] = []
        do throws(SystemError) {
            for text in addresses {
                let spec = try ListeningSocket.spec(text)
                if let socket = plan.sockets.lazy.compactMap({ $0.serves(spec) }).first {
                    if !sockets.contains(socket) { sockets.append(socket) }
                } else {
                    sockets.append(try ListeningSocket.bound(spec))
                }
            }
        } catch {
            for socket in sockets where !plan.sockets.contains(socket) { socket.close() }
            throw error
        }
        return sockets
    }

    /// Says to every child how to log.
    func tell(_ fill: (inout LogOrder) -> Void) {
        var order = LogOrder()
        fill(&order)
        for link in links.values { link.send { $0.logOrder = order } }
    }

    /// After a change of the number of workers: what is started from now on knows it.
    func countWorkers() {
        guard fleet.workers > 0 else { return }
        plan.settings.workers = fleet.workers
        plan.environment["CODEX_LB_WORKERS"] = String(fleet.workers)
        plans[fleet.generation] = plan
    }
}
