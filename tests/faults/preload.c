/* What a system may answer instead of doing it; each answer is switched on by a variable.
 *
 * FAULT_WRITE, FAULT_FSYNC   errno for files named database.dump
 * FAULT_DIRSYNC, FAULT_FLOCK errno for fsync of a directory, and for flock
 * FAULT_PASSFILE             errno for the file that the password is in
 * FAULT_TEMPORARY            errno for the file that Python tries a temporary directory with
 * FAULT_FORK, FAULT_FORKS    errno for every new process, or for the first so many of each parent
 * FAULT_NOW                  the time of day, standing still
 * FAULT_RESOLVER             "hangs", "fails", or a file: names are known once it is there
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int answer(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

static int refused(int number) {
    if (number)
        errno = number;
    return number != 0;
}

static int is_dump(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    const char *name = strrchr(path, '/');
    return name && strcmp(name, "/database.dump") == 0;
}

static int is_directory(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "write");
    int number = answer("FAULT_WRITE");
    if (number && is_dump(descriptor) && refused(number))
        return -1;
    return real(descriptor, bytes, size);
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    if (!real)
        real = dlsym(RTLD_NEXT, "open64");
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    if (strstr(path, "/pg-preflight-password-") && refused(answer("FAULT_PASSFILE")))
        return -1;
    const char *name = strrchr(path, '/');
    if (flags & O_EXCL && name && strlen(name) == 9 && refused(answer("FAULT_TEMPORARY")))
        return -1;
    return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    return open64(path, flags, mode);
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real)
        real = dlsym(RTLD_NEXT, "fsync");
    int number = answer(is_directory(descriptor) ? "FAULT_DIRSYNC" : "FAULT_FSYNC");
    if (number && (is_directory(descriptor) || is_dump(descriptor)) && refused(number))
        return -1;
    return real(descriptor);
}

int flock(int descriptor, int operation) {
    static int (*real)(int, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "flock");
    return refused(answer("FAULT_FLOCK")) ? -1 : real(descriptor, operation);
}

pid_t fork(void) {
    static pid_t (*real)(void);
    if (!real)
        real = dlsym(RTLD_NEXT, "fork");
    static int so_far;
    int most = answer("FAULT_FORKS");
    if ((!most || so_far++ < most) && refused(answer("FAULT_FORK")))
        return -1;
    return real();
}

pid_t vfork(void) { /* a real vfork cannot be handed on from here */
    return fork();
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = dlsym(RTLD_NEXT, "clock_gettime");
    int second = clock == CLOCK_REALTIME ? answer("FAULT_NOW") : 0;
    if (!second)
        return real(clock, now);
    now->tv_sec = second;
    now->tv_nsec = 0;
    return 0;
}

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real)
        real = dlsym(RTLD_NEXT, "getaddrinfo");
    const char *how = getenv("FAULT_RESOLVER");
    if (!how || !host || (host[0] >= '0' && host[0] <= '9'))
        return real(host, port, hints, found);
    if (strcmp(how, "hangs") == 0)
        for (;;)
            pause();
    if (strcmp(how, "fails") == 0)
        return EAI_AGAIN;
    return access(how, F_OK) == 0 ? real("127.0.0.1", port, hints, found) : EAI_NONAME;
}
