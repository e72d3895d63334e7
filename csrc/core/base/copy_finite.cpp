#include "core/base/copy_finite.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/base/isa.h"

namespace fastseq {

namespace {

constexpr std::int64_t kBlock = 4096;  // elements to copy, and check while they are in the cache

// A floating-point number is finite unless all bits of its exponent are set.
template <class Bits>
bool all_finite(const Bits* values, std::int64_t count, Bits exponent) {
  Bits bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= static_cast<Bits>((values[i] & exponent) == exponent ? 1 : 0);
  return bad == 0;
}

bool block_finite(const std::byte* values, std::int64_t count, DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return best<all_finite<std::uint16_t>>(reinterpret_cast<const std::uint16_t*>(values), count, 0x7c00U);
    case DType::kBFloat16:
      return best<all_finite<std::uint16_t>>(reinterpret_cast<const std::uint16_t*>(values), count, 0x7f80U);
    case DType::kFloat32:
      return best<all_finite<std::uint32_t>>(reinterpret_cast<const std::uint32_t*>(values), count, 0x7f800000U);
    case DType::kFloat64:
      break;
  }
  return best<all_finite<std::uint64_t>>(reinterpret_cast<const std::uint64_t*>(values), count, 0x7ff0000000000000U);
}

}  // namespace

bool copy_finite(const void* from, std::int64_t numel, DType dtype, void* to) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  bool finite = true;
  for (std::int64_t first = 0; first < numel; first += kBlock) {
    const std::int64_t count = std::min(kBlock, numel - first);
    if (source != target) {
      std::memcpy(target + first * item, source + first * item, static_cast<std::size_t>(count * item));
    }
    finite &= block_finite(target + first * item, count, dtype);
  }
  return finite;
}

}  // namespace fastseq
