import Admission
import ControlWire
public import Diagnostics
import Exchange
import HTTPWire
public import Logging
import Loop
import Metering
public import Platform
import PostgresStore
import Routing
import Sealing
public import Settings
import Store
import Upstream
import Vocabulary

/// One proxy worker: its loop, its connections and what they share. Everything runs on the loop's thread.
final class Worker {
    let loop: EventLoop
    let settings: Settings
    let heritage: Heritage
    let scoreboard: Scoreboard
    let usageJournal: Journal
    let log: Logger
    let accessLog: AccessLog?
    let pool: UpstreamPool
    let memory: MemoryBudget
    let originPolicy: OriginPolicy
    /// Where large bodies are unpacked and read.
    let bodyWork: WorkQueue
    private var date: (seconds: Int64, field: [UInt8]) = (-1, [])
    /// Its row of the scoreboard.
    var slot: Int { heritage.row }
    /// Its number in its generation; number 0 does what one of them has to do.
    var position: Int { heritage.slot }
    /// Where an answer's pieces are put together for one write; lives only during a call.
    var scratch: [UInt8] = []
    /// For the bytes of answers, which come and go with each iteration of the loop.
    var spares = SpareBuffers()
    /// Where a record is put together; the same.
    private var recordBytes: [UInt8] = []

    private(set) var snapshot: Snapshot?
    let accounts: AccountTable
    let gate: ClientGate
    private(set) var connections: [ObjectIdentifier: ClientConnection] = [:]
    private var turns: [ObjectIdentifier: Turn] = [:]
    /// Those of them whose client has left and whose usage is still awaited.
    private var clientless: [ObjectIdentifier: Turn] = [:]
    /// By the descriptor of `sockets` that each listens on.
    private var listeners: [Int32: Listener] = [:]
    /// Listening sockets of the heritage; none from the drain on.
    private var sockets: [Int32]
    private var isDeaf = false
    /// Takes nothing new, and ends when the last turn has.
    private(set) var isLeaving = false
    /// Leaves, and nobody takes its clients: they are told to go.
    private(set) var isDraining = false
    /// Where clients of workers that leave come in; set while this one serves.
    var handovers: DescriptorPoll?
    /// A connection may have become idle since the last look.
    var hasIdled = false
    /// Nobody keeps our journal after us.
    private var isOrphan = false
    private var drainBy = Instant.never
    /// Until when a draining worker waits for the first request of a connection.
    private var drainIdleBy = Instant.never
    private var exitBy = Instant.never
    /// When a store that acknowledges nothing is not waited for any longer; set while nothing else keeps a draining worker.
    private var storeBy = Instant.never
    private var random = IDGenerator()
    var prices = PriceBook()
    lazy var catalogue = ModelCatalogue(self)
    lazy var capLine = CapLine(self)
    lazy var logins = LoginRenewals(self)
    lazy var usage = UsagePolls(self)
    lazy var facts = FactRecords(self)
    private var store: (any StoreLink)!
    private var supervisor: SupervisorLink!
    private var sweepTimer: LoopTimer!
    private var iterationEnd: IterationEnd!
    private var isReady = false
    /// Client connections, and as many to upstreams.
    private let connectionsMax: Int
    private var isAcceptPaused = false
    private var balance = AcceptBalance()
    private lazy var others = OtherWorkers(scoreboard, own: slot)
    private var droppedTold = 0
    private var accessDroppedTold = 0

    /// Deadlines are looked at this often: their precision.
    static let sweepMilliseconds = 50
    /// A stop waits this long for the next acknowledgement; what is left then is kept in a file for the next start.
    static let storeMilliseconds = 5_000

