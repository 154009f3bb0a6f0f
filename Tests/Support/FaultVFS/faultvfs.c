#include "FaultVFS.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <unistd.h>

enum { DISKS_MAX = 64, PATH_BYTES_MAX = 512 };

// A write or (data == NULL) a truncation to `offset` that no xSync has covered.
typedef struct change {
    struct change *next;
    int64_t offset;
    int64_t count;
    uint8_t *data;
} change;

// Whether a file's name is on the platters.
typedef enum {
    NAME_GONE,      // deleted, and the directory synced
    NAME_NEW,       // made, the directory not synced: may be missing after a cut
    NAME_ON_DISK,
    NAME_UNLINKED,  // deleted, the directory not synced: may come back
} name_state;

// What the platters hold of one file: its image at the last xSync, and the changes since, oldest first.
typedef struct image {
    struct image *next;
    char path[PATH_BYTES_MAX];
    uint8_t *bytes;
    int64_t count;
    name_state name;
    change *first, *last;
} image;

struct fault_disk {
    char prefix[PATH_BYTES_MAX];
    bool is_used, is_persistent, is_cut;
    fault_kind kind;
    int64_t n, calls, hits;
    uint64_t random;
    image *images;
};

typedef struct {
    sqlite3_file base;
    fault_disk *disk;
    image *image;  // NULL for files that are not followed: temporary ones
    sqlite3_file *real;
} fault_file;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static fault_disk disks[DISKS_MAX];
static sqlite3_vfs *unix_vfs;
static sqlite3_vfs vfs;

