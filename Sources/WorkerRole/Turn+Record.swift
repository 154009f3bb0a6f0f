import Exchange
import Logging
import Loop
import Metering
import Platform
import Vocabulary

/// What a turn leaves behind: its usage record and its line in the log.
extension Turn {
    /// Puts the turn's record into the journal, once: before the last byte of the answer goes out.
    func settle(status: Int, errorCode: String) {
        guard !isSettled else { return }
        isSettled = true
        release()
        let (status, errorCode) = isClientGone ? (499, "client_disconnected") : (status, errorCode)
        let findings = findings(errorCode)
        let now = worker.loop.turnTime
        deadlines.completed(now)
        var record = UsageRecord(id: request.recordID, time: request.time, route: request.route.rawValue, requestID: request.id)
        record.keyID = request.key?.id
        record.accountID = exchange.attempts > 0 || account != nil ? account?.value.id : nil
        record.modelAsked = ask.model.cut(utf8: Limits.recordModelBytesMax)
        record.modelServed = findings.modelServed.cut(utf8: Limits.recordModelBytesMax)
        record.status = status
        // A turn whose numbers were changed is no failure, but whoever reads the record must see it.
        let mark =
            findings.isEstimated
            ? (errorCode.isEmpty ? "usage_estimated" : errorCode + "_usage_estimated")
            : errorCode.isEmpty && findings.isOutOfRange ? "usage_out_of_range" : errorCode
        record.errorCode = mark.cut(utf8: Limits.recordCodeBytesMax)
        if let usage = findings.usage {
            record.inputTokens = usage.input
            record.cachedInputTokens = usage.cachedInput
            record.outputTokens = usage.output
            record.reasoningTokens = usage.reasoning
            record.costMicrodollars = worker.prices.costMicrodollars(
                model: findings.modelServed.isEmpty ? ask.model : findings.modelServed, serviceTier: findings.serviceTier, usage: usage)
            worker.scoreboard.add(.inputTokens, worker: worker.slot, Int(usage.input))
            worker.scoreboard.add(.outputTokens, worker: worker.slot, Int(usage.output))
        }
        record.firstByteMilliseconds = firstByteMilliseconds.map { Int64($0) }
        record.durationMilliseconds = Int64(now.milliseconds(since: request.start))
        record.attempts = exchange.attempts
        record.requestBytes = Int64(request.receivedBytes)
        record.responseBytes = Int64(client?.bodyBytes ?? 0)
        worker.journal(record)
        worker.scoreboard.add(.turnsFinished, worker: worker.slot)
        if !errorCode.isEmpty { worker.scoreboard.add(.turnsFailed, worker: worker.slot) }
        worker.scoreboard.add(.requestBytes, worker: worker.slot, request.receivedBytes)
        worker.scoreboard.add(.turnsOpen, worker: worker.slot, -1)
        worker.log.debug(
            "turn finished",
            metadata: [
                "request_id": "\(request.id)", "route": "\(request.route.rawValue)",
                "model": "\(ask.model.cut(utf8: Limits.recordModelBytesMax))", "status": "\(status)",
                "code": "\(errorCode)", "account": "\(account?.value.name ?? "")", "attempts": "\(exchange.attempts)",
                "duration_ms": "\(record.durationMilliseconds)",
            ])
    }

    /// What the answer told. One that told no usage was not free: neither one whose client left before its end nor one of an upstream that
    /// never tells. The record says that its numbers are a guess: four bytes of the request to a token.
    private func findings(_ errorCode: String) -> UsageFindings {
        var findings = answer?.findings ?? UsageFindings()
        // What we ended for want of memory was asked for and worked on all the same.
        guard findings.usage == nil, isClientGone || errorCode.isEmpty || errorCode == "server_overloaded" else { return findings }
        switch exchange.state {
        case .dispatched where isClientGone && answer == nil, .accepted, .visible: break
        default: return findings
        }
        findings.usage = TokenUsage(input: Int64(request.receivedBytes / 4), output: Int64(answer?.tokensGuess ?? 0))
        findings.isEstimated = true
        return findings
    }
}
