// Which steps a sequence runs, in which order.
#pragma once

#include <cstdint>

#include "core/recurrence/recurrence.h"

namespace fastseq::cuda {

struct Steps {
  const std::int64_t* lengths;
  std::int64_t steps;
  std::int64_t sequences;
  bool reverse;

  __device__ Steps(const RecurrenceShape& s, const RecurrenceInputs& in)
      : lengths(in.lengths), steps(s.steps), sequences(s.sequences), reverse(s.reverse) {}

  // Of sequence n, which may be none: then 0.
  __device__ std::int64_t length(std::int64_t n) const {
    if (n >= sequences) return 0;
    if (lengths == nullptr) return steps;
    const std::int64_t length = lengths[n];
    return length < 0 ? 0 : (length < steps ? length : steps);
  }
  __device__ bool is_valid(std::int64_t n) const {
    return lengths == nullptr || (lengths[n] >= 0 && lengths[n] <= steps);
  }
  // The step that comes i-th in a sequence of this length; also, at which place step i comes.
  __device__ std::int64_t at(std::int64_t i, std::int64_t length) const { return reverse ? length - 1 - i : i; }
};

}  // namespace fastseq::cuda
