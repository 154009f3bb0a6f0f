#ifndef CPLATFORM_H
#define CPLATFORM_H
#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

/// Starts `path` in a child with exactly the descriptors of `fds`: `fds[i]` becomes number `targets[i]`, everything else but
/// 0, 1 and 2 is closed on exec. Signals are unblocked and back to their defaults. Returns the pid, or -errno.
/// With `dies_with_us` the child gets SIGTERM when the calling thread ends.
/// Between fork and exec only async-signal-safe calls are made, all of them here.
pid_t codexlb_spawn(const char *path, char *const argv[], char *const envp[], const int *fds, const int *targets, size_t count, int dies_with_us);

/// Becomes another program in this process: `fds` stay open under their numbers, everything else but 0, 1 and 2 is closed. The signal mask and
/// what is ignored stay. Returns only when it can't, with -errno and everything as it was.
int codexlb_exec(const char *path, char *const argv[], char *const envp[], const int *fds, size_t count);
/// Blocks every signal for the calling thread, or (0) lets all through.
void codexlb_block_signals(int on);

/// An anonymous file in memory of `bytes`, close-on-exec, or -errno.
int codexlb_memfd(const char *name, size_t bytes);

/// A connected pair of stream sockets, close-on-exec and non-blocking. 0 or -errno.
int codexlb_socketpair(int out[2]);

/// A connected pair of sockets that keep messages apart (SOCK_SEQPACKET), close-on-exec and non-blocking. 0 or -errno.
int codexlb_packet_pair(int out[2]);
/// CPUs that the calling thread may run on, or -errno.
int codexlb_affinity_count(void);

/// Sends a message with a descriptor, whose other copies stay open (SCM_RIGHTS, unix(7)). 0 or -errno.
int codexlb_send_descriptor(int socket, int fd, const void *bytes, size_t count);
/// Takes one such message of at most `*count` bytes: the descriptor, close-on-exec, or -errno; -EBADMSG for a message without one.
int codexlb_receive_descriptor(int socket, void *bytes, size_t *count);
/// Sends one datagram to a service manager at `path`, where `@` stands for an abstract name (sd_notify(3)), with a descriptor unless that is
/// negative. Waits for so long where the manager's queue is full. 0 or -errno; -EAGAIN: the queue is full still.
int codexlb_notify(const char *path, const char *text, int fd, int milliseconds);

/// The peer's user id on a Unix-domain socket, or -errno.
int64_t codexlb_peer_uid(int fd);

/// Sets or clears FD_CLOEXEC. 0 or -errno.
int codexlb_set_cloexec(int fd, int on);
int codexlb_set_nonblocking(int fd, int on);

/// CRC-32C (Castagnoli) of the bytes.
uint32_t codexlb_crc32c(const void *bytes, size_t count);
// The same without the processor's instruction for it.
uint32_t codexlb_crc32c_by_table(const void *bytes, size_t count);
/// The CRC-32C `crc` continued over one value of a row: its kind, then eight bytes little-endian, its number or how many bytes follow, then
/// those. A NUL in a text counts as the three bytes of U+FFFD.
uint32_t codexlb_crc32c_number(uint32_t crc, uint8_t kind, uint64_t number);
uint32_t codexlb_crc32c_bytes(uint32_t crc, uint8_t kind, const void *bytes, size_t count);
uint32_t codexlb_crc32c_text(uint32_t crc, uint8_t kind, const void *bytes, size_t count);

/// Pins the calling thread to one CPU; 0 or -errno. For benchmarks.
int codexlb_pin(int cpu);

/// Names the process as `ps` and `top` show it (15 bytes).
void codexlb_name_thread(const char *name);
/// Lowest priority for CPU (nice 19) and disk (ioprio_set(2), idle class).
void codexlb_become_idle(void);
/// Gives large blocks back to the kernel when they are freed: glibc would raise its threshold with each, and keep what one large body needed.
void codexlb_tune_allocator(void);
/// For commands that root runs on a service's files: gives a new file, directory or socket the owner and group of `like`, or where that is
/// not there those of the directory it would be in. Nothing for anybody but root. What fails leaves the owner as it is.
void codexlb_adopt_owner(const char *path, const char *like);
/// Sends out what was printed: 0, or the errno of what standard output did not take, also earlier.
int codexlb_flush_output(void);
/// While `path` is set, SIGINT, SIGTERM and SIGHUP remove that file, and what SQLite makes beside it, before they end the process; NULL: as
/// before. A path of more than 3,900 bytes is left alone.
void codexlb_remove_at_signal(const char *path);
/// Keeps the process's memory out of core files and away from ptrace by others.
void codexlb_forbid_dumps(void);
#endif
