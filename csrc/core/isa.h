// FASTSEQ_MULTIVERSION compiles a function for several instruction sets; the loader picks the best one that the machine
// has. Sanitizers cannot run the resolvers that this needs, so their builds get the baseline version alone.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(FASTSEQ_NO_MULTIVERSION)
#define FASTSEQ_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#define FASTSEQ_HAS_MULTIVERSION 1
#define FASTSEQ_TARGET(isa) __attribute__((target("arch=" isa), flatten))
#else
#define FASTSEQ_MULTIVERSION
#define FASTSEQ_HAS_MULTIVERSION 0
#endif

// Before a loop: no iteration writes what another one reads, whatever its pointers are.
#if defined(__GNUC__) && !defined(__clang__)
#define FASTSEQ_INDEPENDENT _Pragma("GCC ivdep")
#else
#define FASTSEQ_INDEPENDENT
#endif

namespace fastseq {

// The instruction set that multiversioned functions run with here: "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2) or
// "baseline".
inline const char* active_isa() {
#if FASTSEQ_HAS_MULTIVERSION
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

// The widest vectors that run_best may use, in bytes: tests lower it to run what other machines would.
inline int vector_limit = 64;

// Calls Body::run<kBytes>(args...), compiled for the best instruction set that the machine has, kBytes being the width
// of its vector registers. For kernels whose shape depends on that width; all that they call is inlined.
#if FASTSEQ_HAS_MULTIVERSION
template <class Body, class... Args>
FASTSEQ_TARGET("x86-64-v4")
void run_v4(const Args&... args) {
  Body::template run<64>(args...);
}
template <class Body, class... Args>
FASTSEQ_TARGET("x86-64-v3")
void run_v3(const Args&... args) {
  Body::template run<32>(args...);
}
#endif
template <class Body, class... Args>
void run_best(const Args&... args) {
#if FASTSEQ_HAS_MULTIVERSION
  if (vector_limit >= 64 && __builtin_cpu_supports("x86-64-v4")) return run_v4<Body>(args...);
  if (vector_limit >= 32 && __builtin_cpu_supports("x86-64-v3")) return run_v3<Body>(args...);
#endif
  Body::template run<16>(args...);
}

}  // namespace fastseq
