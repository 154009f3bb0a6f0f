import Logging
import Loop
import Platform
import Vocabulary

/// Clients with nothing open move from a worker that leaves to those that serve, and never notice (docs/protocol.md, "Hand-over").
extension Worker {
    /// Takes clients in for as long as this worker listens.
    func takeHandovers() {
        guard handovers == nil, heritage.handover.taking >= 0 else { return }
        do throws(LoopError) {
            let poll = try DescriptorPoll(loop, heritage.handover.taking) { [unowned self] _ in took() }
            poll.watch(.readable)
            handovers = poll
        } catch {
            log.error("clients of other workers can't be taken over", metadata: ["error": "\(error)"])
        }
    }

    private func took() {
        var left = Limits.handoversPerIteration
        while left > 0, handovers != nil, let (descriptor, isUnix, client) = HandoverSocket.take(from: heritage.handover.taking) {
            left -= 1
            let stream = ByteStream(loop, isUnix ? .unix : .tcp)
            do throws(LoopError) {
                try stream.open(descriptor)
                accepted(stream, client: client)
            } catch {
                Descriptor.close(descriptor)
                stream.close()
            }
        }
    }

    /// Gives away those that have nothing open. Those that nobody takes now are tried again at the next sweep.
    func handOver() {
        hasIdled = false
        guard isLeaving, !isDraining, heritage.handover.giving >= 0 else { return }
        var left = Limits.handoversPerIteration
        for connection in connections.values {
            guard left > 0 else {
                hasIdled = true
                return
            }
            switch connection.giveAway(over: heritage.handover.giving) {
            case .given: left -= 1
            case .busy: break
            case .refused: return
            }
        }
    }
}
