internal import Loop
internal import Settings
internal import Store
internal import Vocabulary

/// A connection on the loop, in pipeline mode: requests are sent as they come, and answered in their order.
///
/// Everything runs on the loop's thread.
final class PostgresPipeline {
    /// Statements between two syncs: one implicit transaction. None of them begins one of its own, which an error would leave open.
    private struct Request {
        var count: Int
        var results: [PostgresResult] = []
        var milliseconds: Int
        /// Counts from when it is the first of those that are owed an answer.
        var by: Instant
        var answered: (Result<[PostgresResult], StoreError>) -> Void
    }

    private let loop: EventLoop
    private let target: PostgresTarget
    private var candidates: [(host: PostgresURL.Host, address: String?)] = []
    private var link: PostgresHandle?
    private var poll: DescriptorPoll?
    private var connectBy = Instant.never
    private var errors: [StoreError] = []
    private var connected: ((StoreError?) -> Void)?
    private var requests: [Request] = []
    private(set) var isClosed = false
    /// The connection was lost; told once, after every open request has been answered with the error.
    var lost: ((StoreError) -> Void)?

    /// The server's own time limit for a statement lies this much before ours.
    private static let serverLeadMilliseconds = 1_000

    init(_ loop: EventLoop, _ target: PostgresTarget) { (self.loop, self.target) = (loop, target) }

    // MARK: Connecting

    /// Tries each address of each host in turn; names are looked up off the loop. `done` is called once, later, with nil when it worked.
    func connect(_ done: @escaping (StoreError?) -> Void) {
        connected = done
        lookUp(target.url.hosts[...])
    }

    private func lookUp(_ hosts: ArraySlice<PostgresURL.Host>) {
        guard let host = hosts.first else { return tryNext() }
        if host.isDirectory || SocketAddress(numeric: host.name, port: host.port) != nil {
            candidates.append((host, nil))
            return lookUp(hosts.dropFirst())
        }
        loop.resolve(host.name, port: host.port) { [self] result in
            guard !isClosed else { return }
            switch result {
            case .success(let addresses): candidates += addresses.map { (host, $0.hostText) }
            case .failure(let error):
                errors.append(
                    StoreError(.unreachable, "\(target.place(host)): the name \(host.name) can't be looked up: \(error); check it, and DNS")
                )
            }
            lookUp(hosts.dropFirst())
        }
    }

    private func tryNext() {
        guard !candidates.isEmpty else {
            let first = errors.first { !$0.mayBeRetried } ?? errors.first ?? StoreError(.invalid, "the URL has no host")
            let error = StoreError(first.kind, errors.map(\.message).joined(separator: " | "))
            let done = connected
            close()
            done?(error)
            return
        }
        let (host, address) = candidates.removeFirst()
        do throws(StoreError) {
            let link = try PostgresHandle(target, host, address: address)
            self.link = link
            connectBy = loop.now.adding(milliseconds: target.connectMilliseconds)
            watch(link, .writable)
        } catch {
            attemptFailed(error)
        }
    }

    /// libpq may close its socket and open another one under the same number at any step: the poll ends before each and begins after it.
    private func watch(_ link: PostgresHandle, _ wants: PostgresHandle.Wants) {
        do throws(LoopError) {
            let poll = try DescriptorPoll(loop, link.socket) { [unowned self] _ in connectStep(link) }
            self.poll = poll
            poll.watch(wants == .readable ? .readable : .writable)
        } catch {
            attemptFailed(link.broken("watching the socket: \(error)"))
        }
    }

    private func connectStep(_ link: PostgresHandle) {
        poll?.close()
        poll = nil
        do throws(StoreError) {
            if let wants = try link.connectStep() { return watch(link, wants) }
            try link.enterPipeline()
            let poll: DescriptorPoll
            do throws(LoopError) {
                poll = try DescriptorPoll(loop, link.socket) { [unowned self] in ready($0) }
            } catch {
                throw link.broken("watching the socket: \(error)")
            }
            self.poll = poll
            poll.watch(.readable)
            connectBy = .never
            errors = []
            candidates = []
            let done = connected
            connected = nil
            done?(nil)
        } catch {
            attemptFailed(error)
        }
    }

