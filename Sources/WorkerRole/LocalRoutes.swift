import Exchange
import HTTPWire
import JSONWire
import Logging
import Loop
import Platform
import Schema
import Settings
import Store
import Vocabulary

/// What a worker answers by itself.
enum LocalRoutes {
    static func answer(_ request: ClientRequest, on client: ClientConnection, _ worker: Worker) {
        let mayObserve = worker.gate.mayObserve(request.head, isLocalPeer: client.isLocalPeer)
        switch request.route {
        case .healthLive:
            client.respond(200, "application/json", Array("{\"status\":\"ok\"}".utf8), requestID: request.id)
        case .healthReady:
            ready(request, client, worker, withDetails: mayObserve)
        case .usage:
            usage(request, client, worker)
        default:
            guard mayObserve else {
                return client.respond(
                    ProxyError(
                        status: 401, code: "invalid_api_key", type: "authentication_error",
                        message: worker.settings.metricsToken == nil
                            ? "Metrics are for direct callers on this host while no client key is demanded of them; for others set CODEX_LB_METRICS_TOKEN"
                            : "Send the metrics token: \"Authorization: Bearer …\" with the value of CODEX_LB_METRICS_TOKEN",
                        origin: .downstream),
                    requestID: request.id, [("WWW-Authenticate", "Bearer")])
            }
            client.respond(200, "text/plain; version=0.0.4; charset=utf-8", metrics(worker), requestID: request.id)
        }
    }

    /// 200 while turns can be served; the body tells what is degraded. 503 when draining or when no account could serve.
    private static func ready(_ request: ClientRequest, _ client: ClientConnection, _ worker: Worker, withDetails: Bool) {
        let board = worker.scoreboard
        let now = Clock.now
        let active = worker.accounts.all.filter { $0.value.state == .active }
        let needingLogin = worker.accounts.all.filter { $0.value.state.needsLogin }
        let limited = active.filter { board.cooldown(account: $0.value.slot, owner: $0.value.id, now: now)?.isLimit == true }
        let waiting = worker.usageJournal.usedBytes
        let hasRoom = worker.usageJournal.hasRoom()
        let schema = board.value(.schemaRevision)
        let isBehind = schema > 0 && schema < Schema.head.number
        let database =
            worker.isStoreAway(now: now)
            ? "unreachable"
            : board.checkResult == .damaged
                ? "damaged"
                : isBehind ? "schema not upgraded" : board.value(.logHeldBytes) > 0 ? "log held by a reader" : "ok"
        var status = database == "ok" ? "ok" : "degraded"
        if board.value(.recordsRefused) > 0 { status = "degraded" }
        if active.isEmpty || !hasRoom { status = "unavailable" }
        if worker.isDraining { status = "draining" }
        let code = status == "ok" || status == "degraded" ? 200 : 503
        guard withDetails else {
            return client.respond(code, "application/json", Array("{\"status\":\"\(status)\"}".utf8), requestID: request.id)
        }
        let body =
            "{\"status\":\"\(status)\",\"checks\":{\"database\":\"\(database)\",\"accounts\":\"\(active.isEmpty ? "none active" : needingLogin.isEmpty ? "ok" : "login needed")\"},"
            + "\"accounts\":{\"configured\":\(worker.accounts.all.count),\"active\":\(active.count),\"limited\":\(limited.count),"
            + "\"reauth_required\":\(needingLogin.count)},"
            + "\"records\":{\"refused\":\(board.value(.recordsRefused))},"
            + "\"journal\":{\"bytes\":\(waiting),\"capacity\":\(worker.usageJournal.capacity)},\"snapshot_version\":\(worker.snapshot?.version ?? 0),"
            + "\"schema\":{\"revision\":\"\(schema > 0 ? Schema.name(schema) : "")\",\"expected\":\"\(Schema.head.id)\"}}"
        client.respond(code, "application/json", Array(body.utf8), requestID: request.id)
    }

    /// What the caller's key has used; without a key, which only callers on this host may lack, what all requests have.
    private static func usage(_ request: ClientRequest, _ client: ClientConnection, _ worker: Worker) {
        let read = UsageRead(worker, request, client)
        client.answered(by: read)
        read.start()
    }

