import Logging
import Loop
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// The one thread that writes. The loop hands it work in order and never waits for it.
///
/// Owner of the session from `init` on: no other thread may call it.
final class CommitQueue: @unchecked Sendable {
    private let session: StoreSession
    private let loop: EventLoop
    private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let signal = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var jobs: [(StoreSession) -> Void] = []  // guarded by lock
    private var isClosing = false  // guarded by lock
    private var thread = pthread_t()

    init(_ session: StoreSession, _ loop: EventLoop) {
        (self.session, self.loop) = (session, loop)
        pthread_mutex_init(lock, nil)
        pthread_cond_init(signal, nil)
        let me = Unmanaged.passRetained(self).toOpaque()
        let code = pthread_create(
            &thread, nil,
            { raw in
                Unmanaged<CommitQueue>.fromOpaque(raw!).takeRetainedValue().work()
                return nil
            }, me)
        precondition(code == 0, "cannot start the writing thread")
    }

    /// Runs `body` on the writing thread, then `done` with its result on the loop.
    func run<T>(_ body: @escaping @Sendable (StoreSession) -> T, then done: @escaping (T) -> Void) {
        let box = LoopBound(done)
        let loop = self.loop
        pthread_mutex_lock(lock)
        jobs.append { session in
            let result = LoopBound(body(session))
            loop.post { box.value(result.value) }
        }
        pthread_mutex_unlock(lock)
        pthread_cond_signal(signal)  // behind the lock, or the thread would wake up to wait for it
    }

    /// Finishes what is queued, closes the session and ends the thread. Blocks.
    func close() {
        pthread_mutex_lock(lock)
        isClosing = true
        pthread_cond_signal(signal)
        pthread_mutex_unlock(lock)
        pthread_join(thread, nil)
        session.close()
    }

    private func work() {
        while true {
            pthread_mutex_lock(lock)
            while jobs.isEmpty, !isClosing { pthread_cond_wait(signal, lock) }
            let batch = jobs
            jobs = []
            let isLast = isClosing
            pthread_mutex_unlock(lock)
            for job in batch { job(session) }
            if isLast, batch.isEmpty { return }
        }
    }
}

/// Carries a value between the loop and the writing thread, one at a time.
private struct LoopBound<T>: @unchecked Sendable {
    let value: T
    init(_ value: T) { self.value = value }
}
