import Bytes
internal import Sealing
public import Vocabulary

/// The encryption key of a store and what is sealed with it. Contexts bind a sealed value to its row and column.
public struct Vault: Sendable {
    private let key: SealingKey
    private static let keptContext = "supervisor|memory|snapshot|1"
    private static let pepperContext = "state|pepper|value|1"
    private static func credentialsContext(_ id: Int64) -> String { "accounts|\(id)|credentials|1" }

    /// Sixteen hex digits to recognise the key by.
    public var fingerprint: String { key.fingerprint }

    /// The key that `connection`'s database is sealed with, from its file. A database that has no key yet gets one: the file is made
    /// unless `makesKey` is false.
    public static func open(_ connection: any SQLConnection, keyPath: String, makesKey: Bool = true) throws(StoreError) -> Vault {
        let sealedWith = try connection.hasTable("state") ? try connection.rows(Queries.keyFingerprint).first : nil
        guard let sealedWith else {
            guard makesKey else { throw StoreError(.older, "\(connection.place) has no key yet; run: codex-lb db upgrade") }
            return Vault(key: try sealing { () throws(SealingError) in try KeyFile.loadOrCreate(path: keyPath) })
        }
        return try load(sealedWith: sealedWith, keyPath: keyPath, place: connection.place)
    }

    /// The key of the file, which must be the one that the database is sealed with. When it is the next one (a rotation that was cut after
    /// its COMMIT), that takes its place.
    public static func load(sealedWith fingerprint: String, keyPath: String, place: String) throws(StoreError) -> Vault {
        func read(_ path: String) throws(StoreError) -> SealingKey? {
            try sealing { () throws(SealingError) in try KeyFile.load(path: path) }
        }
        var key = try read(keyPath)
        if let key, key.fingerprint == fingerprint { return Vault(key: key) }
        if let next = try read(KeyFile.next(keyPath)), next.fingerprint == fingerprint {
            // It is the right one wherever it is: a directory that can't be written keeps nobody from using it.
            _ = try? KeyFile.keepOld(keyPath)  // see above
            try? KeyFile.takeNext(keyPath)  // see above
            return Vault(key: next)
        }
        // Another process may have put it in its place between the two looks.
        key = try read(keyPath)
        if let key, key.fingerprint == fingerprint { return Vault(key: key) }
        let old = KeyFile.old(keyPath, fingerprint)
        let isKept = try read(old) != nil
        let what =
            key.map { "\(keyPath) (\($0.fingerprint)) is not the encryption key of \(place)" }
            ?? "\(keyPath) is missing, the encryption key of \(place)"
        throw StoreError(
            .wrongKey,
            isKept
                ? "\(what), which is sealed with key \(fingerprint), the one before a rotation; put that back: cp -p \(old) \(keyPath)"
                : "\(what), which is sealed with key \(fingerprint); put the right file back, or copy it from the instance that shares the database"
        )
    }

    /// The key that a rotation goes over to, made when missing: one that an earlier try has left may be in the store already. It is on disk.
    static func next(keyPath: String) throws(StoreError) -> Vault {
        try sealing { () throws(SealingError) in
            let key = try KeyFile.loadOrCreate(path: KeyFile.next(keyPath))
            try KeyFile.syncDirectory(of: keyPath)
            return Vault(key: key)
        }
    }

    static func keepOld(keyPath: String) throws(StoreError) -> String? {
        try sealing { () throws(SealingError) in try KeyFile.keepOld(keyPath) }
    }
    static func takeNext(keyPath: String) throws(StoreError) {
        try sealing { () throws(SealingError) in try KeyFile.takeNext(keyPath) }
    }

    /// The same credentials, sealed with `other`'s key.
    func move(_ credentials: [UInt8], account id: Int64, to other: Vault) throws(StoreError) -> [UInt8] {
        try move(credentials, context: Self.credentialsContext(id), to: other)
    }

    /// The same pepper, sealed with `other`'s key, as it stands in the store.
    func move(pepper: [UInt8], to other: Vault) throws(StoreError) -> String {
        Base64.url.encode(try move(Self.sealedPepper(pepper), context: Self.pepperContext, to: other))
    }

    private func move(_ sealed: [UInt8], context: String, to other: Vault) throws(StoreError) -> [UInt8] {
        try Self.sealing { () throws(SealingError) in try other.key.seal(key.open(sealed, context: context), context: context) }
    }

    /// Gives a database whose schema is there but that holds nothing its first facts.
    public func initialise(_ connection: any SQLConnection) throws(StoreError) {
        // Whoever was quicker on a new database may have another key.
        if let sealedWith = try connection.rows(Queries.keyFingerprint).first { return try expect(sealedWith, connection) }
        let pepper = try Self.sealing { () throws(SealingError) in
            try key.seal(SecureRandom.bytes(32), context: Self.pepperContext)
        }
        try connection.transaction { () throws(StoreError) in
            // Of two instances that start on one new database the second leaves what it finds.
            for (name, value) in [
                ("key_fingerprint", key.fingerprint), ("pepper", Base64.url.encode(pepper)), ("snapshot_version", "1"),
            ] {
                try connection.change(
                    "INSERT INTO state (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING", [.text(name), .text(value)])
            }
            try expect(try connection.rows(Queries.keyFingerprint).first ?? "", connection)
        }
    }

