// What sanitizers must know of fibers, and of CUDA's rules.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUDA_ON_HOST_ASAN 1
#endif
// The emulator itself is built without thread sanitizer, which shall see the kernels' accesses, not its own.
#if defined(CUDA_ON_HOST_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreSyncBegin(const char*, int);
void AnnotateIgnoreSyncEnd(const char*, int);
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

namespace cuda_on_host {

// Switches without an order between the fibers.
constexpr unsigned kUnordered = 1;

// What comes after `acquire` is ordered behind what came before `release`, by CUDA's rules.
inline void acquire([[maybe_unused]] void* token) {
#ifdef CUDA_ON_HOST_TSAN
  __tsan_acquire(token);
#endif
}
inline void release([[maybe_unused]] void* token) {
#ifdef CUDA_ON_HOST_TSAN
  __tsan_release(token);
#endif
}

// While one lives, what the emulator does orders nothing.
class Quiet {
 public:
#ifdef CUDA_ON_HOST_TSAN
  Quiet() {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
#else
  Quiet() {}   // NOLINT: not trivial, so that it counts as used
  ~Quiet() {}  // NOLINT
#endif
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// A thread of its own in thread sanitizer's eyes.
class Strand {
 public:
#ifdef CUDA_ON_HOST_TSAN
  Strand() : fiber_(__tsan_create_fiber(0)) {}
  ~Strand() { __tsan_destroy_fiber(fiber_); }
#else
  Strand() {}   // NOLINT
  ~Strand() {}  // NOLINT
#endif
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;

  template <class Body>
  void run([[maybe_unused]] const Body& body) {
#ifdef CUDA_ON_HOST_TSAN
    void* home = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fiber_, kUnordered);
    body();
    __tsan_switch_to_fiber(home, kUnordered);
#else
    body();
#endif
  }

#ifdef CUDA_ON_HOST_TSAN
 private:
  void* fiber_;
#endif
};

}  // namespace cuda_on_host
