#ifndef FAULTVFS_H
#define FAULTVFS_H

#include <stdbool.h>
#include <stdint.h>

// A shim around SQLite's unix VFS for tests: the calls on files below a watched directory can be made to fail, and a power cut can
// be played. Files elsewhere are opened by the unix VFS itself, so that tests running beside are not touched.
//
// A watched directory is a "disk". All functions may be called from any thread; a disk belongs to the test that made it.

typedef enum {
    FAULT_NONE,      // counts all calls, fails none
    FAULT_IOERR,     // the call fails: xOpen, xWrite, xSync, xTruncate, xShmMap, xDelete
    FAULT_READ,      // xRead fails
    FAULT_FULL,      // xWrite and a growing xShmMap fail with SQLITE_FULL, as with ENOSPC
    FAULT_SHORT,     // xWrite writes half of its bytes, then fails
    FAULT_POWER_CUT  // at the call (any of FAULT_IOERR's) the power goes: it and all that follow fail
} fault_kind;

typedef struct fault_disk fault_disk;

// Makes the shim SQLite's default VFS, once per process, and watches the files whose full path starts with `prefix`.
// Only files opened from now on are watched. NULL when there is no room (64 disks).
fault_disk *fault_watch(const char *prefix);

// The n-th call (from 1) that `kind` counts fails; with `persistent` every later one too. `seed` decides what a power cut leaves.
void fault_arm(fault_disk *disk, fault_kind kind, int64_t n, bool persistent, uint64_t seed);

// Calls that have failed since fault_arm.
int64_t fault_hits(fault_disk *disk);
// Calls that fault_arm's kind counted since.
int64_t fault_calls(fault_disk *disk);

// No more faults. After a power cut all files must be closed; they get what the disk kept: the image of the last xSync and, of the
// writes since, a random part in random order, torn at 512 bytes or 4 KiB. The -shm files are gone.
void fault_disarm(fault_disk *disk);

// Ends the watch. The files of the disk must be closed.
void fault_unwatch(fault_disk *disk);

// The calling thread's user id for access to files, setfsuid(2): root then has no right to pass over modes. Returns the one before.
uint32_t fault_file_user(uint32_t user);

#endif
