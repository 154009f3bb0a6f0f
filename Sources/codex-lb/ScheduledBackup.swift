import Platform
import PostgresStore
import SQLiteStore
import Settings
import Store
import Vocabulary

#if canImport(Glibc)
    import Glibc
#endif

/// The backup that the supervisor has made now and then: looks whether one is due, makes it, deletes the oldest beyond the limit. On a shared
/// database one instance does it for all, under a lease.
enum ScheduledBackup {
    private static let lease = "backup"

    static func run(_ settings: Settings) throws(StoreError) {
        guard let interval = settings.database.backupIntervalMilliseconds else {
            throw StoreError(.invalid, "no backup is scheduled: CODEX_LB_DATABASE_BACKUP_INTERVAL_HOURS is 0")
        }
        let kept = settings.database.scheduledBackups
        switch settings.database.url {
        case .sqlite(let path):
            guard isDue(Backup.newest(database: path, label: Backup.scheduledLabel), interval) else { return }
            let file = try LocalBackup.make(settings, label: Backup.scheduledLabel)
            try Backup.prune(database: path, label: Backup.scheduledLabel, keeping: kept)
            complain("scheduled backup made: \(file.path) (\(file.bytes) bytes)")
        case .postgresql(let url):
            let holder = "\(Process.hostName):\(Process.id)"
            guard let lease = try PostgresLease.take(url, lease, holder: holder) else { return }  // another instance is at it
            guard lease.takenMilliseconds - lease.doneMilliseconds >= Int64(interval) else {
                _ = try lease.release(isDone: false)
                return
            }
            let dump = PostgresDump(url, settings)
            var renewAt = Clock.now.adding(milliseconds: 10_000)
            let file = try dump.make(label: Backup.scheduledLabel) { () throws(StoreError) in
                guard Clock.now >= renewAt else { return true }
                // With a pinch of chance, so that holders of one start do not all knock at once.
                renewAt = Clock.now.adding(milliseconds: Int.random(in: 8_000...12_000))
                return try lease.renew()
            }
            guard try lease.release(isDone: true) else {
                unlink(file.path)
                throw StoreError(.conflict, "the lease on the backup of \(url) was lost meanwhile; another instance makes one")
            }
            try dump.prune(label: Backup.scheduledLabel, keeping: kept)
            complain("scheduled backup made: \(file.path) (\(file.bytes) bytes)")
        }
    }

    /// A tenth early does not count as early: the supervisor asks at its own times.
    private static func isDue(_ newest: String?, _ interval: Int) -> Bool {
        var info = stat()
        guard let newest, stat(newest, &info) == 0 else { return true }
        let made = Int64(info.st_mtim.tv_sec) * 1000 + Int64(info.st_mtim.tv_nsec) / 1_000_000
        return Clock.wall.milliseconds - made >= Int64(interval) / 10 * 9
    }
}
