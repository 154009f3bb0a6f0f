internal import Schema
internal import Store

#if canImport(Glibc)
    internal import Glibc
#endif

/// What a file is, found without changing a byte of it or beside it.
enum Inspection {
    /// No file yet, or one without tables.
    case empty
    case ours(revision: Int)

    static func of(_ path: String) throws(StoreError) -> Inspection {
        guard access(path, F_OK) == 0 else { return .empty }
        let main = try judge(Connection(path, .immutable))
        // A log beside it may hold tables that the main file does not have yet; a read-only connection reads it and never checkpoints.
        guard case .empty = main, access(path + "-wal", F_OK) == 0 else { return main }
        do throws(StoreError) {
            return try judge(Connection(path, .readOnly))
        } catch {
            if error.kind == .foreign || error.kind == .newer { throw error }
            return main
        }
    }

    private static func judge(_ connection: Connection) throws(StoreError) -> Inspection {
        let path = connection.path
        let tables: [String]
        let (application, version): (Int64, Int64)
        do throws(StoreError) {
            application = try connection.int("PRAGMA application_id") ?? 0
            version = try connection.int("PRAGMA user_version") ?? 0
            tables = try connection.rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name", []) { $0.text(0) }
        } catch {
            guard error.kind == .foreign else { throw error }
            throw StoreError(.foreign, "\(path) is not an SQLite database; it was not touched. Move it away or choose another --data-dir")
        }
        if application == Int64(Schema.applicationID) {
            guard version <= Int64(Schema.head.number) else {
                throw StoreError(
                    .newer,
                    "database \(path) has revision \(Schema.name(Int(version))), this codex-lb knows \(Schema.head.id); run the newer codex-lb that made it, or restore a backup"
                )
            }
            return .ours(revision: Int(version))
        }
        if tables.isEmpty && application == 0 { return .empty }
        let what: String
        if tables.contains("alembic_version") {
            let revision = try connection.rows("SELECT version_num FROM alembic_version LIMIT 1", []) { $0.text(0) }.first ?? ""
            what = "the database of the Python codex-lb\(revision.isEmpty ? "" : " (alembic revision \(revision))")"
        } else {
            let some = tables.prefix(3).joined(separator: ", ")
            what =
                "a database of another program (application id \(application), \(tables.isEmpty ? "no tables" : "tables \(some)\(tables.count > 3 ? ", …" : "")"))"
        }
        throw StoreError(.foreign, "\(path) is \(what); it was not touched. Move it away or choose another --data-dir")
    }
}
