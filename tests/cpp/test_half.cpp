// 16-bit floats against their definition: all values one way, and back by search for the nearest.
#include "core/base/half.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"

namespace fastseq {

namespace {

// The value of a binary floating-point number of 16 bits, from the definition of the format.
double value_of(std::uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const auto mantissa = static_cast<double>(bits & ((1U << mantissa_bits) - 1));
  const double sign = (bits & 0x8000U) != 0 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, exponent - bias);
}

template <class Half>
Half of_bits(std::uint32_t bits) {
  Half half{};
  half.bits = static_cast<std::uint16_t>(bits);
  return half;
}

template <class Half>
void check_widening(int exponent_bits, int mantissa_bits) {
  for (std::uint32_t bits = 0; bits < 0x10000U; ++bits) {
    const double expected = value_of(bits, exponent_bits, mantissa_bits);
    const auto got = static_cast<float>(of_bits<Half>(bits));
    if (std::isnan(expected)) {
      CHECK(std::isnan(got));
      CHECK(std::isnan(static_cast<float>(Half(got))));
      continue;
    }
    CHECK_EQ(static_cast<double>(got), expected);
    CHECK_EQ(std::signbit(got), std::signbit(expected));
    CHECK_EQ(Half(got).bits, bits);  // there and back
  }
}

// Between neighbouring halves a < b: values below the middle become a, above it b, on it the even one.
template <class Half>
void check_rounding(int exponent_bits, int mantissa_bits) {
  const std::uint32_t infinity = ((1U << exponent_bits) - 1) << mantissa_bits;
  for (std::uint32_t bits = 0; bits < infinity; ++bits) {
    const double low = value_of(bits, exponent_bits, mantissa_bits);
    double high = value_of(bits + 1, exponent_bits, mantissa_bits);
    if (bits + 1 == infinity) high = 2 * low - value_of(bits - 1, exponent_bits, mantissa_bits);
    const auto middle = static_cast<float>((low + high) / 2);
    const std::uint32_t even = bits % 2 == 0 ? bits : bits + 1;
    for (const float sign : {1.0F, -1.0F}) {
      const std::uint32_t sign_bit = sign < 0 ? 0x8000U : 0U;
      CHECK_EQ(Half(sign * middle).bits, even | sign_bit);
      CHECK_EQ(Half(sign * std::nextafter(middle, 0.0F)).bits, bits | sign_bit);
      CHECK_EQ(Half(sign * std::nextafter(middle, std::numeric_limits<float>::infinity())).bits, (bits + 1) | sign_bit);
    }
  }
}

}  // namespace

TEST(float16_widens_exactly) { check_widening<Float16>(5, 10); }
TEST(float16_rounds_to_nearest_even) { check_rounding<Float16>(5, 10); }
TEST(bfloat16_widens_exactly) { check_widening<BFloat16>(8, 7); }
TEST(bfloat16_rounds_to_nearest_even) { check_rounding<BFloat16>(8, 7); }

TEST(overflow_is_infinite_and_nan_stays_nan) {
  CHECK_EQ(Float16(1e30F).bits, 0x7c00U);
  CHECK_EQ(Float16(-std::numeric_limits<float>::infinity()).bits, 0xfc00U);
  CHECK_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80U);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isnan(static_cast<float>(Float16(nan))));
  CHECK(std::isnan(static_cast<float>(BFloat16(nan))));
}

}  // namespace fastseq
