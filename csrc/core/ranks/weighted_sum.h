// The arithmetic of every exchange: a weighted sum of the ranks' vectors, in the order of the ranks, so that the bits
// do not depend on rank, bucket size or transport.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/dtype.h"

namespace fastseq {

// out[i] = sum over s of factors[s] * sources[s][i], for `numel` elements, written to each of `destinations`. Summed in
// fp32 (fp64 for fp64), rounded once. Sources with factor 0 are not read, so their NaNs do not count. A destination may
// be one of the sources; otherwise nothing overlaps.
void weighted_sum(std::span<const void* const> sources, std::span<const double> factors, std::int64_t numel,
                  DType dtype, std::span<void* const> destinations);

// The same; returns the sum of the squares of `out`, which are read while they are in the cache.
double weighted_sum_and_squares(std::span<const void* const> sources, std::span<const double> factors,
                                std::int64_t numel, DType dtype, std::span<void* const> destinations);

// data[i] *= factor; with a factor of 0 all become 0, whatever they were.
void scale_in_place(void* data, std::int64_t numel, DType dtype, double factor);

// The part of `numel` elements for rank `index` of `count`: parts are nearly equal and start at cache lines.
struct Slice {
  std::int64_t begin;
  std::int64_t end;
};
Slice slice_of(std::int64_t numel, DType dtype, int index, int count);

}  // namespace fastseq
