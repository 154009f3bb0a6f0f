import CSQLite
import FaultVFS
import Store
import Testing
import Vocabulary

@testable import SQLiteStore
@testable import Schema

#if canImport(Glibc)
    import Glibc
#endif

/// Does `body` without root's right to pass over file modes.
private func withoutPrivilege<T>(_ body: () throws -> T) rethrows -> T {
    let before = fault_file_user(65_534)
    defer { _ = fault_file_user(before) }
    return try body()
}

/// A line that names the database, says what to do, and is one line.
private func isClear(_ error: StoreError?, _ kind: StoreError.Kind, _ words: String...) -> Bool {
    guard let error else { return false }
    return error.kind == kind && words.allSatisfy(error.message.contains) && !error.message.contains("\n")
}

@Suite struct ErrorTests {
    @Test("A database that another program has locked is busy; the line says how to find that program")
    func locked() throws {
        let scratch = Scratch()
        try scratch.open().close()
        let other = try Connection(scratch.database, .readWrite)
        try other.execute("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; DELETE FROM settings")
        let opening = kind { () throws(StoreError) in _ = try scratch.open() }
        #expect(isClear(opening, .busy, "locked by another program", "fuser -v \(scratch.database)"))
        other.close()
        try scratch.open().close()
    }

    @Test("A file or directory that may not be written is told apart from a failing disk, with the user and the place to look at")
    func notWritable() throws {
        let scratch = Scratch()
        try scratch.open().close()
        chmod(scratch.database, 0o444)
        chmod(scratch.path + "/data", 0o555)
        chmod(scratch.path, 0o755)
        defer { chmod(scratch.path + "/data", 0o700) }
        let error = withoutPrivilege {
            kind { () throws(StoreError) in
                let connection = try Connection(scratch.database, .readWrite)
                try connection.execute("CREATE TABLE x (y)")
            }
        }
        #expect(isClear(error, .readOnly, "opening", "may not write", "ls -la \(scratch.path)/data"))
        let making = withoutPrivilege { kind { () throws(StoreError) in _ = try Connection(scratch.path + "/data/b.db", .readWrite) } }
        #expect(isClear(making, .readOnly, "may not write", "Permission denied"))
    }

    @Test("A read-only file system, a failing disk and a full one each have their own line")
    func words() {
        func error(_ code: Int32, system: Int32 = 0, isReadOnly: Bool = false, _ mode: Connection.Mode = .readWrite) -> StoreError {
            Connection.error(code, "words", path: "/d/store.db", mode: mode, system: system, isReadOnlyFileSystem: isReadOnly)
        }
        for code in [SQLITE_READONLY, SQLITE_CANTOPEN, SQLITE_IOERR] {
            #expect(isClear(error(code, system: EROFS, isReadOnly: true), .readOnly, "/d/store.db", "read-only file system", "--data-dir"))
        }
        #expect(isClear(error(SQLITE_IOERR | 3 << 8, system: EIO), .io, "Input/output error"))
        #expect(isClear(error(SQLITE_FULL), .full, "no space left", "file system of /d"))
        for code in [ENOSPC, EDQUOT] {
            #expect(isClear(error(SQLITE_IOERR | 3 << 8, system: code), .full, "no space left", "file system of /d"))
        }
        #expect(isClear(error(SQLITE_READONLY, .readOnly), .readOnly, "open for reading only"))
    }

    @Test("A damaged database is called damaged, wherever the damage is, and the line names the ways out")
    func damaged() throws {
        let ways = ["codex-lb db check", "codex-lb db restore", "codex-lb db recover"]
        func isDamage(_ error: StoreError?) -> Bool {
            isClear(error, .corrupt, "is damaged") && ways.allSatisfy { error?.message.contains($0) == true }
        }
        // The header alone, known by the lock beside it; then by its pages alone.
        for hasLock in [true, false] {
            let scratch = Scratch()
            let store = try scratch.open()
            _ = try store.append((0..<500).map(record))
            store.close()
            if !hasLock { unlink(scratch.database + ".lock") }
            var bytes = Scratch.bytes(scratch.database)
            for i in 0..<100 { bytes[i] = 0xEE }
            Scratch.write(scratch.database, bytes)
            #expect(isDamage(kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: scratch.database) }))
            #expect(isDamage(kind { () throws(StoreError) in _ = try scratch.open() }))
            #expect(isDamage(kind { () throws(StoreError) in _ = try Backup.make(database: scratch.database, now: now) }))
            #expect(Scratch.bytes(scratch.database) == bytes)
        }
        // Our mark in the header; then a page of a table.
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append((0..<500).map(record))
        store.close()
        let sound = Scratch.bytes(scratch.database)
        var bytes = sound
        for i in 68..<72 { bytes[i] = 7 }
        Scratch.write(scratch.database, bytes)
        #expect(isDamage(kind { () throws(StoreError) in _ = try scratch.open() }))
        bytes = sound
        for i in 4096 * 3..<bytes.count { bytes[i] = 0x5A }
        Scratch.write(scratch.database, bytes)
        let listing = kind { () throws(StoreError) in _ = try SQLiteStore.openReadOnly(path: scratch.database).usage(last: 1000) }
        #expect(isDamage(listing), "\(String(describing: listing))")
    }

