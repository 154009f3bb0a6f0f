public import Vocabulary

/// How many workers there are, and which of them give way.
extension Fleet {
    /// There shall be so many workers. A reason why not, or what is to be done: further ones are started, or those that are too many
    /// leave as soon as another one is ready.
    public mutating func scale(to count: Int, now: Instant) -> Result<[Action], FleetRefusal> {
        if let why = busy() { return .failure(why) }
        guard (1...Limits.workersMax).contains(count) else {
            return .failure(FleetRefusal("\(count) workers; give 1 to \(Limits.workersMax)"))
        }
        workers = count
        var numbers = Set(children.filter { isServing($0) && $0.isWanted }.map(\.slot.number))
        while numbers.count < count {
            let number = (0...).first { !numbers.contains($0) }!
            numbers.insert(number)
            add(ChildSlot(.worker, number), generation, startAt: now, now)
        }
        for number in numbers.sorted().suffix(numbers.count - count) { unwant(number) }
        drop(generation)
        return .success(ticked(now))
    }

    /// One worker, by its number, gives way to a fresh one.
    public mutating func replace(worker number: Int, now: Instant) -> Result<[Action], FleetRefusal> {
        if let why = busy() { return .failure(why) }
        guard children.contains(where: { isServing($0) && $0.isWanted && $0.slot.number == number }) else {
            return .failure(FleetRefusal("there is no worker.\(number); see codex-lb ctl status"))
        }
        unwant(number)
        drop(generation)
        add(ChildSlot(.worker, number), generation, startAt: now, now)
        return .success(ticked(now))
    }

    /// All workers finish and nobody follows them; clients wait in the listeners' backlog until a reload or more workers.
    public mutating func drainAll(now: Instant) -> Result<[Action], FleetRefusal> {
        if let why = busy() { return .failure(why) }
        workers = 0
        var actions: [Action] = []
        for i in children.indices where children[i].slot.role == .worker {
            children[i].isWanted = false
            actions += drain(i, times.reloadDrain, handsOver: false, now)
        }
        drop(generation)
        return .success(actions)
    }

    func busy() -> FleetRefusal? {
        switch phase {
        case .starting: return FleetRefusal("the server is still starting; try again in a moment")
        case .stoppingWorkers, .stoppingWriter, .stopped: return FleetRefusal("the server is stopping")
        case .serving:
            if upgrade != .none { return FleetRefusal("an upgrade is under way; try again when it is over") }
            return reload == .none ? nil : FleetRefusal("a reload is under way; try again when it is over")
        }
    }

    mutating func unwant(_ number: Int) {
        for i in children.indices where isServing(children[i]) && children[i].slot.number == number { children[i].isWanted = false }
    }

    /// Workers that nobody wants go when they can be spared: one of those that are wanted is there, and takes their clients; or nobody is
    /// to serve at all.
    mutating func shed(_ now: Instant) -> [Action] {
        let hasHeir = children.contains { isServing($0) && $0.isWanted && $0.isReady }
        guard phase == .serving, hasHeir || workers == 0 else { return [] }
        var actions: [Action] = []
        for i in children.indices where children[i].slot.role == .worker && !children[i].isWanted {
            switch children[i].state {
            case .starting, .ready: actions += drain(i, times.reloadDrain, handsOver: hasHeir, now)
            case .waiting, .draining: break
            }
        }
        return actions
    }
}
