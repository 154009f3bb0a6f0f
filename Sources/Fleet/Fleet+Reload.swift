public import Vocabulary

/// One generation follows another, and one program another.
extension Fleet {
    /// The operator wants the settings to be read anew. During a reload another one follows it, however many ask. `isUrgent`: somebody
    /// waits for it; else it keeps `Limits.reloadSpacingMilliseconds` from the one before.
    public mutating func reload(isUrgent: Bool = false, now: Instant) -> [Action] {
        switch phase {
        case .stoppingWorkers, .stoppingWriter, .stopped: return [.reloadFailed(reason: "the server is stopping")]
        case .starting, .serving: break
        }
        let earliest = reloadBegunAt?.adding(milliseconds: Limits.reloadSpacingMilliseconds) ?? now
        reloadDue = min(reloadDue, isUrgent ? now : max(now, earliest))
        return phase == .serving && reload == .none && mayReload && reloadDue <= now ? begin(now) : []
    }

    /// Before another program takes over nothing begins that it would have to end.
    var mayReload: Bool {
        switch upgrade {
        case .none, .replacing: true
        case .checking, .settling: false
        }
    }

    mutating func begin(_ now: Instant) -> [Action] {
        (reload, reloadDue, reloadBegunAt) = (.checking, .never, now)
        return [.checkSettings]
    }

    /// The settings are good, and this is what they want.
    public mutating func settingsChecked(workers: Int, times: Times, now: Instant) -> [Action] {
        guard reload == .checking else { return [] }
        nextTimes = times
        let draining = drainingGenerations
        guard draining.count >= Limits.drainingGenerationsMax else { return startCandidate(workers, now) + ticked(now) }
        reload = .waitingForRoom(workers: workers)
        var actions: [Action] = [.tightened(generation: draining[0], milliseconds: self.times.drain)]
        for i in children.indices where children[i].generation == draining[0] {
            actions += drain(i, self.times.drain, handsOver: true, now)
        }
        return actions
    }

    /// They can't be used.
    public mutating func settingsRefused(reason: String, now: Instant) -> [Action] {
        guard reload == .checking else { return [] }
        return endReload(.reloadFailed(reason: reason), now)
    }

    mutating func startCandidate(_ workers: Int, _ now: Instant) -> [Action] {
        reload = .starting
        lastGeneration += 1
        for number in 0..<workers { add(ChildSlot(.worker, number), lastGeneration, startAt: now, now) }
        return []
    }

    /// Everybody of the candidate is ready: it is in charge, and the one before drains.
    mutating func promote(_ now: Instant) -> [Action] {
        let before = generation
        if upgrade == .replacing {
            lastGood = nil  // its settings were the other program's
        } else if trialBy <= now, !isReturning {
            lastGood = before
        }
        trialBy = lastGood == nil || isReturning ? now : now.adding(milliseconds: Limits.trialMilliseconds)
        generation = lastGeneration
        workers = children.count { isServing($0) }
        if let nextTimes { times = nextTimes }
        var actions = endReload(.reloaded(generation: generation), now)
        actions += leave(before, now) + retire(before, now)
        if upgrade == .replacing { actions += replaceWriter(now) }
        return actions + ticked(now)
    }

    /// The candidate can't be what it should: it goes, and everything is as it was.
    mutating func discard(_ reason: String, _ now: Instant) -> [Action] {
        guard let number = candidate else { return [] }
        let actions = endReload(.reloadFailed(reason: reason), now)
        return actions + leave(number, now) + retire(number, now)
    }

    mutating func endReload(_ end: Action, _ now: Instant) -> [Action] {
        (reload, nextTimes, isReturning) = (.none, nil, false)
        if case .reloadFailed = end, upgrade == .replacing { upgrade = .none }
        return [end]
    }

    /// A generation's workers finish, as soon as they can be spared. Those that have not begun yet never do.
    mutating func leave(_ number: UInt64, _ now: Instant) -> [Action] {
        for i in children.indices where children[i].generation == number && children[i].slot.role == .worker {
            children[i].isWanted = false
        }
        drop(number)
        return shed(now)
    }

    /// Children of a generation that nobody wants, without a process and without records.
    mutating func drop(_ number: UInt64) {
        children.removeAll { child in
            guard child.generation == number, !child.isWanted, child.state.pid == nil, !child.hasRecords else { return false }
            if let row = child.row { rows.giveBack(row) }
            return true
        }
    }

    // MARK: Upgrade

    /// Another program is to go on in this process.
    public mutating func upgrade(now: Instant) -> Result<[Action], FleetRefusal> {
        if let why = busy() { return .failure(why) }
        upgrade = .checking
        return .success([.checkProgram])
    }

    /// It can go on from here.
    public mutating func programChecked(now: Instant) -> [Action] {
        guard upgrade == .checking else { return [] }
        upgrade = .settling(by: now.adding(milliseconds: Limits.upgradeRestMilliseconds))
        return ticked(now)
    }

    /// It can't, or can't be started.
    public mutating func programRefused(reason: String) -> [Action] {
        switch upgrade {
        case .checking, .settling: endUpgrade(reason)
        case .none, .replacing: []
        }
    }

    mutating func endUpgrade(_ reason: String) -> [Action] {
        upgrade = .none
        return [.upgradeFailed(reason: reason)]
    }

    /// This is the other program, and it has what the first one left: its workers come first, then its writer.
    public mutating func adopted(now: Instant) -> [Action] { reload(isUrgent: true, now: now) }

    mutating func replaceWriter(_ now: Instant) -> [Action] {
        guard let i = children.firstIndex(where: { $0.slot.role == .writer }) else {
            upgrade = .none
            return [.upgraded]
        }
        return drain(i, times.drain, handsOver: true, now)
    }
}
