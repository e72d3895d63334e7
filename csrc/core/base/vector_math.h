// exp, tanh and the logistic function of vectors, fp32 and fp64, within 4 units in the last place.
//
// exp(x) = 2^n exp(r) with n = round(x / ln 2) and |r| <= ln(2) / 2; ln 2 is split in two so that r is exact to the
// last bit (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980). exp(r) - 1 = r + r^2 q(r), q
// being the minimax polynomial of degree 4 in fp32 (found by iteratively reweighted least squares at Chebyshev points)
// and Taylor's of degree 11 in fp64; both are within a quarter of a unit. tanh(x) = e / (e + 2) with e = exp(2 |x|) -
// 1, which keeps its relative accuracy near 0. NaN stays NaN. Where exp(-x) is near overflow, the logistic function is
// 0.
#pragma once

#include <cstdint>
#include <iterator>
#include <numbers>

#include "core/base/simd.h"

namespace fastseq::simd {

template <class T>
struct ExpConstants;

// NOLINTBEGIN(modernize-use-std-numbers): parts of ln 2

template <>
struct ExpConstants<float> {
  using Bits = std::uint32_t;
  static constexpr float kTerms[] = {0.49999998F, 0.16666544F, 0.0416672F, 0.00836652F, 0.00138825F};
  static constexpr float kLn2High = 0.693359375F;  // few bits: n times it is exact
  static constexpr float kLn2Low = -2.12194440e-4F;
  static constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to integers
  static constexpr int kMantissa = 23;
  static constexpr Bits kOne = 0x3f800000U;
  static constexpr float kOverflows = 89.0F;  // its power of two is infinity
  static constexpr float kVanishes = -87.0F;  // its exponential is a normal number
  static constexpr float kTanhIsOne = 10.0F;
};

template <>
struct ExpConstants<double> {
  using Bits = std::uint64_t;
  static constexpr double kTerms[] = {1. / 2,       1. / 6,        1. / 24,        1. / 120,
                                      1. / 720,     1. / 5040,     1. / 40320,     1. / 362880,
                                      1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52;
  static constexpr Bits kOne = 0x3ff0000000000000U;
  static constexpr double kOverflows = 710.0;
  static constexpr double kVanishes = -708.0;
  static constexpr double kTanhIsOne = 20.0;
};
// NOLINTEND(modernize-use-std-numbers)

// exp(x) = power * (1 + rest), with power a power of two; x from kVanishes to kOverflows.
template <class V>
inline void exp_parts(const V& x, V& power, V& rest) {
  using T = Lane<V>;
  using C = ExpConstants<T>;
  using Bits = Vector<typename C::Bits, sizeof(V)>;
  const V shifted = x * std::numbers::log2e_v<T> + C::kRound;
  const V n = shifted - C::kRound;
  power = __builtin_bit_cast(V, (__builtin_bit_cast(Bits, shifted) << C::kMantissa) + C::kOne);
  const V r = (x - n * C::kLn2High) - n * C::kLn2Low;
  constexpr int kLast = static_cast<int>(std::size(C::kTerms)) - 1;
  V sum = V{} + C::kTerms[kLast];
#pragma GCC unroll 16
  for (int i = kLast - 1; i >= 0; --i) sum = sum * r + C::kTerms[i];
  rest = r + r * r * sum;
}

// 1 / (1 + exp(-x))
template <class V>
inline void sigmoid(V& x) {
  using T = Lane<V>;
  using C = ExpConstants<T>;
  x = -x;
  x = x > C::kOverflows ? V{} + C::kOverflows : x;
  x = x < C::kVanishes ? V{} + C::kVanishes : x;
  V power;
  V rest;
  exp_parts(x, power, rest);
  x = T(1) / (T(1) + power * (T(1) + rest));
}

template <class V>
inline void tanh(V& x) {
  using T = Lane<V>;
  using C = ExpConstants<T>;
  using Bits = Vector<typename C::Bits, sizeof(V)>;
  constexpr typename C::Bits kSign = ~(~typename C::Bits{} >> 1);
  const Bits bits = __builtin_bit_cast(Bits, x);
  V size = __builtin_bit_cast(V, bits & ~kSign);
  size = size > C::kTanhIsOne ? V{} + C::kTanhIsOne : size;
  V power;
  V rest;
  exp_parts(V(size + size), power, rest);
  const V e = power * rest + (power - T(1));
  const V result = e / (e + T(2));
  x = __builtin_bit_cast(V, __builtin_bit_cast(Bits, result) | (bits & kSign));
}

}  // namespace fastseq::simd
