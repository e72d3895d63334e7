// Parallel loops of kernels, on the caller's threads: the caller passes a ParallelFor (the torch layer passes torch's;
// tests and torch-free builds use serial_for).
#pragma once

#include <cstdint>

namespace fastseq {

using RangeBody = void (*)(std::int64_t begin, std::int64_t end, void* context);

// Runs body over [0, count) in disjoint ranges of at least `grain` indices, possibly in parallel.
using ParallelFor = void (*)(std::int64_t count, std::int64_t grain, RangeBody body, void* context);

inline void serial_for(std::int64_t count, std::int64_t /*grain*/, RangeBody body, void* context) {
  if (count > 0) body(0, count, context);
}

// Calls fn(begin, end) through `parallel_for`.
template <class Fn>
void for_ranges(ParallelFor parallel_for, std::int64_t count, std::int64_t grain, Fn& fn) {
  parallel_for(
      count, grain,
      [](std::int64_t begin, std::int64_t end, void* context) { (*static_cast<Fn*>(context))(begin, end); }, &fn);
}

}  // namespace fastseq
