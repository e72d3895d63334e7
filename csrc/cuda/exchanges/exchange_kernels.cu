#include "cuda/exchanges/exchange_kernels.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/base/dispatch.h"
#include "cuda/block.h"
#include "cuda/launch.h"
#include "cuda/streams.h"

namespace fastseq::cuda {

namespace {

constexpr int kVectors = 4;  // of a thread
constexpr std::int64_t kVectorBytesOfBlock = std::int64_t{kThreads} * kVectors * kVectorBytes;

// Blocks for `numel` items of the smallest type.
std::int64_t blocks_for(std::int64_t numel, std::size_t item) {
  const std::int64_t items = kVectorBytesOfBlock / static_cast<std::int64_t>(item);
  return (numel + items - 1) / items;
}

struct Vectors {
  const void* from[kMaxRanks];
  void* to[kMaxRanks];
  double factors[kMaxRanks];
  int sources;
  int destinations;
};

// The sum of the sources' items, in their order, rounded once.
template <class T, int kItems>
__device__ Items<T, kItems> sum_items(const Vectors& vectors, std::int64_t first, int count) {
  Compute<T> sums[kItems] = {};
  for (int s = 0; s < vectors.sources; ++s) {
    const T* const from = static_cast<const T*>(vectors.from[s]) + first;
    const auto factor = static_cast<Compute<T>>(vectors.factors[s]);
    Items<T, kItems> items;
    if (count == kItems) {
      items = *reinterpret_cast<const Items<T, kItems>*>(from);
    } else {
#pragma unroll
      for (int j = 0; j < kItems; ++j) items.values[j] = j < count ? from[j] : static_cast<T>(0.0F);
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const Compute<T> term = factor * static_cast<Compute<T>>(items.values[j]);
      sums[j] = s == 0 ? term : sums[j] + term;
    }
  }
  Items<T, kItems> results;
#pragma unroll
  for (int j = 0; j < kItems; ++j) results.values[j] = static_cast<T>(sums[j]);
  return results;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    weighted_sum_kernel(const __grid_constant__ Vectors vectors, std::int64_t numel, double* squares) {
  constexpr int kItems = kVectorBytes / static_cast<int>(sizeof(T));
  double sum_of_squares = 0;
  for (int v = 0; v < kVectors; ++v) {
    const std::int64_t vector = (std::int64_t{blockIdx.x} * kVectors + v) * kThreads + threadIdx.x;
    const std::int64_t first = vector * kItems;
    if (first >= numel) break;
    const int count = static_cast<int>(numel - first < kItems ? numel - first : kItems);
    const Items<T, kItems> results = sum_items<T, kItems>(vectors, first, count);
    for (int d = 0; d < vectors.destinations; ++d) {
      T* const to = static_cast<T*>(vectors.to[d]) + first;
      if (count == kItems) {
        *reinterpret_cast<Items<T, kItems>*>(to) = results;
      } else {
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          if (j < count) to[j] = results.values[j];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kItems; ++j) {
      const auto x = static_cast<double>(static_cast<Compute<T>>(results.values[j]));
      if (j < count) sum_of_squares += x * x;
    }
  }
  if (squares == nullptr) return;
  sum_of_squares = block_sum(sum_of_squares);
  if (threadIdx.x == 0) squares[blockIdx.x] = sum_of_squares;
}

__global__ void __launch_bounds__(kThreads) write_news_kernel(const __grid_constant__ NewsFrom from, News* news) {
  double bad = 0;
  double squares = 0;
  for (std::int64_t b = threadIdx.x; b < from.buckets; b += kThreads) bad += from.facts[2 * b] == 0 ? 1 : 0;
  for (std::int64_t i = threadIdx.x; i < from.squares_count; i += kThreads) squares += from.squares[i];
  bad = block_sum(bad);
  squares = block_sum(squares);
  if (threadIdx.x != 0) return;
  const bool counts = from.factor != 0;
  news->nonfinite = counts && bad != 0 ? 1.0 : 0.0;
  news->value = counts && from.value != nullptr ? from.factor * *from.value : 0.0;
  news->squares = squares;
}

__global__ void conclude_kernel(const News* news, int ranks, Outcome* outcome) {
  Outcome found{0, -1, 0};
  for (int r = 0; r < ranks; ++r) {
    found.value += news[r].value;
    found.norm += news[r].squares;
    if (found.nonfinite_rank < 0 && news[r].nonfinite != 0) found.nonfinite_rank = r;
  }
  found.norm = sqrt(found.norm);
  *outcome = found;
}

}  // namespace

std::int64_t squares_scratch(std::int64_t numel) { return blocks_for(numel, sizeof(double)); }

void weighted_sum(std::span<const void* const> sources, std::span<const double> factors, std::int64_t numel,
                  DType dtype, std::span<void* const> destinations, double* squares, cudaStream_t stream) {
  if (sources.size() > kMaxRanks || destinations.size() > kMaxRanks) {
    throw std::invalid_argument("weighted_sum: at most " + std::to_string(kMaxRanks) + " vectors");
  }
  if (squares != nullptr) {  // fewer blocks may write than it has places
    check(cudaMemsetAsync(squares, 0, static_cast<std::size_t>(squares_scratch(numel)) * sizeof(double), stream),
          "cudaMemsetAsync");
  }
  if (numel == 0) return;
  Vectors vectors{};
  for (std::size_t s = 0; s < sources.size(); ++s) {
    if (factors[s] == 0) continue;
    vectors.from[vectors.sources] = sources[s];
    vectors.factors[vectors.sources++] = factors[s];
  }
  for (void* const destination : destinations) vectors.to[vectors.destinations++] = destination;
  dispatch(dtype, [&]<class T>(Type<T>) {
    start("weighted_sum_kernel", weighted_sum_kernel<typename DeviceType<T>::type>,
          static_cast<unsigned>(blocks_for(numel, sizeof(T))), kThreads, 0, stream, vectors, numel, squares);
  });
}

void write_news(const NewsFrom& from, News* news, cudaStream_t stream) {
  start("write_news_kernel", write_news_kernel, 1, kThreads, 0, stream, from, news);
}

void conclude(const News* news, int ranks, Outcome* outcome, cudaStream_t stream) {
  start("conclude_kernel", conclude_kernel, 1, 1, 0, stream, news, ranks, outcome);
}

}  // namespace fastseq::cuda
