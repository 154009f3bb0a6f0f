import ControlWire
import DaemonHarness
import Foundation
import PostgresStore
import Settings
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema
@testable import Store

#if canImport(Glibc)
    import Glibc
#endif

/// The revision after the newest one.
private let following = Schema.name(Schema.head.number + 1)

/// Goal: each revision is applied once and whole, and both dialects end in one schema.
@Suite(.serialized) struct StoreRevisionTests {
    @Test("The ledger names each revision, its checksum and who applied it", arguments: Database.both)
    func history(_ kind: Database) throws {
        let ground = try Ground(kind)
        #expect(try ground.history().isEmpty)
        let store = try ground.open()
        #expect(store.applied == Schema.revisions.map(\.id) && store.revision == Schema.head.id)
        let history = try ground.history()
        #expect(history.map(\.id) == Schema.revisions.map(\.id) && history.map(\.name) == Schema.revisions.map(\.name))
        #expect(history.map(\.checksum) == Schema.revisions.map { $0.checksum(kind == .sqlite ? .sqlite : .postgresql) })
        #expect(history.allSatisfy { $0.appliedAt == now && $0.appVersion == "contract" && $0.durationMilliseconds >= 0 })
        let (a, b) = (Schema.head.checksum(.sqlite), Schema.head.checksum(.postgresql))
        #expect(a != b, "a ledger would not tell the dialects apart")
    }

    @Test("A revision that fails leaves nothing of itself; the next attempt applies it", arguments: Database.both)
    func failedRevision(_ kind: Database) throws {
        let ground = try Ground(kind)
        func next(_ statements: String...) -> [Revision] {
            Schema.revisions + [Revision(id: following, name: "more", statements: [.sqlite: statements, .postgresql: statements])]
        }
        try ground.open().close()
        let broken = failure { () throws(StoreError) in
            _ = try ground.open(revisions: next("CREATE TABLE more (x TEXT)", "CREATE NONSENSE"))
        }
        for word in ["revision \(following)", "statement 2 of 2", "CREATE NONSENSE"] {
            #expect(broken?.message.contains(word) == true, "\(String(describing: broken))")
        }
        let store = try ground.open()
        #expect(try !store.connection.hasTable("more"))
        store.close()
        let later = try ground.open(revisions: next("CREATE TABLE more (x TEXT)"))
        #expect(try later.applied == [following] && later.connection.hasTable("more"))
        later.close()
        // And now this build is the older one.
        let newer = failure { () throws(StoreError) in _ = try ground.open() }
        #expect(newer?.kind == .newer && newer?.message.contains(following) == true, "\(String(describing: newer))")
    }

    @Test(
        "Four ledgers that must not be touched are told apart, by writers and readers", arguments: Database.both,
        [
            (StoreError.Kind.newer, "INSERT INTO revision_history VALUES ('\(following)', 'later', 'abc', 1, 1, '9.9')", following),
            (.changed, "UPDATE revision_history SET checksum = '0123456789abcdef' WHERE id = '0002'", "0123456789abcdef"),
            (.missingRevision, "DELETE FROM revision_history WHERE id = '0001'", "lacks 0001"),
            (.diverged, "UPDATE revision_history SET name = 'something else' WHERE id = '0002'", "something else"),
        ])
    func refusals(_ kind: Database, _ refusal: (kind: StoreError.Kind, sql: String, word: String)) throws {
        let ground = try Ground(kind)
        let store = try ground.open()
        try store.connection.change(refusal.sql, [])
        let ledger = try ground.history()
        store.close()
        for error in [
            failure { () throws(StoreError) in _ = try ground.open() }, failure { () throws(StoreError) in _ = try ground.openReadOnly() },
        ] {
            #expect(error?.kind == refusal.kind && error?.message.contains(refusal.word) == true, "\(String(describing: error))")
            #expect(error?.isSchemaRefusal == true)
        }
        #expect(try ground.history() == ledger)
    }

    // MARK: One schema in two dialects

    /// A table as both databases can tell it.
    private struct Table: Equatable {
        struct Column: Equatable {
            var name: String
            /// As PostgreSQL names it.
            var type: String
            var isNullable: Bool
            /// Numbers itself; a number is never used twice.
            var isIdentity: Bool
        }
        struct Index: Hashable {
            /// Empty for the one that a UNIQUE of the table makes: each database names it its own way.
            var name: String
            var columns: [String]
            var isUnique: Bool
            /// In capitals and small letters as written, without parentheses; empty when it has all rows.
            var condition: String
        }
        var columns: [Column]
        var primaryKey: [String]
        var indexes: Set<Index>
    }

    /// What a type of SQLite is in PostgreSQL. ANY is `state.value`, which was text or bytes in old files.
    private static let types = ["INTEGER": "bigint", "TEXT": "text", "BLOB": "bytea", "ANY": "text"]

