/// `codex-lb help signals`: what the supervisor does on each signal. docs/signals.md has the same table; a test compares them.
enum HelpSignals {
    static let table: [(signal: String, effect: String)] = [
        ("SIGHUP", "reload: read the settings anew; new workers, then the old ones finish (codex-lb ctl reload)"),
        ("SIGTERM, SIGINT", "stop: open turns finish, up to CODEX_LB_SHUTDOWN_DRAIN_TIMEOUT_SECONDS; the second one: at once"),
        ("SIGQUIT", "stop at once: every process is killed, records go to a file for the next start"),
        ("SIGUSR1", "open the log files anew (CODEX_LB_LOG_FILE, CODEX_LB_ACCESS_LOG), in every process"),
        ("SIGWINCH", "all workers finish and nobody follows; the listeners stay, clients wait (codex-lb ctl drain)"),
        ("SIGTTIN", "one worker more (codex-lb ctl scale N)"),
        ("SIGTTOU", "one worker fewer"),
        ("SIGUSR2", "upgrade: the program that is now where this one was goes on in this process (codex-lb ctl upgrade)"),
    ]

    static var text: String {
        let width = table.map(\.signal.count).max()! + 2
        let lines = table.map { $0.signal + String(repeating: " ", count: width - $0.signal.count) + $0.effect }
        return "Signals to the supervisor, the process of codex-lb serve:\n\n" + lines.joined(separator: "\n")
            + "\n\nAll other processes of a server leave signals to it. Many at once count once: a burst of SIGHUP is at most two reloads."
    }
}
