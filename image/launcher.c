/* bin/pg-preflight: starts what lies in the directories beside it, on any Linux of this processor.
 *
 * Static, for there may be neither a shell nor a C library, or another one. It finds its directory by
 * where it lies itself, and starts the loader that is carried there with the libraries that are; no
 * path of the system it runs on is asked. Its other names (python3, pg_dump, pg_restore, postgres)
 * are links to it, and start those.
 *
 * What it changes in the environment is kept in _PG_PREFLIGHT_NAME, as "=value" or as "" where there
 * was none: a wrapped command gets it back (preflight/commands/wrapping/child.py), and what that command's
 * image says to a loader, to Python's or OpenSSL's parts does not reach ours.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

/* LOADER, LIBRARIES, SERVER: below our directory; image/assemble.py knows them */
#define KEPT "_PG_PREFLIGHT_"
#define CONFIGURATION 20 /* the exit code for what has to be changed first */

extern char **environ;
static char root[PATH_MAX];

static void die(const char *what) {
    fprintf(stderr, "pg-preflight: %s: %s\n", what, strerror(errno));
    exit(CONFIGURATION);
}

static char *joined(const char *one, const char *two, const char *three) {
    size_t size = strlen(one) + strlen(two) + strlen(three) + 1;
    char *text = malloc(size);
    if (text == NULL) die("no memory");
    snprintf(text, size, "%s%s%s", one, two, three);
    return text;
}

static char *ours(const char *path) { return joined(root, "/", path); }

/* Set a variable, or remove it; what it was is kept, by the first of us. */
static void change(const char *name, const char *value) {
    char *kept = joined(KEPT, name, "");
    const char *was = getenv(name);
    if (getenv(kept) == NULL) setenv(kept, was ? joined("=", was, "") : "", 1);
    if (value) setenv(name, value, 1);
    else unsetenv(name);
    free(kept);
}

static void find_root(void) {
    char *at = realpath("/proc/self/exe", root);
    const char *started = (const char *)getauxval(AT_EXECFN);
    if (at == NULL && started) at = realpath(started, root);
    if (at == NULL) die("its own directory cannot be found");
    for (int up = 0; up < 2; up++) { /* bin, and the name */
        char *slash = strrchr(root, '/');
        if (slash) *slash = '\0';
    }
}

static void clean(void) {
    for (char **each = environ; *each;) {
        if (strncmp(*each, "LD_", 3) == 0 && strchr(*each, '=')) {
            char *name = strndup(*each, (size_t)(strchr(*each, '=') - *each));
            change(name, NULL);
            each = environ; /* it has moved */
        } else each++;
    }
    for (const char **each = (const char *[]){"OPENSSL_CONF", "OPENSSL_MODULES", NULL}; *each; each++)
        if (getenv(*each)) change(*each, NULL);
}

static void furnish(void) {
    const char *path = getenv("PATH");
    char *bin = ours("bin:");
    if (path == NULL || *path == '\0') path = "/usr/local/bin:/usr/bin:/bin";
    if (strncmp(path, bin, strlen(bin)) != 0) change("PATH", joined(bin, path, ""));
    char *zones = ours("share/zoneinfo"), *locales = ours("lib/locale");
    const char *before = getenv("PYTHONTZPATH");
    if (before == NULL || strcmp(before, zones) != 0) change("PYTHONTZPATH", zones);
    if (access(locales, X_OK) == 0) {
        if ((before = getenv("LOCPATH")) == NULL || strcmp(before, locales) != 0) change("LOCPATH", locales);
    } else if (getenv("LOCPATH")) change("LOCPATH", NULL);
    if (getenv("SSL_CERT_FILE") == NULL && getenv("SSL_CERT_DIR") == NULL) {
        const char *system = "/etc/ssl/certs/ca-certificates.crt"; /* it may know the firm's own */
        change("SSL_CERT_FILE", access(system, R_OK) == 0 ? system : ours("share/ca-certificates.crt"));
    }
}

int main(int argc, char **argv) {
    const char *name = argc ? strrchr(argv[0], '/') : NULL;
    name = name ? name + 1 : argc ? argv[0] : "";
    find_root();
    clean();
    furnish();

    const char *program = "libexec/python3", *called = "bin/python3";
    int story = 0;
    if (strcmp(name, "pg_dump") == 0) program = "libexec/pg_dump", called = "bin/pg_dump";
    else if (strcmp(name, "pg_restore") == 0) program = "libexec/pg_restore", called = "bin/pg_restore";
    else if (strcmp(name, "postgres") == 0) program = called = SERVER; /* it looks for its files from there */
    else if (strcmp(name, "python3") != 0) story = 1;

    char **command = calloc((size_t)argc + 12, sizeof *command);
    if (command == NULL) die("no memory");
    int n = 0;
    command[n++] = ours(LOADER);
    command[n++] = "--inhibit-cache";
    command[n++] = "--library-path";
    command[n++] = ours(LIBRARIES);
    command[n++] = "--argv0";
    command[n++] = ours(called);
    command[n++] = ours(program);
    if (story) {
        command[n++] = "-I";
        command[n++] = ours("app/entrypoint.py");
    }
    for (int each = 1; each < argc; each++) command[n++] = argv[each];
    execve(command[0], command, environ);
    die(command[0]);
}
