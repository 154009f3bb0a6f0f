#include "CPlatform.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void child(const char *path, char *const argv[], char *const envp[], const int *fds, const int *targets, size_t count, pid_t master, int report) {
    // Two steps, so that no target overwrites a source that is still needed: first above all targets, then down into place.
    int floor = 3;
    for (size_t i = 0; i < count; i++) if (targets[i] >= floor) floor = targets[i] + 1;
    if (report < floor) { int up = fcntl(report, F_DUPFD_CLOEXEC, floor); if (up < 0) goto fail; report = up; }
    int high[64];
    if (count > 64) { errno = E2BIG; goto fail; }
    for (size_t i = 0; i < count; i++) { high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, floor); if (high[i] < 0) goto fail; }
    if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) goto fail;
    for (size_t i = 0; i < count; i++) if (dup2(high[i], targets[i]) < 0) goto fail;  // dup2 clears FD_CLOEXEC
    struct sigaction plain;
    memset(&plain, 0, sizeof plain);
    plain.sa_handler = SIG_DFL;
    for (int s = 1; s < NSIG; s++) if (s != SIGKILL && s != SIGSTOP) sigaction(s, &plain, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (master && (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0 || getppid() != master)) _exit(127);  // its death is ours, before this line too
    execve(path, argv, envp);
fail:;
    int e = errno;
    ssize_t ignored = write(report, &e, sizeof e);
    (void)ignored;
    _exit(127);
}

pid_t codexlb_spawn(const char *path, char *const argv[], char *const envp[], const int *fds, const int *targets, size_t count, int dies_with_us) {
    int report[2];
    if (pipe2(report, O_CLOEXEC) != 0) return -errno;
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);  // no handler of the parent may run in the child
    pid_t us = getpid();
    pid_t pid = fork();
    if (pid == 0) child(path, argv, envp, fds, targets, count, dies_with_us ? us : 0, report[1]);
    int e = errno;
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(report[1]);
    if (pid < 0) { close(report[0]); return -e; }
    int failure = 0;
    ssize_t n;
    do n = read(report[0], &failure, sizeof failure); while (n < 0 && errno == EINTR);
    close(report[0]);
    if (n != sizeof failure) return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
    return -failure;
}

int codexlb_exec(const char *path, char *const argv[], char *const envp[], const int *fds, size_t count) {
    // Whoever opened a descriptor without the flag must not pass it on.
    if (syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC) != 0) return -errno;
    for (size_t i = 0; i < count; i++) codexlb_set_cloexec(fds[i], 0);
    execve(path, argv, envp);
    int e = errno;
    for (size_t i = 0; i < count; i++) codexlb_set_cloexec(fds[i], 1);
    return -e;
}

void codexlb_block_signals(int on) {
    sigset_t set;
    if (on) sigfillset(&set); else sigemptyset(&set);
    sigprocmask(SIG_SETMASK, &set, NULL);
}

int codexlb_memfd(const char *name, size_t bytes) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -errno;
    if (ftruncate(fd, (off_t)bytes) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        int e = errno;
        close(fd);
        return -e;
    }
    return fd;
}

int codexlb_socketpair(int out[2]) {
    return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, out) == 0 ? 0 : -errno;
}

int codexlb_packet_pair(int out[2]) {
    return socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, out) == 0 ? 0 : -errno;
}

static int send_message(int socket, int fd, const void *bytes, size_t count, int flags) {
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    memset(&control, 0, sizeof control);
    struct iovec data = {(void *)bytes, count};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof fd);
    }
    ssize_t n;
    do n = sendmsg(socket, &message, MSG_NOSIGNAL | flags); while (n < 0 && errno == EINTR);
    return n == (ssize_t)count ? 0 : -errno;
}

int codexlb_send_descriptor(int socket, int fd, const void *bytes, size_t count) {
    return send_message(socket, fd, bytes, count, MSG_DONTWAIT);
}

int codexlb_receive_descriptor(int socket, void *bytes, size_t *count) {
    union { struct cmsghdr align; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    struct iovec data = {bytes, *count};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n;
    do n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC); while (n < 0 && errno == EINTR);
    if (n < 0) return -errno;
    if (n == 0) return -EPIPE;
    *count = (size_t)n;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || c->cmsg_len != CMSG_LEN(sizeof(int))) return -EBADMSG;
    int fd;
    memcpy(&fd, CMSG_DATA(c), sizeof fd);
    return fd;
}

