import ArgumentParser
import ControlWire
import Vocabulary

struct Requests: ParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the newest usage records.")
    @Option(name: .long, help: "How many, 1 to 10000.") var last = 20
    @Flag(name: .long, help: "A JSON array, newest first.") var json = false
    @OptionGroup var data: DataOptions

    func validate() throws {
        guard (1...10_000).contains(last) else { throw ValidationError("--last takes 1 to 10000") }
    }

    func run() throws {
        var command = StoreCommand()
        command.listUsage.last = UInt32(last)
        let rows = try StoreClient.perform(command, data.settings()).usage
        if json {
            print("[" + rows.map { Self.json($0) }.joined(separator: ",\n") + "]")
        } else if rows.isEmpty {
            print("no request yet")
        } else {
            printTable(
                ["TIME", "ROUTE", "ACCOUNT", "KEY", "MODEL", "STATUS", "ERROR", "IN", "CACHED", "OUT", "COST $", "FIRST ms", "TOTAL ms"],
                rows.map { row in
                    let r = row.record
                    return [
                        WallTime(milliseconds: r.timeMs).rfc3339, r.route, row.account, row.key,
                        r.modelServed.isEmpty ? r.modelAsked : r.modelServed,
                        String(r.status), r.errorCode, String(r.inputTokens), String(r.cachedInputTokens), String(r.outputTokens),
                        r.hasCostMicrodollars ? Self.dollars(r.costMicrodollars) : "-", r.hasFirstByteMs ? String(r.firstByteMs) : "-",
                        String(r.durationMs),
                    ]
                })
        }
    }

    static func dollars(_ micro: Int64) -> String {
        let fraction = String((micro % 1_000_000).magnitude)
        return "\(micro / 1_000_000)." + String(repeating: "0", count: max(0, 6 - fraction.count)) + fraction
    }

    static func json(_ row: UsageRow) -> String {
        let r = row.record
        return JSONText.object([
            ("id", .string(RecordID(high: r.idHigh, low: r.idLow).description)),
            ("time", .string(WallTime(milliseconds: r.timeMs).rfc3339)),
            ("route", .string(r.route)), ("request_id", .string(r.requestID)), ("key", r.hasKeyID ? .string(row.key) : .null),
            ("account", r.hasAccountID ? .string(row.account) : .null),
            ("model", .string(r.modelServed.isEmpty ? r.modelAsked : r.modelServed)), ("model_asked", .string(r.modelAsked)),
            ("status", .int(Int64(r.status))), ("error_code", r.errorCode.isEmpty ? .null : .string(r.errorCode)),
            ("input_tokens", .int(r.inputTokens)), ("cached_input_tokens", .int(r.cachedInputTokens)),
            ("output_tokens", .int(r.outputTokens)),
            ("reasoning_tokens", .int(r.reasoningTokens)), ("cost_microdollars", r.hasCostMicrodollars ? .int(r.costMicrodollars) : .null),
            ("first_byte_ms", r.hasFirstByteMs ? .int(r.firstByteMs) : .null), ("duration_ms", .int(r.durationMs)),
            ("attempts", .int(Int64(r.attempts))), ("request_bytes", .int(r.requestBytes)), ("response_bytes", .int(r.responseBytes)),
        ])
    }
}
