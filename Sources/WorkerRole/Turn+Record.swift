import Diagnostics
import Exchange
import Logging
import Loop
import Metering
import Platform
import Vocabulary

/// What a turn leaves behind: its usage record and its line in the log.
extension Turn {
    /// Puts the turn's record into the journal.
    func record(_ outcome: TurnOutcome) {
        let findings = outcome.findings
        var record = UsageRecord(id: request.recordID, time: request.time, route: request.route.rawValue, requestID: request.id)
        record.keyID = request.key?.id
        record.accountID = account?.value.id
        record.modelAsked = ask.modelAsked.cut(utf8: Limits.recordModelBytesMax)
        record.modelServed = findings.modelServed.cut(utf8: Limits.recordModelBytesMax)
        record.status = outcome.status
        record.errorCode = outcome.mark.cut(utf8: Limits.recordCodeBytesMax)
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
        record.durationMilliseconds = Int64(worker.loop.iterationTime.milliseconds(since: request.start))
        record.attempts = outcome.attempts
        record.requestBytes = Int64(request.receivedBytes)
        record.responseBytes = Int64(client?.bodyBytes ?? 0)
        worker.journal(record)
        if let access = request.access {
            logAccess(outcome.errorCode, attempts: outcome.attempts)
            (access.line.inputTokens, access.line.outputTokens) = (record.inputTokens, record.outputTokens)
            if access.line.status == nil { access.line.status = outcome.status }
        }
        worker.scoreboard.add(.turnsFinished, worker: worker.slot)
        if !outcome.errorCode.isEmpty { worker.scoreboard.add(.turnsFailed, worker: worker.slot) }
        worker.scoreboard.add(.requestBytes, worker: worker.slot, request.receivedBytes)
        worker.scoreboard.add(.turnsOpen, worker: worker.slot, -1)
        worker.log.debug(
            "turn finished",
            metadata: [
                "request_id": "\(request.id)", "route": "\(request.route.rawValue)",
                "model": "\(ask.model.cut(utf8: Limits.recordModelBytesMax))", "status": "\(outcome.status)",
                "code": "\(outcome.errorCode)", "account": "\(account?.value.name ?? "")", "attempts": "\(outcome.attempts)",
                "duration_ms": "\(record.durationMilliseconds)",
            ])
    }

    /// What a turn knows of its request's line in the access log.
    func logAccess(_ code: String, attempts: Int) {
        guard let access = request.access else { return }
        access.line.account = account?.value.name ?? ""
        access.line.model = ask.model.cut(utf8: Limits.recordModelBytesMax)
        access.line.code = code.cut(utf8: Limits.recordCodeBytesMax)
        access.line.attempts = attempts
    }

    func logRefused(_ status: Int, _ code: String, attempts: Int) {
        worker.log.refused(
            code,
            [
                "request_id": "\(request.id)", "method": "POST", "path": "\(request.route.rawValue)", "status": "\(status)",
                "model": "\(ask.model.cut(utf8: Limits.recordModelBytesMax))", "account": "\(account?.value.name ?? "")",
                "attempts": "\(attempts)",
            ])
    }
}