int codexlb_notify(const char *path, const char *text, int fd, int milliseconds) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address.sun_path) return -EINVAL;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = 0;
    int manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (manager < 0) return -errno;
    struct timeval limit = {milliseconds / 1000, milliseconds % 1000 * 1000};
    setsockopt(manager, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    int code = connect(manager, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) == 0
        ? send_message(manager, fd, text, strlen(text), milliseconds > 0 ? 0 : MSG_DONTWAIT) : -errno;
    close(manager);
    return code;
}

int codexlb_affinity_count(void) {
    // Twice as many until the kernel's set fits (sched_setaffinity(2)).
    for (int cpus = 1024; cpus <= 1 << 18; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (!set) return -ENOMEM;
        size_t size = CPU_ALLOC_SIZE(cpus);
        int code = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : -errno;
        CPU_FREE(set);
        if (code != -EINVAL) return code;
    }
    return -EINVAL;
}

int64_t codexlb_peer_uid(int fd) {
    struct ucred c;
    socklen_t n = sizeof c;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n) == 0 ? (int64_t)c.uid : -errno;
}

int codexlb_set_cloexec(int fd, int on) {
    int f = fcntl(fd, F_GETFD);
    return f < 0 || fcntl(fd, F_SETFD, on ? f | FD_CLOEXEC : f & ~FD_CLOEXEC) < 0 ? -errno : 0;
}

int codexlb_set_nonblocking(int fd, int on) {
    int f = fcntl(fd, F_GETFL);
    return f < 0 || fcntl(fd, F_SETFL, on ? f | O_NONBLOCK : f & ~O_NONBLOCK) < 0 ? -errno : 0;
}

static uint32_t crc_tables[8][256];

