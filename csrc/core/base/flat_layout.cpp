#include "core/base/flat_layout.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace fastseq {

namespace {

std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

FlatLayout flat_layout(std::span<const std::int64_t> numels, DType dtype, std::int64_t alignment) {
  const auto item = static_cast<std::int64_t>(item_size(dtype));
  if (alignment != 1 && (alignment < item || alignment % item != 0)) {
    throw std::invalid_argument("flat_layout: alignment must be 1 or a multiple of the item size " +
                                std::to_string(item) + ", got " + std::to_string(alignment));
  }
  const std::int64_t unit = alignment == 1 ? 1 : alignment / item;
  // Leaves room to round up, and for the byte count of the whole buffer.
  const std::int64_t limit = std::numeric_limits<std::int64_t>::max() / item - unit;
  FlatLayout layout;
  layout.offsets.reserve(numels.size());
  for (const std::int64_t numel : numels) {
    if (numel < 0) throw std::invalid_argument("flat_layout: negative numel " + std::to_string(numel));
    if (numel > limit - layout.numel) throw std::invalid_argument("flat_layout: the buffer would exceed 2^63 bytes");
    layout.offsets.push_back(layout.numel);
    layout.numel = round_up(layout.numel + numel, unit);
  }
  return layout;
}

void zero_gaps(std::span<const std::int64_t> numels, const FlatLayout& layout, DType dtype, void* flat) {
  const std::size_t item = item_size(dtype);
  for (std::size_t i = 0; i < numels.size(); ++i) {
    const std::int64_t begin = layout.offsets[i] + numels[i];
    const std::int64_t end = i + 1 < numels.size() ? layout.offsets[i + 1] : layout.numel;
    if (begin == end) continue;
    std::memset(static_cast<std::byte*>(flat) + static_cast<std::size_t>(begin) * item, 0,
                static_cast<std::size_t>(end - begin) * item);
  }
}

std::vector<DTypeGroup> group_by_dtype(std::span<const DType> dtypes) {
  std::vector<DTypeGroup> groups;
  for (std::size_t i = 0; i < dtypes.size(); ++i) {
    auto group = std::ranges::find(groups, dtypes[i], &DTypeGroup::dtype);
    if (group == groups.end()) group = groups.insert(groups.end(), DTypeGroup{dtypes[i], {}});
    group->members.push_back(static_cast<std::int64_t>(i));
  }
  return groups;
}

}  // namespace fastseq
