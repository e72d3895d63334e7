// Features of sequences by many fixed convolutions: MiniRocket's (A. Dempster, D. F. Schmidt, G. I. Webb, "MiniRocket",
// KDD 2021, https://arxiv.org/abs/2012.08791).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/parallel.h"

namespace fastseq {

inline constexpr int kKernelTaps = 9;
// Choices of 3 taps with weight 2/3 among those with weight -1/3, in the order of itertools.combinations.
inline constexpr int kKernelChoices = 84;

struct RandomKernelsShape {
  DType dtype;  // kFloat32 or kFloat64
  std::int64_t steps;
  std::int64_t sequences;
  std::int64_t features;
  std::int64_t groups;
  std::int64_t members;      // the most features of a group
  std::int64_t least_steps;  // shorter sequences are followed by zeros up to so many; at least 1
};

struct RandomKernelsInputs {
  const void* x;  // (steps, sequences, features), features contiguous
  std::int64_t x_step;
  std::int64_t x_sequence;
  const std::int64_t* lengths;    // (sequences,); null: all have `steps` steps. Beyond them x is not read.
  const std::int64_t* dilations;  // (groups,), at least 1
  const std::int64_t* members;    // (groups, members): features that are summed; `features` stands for none
  const void* thresholds;         // (groups, kKernelChoices)
};

// out (sequences, groups, kKernelChoices): the fraction of steps at which the kernel's convolution of the sum of the
// group's features, centred and with zeros around the sequence, exceeds the threshold; NaN if that sum is not finite at
// a step. Operations have one order, so results are the same bits with every instruction set and number of threads.
void random_kernels(const RandomKernelsShape& shape, const RandomKernelsInputs& inputs, void* out,
                    ParallelFor parallel_for);

}  // namespace fastseq