    init(_ loop: EventLoop, _ settings: Settings, _ heritage: Heritage, _ log: Logger, _ accessLog: AccessLog?) throws {
        (self.loop, self.settings, self.heritage, self.log, self.accessLog) = (loop, settings, heritage, log, accessLog)
        sockets = heritage.listeners
        scoreboard = try Scoreboard(inherited: try SharedMemory(descriptor: heritage.scoreboard, count: Scoreboard.memoryBytes))
        usageJournal = try Journal(inherited: try SharedMemory(descriptor: heritage.journal, count: Journal.memoryBytes()))
        // A tenth of the descriptors stays free for the store, name look-ups and the unexpected.
        connectionsMax = max(64, Process.descriptorLimit * 45 / 100)
        pool = UpstreamPool(
            loop, proxy: settings.httpsProxy, connectMilliseconds: settings.times.connect,
            connectionsMax: connectionsMax)
        scoreboard.close(row: heritage.row)
        memory = MemoryBudget(
            scoreboard, slot: heritage.row, bytesMax: settings.memoryBytesMax ?? Process.memoryBytes / Limits.memoryPart)
        originPolicy = OriginPolicy(allowed: settings.allowedOrigins)
        bodyWork = WorkQueue(loop, threadsMax: Limits.bodyThreadsMax)
        accounts = AccountTable(
            scoreboard, row: heritage.row, passingOrganization: settings.accountsPassingOrganization, isSticky: settings.isSticky, log)
        gate = ClientGate(
            settings, isExposed: heritage.listeners.contains { !Sockets.isLocal($0) }, tells: heritage.slot == 0, log)
        pool.counted = { [scoreboard] reused in scoreboard.add(reused ? .upstreamReused : .upstreamConnects, worker: heritage.row) }
        supervisor = SupervisorLink(self)
        switch settings.database.url {
        case .sqlite(let path): store = WriterLink(self, database: path)
        case .postgresql(let url): store = DatabaseLink(self, url)
        }
        accounts.takeOut = { [unowned self] in store.takeOut($0) }
        accounts.pinned = { [unowned self] key, account, seconds in store.learned(SharedPin(key: key, account: account, seconds: seconds)) }
        accounts.modelRefused = { [unowned self] in catalogue.refresh() }
        sweepTimer = LoopTimer(loop) { [unowned self] in sweep() }
        sweepTimer.start(milliseconds: Self.sweepMilliseconds, repeating: Self.sweepMilliseconds)
        iterationEnd = IterationEnd(loop) { [unowned self] in
            store.iterationEnded()
            if hasIdled { handOver() }
        }
    }

    // MARK: Start

    /// The last one that is told counts, whatever its version: a standby that takes over may lack the last changes.
    func snapshotArrived(_ new: Snapshot) {
        let previous = snapshot
        snapshot = new
        accounts.replace(
            with: new.accounts, previous: previous?.accounts ?? [], facts: new.facts, pepper: new.pepper, StoredSettings(new.settings))
        pool.expect(accounts.all.lazy.map(\.origin))
        gate.replace(with: new.clientKeys, pepper: new.pepper)
        if previous?.accounts != new.accounts {
            catalogue.accountsChanged(accounts.all)
            logins.accountsChanged(accounts.all)
            usage.accountsChanged(accounts.all)
        }
        scoreboard.set(.snapshotVersion, worker: slot, Int(new.version))
        if !isReady { becomeReady() }
    }

    /// `Date: …` with its line end (RFC 9110 §6.6.1), made once a second.
    var dateField: [UInt8] {
        let now = Clock.wall
        if now.seconds != date.seconds {
            var field: [UInt8] = []
            HeadWriter.field("Date", now.httpDate, into: &field)
            date = (now.seconds, field)
        }
        return date.field
    }

    /// This worker's share of the instance's connections.
    var poolLimits: PoolMachine.Limits {
        let share = settings.database.poolShare(worker: position, workers: settings.workers)
        return PoolMachine.Limits(
            size: share.size, overflow: share.overflow, waitMilliseconds: settings.database.poolTimeoutMilliseconds)
    }

    func claim(_ job: AccountJob, _ account: Account, _ done: @escaping (Bool) -> Void) { store.claim(job, account, done) }
    func learn(_ facts: [AccountFact], _ done: @escaping (Bool) -> Void) { store.learn(facts, done) }
    func saveLogin(_ account: Account, _ new: Account.Credentials) { store.saveLogin(account, new) }

    func storeSeen() { scoreboard.set(.storeSeenMilliseconds, worker: slot, Int(loop.now.nanoseconds / 1_000_000)) }

    /// Answers from the store, over a pool that is bounded in connections and time.
    func totals(ofKey key: Int64?, _ done: @escaping (Result<UsageTotals, StoreError>) -> Void) { store.totals(ofKey: key, done) }

    /// Whether the store has been silent for too long. One that is asked all the time speaks all the time; the writer only when it has
    /// something to acknowledge.
    func isStoreAway(now: Instant) -> Bool { scoreboard.isStoreAway(now: now, isPolled: store.isPolled) }

