import Platform
import Vocabulary

/// What the workers of an instance hold of bodies and of bytes that nobody has taken yet, and the most they may.
///
/// Bodies are counted as they grow; what waits in connections, which is bounded for each, is counted each `Worker.sweepMilliseconds`.
final class MemoryBudget {
    private let scoreboard: Scoreboard
    private let slot: Int
    /// Of the whole instance, bytes.
    let bytesMax: Int
    private var bodies = 0
    private var buffers = 0

    init(_ scoreboard: Scoreboard, slot: Int, bytesMax: Int) {
        (self.scoreboard, self.slot, self.bytesMax) = (scoreboard, slot, bytesMax)
    }

    /// Who asks for room. Requests leave a quarter for answers: what is paid for already must not give way to what only begins.
    enum Use { case request, answer }

    /// Whether the instance may hold so many bytes more.
    func hasRoom(_ bytes: Int, for use: Use) -> Bool {
        scoreboard.sum(.bufferedBytes) <= (use == .request ? bytesMax / 4 * 3 : bytesMax) - bytes
    }

    fileprivate func changed(by bytes: Int) {
        bodies += bytes
        tell()
    }

    /// What waits in the connections now.
    func setBuffers(_ bytes: Int) {
        guard bytes != buffers else { return }
        buffers = bytes
        tell()
    }

    private func tell() { scoreboard.set(.bufferedBytes, worker: slot, bodies + buffers) }

    static func overloaded(_ what: String) -> ProxyError {
        ProxyError(
            status: 503, code: "server_overloaded", type: "server_error",
            message: "codex-lb holds as many bytes as it may (CODEX_LB_MEMORY_LIMIT): \(what). Try again in 2s", origin: .ourselves,
            retryAfterSeconds: 2)
    }
}

/// What one turn's request, or its answer, takes of the budget; given back with it.
final class MemoryShare {
    private let budget: MemoryBudget
    private let use: MemoryBudget.Use
    private(set) var bytes = 0

    init(_ budget: MemoryBudget, for use: MemoryBudget.Use) { (self.budget, self.use) = (budget, use) }
    deinit { budget.changed(by: -bytes) }

    /// False, and unchanged, when the instance has no room for the growth.
    func grow(to bytes: Int) -> Bool {
        bytes <= self.bytes || resize(to: bytes)
    }

    /// The same, and gives back what is too much.
    func resize(to bytes: Int) -> Bool {
        guard bytes <= self.bytes || budget.hasRoom(bytes - self.bytes, for: use) else { return false }
        set(bytes)
        return true
    }

    func set(_ bytes: Int) {
        budget.changed(by: bytes - self.bytes)
        self.bytes = bytes
    }
}
