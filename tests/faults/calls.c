/* A place whose file system fails: what is asked of it is told, and may be refused.
 *
 * CALLS_PLACE  the directory; calls for what lies elsewhere are let alone
 * CALLS_TOLD   a file that gets a line of 128 bytes for each call: what, by whom, of what; and
 *              another one with a "!" where it was refused
 * CALLS_WHAT   the calls that are refused, as in ",fsync,open,"
 * CALLS_OF     of what alone: some words of the path
 * CALLS_ERRNO  with what
 * CALLS_FROM   from which number on (1), CALLS_TO up to which (none: for ever)
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LINE 128
#define REAL(name, result, ...)                                                                    \
    static result (*real)(__VA_ARGS__);                                                            \
    if (!real)                                                                                     \
        real = dlsym(RTLD_NEXT, name)

static const char *place(void) {
    static const char *value;
    static int asked;
    if (!asked) {
        value = getenv("CALLS_PLACE");
        asked = 1;
    }
    return value;
}

static long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

/* Tell a call; return its number. The file may only grow, so that its end tells how many came. */
static long told(const char *what, const char *path) {
    const char *name = getenv("CALLS_TOLD");
    if (!name)
        return 0;
    int file = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    char line[LINE + 1];
    int size = snprintf(line, sizeof line, "%s %s %s", what, program_invocation_short_name, path);
    if (size < LINE)
        memset(line + size, ' ', LINE - size);
    line[LINE - 1] = '\n';
    syscall(SYS_write, file, line, LINE);
    long end = syscall(SYS_lseek, file, 0, SEEK_CUR);
    syscall(SYS_close, file);
    return end / LINE;
}

/* Tell whether a call is refused, and say so. */
static int refused_at(const char *what, const char *path) {
    const char *root = place();
    size_t size = root ? strlen(root) : 0;
    if (!root || strncmp(path, root, size) != 0 || (path[size] && path[size] != '/'))
        return 0;
    int before = errno;
    long at = told(what, path + size);
    char asked[40], refused[40];
    snprintf(asked, sizeof asked, ",%s,", what);
    snprintf(refused, sizeof refused, "!%s", what);
    const char *which = getenv("CALLS_WHAT"), *of = getenv("CALLS_OF");
    long until = number("CALLS_TO", 0);
    int due = which && strstr(which, asked) && at >= number("CALLS_FROM", 1) && (!of || strstr(path, of));
    errno = before;
    if (!due || (until && at > until))
        return 0;
    told(refused, path + size);
    errno = number("CALLS_ERRNO", EIO);
    return 1;
}

static int path_of(int descriptor, char *path, size_t size) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t found = readlink(link, path, size - 1);
    errno = before;
    path[found < 0 ? 0 : found] = 0;
    return found > 0;
}

static int refused_of(const char *what, int descriptor) {
    char path[4096];
    return place() && path_of(descriptor, path, sizeof path) && refused_at(what, path);
}

/* A name may be told from a directory that is open. */
static int refused_in(const char *what, int directory, const char *name) {
    char path[8192];
    if (!place())
        return 0;
    if (name[0] == '/')
        return refused_at(what, name);
    if (directory == AT_FDCWD || !path_of(directory, path, 4096))
        return 0;
    size_t size = strlen(path);
    snprintf(path + size, sizeof path - size, "/%s", name);
    return refused_at(what, path);
}

static int is_directory(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode);
}

static const char *how(int flags) {
    if (flags & O_DIRECTORY)
        return "opendir";
    if (flags & O_CREAT)
        return "create";
    return (flags & O_ACCMODE) == O_RDONLY ? "open" : "openwrite";
}