    func keptSnapshotArrived(_ kept: KeptSnapshot) { store.keptSnapshotArrived(kept) }
    func keep(_ snapshot: KeptSnapshot) { supervisor.send { $0.keptSnapshot = snapshot } }

    private func becomeReady() {
        isReady = true
        listen()
        if !isLeaving { scoreboard.set(.ready, worker: slot, 1) }
        var ready = Ready()
        ready.accounts = UInt32(accounts.all.count)
        ready.database = settings.database.url.description
        ready.revision = store.revision
        supervisor.send { $0.ready = ready }
    }

    /// There is nothing to serve with, and trying again would not change that.
    func refuse(_ error: StoreError) {
        guard !isReady else { return }
        var refused = Refused()
        refused.reason = error.message
        supervisor.send { $0.refused = refused }
    }

    /// Listens wherever it does not yet; what fails is tried again at the next sweep.
    private func listen() {
        guard isReady, !isLeaving, !isAcceptPaused, !balance.isPaused else { return }
        takeHandovers()
        for socket in sockets where listeners[socket] == nil {
            // The handle owns a copy: closing it must not close what we would listen on again.
            let copy = Descriptor.duplicate(socket)
            do throws(LoopError) {
                guard copy >= 0 else { throw LoopError(code: -Descriptor.lastError) }
                let kind: ByteStream.Kind = Sockets.isUnix(socket) ? .unix : .tcp
                let silent = max(Limits.peerSilentMilliseconds, settings.times.writeStalled)
                let isProxied = heritage.listeners.firstIndex(of: socket).map(heritage.proxied.contains) ?? false
                listeners[socket] = try Listener(loop, descriptor: copy, kind: kind, silentMilliseconds: silent) { [unowned self] in
                    accepted($0, isProxied: isProxied)
                }
            } catch {
                if !isDeaf { log.error("cannot listen; trying again", metadata: ["error": "\(error)"]) }
                isDeaf = true
            }
        }
        guard isDeaf, listeners.count == sockets.count else { return }
        isDeaf = false
        log.notice("listening again")
    }

    /// `isProxied`: a PROXY header is due; `client`: it has come to another worker, and named this one.
    func accepted(_ stream: ByteStream, isProxied: Bool = false, client: IPAddress? = nil) {
        guard let address = stream.peer else { return stream.close() }  // it has gone already
        let peer = address.ip
        if isProxied, !settings.trustedProxies.contains(peer) {
            log.notice("connection refused: not of a trusted proxy", metadata: ["peer": "\(peer?.description ?? "unix")"])
            scoreboard.add(.admissionRefused, worker: slot)
            return stream.close()
        }
        let connection = ClientConnection(self, stream, peer: peer, isProxied: isProxied, client: client)
        connections[ObjectIdentifier(connection)] = connection
        scoreboard.add(.acceptedConnections, worker: slot)
        scoreboard.set(.openConnections, worker: slot, connections.count)
        if connections.count >= connectionsMax, !isAcceptPaused {
            // Further clients wait in the shared backlog, where another worker may take them.
            isAcceptPaused = true
            stopListening()
            log.warning("connection limit reached, accepting paused", metadata: ["connections": "\(connections.count)"])
        }
        if connections.count > Limits.balanceSlack { keepBalance(loop.now) }
    }

    /// A worker that is ahead of the others leaves them the next connections.
    private func keepBalance(_ now: Instant) {
        guard !isLeaving, balance.counted(own: connections.count, mean: others.mean(own: connections.count), now: now) else { return }
        if balance.isPaused { stopListening() } else { listen() }
    }

    private func stopListening() {
        for listener in listeners.values { listener.close() }
        listeners = [:]
        handovers?.close()
        handovers = nil
    }

    /// Nobody new, and no way back. Where nobody listens after us, clients that the kernel has taken in already are ours: a socket that
    /// closes over them would reset them. Where others do, they are theirs.
    private func leaveDoors(orphaned: (Int) -> Bool) {
        stopListening()
        for (number, socket) in sockets.enumerated() {
            let kind: ByteStream.Kind = Sockets.isUnix(socket) ? .unix : .tcp
            var left = orphaned(number) ? Limits.backlogTakenMax : 0
            while left > 0, connections.count < connectionsMax, let client = Sockets.accept(socket) {
                left -= 1
                let stream = ByteStream(loop, kind)
                do throws(LoopError) {
                    try stream.open(client)
                    accepted(stream, isProxied: heritage.proxied.contains(number))
                } catch {
                    Descriptor.close(client)
                    stream.close()
                }
            }
            Descriptor.close(socket)
        }
        sockets = []
    }

