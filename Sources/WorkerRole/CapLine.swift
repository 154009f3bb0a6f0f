import Loop
import Routing
import Vocabulary

/// Turns of this worker whose accounts are at their caps: they wait for one to have room, each client in its turn.
final class CapLine {
    private unowned let worker: Worker
    private var line = WaitingLine<Turn>()
    private var timer: LoopTimer!
    private var isLooking = false

    init(_ worker: Worker) {
        self.worker = worker
        timer = LoopTimer(worker.loop) { [unowned self] in look() }
    }

    var isEmpty: Bool { line.isEmpty }

    /// False when too many wait already.
    func join(_ turn: Turn) -> Bool {
        let by = worker.loop.now.adding(milliseconds: Limits.capWaitMilliseconds)
        guard line.join(turn, key: turn.request.key?.id ?? 0, by: by) else { return false }
        start()
        return true
    }

    /// A turn of this worker has let an account go.
    func accountReleased() { if !line.isEmpty { timer.start(milliseconds: 0, repeating: Limits.capLookMilliseconds) } }

    /// Other workers' turns let accounts go unheard.
    private func start() { timer.start(milliseconds: Limits.capLookMilliseconds, repeating: Limits.capLookMilliseconds) }

    /// Gives those that wait what there is, before anybody who comes later.
    func look() {
        guard !isLooking, !line.isEmpty else { return }
        isLooking = true
        defer { isLooking = false }
        let late = line.expired(worker.loop.now)
        var served: [(Turn, AccountChoice)] = []
        // What somebody was told there is no room for: whoever is behind it and wants the same need not ask.
        var full: Set<Turn.Want> = []
        line.serve { turn in
            guard !turn.isFinished else { return .served }
            if !turn.hasConversation, full.contains(turn.want) { return .waits }
            let choice = turn.choose()
            if case .full(let isOwn) = choice {
                if !isOwn { full.insert(turn.want) }
                return .waits
            }
            served.append((turn, choice))
            return .served
        }
        if line.isEmpty { timer.stop() }
        for (turn, choice) in served { turn.chosen(choice) }
        for turn in late where !turn.isFinished { turn.gaveUpWaiting() }
    }
}
