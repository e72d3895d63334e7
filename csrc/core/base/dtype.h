// The element types of fastseq's kernels and communicator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace fastseq {

enum class DType : std::uint8_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

constexpr std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kFloat32:
      return 4;
    case DType::kFloat64:
      return 8;
  }
  throw std::invalid_argument("item_size: unknown dtype");
}

}  // namespace fastseq