    private func attemptFailed(_ error: StoreError) {
        errors.append(error)
        dropLink()
        connectBy = .never
        tryNext()
    }

    private func dropLink() {
        poll?.close()
        poll = nil
        link?.close()
        link = nil
    }

    // MARK: Requests

    /// Sends the statements as one segment. `answered` is called once, with a result for each of them or the first error.
    func send(_ statements: [PostgresStatement], milliseconds: Int, _ answered: @escaping (Result<[PostgresResult], StoreError>) -> Void) {
        guard let link, !isClosed else {
            return answered(.failure(StoreError(.unreachable, "\(target.url): the connection is closed")))
        }
        requests.append(
            Request(
                count: statements.count, milliseconds: milliseconds, by: loop.now.adding(milliseconds: milliseconds), answered: answered))
        do throws(StoreError) {
            // The server ends its part first: a process of its that waits for a lock would not notice that we have gone. The setting is the
            // segment's own, which poolers that keep no session understand too.
            let limit = max(milliseconds / 2, milliseconds - Self.serverLeadMilliseconds)
            try link.send(PostgresStatement("SELECT set_config('statement_timeout', '\(limit)', true)"))
            for statement in statements { try link.send(statement) }
            try link.sync()
            try flush(link)
        } catch {
            fail(error)
        }
    }

    private func flush(_ link: PostgresHandle) throws(StoreError) {
        poll?.watch(try link.flush() ? .readable : [.readable, .writable])
    }

    private func ready(_ events: DescriptorPoll.Events) {
        guard let link else { return }
        do throws(StoreError) {
            if events.contains(.readable) { try link.receive() }
            try flush(link)
            try collect(link)
            // A server that ends a connection says why before it does: unasked, with nothing owed.
            if requests.isEmpty, link.isBad { throw link.broken() }
        } catch {
            fail(error)
        }
    }

    private func collect(_ link: PostgresHandle) throws(StoreError) {
        while !requests.isEmpty, !link.isBusy {
            // Each statement's results end with nil; the segment ends with a result of its own.
            guard let result = link.next() else {
                guard !link.isBad else { throw link.broken() }
                continue
            }
            guard result.isSync else {
                requests[0].results.append(result)
                if let error = result.error(link.place), error.kind == .unreachable { throw error }
                continue
            }
            let request = requests.removeFirst()
            if !requests.isEmpty { requests[0].by = loop.now.adding(milliseconds: requests[0].milliseconds) }
            let answers = Array(request.results.dropFirst())  // the first is the time limit's
            if let error = request.results.lazy.compactMap({ $0.error(link.place) }).first {
                request.answered(.failure(error))
            } else if answers.count == request.count {
                request.answered(.success(answers))
            } else {
                request.answered(
                    .failure(StoreError(.other, "\(link.place): \(answers.count) answers to \(request.count) statements")))
            }
            guard self.link === link else { return }  // closed by whom we told
        }
    }

    /// Deadlines of connecting and of the oldest request.
    func sweep(_ now: Instant) {
        if let link, now >= connectBy { attemptFailed(link.connectTimedOut()) }
        guard let link, !requests.isEmpty else { return }
        // What OpenSSL has decrypted already makes no socket readable.
        if link.usesTLS { ready(.readable) }
        // Read after that: the one that was first may have been answered just now, and its deadline is not its successor's.
        if self.link === link, let first = requests.first, now >= first.by {
            fail(link.broken("no answer in time; the connection is given up"))
        }
    }

    private func fail(_ error: StoreError) {
        guard !isClosed else { return }
        let lost = lost
        end(error)
        lost?(error)
    }

    /// Ends the connection. Open requests are answered with `cause`; whether they took effect is unknown.
    func close(_ cause: StoreError? = nil) { end(cause ?? StoreError(.unreachable, "\(target.url): the connection was given up")) }

    private func end(_ error: StoreError) {
        guard !isClosed else { return }
        isClosed = true
        dropLink()
        let open = requests
        requests = []
        connected = nil
        lost = nil
        for request in open { request.answered(.failure(error)) }
    }
}
