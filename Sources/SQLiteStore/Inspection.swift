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
        var main: Inspection?
        do throws(StoreError) {
            main = try judge(Connection(path, .immutable))
        } catch {
            // A checkpoint that was cut off leaves a main file that is neither the old nor the new state; with its log it is whole.
            guard error.kind == .corrupt, access(path + "-wal", F_OK) == 0 else { throw error }
        }
        // A log beside it may hold tables that the main file does not have yet; a read-only connection reads it and never checkpoints.
        if let main, case .ours = main { return main }
        guard access(path + "-wal", F_OK) == 0 else { return .empty }
        return try judge(Connection(path, .readOnly))
    }

    private static func judge(_ connection: Connection) throws(StoreError) -> Inspection {
        let path = connection.path
        let tables: [String]
        let (application, version): (Int64, Int64)
        do throws(StoreError) {
            application = try connection.int("PRAGMA application_id") ?? 0
            version = try connection.int("PRAGMA user_version") ?? 0
            tables = try connection.rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view') ORDER BY name") { $0.text(0) }
        } catch {
            guard error.kind == .foreign else { throw error }
            throw StoreError(.foreign, "\(path) is not an SQLite database; it was not touched. Move it away or choose another --data-dir")
        }
        if application == Int64(Schema.applicationID) {
            guard version <= Int64(Schema.head.number) else {
                throw StoreError(
                    .newer,
                    "database \(path) has revision \(padded(version)), this codex-lb knows \(Schema.head.id); run the newer codex-lb that made it, or restore a backup"
                )
            }
            return .ours(revision: Int(version))
        }
        if tables.isEmpty && application == 0 { return .empty }
        let what: String
        if tables.contains("alembic_version") {
            let revision = try connection.rows("SELECT version_num FROM alembic_version LIMIT 1") { $0.text(0) }.first ?? ""
            what = "the database of the Python codex-lb\(revision.isEmpty ? "" : " (alembic revision \(revision))")"
        } else {
            let some = tables.prefix(3).joined(separator: ", ")
            what =
                "a database of another program (application id \(application), \(tables.isEmpty ? "no tables" : "tables \(some)\(tables.count > 3 ? ", …" : "")"))"
        }
        throw StoreError(.foreign, "\(path) is \(what); it was not touched. Move it away or choose another --data-dir")
    }

    private static func padded(_ number: Int64) -> String {
        let text = String(number)
        return String(repeating: "0", count: max(0, 4 - text.utf8.count)) + text
    }
}