    func closed(_ connection: ClientConnection) {
        connections[ObjectIdentifier(connection)] = nil
        scoreboard.set(.openConnections, worker: slot, connections.count)
        if isAcceptPaused, connections.count < connectionsMax * 9 / 10 {
            isAcceptPaused = false
            listen()
        }
    }

    // MARK: Requests

    func answer(_ request: ClientRequest, on client: ClientConnection) {
        switch request.route {
        case .healthLive, .healthReady, .metrics, .usage: LocalRoutes.answer(request, on: client, self)
        case .models, .codexModels: catalogue.answer(request, on: client)
        case .responses, .codexResponses, .chatCompletions, .embeddings, .files, .fileUploaded:
            preconditionFailure("a turn starts when its body has been read")
        }
    }

    /// `reading` is the request's body, or why it can't be used.
    func startTurn(_ request: ClientRequest, _ reading: Result<TurnRequest, ProxyError>, _ client: ClientConnection) {
        do throws(ProxyError) {
            let ask = try reading.get()
            if !request.route.isFile, let refused = ClientAdmission.checkModel(ask.model, key: request.key) { throw refused }
            guard usageJournal.hasRoom(turns: turns.count + 1) else {
                throw ProxyError(
                    status: 503, code: "service_unavailable", type: "server_error",
                    message: "The usage journal is full because the store does not take records. Try again in 5s", origin: .ourselves,
                    retryAfterSeconds: 5)
            }
            request.access?.turnBegan()
            let turn = Turn(self, request, ask, client)
            turns[ObjectIdentifier(turn)] = turn
            turn.start()
        } catch {
            scoreboard.add(.admissionRefused, worker: slot)
            log.refused(
                error.code,
                ["request_id": "\(request.id)", "path": "\(request.route.rawValue)", "status": "\(error.status)"])
            client.respond(error, requestID: request.id)
        }
    }

    func ended(_ turn: Turn) {
        turns[ObjectIdentifier(turn)] = nil
        if isLeaving { hasIdled = true }
        if !clientless.isEmpty { clientless[ObjectIdentifier(turn)] = nil }
    }

    func clientLeft(_ turn: Turn) { clientless[ObjectIdentifier(turn)] = turn }

    func makeID(_ time: WallTime) -> RecordID { RecordID(time: time, random: (random.next(), random.next())) }

    func count(status: Int) {
        scoreboard.add(status < 400 ? .status2xx : status < 500 ? .status4xx : .status5xx, worker: slot)
    }

    // MARK: Records

    func journal(_ record: UsageRecord) {
        if !store.isPolled, usageJournal.isEmpty { storeSeen() }  // its silence begins with something to acknowledge
        recordBytes.removeAll(keepingCapacity: true)
        record.append(to: &recordBytes)
        if usageJournal.append(recordBytes) {
            scoreboard.add(.recordsJournaled, worker: slot)
        } else {
            log.critical("usage record lost: the journal is full", metadata: ["id": "\(record.id)"])
        }
    }

    func acknowledged(_ count: Int) {
        scoreboard.add(.recordsAcknowledged, worker: slot, count)
        storeBy = .never
    }

    // MARK: Time and the end

    private func sweep() {
        let now = loop.now
        scoreboard.add(.heartbeat, worker: slot)
        droppedTold += LogSink.standard.dropped(since: droppedTold) { scoreboard.add(.logLinesDropped, worker: slot, $0) }
        if let accessLog {
            accessDroppedTold += accessLog.dropped(since: accessDroppedTold) { scoreboard.add(.logLinesDropped, worker: slot, $0) }
        }
        scoreboard.set(.journalBytes, worker: slot, usageJournal.usedBytes)
        var buffered = 0
        for connection in connections.values {
            connection.sweep(now)
            buffered += connection.bufferedBytes
        }
        memory.setBuffers(buffered)
        for turn in clientless.values { turn.sweep(now) }
        pool.sweep(now)
        catalogue.sweep(now)
        logins.sweep(now)
        usage.sweep(now)
        facts.sweep(now)
        store.sweep(now)
        others.look(now)
        keepBalance(now)
        if listeners.count < sockets.count { listen() }
        if now >= drainIdleBy {
            drainIdleBy = .never
            for connection in connections.values { connection.drain(idleToo: true) }
        }
        if isLeaving {
            hasIdled = true
            handOver()
            checkDrained(now)
        }
    }

