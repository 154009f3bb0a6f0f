import ControlWire
import Loop
import Platform
import Routing
import Vocabulary

/// What the scoreboard knows of accounts, for the command line. The supervisor itself knows no account: whoever asks has their names.
extension Supervisor {
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
