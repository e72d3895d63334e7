#include "core/base/pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/isa.h"
#include "core/base/pieces.h"

namespace fastseq {

namespace {

constexpr std::int64_t kPiece = 1024;      // elements to write, and to look at while they are in the first-level cache
constexpr std::int64_t kBlock = 4096;      // elements of many tensors whose facts are those of one thread
constexpr std::int64_t kGrainBlocks = 16;  // least blocks worth waking a thread for
constexpr int kLanes = 16;                 // partial sums that instructions can add to side by side

template <class From, class To>
void scaled_range(const From* from, std::int64_t count, double scale, To* to) {
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  const auto factor = static_cast<Wide>(scale);
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) to[i] = To(static_cast<Wide>(from[i]) * factor);
}

template <class T>
double sum_of_squares(const T* values, std::int64_t count) {
  std::array<double, kLanes> sums{};
  const auto add = [&](int lane, T value) {
    const auto x = static_cast<double>(static_cast<Accumulate<T>>(value));
    sums[lane] += x * x;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(lane, values[i + lane]);
  }
  for (int lane = 0; i < count; ++i, ++lane) add(lane, values[i]);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

// At most kPiece values.
template <class T>
PackedFacts facts_of_piece(const T* values, std::int64_t count) {
  const double squares = best<sum_of_squares<T>>(values, count);
  // Squares of infinities and NaNs are none either, and of all others only fp64's may overflow.
  const bool finite = std::isfinite(squares) || std::all_of(values, values + count, [](T value) {
                        return std::isfinite(static_cast<Accumulate<T>>(value));
                      });
  return {.finite = finite, .sum_of_squares = squares};
}

template <class T>
PackedFacts facts_of_values(const T* values, std::int64_t numel) {
  PackedFacts facts;
  for (std::int64_t first = 0; first < numel; first += kPiece) {
    facts.add(facts_of_piece(values + first, std::min(kPiece, numel - first)));
  }
  return facts;
}

template <class From, class To>
PackedFacts scaled_values(const From* from, std::int64_t numel, double scale, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    if (scale == 1.0 && from == to) return facts_of_values(from, numel);
  }
  PackedFacts facts;
  for (std::int64_t first = 0; first < numel; first += kPiece) {
    const std::int64_t count = std::min(kPiece, numel - first);
    if (std::is_same_v<From, To> && scale == 1.0) {
      std::memcpy(to + first, from + first, static_cast<std::size_t>(count) * sizeof(To));
    } else {
      best<scaled_range<From, To>>(from + first, count, scale, to + first);
    }
    facts.add(facts_of_piece(to + first, count));
  }
  return facts;
}

// Calls piece(i, first, last) for parts of tensors that cover all of them, and adds up the facts that it returns.
template <class Piece>
PackedFacts for_blocks(std::span<const std::int64_t> numels, ParallelFor parallel_for, const Piece& piece) {
  const std::vector<std::int64_t> starts = element_starts(numels);
  const std::int64_t blocks = (starts.back() + kBlock - 1) / kBlock;
  std::vector<PackedFacts> facts(static_cast<std::size_t>(blocks));
  auto body = [&](std::int64_t first_block, std::int64_t last_block) {
    for (std::int64_t block = first_block; block < last_block; ++block) {
      const std::int64_t end = std::min((block + 1) * kBlock, starts.back());
      for_pieces(starts, block * kBlock, end, [&](std::size_t i, std::int64_t first, std::int64_t last) {
        facts[static_cast<std::size_t>(block)].add(piece(i, first, last));
      });
    }
  };
  for_ranges(parallel_for, blocks, kGrainBlocks, body);
  PackedFacts all;
  for (const PackedFacts& each : facts) all.add(each);
  return all;
}

}  // namespace

PackedFacts facts_of(const void* values, std::int64_t numel, DType dtype) {
  return dispatch(dtype, [&]<class T>(Type<T>) { return facts_of_values(static_cast<const T*>(values), numel); });
}

PackedFacts scaled_copy(const void* from, DType from_dtype, std::int64_t numel, double scale, void* to,
                        DType to_dtype) {
  return dispatch(from_dtype, [&]<class From>(Type<From>) {
    return dispatch(to_dtype, [&]<class To>(Type<To>) {
      return scaled_values(static_cast<const From*>(from), numel, scale, static_cast<To*>(to));
    });
  });
}

PackedFacts facts_of(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType dtype,
                     ParallelFor parallel_for) {
  return dispatch(dtype, [&]<class T>(Type<T>) {
    return for_blocks(numels, parallel_for, [&](std::size_t i, std::int64_t first, std::int64_t last) {
      return facts_of_values(static_cast<const T*>(tensors[i]) + first, last - first);
    });
  });
}

PackedFacts pack(std::span<const void* const> tensors, std::span<const std::int64_t> numels, DType from_dtype,
                 const FlatLayout& layout, DType to_dtype, double scale, void* flat, ParallelFor parallel_for) {
  zero_gaps(numels, layout, to_dtype, flat);
  return dispatch(from_dtype, [&]<class From>(Type<From>) {
    return dispatch(to_dtype, [&]<class To>(Type<To>) {
      return for_blocks(numels, parallel_for, [&](std::size_t i, std::int64_t first, std::int64_t last) {
        return scaled_values(static_cast<const From*>(tensors[i]) + first, last - first, scale,
                             static_cast<To*>(flat) + layout.offsets[i] + first);
      });
    });
  });
}

void unpack(const void* flat, std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, double scale,
            std::span<void* const> tensors, ParallelFor parallel_for) {
  dispatch(dtype, [&]<class T>(Type<T>) {
    for_blocks(numels, parallel_for, [&](std::size_t i, std::int64_t first, std::int64_t last) {
      return scaled_values(static_cast<const T*>(flat) + layout.offsets[i] + first, last - first, scale,
                           static_cast<T*>(tensors[i]) + first);
    });
  });
}

}  // namespace fastseq
