// Library between the service and the files of its data directory. It lets system calls fail, kills the process within
// them, records writes and syncs, and sets the wall clock. Preloaded before the C library. interpose.py has the same layout of Control.

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
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

namespace {

enum Call { WRITE, SYNC, TRUNCATE, UNLINK };
enum Action { NOTHING, FAIL, KILL, FULL, SLOW };

struct Control {
    volatile int32_t action;
    volatile int32_t calls;  // bit mask of the calls that the action applies to
    volatile int32_t error;  // errno of a call that fails; milliseconds that a slow one takes
    volatile int32_t acted;
    volatile int64_t after;  // number of those calls to let through first
    volatile int64_t times;  // number of calls that the action applies to after that
    volatile int64_t taken;  // whether statvfs reports a full disk
    volatile int64_t step;   // seconds that the wall clock is ahead
};

struct Record {
    int32_t call;
    int32_t name;  // length of the name that follows, bytes
    int64_t offset;
    int64_t length;  // length of the content that follows the name, bytes; for a truncation, offset is the new length
};

Control nothing;
Control* control = &nothing;
char directory[PATH_MAX];
int journal = -1;

template <typename F>
F next(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

__attribute__((constructor)) void begin() {
    // This process ends when its parent ends.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (const char* path = getenv("HADAKV_FAULTS_CONTROL")) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        void* shared = fd < 0 ? MAP_FAILED
                              : mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (shared != MAP_FAILED) control = static_cast<Control*>(shared);
        if (fd >= 0) close(fd);
    }
    if (const char* path = getenv("HADAKV_FAULTS_DIRECTORY")) snprintf(directory, sizeof directory, "%s/", path);
    if (const char* path = getenv("HADAKV_FAULTS_JOURNAL"))
        journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

// Returns the name of a path relative to the data directory, or null if it lies elsewhere.
const char* within(const char* path) {
    size_t length = strlen(directory);
    return length && strncmp(path, directory, length) == 0 ? path + length : nullptr;
}

const char* ours(int fd, char* path) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return nullptr;
    path[length] = 0;
    return within(path);
}

void note(Call call, const char* name, int64_t offset, const void* bytes, int64_t length) {
    if (journal < 0) return;
    Record record{call, static_cast<int32_t>(strlen(name)), offset, length};
    iovec parts[] = {{&record, sizeof record},
                     {const_cast<char*>(name), static_cast<size_t>(record.name)},
                     {const_cast<void*>(bytes), static_cast<size_t>(length)}};
    if (writev(journal, parts, 3) < 0) abort();
}

Action due(Call call) {
    if (control->action == NOTHING || !(control->calls >> call & 1)) return NOTHING;
    if (control->after > 0) {
        control->after = control->after - 1;
        return NOTHING;
    }
    if (control->times <= 0) return NOTHING;
    return static_cast<Action>(control->action);
}

void act() {
    control->times = control->times - 1;
    control->acted = control->acted + 1;
}

[[noreturn]] void die() {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

ssize_t write_at(int fd, const void* bytes, size_t count, off64_t offset) {
    static auto real = next<ssize_t (*)(int, const void*, size_t, off64_t)>("pwrite64");
    char path[PATH_MAX];
    const char* name = ours(fd, path);
    if (!name) return real(fd, bytes, count, offset);
    Action action = due(WRITE);
    if (action == FULL) {
        struct stat64 about;
        if (fstat64(fd, &about) != 0 || about.st_size >= static_cast<off64_t>(offset + count)) action = NOTHING;
    }
    if (action == NOTHING) {
        note(WRITE, name, offset, bytes, count);
        return real(fd, bytes, count, offset);
    }
    act();
    // A failing or interrupted write has written half of its bytes.
    size_t half = action == FULL ? 0 : count / 2;
    note(WRITE, name, offset, bytes, half);
    if (half && real(fd, bytes, half, offset) < 0) return -1;
    if (action == KILL) die();
    errno = action == FULL ? ENOSPC : control->error;
    return -1;
}

int sync(int fd, int (*real)(int)) {
    char path[PATH_MAX];
    const char* name = ours(fd, path);
    if (!name) return real(fd);
    Action action = due(SYNC);
    if (action == FAIL || action == KILL) {
        act();
        if (action == KILL) die();
        errno = control->error;
        return -1;
    }
    if (action == SLOW) {
        act();
        usleep(1000u * static_cast<useconds_t>(control->error));
    }
    int result = real(fd);
    if (result == 0) note(SYNC, name, 0, nullptr, 0);
    return result;
}

int truncate_to(int fd, off64_t length) {
    static auto real = next<int (*)(int, off64_t)>("ftruncate64");
    char path[PATH_MAX];
    const char* name = ours(fd, path);
    if (!name) return real(fd, length);
    Action action = due(TRUNCATE);
    if (action == FAIL || action == KILL) {
        act();
        if (action == KILL) die();
        errno = control->error;
        return -1;
    }
    note(TRUNCATE, name, length, nullptr, 0);
    return real(fd, length);
}

template <typename About>
int about_disk(const char* path, About* about, const char* symbol) {
    int result = next<int (*)(const char*, About*)>(symbol)(path, about);
    size_t length = strlen(directory);
    if (result == 0 && control->taken && length && strncmp(path, directory, length - 1) == 0)
        about->f_bavail = about->f_bfree = 0;
    return result;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, struct timespec* now) noexcept {
    static auto real = next<int (*)(clockid_t, struct timespec*)>("clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->step;
    return result;
}


ssize_t pwrite64(int fd, const void* bytes, size_t count, off64_t offset) { return write_at(fd, bytes, count, offset); }
ssize_t pwrite(int fd, const void* bytes, size_t count, off_t offset) { return write_at(fd, bytes, count, offset); }
int ftruncate64(int fd, off64_t length) { return truncate_to(fd, length); }
int ftruncate(int fd, off_t length) { return truncate_to(fd, length); }

int fsync(int fd) {
    static auto real = next<int (*)(int)>("fsync");
    return sync(fd, real);
}

int fdatasync(int fd) {
    static auto real = next<int (*)(int)>("fdatasync");
    return sync(fd, real);
}

int statvfs(const char* path, struct statvfs* about) { return about_disk(path, about, "statvfs"); }
int statvfs64(const char* path, struct statvfs64* about) { return about_disk(path, about, "statvfs64"); }

int unlink(const char* path) {
    static auto real = next<int (*)(const char*)>("unlink");
    if (const char* name = within(path)) note(UNLINK, name, 0, nullptr, 0);
    return real(path);
}
}
