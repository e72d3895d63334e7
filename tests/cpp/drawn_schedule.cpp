// Loaded before a test (LD_PRELOAD), this lets threads wait at drawn places: around mutexes, condition variables, new
// threads and futexes, and, where ThreadSanitizer makes calls of them, at atomic operations. FASTSEQ_SCHEDULE is the
// draw's number.
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <ctime>

namespace {

// Of the library behind this one.
template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// Not seen by ThreadSanitizer, which would take waiting for synchronisation.
template <class Function>
Function* of_system(const char* name) {
  static void* const library = dlopen("libc.so.6", RTLD_LAZY);
  return reinterpret_cast<Function*>(dlsym(library, name));
}

struct Schedule {
  std::uint64_t seed;
  std::uint64_t rate;     // one in so many places waits
  std::uint64_t longest;  // microseconds
  bool active;
};

std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

Schedule g_schedule{};
std::uint64_t g_threads = 0;
thread_local std::uint64_t t_state = 0;  // 0: not drawn yet

__attribute__((constructor)) void draw() {
  const char* const number = std::getenv("FASTSEQ_SCHEDULE");
  if (number == nullptr) return;
  const std::uint64_t seed = mixed(std::strtoull(number, nullptr, 10));
  g_schedule = {.seed = seed, .rate = 4ULL << (seed % 8), .longest = 1ULL << (seed / 8 % 9), .active = true};
  if (seed / 128 % 3 != 0) return;
  cpu_set_t one;  // threads that share a core change places where they wait
  sched_getaffinity(0, sizeof(one), &one);
  for (int cpu = 0, left = 1; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &one) && left-- <= 0) CPU_CLR(cpu, &one);
  }
  sched_setaffinity(0, sizeof(one), &one);
}

void wait_perhaps() {
  static auto* const nap = of_system<decltype(nanosleep)>("nanosleep");
  static auto* const yield = of_system<decltype(sched_yield)>("sched_yield");
  if (!g_schedule.active) return;
  if (t_state == 0) t_state = mixed(g_schedule.seed + __atomic_add_fetch(&g_threads, 1, __ATOMIC_RELAXED)) | 1U;
  t_state = mixed(t_state);
  if (t_state % g_schedule.rate != 0) return;
  const int error_number = errno;
  const std::uint64_t drawn = t_state >> 32;
  if (drawn % 2 == 0) {
    yield();
  } else {
    const timespec time = {.tv_sec = 0, .tv_nsec = static_cast<long>(drawn / 2 % (1000 * g_schedule.longest))};
    nap(&time, nullptr);
  }
  errno = error_number;
}

struct Start {
  void* (*run)(void*);
  void* argument;
};

void* run_later(void* given) {
  const Start start = *static_cast<Start*>(given);
  delete static_cast<Start*>(given);
  wait_perhaps();
  return start.run(start.argument);
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming, bugprone-reserved-identifier): names of others
// NOLINTBEGIN(cppcoreguidelines-macro-usage, bugprone-macro-parentheses)
#define AROUND(result, name, parameters, ...)                                \
  extern "C" __attribute__((visibility("default"))) result name parameters { \
    static auto* const real = next<result parameters>(#name);                \
    wait_perhaps();                                                          \
    const auto found = real(__VA_ARGS__);                                    \
    wait_perhaps();                                                          \
    return found;                                                            \
  }

AROUND(int, pthread_mutex_lock, (pthread_mutex_t * mutex), mutex)
AROUND(int, pthread_mutex_unlock, (pthread_mutex_t * mutex), mutex)
AROUND(int, pthread_cond_wait, (pthread_cond_t * condition, pthread_mutex_t* mutex), condition, mutex)
AROUND(int, pthread_cond_clockwait,
       (pthread_cond_t * condition, pthread_mutex_t* mutex, clockid_t clock, const timespec* until), condition, mutex,
       clock, until)
AROUND(int, pthread_cond_signal, (pthread_cond_t * condition), condition)
AROUND(int, pthread_cond_broadcast, (pthread_cond_t * condition), condition)

extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*run)(void*), void* argument) {
  static auto* const real = next<decltype(pthread_create)>("pthread_create");
  // NOLINTNEXTLINE(bugprone-unhandled-exception-at-new): without memory a test may end
  const int found = real(thread, attributes, run_later, new Start{run, argument});
  wait_perhaps();
  return found;
}

extern "C" __attribute__((visibility("default"))) long syscall(long number, ...) {
  static auto* const real = next<decltype(syscall)>("syscall");
  std::va_list list;
  va_start(list, number);
  long given[6];
  for (long& each : given) each = va_arg(list, long);
  va_end(list);
  wait_perhaps();
  const long found = real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
  wait_perhaps();
  return found;
}

// Calls that compilers make for atomic operations under ThreadSanitizer.
#define ATOMICS(bits, type)                                                                                            \
  AROUND(type, __tsan_atomic##bits##_load, (const volatile type* at, int order), at, order)                            \
  AROUND(type, __tsan_atomic##bits##_exchange, (volatile type * at, type value, int order), at, value, order)          \
  AROUND(type, __tsan_atomic##bits##_fetch_add, (volatile type * at, type value, int order), at, value, order)         \
  AROUND(type, __tsan_atomic##bits##_fetch_sub, (volatile type * at, type value, int order), at, value, order)         \
  AROUND(int, __tsan_atomic##bits##_compare_exchange_strong,                                                           \
         (volatile type * at, type * expected, type value, int order, int failed), at, expected, value, order, failed) \
  extern "C" __attribute__((visibility("default"))) void __tsan_atomic##bits##_store(volatile type* at, type value,    \
                                                                                     int order) {                      \
    static auto* const real = next<void(volatile type*, type, int)>("__tsan_atomic" #bits "_store");                   \
    wait_perhaps();                                                                                                    \
    real(at, value, order);                                                                                            \
    wait_perhaps();                                                                                                    \
  }

ATOMICS(8, char)
ATOMICS(32, int)
ATOMICS(64, long)
// NOLINTEND(cppcoreguidelines-macro-usage, bugprone-macro-parentheses)
// NOLINTEND(readability-identifier-naming, bugprone-reserved-identifier)
