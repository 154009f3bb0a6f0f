internal import Settings
internal import Store

/// What an SQLSTATE (PostgreSQL manual, appendix A) means for us.
enum PostgresFailure {
    static func kind(_ state: String) -> StoreError.Kind {
        switch state {
        case "40001", "40P01": .conflict
        case "25006": .readOnly
        case "53300": .exhausted
        case "53100", "53200": .full
        case "55P03", "57014": .busy
        case "28P01", "28000", "3D000", "42501": .refused
        case "XX001", "XX002": .corrupt
        case "": .unreachable
        case _ where state.hasPrefix("08") || state.hasPrefix("57P"): .unreachable
        case _ where state.hasPrefix("58"): .io
        case _ where state.hasPrefix("23"): .constraint
        case _ where state.hasPrefix("22"): .invalid
        default: .other
        }
    }

    /// What to do about a statement's failure; empty where its own words must do.
    static func advice(_ state: String, _ text: String) -> String {
        guard state == "42501" else { return "" }
        return text.contains("schema")
            ? "; let the role make tables there: GRANT USAGE, CREATE ON SCHEMA public TO the role, or ALTER DATABASE … OWNER TO it"
            : "; the tables belong to another role: give them to this one (REASSIGN OWNED), or use that one in CODEX_LB_DATABASE_URL"
    }

    /// Whether the connection is worth nothing any more: what comes next needs another one.
    static func evicts(_ kind: StoreError.Kind) -> Bool {
        switch kind {
        case .unreachable, .readOnly, .exhausted, .io, .refused: true
        default: false
        }
    }

    /// Whether the values of the statement are at fault: the same batch would fail for ever.
    static func isPoison(_ kind: StoreError.Kind) -> Bool { kind == .invalid || kind == .constraint }

    /// An error of a connection that could not be made. `text` is libpq's, verbose, so that a server's SQLSTATE stands in it.
    static func connecting(_ text: String, _ target: PostgresTarget, _ host: PostgresURL.Host) -> StoreError {
        let place = target.place(host)
        var state = ""
        var reason = text.split(separator: "\n").first.map(String.init) ?? "no reason given"
        if let range = reason.firstRange(of: #/(FATAL|ERROR|PANIC):\s+([0-9A-Z]{5}): /#) {
            state = String(reason[range].dropLast(2).suffix(5))
            reason = String(reason[range.upperBound...])
        } else if let range = reason.firstRange(of: " failed: ") {
            // `connection to server at "…", port … failed: …`: the place is said already.
            reason = String(reason[range.upperBound...])
        }
        if reason.contains("session is read-only") || reason.contains("hot standby") || reason.contains("session is not read-only")
            || reason.contains("not in hot standby")
        {
            return StoreError(
                .readOnly, "\(place): \(reason); waiting for a server that takes writes (all hosts of the URL are tried in turn)")
        }
        let lower = reason.lowercased()
        if state.isEmpty, lower.contains("invalid connection option") || lower.contains("invalid") && lower.contains("value") {
            return StoreError(.refused, "\(place): \(reason); correct the parameters of CODEX_LB_DATABASE_URL")
        }
        if state.isEmpty, lower.contains("no password supplied") {
            return StoreError(
                .refused, "\(place): the server wants a password and there is none; give it in CODEX_LB_DATABASE_URL or ~/.pgpass")
        }
        // "SSL SYSCALL error" is a connection that broke in the handshake: a server that restarts does that.
        if state.isEmpty, lower.contains("ssl") && !lower.contains("ssl syscall") || lower.contains("certificate") {
            return StoreError(
                .refused,
                "\(place): TLS: \(reason); check sslmode and sslrootcert of the URL, and ssl in the server's postgresql.conf")
        }
        let kind = kind(state)
        let advice: String
        switch state {
        case "28P01": advice = "check user and password in CODEX_LB_DATABASE_URL"
        case "28000":
            advice = "check the user, and the server's pg_hba.conf: it must allow this host, with or without TLS as sslmode says"
        case "3D000": advice = "create it: createdb -O \(target.url.user ?? "USER") \(target.url.database ?? "DATABASE")"
        case "53300":
            advice = "the server's max_connections are taken; lower CODEX_LB_DATABASE_POOL_SIZE or use pgbouncer"
        case "57P03", "57P01", "57P02": advice = "the server is starting or stopping"
        default:
            advice =
                host.isDirectory
                ? "check that PostgreSQL runs (systemctl status postgresql) and that its socket is in \(host.name)"
                : "check that PostgreSQL runs (pg_isready -h \(host.name) -p \(host.port)), that listen_addresses has this address, and the firewall"
        }
        return StoreError(kind == .other ? .unreachable : kind, "\(place): \(reason); \(advice)")
    }
}
