/* Stands between a program and one ledger's files, for tests (LD_PRELOAD): the n-th call fails, stands still or kills.
 *
 * TEST_DISK_FILE is the ledger's path; files whose paths begin with it are meant. TEST_DISK_CONTROL names a file of one
 * `struct control`, through which the test arms a fault while the program runs, and sees every call. TEST_DISK_DURABLE,
 * if it is set, is a directory that holds what a cut of the power would leave at the worst: each file as of its last
 * fdatasync. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { READ = 'r', WRITE = 'w', SYNC = 's', COMMIT = 'c', TRUNCATE = 't' };
enum { PAGE = 4096 };
enum { FAIL_BEFORE = 1, FAIL_AFTER, KILL_BEFORE, KILL_AFTER, HOLD_BEFORE, HOLD_AFTER };
enum { LOGGED = 16384 };

static struct control {
    volatile int32_t action, first, last, error; /* calls first..last of `kinds`, from 1 */
    char kinds[8], files[4];
    volatile int32_t standing; /* how many calls are held */
    volatile int32_t counted;  /* calls of `kinds` since it was armed */
    volatile int32_t logged;
    char log[LOGGED][2]; /* kind, and the last letter of the file's name: b (.db), l (-wal), m (-shm) */
} *control;
static const char *ledger;
static volatile size_t written; /* by the last write: a commit's is a page, that of the log's own header is not */

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("TEST_DISK_CONTROL");
    ledger = getenv("TEST_DISK_FILE");
    if (!path || !ledger) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) abort();
    close(file);
    control = mapped;
}

static int name_of(int file, char name[PATH_MAX]) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = control ? readlink(link, name, PATH_MAX - 1) : -1;
    if (length < 0) return 0;
    name[length] = 0;
    return strncmp(name, ledger, strlen(ledger)) == 0;
}

/* The action for this call, 0 for none; what is to come before the call has been done. */
static int meet(int kind, int file) {
    char name[PATH_MAX];
    if (!name_of(file, name)) return 0;
    int32_t at = __atomic_fetch_add(&control->logged, 1, __ATOMIC_SEQ_CST);
    int which = name[strlen(name) - 1], action = control->action;
    if (kind == SYNC && which == 'l' && written == PAGE) kind = COMMIT;
    if (at < LOGGED) control->log[at][0] = kind, control->log[at][1] = which;
    if (!action || !memchr(control->kinds, kind, sizeof control->kinds)) return 0;
    if (!memchr(control->files, which, sizeof control->files)) return 0;
    int32_t number = __atomic_add_fetch(&control->counted, 1, __ATOMIC_SEQ_CST);
    if (number < control->first || number > control->last) return 0;
    if (action == KILL_BEFORE) kill(getpid(), SIGKILL), pause();
    return action;
}

static void stand(int action) {
    __atomic_add_fetch(&control->standing, 1, __ATOMIC_SEQ_CST);
    while (control->action == action) usleep(1000);
    __atomic_sub_fetch(&control->standing, 1, __ATOMIC_SEQ_CST);
}

static ssize_t leave(int action, ssize_t result) {
    if (action == KILL_AFTER) kill(getpid(), SIGKILL), pause();
    if (action == HOLD_AFTER) stand(action);
    if (action != FAIL_BEFORE && action != FAIL_AFTER) return result;
    errno = control->error;
    return -1;
}

#define FORWARD(type, name, kind, file, parameters, arguments)                                                        \
    type name parameters {                                                                                            \
        static type(*real) parameters;                                                                                \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                                \
        int action = meet(kind, file);                                                                                \
        if (action == HOLD_BEFORE) stand(action);                                                                     \
        return (type)leave(action, action == FAIL_BEFORE ? -1 : real arguments);                                      \
    }

FORWARD(ssize_t, pread64, READ, file, (int file, void *to, size_t count, off64_t at), (file, to, count, at))
FORWARD(ssize_t, pwrite64, WRITE, file, (int file, const void *from, size_t count, off64_t at),
        (file, from, written = count, at))
FORWARD(int, ftruncate64, TRUNCATE, file, (int file, off64_t length), (file, length))

/* What has been written so far is now what a cut of the power would leave. */
static void keep(int file) {
    const char *directory = getenv("TEST_DISK_DURABLE");
    char name[PATH_MAX], copy[2 * PATH_MAX], block[65536];
    if (!directory || !name_of(file, name)) return;
    snprintf(copy, sizeof copy, "%s/%s", directory, strrchr(name, '/') + 1);
    int to = open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t at = 0;
    ssize_t length;
    /* Through the same descriptor: closing another one would drop this process's locks on the file. */
    while ((length = pread(file, block, sizeof block, at)) > 0) {
        if (write(to, block, length) != length) abort();
        at += length;
    }
    if (to < 0 || length < 0) abort();
    close(to);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int action = meet(SYNC, file);
    if (action == HOLD_BEFORE) stand(action);
    int result = action == FAIL_BEFORE ? -1 : real(file);
    if (result == 0) keep(file);
    return (int)leave(action, result);
}
