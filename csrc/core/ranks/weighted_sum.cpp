#include "core/ranks/weighted_sum.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/base/dispatch.h"
#include "core/base/flat_layout.h"
#include "core/base/isa.h"
#include "core/base/pack.h"

namespace fastseq {

namespace {

constexpr std::int64_t kBlock = 1024;   // sums of this many elements stay in the first-level cache
constexpr std::int64_t kPiece = 16384;  // results of this many elements stay in the second-level cache

// to[d][i] = sum over s of factor[s] * from[s][i], for as many destinations as sources. A destination may be a source:
// FASTSEQ_INDEPENDENT tells the compiler that different i stay independent.
template <std::size_t N, class T>
void fused_sum(const T* const* sources, const T* factors, std::int64_t numel, T* const* destinations) {
  std::array<const T*, N> from;
  std::array<T*, N> to;
  std::array<T, N> factor;
  std::copy_n(sources, N, from.begin());
  std::copy_n(destinations, N, to.begin());
  std::copy_n(factors, N, factor.begin());
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < numel; ++i) {
    T sum = factor[0] * from[0][i];
    for (std::size_t s = 1; s < N; ++s) sum += factor[s] * from[s][i];
    for (std::size_t d = 0; d < N; ++d) to[d][i] = sum;
  }
}

template <class T>
void first_term(const T* from, Accumulate<T> factor, std::int64_t count, Accumulate<T>* sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] = factor * static_cast<Accumulate<T>>(from[i]);
}

template <class T>
void add_term(const T* from, Accumulate<T> factor, std::int64_t count, Accumulate<T>* sums) {
  for (std::int64_t i = 0; i < count; ++i) sums[i] += factor * static_cast<Accumulate<T>>(from[i]);
}

template <class T>
void round_sums(const Accumulate<T>* sums, std::int64_t count, T* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = T(sums[i]);
}

template <class T>
void blocked_sum(std::span<const T* const> sources, std::span<const Accumulate<T>> factors, std::int64_t numel,
                 std::span<T* const> destinations) {
  std::array<Accumulate<T>, kBlock> sums{};
  std::array<T, kBlock> rounded;
  for (std::int64_t begin = 0; begin < numel; begin += kBlock) {
    const std::int64_t count = std::min(kBlock, numel - begin);
    for (std::size_t s = 0; s < sources.size(); ++s) {
      const auto add = s == 0 ? best<first_term<T>> : best<add_term<T>>;
      add(sources[s] + begin, factors[s], count, sums.data());
    }
    best<round_sums<T>>(sums.data(), count, rounded.data());
    for (T* to : destinations) std::memcpy(to + begin, rounded.data(), static_cast<std::size_t>(count) * sizeof(T));
  }
}

// Computes the sum in place if there are exactly N ranks; returns whether it did.
template <std::size_t N, class T>
bool try_fused(std::span<const T* const> sources, std::span<const T> factors, std::int64_t numel,
               std::span<T* const> destinations) {
  if (sources.size() != N || destinations.size() != N) return false;
  best<fused_sum<N, T>>(sources.data(), factors.data(), numel, destinations.data());
  return true;
}

}  // namespace

void weighted_sum(std::span<const void* const> sources, std::span<const double> factors, std::int64_t numel,
                  DType dtype, std::span<void* const> destinations) {
  dispatch(dtype, [&]<class T>(Type<T>) {
    std::vector<const T*> from;
    std::vector<Accumulate<T>> used;
    std::vector<T*> to;
    from.reserve(sources.size());
    used.reserve(sources.size());
    to.reserve(destinations.size());
    for (std::size_t s = 0; s < sources.size(); ++s) {
      if (factors[s] == 0.0) continue;
      from.push_back(static_cast<const T*>(sources[s]));
      used.push_back(static_cast<Accumulate<T>>(factors[s]));
    }
    for (void* destination : destinations) to.push_back(static_cast<T*>(destination));
    // 16-bit types are faster in blocks, with separate loops for their conversions.
    if constexpr (std::is_same_v<T, Accumulate<T>>) {
      if (try_fused<1, T>(from, used, numel, to) || try_fused<2, T>(from, used, numel, to) ||
          try_fused<3, T>(from, used, numel, to) || try_fused<4, T>(from, used, numel, to)) {
        return;
      }
    }
    blocked_sum<T>(from, used, numel, to);
  });
}

double weighted_sum_and_squares(std::span<const void* const> sources, std::span<const double> factors,
                                std::int64_t numel, DType dtype, std::span<void* const> destinations) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  std::vector<const void*> from(sources.size());
  std::vector<void*> to(destinations.size());
  double squares = 0;
  for (std::int64_t begin = 0; begin < numel; begin += kPiece) {
    const std::int64_t count = std::min(kPiece, numel - begin);
    std::ranges::transform(sources, from.begin(),
                           [&](auto* p) { return static_cast<const std::byte*>(p) + begin * item; });
    std::ranges::transform(destinations, to.begin(),
                           [&](auto* p) { return static_cast<std::byte*>(p) + begin * item; });
    weighted_sum(from, factors, count, dtype, to);
    squares += facts_of(to.front(), count, dtype).sum_of_squares;
  }
  return squares;
}

void scale_in_place(void* data, std::int64_t numel, DType dtype, double factor) {
  if (factor == 1.0) return;
  const std::array<const void*, 1> source = {data};
  const std::array<void*, 1> destination = {data};
  weighted_sum(source, {{factor}}, numel, dtype, destination);
}

Slice slice_of(std::int64_t numel, DType dtype, int index, int count) {
  const std::int64_t line = kFlatAlignment / static_cast<std::int64_t>(item_size(dtype));
  const std::int64_t lines = (numel + line - 1) / line;
  const auto bound = [&](std::int64_t i) { return std::min(numel, lines * i / count * line); };
  return {.begin = bound(index), .end = bound(index + 1)};
}

}  // namespace fastseq
