import ControlWire
import Fleet
import Loop
import Platform
import Routing
import Settings
import Vocabulary

/// What operators are told: by `ctl status`, by the service manager's line, by `accounts list`.
extension Supervisor {
    /// Damage and old schemas stay; that the database is away comes and goes, and its word is that of `/health/ready`.
    func problem(_ now: Instant) -> String {
        if !databaseProblem.isEmpty { return databaseProblem }
        if scoreboard.isStoreAway(now: now, isPolled: settings.database.sqlitePath == nil) {
            return "unreachable: records wait in the journals; the log says why"
        }
        guard case let held = scoreboard.value(.logHeldBytes), held > 0 else { return "" }
        return "log held by a reader: \(held >> 20) MiB and growing; the log says how to find it"
    }

    func status() -> StatusReply {
        var reply = StatusReply()
        let now = loop.now
        reply.supervisorPid = Int64(Process.id)
        reply.version = Version.text
        reply.generation = fleet.generation
        reply.workers = UInt32(fleet.workers)
        reply.reloadProblem = reloadProblem
        reply.state = fleet.phase.rawValue
        reply.ageMs = UInt64(now.milliseconds(since: started))
        reply.listeners = listenerNames
        reply.dataDirectory = settings.dataDirectory
        reply.database = settings.database.url.description
        let revision = scoreboard.value(.schemaRevision)
        if revision > 0 { reply.revision = String(repeating: "0", count: max(0, 4 - String(revision).count)) + String(revision) }
        reply.databaseProblem = problem(now)
        // The writer, then the generation in charge, then those that come and go.
        let isLater: (Child, Child) -> Bool = { [generation = fleet.generation] a, b in
            func rank(_ child: Child) -> UInt64 { child.generation == 0 ? 0 : child.generation == generation ? 1 : 2 + child.generation }
            return (rank(a), a.isWanted ? 0 : 1, a.slot.number) < (rank(b), b.isWanted ? 0 : 1, b.slot.number)
        }
        reply.children = fleet.children.sorted(by: isLater).map { child in
            var status = ChildStatus()
            status.pid = Int64(child.state.pid ?? 0)
            status.role = child.slot.role.rawValue
            status.slot = UInt32(child.slot.number)
            status.generation = child.generation == 0 ? fleet.generation : child.generation
            status.state = child.state.name
            status.ageMs = UInt64(now.milliseconds(since: child.since))
            status.restarts = UInt32(child.restarts)
            if let row = child.row { status.connections = UInt32(clamping: scoreboard.value(.openConnections, worker: row)) }
            return status
        }
        return reply
    }

    /// What the scoreboard knows of accounts. The supervisor itself knows none: whoever asks has their names.
    func liveAccounts() -> LiveAccountsReply {
        var reply = LiveAccountsReply()
        let (now, wall) = (loop.now, Clock.wall)
        for slot in 0..<Limits.accountsMax {
            if let owner = scoreboard.owner(account: slot) { reply.accounts.append(live(slot, owner, now, wall)) }
        }
        return reply
    }

    private func live(_ slot: Int, _ owner: Int64, _ now: Instant, _ wall: WallTime) -> LiveAccount {
        var out = LiveAccount()
        out.id = owner
        out.inFlight = UInt32(clamping: scoreboard.inFlight(account: slot))
        if let cooldown = scoreboard.cooldown(account: slot, owner: owner, now: now) {
            out.cooldownUntilMs = wall.milliseconds + Int64(cooldown.until.milliseconds(since: now))
            out.cooldownKind = cooldown.isQuota ? "quota" : cooldown.isLimit ? "limit" : "errors"
        }
        out.tier = AccountHealth(word: scoreboard.health(account: slot)).tier(now: now).rawValue
        out.plan = scoreboard.plan(account: slot).name
        for window in Scoreboard.Window.allCases {
            guard let quota = scoreboard.quota(account: slot, window, now: wall) else { continue }
            var told = LiveWindow()
            (told.name, told.usedPermille) = ("\(window)", UInt32(clamping: quota.usedPermille))
            told.resetsAtMs = quota.resetsAt.milliseconds
            out.windows.append(told)
        }
        out.credits = scoreboard.credits(account: slot)?.word ?? 0
        out.quotaAtMs = scoreboard.quotaAt(account: slot).milliseconds
        out.healthAtMs = scoreboard.healthAt(account: slot).milliseconds
        if let trouble = scoreboard.trouble(account: slot) {
            (out.trouble, out.troubleAtMs) = (trouble.description, trouble.at.milliseconds)
        }
        return out
    }
}
