/* Preloaded by tests/helpers/kills.py: ends the process by SIGKILL at a chosen call of the C library.

   kill_at("rename", 3, "/checkpoints/") ends it before the third rename to a path that contains this text. Writes are
   torn: half of the bytes are written first. Libraries in C++ and Rust are caught too. calls_made(0) counts writes, 1 renames, 2
   removals. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *const NAMES[] = {"write", "rename", "unlink"};
static atomic_int made[3];
static char call_name[32], path_part[256];
static int last;
static atomic_int is_armed;

void kill_at(const char *name, int number, const char *part) {
    snprintf(call_name, sizeof call_name, "%s", name);
    snprintf(path_part, sizeof path_part, "%s", part);
    last = number;
    atomic_store(&is_armed, 1);
}

int calls_made(int kind) { return atomic_load(&made[kind]); }

static int is_last(int kind, const char *path) {
    if (!atomic_load(&is_armed) || !strstr(path, path_part)) return 0;
    return atomic_fetch_add(&made[kind], 1) + 1 == last && !strcmp(NAMES[kind], call_name);
}

static int is_last_of_file(int file) {
    char link[64], path[4096];
    if (!atomic_load(&is_armed)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    return is_last(0, path);
}

#define NEXT(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

int rename(const char *from, const char *to) {
    if (is_last(1, to)) raise(SIGKILL);
    return NEXT(rename)(from, to);
}

int unlink(const char *path) {
    if (is_last(2, path)) raise(SIGKILL);
    return NEXT(unlink)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    char link[64], whole[8192] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = *path == '/' ? 0 : readlink(link, whole, 4096);
    snprintf(whole + (size < 0 ? 0 : size), 4096, "/%s", path);
    if (is_last(2, whole)) raise(SIGKILL);
    return NEXT(unlinkat)(folder, path, flags);
}

ssize_t write(int file, const void *data, size_t size) {
    if (is_last_of_file(file)) {
        NEXT(write)(file, data, size / 2);
        raise(SIGKILL);
    }
    return NEXT(write)(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (is_last_of_file(file)) {
        NEXT(write)(file, parts[0].iov_base, parts[0].iov_len / 2);
        raise(SIGKILL);
    }
    return NEXT(writev)(file, parts, count);
}
