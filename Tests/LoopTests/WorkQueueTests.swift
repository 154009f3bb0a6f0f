import Foundation
import Loop
import Testing

@Suite struct WorkQueueTests {
    /// What the loop's thread and the pool's threads count together.
    private final class Shared: @unchecked Sendable {  // every access holds `lock`
        private let lock = NSLock()
        private var value = (running: 0, most: 0, done: [Int]())
        func change<T>(_ body: (inout (running: Int, most: Int, done: [Int])) -> T) -> T {
            lock.lock()
            defer { lock.unlock() }
            return body(&value)
        }
    }

    @Test("A queue runs its work in order, never more at once than it may, and leaves threads to others")
    func bounded() {
        let loop = EventLoop()
        let (slow, other) = (WorkQueue(loop, threadsMax: 2), WorkQueue(loop, threadsMax: 1))
        let shared = Shared()
        let hold = DispatchSemaphore(value: 0)
        for i in 0..<10 {
            slow.run({
                shared.change {
                    $0.running += 1
                    $0.most = max($0.most, $0.running)
                }
                _ = hold.wait(timeout: .now() + 20)
                shared.change { $0.running -= 1 }
            }) {
                shared.change { $0.done.append(i) }
                if shared.change({ $0.done.count }) == 10 { loop.stop() }
            }
        }
        // All of the slow queue's work waits for this: it must find a thread.
        other.run({ 1 }) { _ in for _ in 0..<10 { hold.signal() } }
        loop.run()
        #expect(shared.change { $0.most } == 2)
        #expect(shared.change { $0.done.sorted() } == Array(0..<10))
    }
}
