import DaemonHarness
import Foundation
import Testing
import Vocabulary

@testable import Schema
@testable import Store

private let root = Author("root (0)", at: now)

/// Goal: each change of an operator leaves one row that says what was before, and no secret; nothing else leaves any.
@Suite(.serialized) struct AuditTests {
    /// What the newest row says, when `body` has made exactly one.
    private func noted(_ store: StoreSession, _ body: () throws -> Void) throws -> AuditEntry {
        let before = try store.count("audit")
        try body()
        #expect(try store.count("audit") == before + 1)
        return try #require(try store.audit(last: 1).first)
    }

    private func change(_ fill: (inout AccountChange) -> Void) -> AccountChange {
        var change = AccountChange()
        fill(&change)
        return change
    }

    private func login(_ name: String, _ known: NewAccount.Known, token: String) -> NewAccount {
        NewAccount(
            name: name, kind: .chatGPT, baseURL: "",
            credentials: .init(
                bearer: "bearer-\(token)", refreshToken: "refresh-\(token)", idToken: "x.eyJzdWIiOiJwIn0.", chatGPTAccountID: "w"),
            known: known)
    }

    @Test("Each action leaves one row with what was before and what is", arguments: Database.both)
    func actions(_ kind: Database) throws {
        let store = try Ground(kind).open()
        func expect(_ action: String, _ subject: String, _ detail: String, _ body: () throws -> Void) throws {
            let entry = try noted(store, body)
            #expect((entry.actor, entry.at, entry.action, entry.subject) == ("root (0)", now, action, subject))
            #expect(entry.detail == detail, "\(action)")
        }
        try expect(
            "accounts.add", "one",
            #"{"kind":{"old":null,"new":"api_key"},"base_url":{"old":null,"new":"https://api.openai.com/v1"},"state":{"old":null,"new":"active"},"credentials":"set"}"#
        ) { _ = try store.putAccount(account("one"), now: now, by: root) }
        let options = change {
            ($0.policy, $0.weight, $0.streamsMax, $0.models, $0.isOverflow) = (.preserve, 300, 5, ["gpt-5"], true)
        }
        try expect(
            "accounts.set", "one",
            #"{"policy":{"old":"normal","new":"preserve"},"weight":{"old":100,"new":300},"streams_max":{"old":null,"new":5},"models":{"old":null,"new":["gpt-5"]},"overflow":{"old":false,"new":true}}"#
        ) { _ = try store.setAccount("one", options, now: now, by: root) }
        try expect("accounts.set", "one", #"{"streams_max":{"old":5,"new":null}}"#) {
            _ = try store.setAccount("one", change { ($0.streamsMax, $0.weight) = (0, 300) }, now: now, by: root)
        }
        try expect(
            "accounts.set", "one",
            #"{"headers":{"old":[],"new":["x-a","x-b"]},"proxy":{"old":null,"new":"http://proxy:3128"},"proxy_credentials":"set"}"#
        ) {
            let change = change {
                $0.headers = [Account.Header("x-a", "1"), Account.Header("x-b", "2")]
                $0.proxy = "http://u:p@proxy:3128"
            }
            _ = try store.setAccount("one", change, now: now, by: root)
        }
        try expect("accounts.set", "one", #"{"headers":{"old":["x-a","x-b"],"new":["x-b"]},"header_values":"changed"}"#) {
            _ = try store.setAccount("one", change { $0.headers = [Account.Header("x-b", "3")] }, now: now, by: root)
        }
        try expect("accounts.set", "one", #"{"proxy_credentials":"changed"}"#) {
            _ = try store.setAccount("one", change { $0.proxy = "http://u:other@proxy:3128" }, now: now, by: root)
        }
        try expect("accounts.set", "one", #"{"proxy":{"old":"http://proxy:3128","new":null},"proxy_credentials":"removed"}"#) {
            _ = try store.setAccount("one", change { $0.proxy = "" }, now: now, by: root)
        }
        try expect("accounts.pause", "one", #"{"state":{"old":"active","new":"paused"}}"#) {
            _ = try store.setAccountState("one", .paused, now: now, by: root)
        }
        try expect("accounts.resume", "one", #"{"state":{"old":"paused","new":"active"}}"#) {
            _ = try store.setAccountState("one", .active, now: now, by: root)
        }
        var other = account("one")
        (other.known, other.credentials.bearer) = (.replaced, "sk-other")
        other.baseURL = "https://user:pw@api.openai.com/v1?key=q"
        try expect(
            "accounts.replace", "one", #"{"base_url_query":"set","credentials":"changed","headers":{"old":["x-b"],"new":[]}}"#
        ) { _ = try store.putAccount(other, now: now, by: root) }
        _ = try noted(store) { _ = try store.putAccount(login("me", .renewed(byName: false), token: "1"), now: now, by: root) }
        try expect("accounts.renew", "me", #"{"credentials":"changed"}"#) {
            _ = try store.putAccount(login("me", .renewed(byName: false), token: "2"), now: now, by: root)
        }
        try expect(
            "accounts.remove", "one",
            #"{"kind":{"old":"api_key","new":null},"base_url":{"old":"https://api.openai.com/v1","new":null},"base_url_query":"removed","state":{"old":"active","new":null},"policy":{"old":"preserve","new":null},"weight":{"old":300,"new":null},"models":{"old":["gpt-5"],"new":null},"overflow":{"old":true,"new":null},"credentials":"removed"}"#
        ) { _ = try store.removeAccount("one", now: now, by: root) }

        try expect("keys.create", "laptop", #"{"state":{"old":null,"new":"active"}}"#) {
            _ = try store.createClientKey("laptop", models: nil, expiresAt: nil, now: now, by: root)
        }
        let end = WallTime(milliseconds: now.milliseconds + 1000)
        try expect(
            "keys.create", "phone",
            #"{"state":{"old":null,"new":"active"},"models":{"old":null,"new":["gpt-5"]},"expires_at":{"old":null,"new":"\#(end.rfc3339)"}}"#
        ) { _ = try store.createClientKey("phone", models: ["gpt-5"], expiresAt: end, now: now, by: root) }
        try expect("keys.revoke", "laptop", #"{"state":{"old":"active","new":"revoked"}}"#) {
            _ = try store.revokeClientKey("laptop", now: now, by: root)
        }
        try expect("settings.set", "routing.strategy", #"{"value":{"old":null,"new":"fill_first"}}"#) {
            try store.set("routing.strategy", to: "fill_first", by: root)
        }
        try expect("settings.set", "routing.strategy", #"{"value":{"old":"fill_first","new":"round_robin"}}"#) {
            try store.set("routing.strategy", to: "round_robin", by: root)
        }
        try expect("settings.unset", "routing.strategy", #"{"value":{"old":"round_robin","new":null}}"#) {
            _ = try store.unset("routing.strategy", by: root)
        }
        let all = try store.audit(last: 1_000)
        #expect(all.map(\.id) == (1...Int64(all.count)).reversed(), "numbers without gaps, newest first")
        #expect(try store.audit(last: 2) == Array(all.prefix(2)) && store.audit(last: 0).isEmpty)
    }

