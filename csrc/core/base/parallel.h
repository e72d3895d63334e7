// Parallel loops of kernels, on the caller's threads: the caller passes a ParallelFor (the torch layer passes torch's;
// tests and torch-free builds use serial_for).
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastseq {

using RangeBody = void (*)(std::int64_t begin, std::int64_t end, void* context);

// Runs body over [0, count) in disjoint ranges of at least `grain` indices, possibly in parallel.
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, RangeBody body, void* context);

inline void serial_for(std::int64_t count, std::int64_t /*grain*/, RangeBody body, void* context) {
  if (count > 0) body(0, count, context);
}

// Least multiplications, or elements to copy, worth waking a thread for.
inline constexpr std::int64_t kProductsPerThread = 512 * 1024;
inline constexpr std::int64_t kCopiesPerThread = 64 * 1024;

// How many things, of so much work each, are worth a thread.
constexpr std::int64_t grain(std::int64_t work, std::int64_t work_of_one) {
  return std::max<std::int64_t>(work / std::max<std::int64_t>(work_of_one, 1), 1);
}

// Calls fn(begin, end) through `parallel_for`.
template <class Fn>
void for_ranges(ParallelFor parallel_for, std::int64_t count, std::int64_t grain, Fn& fn) {
  parallel_for(
      count, grain,
      [](std::int64_t begin, std::int64_t end, void* context) { (*static_cast<Fn*>(context))(begin, end); }, &fn);
}

}  // namespace fastseq
