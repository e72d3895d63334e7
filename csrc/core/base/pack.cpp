#include "core/base/pack.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/isa.h"
#include "core/base/pieces.h"

namespace fastseq {

namespace {

constexpr std::int64_t kPiece = 1024;      // elements to write and then to look at
constexpr std::int64_t kBlock = 4096;      // elements of many tensors whose facts are those of one thread
constexpr std::int64_t kGrainBlocks = 16;  // least blocks worth waking a thread for
constexpr int kLanes = 16;                 // partial sums that instructions can add to side by side

// Calls value_of(i) once for each i, and returns the sum of the squares of what it returns.
template <class ValueOf>
double sum_of_squares(std::int64_t count, const ValueOf& value_of) {
  std::array<double, kLanes> sums{};
  const auto add = [&](int lane, std::int64_t i) {
    const auto value = value_of(i);
    const auto x = static_cast<double>(static_cast<Accumulate<std::remove_cvref_t<decltype(value)>>>(value));
    sums[lane] += x * x;
  };
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    FASTSEQ_INDEPENDENT
    for (int lane = 0; lane < kLanes; ++lane) add(lane, i + lane);
  }
  for (int lane = 0; i < count; ++i, ++lane) add(lane, i);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

template <class T>
double squares_of(const T* values, std::int64_t numel) {
  return sum_of_squares(numel, [&](std::int64_t i) { return values[i]; });
}

// to[i] = value_of(i); returns the sum of their squares.
template <class To, class ValueOf>
double write(std::int64_t numel, To* to, const ValueOf& value_of) {
  if constexpr (sizeof(To) > 2) return sum_of_squares(numel, [&](std::int64_t i) { return to[i] = value_of(i); });
  // 16-bit types are faster in separate loops, over so few elements that they stay in the first-level cache.
  double squares = 0;
  for (std::int64_t first = 0; first < numel; first += kPiece) {
    const std::int64_t last = std::min(first + kPiece, numel);
    FASTSEQ_INDEPENDENT
    for (std::int64_t i = first; i < last; ++i) to[i] = value_of(i);
    squares += squares_of(to + first, last - first);
  }
  return squares;
}

template <class T>
double copy(const T* from, std::int64_t numel, T* to) {
  return write(numel, to, [&](std::int64_t i) { return from[i]; });
}

template <class From, class To>
double scale_and_cast(const From* from, std::int64_t numel, double scale, To* to) {
  using Wide = std::conditional_t<std::is_same_v<From, double> && std::is_same_v<To, double>, double, float>;
  const auto factor = static_cast<Wide>(scale);
  return write(numel, to, [&](std::int64_t i) { return To(static_cast<Wide>(from[i]) * factor); });
}

template <class T>
PackedFacts facts_with(double squares, const T* values, std::int64_t numel) {
  // Squares of infinities and NaNs are not finite either; of all others only fp64's may overflow.
  const bool finite = std::isfinite(squares) || std::all_of(values, values + numel, [](T value) {
                        return std::isfinite(static_cast<Accumulate<T>>(value));
                      });
  return {.finite = finite, .sum_of_squares = squares};
}

template <class T>
PackedFacts facts_of_values(const T* values, std::int64_t numel) {
  return facts_with(best<squares_of<T>>(values, numel), values, numel);
}

template <class From, class To>
PackedFacts scaled_values(const From* from, std::int64_t numel, double scale, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    if (scale == 1.0 && from == to) return facts_of_values(from, numel);
    if (scale == 1.0) return facts_with(best<copy<To>>(from, numel, to), to, numel);
  }
  return facts_with(best<scale_and_cast<From, To>>(from, numel, scale, to), to, numel);
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
