#include "cuda/pack_checked.h"

#include <type_traits>

#include "core/base/dispatch.h"
#include "cuda/copy_table.h"
#include "cuda/launch.h"

namespace fastseq::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kItemsPerThread = 16;
constexpr std::int64_t kChunk = kThreads * kItemsPerThread;  // 4096 elements, as on the CPU

// The sum over a block of threads, valid in thread 0.
__device__ double block_sum(double value) {
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

// Each block packs a chunk and writes (number of non-finite values, sum of squares) to scratch.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    pack_checked_kernel(const __grid_constant__ CopyTable table, double scale, double* scratch) {
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  const int index = find_copy(table, blockIdx.x);
  const Copy& copy = table.copies[index];
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x - table.first_chunk[index]) * kChunk;
  const From* from = static_cast<const From*>(copy.from);
  To* to = static_cast<To*>(copy.to);
  const auto factor = static_cast<Wide>(scale);

  Compute<To> squares = 0;
  int bad = 0;
#pragma unroll 4
  for (int k = 0; k < kItemsPerThread; ++k) {
    const std::int64_t i = begin + k * kThreads + threadIdx.x;
    if (i < copy.numel) {
      const To value = static_cast<To>(static_cast<Wide>(from[i]) * factor);
      to[i] = value;
      const auto x = static_cast<Compute<To>>(value);
      squares += x * x;
      bad += isfinite(x) ? 0 : 1;
    } else if (i < copy.end) {
      to[i] = static_cast<To>(0.0F);
    }
  }
  const double all_squares = block_sum(static_cast<double>(squares));
  const double all_bad = block_sum(static_cast<double>(bad));
  if (threadIdx.x == 0) {
    scratch[2 * blockIdx.x] = all_bad;
    scratch[2 * blockIdx.x + 1] = all_squares;
  }
}

// One block adds up the results of the others.
__global__ void __launch_bounds__(kThreads)
    add_facts_kernel(const double* scratch, std::int64_t chunks, double* facts) {
  double bad = 0;
  double squares = 0;
  for (std::int64_t i = threadIdx.x; i < chunks; i += kThreads) {
    bad += scratch[2 * i];
    squares += scratch[2 * i + 1];
  }
  bad = block_sum(bad);
  squares = block_sum(squares);
  if (threadIdx.x == 0) {
    facts[0] = bad == 0 ? 1.0 : 0.0;
    facts[1] = squares;
  }
}

}  // namespace

std::int64_t pack_checked_scratch(std::span<const std::int64_t> numels, const FlatLayout& layout) {
  std::int64_t chunks = 0;
  for (std::size_t i = 0; i < numels.size(); ++i) {
    const std::int64_t end = i + 1 < numels.size() ? layout.offsets[i + 1] : layout.numel;
    chunks += (end - layout.offsets[i] + kChunk - 1) / kChunk;
  }
  return 2 * chunks;
}

void pack_checked(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from,
                  const FlatLayout& layout, DType to, double scale, void* flat, double* facts, double* scratch,
                  cudaStream_t stream) {
  const std::vector<Copy> copies = copies_into(tensors, numels, layout, to, flat);
  std::int64_t chunks = 0;
  dispatch(from, [&]<class From>(Type<From>) {
    dispatch(to, [&]<class To>(Type<To>) {
      for_tables(copies, kChunk, [&](const CopyTable& table, unsigned blocks) {
        pack_checked_kernel<typename DeviceType<From>::type, typename DeviceType<To>::type>
            <<<blocks, kThreads, 0, stream>>>(table, scale, scratch + 2 * chunks);
        check_launch("pack_checked_kernel");
        chunks += blocks;
      });
    });
  });
  add_facts_kernel<<<1, kThreads, 0, stream>>>(scratch, chunks, facts);
  check_launch("add_facts_kernel");
}

}  // namespace fastseq::cuda
