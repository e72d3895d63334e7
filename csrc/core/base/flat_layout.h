// Layout of many tensors in a flat buffer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/dtype.h"

namespace fastseq {

// Tensors start at multiples of a cache line, so that no two of them share one and vector loads are aligned.
inline constexpr std::int64_t kFlatAlignment = 64;

// Offsets, in elements, of consecutive tensors, each start rounded up to `alignment` bytes.
struct FlatLayout {
  std::vector<std::int64_t> offsets;
  std::int64_t numel = 0;  // the buffer's length in elements, rounded up to the alignment too
};

// Raises std::invalid_argument for a negative numel, and for an alignment other than 1 that is less than the item size
// or not a multiple of it. alignment == 1 means dense: no gaps.
FlatLayout flat_layout(std::span<const std::int64_t> numels, DType dtype, std::int64_t alignment);

// Writes zeros to the gaps between the tensors, of `numels` elements each, in a buffer of this layout.
void zero_gaps(std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, void* flat);

// Tensors of one dtype share a buffer. Groups come in order of first appearance, members in order.
struct DTypeGroup {
  DType dtype;
  std::vector<std::int64_t> members;  // indices into the list of tensors
};

std::vector<DTypeGroup> group_by_dtype(std::span<const DType> dtypes);

}  // namespace fastseq
