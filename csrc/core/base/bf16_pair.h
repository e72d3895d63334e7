// Pairs of bf16 numbers: operands of products in mixed precision, whose sums are in fp32.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/base/half.h"
#include "core/base/isa.h"
#include "core/base/simd.h"

#if FASTSEQ_HAS_MULTIVERSION
#include <immintrin.h>
#endif

namespace fastseq {

struct Bf16Pair {
  std::uint32_t bits;  // the first number in the lower half

  Bf16Pair() = default;
  Bf16Pair(float first, float second)
      : bits(BFloat16(first).bits | static_cast<std::uint32_t>(BFloat16(second).bits) << 16) {}
};

// Pairs of neighbours; the last one of an odd count is beside a zero.
inline void to_pairs(const float* from, std::int64_t count, Bf16Pair* to) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count / 2; ++i) to[i] = Bf16Pair(from[2 * i], from[2 * i + 1]);
  if (count % 2 != 0) to[count / 2] = Bf16Pair(from[count - 1], 0);
}

// Rows of `count` numbers to pairs of neighbours; rows are `row` numbers, and `to_row` pairs, apart.
inline void round_rows(const float* from, std::int64_t row, std::int64_t rows, std::int64_t count, Bf16Pair* to,
                       std::int64_t to_row) {
  for (std::int64_t i = 0; i < rows; ++i) to_pairs(from + i * row, count, to + i * to_row);
}

// Pairs of equal places in two rows.
inline void to_pairs(const float* first, const float* second, std::int64_t count, Bf16Pair* to) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) to[i] = Bf16Pair(first[i], second[i]);
}

// Pairs of two rows of `count` numbers each; rows are `row` numbers apart, the last one of an odd count is beside
// zeros.
inline void pair_rows(const float* from, std::int64_t row, std::int64_t rows, std::int64_t count, Bf16Pair* to) {
  for (std::int64_t i = 0; i + 1 < rows; i += 2)
    to_pairs(from + i * row, from + (i + 1) * row, count, to + i / 2 * count);
  if (rows % 2 == 0) return;
  const float* last = from + (rows - 1) * row;
  for (std::int64_t i = 0; i < count; ++i) to[rows / 2 * count + i] = Bf16Pair(last[i], 0);
}

// Adds both products of a pair with each lane's pair to the lanes of a sum. Numbers beyond 3.39e38 are rounded to
// infinity; the instruction takes subnormal numbers for zero.
template <class V>
inline void add_pair_products(V& sum, const Bf16Pair& a, const simd::Vector<std::uint32_t, sizeof(V)>& b) {
  constexpr std::uint32_t kUpper = 0xffff0000U;
  sum += std::bit_cast<float>(a.bits << 16) * std::bit_cast<V>(b << 16);
  sum += std::bit_cast<float>(a.bits & kUpper) * std::bit_cast<V>(b & kUpper);
}

#if FASTSEQ_HAS_MULTIVERSION
// With vectors of 64 bytes by the instruction: see run_best_bf16. Calls no function for other targets, to which vectors
// would be passed in another way where it is not inlined.
__attribute__((target("arch=x86-64-v4,avx512bf16"))) inline void add_pair_products(
    simd::Vector<float, 64>& sum, const Bf16Pair& a, const simd::Vector<std::uint32_t, 64>& b) {
  __m512 total;
  __m512bh factors;
  std::memcpy(&total, &sum, sizeof(sum));
  std::memcpy(&factors, &b, sizeof(b));
  const __m512i both = _mm512_set1_epi32(static_cast<int>(a.bits));
  __m512bh pair;
  std::memcpy(&pair, &both, sizeof(both));
  total = _mm512_dpbf16_ps(total, pair, factors);
  std::memcpy(&sum, &total, sizeof(sum));
}
#endif

}  // namespace fastseq
