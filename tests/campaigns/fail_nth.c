// Makes the n-th call of one kind fail, or do half of its work: loaded with LD_PRELOAD.
//
// Calls count only between fail_nth_arm and fail_nth_disarm, in all threads of the process. Memory counts only if
// fastseq's own modules ask for it (kind "malloc"), or torch for a tensor ("tensor"). Not if HDF5 does: when it gets none
// (version 2.0), it crashes, or has lost default properties for as long as the process lives. Nor if less than 32 bytes are
// wanted: pybind11 (version 3.0) notes each new object in a node of 24, where it catches no exceptions.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

// In the order of KINDS in system_calls.py.
enum Kind {
  kOpen,
  kCreate,
  kRead,
  kPread,
  kPreadv2,
  kWrite,
  kPwrite,
  kFsync,
  kRename,
  kMmap,
  kMemfd,
  kReserve,
  kClose,
  kFlock,
  kThread,
  kMalloc,
  kTensor,
  kKinds,
  kHdf5 = kKinds,  // no kinds: who calls
  kNone
};

enum { kShort = -1, kAny = -1 };  // instead of an error: half of the bytes; instead of a kind: none fails

static atomic_bool armed;
static int armed_kind, armed_error;
static long armed_n;
static atomic_long counts[kKinds];
static atomic_bool fired;
static bool uncached;  // RWF_NOWAIT finds nothing in the page cache

static struct {
  uintptr_t begin, end;
  enum Kind kind;
} callers[64];
static int caller_count;

static int note_module(struct dl_phdr_info* info, size_t size, void* data) {
  (void)size, (void)data;
  const char* name = info->dlpi_name;
  enum Kind kind = kNone;
  if (strstr(name, "/fastseq/_") != NULL) kind = kMalloc;
  if (strstr(name, "libc10.so") != NULL) kind = kTensor;
  if (strstr(name, "libhdf5") != NULL) kind = kHdf5;
  if (kind == kNone) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)* part = &info->dlpi_phdr[i];
    if (part->p_type != PT_LOAD || (part->p_flags & PF_X) == 0 || caller_count == 64) continue;
    callers[caller_count].begin = info->dlpi_addr + part->p_vaddr;
    callers[caller_count].end = callers[caller_count].begin + part->p_memsz;
    callers[caller_count++].kind = kind;
  }
  return 0;
}

// Arms the n-th call (from 1) of a kind, or, with the kind kAny, only counts. All that allocates must be loaded.
void fail_nth_arm(int kind, long n, int error, int without_cache) {
  caller_count = 0;
  dl_iterate_phdr(note_module, NULL);
  armed_kind = kind;
  armed_n = n;
  armed_error = error;
  uncached = without_cache != 0;
  for (int i = 0; i < kKinds; ++i) counts[i] = 0;
  fired = false;
  armed = true;
}

// Returns whether the call has come.
int fail_nth_disarm(void) {
  armed = false;
  return fired;
}

long fail_nth_count(int kind) { return counts[kind]; }

// Counts a call, and returns 0 or what is to happen to it.
static int fault(enum Kind kind) {
  if (!armed) return 0;
  const long n = ++counts[kind];
  if ((int)kind != armed_kind || n != armed_n) return 0;
  fired = true;
  if (armed_error != kShort) errno = armed_error;
  return armed_error;
}

static enum Kind kind_of(void* caller) {
  const uintptr_t at = (uintptr_t)caller;
  for (int i = 0; i < caller_count; ++i) {
    if (at >= callers[i].begin && at < callers[i].end) return callers[i].kind;
  }
  return kNone;
}

static bool no_memory(enum Kind kind, void* caller, size_t bytes) {
  return armed && bytes >= 32 && kind_of(caller) == kind && fault(kind) != 0;
}

