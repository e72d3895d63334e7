// ParallelFors that split loops as a real one may; vectors of every width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "core/base/isa.h"
#include "core/base/parallel.h"

namespace fastseq::testing {

// Ranges of 7 indices, the last first, whatever the grain.
inline void backwards_for(std::int64_t count, std::int64_t /*grain*/, RangeBody body, void* context) {
  constexpr std::int64_t kStep = 7;
  for (std::int64_t begin = (count - 1) / kStep * kStep; count > 0 && begin >= 0; begin -= kStep) {
    body(begin, std::min(begin + kStep, count), context);
  }
}

// Three threads in parallel.
inline void threads_for(std::int64_t count, std::int64_t /*grain*/, RangeBody body, void* context) {
  constexpr std::int64_t kThreads = 3;
  std::vector<std::thread> threads;
  for (std::int64_t i = 0; i < kThreads; ++i) {
    const std::int64_t begin = count * i / kThreads;
    const std::int64_t end = count * (i + 1) / kThreads;
    if (begin < end) threads.emplace_back([=] { body(begin, end, context); });
  }
  for (std::thread& thread : threads) thread.join();
}

inline const std::vector<ParallelFor>& parallel_fors() {
  static const std::vector<ParallelFor> all = {serial_for, backwards_for, threads_for};
  return all;
}

// Calls fn with vectors of every width that the machine supports.
template <class Fn>
void for_every_width(const Fn& fn) {
  const int before = vector_limit;
  for (const int bytes : {16, 32, 64}) {
    vector_limit = bytes;
    fn();
  }
  vector_limit = before;
}

}  // namespace fastseq::testing
