// What kernels share: vectors of items, and sums over a block.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace fastseq::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kVectorBytes = 16;

// Items that a thread loads or stores at once.
template <class T, int kItems>
struct alignas(sizeof(T) * kItems) Items {
  T values[kItems];
};

// The sum over a block of kThreads threads, valid in thread 0.
__device__ inline double block_sum(double value) {
  __shared__ double sums[kThreads / 32];
  for (int width = 16; width > 0; width /= 2) value += __shfl_down_sync(0xffffffffU, value, width);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / 32; ++warp) value += sums[warp];
  }
  __syncthreads();
  return value;
}

}  // namespace fastseq::cuda