    private func expect(_ fingerprint: String, _ connection: any SQLConnection) throws(StoreError) {
        guard fingerprint != key.fingerprint else { return }
        throw StoreError(
            .wrongKey,
            "\(connection.place) has just been sealed by another instance with another key; copy that instance's encryption.key here")
    }

    /// For the supervisor's memory, which nobody needs to trust with what is in the snapshot.
    public func seal(kept snapshot: [UInt8]) throws(StoreError) -> [UInt8] {
        try Self.sealing { () throws(SealingError) in try key.seal(snapshot, context: Self.keptContext) }
    }
    public func open(kept sealed: [UInt8]) throws(StoreError) -> [UInt8] {
        try Self.sealing { () throws(SealingError) in try key.open(sealed, context: Self.keptContext) }
    }

    public func seal(_ credentials: Account.Credentials, account id: Int64) throws(StoreError) -> [UInt8] {
        try Self.sealing { () throws(SealingError) in try key.seal(credentials.packed, context: Self.credentialsContext(id)) }
    }

    /// The sealed bytes of a pepper as it stands in the store: base64url, or in databases from before there were two dialects the bytes
    /// themselves, which begin with 1.
    package static func sealedPepper(_ stored: [UInt8]) -> [UInt8] {
        stored.first == 1 ? stored : Base64.url.decode(String(decoding: stored, as: UTF8.self)) ?? stored
    }

    /// The pepper as text, whatever it stands as.
    static func storedPepper(_ stored: [UInt8]) -> String {
        stored.first == 1 ? Base64.url.encode(stored) : String(decoding: stored, as: UTF8.self)
    }

    func pepper(_ stored: [UInt8]?) throws(StoreError) -> [UInt8] {
        guard let stored else { throw StoreError(.corrupt, "the database has no pepper for client keys; restore a backup") }
        return try Self.sealing { () throws(SealingError) in try key.open(Self.sealedPepper(stored), context: Self.pepperContext) }
    }

    func credentials(of entry: SealedAccount) throws(StoreError) -> Account.Credentials {
        let packed = try Self.sealing { () throws(SealingError) in
            try key.open(entry.sealed, context: Self.credentialsContext(entry.account.id))
        }
        guard let credentials = Account.Credentials(packed: packed) else {
            throw StoreError(.corrupt, "the credentials of the account \(entry.account.name) can't be read; restore a backup")
        }
        return credentials
    }

    /// A snapshot out of the rows that were read in one transaction.
    public func snapshot(
        version: Int64?, accounts: [SealedAccount], keys: [ClientKey], pepper: [UInt8]?, settings: [(String, String)],
        facts: [AccountFact] = []
    ) throws(StoreError) -> Snapshot {
        var opened: [Account] = []
        for entry in accounts {
            var account = entry.account
            account.credentials = try credentials(of: entry)
            opened.append(account)
        }
        return Snapshot(
            version: version ?? 0, accounts: opened, clientKeys: keys, pepper: try self.pepper(pepper),
            settings: Dictionary(settings, uniquingKeysWith: { _, new in new }), facts: facts)
    }

    private static func sealing<T>(_ body: () throws(SealingError) -> T) throws(StoreError) -> T {
        do throws(SealingError) { return try body() } catch {
            throw StoreError(error.kind == .wrongKey || error.kind == .keyFile ? .wrongKey : .corrupt, error.description)
        }
    }
}

/// The plain text inside the seal: four fields, then name and value of each header, and of the proxy if there is one, each a byte that says whether it is there, a 4-byte big-endian length, UTF-8.
extension Account.Credentials {
    var packed: [UInt8] {
        var out: [UInt8] = []
        let fields: [String?] =
            [bearer, refreshToken, idToken, chatGPTAccountID] + headers.flatMap { [String?]([$0.name, $0.value]) }
            + (proxy.map { [Self.proxyName, $0.url] } ?? [])
        for field in fields {
            let bytes = Array((field ?? "").utf8)
            out.append(field == nil ? 0 : 1)
            for shift in [24, 16, 8, 0] { out.append(UInt8(truncatingIfNeeded: bytes.count >> shift)) }
            out += bytes
        }
        return out
    }

    /// No header has such a name.
    private static let proxyName = ":proxy"

    init?(packed: [UInt8]) {
        var fields: [String?] = []
        var rest = packed[...]
        while rest.count >= 5 {
            let isThere = rest.removeFirst() == 1
            let count = rest.prefix(4).reduce(0) { $0 << 8 | Int($1) }
            rest.removeFirst(4)
            guard rest.count >= count else { return nil }
            fields.append(isThere ? String(decoding: rest.prefix(count), as: UTF8.self) : nil)
            rest.removeFirst(count)
        }
        guard fields.count >= 4, fields.count % 2 == 0, rest.isEmpty, let bearer = fields[0] else { return nil }
        self.init(bearer: bearer, refreshToken: fields[1], idToken: fields[2], chatGPTAccountID: fields[3])
        for place in stride(from: 4, to: fields.count, by: 2) {
            guard let name = fields[place], let value = fields[place + 1] else { return nil }
            if name == Self.proxyName {
                guard let proxy = EgressProxy(value) else { return nil }
                self.proxy = proxy
            } else {
                headers.append(Account.Header(name, value))
            }
        }
    }
}
