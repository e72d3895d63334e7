// core/ranks/weighted_sum.h on a GPU, and what the ranks tell each other about an update, all on device pointers, in
// the order of a stream.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/dtype.h"

namespace fastseq::cuda {

inline constexpr int kMaxRanks = 16;  // whose data a kernel reads

// Number of doubles for the squares of `numel` results.
std::int64_t squares_scratch(std::int64_t numel);

// As weighted_sum, from up to kMaxRanks sources, to as many destinations, which are aligned to 16 bytes. `squares`, if
// not null: squares_scratch(numel) partial sums of the squares of the results.
void weighted_sum(std::span<const void* const> sources, std::span<const double> factors, std::int64_t numel,
                  DType dtype, std::span<void* const> destinations, double* squares, cudaStream_t stream);

// What a rank tells the others with the last bucket.
struct News {
  double nonfinite;  // 1 if a gradient is not finite, else 0
  double value;      // its share of the mean value
  double squares;    // of its part of the means
};

// What all ranks know then.
struct Outcome {
  double value;           // the mean
  double nonfinite_rank;  // the lowest with a gradient that is not finite, or -1
  double norm;            // of the means
};

struct NewsFrom {
  const double* facts;  // of `buckets` buckets, as pack writes them
  std::int64_t buckets;
  const double* value;  // null: 0
  double factor;        // this rank's in the mean; 0: neither its value nor its facts count
  const double* squares;
  std::int64_t squares_count;
};
void write_news(const NewsFrom& from, News* news, cudaStream_t stream);
// From the news of all ranks, one after the other.
void conclude(const News* news, int ranks, Outcome* outcome, cudaStream_t stream);

}  // namespace fastseq::cuda