// Before main, since several threads ask at once.
__attribute__((constructor)) static void make_crc_tables(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
        crc_tables[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (int i = 0; i < 256; i++) crc_tables[t][i] = crc_tables[0][crc_tables[t - 1][i] & 0xFF] ^ (crc_tables[t - 1][i] >> 8);
}

// Eight bytes a step, each through the table of its distance from the end ("slicing by 8", Kounavis and Berry 2008).
static uint32_t crc_by_table(uint32_t crc, const uint8_t *p, size_t count) {
    for (; count >= 8; count -= 8, p += 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = crc_tables[7][low & 0xFF] ^ crc_tables[6][low >> 8 & 0xFF] ^ crc_tables[5][low >> 16 & 0xFF] ^ crc_tables[4][low >> 24]
            ^ crc_tables[3][p[4]] ^ crc_tables[2][p[5]] ^ crc_tables[1][p[6]] ^ crc_tables[0][p[7]];
    }
    while (count--) crc = crc_tables[0][(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_by_instruction(uint32_t crc, const uint8_t *p, size_t count) {
    uint64_t wide = crc;
    for (; count >= 8; count -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    crc = (uint32_t)wide;
    while (count--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#endif

static uint32_t crc_extend(uint32_t crc, const void *bytes, size_t count) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc_by_instruction(crc, bytes, count);
#endif
    return crc_by_table(crc, bytes, count);
}

uint32_t codexlb_crc32c(const void *bytes, size_t count) { return ~crc_extend(~0u, bytes, count); }
uint32_t codexlb_crc32c_by_table(const void *bytes, size_t count) { return ~crc_by_table(~0u, bytes, count); }

static uint32_t crc_value_by_table(uint32_t crc, uint8_t kind, uint64_t number, const void *bytes, size_t count) {
    uint8_t head[9] = {kind};
    for (int i = 0; i < 8; i++) head[1 + i] = (uint8_t)(number >> 8 * i);
    return crc_by_table(crc_by_table(crc, head, sizeof head), bytes, count);
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc_value_by_instruction(
    uint32_t crc, uint8_t kind, uint64_t number, const void *bytes, size_t count) {
    crc = (uint32_t)__builtin_ia32_crc32di(__builtin_ia32_crc32qi(crc, kind), number);
    return count ? crc_by_instruction(crc, bytes, count) : crc;
}
#endif

static uint32_t crc_value(uint32_t crc, uint8_t kind, uint64_t number, const void *bytes, size_t count) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc_value_by_instruction(crc, kind, number, bytes, count);
#endif
    return crc_value_by_table(crc, kind, number, bytes, count);
}

uint32_t codexlb_crc32c_number(uint32_t crc, uint8_t kind, uint64_t number) { return ~crc_value(~crc, kind, number, NULL, 0); }

uint32_t codexlb_crc32c_bytes(uint32_t crc, uint8_t kind, const void *bytes, size_t count) {
    return ~crc_value(~crc, kind, count, bytes, count);
}

uint32_t codexlb_crc32c_text(uint32_t crc, uint8_t kind, const void *bytes, size_t count) {
    static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD};
    const uint8_t *p = bytes, *end = p + count;
    const uint8_t *nul = count ? memchr(p, 0, count) : NULL;
    if (!nul) return codexlb_crc32c_bytes(crc, kind, bytes, count);
    size_t total = count;
    for (const uint8_t *q = nul; q < end; q++) total += *q ? 0 : sizeof replacement - 1;
    uint32_t c = crc_value(~crc, kind, total, NULL, 0);
    for (; nul; p = nul + 1, nul = memchr(p, 0, (size_t)(end - p))) {
        c = crc_extend(c, p, (size_t)(nul - p));
        c = crc_extend(c, replacement, sizeof replacement);
    }
    return ~crc_extend(c, p, (size_t)(end - p));
}

int codexlb_pin(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return sched_setaffinity(0, sizeof set, &set) == 0 ? 0 : -errno;
}

void codexlb_name_thread(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }
void codexlb_adopt_owner(const char *path, const char *like) {
    struct stat info;
    if (geteuid() != 0) return;
    if (stat(like, &info) != 0) {
        char directory[PATH_MAX];
        const char *slash = strrchr(like, '/');
        size_t length = slash == NULL ? 0 : (size_t)(slash - like);
        if (length >= sizeof directory) return;
        memcpy(directory, like, length);
        directory[length] = 0;
        if (stat(slash == NULL ? "." : length == 0 ? "/" : directory, &info) != 0) return;
    }
    if (lchown(path, info.st_uid, info.st_gid) != 0) return;
}

static char signal_paths[4][4096];

static void remove_and_end(int number) {
    for (int i = 0; i < 4; i++) {
        if (signal_paths[i][0] != 0) unlink(signal_paths[i]);
    }
    signal(number, SIG_DFL);
    raise(number);
}

void codexlb_remove_at_signal(const char *path) {
    static const char *const ends[4] = {"", "-journal", "-wal", "-shm"};
    static const int numbers[3] = {SIGINT, SIGTERM, SIGHUP};
    if (path != NULL && strlen(path) > 3900) return;
    static struct sigaction before[3];
    static int is_set[3];
    for (int i = 0; i < 3; i++) {
        if (is_set[i]) sigaction(numbers[i], &before[i], NULL);
        is_set[i] = 0;
    }
    for (int i = 0; i < 4; i++) {
        signal_paths[i][0] = 0;
        if (path != NULL) {
            strcpy(signal_paths[i], path);
            strcat(signal_paths[i], ends[i]);
        }
    }
    if (path == NULL) return;
    for (int i = 0; i < 3; i++) {
        // What is ignored (nohup) stays so.
        if (sigaction(numbers[i], NULL, &before[i]) != 0 || before[i].sa_handler == SIG_IGN) continue;
        struct sigaction remove = {.sa_handler = remove_and_end};
        is_set[i] = sigaction(numbers[i], &remove, NULL) == 0;
    }
}

int codexlb_flush_output(void) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    return errno == 0 ? EIO : errno;
}

void codexlb_tune_allocator(void) {
    // A body of a megabyte in fresh pages each time costs three times as much as one in pages that are kept: 8 MiB of them are.
    mallopt(M_MMAP_THRESHOLD, 4 * 1024 * 1024);
    mallopt(M_TRIM_THRESHOLD, 8 * 1024 * 1024);
    mallopt(M_ARENA_MAX, 2);
}

void codexlb_forbid_dumps(void) { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }

void codexlb_become_idle(void) {
    setpriority(PRIO_PROCESS, 0, 19);
    // linux/ioprio.h: who 1 is a process, class 3 (idle) stands above 13 bits of data.
    syscall(SYS_ioprio_set, 1, 0, 3 << 13);
}