// splitmix64 (Steele, Lea, Flood 2014).
static uint64_t next_random(fault_disk *disk) {
    uint64_t z = (disk->random += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

static void *need(void *memory) {
    if (!memory) abort();
    return memory;
}

// MARK: Deciding

typedef enum { CALL_OPEN, CALL_READ, CALL_WRITE, CALL_SYNC, CALL_TRUNCATE, CALL_MAP, CALL_DELETE } call;

static bool counts(fault_kind kind, call call) {
    switch (kind) {
    case FAULT_NONE: return true;
    case FAULT_IOERR:
    case FAULT_POWER_CUT: return call != CALL_READ;
    case FAULT_READ: return call == CALL_READ;
    case FAULT_FULL: return call == CALL_WRITE || call == CALL_MAP;
    case FAULT_SHORT: return call == CALL_WRITE;
    }
    return false;
}

// Whether this call fails; counts it.
static bool fails(fault_disk *disk, call call) {
    bool answer = false;
    pthread_mutex_lock(&mutex);
    if (disk->is_cut) {
        answer = true;
    } else if (counts(disk->kind, call)) {
        disk->calls++;
        answer = disk->kind != FAULT_NONE && (disk->calls == disk->n || (disk->is_persistent && disk->calls > disk->n));
        if (answer && disk->kind == FAULT_POWER_CUT) disk->is_cut = true;
    }
    if (answer) disk->hits++;
    pthread_mutex_unlock(&mutex);
    return answer;
}

static fault_kind kind_of(fault_disk *disk) {
    pthread_mutex_lock(&mutex);
    fault_kind kind = disk->kind;
    pthread_mutex_unlock(&mutex);
    return kind;
}

// MARK: What the platters hold

static image *image_of(fault_disk *disk, const char *path) {
    for (image *i = disk->images; i; i = i->next) {
        if (strcmp(i->path, path) == 0) return i;
    }
    return NULL;
}

static void forget_changes(image *image) {
    for (change *c = image->first, *next; c; c = next) {
        next = c->next;
        free(c->data);
        free(c);
    }
    image->first = image->last = NULL;
}

static void resize(image *image, int64_t count) {
    if (count > image->count) {
        image->bytes = need(realloc(image->bytes, (size_t)count));
        memset(image->bytes + image->count, 0, (size_t)(count - image->count));
    }
    image->count = count;
}

static void apply(image *image, const change *c) {
    if (!c->data) {
        resize(image, c->offset);
        return;
    }
    if (c->offset + c->count > image->count) resize(image, c->offset + c->count);
    memcpy(image->bytes + c->offset, c->data, (size_t)c->count);
}

static void remember(fault_disk *disk, image *image, const void *data, int64_t offset, int64_t count) {
    if (!image) return;
    pthread_mutex_lock(&mutex);
    if (disk->kind == FAULT_POWER_CUT && !disk->is_cut) {
        change *c = need(calloc(1, sizeof *c));
        c->offset = offset;
        c->count = count;
        if (data) {
            c->data = need(malloc((size_t)count + 1));
            memcpy(c->data, data, (size_t)count);
        }
        if (image->last) image->last->next = c;
        else image->first = c;
        image->last = c;
    }
    pthread_mutex_unlock(&mutex);
}

static void directory_synced(fault_disk *disk) {
    for (image *i = disk->images; i; i = i->next) {
        if (i->name == NAME_NEW) i->name = NAME_ON_DISK;
        if (i->name == NAME_UNLINKED) i->name = NAME_GONE;
    }
}

static bool is_database(const char *path) {
    size_t n = strlen(path);
    return !(n > 4 && strcmp(path + n - 4, "-wal") == 0) && !(n > 8 && strcmp(path + n - 8, "-journal") == 0);
}

static void synced(fault_disk *disk, image *image) {
    if (!image) return;
    pthread_mutex_lock(&mutex);
    for (change *c = image->first; c; c = c->next) apply(image, c);
    forget_changes(image);
    // The unix VFS syncs the directory with the first sync of a journal or log, never with one of the database.
    if (image->name == NAME_NEW && !is_database(image->path)) directory_synced(disk);
    pthread_mutex_unlock(&mutex);
}

// The image of a file that is being opened: what it has now is taken to be on disk if it was there before the watch.
static image *follow(fault_disk *disk, const char *path, sqlite3_file *real) {
    pthread_mutex_lock(&mutex);
    image *found = image_of(disk, path);
    if (found && (found->name == NAME_GONE || found->name == NAME_UNLINKED)) {  // made anew
        forget_changes(found);
        found->count = 0;
        found->name = NAME_NEW;
    }
    if (!found) {
        found = need(calloc(1, sizeof *found));
        strncpy(found->path, path, PATH_BYTES_MAX - 1);
        found->name = NAME_NEW;
        sqlite3_int64 size = 0;
        if (real->pMethods->xFileSize(real, &size) == SQLITE_OK && size > 0) {
            resize(found, size);
            real->pMethods->xRead(real, found->bytes, (int)size, 0);
            found->name = NAME_ON_DISK;
        }
        found->next = disk->images;
        disk->images = found;
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

// Of the unsynced changes a random part, in random order and in torn pieces, reaches the image.
static void tear(fault_disk *disk, image *image) {
    int64_t grain = next_random(disk) & 1 ? 512 : 4096;
    uint64_t kept_of_16 = (uint64_t[]){0, 4, 8, 12, 15, 16}[next_random(disk) % 6];
    int64_t room = 0;
    for (change *c = image->first; c; c = c->next) room += c->data ? c->count / grain + 2 : 1;
    change *pieces = need(calloc((size_t)room + 1, sizeof *pieces));
    int64_t count = 0;
    for (change *c = image->first; c; c = c->next) {
        if (!c->data) {
            if (next_random(disk) % 16 < kept_of_16) pieces[count++] = *c;
            continue;
        }
        for (int64_t at = 0; at < c->count;) {
            int64_t end = ((c->offset + at) / grain + 1) * grain - c->offset;
            if (end > c->count) end = c->count;
            if (next_random(disk) % 16 < kept_of_16) {
                pieces[count++] = (change){.offset = c->offset + at, .count = end - at, .data = c->data + at};
            }
            at = end;
        }
    }
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t j = (int64_t)(next_random(disk) % (uint64_t)(i + 1));
        change swapped = pieces[i];
        pieces[i] = pieces[j];
        pieces[j] = swapped;
    }
    for (int64_t i = 0; i < count; i++) apply(image, &pieces[i]);
    free(pieces);
}

static void write_out(const image *image) {
    int fd = open(image->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) abort();
    for (int64_t at = 0; at < image->count;) {
        ssize_t n = write(fd, image->bytes + at, (size_t)(image->count - at));
        if (n <= 0) abort();
        at += n;
    }
    close(fd);
}

static void forget_images(fault_disk *disk) {
    for (image *i = disk->images, *next; i; i = next) {
        next = i->next;
        forget_changes(i);
        free(i->bytes);
        free(i);
    }
    disk->images = NULL;
}

static void power_returns(fault_disk *disk) {
    for (image *i = disk->images; i; i = i->next) {
        char shm[PATH_BYTES_MAX + 8];
        strcpy(shm, i->path);
        strcat(shm, "-shm");
        unlink(shm);
        if (i->name == NAME_GONE || (i->name != NAME_ON_DISK && next_random(disk) & 1)) {
            unlink(i->path);
            continue;
        }
        tear(disk, i);
        write_out(i);
    }
}

// MARK: Files

#define FILE_OF(f) fault_file *file = (fault_file *)(f)

static int file_close(sqlite3_file *f) {
    FILE_OF(f);
    return file->real->pMethods->xClose(file->real);
}

static int file_read(sqlite3_file *f, void *buffer, int count, sqlite3_int64 offset) {
    FILE_OF(f);
    if (fails(file->disk, CALL_READ)) return SQLITE_IOERR_READ;
    return file->real->pMethods->xRead(file->real, buffer, count, offset);
}

static int file_write(sqlite3_file *f, const void *data, int count, sqlite3_int64 offset) {
    FILE_OF(f);
    if (fails(file->disk, CALL_WRITE)) {
        switch (kind_of(file->disk)) {
        case FAULT_FULL: return SQLITE_FULL;
        case FAULT_SHORT: file->real->pMethods->xWrite(file->real, data, count / 2, offset); break;
        default: break;
        }
        return SQLITE_IOERR_WRITE;
    }
    int code = file->real->pMethods->xWrite(file->real, data, count, offset);
    if (code == SQLITE_OK) remember(file->disk, file->image, data, offset, count);
    return code;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size) {
    FILE_OF(f);
    if (fails(file->disk, CALL_TRUNCATE)) return SQLITE_IOERR_TRUNCATE;
    int code = file->real->pMethods->xTruncate(file->real, size);
    if (code == SQLITE_OK) remember(file->disk, file->image, NULL, size, 0);
    return code;
}

static int file_sync(sqlite3_file *f, int flags) {
    FILE_OF(f);
    if (fails(file->disk, CALL_SYNC)) return SQLITE_IOERR_FSYNC;
    // The kernel's own sync costs milliseconds and shows nothing here: the image stands for the platters.
    (void)flags;
    synced(file->disk, file->image);
    return SQLITE_OK;
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size) {
    FILE_OF(f);
    return file->real->pMethods->xFileSize(file->real, size);
}
static int file_lock(sqlite3_file *f, int level) {
    FILE_OF(f);
    return file->real->pMethods->xLock(file->real, level);
}
static int file_unlock(sqlite3_file *f, int level) {
    FILE_OF(f);
    return file->real->pMethods->xUnlock(file->real, level);
}
static int file_reserved(sqlite3_file *f, int *answer) {
    FILE_OF(f);
    return file->real->pMethods->xCheckReservedLock(file->real, answer);
}
static int file_control(sqlite3_file *f, int operation, void *argument) {
    FILE_OF(f);
    return file->real->pMethods->xFileControl(file->real, operation, argument);
}
static int file_sector(sqlite3_file *f) {
    FILE_OF(f);
    return file->real->pMethods->xSectorSize(file->real);
}
static int file_characteristics(sqlite3_file *f) {
    FILE_OF(f);
    return file->real->pMethods->xDeviceCharacteristics(file->real);
}
static int file_map(sqlite3_file *f, int region, int size, int extend, void volatile **out) {
    FILE_OF(f);
    if (extend && fails(file->disk, CALL_MAP)) {
        *out = NULL;
        return kind_of(file->disk) == FAULT_FULL ? SQLITE_FULL : SQLITE_IOERR_SHMMAP;
    }
    return file->real->pMethods->xShmMap(file->real, region, size, extend, out);
}
static int file_shm_lock(sqlite3_file *f, int offset, int n, int flags) {
    FILE_OF(f);
    return file->real->pMethods->xShmLock(file->real, offset, n, flags);
}
static void file_barrier(sqlite3_file *f) {
    FILE_OF(f);
    file->real->pMethods->xShmBarrier(file->real);
}
static int file_unmap(sqlite3_file *f, int delete) {
    FILE_OF(f);
    return file->real->pMethods->xShmUnmap(file->real, delete);
}

static const sqlite3_io_methods methods = {
    // Version 2: no xFetch, so that every read goes through xRead.
    .iVersion = 2, .xClose = file_close, .xRead = file_read, .xWrite = file_write, .xTruncate = file_truncate, .xSync = file_sync,
    .xFileSize = file_size, .xLock = file_lock, .xUnlock = file_unlock, .xCheckReservedLock = file_reserved,
    .xFileControl = file_control, .xSectorSize = file_sector, .xDeviceCharacteristics = file_characteristics, .xShmMap = file_map,
    .xShmLock = file_shm_lock, .xShmBarrier = file_barrier, .xShmUnmap = file_unmap,
};

// MARK: The VFS

static fault_disk *disk_of(const char *path) {
    fault_disk *found = NULL;
    pthread_mutex_lock(&mutex);
    for (int i = 0; path && i < DISKS_MAX && !found; i++) {
        if (disks[i].is_used && strncmp(path, disks[i].prefix, strlen(disks[i].prefix)) == 0) found = &disks[i];
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

static int vfs_open(sqlite3_vfs *self, sqlite3_filename path, sqlite3_file *f, int flags, int *out_flags) {
    (void)self;
    fault_disk *disk = disk_of(path);
    if (!disk) return unix_vfs->xOpen(unix_vfs, path, f, flags, out_flags);
    FILE_OF(f);
    file->base.pMethods = NULL;
    if (fails(disk, CALL_OPEN)) return SQLITE_CANTOPEN;
    file->disk = disk;
    file->real = (sqlite3_file *)(file + 1);
    int code = unix_vfs->xOpen(unix_vfs, path, file->real, flags, out_flags);
    if (code != SQLITE_OK) {
        // An open that failed half-way wants its xClose all the same.
        if (file->real->pMethods) file->real->pMethods->xClose(file->real);
        return code;
    }
    file->image = kind_of(disk) == FAULT_POWER_CUT ? follow(disk, path, file->real) : NULL;
    file->base.pMethods = &methods;
    return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *self, const char *path, int sync) {
    (void)self;
    fault_disk *disk = disk_of(path);
    if (disk && fails(disk, CALL_DELETE)) return SQLITE_IOERR_DELETE;
    int code = unix_vfs->xDelete(unix_vfs, path, sync);
    if (!disk || code != SQLITE_OK) return code;
    pthread_mutex_lock(&mutex);
    image *image = image_of(disk, path);
    if (image) image->name = image->name == NAME_ON_DISK ? NAME_UNLINKED : NAME_GONE;
    if (sync) directory_synced(disk);
    pthread_mutex_unlock(&mutex);
    return code;
}

static int vfs_access(sqlite3_vfs *self, const char *path, int flags, int *answer) {
    (void)self;
    fault_disk *disk = disk_of(path);
    pthread_mutex_lock(&mutex);
    bool is_cut = disk && disk->is_cut;
    pthread_mutex_unlock(&mutex);
    return is_cut ? SQLITE_IOERR_ACCESS : unix_vfs->xAccess(unix_vfs, path, flags, answer);
}

static void install(void) {
    sqlite3_initialize();
    unix_vfs = sqlite3_vfs_find("unix");
    if (!unix_vfs) abort();
    vfs = *unix_vfs;  // everything else is the unix VFS's own function, which takes its own state from pAppData
    vfs.zName = "fault";
    vfs.pNext = NULL;
    vfs.szOsFile = (int)sizeof(fault_file) + unix_vfs->szOsFile;
    vfs.xOpen = vfs_open;
    vfs.xDelete = vfs_delete;
    vfs.xAccess = vfs_access;
    if (sqlite3_vfs_register(&vfs, 1) != SQLITE_OK) abort();
}

fault_disk *fault_watch(const char *prefix) {
    pthread_once(&once, install);
    fault_disk *disk = NULL;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < DISKS_MAX && !disk; i++) {
        if (disks[i].is_used) continue;
        disk = &disks[i];
        memset(disk, 0, sizeof *disk);
        strncpy(disk->prefix, prefix, PATH_BYTES_MAX - 1);
        disk->is_used = true;
    }
    pthread_mutex_unlock(&mutex);
    return disk;
}

void fault_arm(fault_disk *disk, fault_kind kind, int64_t n, bool persistent, uint64_t seed) {
    pthread_mutex_lock(&mutex);
    disk->kind = kind;
    disk->n = n;
    disk->is_persistent = persistent;
    disk->random = seed;
    disk->calls = disk->hits = 0;
    disk->is_cut = false;
    pthread_mutex_unlock(&mutex);
}

int64_t fault_hits(fault_disk *disk) {
    pthread_mutex_lock(&mutex);
    int64_t hits = disk->hits;
    pthread_mutex_unlock(&mutex);
    return hits;
}

int64_t fault_calls(fault_disk *disk) {
    pthread_mutex_lock(&mutex);
    int64_t calls = disk->calls;
    pthread_mutex_unlock(&mutex);
    return calls;
}

void fault_disarm(fault_disk *disk) {
    pthread_mutex_lock(&mutex);
    if (disk->is_cut) power_returns(disk);
    forget_images(disk);
    disk->kind = FAULT_NONE;
    disk->is_cut = false;
    pthread_mutex_unlock(&mutex);
}

void fault_unwatch(fault_disk *disk) {
    fault_disarm(disk);
    pthread_mutex_lock(&mutex);
    disk->is_used = false;
    pthread_mutex_unlock(&mutex);
}

uint32_t fault_file_user(uint32_t user) { return (uint32_t)setfsuid((uid_t)user); }
