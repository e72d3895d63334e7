// Pairs of bf16 numbers: operands of products in mixed precision, whose sums are in fp32.
#pragma once

#include <bit>
#include <cstdint>

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

// Rows of `count` numbers, so far apart, to pairs.
inline void round_rows(const float* from, std::int64_t row, std::int64_t rows, std::int64_t count, Bf16Pair* to,
                       std::int64_t to_row) {
  for (std::int64_t i = 0; i < rows; ++i) to_pairs(from + i * row, count, to + i * to_row);
}

// Pairs of equal places in two rows.
inline void to_pairs(const float* first, const float* second, std::int64_t count, Bf16Pair* to) {
  FASTSEQ_INDEPENDENT
  for (std::int64_t i = 0; i < count; ++i) to[i] = Bf16Pair(first[i], second[i]);
}

// Rows two by two, so far apart; the last one of an odd count is beside zeros.
inline void pair_rows(const float* from, std::int64_t row, std::int64_t rows, std::int64_t count, Bf16Pair* to) {
  for (std::int64_t i = 0; i + 1 < rows; i += 2)
    to_pairs(from + i * row, from + (i + 1) * row, count, to + i / 2 * count);
  if (rows % 2 == 0) return;
  const float* last = from + (rows - 1) * row;
  for (std::int64_t i = 0; i < count; ++i) to[rows / 2 * count + i] = Bf16Pair(last[i], 0);
}

// Adds both products of a pair with each lane's pair to the lanes of a sum.
template <class V>
inline void add_pair_products(V& sum, const Bf16Pair& a, const simd::Vector<std::uint32_t, sizeof(V)>& b) {
  constexpr std::uint32_t kUpper = 0xffff0000U;
  sum += std::bit_cast<float>(a.bits << 16) * std::bit_cast<V>(b << 16);
  sum += std::bit_cast<float>(a.bits & kUpper) * std::bit_cast<V>(b & kUpper);
}

#if FASTSEQ_HAS_MULTIVERSION
// Vectors of 64 bytes are used where one instruction does it: see run_best_bf16.
__attribute__((target("arch=x86-64-v4,avx512bf16"))) inline void add_pair_products(
    simd::Vector<float, 64>& sum, const Bf16Pair& a, const simd::Vector<std::uint32_t, 64>& b) {
  sum = std::bit_cast<simd::Vector<float, 64>>(
      _mm512_dpbf16_ps(std::bit_cast<__m512>(sum), std::bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a.bits))),
                       std::bit_cast<__m512bh>(b)));
}
#endif

}  // namespace fastseq
