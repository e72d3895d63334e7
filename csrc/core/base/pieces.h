// Many tensors as one row of elements, split into ranges for threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fastseq {

// Calls piece(i, first, last) for the part [first, last) of each tensor i within [begin, end), which counts the
// elements of all tensors. `starts` holds the index of each tensor's first element in that count.
template <class Piece>
void for_pieces(std::span<const std::int64_t> starts, std::int64_t begin, std::int64_t end, Piece&& piece) {
  auto i = static_cast<std::size_t>(std::ranges::upper_bound(starts, begin) - starts.begin()) - 1;
  for (; i + 1 < starts.size() && starts[i] < end; ++i) {
    const std::int64_t first = std::max(begin - starts[i], std::int64_t{0});
    const std::int64_t last = std::min(end, starts[i + 1]) - starts[i];
    if (first < last) piece(i, first, last);
  }
}

inline std::vector<std::int64_t> element_starts(std::span<const std::int64_t> numels) {
  std::vector<std::int64_t> starts(numels.size() + 1, 0);
  for (std::size_t i = 0; i < numels.size(); ++i) starts[i + 1] = starts[i] + numels[i];
  return starts;
}

}  // namespace fastseq
