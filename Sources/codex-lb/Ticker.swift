import Platform
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// Tells that something is still going on, from the first second on: each second at first, then every ten.
enum Ticker {
    private final class Clockwork: @unchecked Sendable {  // `isOver` is guarded by the lock
        let what: String
        let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
        let signal = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
        var isOver = false

        init(_ what: String) {
            self.what = what
            pthread_mutex_init(lock, nil)
            pthread_cond_init(signal, nil)
        }

        func run() {
            var seconds = 0
            pthread_mutex_lock(lock)
            defer { pthread_mutex_unlock(lock) }
            while !isOver {
                var until = timespec()
                let wall = Clock.wall.milliseconds + 1000
                (until.tv_sec, until.tv_nsec) = (time_t(wall / 1000), Int(wall % 1000) * 1_000_000)
                guard pthread_cond_timedwait(signal, lock, &until) == ETIMEDOUT, !isOver else { continue }
                seconds += 1
                if seconds < 10 || seconds % 10 == 0 { complain("\(what): \(seconds) s") }
            }
        }
    }

    /// Runs `body`; while it takes longer than a second, lines say how long `what` takes.
    static func during<T, E: Error>(_ what: String, _ body: () throws(E) -> T) throws(E) -> T {
        let clockwork = Clockwork(what)
        var thread = pthread_t()
        let me = Unmanaged.passRetained(clockwork)
        let code = pthread_create(
            &thread, nil,
            { raw in
                Unmanaged<Clockwork>.fromOpaque(raw!).takeRetainedValue().run()
                return nil
            }, me.toOpaque())
        guard code == 0 else {  // no thread to be had: then without lines
            me.release()
            return try body()
        }
        defer {
            pthread_mutex_lock(clockwork.lock)
            clockwork.isOver = true
            pthread_cond_signal(clockwork.signal)
            pthread_mutex_unlock(clockwork.lock)
            pthread_join(thread, nil)
        }
        return try body()
    }
}
