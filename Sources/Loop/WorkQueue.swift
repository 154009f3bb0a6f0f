/// Blocking work of one kind on libuv's thread pool, a few pieces at a time: the rest waits here in order, so that no kind of work keeps
/// the threads from another, and none from name look-ups.
public final class WorkQueue {
    private let loop: EventLoop
    private let threadsMax: Int
    private var busy = 0
    private var waiting: [() -> Void] = []
    private var nextWaiting = 0

    public init(_ loop: EventLoop, threadsMax: Int) { (self.loop, self.threadsMax) = (loop, threadsMax) }

    /// Runs blocking `body` on a thread of the pool, then `done` on the loop.
    public func run<T: Sendable>(_ body: @escaping @Sendable () -> T, then done: @escaping (T) -> Void) {
        guard busy < threadsMax else { return waiting.append { [unowned self] in start(body, done) } }
        start(body, done)
    }

    private func start<T: Sendable>(_ body: @escaping @Sendable () -> T, _ done: @escaping (T) -> Void) {
        busy += 1
        loop.offload(body) { [self] result in
            busy -= 1
            if nextWaiting < waiting.count {
                let next = waiting[nextWaiting]
                nextWaiting += 1
                if nextWaiting == waiting.count { (waiting, nextWaiting) = ([], 0) }
                next()
            }
            done(result)
        }
    }
}