    @Test("A file of no bytes beside backups is a loss, not a new database; without backups it is one")
    func emptied() throws {
        let scratch = Scratch()
        let store = try scratch.open()
        _ = try store.append([record(1)])
        let backup = try Backup.make(database: scratch.database, now: now).path
        store.close()
        Scratch.write(scratch.database, [])
        #expect(isClear(kind { () throws(StoreError) in _ = try scratch.open() }, .corrupt, "0 bytes", "codex-lb db restore", "remove"))
        try scratch.restore(backup)
        let restored = try scratch.open()
        #expect(try restored.usage(last: 9).count == 1)
        restored.close()
        unlink(backup)
        Scratch.write(scratch.database, [])
        try scratch.open().close()
    }

    @Test("A main file that a cut-off checkpoint left half moved is no damage while its log is there")
    func halfCheckpointed() throws {
        let live = Scratch()
        let store = try live.open()
        _ = try store.append((0..<500).map(record))
        let log = Scratch.bytes(live.database + "-wal")
        try store.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        var main = Scratch.bytes(live.database)
        store.close()
        // The first page has come over, of the rest nothing.
        for i in 4096..<main.count { main[i] = 0 }
        let scratch = Scratch()
        mkdir(scratch.path + "/data", 0o700)
        Scratch.write(scratch.key, Scratch.bytes(live.key))
        Scratch.write(scratch.database, Array(main.prefix(4096 * 2)))
        Scratch.write(scratch.database + "-wal", log)
        let healed = try scratch.open()
        #expect(try healed.usage(last: 1000).count == 500)
        healed.close()
    }

    @Test("A file that a power cut met while it was being made is made anew; the journal beside it says so")
    func halfMade() throws {
        let scratch = Scratch()
        mkdir(scratch.path + "/data", 0o700)
        let magic: [UInt8] = [0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7]
        let head = magic + [0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 16, 0]
        Scratch.write(scratch.database + "-journal", head + [UInt8](repeating: 0, count: 512 - head.count))
        Scratch.write(scratch.database, [UInt8](repeating: 0, count: 512) + [UInt8](repeating: 1, count: 3584))
        let store = try scratch.open()
        #expect(try store.append([record(1)]) == 1)
        store.close()
    }

    @Test("Network file systems are known by the longest mount point above the file; local ones are not named")
    func network() {
        let mounts = """
            22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
            40 22 0:40 / /srv/nas rw,relatime - nfs4 host:/export rw
            41 40 0:41 / /srv/nas/local rw - xfs /dev/vdb rw
            42 22 0:42 / /mnt/two\\040words rw - fuse.sshfs me@host: rw
            43 22 0:43 / /mnt/usb rw - fuseblk /dev/sda1 rw
            44 22 0:44 / /mnt/usb rw - cifs //host/share rw
            """
        func type(_ path: String) -> String? { Inspection.networkFileSystem(of: path, mounts: mounts) }
        #expect(type("/var/lib/codex-lb/store.db") == nil)
        #expect(type("/srv/nas/store.db") == "nfs4" && type("/srv/nas") == "nfs4" && type("/srv/nasty/store.db") == nil)
        #expect(type("/srv/nas/local/store.db") == nil)
        #expect(type("/mnt/two words/store.db") == "fuse.sshfs")
        #expect(type("/mnt/usb/store.db") == "cifs")  // the later mount covers the earlier one
        #expect(Inspection.networkFileSystem(of: "/tmp/not there yet.db") == nil)
    }
}
