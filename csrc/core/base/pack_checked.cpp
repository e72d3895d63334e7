#include "core/base/pack_checked.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "core/base/copy_finite.h"
#include "core/base/dispatch.h"
#include "core/base/isa.h"
#include "core/base/pieces.h"

namespace fastseq {

namespace {

constexpr std::int64_t kBlock = 4096;
constexpr std::int64_t kLook = 1024;       // elements to write and then check
constexpr std::int64_t kGrainBlocks = 16;  // least blocks worth waking a thread for
constexpr int kLanes = 16;                 // partial sums that one instruction can add to

struct Facts {
  bool finite = true;
  double sum_of_squares = 0;
};

template <class From, class To>
void scale_cast(const From* from, std::int64_t count, double scale, To* to) {
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  const auto factor = static_cast<Wide>(scale);
  for (std::int64_t i = 0; i < count; ++i) to[i] = To(static_cast<Wide>(from[i]) * factor);
}

template <class T>
double sum_of_squares(const T* values, std::int64_t count) {
  std::array<Accumulate<T>, kLanes> sums{};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto x = static_cast<Accumulate<T>>(values[i + lane]);
      sums[lane] += x * x;
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) {
    const auto x = static_cast<Accumulate<T>>(values[i]);
    sums[lane] += x * x;
  }
  double sum = 0;
  for (const Accumulate<T> x : sums) sum += static_cast<double>(x);
  return sum;
}

// The values are checked while they are in the first-level cache, in loops simple enough for vector instructions.
template <class From, class To>
void scale_piece(const From* from, std::int64_t count, double scale, DType dtype, To* to, Facts& facts) {
  for (std::int64_t first = 0; first < count; first += kLook) {
    const std::int64_t some = std::min(kLook, count - first);
    best<scale_cast<From, To>>(from + first, some, scale, to + first);
    facts.sum_of_squares += best<sum_of_squares<To>>(to + first, some);
    facts.finite &= copy_finite(to + first, some, dtype, to + first);
  }
}

template <class From, class To>
PackedFacts pack_as(std::span<const void* const> tensors, std::span<const std::int64_t> numels,
                    const FlatLayout& layout, double scale, DType to, To* flat, ParallelFor parallel_for) {
  const std::vector<std::int64_t> starts = element_starts(numels);
  const std::int64_t blocks = (starts.back() + kBlock - 1) / kBlock;
  std::vector<Facts> facts(static_cast<std::size_t>(blocks));
  auto body = [&](std::int64_t first_block, std::int64_t last_block) {
    for (std::int64_t block = first_block; block < last_block; ++block) {
      const std::int64_t end = std::min((block + 1) * kBlock, starts.back());
      for_pieces(starts, block * kBlock, end, [&](std::size_t i, std::int64_t first, std::int64_t last) {
        scale_piece(static_cast<const From*>(tensors[i]) + first, last - first, scale, to,
                    flat + layout.offsets[i] + first, facts[static_cast<std::size_t>(block)]);
      });
    }
  };
  for_ranges(parallel_for, blocks, kGrainBlocks, body);
  PackedFacts all{.finite = true, .sum_of_squares = 0};
  for (const Facts& each : facts) {
    all.finite &= each.finite;
    all.sum_of_squares += each.sum_of_squares;
  }
  return all;
}

}  // namespace

PackedFacts pack_checked(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from,
                         const FlatLayout& layout, DType to, double scale, void* flat, ParallelFor parallel_for) {
  zero_gaps(numels, layout, to, flat);
  return dispatch(from, [&]<class From>(Type<From>) {
    return dispatch(to, [&]<class To>(Type<To>) {
      return pack_as<From, To>(tensors, numels, layout, scale, to, static_cast<To*>(flat), parallel_for);
    });
  });
}

}  // namespace fastseq
