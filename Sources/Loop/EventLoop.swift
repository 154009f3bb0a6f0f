import CPlatform
internal import CUV
internal import Synchronization
public import Vocabulary

#if canImport(Glibc)
    internal import Glibc
#endif

/// A libuv error, named as libuv names it: `ECONNREFUSED: connection refused`.
public struct LoopError: Error, Equatable, CustomStringConvertible {
    public var code: Int32
    public init(code: Int32) { self.code = code }
    public var description: String { "\(String(cString: uv_err_name(code))): \(String(cString: uv_strerror(code)))" }

    public static let endOfFile = LoopError(code: UV_EOF.rawValue)
    /// This process or machine has run out of something: no fault of the peer's.
    public var isExhaustion: Bool {
        [UV_EMFILE, UV_ENFILE, UV_ENOMEM, UV_ENOBUFS, UV_EADDRNOTAVAIL].contains { $0.rawValue == code }
    }
    /// A reset behind the peer's orderly end, of a read that met no error before: Linux has another code for that (tcp_reset in
    /// net/ipv4/tcp_input.c: EPIPE in CLOSE_WAIT).
    public var isResetAfterEnd: Bool { code == UV_EPIPE.rawValue }
    public var isConnectionReset: Bool { code == UV_ECONNRESET.rawValue || code == UV_EPIPE.rawValue }
}

@inline(__always) func check(_ code: Int32) throws(LoopError) {
    if code < 0 { throw LoopError(code: code) }
}

/// One libuv loop and the thread that runs it. Everything but `post` may be called on that thread only.
public final class EventLoop: @unchecked Sendable {
    // Owner of every field: the loop's thread; `inbox` is the one door for the others.
    let uv: UnsafeMutablePointer<uv_loop_t>
    private let wakeup: UnsafeMutablePointer<uv_async_t>
    private struct Inbox {
        var calls: [@Sendable () -> Void] = []
        /// Nothing is taken any more.
        var isClosed = false
    }
    private let inbox = Mutex(Inbox())
    /// Where every stream of the loop reads into; what must outlive the callback is copied out of it.
    let readBuffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 1024, alignment: 16)
    private var ended: [() -> Void] = []

    /// `threads` is the size of libuv's pool for the whole process; it counts before its first use only. Nil: libuv's own, four.
    public init(threads: Int? = nil) {
        if let threads { setenv("UV_THREADPOOL_SIZE", String(threads), 1) }
        uv = .allocate(capacity: 1)
        wakeup = .allocate(capacity: 1)
        precondition(uv_loop_init(uv) == 0, "uv_loop_init failed")
        uv_async_init(uv, wakeup) { handle in
            Unmanaged<EventLoop>.fromOpaque(handle!.pointee.data).takeUnretainedValue().drainInbox()
        }
        wakeup.pointee.data = Unmanaged.passUnretained(self).toOpaque()
    }

    /// Runs until `stop()`.
    public func run() {
        uv_run(uv, UV_RUN_DEFAULT)
    }

    public func stop() { uv_stop(uv) }

    /// For a loop that ends before its process: closes whatever is open on it and gives its own descriptors back. On its thread, after `run`,
    /// when nothing of it is used any more; what is posted later is dropped.
    public func close() {
        inbox.withLock { box in box = Inbox(isClosed: true) }
        uv_walk(uv, { handle, _ in if uv_is_closing(handle) == 0 { uv_close(handle, nil) } }, nil)
        uv_run(uv, UV_RUN_DEFAULT)
        uv_loop_close(uv)
    }

    /// The monotonic clock.
    public var now: Instant { Clock.now }

    /// The same, read once for all that one iteration of the loop brings: at most a millisecond and its own work behind.
    public var iterationTime: Instant {
        let iteration = uv_now(uv)
        if iteration != readAt { (readAt, read) = (iteration, Clock.now) }
        return read
    }
    private var readAt = UInt64.max
    private var read = Instant.never

    /// Runs `call` on the loop's thread, soon. From any thread.
    public func post(_ call: @escaping @Sendable () -> Void) {
        inbox.withLock { box in
            guard !box.isClosed else { return }
            if box.calls.isEmpty { uv_async_send(wakeup) }
            box.calls.append(call)
        }
    }

    /// The same from the loop's own thread: `call` comes when everything that waits now has had its turn.
    public func later(_ call: @escaping () -> Void) {
        let box = UncheckedBox(call)
        post { box.value() }
    }

    private func drainInbox() {
        let calls = inbox.withLock { box in
            defer { box.calls = [] }
            return box.calls
        }
        for call in calls { call() }
    }

    private final class Work {
        let body: @Sendable () -> Void
        let done: () -> Void
        let request = UnsafeMutablePointer<uv_work_t>.allocate(capacity: 1)
        init(_ body: @escaping @Sendable () -> Void, _ done: @escaping () -> Void) { (self.body, self.done) = (body, done) }
        deinit { request.deallocate() }
    }

    private final class ResultBox<T>: @unchecked Sendable {  // written by the pool's thread before `done` runs
        var value: T?
        init() {}
    }

    /// Runs blocking `body` on libuv's thread pool, then `done` on the loop.
    public func offload<T: Sendable>(_ body: @escaping @Sendable () -> T, then done: @escaping (T) -> Void) {
        let box = ResultBox<T>()
        let work = Work({ box.value = body() }, { done(box.value!) })
        work.request.pointee.data = Unmanaged.passRetained(work).toOpaque()
        let code = uv_queue_work(
            uv, work.request,
            { request in Unmanaged<Work>.fromOpaque(request!.pointee.data).takeUnretainedValue().body() },
            { request, _ in Unmanaged<Work>.fromOpaque(request!.pointee.data).takeRetainedValue().done() })
        precondition(code == 0, "uv_queue_work failed")
    }
}