    @Test("A change that fails and one that changes nothing leave no row, nor does what is nobody's order", arguments: Database.both)
    func none(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        let one = try store.addAccount(account("one"), now: now)
        _ = try store.putAccount(login("me", .refused, token: "1"), now: now)
        _ = try store.createClientKey("k", models: nil, expiresAt: nil, now: now)
        try store.set("routing.strategy", to: "fill_first")
        func fails(_ body: () throws(StoreError) -> Void) { #expect(failure(body) != nil) }
        fails { () throws(StoreError) in _ = try store.putAccount(account("one"), now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.setAccount("nobody", change { $0.weight = 5 }, now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.setAccount("one", change { $0.weight = 0 }, now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.setAccountState("nobody", .paused, now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.removeAccount("nobody", now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.createClientKey("k", models: nil, expiresAt: nil, now: now, by: root) }
        fails { () throws(StoreError) in _ = try store.revokeClientKey("nobody", now: now, by: root) }
        fails { () throws(StoreError) in try store.set("routing.strategy", to: "nonsense", by: root) }
        fails { () throws(StoreError) in try store.set("routing.single_account", to: "nobody", by: root) }
        // What fails after its row was written takes it along.
        var keyless = account("keyless")
        (keyless.credentials, keyless.change.headers) = (.init(bearer: ""), [Account.Header("api-key", "x")])
        _ = try store.addAccount(keyless, now: now)
        fails { () throws(StoreError) in _ = try store.setAccount("keyless", change { $0.headers = [] }, now: now, by: root) }
        struct Stop: Error {}
        let stopped = failure { () throws(StoreError) in
            try store.change { () throws(StoreError) in
                try store.note(root, .set, "x", AuditDetail(setting: nil, to: "y"))
                throw StoreError(.other, "stop")
            }
        }
        #expect(stopped?.message == "stop")

        let version = try store.snapshot().version
        try store.set("routing.strategy", to: "fill_first", by: root)
        _ = try store.unset("routing.single_account", by: root)
        _ = try store.setAccount("one", change { ($0.weight, $0.models) = (100, []) }, now: now, by: root)
        _ = try store.setAccountState("one", .active, now: now, by: root)
        var same = account("one")
        same.known = .replaced
        _ = try store.putAccount(same, now: now, by: root)
        _ = try store.putAccount(login("me", .renewed(byName: true), token: "1"), now: now, by: root)
        #expect(try store.snapshot().version > version)

        let present = try #require(try store.snapshot().accounts.first { $0.name == "one" })
        #expect(try store.renewLogin(account: one.id, changedAt: present.changedAt, .init(bearer: "new"), now: now))
        let renewed = try #require(try store.snapshot().accounts.first { $0.name == "one" })
        try store.learn([HealthFact().fact(of: one.id, at: now)], now: now)
        #expect(try store.takeOut(AccountRemoval(renewed, .deactivated, reason: "x"), now: now))
        #expect(try store.count("audit") == 0)
        store.close()
        #expect(try ground.check() == [])
    }

    @Test("To resume an active account is a change where something was held against it", arguments: Database.both)
    func cleared(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let one = try store.addAccount(account("one"), now: now).id
        let held = HealthFact(cooldown: (WallTime(milliseconds: now.milliseconds + 9_000), .limit))
        try store.learn([held.fact(of: one, at: now)], now: now)
        let later = WallTime(milliseconds: now.milliseconds + 1)
        let entry = try noted(store) { _ = try store.setAccountState("one", .active, now: later, by: root) }
        #expect(entry.action == "accounts.resume" && entry.detail == #"{"health":"cleared"}"#)
        _ = try store.setAccountState("one", .active, now: later, by: root)
        #expect(try store.count("audit") == 1)
    }

    @Test("No secret is in the table, nor anywhere in the file", arguments: Database.both)
    func secrets(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        let word = "s3cretWord"
        var plain: [String] = []
        for round in 1...2 {
            var new = account("one")
            new.known = .replaced
            new.baseURL = "https://\(word)-user:\(word)-pw@host.example/v1?key=\(word)-\(round)"
            new.credentials = .init(
                bearer: "\(word)-bearer-\(round)", refreshToken: "\(word)-refresh-\(round)", idToken: "\(word)-id",
                chatGPTAccountID: "\(word)-workspace")
            new.change.headers = [Account.Header("api-key", "\(word)-value-\(round)")]
            new.change.proxy = "socks5://\(word)-name:\(word)-\(round)@proxy"
            _ = try store.putAccount(new, now: now, by: root)
            let change = change {
                $0.headers = [Account.Header("api-key", "\(word)-other-\(round)"), Account.Header("x", "\(word)")]
                $0.proxy = "https://\(word):\(word)-set-\(round)@proxy"
            }
            _ = try store.setAccount("one", change, now: now, by: root)
            plain.append(try store.createClientKey("k\(round)", models: nil, expiresAt: nil, now: now, by: root).plain)
            _ = try store.revokeClientKey("k\(round)", now: now, by: root)
        }
        _ = try store.removeAccount("one", now: now, by: root)
        let rows = try store.audit(last: 100)
        #expect(rows.count == 9)
        let text = rows.map { "\($0.actor) \($0.action) \($0.subject) \($0.detail)" }.joined(separator: "\n")
        #expect(text.contains("https://host.example/v1") && text.contains("socks5://proxy:1080") && text.contains("api-key"))
        #expect(!text.contains(word) && !plain.contains { text.contains($0.dropFirst(7)) }, "\(text)")
        // Base URLs are not sealed: nothing but the account's own column holds them.
        try store.connection.change("UPDATE accounts SET base_url = 'x'", [])
        guard kind == .sqlite else { return }
        try store.connection.execute("VACUUM")
        _ = try store.connection.rows("PRAGMA wal_checkpoint(TRUNCATE)", []) { $0.int(0) }
        store.close()
        let bytes = try Data(contentsOf: URL(fileURLWithPath: ground.folder + "/store.db"))
        #expect(bytes.range(of: Data("socks5://proxy:1080".utf8)) != nil)
        for secret in [word] + plain.map({ String($0.dropFirst(7)) }) { #expect(bytes.range(of: Data(secret.utf8)) == nil, "\(secret)") }
    }

    @Test("What is long is cut, what can't be printed is escaped, and the row stays a JSON object", arguments: Database.both)
    func text(_ kind: Database) throws {
        let store = try Ground(kind).open()
        let author = Author("evil\u{202E}\u{1B}[2J\0 " + String(repeating: "a", count: 5_000), at: now)
        let models = (0..<Limits.accountModelsMax).map { "model-\($0)-" + String(repeating: "m", count: 200) }
        _ = try store.addAccount(account("one"), now: now)
        _ = try store.setAccount("one", change { $0.models = models }, now: now, by: author)
        let alias = "models.alias." + String(repeating: "x", count: 100)
        try store.set(alias, to: String(repeating: "y", count: 200), by: author)
        for entry in try store.audit(last: 2) {
            #expect(entry.actor.hasPrefix(#"evil\u202e\u001b[2J\u0000 aaa"#) && entry.actor.utf8.count <= Limits.auditTextBytesMax)
            #expect(entry.actor.unicodeScalars.allSatisfy { $0.isPlain })
            #expect(entry.detail.utf8.count < 20_000)
            let json = try JSONSerialization.jsonObject(with: Data(entry.detail.utf8)) as? [String: Any]
            if let list = (json?["models"] as? [String: Any])?["new"] as? [String] {
                #expect(list.count == Limits.auditListMax + 1 && list.last == "and \(models.count - Limits.auditListMax) more")
            } else {
                #expect(entry.subject == alias && json?["value"] != nil)
            }
        }
    }

    @Test("Beyond their greatest number the oldest rows go", arguments: Database.both)
    func bounded(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        let max = Limits.auditRowsMax
        try store.connection.change(
            """
            WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < \(max - 1))
            INSERT INTO audit (id, at_ms, actor, action, subject, detail) SELECT i, i, 'a', 'settings.set', 's', '{}' FROM n
            """, [])
        for value in ["fill_first", "round_robin", "fill_first"] { try store.set("routing.strategy", to: value, by: root) }
        #expect(try store.count("audit") == Int64(max))
        let ends = try store.connection.rows("SELECT min(id), max(id) FROM audit", []) { [$0.int(0), $0.int(1)] }
        #expect(ends == [[3, Int64(max) + 2]])
        // A number that somebody else has written far ahead takes no other row with it.
        try store.connection.change("UPDATE audit SET id = $1 WHERE id = $2", [.int(1 << 60), .int(Int64(max) + 2)])
        for value in ["round_robin", "fill_first"] { try store.set("routing.strategy", to: value, by: root) }
        #expect(try store.count("audit") == Int64(max))
        #expect(try store.audit(last: 1).map(\.id) == [1 << 60 + 2])
        // The greatest number there is holds up no order.
        try store.connection.change("UPDATE audit SET id = $1 WHERE id = $2", [.int(.max), .int(1 << 60 + 2)])
        try store.set("routing.strategy", to: "round_robin", by: root)
        #expect(try store.audit(last: 2).map(\.id) == [.max, 1 << 60 + 2])
        store.close()
        #expect(try ground.check() == [])
    }

    @Test("On an older schema all works as before and nothing is noted; from the revision on it is", arguments: Database.both)
    func older(_ kind: Database) throws {
        let ground = try Ground(kind)
        var store = try ground.open(revisions: Array(Schema.revisions.prefix(Schema.auditRevision - 1)))
        #expect(!store.hasAudit)
        _ = try store.putAccount(account("one"), now: now, by: root)
        _ = try store.setAccount("one", change { $0.weight = 5 }, now: now, by: root)
        _ = try store.setAccountState("one", .paused, now: now, by: root)
        _ = try store.createClientKey("k", models: nil, expiresAt: nil, now: now, by: root)
        _ = try store.revokeClientKey("k", now: now, by: root)
        try store.set("routing.strategy", to: "fill_first", by: root)
        _ = try store.unset("routing.strategy", by: root)
        _ = try store.removeAccount("one", now: now, by: root)
        let told = failure { () throws(StoreError) in _ = try store.audit(last: 1) }
        #expect(told?.kind == .older && told?.message.contains("0007") == true)
        #expect(try !store.connection.hasTable("audit"))
        store.close()
        store = try ground.open()
        #expect(store.applied == [Schema.name(Schema.auditRevision)] && store.hasAudit)
        try store.set("routing.strategy", to: "fill_first", by: root)
        #expect(try store.audit(last: 10).map(\.action) == ["settings.set"])
    }

    @Test("Instances that share a database number their changes one after the other")
    func shared() throws {
        let ground = try Ground(.postgresql)
        let first = try ground.open()
        let sessions = try [first] + (0..<3).map { _ in try ground.join() }
        DispatchQueue.concurrentPerform(iterations: sessions.count) { i in
            for n in 0..<20 {
                let problem = failure { () throws(StoreError) in
                    try sessions[i].set("models.alias.a\(i)", to: "gpt-\(n)", by: Author("uid \(i)", at: now))
                }
                #expect(problem == nil)
            }
        }
        let all = try first.audit(last: 1_000)
        #expect(all.map(\.id) == (1...80).reversed())
        for i in sessions.indices { #expect(all.count { $0.actor == "uid \(i)" } == 20) }
    }

    @Test("A change of the encryption key is noted", arguments: Database.both)
    func rotation(_ kind: Database) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        _ = try KeyRotation(store, keyPath: ground.key, by: root).run()
        let entry = try #require(try store.audit(last: 2).first)
        #expect(entry.action == "key.rotate" && entry.detail == #"{"encryption_key":"changed"}"#)
    }
}

@Suite struct OperatorTests {
    @Test("Root may say who became root by sudo; nobody else is believed")
    func words() {
        let alice = Operator.User(1000, "alice")
        #expect("\(Operator(.init(0, "root")))" == "root (0)")
        #expect("\(Operator(.init(0, "root"), sudoer: alice))" == "alice (1000) by sudo")
        #expect("\(Operator(.init(7, "svc"), sudoer: alice))" == "svc (7)")
        #expect("\(Operator(.init(7, "")))" == "uid 7")
        let environment = ["SUDO_UID": "1000", "SUDO_USER": "alice"]
        #expect("\(Operator(.init(0, "root"), environment: environment))" == "alice (1000) by sudo")
        #expect("\(Operator(.init(7, "svc"), environment: environment))" == "svc (7)")
        for odd in ["", "-1", "4294967296", "x"] {
            #expect("\(Operator(.init(0, "root"), environment: ["SUDO_UID": odd, "SUDO_USER": "alice"]))" == "root (0)")
        }
    }
}