    /// Prometheus text, summed over all workers by the scoreboard: any worker can be asked.
    static func metrics(_ worker: Worker) -> [UInt8] {
        let board = worker.scoreboard
        var out = ""
        func metric(_ name: String, _ type: String, _ help: String, _ value: Int, labels: String = "") {
            out += "# HELP codex_lb_\(name) \(help)\n# TYPE codex_lb_\(name) \(type)\ncodex_lb_\(name)\(labels) \(value)\n"
        }
        metric("workers_ready", "gauge", "Workers that serve.", board.sum(.ready))
        metric("open_connections", "gauge", "Downstream connections open now.", board.sum(.openConnections))
        metric("connections_accepted_total", "counter", "Downstream connections accepted.", board.sum(.acceptedConnections))
        metric("turns_open", "gauge", "Turns in progress.", board.sum(.turnsOpen))
        metric("turns_total", "counter", "Turns finished.", board.sum(.turnsFinished))
        metric("turns_failed_total", "counter", "Turns that ended with an error code.", board.sum(.turnsFailed))
        out += "# HELP codex_lb_responses_total Answers by class of status.\n# TYPE codex_lb_responses_total counter\n"
        for (label, counter) in [("2xx", Scoreboard.Counter.status2xx), ("4xx", .status4xx), ("5xx", .status5xx)] {
            out += "codex_lb_responses_total{status=\"\(label)\"} \(board.sum(counter))\n"
        }
        metric("failovers_total", "counter", "Attempts moved to another account.", board.sum(.failovers))
        metric("retries_total", "counter", "Attempts repeated on the same account.", board.sum(.retries))
        metric("clients_gone_total", "counter", "Turns whose client went away.", board.sum(.clientsGone))
        metric("admission_refused_total", "counter", "Requests refused before a turn.", board.sum(.admissionRefused))
        metric("request_bytes_total", "counter", "Body bytes received from clients.", board.sum(.requestBytes))
        metric("input_tokens_total", "counter", "Input tokens accounted.", board.sum(.inputTokens))
        metric("output_tokens_total", "counter", "Output tokens accounted.", board.sum(.outputTokens))
        metric("upstream_connects_total", "counter", "Upstream connections made.", board.sum(.upstreamConnects))
        metric("upstream_reused_total", "counter", "Upstream connections reused.", board.sum(.upstreamReused))
        metric("stream_keepalive_sent_total", "counter", "Comments sent into silent streams.", board.sum(.keepaliveComments))
        metric("usage_records_journaled_total", "counter", "Usage records made.", board.sum(.recordsJournaled))
        metric("usage_records_acknowledged_total", "counter", "Usage records committed by the store.", board.sum(.recordsAcknowledged))
        metric(
            "log_lines_dropped_total", "counter", "Log lines that could not be written.",
            board.sum(.logLinesDropped) + board.value(.logLinesDropped))
        metric("schema_revision", "gauge", "Number of the schema's revision.", board.value(.schemaRevision))
        metric(
            "database_reachable", "gauge", "0 while the database takes no records or does not answer: they wait in the journals.",
            worker.isStoreAway(now: Clock.now) ? 0 : 1)
        metric(
            "usage_records_refused", "gauge", "Records that the database refuses, in files until codex-lb db spool retry.",
            board.value(.recordsRefused))
        metric("database_damaged", "gauge", "1 when the check after the start found damage.", board.checkResult == .damaged ? 1 : 0)
        metric(
            "database_log_held_bytes", "gauge",
            "SQLite's log while a reader keeps it from being emptied and it is beyond \(Limits.logBytesMax >> 20) MiB; else 0.",
            board.value(.logHeldBytes))
        metric("buffered_bytes", "gauge", "Bodies and unsent bytes held by all workers.", board.sum(.bufferedBytes))
        metric("buffered_bytes_max", "gauge", "The most they may hold.", worker.memory.bytesMax)
        metric("journal_bytes", "gauge", "Usage records waiting for the store, bytes.", board.sum(.journalBytes))

        let (counts, sum) = board.firstByteHistogram
        out +=
            "# HELP codex_lb_first_byte_seconds From request to first byte of the answer.\n# TYPE codex_lb_first_byte_seconds histogram\n"
        var total = 0
        for (bound, count) in zip(Scoreboard.firstByteBounds, counts) {
            total &+= count
            out += "codex_lb_first_byte_seconds_bucket{le=\"\(Double(bound) / 1000)\"} \(total)\n"
        }
        total &+= counts.last ?? 0
        out += "codex_lb_first_byte_seconds_bucket{le=\"+Inf\"} \(total)\ncodex_lb_first_byte_seconds_sum \(Double(sum) / 1000)\n"
        out += "codex_lb_first_byte_seconds_count \(total)\n"

        out += "# HELP codex_lb_account_in_flight Turns open on an account.\n# TYPE codex_lb_account_in_flight gauge\n"
        for account in worker.accounts.all {
            out += "codex_lb_account_in_flight{account=\"\(label(account.value))\"} \(board.inFlight(account: account.value.slot))\n"
        }
        out += "# HELP codex_lb_account_available Whether an account can be chosen now.\n# TYPE codex_lb_account_available gauge\n"
        let now = Clock.now
        for account in worker.accounts.all {
            let isFree =
                account.value.state == .active && board.cooldown(account: account.value.slot, owner: account.value.id, now: now) == nil
            out += "codex_lb_account_available{account=\"\(label(account.value))\"} \(isFree ? 1 : 0)\n"
        }
        out += "# HELP codex_lb_account_quota_used_ratio Part of a login's quota window that is used up, as its upstream last said.\n"
        out += "# TYPE codex_lb_account_quota_used_ratio gauge\n"
        for account in worker.accounts.all where account.value.kind == .chatGPT {
            for window in Scoreboard.Window.allCases {
                guard let quota = board.quota(account: account.value.slot, window, now: Clock.wall) else { continue }
                out += "codex_lb_account_quota_used_ratio{account=\"\(label(account.value))\",window=\"\(window)\"} "
                out += "\(Double(quota.usedPermille) / 1000)\n"
            }
        }
        return Array(out.utf8)
    }