    private static func sqliteTables(_ connection: any SQLConnection) throws -> [String: Table] {
        var out: [String: Table] = [:]
        for (name, sql) in try connection.rows(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'", [], { ($0.text(0), $0.text(1)) })
        {
            let columns = try connection.rows("SELECT name, type, \"notnull\", pk FROM pragma_table_info('\(name)') ORDER BY cid", []) {
                (name: $0.text(0), type: $0.text(1), isNotNull: $0.int(2) == 1, key: $0.int(3))
            }
            let numbersItself = sql.contains("AUTOINCREMENT")
            var table = Table(columns: [], primaryKey: [], indexes: [])
            for column in columns {
                // INTEGER PRIMARY KEY is the row's own number: never NULL, whatever the pragma says.
                let isRowNumber = column.key == 1 && column.type == "INTEGER" && numbersItself
                table.columns.append(
                    Table.Column(
                        name: column.name, type: types[column.type] ?? "unknown: \(column.type)",
                        isNullable: !column.isNotNull && !isRowNumber, isIdentity: isRowNumber))
            }
            table.primaryKey = columns.filter { $0.key > 0 }.sorted { $0.key < $1.key }.map(\.name)
            for (index, isUnique, origin) in try connection.rows(
                "SELECT name, \"unique\", origin FROM pragma_index_list('\(name)') WHERE origin <> 'pk'", [],
                { ($0.text(0), $0.int(1) == 1, $0.text(2)) })
            {
                let definition = try connection.rows("SELECT coalesce(sql, '') FROM sqlite_master WHERE name = '\(index)'", []) {
                    $0.text(0)
                }
                let condition = definition.first?.firstRange(of: " WHERE ").map { String(definition[0][$0.upperBound...]) } ?? ""
                table.indexes.insert(
                    Table.Index(
                        name: origin == "u" ? "" : index,
                        columns: try connection.rows("SELECT name FROM pragma_index_info('\(index)') ORDER BY seqno", []) { $0.text(0) },
                        isUnique: isUnique, condition: condition))
            }
            out[name] = table
        }
        return out
    }

    private static func postgresTables(_ connection: any SQLConnection) throws -> [String: Table] {
        var out: [String: Table] = [:]
        for name in try connection.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", [], { $0.text(0) }) {
            var table = Table(columns: [], primaryKey: [], indexes: [])
            table.columns = try connection.rows(
                """
                SELECT attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 1 ELSE 0 END, CASE attidentity WHEN '' THEN 0 ELSE 1 END
                FROM pg_attribute WHERE attrelid = '\(name)'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
                """, []
            ) { Table.Column(name: $0.text(0), type: $0.text(1), isNullable: $0.int(2) == 0, isIdentity: $0.int(3) == 1) }
            for (isPrimary, isConstraint, index) in try connection.rows(
                """
                SELECT CASE WHEN x.indisprimary THEN 1 ELSE 0 END,
                  (SELECT count(*) FROM pg_constraint c WHERE c.conindid = x.indexrelid), i.relname,
                  (SELECT string_agg(pg_get_indexdef(x.indexrelid, k, true), ',' ORDER BY k) FROM generate_series(1, x.indnkeyatts) k),
                  CASE WHEN x.indisunique THEN 1 ELSE 0 END, coalesce(pg_get_expr(x.indpred, x.indrelid), '')
                FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid WHERE x.indrelid = '\(name)'::regclass
                """, [],
                { row in
                    let condition = row.text(5).filter { $0 != "(" && $0 != ")" }
                    let columns = row.text(3).split(separator: ",").map(String.init)
                    return (
                        row.int(0) == 1, row.int(1) > 0,
                        Table.Index(name: row.text(2), columns: columns, isUnique: row.int(4) == 1, condition: condition)
                    )
                })
            {
                if isPrimary {
                    table.primaryKey = index.columns
                } else {
                    var index = index
                    if isConstraint { index.name = "" }
                    table.indexes.insert(index)
                }
            }
            out[name] = table
        }
        return out
    }

    @Test("Both dialects end in the same schema: tables, columns, types, keys and indexes with their conditions")
    func sameSchema() throws {
        let (lite, great) = (try Ground(.sqlite).open(), try Ground(.postgresql).open())
        let (ours, theirs) = (try Self.sqliteTables(lite.connection), try Self.postgresTables(great.connection))
        // Instances tell each other of conversations; one alone has nobody to tell.
        #expect(Set(theirs.keys) == Set(ours.keys).union(["pins"]) && !ours.keys.contains("pins"))
        for (name, table) in ours {
            let other = try #require(theirs[name])
            #expect(table.columns == other.columns, "\(name)")
            #expect(table.primaryKey == other.primaryKey && !table.primaryKey.isEmpty, "\(name)")
            #expect(table.indexes == other.indexes, "\(name)")
        }
        // The comparison sees what it should: a known table with everything that there is.
        let keys = try #require(ours["client_keys"])
        #expect(keys.columns.map(\.name).contains("models") && keys.columns.filter(\.isNullable).count == 3)
        #expect(keys.columns.first == Table.Column(name: "id", type: "bigint", isNullable: false, isIdentity: true))
        #expect(
            keys.indexes == [
                Table.Index(name: "", columns: ["digest"], isUnique: true, condition: ""),
                Table.Index(name: "client_keys_live_name", columns: ["name"], isUnique: true, condition: "revoked_at_ms IS NULL"),
            ])
    }
}