int open64(const char *path, int flags, ...) {
    REAL("open64", int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    return refused_in(how(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    return open64(path, flags, mode);
}

int openat64(int directory, const char *path, int flags, ...) {
    REAL("openat64", int, int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    return refused_in(how(flags), directory, path) ? -1 : real(directory, path, flags, mode);
}

int openat(int directory, const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    return openat64(directory, path, flags, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL("fopen64", FILE *, const char *, const char *);
    const char *what = mode[0] == 'r' ? "open" : "create";
    return refused_in(what, AT_FDCWD, path) ? NULL : real(path, mode);
}

FILE *fopen(const char *path, const char *mode) {
    return fopen64(path, mode);
}

DIR *opendir(const char *path) {
    REAL("opendir", DIR *, const char *);
    return refused_in("opendir", AT_FDCWD, path) ? NULL : real(path);
}

struct dirent64 *readdir64(DIR *stream) {
    REAL("readdir64", struct dirent64 *, DIR *);
    return refused_of("readdir", dirfd(stream)) ? NULL : real(stream);
}

struct dirent *readdir(DIR *stream) {
    REAL("readdir", struct dirent *, DIR *);
    return refused_of("readdir", dirfd(stream)) ? NULL : real(stream);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL("write", ssize_t, int, const void *, size_t);
    return refused_of("write", descriptor) ? -1 : real(descriptor, bytes, size);
}

ssize_t read(int descriptor, void *bytes, size_t size) {
    REAL("read", ssize_t, int, void *, size_t);
    return refused_of("read", descriptor) ? -1 : real(descriptor, bytes, size);
}

/* What was written late may fail here, on FUSE any file; it is closed all the same. */
int close(int descriptor) {
    REAL("close", int, int);
    int refused = !is_directory(descriptor) && refused_of("close", descriptor), why = errno;
    int closed = real(descriptor);
    if (refused)
        errno = why;
    return refused ? -1 : closed;
}

int fsync(int descriptor) {
    REAL("fsync", int, int);
    const char *what = is_directory(descriptor) ? "syncdir" : "fsync";
    return refused_of(what, descriptor) ? -1 : real(descriptor);
}

int flock(int descriptor, int operation) {
    REAL("flock", int, int, int);
    return refused_of("flock", descriptor) ? -1 : real(descriptor, operation);
}

int fchmod(int descriptor, mode_t mode) {
    REAL("fchmod", int, int, mode_t);
    return refused_of("chmod", descriptor) ? -1 : real(descriptor, mode);
}

int chmod(const char *path, mode_t mode) {
    REAL("chmod", int, const char *, mode_t);
    return refused_in("chmod", AT_FDCWD, path) ? -1 : real(path, mode);
}

int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
    REAL("utimensat", int, int, const char *, const struct timespec[2], int);
    return refused_in("utime", directory, path) ? -1 : real(directory, path, times, flags);
}

int posix_fadvise64(int descriptor, off64_t from, off64_t size, int advice) {
    REAL("posix_fadvise64", int, int, off64_t, off64_t, int);
    return refused_of("advise", descriptor) ? errno : real(descriptor, from, size, advice);
}

int mkdir(const char *path, mode_t mode) {
    REAL("mkdir", int, const char *, mode_t);
    return refused_in("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}

int rename(const char *old, const char *new) {
    REAL("rename", int, const char *, const char *);
    return refused_in("rename", AT_FDCWD, old) ? -1 : real(old, new);
}

int unlink(const char *path) {
    REAL("unlink", int, const char *);
    return refused_in("unlink", AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int directory, const char *path, int flags) {
    REAL("unlinkat", int, int, const char *, int);
    return refused_in("unlink", directory, path) ? -1 : real(directory, path, flags);
}

int rmdir(const char *path) {
    REAL("rmdir", int, const char *);
    return refused_in("unlink", AT_FDCWD, path) ? -1 : real(path);
}

int statvfs64(const char *path, struct statvfs64 *found) {
    REAL("statvfs64", int, const char *, struct statvfs64 *);
    return refused_in("statvfs", AT_FDCWD, path) ? -1 : real(path, found);
}

int stat64(const char *path, struct stat64 *found) {
    REAL("stat64", int, const char *, struct stat64 *);
    return refused_in("stat", AT_FDCWD, path) ? -1 : real(path, found);
}

int lstat64(const char *path, struct stat64 *found) {
    REAL("lstat64", int, const char *, struct stat64 *);
    return refused_in("stat", AT_FDCWD, path) ? -1 : real(path, found);
}

int fstatat64(int directory, const char *path, struct stat64 *found, int flags) {
    REAL("fstatat64", int, int, const char *, struct stat64 *, int);
    return refused_in("stat", directory, path) ? -1 : real(directory, path, found, flags);
}
