// 16-bit floats for storage: converted to fp32 to compute, and rounded to nearest even when stored.
#pragma once

#include <bit>
#include <cstdint>

namespace fastseq {

struct BFloat16 {
  std::uint16_t bits;

  BFloat16() = default;
  explicit BFloat16(float value) {
    const auto raw = std::bit_cast<std::uint32_t>(value);
    const bool is_nan = (raw & 0x7fffffffU) > 0x7f800000U;
    const std::uint32_t rounded = raw + 0x7fffU + ((raw >> 16) & 1U);
    bits = static_cast<std::uint16_t>(is_nan ? (raw >> 16) | 0x40U : rounded >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

// IEEE binary16. The conversions follow F. Giesen, "float->half variants" (public domain, 2012): scaling by powers of
// two lets the float unit do the rounding and the subnormals.
struct Float16 {
  std::uint16_t bits;

  Float16() = default;
  explicit Float16(float value) {
    const auto raw = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = raw & 0x80000000U;
    std::uint32_t magnitude = raw ^ sign;
    std::uint32_t half = 0;
    if (magnitude >= 0x47800000U) {  // 65536 and above: infinity, or NaN, which stays NaN
      half = magnitude > 0x7f800000U ? 0x7e00U : 0x7c00U;
    } else if (magnitude < 0x38800000U) {  // below 2^-14: subnormal, rounded by one float addition
      const float shifted = std::bit_cast<float>(magnitude) + std::bit_cast<float>(kSubnormalMagic);
      half = std::bit_cast<std::uint32_t>(shifted) - kSubnormalMagic;
    } else {
      const std::uint32_t odd = (magnitude >> 13) & 1U;
      magnitude += 0xc8000fffU + odd;  // re-bias the exponent (15 - 127) and round
      half = magnitude >> 13;
    }
    bits = static_cast<std::uint16_t>(half | (sign >> 16));
  }
  explicit operator float() const {
    const std::uint32_t exponent_mantissa = (bits & 0x7fffU) << 13;
    const std::uint32_t sign = (bits & 0x8000U) << 16;
    const float scaled = std::bit_cast<float>(exponent_mantissa) * std::bit_cast<float>(0x77800000U);  // 2^112
    auto raw = std::bit_cast<std::uint32_t>(scaled);
    if (scaled >= 65536.0F) raw |= 0x7f800000U;  // infinity and NaN keep their mantissa
    return std::bit_cast<float>(raw | sign);
  }

 private:
  static constexpr std::uint32_t kSubnormalMagic = ((127U - 15U) + (23U - 10U) + 1U) << 23;
};

}  // namespace fastseq