    /// An account's name; one with an e-mail address in it is told by its number, for metrics travel far.
    private static func label(_ account: Account) -> String {
        guard !account.name.contains("@") else { return "account-\(account.id)" }
        var out = ""
        for c in account.name { out += c == "\\" ? "\\\\" : c == "\"" ? "\\\"" : c == "\n" ? "\\n" : String(c) }
        return out
    }
}

/// A read of usage. It waits for a connection to a shared database no longer than until that is known to be away.
private final class UsageRead: Answering {
    private let worker: Worker
    private let request: ClientRequest
    /// Nil once the answer is given or nobody waits for it.
    private var client: ClientConnection?

    init(_ worker: Worker, _ request: ClientRequest, _ client: ClientConnection) {
        (self.worker, self.request, self.client) = (worker, request, client)
    }

    func start() {
        guard !giveUpIfAway(worker.loop.now) else { return }
        worker.totals(ofKey: request.key?.id) { [self] result in
            switch result {
            case .success(let totals): tell(totals)
            case .failure(let error):
                // Whatever is wrong with the store, the caller's key is good: never 401 or 403.
                worker.log.warning("usage can't be read", metadata: ["request_id": "\(request.id)", "error": "\(error)"])
                if error.kind == .poolTimeout {
                    refuse("database_pool_timeout", "No database connection became free in time. Try again in 5s")
                } else {
                    refuse("database_unavailable", "The database does not answer. Try again in 5s")
                }
            }
        }
    }

    private func tell(_ totals: UsageTotals) {
        let dollars = Double(totals.costMicrodollars) / 1_000_000
        let body =
            "{\"request_count\":\(totals.requests),\"total_tokens\":\(totals.totalTokens),\"input_tokens\":\(totals.inputTokens),"
            + "\"cached_input_tokens\":\(totals.cachedInputTokens),\"output_tokens\":\(totals.outputTokens),\"total_cost_usd\":\(dollars),\"limits\":[]}"
        taken()?.respond(200, "application/json", Array(body.utf8), requestID: request.id)
    }

    private func refuse(_ code: String, _ message: String) {
        taken()?.respond(
            ProxyError(status: 503, code: code, type: "server_error", message: message, origin: .ourselves, retryAfterSeconds: 5),
            requestID: request.id)
    }

    private func taken() -> ClientConnection? {
        defer { client = nil }
        return client
    }

    private func giveUpIfAway(_ now: Instant) -> Bool {
        guard worker.settings.database.sqlitePath == nil, worker.isStoreAway(now: now) else { return false }
        refuse("database_unavailable", "The database does not answer. Try again in 5s")
        return true
    }

    func sweep(_ now: Instant) { _ = giveUpIfAway(now) }
    func clientGone() { client = nil }
    func clientDrained() {}
    func cut() { refuse("proxy_unavailable", "codex-lb is shutting down") }
}
