// Shared by forward and backward of a recurrent layer.
//
// Hidden units are processed in panels of 64 bytes, the last one padded: panel p holds units [p L, p L + L). Internal
// buffers have the layout [step][panel][sequence][quantity][L]; lanes never mix, so padding may hold anything. Products
// are sums of rows of a weight panel, kept in registers, for rows of several sequences at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "core/base/bf16_pair.h"
#include "core/base/isa.h"
#include "core/base/simd.h"

namespace fastseq::recurrence {

template <class T>
inline constexpr std::int64_t kPanel = 64 / sizeof(T);

template <class T>
constexpr std::int64_t panel_count(std::int64_t units) {
  return (units + kPanel<T> - 1) / kPanel<T>;
}

// Number of a panel's units that are not padding.
template <class T>
constexpr std::int64_t units_in(std::int64_t panel, std::int64_t units) {
  return std::min(kPanel<T>, units - panel * kPanel<T>);
}

// What products multiply: numbers, or pairs of them in bf16, both of whose products are added to one sum. A pair is as
// large as an fp32 number and takes its place in panels and vectors.
template <class O>
inline constexpr std::int64_t kNumbers = std::is_same_v<O, Bf16Pair> ? 2 : 1;

// How many hold so many numbers.
template <class O>
constexpr std::int64_t operand_count(std::int64_t numbers) {
  return (numbers + kNumbers<O> - 1) / kNumbers<O>;
}

// The i-th operand of `count` numbers that are `step` apart; zeros follow the last number.
template <class O, class T>
inline O operand_at(const T* from, std::int64_t step, std::int64_t count, std::int64_t i) {
  if constexpr (kNumbers<O> == 1) {
    return from[i * step];
  } else {
    return O(from[2 * i * step], 2 * i + 1 < count ? from[(2 * i + 1) * step] : T{});
  }
}

// Calls Body::run<kBytes>(args...), compiled for the machine's best instruction set for products of such operands.
template <class O, class Body, class... Args>
void run_best_for(const Args&... args) {
  if constexpr (kNumbers<O> == 1) {
    run_best<Body>(args...);
  } else {
    run_best_bf16<Body>(args...);
  }
}

// Uninitialised memory for vectors.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t numel)
      : memory_(static_cast<T*>(::operator new(static_cast<std::size_t>(numel) * sizeof(T), kAlignment))) {}
  T* data() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<T, Free> memory_;
};

// Rows of a tile with `columns` vectors per row: as many as fit the registers (32 with AVX-512, else 16).
template <int kBytes>
constexpr int tile_rows(int columns) {
  constexpr int kRows64[] = {12, 12, 8, 6};
  constexpr int kRows[] = {8, 5, 4, 3};
  return kBytes == 64 ? kRows64[columns - 1] : kRows[columns - 1];
}

// acc[r][kFirst + j] += sum over q < k of a[r * a_row + q * a_step] * b[q * b_step + j * L], for j < kCount.
template <int kFirst, int kCount, int kRows, int kColumns, class V, class T = simd::Lane<V>>
inline void add_products(V (&acc)[kRows][kColumns], const T* a, std::int64_t a_row, std::int64_t a_step, const T* b,
                         std::int64_t b_step, std::int64_t k) {
  for (std::int64_t q = 0; q < k; ++q) {
    V row[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) simd::load(row[j], b + j * kPanel<T>);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const T factor = a[r * a_row];
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) acc[r][kFirst + j] += factor * row[j];
    }
    a += a_step;
    b += b_step;
  }
}

// The same for pairs.
template <int kFirst, int kCount, int kRows, int kColumns, class V>
inline void add_products(V (&acc)[kRows][kColumns], const Bf16Pair* a, std::int64_t a_row, std::int64_t a_step,
                         const Bf16Pair* b, std::int64_t b_step, std::int64_t k) {
  for (std::int64_t q = 0; q < k; ++q) {
    simd::Vector<std::uint32_t, sizeof(V)> row[kCount];
#pragma GCC unroll 4
    for (int j = 0; j < kCount; ++j) std::memcpy(&row[j], b + j * kPanel<float>, sizeof(V));
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Bf16Pair factor = a[r * a_row];
#pragma GCC unroll 4
      for (int j = 0; j < kCount; ++j) add_pair_products(acc[r][kFirst + j], factor, row[j]);
    }
    a += a_step;
    b += b_step;
  }
}

// Products take weights in blocks that stay in the first-level cache while they meet the tiles of kBlockSequences
// sequences. The sums wait in memory meanwhile, so that the order of additions does not change.
inline constexpr std::int64_t kBlockBytes = 24 * 1024;
inline constexpr std::int64_t kBlockSequences = 64;

// Rows of a block, with this many vectors of 64 bytes per row.
constexpr std::int64_t block_rows(std::int64_t vectors) { return kBlockBytes / (64 * vectors); }

// Calls fn(from, to) for blocks of at most `size` that cover [begin, end); once for an empty range.
template <class Fn>
inline void for_blocks(std::int64_t begin, std::int64_t end, std::int64_t size, const Fn& fn) {
  do {
    const std::int64_t to = std::min(begin + size, end);
    fn(begin, to);
    begin = to;
  } while (begin < end);
}

// The vectors of a tile from and to memory: vector (r, c) is at r * row + c * column.
template <int kRows, int kColumns, class V>
inline void load_tile(V (&tile)[kRows][kColumns], const simd::Lane<V>* from, std::int64_t row, std::int64_t column) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) simd::load(tile[r][c], from + r * row + c * column);
  }
}
template <int kRows, int kColumns, class V>
inline void store_tile(const V (&tile)[kRows][kColumns], simd::Lane<V>* to, std::int64_t row, std::int64_t column) {
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) simd::store(to + r * row + c * column, tile[r][c]);
  }
}

// Calls fn.operator()<rows>(first) for tiles that cover [begin, end): of kRows rows, and smaller ones for the rest.
template <int kRows, class Fn>
inline void for_tiles(std::int64_t begin, std::int64_t end, const Fn& fn) {
  for (; end - begin >= kRows; begin += kRows) fn.template operator()<kRows>(begin);
  if constexpr (kRows > 1) {
    if (begin < end) for_tiles<(kRows + 1) / 2>(begin, end, fn);
  }
}

// The sequences that are active in a step.
struct Activity {
  std::int64_t steps;
  bool reverse;
  const std::int64_t* lengths;

  std::int64_t length(std::int64_t n) const { return lengths == nullptr ? steps : lengths[n]; }
  // Whether step t starts from the initial state.
  bool starts(std::int64_t t, std::int64_t n) const { return t == (reverse ? length(n) - 1 : 0); }
  // The step before t, in the order of the recurrence.
  std::int64_t before(std::int64_t t) const { return reverse ? t + 1 : t - 1; }

  // Calls fn(first, last, starts) for runs of sequences in [begin, end) that are active in step t.
  template <class Fn>
  void for_runs(std::int64_t t, std::int64_t begin, std::int64_t end, const Fn& fn) const {
    while (begin < end) {
      if (t >= length(begin)) {
        ++begin;
        continue;
      }
      const bool first_step = starts(t, begin);
      std::int64_t stop = lengths == nullptr ? end : begin + 1;
      while (stop < end && t < length(stop) && starts(t, stop) == first_step) ++stop;
      fn(begin, stop, first_step);
      begin = stop;
    }
  }
};

}  // namespace fastseq::recurrence