#define REAL(name) \
  static typeof(&name) real; \
  if (real == NULL) real = (typeof(&name))dlsym(RTLD_NEXT, #name)

#define OPEN(name, ...)                                                              \
  mode_t mode = 0;                                                                   \
  if ((flags & (O_CREAT | __O_TMPFILE)) != 0) {                                      \
    va_list more;                                                                    \
    va_start(more, flags);                                                           \
    mode = va_arg(more, mode_t);                                                     \
    va_end(more);                                                                    \
  }                                                                                  \
  REAL(name);                                                                        \
  if (fault((flags & (O_ACCMODE | O_CREAT)) != 0 ? kCreate : kOpen) != 0) return -1; \
  return real(__VA_ARGS__, flags, mode)

int open(const char* path, int flags, ...) { OPEN(open, path); }
int open64(const char* path, int flags, ...) { OPEN(open64, path); }
int openat(int folder, const char* path, int flags, ...) { OPEN(openat, folder, path); }
int openat64(int folder, const char* path, int flags, ...) { OPEN(openat64, folder, path); }

// A transfer of `count` bytes: half of them if it is to be short.
#define TRANSFER(name, kind, ...)                        \
  REAL(name);                                            \
  const int what = fault(kind);                          \
  if (what == kShort) {                                  \
    if (count > 1) count /= 2;                           \
  } else if (what != 0) {                                \
    return -1;                                           \
  }                                                      \
  return real(__VA_ARGS__)

ssize_t read(int fd, void* to, size_t count) { TRANSFER(read, kRead, fd, to, count); }
ssize_t pread(int fd, void* to, size_t count, off_t at) { TRANSFER(pread, kPread, fd, to, count, at); }
ssize_t pread64(int fd, void* to, size_t count, off64_t at) { TRANSFER(pread64, kPread, fd, to, count, at); }
ssize_t write(int fd, const void* from, size_t count) { TRANSFER(write, kWrite, fd, from, count); }
ssize_t pwrite(int fd, const void* from, size_t count, off_t at) { TRANSFER(pwrite, kPwrite, fd, from, count, at); }
ssize_t pwrite64(int fd, const void* from, size_t count, off64_t at) {
  TRANSFER(pwrite64, kPwrite, fd, from, count, at);
}

#define PREADV2(name)                                            \
  REAL(name);                                                    \
  const int what = fault(kPreadv2);                              \
  if (what > 0) return -1;                                       \
  if (armed && uncached && (flags & RWF_NOWAIT) != 0) {          \
    errno = EAGAIN;                                              \
    return -1;                                                   \
  }                                                              \
  struct iovec half = parts[0];                                  \
  if (what != kShort || count != 1) return real(fd, parts, count, at, flags); \
  if (half.iov_len > 1) half.iov_len /= 2;                       \
  return real(fd, &half, 1, at, flags)

ssize_t preadv2(int fd, const struct iovec* parts, int count, off_t at, int flags) { PREADV2(preadv2); }
ssize_t preadv64v2(int fd, const struct iovec* parts, int count, off64_t at, int flags) { PREADV2(preadv64v2); }

#define CALL(name, kind, failure, ...)     \
  REAL(name);                              \
  if (fault(kind) != 0) return failure;    \
  return real(__VA_ARGS__)

int fsync(int fd) { CALL(fsync, kFsync, -1, fd); }
int fdatasync(int fd) { CALL(fdatasync, kFsync, -1, fd); }
int rename(const char* from, const char* to) { CALL(rename, kRename, -1, from, to); }
int renameat(int a, const char* from, int b, const char* to) { CALL(renameat, kRename, -1, a, from, b, to); }
void* mmap(void* to, size_t bytes, int protection, int flags, int fd, off_t at) {
  CALL(mmap, kMmap, MAP_FAILED, to, bytes, protection, flags, fd, at);
}
void* mmap64(void* to, size_t bytes, int protection, int flags, int fd, off64_t at) {
  CALL(mmap64, kMmap, MAP_FAILED, to, bytes, protection, flags, fd, at);
}
int memfd_create(const char* name, unsigned flags) { CALL(memfd_create, kMemfd, -1, name, flags); }
int ftruncate(int fd, off_t bytes) { CALL(ftruncate, kReserve, -1, fd, bytes); }
int ftruncate64(int fd, off64_t bytes) { CALL(ftruncate64, kReserve, -1, fd, bytes); }
int posix_fallocate(int fd, off_t at, off_t bytes) { CALL(posix_fallocate, kReserve, armed_error, fd, at, bytes); }
int posix_fallocate64(int fd, off64_t at, off64_t bytes) {
  CALL(posix_fallocate64, kReserve, armed_error, fd, at, bytes);
}
int flock(int fd, int how) { CALL(flock, kFlock, -1, fd, how); }
int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  CALL(pthread_create, kThread, armed_error, thread, how, run, with);
}

// As in Linux, the descriptor is closed whatever close returns. HDF5's calls succeed: after one that fails, it (version
// 2.0) has a file half closed, and crashes when the file is opened again, or at exit.
int close(int fd) {
  REAL(close);
  const int what = armed && kind_of(__builtin_return_address(0)) == kHdf5 ? 0 : fault(kClose);
  const int error = errno;
  const int result = real(fd);
  if (what == 0) return result;
  errno = error;
  return -1;
}

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);

// Who called operator new, which calls malloc from libstdc++.
static __thread void* new_caller __attribute__((tls_model("initial-exec")));

static void* caller_or(void* caller) {
  void* before = new_caller;
  new_caller = NULL;
  return before != NULL ? before : caller;
}
#define CALLER caller_or(__builtin_return_address(0))

void* malloc(size_t bytes) { return no_memory(kMalloc, CALLER, bytes) ? NULL : __libc_malloc(bytes); }
void* calloc(size_t count, size_t bytes) { return no_memory(kMalloc, CALLER, count * bytes) ? NULL : __libc_calloc(count, bytes); }
void* realloc(void* old, size_t bytes) { return no_memory(kMalloc, CALLER, bytes) ? NULL : __libc_realloc(old, bytes); }
void* aligned_alloc(size_t to, size_t bytes) { return no_memory(kMalloc, CALLER, bytes) ? NULL : __libc_memalign(to, bytes); }
int posix_memalign(void** result, size_t to, size_t bytes) {
  void* caller = CALLER;
  if (no_memory(kMalloc, caller, bytes) || no_memory(kTensor, caller, bytes)) return ENOMEM;
  void* memory = __libc_memalign(to, bytes);
  if (memory == NULL) return ENOMEM;
  *result = memory;
  return 0;
}

// operator new of libstdc++, which may throw through these frames: compile with -fexceptions.
#define NEW(symbol, types, names)                                                                                \
  void* symbol types {                                                                                           \
    static void* (*real) types;                                                                                  \
    if (real == NULL) real = (void* (*)types)dlsym(dlopen("libstdc++.so.6", RTLD_NOW | RTLD_GLOBAL), #symbol);   \
    if (armed) new_caller = __builtin_return_address(0);                                                         \
    void* memory = real names;                                                                                   \
    new_caller = NULL;                                                                                           \
    return memory;                                                                                               \
  }

NEW(_Znwm, (size_t bytes), (bytes))
NEW(_Znam, (size_t bytes), (bytes))
NEW(_ZnwmSt11align_val_t, (size_t bytes, size_t to), (bytes, to))
NEW(_ZnamSt11align_val_t, (size_t bytes, size_t to), (bytes, to))
