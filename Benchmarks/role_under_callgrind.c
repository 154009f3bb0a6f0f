// Preloaded into the supervisor by instructions.py: children of the role CALLGRIND_ROLE start under callgrind, everything else as ever.
//
// Valgrind can't follow the product's own exec: children are started from /proc/self/exe, which under valgrind is valgrind. So the
// supervisor runs natively, and only the exec of such a child is turned into one of valgrind with the program's path.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int execve(const char *path, char *const argv[], char *const envp[]) {
    int (*real)(const char *, char *const[], char *const[]) = (int (*)(const char *, char *const[], char *const[]))dlsym(RTLD_NEXT, "execve");
    const char *output = getenv("CALLGRIND_OUTPUT"), *role = getenv("CALLGRIND_ROLE");
    if (!output || !role || !argv[0] || !argv[1] || !argv[2] || strcmp(argv[1], "role") != 0 || strcmp(argv[2], role) != 0)
        return real(path, argv, envp);
    char option[4096] = "--callgrind-out-file=";
    strncat(option, output, sizeof option - strlen(option) - 1);
    char *command[] = {"/usr/bin/valgrind", "--quiet", "--tool=callgrind", option, argv[0], argv[1], argv[2], NULL};
    return real(command[0], command, envp);
}