    /// Takes nothing new, finishes what is open; what is still open after `milliseconds` is cut. With `handsOver` others serve on, and get
    /// the clients that have nothing open; `orphaned` tells on which listeners nobody listens after us.
    func drain(milliseconds: Int, handsOver: Bool = false, orphaned: (Int) -> Bool = { _ in true }) {
        let by = loop.now.adding(milliseconds: milliseconds)
        drainBy = min(drainBy, by)
        let isFirst = !isLeaving
        if isFirst {
            isLeaving = true
            scoreboard.set(.ready, worker: slot, 0)
        }
        if !handsOver, !isDraining {
            isDraining = true
            store.draining()
            drainIdleBy = loop.now.adding(milliseconds: Limits.drainIdleMilliseconds)
            for connection in connections.values { connection.drain(idleToo: false) }
        }
        if isFirst { leaveDoors(orphaned: orphaned) }
        hasIdled = true
        handOver()
        checkDrained(loop.now)
    }

    private func checkDrained(_ now: Instant) {
        if now >= drainBy {
            drainBy = .never
            isDraining = true
            exitBy = now.adding(milliseconds: 2_000)
            if !turns.isEmpty { log.warning("drain deadline reached, open turns are cut", metadata: ["turns": "\(turns.count)"]) }
            for connection in connections.values { connection.cut() }
            for turn in turns.values { turn.cut() }  // those whose clients have left
        }
        if turns.isEmpty, connections.isEmpty, storeBy == .never { storeBy = now.adding(milliseconds: Self.storeMilliseconds) }
        let isStored = usageJournal.isEmpty && !store.isLeaving && !logins.isBusy && !facts.isBusy
        if turns.isEmpty || now >= exitBy, connections.isEmpty || now >= exitBy, isStored || now >= min(exitBy, storeBy) {
            leave()
            loop.stop()
        }
    }

    /// What is left in the journal outlives us: with the supervisor, or as a file when it is dead.
    private func leave() {
        guard !usageJournal.isEmpty else { return }
        guard isOrphan else {
            return log.warning(
                "usage records are left in the journal; the supervisor keeps it", metadata: ["bytes": "\(usageJournal.usedBytes)"])
        }
        do throws(SystemError) {
            guard let saved = try Spool.save([usageJournal], directories: settings.spoolDirectories, now: Clock.wall) else { return }
            log.warning(
                "usage records that could not be stored are kept for the next start",
                metadata: ["records": "\(saved.count)", "file": "\(saved.path)"])
        } catch {
            log.critical("usage records are lost: they could be neither stored nor kept in a file", metadata: ["error": "\(error)"])
        }
    }

    /// The supervisor is dead: nothing can restart us or take over. Finish what is open and go.
    func supervisorGone() {
        guard !isOrphan else { return }
        isOrphan = true  // also in the middle of a drain: what is left in the journal is ours to keep
        log.error("the supervisor has gone: draining")
        Process.setHardDeadline(seconds: settings.times.drain / 1000 + 10)
        drain(milliseconds: settings.times.drain)
    }
}

public enum WorkerRole {
    /// Runs a worker until it has drained. Called in the process that the supervisor started for it.
    public static func run(heritage: Heritage, settings: Settings, log: Logger, accessLog: AccessLog?) -> Int32 {
        Process.name("codex-lb:worker")
        Process.forbidDumps()
        Process.tuneAllocator()
        if let first = settings.pinFirstCPU { Process.pin(toCPU: first + heritage.slot) }
        let loop = EventLoop(threads: Limits.threadsMax)
        do {
            let worker = try Worker(loop, settings, heritage, log, accessLog)
            withExtendedLifetime(worker) { loop.run() }
            return 0
        } catch {
            log.critical("worker cannot start", metadata: ["error": "\(error)"])
            return 1
        }
    }
}