/// A timer of the loop. Releases itself after `close()`.
public final class LoopTimer {
    private let handle = UnsafeMutablePointer<uv_timer_t>.allocate(capacity: 1)
    private var fired: (() -> Void)?
    private var isClosed = false

    public init(_ loop: EventLoop, _ fired: @escaping () -> Void) {
        self.fired = fired
        uv_timer_init(loop.uv, handle)
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()
    }

    deinit { handle.deallocate() }

    /// Fires once after `milliseconds`, then each `repeating` milliseconds unless that is 0. Replaces an earlier start.
    public func start(milliseconds: Int, repeating: Int = 0) {
        guard !isClosed else { return }
        uv_timer_start(
            handle,
            { h in Unmanaged<LoopTimer>.fromOpaque(h!.pointee.data).takeUnretainedValue().fired?() },
            UInt64(max(0, milliseconds)), UInt64(repeating))
    }

    public func stop() { if !isClosed { uv_timer_stop(handle) } }

    public func close() {
        guard !isClosed else { return }
        isClosed = true
        fired = nil
        UnsafeMutableRawPointer(handle).withMemoryRebound(to: uv_handle_t.self, capacity: 1) { h in
            uv_close(h) { Unmanaged<LoopTimer>.fromOpaque($0!.pointee.data).release() }
        }
    }
}

/// Calls `received` on the loop for each arrival of a signal.
public final class LoopSignal {
    private let handle = UnsafeMutablePointer<uv_signal_t>.allocate(capacity: 1)
    private let received: () -> Void

    public init(_ loop: EventLoop, _ number: Int32, _ received: @escaping () -> Void) {
        self.received = received
        uv_signal_init(loop.uv, handle)
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()  // for the life of the process
        uv_signal_start(handle, { h, _ in Unmanaged<LoopSignal>.fromOpaque(h!.pointee.data).takeUnretainedValue().received() }, number)
    }
}

/// Runs `prepared` at the end of each iteration of the loop, just before it waits for events: the place to flush what it gathered.
public final class IterationEnd {
    private let handle = UnsafeMutablePointer<uv_prepare_t>.allocate(capacity: 1)
    private let prepared: () -> Void

    public init(_ loop: EventLoop, _ prepared: @escaping () -> Void) {
        self.prepared = prepared
        uv_prepare_init(loop.uv, handle)
        handle.pointee.data = Unmanaged.passRetained(self).toOpaque()  // for the life of the process
        uv_prepare_start(handle) { h in Unmanaged<IterationEnd>.fromOpaque(h!.pointee.data).takeUnretainedValue().prepared() }
    }
}
