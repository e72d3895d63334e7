// Functions compiled for several instruction sets; each call chooses the best one that the machine supports. The
// environment variable FASTSEQ_ISA ("baseline", "x86-64-v3", "x86-64-v4") limits them to a smaller one.
#pragma once

#include <cstdlib>
#include <string_view>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(FASTSEQ_NO_MULTIVERSION)
#define FASTSEQ_HAS_MULTIVERSION 1
#define FASTSEQ_TARGET(isa) __attribute__((target("arch=" isa), flatten))
#else
#define FASTSEQ_HAS_MULTIVERSION 0
#endif

// Before a loop: no iteration writes what another one reads, even if pointers may alias.
#if defined(__GNUC__) && !defined(__clang__)
#define FASTSEQ_INDEPENDENT _Pragma("GCC ivdep")
#else
#define FASTSEQ_INDEPENDENT
#endif

namespace fastseq {

// Bytes of a vector register of the instruction set named by FASTSEQ_ISA; without it, of the best one.
inline int limit_of_environment() {
  const char* isa = std::getenv("FASTSEQ_ISA");
  if (isa == nullptr) return 64;
  if (std::string_view(isa) == "baseline") return 16;
  return std::string_view(isa) == "x86-64-v3" ? 32 : 64;
}

// The widest vectors used, in bytes: tests lower it to run other machines' code.
inline int vector_limit = limit_of_environment();

// The machine's best instruction set within that limit: "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2) or "baseline".
inline const char* active_isa() {
#if FASTSEQ_HAS_MULTIVERSION
  if (vector_limit >= 64 && __builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (vector_limit >= 32 && __builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

// best<function>(args...) calls a plain loop compiled for the best instruction set; everything it calls is inlined.
template <auto kFunction>
struct Best;
template <class Result, class... Args, Result (*kFunction)(Args...)>
struct Best<kFunction> {
#if FASTSEQ_HAS_MULTIVERSION
  FASTSEQ_TARGET("x86-64-v4") static Result v4(Args... args) { return kFunction(args...); }
  FASTSEQ_TARGET("x86-64-v3") static Result v3(Args... args) { return kFunction(args...); }
#endif
  static Result call(Args... args) {
#if FASTSEQ_HAS_MULTIVERSION
    if (vector_limit >= 64 && __builtin_cpu_supports("x86-64-v4")) return v4(args...);
    if (vector_limit >= 32 && __builtin_cpu_supports("x86-64-v3")) return v3(args...);
#endif
    return kFunction(args...);
  }
};
// Called as a function, so named like one.
template <auto kFunction>
inline constexpr auto best = &Best<kFunction>::call;  // NOLINT(readability-identifier-naming)

// Calls Body::run<kBytes>(args...), compiled for the machine's best instruction set; kBytes is the width of its vector
// registers. For kernels whose shape depends on that width; everything they call is inlined.
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
void run_up_to_v3(const Args&... args) {
#if FASTSEQ_HAS_MULTIVERSION
  if (vector_limit >= 32 && __builtin_cpu_supports("x86-64-v3")) return run_v3<Body>(args...);
#elif defined(FASTSEQ_EVERY_WIDTH)  // in the instructions that there are: sanitizers look at all kernels
  if (vector_limit >= 32) return Body::template run<32>(args...);
#endif
  Body::template run<16>(args...);
}
template <class Body, class... Args>
void run_best(const Args&... args) {
#if FASTSEQ_HAS_MULTIVERSION
  if (vector_limit >= 64 && __builtin_cpu_supports("x86-64-v4")) return run_v4<Body>(args...);
#elif defined(FASTSEQ_EVERY_WIDTH)
  if (vector_limit >= 64) return Body::template run<64>(args...);
#endif
  run_up_to_v3<Body>(args...);
}

// Whether the machine has instructions for products of bf16 numbers with sums in fp32, and FASTSEQ_ISA allows them.
inline bool has_bf16() {
#if FASTSEQ_HAS_MULTIVERSION
  return vector_limit >= 64 && __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Like run_best, for kernels whose products are of bf16 numbers. Vectors of 64 bytes mean that there are instructions
// for them; else vectors are smaller, also on machines with AVX-512, and the products are emulated.
#if FASTSEQ_HAS_MULTIVERSION
template <class Body, class... Args>
FASTSEQ_TARGET("x86-64-v4,avx512bf16")
void run_v4_bf16(const Args&... args) {
  Body::template run<64>(args...);
}
#endif
template <class Body, class... Args>
void run_best_bf16(const Args&... args) {
#if FASTSEQ_HAS_MULTIVERSION
  if (has_bf16()) return run_v4_bf16<Body>(args...);
#endif
  run_up_to_v3<Body>(args...);
}

}  // namespace fastseq
